"""Lists of runs that belong together, and the table of their verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from jepsen_style.checker.recovery import Longest
from jepsen_style.checker.result import Result
from jepsen_style.report import Verdicts
from jepsen_style.workload.base import Reads

VALID, INVALID, UNKNOWN, FAILED = 0, 1, 2, 3
WORDS = {VALID: "valid", INVALID: "INVALID", UNKNOWN: "unknown", FAILED: "FAILED"}


class Plan(msgspec.Struct, frozen=True):
    """One run of a suite. nemeses: as --nemesis takes them. seconds: of work under faults. clients: 0 for the usual number.

    mutation, reads: what is broken on purpose; refuted: the run must be found invalid.
    """

    workload: str
    nemeses: str
    seconds: float = 60.0
    clients: int = 0
    mutation: str = ""
    reads: Reads = "default"
    refuted: bool = False

    @property
    def told(self) -> str:
        """The faults, and what is broken."""
        broken = (
            [self.mutation] if self.mutation else ["stale reads"] if self.reads == "stale" else []
        )
        return (
            " + ".join([self.nemeses, *broken])
            if self.nemeses != "none" or not broken
            else broken[0]
        )


# Whatever is promised about outages of writes, one fault at a time: 12 clients over the 8 keys.
_QUORUM = (
    "kill-leader",
    "pause-leader",
    "kill-majority",
    "kill-all",
    "restart-rolling",
    "restart-all",
    "partition-leader",
    "partition-one",
    "partition-halves",
    "partition-bridge",
    "partition-ring",
    "partition-deaf-leader",
)

SUITES: dict[str, tuple[Plan, ...]] = {
    # Is everything in its place?
    "smoke": (
        Plan("register", "kill-leader,partition-leader", 20.0),
        Plan("jobs-set", "restart-all", 15.0),
    ),
    # Six minutes of faults, for every change.
    "ci": (
        Plan("register", "kill,pause"),
        Plan("register", "partition"),
        Plan("register", "power,clock"),
        Plan("placement", "kill-agent,partition-agents,partition-leader"),
        Plan("jobs-set", "kill-all"),
        Plan("append", "combined,kill,pause,partition,packet,clock,disk-slow"),
    ),
    "quorum": tuple(Plan("register", name, clients=12) for name in _QUORUM),
    # A kit that always says "valid" proves nothing: each of these must be found invalid.
    "proofs": (
        Plan("register", "none", 10.0, reads="stale", refuted=True),
        Plan("register", "lying-disks", 30.0, refuted=True),
        *(
            Plan(workload, nemeses, seconds, mutation=mutation, refuted=True)
            for workload, nemeses, seconds, mutation in (
                ("register", "none", 10.0, "stale-reads"),
                ("register", "none", 10.0, "drop-acknowledged-write"),
                ("register", "none", 10.0, "ignore-check-and-set"),
                ("register", "power-all", 30.0, "skip-fsync"),
                ("lock", "none", 20.0, "double-lock"),
                ("lock", "none", 20.0, "no-fence"),
                ("jobs-set", "none", 10.0, "lose-job"),
                ("blocking", "none", 20.0, "lost-wake"),
                ("blocking", "none", 10.0, "index-goes-back"),
                ("placement", "none", 20.0, "place-twice"),
                ("capacity", "none", 20.0, "overcommit"),
                ("deployments", "none", 30.0, "bless-deployment"),
                ("survive", "kill-agent", 30.0, "forget-task"),
                ("leaks", "none", 20.0, "leak-process"),
                ("leaks", "none", 20.0, "leak-dir"),
                ("placement", "none", 20.0, "print-secret"),
            )
        ),
    ),
    # Every nemesis with a workload that it could hurt; tests hold that none is missing.
    "long": (
        Plan("register", "kill", 120.0),
        Plan("register", "pause", 120.0),
        Plan("register", "partition", 120.0),
        Plan("register", "packet", 240.0),
        Plan("register", "clock", 180.0),
        Plan("register", "cgroup", 180.0),
        Plan("register", "disk", 240.0),
        Plan("register", "power", 120.0),
        Plan("register", "corrupt-log,corrupt-vote,corrupt-snapshot", 120.0),
        Plan("register", "corrupt-log-truncate,corrupt-log-zero"),
        Plan("register", "membership", 180.0),
        Plan("register", "restart", 120.0),
        Plan("register", "combined", 300.0),
        Plan("counter", "kill-majority,pause-one,power-all", 120.0),
        Plan("counter", "partition-halves,partition-ring"),
        Plan("append", "kill-leader,restart-all,power-majority", 120.0),
        Plan("append", "combined,kill,pause,partition,packet,clock,disk,power", 300.0),
        Plan("append", "membership,corrupt-log", 120.0),
        Plan("jobs-set", "kill-one,pause-leader,restart,disk-enospc", 120.0),
        Plan("jobs-set", "kill-all,partition-bridge,power-all", 120.0),
        Plan("lock", "kill-leader,pause-leader,clock", 120.0),
        Plan("lock", "partition,restart-all", 120.0),
        Plan("blocking", "kill,restart-rolling", 120.0),
        Plan("blocking", "partition,packet-slow"),
        Plan("placement", "kill-agent,stop-agent,pause-agent,partition-agents", 120.0),
        Plan("placement", "kill-leader,partition-leader,restart-all", 120.0),
        Plan("placement", "docker", 120.0),
        Plan("capacity", "kill,partition-agents,kill-agent", 120.0),
        Plan(
            "survive",
            "kill-agent,stop-agent,corrupt-agent-state,docker-kill-daemon,docker-stop-daemon",
            120.0,
        ),
        Plan("deployments", "kill-leader,kill-agent,restart-all", 120.0),
        Plan("leaks", "kill-agent,docker-kill-container", 120.0),
    ),
}


class Outcome(msgspec.Struct, frozen=True):
    """What came of one plan. verdict: the run's. folder: None when there was no run."""

    plan: Plan
    verdict: int
    folder: Path | None

    @property
    def code(self) -> int:
        """The verdict on the plan: one that must be refuted, and was, is valid."""
        if self.plan.refuted and self.verdict in (VALID, INVALID):
            return VALID if self.verdict == INVALID else INVALID
        return self.verdict

    @property
    def word(self) -> str:
        """The same for people."""
        if self.plan.refuted and self.verdict in (VALID, INVALID):
            return "refuted" if self.verdict == INVALID else "NOT FOUND"
        return WORDS[self.verdict]


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The lines to print at the end: a verdict for each run, then for each fault the longest outage of writes."""
    rows = [("verdict", "workload", "answers/s", "no write", "faults")]
    outages: dict[str, list[Longest]] = {}
    for outcome in outcomes:
        rate = silence = ""
        for result in _results(outcome):
            if result.checker == "perf":
                rate = f"{result.facts.get('ok_per_s', '')}"
                silence = f"{result.facts.get('longest_write_outage_s', '')} s"
            if result.checker == "recovery":
                for name, facts in result.facts.items():
                    outages.setdefault(name, []).append(msgspec.convert(facts, Longest))
        plan = outcome.plan
        rows.append((outcome.word, plan.workload, rate, silence, plan.told))
    yield from _aligned(rows)
    if outages:
        yield ""
        yield from _aligned(
            [
                ("fault", "times", "no write", "after all answer", "promised"),
                *(_outage_row(name, found) for name, found in sorted(outages.items())),
            ]
        )


def _outage_row(name: str, found: Sequence[Longest]) -> tuple[str, ...]:
    longest = max(found, key=lambda o: o.silence_s)
    after = max((o.after_up_s for o in found if o.after_up_s is not None), default=None)
    broken = next((o.promised for o in found if "NOT" in o.promised), longest.promised)
    return (
        name,
        str(sum(o.count for o in found)),
        f"{longest.silence_s:.2f} s",
        "-" if after is None else f"{after:.2f} s",
        broken,
    )


def _results(outcome: Outcome) -> list[Result]:
    file = None if outcome.folder is None else outcome.folder / "results.json"
    if file is None or not file.exists():
        return []
    return msgspec.json.decode(file.read_bytes(), type=Verdicts).results


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
