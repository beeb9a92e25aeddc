"""The tree of commands: which module holds which, without importing it before it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from nomadpy.cli.errors import CliError


class Entry(NamedTuple):
    """Where a command is: module below nomadpy.cli, attribute, and one line for the overview."""

    module: str
    attribute: str
    summary: str


COMMANDS: dict[str, Entry] = {
    "agent": Entry("agent", "agent", "Run an agent: server, client, or both"),
    "agent-info": Entry("status", "agent_info", "Show what the agent says about itself"),
    "alloc exec": Entry("alloc_exec", "exec_", "Run a command in a task"),
    "alloc fs": Entry("alloc_files", "fs", "Look at an allocation's files"),
    "alloc logs": Entry("alloc_files", "logs", "Show the output of a task"),
    "alloc restart": Entry("alloc", "restart", "Restart the tasks of an allocation"),
    "alloc signal": Entry("alloc", "signal", "Send a signal to the tasks of an allocation"),
    "alloc stats": Entry("alloc", "stats", "Show what an allocation uses"),
    "alloc status": Entry("alloc", "status", "Show an allocation"),
    "alloc stop": Entry("alloc", "stop", "Stop an allocation and place it anew"),
    "deployment fail": Entry("deployment", "fail", "Mark a deployment as failed"),
    "deployment list": Entry("deployment", "list_", "List deployments"),
    "deployment pause": Entry("deployment", "pause", "Hold a deployment"),
    "deployment promote": Entry("deployment", "promote", "Promote a deployment's canaries"),
    "deployment resume": Entry("deployment", "resume", "Let a held deployment go on"),
    "deployment status": Entry("deployment", "status", "Show a deployment"),
    "eval explain": Entry("explain", "evaluation", "Say what keeps a job from being placed"),
    "eval list": Entry("evaluation", "list_", "List evaluations"),
    "eval status": Entry("evaluation", "status", "Show an evaluation"),
    "job allocs": Entry("job_status", "allocs", "List a job's allocations"),
    "job eval": Entry("job", "evaluate", "Have a job evaluated again"),
    "job explain": Entry("explain", "job", "Say why a job is placed as it is, or is not"),
    "job history": Entry("job_status", "history", "List a job's versions"),
    "job inspect": Entry("job_status", "inspect", "Print a job as JSON"),
    "job plan": Entry("job_plan", "plan", "Show what running a job file would change"),
    "job revert": Entry("job", "revert", "Go back to an earlier version of a job"),
    "job run": Entry("job", "run", "Run a job, or change one that runs"),
    "job scale": Entry("job", "scale", "Change the count of a task group"),
    "job status": Entry("job_status", "status", "Show jobs, or one job"),
    "job stop": Entry("job", "stop", "Stop a job"),
    "job validate": Entry("job_plan", "validate", "Check a job file"),
    "monitor": Entry("status", "monitor", "Follow the agent's log"),
    "namespace list": Entry("status", "namespaces", "List namespaces"),
    "node drain": Entry("node", "drain", "Move all work off a node"),
    "node eligibility": Entry("node", "eligibility", "Allow or forbid new work on a node"),
    "node status": Entry("node_status", "status", "Show nodes, or one node"),
    "operator api": Entry("operator", "api", "Send any request to the API"),
    "operator autopilot get-config": Entry("operator", "autopilot", "Show autopilot's settings"),
    "operator autopilot set-config": Entry(
        "operator_raft", "set_autopilot", "Change autopilot's settings"
    ),
    "operator autopilot health": Entry("operator", "health", "Show the health of the servers"),
    "operator metrics": Entry("operator", "metrics", "Print the agent's metrics"),
    "operator raft list-peers": Entry("operator", "raft_peers", "List the raft servers"),
    "operator raft remove-peer": Entry(
        "operator_raft", "remove_peer", "Remove a server from the raft configuration"
    ),
    "operator raft transfer-leadership": Entry(
        "operator_raft", "transfer", "Hand leadership to another server"
    ),
    "operator root keyring list": Entry("operator_keyring", "list_", "List the root keys"),
    "operator root keyring remove": Entry("operator_keyring", "remove", "Remove a root key"),
    "operator root keyring rotate": Entry("operator_keyring", "rotate", "Make a new root key"),
    "operator snapshot inspect": Entry("operator_snapshot", "inspect", "Check and show a snapshot"),
    "operator snapshot redact": Entry(
        "operator_snapshot", "redact", "Take the keys out of a snapshot"
    ),
    "operator snapshot restore": Entry(
        "operator_snapshot", "restore", "Replace the state by a snapshot"
    ),
    "operator snapshot save": Entry("operator_snapshot", "save", "Save the state into a file"),
    "operator snapshot state": Entry("operator_snapshot", "state", "Print a snapshot as JSON"),
    "operator scheduler get-config": Entry(
        "operator", "scheduler", "Show the scheduler's settings"
    ),
    "operator scheduler set-config": Entry(
        "operator", "set_scheduler", "Change the scheduler's settings"
    ),
    "server force-leave": Entry("status", "force_leave", "Treat a failed server as gone"),
    "server join": Entry("status", "join", "Join this server to others"),
    "server members": Entry("status", "members", "List the servers"),
    "rebalance": Entry("rebalance", "rebalance", "Move allocations for the cluster's good"),
    "simulate change": Entry("simulate_change", "change", "Say what would move if things changed"),
    "simulate nodes": Entry(
        "simulate", "nodes", "Register nodes that run nothing, to measure servers"
    ),
    "status": Entry("status", "status", "Show whatever has this id, or all jobs"),
    "system gc": Entry("status", "gc", "Collect garbage now"),
    "system reconcile summaries": Entry("status", "reconcile", "Count the job summaries anew"),
    "tls ca create": Entry("tls", "ca_create", "Make the cluster's certificate authority"),
    "tls ca info": Entry("tls", "ca_info", "Show a CA certificate"),
    "tls cert create": Entry(
        "tls", "cert_create", "Issue a certificate for a server, client or the CLI"
    ),
    "tls cert info": Entry("tls", "cert_info", "Show a certificate"),
    "var get": Entry("variable", "get", "Show a variable"),
    "var init": Entry("variable", "init", "Write an example specification of a variable"),
    "var list": Entry("variable", "list_", "List variables"),
    "var lock": Entry("variable_lock", "lock", "Run a command while holding a variable's lock"),
    "var purge": Entry("variable", "purge", "Remove a variable"),
    "var put": Entry("variable", "put", "Create a variable, or write it anew"),
    "version": Entry("status", "version", "Print the version"),
    "volume claim delete": Entry("volume", "claim_delete", "Forget which volume a group holds"),
    "volume claim list": Entry("volume", "claim_list", "List which groups hold which volumes"),
    "volume create": Entry("volume", "create", "Make a host volume on a node"),
    "volume delete": Entry("volume", "delete", "Delete a host volume"),
    "volume init": Entry("volume", "init", "Write an example specification of a host volume"),
    "volume register": Entry("volume", "register", "Make a directory known as a host volume"),
    "volume status": Entry("volume", "status", "Show host volumes, or one of them"),
}

ALIASES = {
    "run": "job run",
    "plan": "job plan",
    "stop": "job stop",
    "validate": "job validate",
    "inspect": "job inspect",
    "logs": "alloc logs",
    "exec": "alloc exec",
    "fs": "alloc fs",
    "alloc-status": "alloc status",
    "eval-status": "eval status",
    "node-status": "node status",
    "node-drain": "node drain",
    "server-members": "server members",
    "server-join": "server join",
    "server-force-leave": "server force-leave",
    "node show": "node status",
    "job list": "job status",
}

_COMMON = ("run", "plan", "status", "stop", "logs", "agent")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never raises but for a signal, never prints a traceback."""
    line = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(line)
        sys.stdout.flush()
        return status
    except CliError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who read our output has gone (`| head`); a second failure at exit must stay silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the process ends here, and a traceback is no answer to a user
        if os.environ.get("NOMADPY_DEBUG"):
            raise
        print(
            f"Internal error: {type(error).__name__}: {error}\n"
            "This is a fault of nomadpy. Set NOMADPY_DEBUG=1 to see where, and report it.",
            file=sys.stderr,
        )
        return 1


