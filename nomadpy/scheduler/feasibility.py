"""Which nodes may run a task group, capacity aside: datacenter, pool, drivers, constraints, networks, host volumes,
devices.

Out: for each node "" or the reason as allocation metrics tell it (`missing drivers`, `${attr.kernel.name} = plan9`).
Not here: whether there is room (fit.py, placement.py); what other allocations of the job forbid (distinct.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from nomadpy.models.constraint import Affinity, Constraint
from nomadpy.models.host_volume import host_requests, source_of
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.scheduler import devices
from nomadpy.scheduler.devices import DeviceRequest
from nomadpy.scheduler.fit import ready_for_placements
from nomadpy.scheduler.operators import DISTINCT_HOSTS, DISTINCT_PROPERTY, holds
from nomadpy.scheduler.snapshot import Snapshot

ALL_POOL = "all"
_PLAIN_TARGETS = {
    "node.datacenter": "datacenter",
    "node.class": "node_class",
    "node.pool": "node_pool",
    "node.unique.id": "id",
    "node.unique.name": "name",
}


class ReadyNodes(msgspec.Struct):
    """The nodes that a job may use at all, by id; `in_pool` counts the ready nodes of its pool in any datacenter."""

    nodes: list[Node]
    in_pool: int
    by_datacenter: dict[str, int]


class Requirements(msgspec.Struct, frozen=True):
    """What a task group asks of a node, gathered from job, group and tasks.

    escaped: a constraint looks at something unique to a node, so nodes of one class may differ.
    unmet: what no node can give since this scheduler does not assign it (CSI volumes); "" when nothing is.
    """

    constraints: tuple[Constraint, ...]
    drivers: tuple[str, ...]
    network_modes: tuple[str, ...]
    host_volumes: tuple[tuple[str, bool], ...]
    escaped: bool
    unmet: str
    devices: tuple[DeviceRequest, ...] = ()


def ready_nodes(snapshot: Snapshot, job: Job) -> ReadyNodes:
    """Return the nodes that are ready, in the job's pool, and in one of its datacenters."""
    nodes: list[Node] = []
    by_datacenter: dict[str, int] = {}
    in_pool = 0
    for node in sorted(pool_nodes(snapshot, job.node_pool), key=_node_id):
        if not ready_for_placements(node):
            continue
        in_pool += 1
        if in_datacenters(node.datacenter, job.datacenters):
            nodes.append(node)
            by_datacenter[node.datacenter] = by_datacenter.get(node.datacenter, 0) + 1
    return ReadyNodes(nodes, in_pool, by_datacenter)


def pool_nodes(snapshot: Snapshot, pool: str) -> Iterable[Node]:
    """Return the nodes of a pool; every node for the pool `all`."""
    if pool == ALL_POOL:
        return snapshot.nodes()
    return snapshot.nodes_by_pool(pool or "default")


def in_datacenters(datacenter: str, patterns: list[str] | None) -> bool:
    """Whether one of the glob patterns (`*` matches anything) names the datacenter; no patterns name all."""
    if not patterns:
        return True
    return any(
        pattern == datacenter or _glob(pattern).fullmatch(datacenter) for pattern in patterns
    )


def requirements(job: Job, group: TaskGroup, index: int = 0) -> Requirements:
    """Return what the group asks of a node. index: of the allocation, whose volumes are its own with per_alloc."""
    gathered = [*(job.constraints or ()), *(group.constraints or ())]
    tasks = group.tasks or []
    for task in tasks:
        gathered.extend(task.constraints or ())
    constraints = tuple(
        one for one in gathered if one.operand not in (DISTINCT_HOSTS, DISTINCT_PROPERTY)
    )
    return Requirements(
        constraints=constraints,
        drivers=tuple(sorted({task.driver for task in tasks})),
        network_modes=tuple(
            network.mode
            for network in group.networks or ()
            if network.mode not in ("", "host", "none")
        ),
        host_volumes=tuple(
            (source_of(volume, index), volume.read_only) for volume in host_requests(group)
        ),
        escaped=any("unique." in one.l_target or "unique." in one.r_target for one in constraints),
        unmet=_unmet(group),
        devices=devices.requests(tasks),
    )


