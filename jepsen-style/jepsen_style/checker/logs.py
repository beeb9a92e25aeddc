"""Node logs hold no sign of a broken program."""

from __future__ import annotations

from collections.abc import Mapping

from jepsen_style.checker.result import Result

SIGNS = (
    "Traceback (most recent call last)",
    "AssertionError",
    "raft cannot go on",
    "Task exception was never retrieved",
)


def check_logs(texts: Mapping[str, str]) -> Result:
    """texts: each node's log by its name."""
    for node, whole in sorted(texts.items()):
        lines = whole.splitlines()
        for number, line in enumerate(lines):
            if any(sign in line for sign in SIGNS):
                return Result(
                    checker="logs",
                    valid=False,
                    summary=f"{node} logged what a sound program never does",
                    offending=[
                        f"{node}: {text}" for text in lines[max(0, number - 1) : number + 30]
                    ],
                )
    return Result(
        checker="logs",
        valid=True if texts else None,
        summary=f"{len(texts)} logs without a sign of a broken program",
    )
