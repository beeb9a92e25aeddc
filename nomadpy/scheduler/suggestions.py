"""What to do about a group that is not placed, in words that need no knowledge of the scheduler."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import msgspec

from nomadpy.models.explanation import NodeVerdict
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.scheduler.ask import GroupAsk
from nomadpy.scheduler.feasibility import ALL_POOL, Requirements, has_driver, resolve
from nomadpy.scheduler.node_table import NodeRow
from nomadpy.scheduler.operators import holds

_SHOWN = 6
_KNOWN_DRIVERS = ("docker", "exec", "java", "podman", "qemu", "raw_exec")
_SWITCH = {
    "service": "-preempt-service-scheduler",
    "batch": "-preempt-batch-scheduler",
    "system": "-preempt-system-scheduler",
    "sysbatch": "-preempt-sysbatch-scheduler",
}


class Facts(msgspec.Struct, frozen=True):
    """What suggestions are made from. held: sentences on sticky volumes that the group must go to."""

    job: Job
    group: TaskGroup
    wanted: Requirements
    nodes: Sequence[Node]
    rows: Sequence[NodeRow]
    verdicts: Sequence[NodeVerdict]
    ask: GroupAsk
    preemption_would_help: bool
    preemption_allowed: bool
    held: Sequence[str] = ()


def summary(facts: Facts, count: int, placed: int, missing: int, fitting: int) -> str:
    """One sentence on how the group stands."""
    total = len(facts.verdicts)
    if facts.job.stop:
        return "the job is stopped, so nothing of it is to be placed"
    if not missing:
        if facts.job.type == "batch" and placed < count:
            return f"{placed} of {count} run, and none waits for a place; {_room(fitting, total)}"
        return f"all {placed} of {count} are placed; {_room(fitting, total)}"
    if not total:
        return "the cluster has no nodes"
    if fitting:
        return (
            f"{missing} of {count} {'has' if missing == 1 else 'have'} no place yet, and "
            f"{_room(fitting, total)} now: they go there when the job is evaluated next"
        )
    reason = "the one node will not do" if total == 1 else f"none of {total} nodes will do"
    return f"{missing} of {count} cannot be placed: {reason}"


def suggest(facts: Facts) -> list[str]:
    """What to do, the surest first. Empty when there is nothing to say."""
    if not facts.nodes:
        return [
            "no agent has registered; start one: nomadpy agent -config FILE (with client { enabled = true })"
        ]
    found = [
        *_pools(facts),
        *_datacenters(facts),
        *_drivers(facts),
        *_constraints(facts),
        *_volumes(facts),
        *_sizes(facts),
        *_ports(facts),
        *_eligibility(facts),
        *_preemption(facts),
    ]
    if not found and not any(one.fits for one in facts.verdicts):
        found.append(
            "each requirement is met by some node, and no node meets all of them: see the nodes below"
        )
    return found


def distinct_text(problem: str, node: str) -> str:
    """The sentence for a node that other allocations of the job forbid."""
    if problem == "distinct_hosts":
        return f"distinct_hosts: another allocation of the job is on {node} already"
    return problem


def port_text(problem: str) -> str:
    """The sentence for a network that could not be granted."""
    if "reserved port collision" in problem:
        port = problem.rpartition("=")[2]
        return f"port {port} is taken"
    return problem.removeprefix("network: ")


def near(word: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the known word that is closest, or ""."""
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def _room(fitting: int, total: int) -> str:
    if total == 1:
        return f"the one node {'would' if fitting else 'would not'} take one more"
    return f"{fitting} of {total} nodes would take one more"


def _listed(words: Iterable[str]) -> str:
    """At most a few words, the rest as a number."""
    ordered = list(words)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _pools(facts: Facts) -> list[str]:
    pool = facts.job.node_pool
    there = sorted({node.node_pool or "default" for node in facts.nodes})
    if pool in ("", ALL_POOL) or pool in there:
        return []
    return [f'no node is in node pool "{pool}"; there are: {_listed(there)}.{near(pool, there)}']


def _datacenters(facts: Facts) -> list[str]:
    blocked = [v for v in facts.verdicts if any(o.kind == "datacenter" for o in v.obstacles or ())]
    if len(blocked) < len(facts.verdicts):
        return []
    asked = facts.job.datacenters or []
    there = sorted({node.datacenter for node in facts.nodes})
    hint = near(asked[0], there) if asked else ""
    return [f"no node is in datacenter {_listed(asked)}; there are: {_listed(there)}.{hint}"]


def _drivers(facts: Facts) -> list[str]:
    found: list[str] = []
    for driver in facts.wanted.drivers:
        if any(has_driver(node, driver) for node in facts.nodes):
            continue
        there = sorted(
            {
                name
                for node in facts.nodes
                for name, one in (node.drivers or {}).items()
                if one.detected and one.healthy
            }
        )
        sick = [
            node.name
            for node in facts.nodes
            if (one := (node.drivers or {}).get(driver)) is not None
            and one.detected
            and not one.healthy
        ]
        if sick:
            found.append(f'driver "{driver}" is there on {_listed(sick)}, and not healthy')
        else:
            available = _listed(there) or "none"
            hint = near(driver, there)
            if (
                not hint
                and driver not in _KNOWN_DRIVERS
                and (other := near(driver, _KNOWN_DRIVERS))
            ):
                hint = f"{other} No node has that either"
            found.append(f'no node has driver "{driver}"; available: {available}.{hint}')
    return found


