"""`job run`, `stop`, `scale`, `revert`, `eval`: commands that change a job and follow the evaluation."""

from __future__ import annotations

import re
from typing import Any

from nomadpy.cli import job_file
from nomadpy.cli.client import Client, escaped
from nomadpy.cli.command import DETACH, VERBOSE, Call, command
from nomadpy.cli.errors import ApiError, CliError, UsageError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.follow import Follower
from nomadpy.cli.lookup import find_job, in_namespace
from nomadpy.cli.output import say, warn

_PRIORITY = number(
    "eval-priority", "The priority of the evaluation (1 to 100) instead of the job's.", "priority"
)
_YES = Flag("yes", "Do not ask.")


@command(
    "job run [options] <path>",
    "Run the job of a JSON or YAML file (- is standard input), or change the one that runs.\n"
    "Exit code 0: placed and deployed; 1: an error, or the deployment failed; 2: not everything could be placed.",
    flags=(
        text(
            "check-index",
            "Change the job only if its modify index is still this (from `job plan`); 0: it must not exist.",
            "index",
        ),
        DETACH,
        _PRIORITY,
        Flag("json", "The file is JSON (also found out without the flag)."),
        Flag("output", "Print the job as JSON and do nothing."),
        Flag("policy-override", "Override soft policies."),
        Flag("preserve-counts", "Keep the counts that run now."),
        Flag("preserve-resources", "Keep the resources that run now."),
        VERBOSE,
    ),
    operands=(1, 1),
)
def run(call: Call) -> int:
    """Register and follow."""
    options = call.options
    file = job_file.read(call.operand())
    if options.on("output"):
        say(job_file.as_json(file.job))
        return 0
    body: dict[str, Any] = {
        "Job": file.job,
        "Submission": {"Source": file.source, "Format": file.format},
        "PolicyOverride": options.on("policy-override"),
        "PreserveCounts": options.on("preserve-counts"),
        "PreserveResources": options.on("preserve-resources"),
        "EvalPriority": options.number("eval-priority") or 0,
    }
    if index := options.text("check-index"):
        if not index.isdecimal():
            raise UsageError(f'Error parsing check-index value "{index}": not a whole number')
        body |= {"EnforceIndex": True, "JobModifyIndex": int(index)}
    mine = call.client.settings
    query = job_file.place(file.job, mine.namespace, mine.region)
    try:
        answer = call.client.put("/v1/jobs", body, query, doing="submitting job")
    except ApiError as error:
        if error.body.startswith("Enforcing job modify index"):
            raise CliError(
                f"{error.body}\n\nThe job was changed since it was planned. Plan it again: "
                f"nomadpy job plan {call.operand()}"
            ) from error
        raise
    if answer.get("Warnings"):
        warn(f"Job Warnings:\n{answer['Warnings']}\n")
    if not answer.get("EvalID"):
        say("Job registration successful")
        return 0
    if options.on("detach"):
        say(f"Job registration successful\nEvaluation ID: {answer['EvalID']}")
        return 0
    return Follower(call.client, length=call.id_length).evaluation(answer["EvalID"])


@command(
    "job stop [options] <job>...",
    "Stop jobs. The job's id may be shortened where it stays unique.",
    flags=(
        DETACH,
        _PRIORITY,
        Flag("global", "In all regions of the job."),
        Flag("no-shutdown-delay", "Do not wait for the shutdown delay of groups and tasks."),
        Flag("purge", "Forget the job at once instead of when garbage is collected."),
        _YES,
        VERBOSE,
    ),
    operands=(1, None),
)
def stop(call: Call) -> int:
    """Deregister and follow."""
    status = 0
    for name in call.operands:
        stub = find_job(call.client, name)
        if stub["ID"] != name and not call.options.on("yes") and not _agreed(stub["ID"]):
            say("Cancelling job stop")
            continue
        query: dict[str, Any] = {
            **in_namespace(stub),
            "purge": call.options.on("purge"),
            "global": call.options.on("global"),
            "no_shutdown_delay": call.options.on("no-shutdown-delay"),
            "eval_priority": call.options.number("eval-priority"),
        }
        answer = call.client.delete(
            f"/v1/job/{escaped(stub['ID'])}", query, doing="deregistering job"
        )
        status = max(status, _follow(call, answer.get("EvalID", ""), "Job stopped"))
    return status