class Feasibility:
    """Answers for one set of requirements; constraints are checked once for each class of nodes where that is sound."""

    def __init__(self, wanted: Requirements) -> None:
        self._wanted = wanted
        self._by_class: dict[str, str] = {}
        self.eligibility: dict[str, bool] = {}
        # Nodes of one class have different volumes, and those come and go.
        self.escaped = wanted.escaped or bool(wanted.host_volumes)

    def copy(self) -> Feasibility:
        """The same answers so far; what either learns from now on is its own."""
        twin = Feasibility(self._wanted)
        twin._by_class = dict(self._by_class)
        twin.eligibility = dict(self.eligibility)
        return twin

    def problem(self, node: Node) -> str:
        """Return why the node may not run the group, or ""."""
        found = self._node_problem(node) or self._constraint_problem(node)
        if node.computed_class:
            # One eligible node makes its class eligible.
            if not found:
                self.eligibility[node.computed_class] = True
            else:
                self.eligibility.setdefault(node.computed_class, False)
        return found

    def _constraint_problem(self, node: Node) -> str:
        key = node.computed_class
        if self._wanted.escaped or not key:
            return failed_constraint(self._wanted.constraints, node)
        known = self._by_class.get(key)
        if known is None:
            known = self._by_class[key] = failed_constraint(self._wanted.constraints, node)
        return known

    def _node_problem(self, node: Node) -> str:
        """What a class does not tell: the health of drivers, host volumes, networks."""
        if self._wanted.unmet:
            return self._wanted.unmet
        for driver in self._wanted.drivers:
            if not has_driver(node, driver):
                return "missing drivers"
        for source, read_only in self._wanted.host_volumes:
            volume = (node.host_volumes or {}).get(source)
            if volume is None or (volume.read_only and not read_only):
                return "missing compatible host volumes"
        for mode in self._wanted.network_modes:
            if not has_network(node, mode):
                return "missing network"
        if self._wanted.devices and node.node_resources is not None:
            offered = devices.device_groups(node.node_resources.devices)
            if not devices.has(self._wanted.devices, offered):
                return devices.MISSING
        return ""


def failed_constraint(constraints: tuple[Constraint, ...], node: Node) -> str:
    """Return the first constraint that does not hold, as text, or ""."""
    for one in constraints:
        if not holds(one.operand or "=", resolve(one.l_target, node), resolve(one.r_target, node)):
            return f"{one.l_target} {one.operand or '='} {one.r_target}"
    return ""


def affinity_score(affinities: tuple[Affinity, ...], node: Node) -> float:
    """Return the weighted share of affinities that the node has, -1 to 1."""
    total = sum(abs(_weight(one)) for one in affinities)
    if not total:
        return 0.0
    met = sum(
        _weight(one)
        for one in affinities
        if holds(one.operand or "=", resolve(one.l_target, node), resolve(one.r_target, node))
    )
    return met / total


def resolve(target: str, node: Node) -> str | None:
    """Return what a constraint target stands for on this node: text is itself, `${...}` is looked up, None is absent."""
    if not target.startswith("${"):
        return target
    name = target[2:-1] if target.endswith("}") else target[2:]
    field = _PLAIN_TARGETS.get(name)
    if field is not None:
        value: str = getattr(node, field)
        return value
    if name.startswith("attr."):
        return (node.attributes or {}).get(name[5:])
    if name.startswith("meta."):
        return (node.meta or {}).get(name[5:])
    return None


def _unmet(group: TaskGroup) -> str:
    """Better nowhere than on a node without the volume that the tasks count on."""
    for volume in (group.volumes or {}).values():
        if volume.type == "csi":
            return f"missing CSI Volume {volume.source}"
    return ""


def _weight(affinity: Affinity) -> int:
    return 50 if affinity.weight is None else affinity.weight


def _node_id(node: Node) -> str:
    return node.id


@lru_cache(maxsize=512)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")))


def has_driver(node: Node, driver: str) -> bool:
    """Whether the node has a driver, and it works."""
    info = (node.drivers or {}).get(driver)
    if info is not None:
        return info.detected and info.healthy
    # Nodes that report no driver details tell it as an attribute.
    return (node.attributes or {}).get(f"driver.{driver}", "") in ("1", "true")


def has_network(node: Node, mode: str) -> bool:
    """Whether the node offers networks of a mode."""
    resources = node.node_resources
    if resources is None:
        return False
    return any(one.mode == mode for one in resources.node_networks or ()) or any(
        one.mode == mode for one in resources.networks or ()
    )
