"""Locks are leases: one holder at a time while a lease surely runs, and the ModifyIndex fences whoever held it before.

What surely holds, by the kit's own clock, which like the leader's never jumps:
- From the answer to an acquisition until `ttl` after the last confirmed request was *sent* (the leader counts from later), or until
  a release is sent, nobody else gets the lock, and the holder's renewals and writes are not refused.
- After that it goes to somebody else only when `delay` is over as well, unless it was released.
- Of two acquisitions the later has the larger index, and between them lie all writes under the former: no write with an
  older token succeeds once a newer token exists. This needs no clock at all.
- When nobody can hold it any more, it is not refused. A new leader gives every lease its full time again, so each change of
  leader and each fault may prolong it.
"""

from __future__ import annotations

import itertools

import msgspec

from jepsen_style.checker.result import Result
from jepsen_style.history import FOREVER, NEMESIS, OBSERVER, Call, History, by_key

S = 1_000_000_000
SLACK_S = 3.0
"""For what the leader does after a deadline, and for a request that is answered late."""
TOLERANCE_NS = 50_000_000
STRAY_S = 15.0
"""A request of unknown outcome is done by then, or never: servers give up proposals after ten seconds."""

FUNCTIONS = ("acquire", "renew", "write", "release")


class Lease(msgspec.Struct):
    """One acquisition with what its holder did under its id. token: 0 when its outcome is unknown."""

    acquired: Call
    id: str
    token: int
    renewals: list[Call]
    writes: list[Call]
    releases: list[Call]

    def sure_until_ns(self, ttl_ns: int) -> int:
        """Until when nobody else may have got it: the end of the lease, or the beginning of its release."""
        confirmed = [self.acquired, *(c for c in self.renewals if c.done.type == "ok")]
        end = max(c.start_ns for c in confirmed) + ttl_ns
        return min([end, *(c.start_ns for c in self.releases)])

    def perhaps_until_ns(self, ttl_ns: int, delay_ns: int) -> int:
        """Until when it may be in the way of others, if nothing prolongs it."""
        done = [c.done.time for c in self.releases if c.done.type == "ok"]
        if done:
            return min(done)
        last = max(_over_ns(c) for c in (self.acquired, *self.renewals) if c.done.type != "fail")
        return last + ttl_ns + delay_ns + int(SLACK_S * S)


def check_lock(history: History, *, ttl_s: float, delay_s: float) -> Result:
    """`acquire` (version: its token, value: {"lock": id}), `renew`, `write`, `release` (value: {"lock": id}), `take` at the end, per key."""
    ttl, delay = int(ttl_s * S), int(delay_s * S)
    disturbances = _disturbances(history)
    leases = writes = 0
    for key, calls in by_key(history.calls(*FUNCTIONS, "take")):
        found = _leases(calls)
        fault = (
            _two_holders(found, ttl, delay)
            or _fence(found)
            or _lost(found, ttl)
            or _outlived(found)
            or _stuck(calls, found, ttl, delay, disturbances)
        )
        if fault is not None:
            reason, offending = fault
            return Result(
                checker="lock",
                valid=False,
                summary=f"{key}: {reason}",
                offending=[c.told() for c in offending],
                moments=[c.start_ns for c in offending],
            )
        leases += sum(lease.token > 0 for lease in found)
        writes += sum(c.done.type == "ok" for lease in found for c in lease.writes)
    facts = {"leases": leases, "writes": writes}
    if not leases:
        return Result(checker="lock", valid=None, summary="nobody got a lock", facts=facts)
    return Result(
        checker="lock",
        valid=True,
        summary=f"{leases} leases, never two at one time; {writes} writes under them, none with an outdated token",
        facts=facts,
    )


Fault = tuple[str, list[Call]]


def _over_ns(call: Call) -> int:
    return call.done.time + int(STRAY_S * S) if call.end_ns == FOREVER else call.end_ns


def _leases(calls: list[Call]) -> list[Lease]:
    """All acquisitions that succeeded or may have, in the order of their ends; those of unknown outcome have no id."""
    found: dict[str, Lease] = {}
    for number, call in enumerate(c for c in calls if c.invoke.f == "acquire"):
        if call.done.type == "fail":
            continue
        known = call.done.type == "ok"
        identity = call.done.value["lock"] if known else f"unknown-{number}"
        token = (call.done.version or 0) if known else 0
        found[identity] = Lease(call, identity, token, [], [], [])
    for call in calls:
        if call.invoke.f in ("acquire", "take") or not isinstance(call.invoke.value, dict):
            continue
        lease = found.get(call.invoke.value.get("lock", ""))
        if lease is not None:
            {"renew": lease.renewals, "write": lease.writes, "release": lease.releases}[
                call.invoke.f
            ].append(call)
    return sorted(found.values(), key=lambda lease: lease.acquired.end_ns)