@command(
    "job scale [options] <job> [<group>] <count>",
    "Change the count of a task group. The group may be left out when there is only one.",
    flags=(
        text("check-index", "Only if the job's modify index is still this.", "index"),
        DETACH,
        VERBOSE,
    ),
    operands=(2, 3),
)
def scale(call: Call) -> int:
    """Scale and follow."""
    stub = find_job(call.client, call.operand())
    count = call.operands[-1]
    if not re.fullmatch(r"\d{1,9}", count):
        raise UsageError(f'The count "{count}" is not a whole number')
    path = f"/v1/job/{escaped(stub['ID'])}/scale"
    group = call.operand(1) if len(call.operands) == 3 else ""
    if not group:
        groups = call.client.get(path, in_namespace(stub), doing="querying job")["TaskGroups"] or {}
        if len(groups) != 1:
            raise UsageError(f"The job has several groups ({', '.join(sorted(groups))}); name one")
        group = next(iter(groups))
    body: dict[str, Any] = {
        "Count": int(count),
        "Target": {"Namespace": stub["Namespace"], "Job": stub["ID"], "Group": group},
        "Message": "submitted using the command line",
    }
    if call.options.text("check-index"):
        body["JobModifyIndex"] = int(call.options.text("check-index"))
    answer = call.client.put(path, body, in_namespace(stub), doing="submitting scaling request")
    return _follow(call, answer.get("EvalID", ""), "Job scaled")


@command(
    "job revert [options] <job> <version>",
    "Run an earlier version of a job again, as a new version. `job history` lists them.",
    flags=(DETACH, VERBOSE),
    operands=(2, 2),
)
def revert(call: Call) -> int:
    """Revert and follow."""
    stub = find_job(call.client, call.operand())
    version = call.operand(1)
    body: dict[str, Any] = {"JobID": stub["ID"], "JobVersion": 0}
    if version.isdecimal():
        body["JobVersion"] = int(version)
    else:
        body["TaggedVersion"] = version
    answer = call.client.put(
        f"/v1/job/{escaped(stub['ID'])}/revert", body, in_namespace(stub), doing="reverting job"
    )
    return _follow(call, answer.get("EvalID", ""), "Job reverted")


@command(
    "job eval [options] <job>",
    "Have the scheduler look at a job again.",
    flags=(Flag("force-reschedule", "Also replace failed allocations that wait."), DETACH, VERBOSE),
    operands=(1, 1),
)
def evaluate(call: Call) -> int:
    """Evaluate and follow."""
    stub = find_job(call.client, call.operand())
    body = {
        "JobID": stub["ID"],
        "EvalOptions": {"ForceReschedule": call.options.on("force-reschedule")},
    }
    answer = call.client.put(
        f"/v1/job/{escaped(stub['ID'])}/evaluate", body, in_namespace(stub), doing="evaluating job"
    )
    return _follow(call, answer.get("EvalID", ""), "Job evaluated")


def _follow(call: Call, evaluation: str, done: str) -> int:
    if not evaluation:
        say(done)
        return 0
    if call.options.on("detach"):
        say(evaluation)
        return 0
    return follower(call.client, call).evaluation(evaluation)


def follower(client: Client, call: Call) -> Follower:
    """A follower that shows ids as long as the call wants them."""
    return Follower(client, length=call.id_length)


def _agreed(name: str) -> bool:
    try:
        reply = input(f'Are you sure you want to stop job "{name}"? [y/N] ')
    except EOFError:
        return False
    return reply.strip() in ("y", "Y", "yes")
