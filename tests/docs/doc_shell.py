"""Run a document's commands as a reader would: one shell, one folder, and a network of their own.

The shell runs in new network and process namespaces, so the default ports are free whatever else this machine runs, and nothing
outlives the document. Where namespaces are not allowed it runs on the machine itself.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from doc_blocks import ROOT, Block, blocks_of, comments_of

from nomadpy.demo.leftovers import processes_of

SHELL_LANGUAGES = ("sh", "console")
TIMEOUT_S = 180.0
_NAMESPACES = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

# A reader waits until the cluster answers; so does the script, before the first command that needs it.
_WAIT = """await_cluster() {
    for _ in $(seq 600); do
        nomadpy node status 2>/dev/null | grep -q ' ready$' && return 0
        sleep 0.1
    done
    echo "the cluster did not get ready"; tail -n 20 ./*.log; return 1
}
"""
_PRELUDE = f"""set -eu
exec 2>&1
ip link set lo up 2>/dev/null || true
{_WAIT}"""


def script_of(document: Path, *, section: str = "") -> str:
    """The shell script that a document's blocks are, files that it shows included."""
    parts: list[str] = []
    for comment in comments_of(document):
        if comment.startswith("begins after:") and not section:
            name, _, heading = comment.removeprefix("begins after:").strip().partition("#")
            parts.append(script_of(ROOT / name, section=heading))
    waiting = False
    for block in blocks_of(document):
        if section and block.heading != section:
            continue
        if block.language in SHELL_LANGUAGES and not block.mark.startswith("not run:"):
            text = commands_of(block)
            own = "nomadpy agent " in text
            if waiting and not own and re.search(r"^(NOMAD_\w+=\S+ )?nomadpy (?!tls )", text, re.M):
                exports = "\n".join(re.findall(r"^export .*$", text, re.MULTILINE))
                parts.append(f"{exports}\nawait_cluster\n")
                waiting = False
            parts.append(_told(block, text))
            waiting = waiting or own
        elif block.language == "hcl" and (named := re.match(r"# ([\w.-]+\.hcl)\n", block.text)):
            parts.append(f"cat > {named[1]} <<'END_OF_FILE'\n{block.text}END_OF_FILE\n")
    return "\n".join(parts)


def commands_of(block: Block) -> str:
    """What a reader types."""
    if block.language == "sh":
        return block.text
    typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    return "\n".join(typed) + "\n"


def _told(block: Block, text: str) -> str:
    if block.mark == "keeps running":
        return f"echo '### {block.place}'\n{{ {text.rstrip()} > kept-running.log 2>&1 & }}\n"
    return f"echo '### {block.place}'\n{text}"


def run(script: str, folder: Path) -> tuple[int, str]:
    """Run in `folder`, which gets links to what a checkout has. Returns the exit code and all output."""
    for name in ("docs", "config", "nomadpy", "agent"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    # The output goes to a file: a daemon that is left running would hold a pipe open.
    with (folder / "output").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*namespaces(), "bash", "-c", _PRELUDE + script],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = -1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            for left in processes_of(folder):
                _kill(left)
        output.seek(0)
        return status, output.read()


def _kill(pid: int) -> None:
    """End a process of ours that may have ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "PYTEST_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@functools.cache
def namespaces() -> tuple[str, ...]:
    """The command that gives another one namespaces of its own; () where that is not allowed."""
    for command in (_NAMESPACES, (*_NAMESPACES, "--map-root-user")):
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            break
    return ()