def _constraints(facts: Facts) -> list[str]:
    found: list[str] = []
    for one in facts.wanted.constraints:
        operator = one.operand or "="
        values: dict[str, int] = {}
        met = unset = 0
        for node in facts.nodes:
            left = resolve(one.l_target, node)
            met += holds(operator, left, resolve(one.r_target, node))
            if left is None:
                unset += 1
            else:
                values[left] = values.get(left, 0) + 1
        if met:
            continue
        asked = f"{one.l_target} {operator} {one.r_target}".strip()
        if unset == len(facts.nodes):
            name = one.l_target.removeprefix("${").removesuffix("}")
            hint = near(name, _targets(facts.nodes))
            found.append(f"no node has {one.l_target}, which constraint {asked} looks at.{hint}")
            continue
        there = _listed(
            f'"{value}" ({number} {"node" if number == 1 else "nodes"})'
            for value, number in sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
        )
        hint = near(one.r_target, values) if operator in ("=", "==", "is") else ""
        found.append(f"no node meets constraint {asked}; nodes have: {there}.{hint}")
    return found


def _targets(nodes: Sequence[Node]) -> set[str]:
    """All that constraints may look at."""
    names = {"node.datacenter", "node.class", "node.pool", "node.unique.id", "node.unique.name"}
    for node in nodes:
        names.update(f"attr.{name}" for name in node.attributes or ())
        names.update(f"meta.{name}" for name in node.meta or ())
    return names


def _volumes(facts: Facts) -> list[str]:
    there: dict[str, list[str]] = {}
    for node in facts.nodes:
        for name in node.host_volumes or ():
            there.setdefault(name, []).append(node.name)
    told_of = _listed(f"{name} ({_listed(sorted(there[name]))})" for name in sorted(there))
    found = [
        f'no node has host volume "{source}"; there are: {told_of or "none"}.{near(source, sorted(there))}'
        for source, _ in facts.wanted.host_volumes
        if source not in there
    ]
    if found:
        return [*facts.held, *found]
    # Volumes of the names are there, and none will do.
    reasons: dict[str, list[str]] = {}
    for verdict in facts.verdicts:
        if verdict.fits:
            return []
        for one in verdict.obstacles or ():
            if one.kind == "host volume":
                reasons.setdefault(one.text, []).append(verdict.node_name)
    told = [
        f"node {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
        for text, names in reasons.items()
        if "has no host volume" not in text
    ]
    return [*facts.held, *([f"no volume will do: {'; '.join(told[:_SHOWN])}"] if told else [])]


def _sizes(facts: Facts) -> list[str]:
    """What is too large for every node, and what would go in."""
    usable = {
        verdict.node_id
        for verdict in facts.verdicts
        if all(o.kind in ("cpu", "memory", "disk", "network") for o in verdict.obstacles or ())
    }
    rows = [row for row in facts.rows if row.node.id in usable] or list(facts.rows)
    if not rows or any(verdict.fits for verdict in facts.verdicts):
        return []
    found: list[str] = []
    for name, setting, unit in (
        ("cpu", "cpu", "MHz"),
        ("memory_mb", "memory", "MiB"),
        ("disk_mb", "ephemeral_disk size", "MiB"),
    ):
        free = {row.node.name: getattr(row.have, name) - getattr(row, name) for row in rows}
        asked = min(getattr(facts.ask.amount(row.have), name) for row in rows)
        most = max(free.values())
        if asked <= most:
            continue
        largest = max(rows, key=lambda row: getattr(row.have, name))
        whole = getattr(largest.have, name)
        if asked > whole:
            text = (
                f"{setting} {asked:,} {unit} is more than any node has: the largest, "
                f"{largest.node.name}, has {whole:,}"
            )
        elif not usable:
            # Something else keeps every node out; what is free there does not matter.
            continue
        else:
            roomiest = max(free, key=lambda node: (free[node], node))
            text = (
                f"{setting} {asked:,} {unit} is free on no node: {roomiest} has the most, "
                f"{max(most, 0):,}"
            )
        found.append(
            f"{text}. It would fit with {setting} <= {max(most, 0):,}" if most > 0 else text
        )
    if (
        not found
        and usable
        and all(
            any(o.kind in ("cpu", "memory", "disk") for o in v.obstacles or ())
            for v in facts.verdicts
            if v.node_id in usable
        )
    ):
        found.append(
            "no one node has enough of everything free: add a node, or ask for less (see the nearest)"
        )
    return found


def _ports(facts: Facts) -> list[str]:
    taken = sorted(
        {
            o.text
            for verdict in facts.verdicts
            for o in verdict.obstacles or ()
            if o.kind == "network" and o.text.startswith("port ")
        }
    )
    if not taken or any(verdict.fits for verdict in facts.verdicts):
        return []
    return [
        f"{_listed(taken)} wherever else the group would fit: a port without `static` is chosen by the scheduler"
    ]


def _eligibility(facts: Facts) -> list[str]:
    """Nodes that only need to be let back in."""
    only = [
        verdict
        for verdict in facts.verdicts
        if verdict.obstacles and all(o.kind == "not ready" for o in verdict.obstacles)
    ]
    by_state: dict[str, list[str]] = {}
    for verdict in only:
        by_state.setdefault((verdict.obstacles or [])[0].has, []).append(verdict.node_name)
    found: list[str] = []
    for state, names in sorted(by_state.items()):
        help_ = {
            "not eligible": "; let them in: nomadpy node eligibility -enable NODE",
            "draining": "; end the drain: nomadpy node drain -disable NODE",
        }.get(state, "")
        found.append(f"{_listed(names)} would do, and {_is(names)} {state}{help_}")
    return found


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _preemption(facts: Facts) -> list[str]:
    if not facts.preemption_would_help:
        return []
    if facts.preemption_allowed:
        return []
    switch = _SWITCH.get(facts.job.type, "")
    return [
        "evicting less important allocations would make room, and is switched off for "
        f"{facts.job.type} jobs: nomadpy operator scheduler set-config {switch}=true"
    ]