def _two_holders(leases: list[Lease], ttl: int, delay: int) -> Fault | None:
    known = [lease for lease in leases if lease.token]
    for first in known:
        sure = first.sure_until_ns(ttl)
        if not first.releases:
            sure += delay
        for second in known:
            # Wholly within the other's lease: it began when that was acknowledged, and ended before its end.
            if (
                second is not first
                and first.acquired.end_ns < second.acquired.start_ns
                and second.acquired.end_ns < sure - TOLERANCE_NS
            ):
                last = max(
                    [first.acquired, *(c for c in first.renewals if c.done.type == "ok")],
                    key=lambda c: c.start_ns,
                )
                offending = [first.acquired] + ([last] if last is not first.acquired else [])
                return "given to a second holder while a lease ran", [*offending, second.acquired]
    return None


def _fence(leases: list[Lease]) -> Fault | None:
    known = sorted((lease for lease in leases if lease.token), key=lambda lease: lease.token)
    for lease, later in itertools.pairwise(known):
        if lease.token == later.token:
            return "two acquisitions have one token", [lease.acquired, later.acquired]
        if later.acquired.end_ns < lease.acquired.start_ns:
            return "a later acquisition has a smaller token", [later.acquired, lease.acquired]
        for write in lease.writes:
            if write.done.type == "ok" and (write.done.version or 0) > later.token:
                return (
                    f"a write under token {lease.token} succeeded after token {later.token} had been given",
                    [lease.acquired, later.acquired, write],
                )
    for lease in known:
        for write in lease.writes:
            if write.done.type == "ok" and (write.done.version or 0) <= lease.token:
                return "a write is older than the lease it was made under", [lease.acquired, write]
    return None


def _lost(leases: list[Lease], ttl: int) -> Fault | None:
    for lease in leases:
        sure = lease.sure_until_ns(ttl)
        for call in (*lease.renewals, *lease.writes):
            if (
                call.done.type == "fail"
                and call.done.error.startswith("409")
                and call.start_ns > lease.acquired.end_ns
                and call.done.time < sure - TOLERANCE_NS
            ):
                return "a holder was refused while its lease ran", [lease.acquired, call]
    return None


def _outlived(leases: list[Lease]) -> Fault | None:
    for lease in leases:
        ended = [c for c in lease.releases if c.done.type == "ok"]
        for call in (*lease.renewals, *lease.writes):
            if ended and call.done.type == "ok" and call.start_ns > ended[0].done.time:
                return "an id was good for something after its release", [
                    lease.acquired,
                    ended[0],
                    call,
                ]
    return None


def _stuck(
    calls: list[Call], leases: list[Lease], ttl: int, delay: int, disturbances: list[int]
) -> Fault | None:
    taken = [c for c in calls if c.invoke.f == "take"]
    for call in taken:
        if call.done.type != "ok":
            return "nobody could take the lock at the end", [call]
    refusals = [
        c
        for c in calls
        if c.invoke.f == "acquire" and c.done.type == "fail" and c.done.error.startswith("409")
    ]
    ends = [
        (lease.acquired.start_ns, _prolonged(lease, ttl, delay, disturbances), lease)
        for lease in leases
    ]
    first_take = min((c.start_ns for c in taken), default=FOREVER)
    for refused in refusals:
        if refused.start_ns > first_take:
            continue
        in_the_way = [e for e in ends if e[0] < refused.done.time and e[1] > refused.start_ns]
        if not in_the_way:
            before = [lease.acquired for start, _, lease in ends if start < refused.start_ns]
            return "refused although every lease was over", [*before[-1:], refused]
    return None


def _prolonged(lease: Lease, ttl: int, delay: int, disturbances: list[int]) -> int:
    """The end of a lease when each disturbance before it may have begun it anew."""
    end = lease.perhaps_until_ns(ttl, delay)
    if any(c.done.type == "ok" for c in lease.releases):
        return end
    for moment in disturbances:
        if lease.acquired.start_ns <= moment <= end:
            end = max(end, moment + ttl + delay + int(SLACK_S * S))
    return end


def _disturbances(history: History) -> list[int]:
    """When leaders may have changed, in order: faults, their ends, and what nodes said."""
    ops = [*history.events(NEMESIS), *history.events(OBSERVER)]
    return sorted(op.time for op in ops)
