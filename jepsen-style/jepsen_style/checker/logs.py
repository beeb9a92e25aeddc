"""Node logs hold no sign of a broken program, and no secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jepsen_style.checker.result import Result

CANARY = "canary-5e1f7a90-kept-secret"
"""Part of every secret that workloads hand to the cluster."""

TRACEBACK = "Traceback (most recent call last)"
SIGNS = (
    TRACEBACK,
    "AssertionError",
    "raft cannot go on",
    "Task exception was never retrieved",
    "This is a fault of nomadpy",
)

# What the kernel refuses when a node starves. Whether the node gets over it is for other checkers to see.
REFUSED = ("Cannot allocate memory", "Too many open files", "MemoryError")


def check_logs(texts: Mapping[str, str], *, starved: bool = False) -> Result:
    """texts: each node's log by its name. starved: nodes were denied memory or processes on purpose; if not, a refusal is a leak."""
    for node, whole in sorted(texts.items()):
        lines = whole.splitlines()
        for number, line in enumerate(lines):
            if starved and TRACEBACK in line and _is_refusal(lines[number + 1 :]):
                continue
            if any(sign in line for sign in SIGNS):
                return Result(
                    checker="logs",
                    valid=False,
                    summary=f"{node} logged what a sound program never does",
                    offending=[
                        f"{node}: {text}" for text in lines[max(0, number - 1) : number + 30]
                    ],
                )
            if CANARY in line:
                return Result(
                    checker="logs",
                    valid=False,
                    summary=f"{node} logged a secret",
                    # The report is no place for it either.
                    offending=[f"{node}: {line.replace(CANARY, '(the secret)')}"],
                )
    return Result(
        checker="logs",
        valid=True if texts else None,
        summary=f"{len(texts)} logs without a sign of a broken program and without a secret",
    )


def _is_refusal(after: Sequence[str]) -> bool:
    """Whether a traceback, whose lines are indented, ends with what the kernel refused."""
    end = next((line for line in after if line and not line.startswith(" ")), "")
    return any(refused in end for refused in REFUSED)