def _dispatch(line: list[str]) -> int:
    if line and line[0] in ("-v", "-version", "--version"):
        line = ["version"]
    name, rest = find(line)
    if name:
        entry = COMMANDS[name]
        command = getattr(importlib.import_module(f"nomadpy.cli.{entry.module}"), entry.attribute)
        status: int = command.run(rest)
        return status
    words = [w for w in line if not w.startswith("-")]
    group = " ".join(_longest_group(words))
    text = overview(group)
    if len(words) == len(group.split()):
        print(text)
        return 0 if line else 127
    unknown = words[len(group.split())]
    raise CliError(
        f"There is no command `{unknown}`{_guess(unknown, group)}.\n\n{text}", status=127
    )


def find(line: list[str]) -> tuple[str, list[str]]:
    """The longest command a line begins with, and the rest of it; ("", line) when there is none."""
    for length in range(min(4, len(line)), 0, -1):
        name = " ".join(line[:length])
        name = ALIASES.get(name, name)
        if name in COMMANDS:
            return name, line[length:]
    return "", line


def overview(group: str = "") -> str:
    """The list of commands, or of those below a word such as `job`."""
    if group:
        below = {n: e for n, e in COMMANDS.items() if n.startswith(group + " ")}
        lines = [f"Usage: nomadpy {group} <subcommand> [options] [args]", "", "Subcommands:"]
        width = max(map(len, below))
        return "\n".join(
            [*lines, *(f"    {n.ljust(width)}    {e.summary}" for n, e in below.items())]
        )
    entries = {n: COMMANDS[ALIASES.get(n, n)].summary for n in _COMMON}
    lines = ["Usage: nomadpy [-version] [-help] <command> [args]", "", "Common commands:"]
    lines += [f"    {n.ljust(14)}{summary}" for n, summary in entries.items()]
    groups: dict[str, str] = {}
    for name, entry in COMMANDS.items():
        first = name.split()[0]
        if first not in entries:
            several = sum(n.startswith(first + " ") for n in COMMANDS)
            plural = "" if several == 1 else "s"
            groups[first] = (
                f"{several} subcommand{plural}: nomadpy {first}" if several else entry.summary
            )
    lines += ["", "Other commands:", *(f"    {n.ljust(14)}{text}" for n, text in groups.items())]
    return "\n".join(lines)


def _longest_group(words: list[str]) -> list[str]:
    for length in range(len(words), 0, -1):
        if any(name.startswith(" ".join(words[:length]) + " ") for name in COMMANDS):
            return words[:length]
    return []


def _guess(word: str, group: str) -> str:
    import difflib

    place = len(group.split())
    names = [*COMMANDS, *ALIASES]
    known = {n.split()[place] for n in names if n.startswith(group) and len(n.split()) > place}
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean `{' '.join(filter(None, (group, close[0])))}`?)" if close else ""
