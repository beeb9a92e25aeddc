"""The slow, obvious scheduler: which node an allocation of a group goes to, by the documented rules.

One node at a time, everything counted anew for every choice, and nothing of the product is used but its structs. It
says which node; ports, cores and ids are taken from the product's own allocation, which `place` then counts.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import combinations
from typing import Any

from nomadpy.models.allocation import Allocation
from nomadpy.models.constraint import Affinity, Constraint, Spread
from nomadpy.models.host_volume import HostVolume
from nomadpy.models.job import Job, TaskGroup, VolumeRequest
from nomadpy.models.node import Node
from nomadpy.models.resources import RequestedDevice, Resources
from nomadpy.models.task import Task

EPSILON = 1e-9
"""Scores closer than this are equal: sums in another order differ in their last digit."""


Device = tuple[str, str, str, str]
"""Vendor, type, model, id."""


def devices_of(alloc: Allocation) -> list[tuple[Device, int]]:
    """The devices that an allocation holds, with the thousandths of each."""
    assert alloc.allocated_resources is not None
    return [
        ((one.vendor, one.type, one.name, device_id), one.share or 1000)
        for task in (alloc.allocated_resources.tasks or {}).values()
        for one in task.devices or []
        for device_id in one.device_ids or []
    ]


def taken_by(alloc: Allocation) -> tuple[int, int]:
    """MHz and MiB that an allocation's tasks take."""
    assert alloc.allocated_resources is not None
    tasks = (alloc.allocated_resources.tasks or {}).values()
    return sum(task.cpu.cpu_shares for task in tasks), sum(task.memory.memory_mb for task in tasks)


def _mode(asked: VolumeRequest) -> str:
    if asked.access_mode:
        return asked.access_mode
    return "single-node-reader-only" if asked.read_only else "single-node-writer"


def is_over(alloc: Allocation) -> bool:
    """It no longer counts against its node."""
    return alloc.desired_status in ("stop", "evict") or alloc.client_status in (
        "complete",
        "failed",
        "lost",
    )


class Reference:
    """A cluster and a job; `place` and `remove` move it on, `best` says where the next allocation goes."""

    def __init__(
        self,
        nodes: Iterable[Node],
        allocs: Iterable[Allocation],
        job: Job,
        *,
        algorithm: str = "binpack",
        volumes: Iterable[HostVolume] = (),
        jobs: Iterable[Job] = (),
    ) -> None:
        """volumes: the dynamic ones. jobs: those of the allocations."""
        self.volumes = {volume.id: volume for volume in volumes}
        self.jobs = {one.id: one for one in (*jobs, job)}
        self.nodes = {node.id: node for node in nodes}
        self.allocs = {alloc.id: alloc for alloc in allocs if not is_over(alloc)}
        self.job = job
        self.algorithm = algorithm
        self.per_device = self._per_device()

    def place(self, alloc: Allocation) -> None:
        """Count an allocation."""
        self.allocs[alloc.id] = alloc

    def remove(self, alloc_id: str) -> None:
        """Count it no longer."""
        self.allocs.pop(alloc_id, None)

    def best(self, group: TaskGroup, penalties: Collection[str] = (), name: str = "") -> list[str]:
        """The ids of the best nodes for one more allocation, in order; several only when their scores are the same."""
        scores = {
            node.id: self.score(node, group, penalties)
            for node in self.nodes.values()
            if not self.problem(node, group, name)
        }
        if not scores:
            return []
        top = max(scores.values())
        return sorted(name for name, score in scores.items() if score >= top - EPSILON)

    def problem(self, node: Node, group: TaskGroup, name: str = "") -> str:
        """Why the node cannot take one more allocation of the group, of this name, or ""."""
        for found in (
            self._not_eligible(node, group),
            self._no_volumes(node, group, name),
            self._forbidden_by_others(node, group),
            self._no_room(node, group),
        ):
            if found:
                return found
        return ""

    # -- who may run it -----------------------------------------------------------------------------------

    def _is_mine(self, node: Node) -> bool:
        """Whether the job may use the node at all."""
        return not self._not_mine(node)

    def _not_mine(self, node: Node) -> str:
        if node.status != "ready" or node.scheduling_eligibility == "ineligible":
            return "not ready"
        if node.drain or node.drain_strategy is not None:
            return "draining"
        if self.job.node_pool not in ("all", node.node_pool):
            return "pool"
        if not any(
            fnmatch.fnmatchcase(node.datacenter, glob) for glob in self.job.datacenters or ["*"]
        ):
            return "datacenter"
        return ""

    def _not_eligible(self, node: Node, group: TaskGroup) -> str:
        if found := self._not_mine(node):
            return found
        for task in group.tasks or []:
            driver = (node.drivers or {}).get(task.driver)
            if driver is None or not driver.detected or not driver.healthy:
                return "driver"
        for one in self._constraints(group):
            if not one.operand.startswith("distinct") and not self._holds(one, node):
                return f"constraint {one.l_target} {one.operand} {one.r_target}"
        return ""

    def _no_volumes(self, node: Node, group: TaskGroup, name: str) -> str:
        for asked in (group.volumes or {}).values():
            source = asked.source + (name[name.rindex("[") :] if asked.per_alloc else "")
            offered = (node.host_volumes or {}).get(source)
            if offered is None or (offered.read_only and not asked.read_only):
                return "volume"
            if not offered.id:
                continue
            volume = self.volumes.get(offered.id)
            if volume is None or volume.state != "ready" or volume.namespace != self.job.namespace:
                return "volume is not ready"
            mode = _mode(asked)
            if (mode, asked.attachment_mode or "file-system") not in [
                (one.access_mode, one.attachment_mode)
                for one in volume.requested_capabilities or []
            ]:
                return "volume does not offer this"
            if mode == "single-node-reader-only" and not asked.read_only:
                return "volume is for readers"
            modes = [] if asked.read_only else [*self.written(node, source), mode]
            if len(modes) > 1 and "single-node-single-writer" in modes:
                return "volume has its writer"
        return ""

    def written(self, node: Node, source: str) -> list[str]:
        """The modes in which live allocations of the node write to a volume."""
        modes = []
        for alloc in self._there(node):
            groups = (alloc.job or self.jobs[alloc.job_id]).task_groups or []
            (group,) = [one for one in groups if one.name == alloc.task_group]
            for asked in (group.volumes or {}).values():
                own = asked.source + (
                    alloc.name[alloc.name.rindex("[") :] if asked.per_alloc else ""
                )
                if own == source and not asked.read_only:
                    modes.append(_mode(asked))
        return modes

    def _constraints(self, group: TaskGroup) -> list[Constraint]:
        found = [*(self.job.constraints or []), *(group.constraints or [])]
        for task in group.tasks or []:
            found += task.constraints or []
        return found

    def _holds(self, one: Constraint | Affinity, node: Node) -> bool:
        left, right = self.value(one.l_target, node), self.value(one.r_target, node)
        match one.operand:
            case "=" | "==" | "is":
                return left is not None and left == right
            case "!=" | "not":
                return left != right
            case "is_set":
                return left is not None
            case "is_not_set":
                return left is None
            case ">=":
                return left is not None and right is not None and int(left) >= int(right)
            case "<":
                return left is not None and right is not None and int(left) < int(right)
            case "regexp":
                return left is not None and right is not None and bool(re.search(right, left))
        raise AssertionError(f"the reference does not know {one.operand}")

    def value(self, target: str, node: Node) -> str | None:
        """What a target stands for on the node."""
        if not target.startswith("${"):
            return target
        name = target.removeprefix("${").removesuffix("}")
        known = {
            "node.datacenter": node.datacenter,
            "node.class": node.node_class,
            "node.pool": node.node_pool,
            "node.unique.id": node.id,
            "node.unique.name": node.name,
        }
        if name in known:
            return known[name]
        kind, _, key = name.partition(".")
        return ({"attr": node.attributes, "meta": node.meta}.get(kind) or {}).get(key)

    # -- what the job's other allocations forbid ----------------------------------------------------------

    def _own(self, group: TaskGroup | None = None) -> list[Allocation]:
        """The job's live allocations; only one group's when it is given."""
        return [
            alloc
            for alloc in self.allocs.values()
            if alloc.job_id == self.job.id and (group is None or alloc.task_group == group.name)
        ]

    def _forbidden_by_others(self, node: Node, group: TaskGroup) -> str:
        of_group = [*(group.constraints or [])]
        for task in group.tasks or []:
            of_group += task.constraints or []
        for constraints, others in (
            (self.job.constraints or [], self._own()),
            (of_group, self._own(group)),
        ):
            for one in constraints:
                hosts = one.operand == "distinct_hosts" and one.r_target != "false"
                if hosts and any(alloc.node_id == node.id for alloc in others):
                    return "distinct_hosts"
                if one.operand == "distinct_property":
                    mine = self.value(one.l_target, node)
                    if mine is None:
                        return "distinct_property"
                    same = sum(
                        self.value(one.l_target, self.nodes[alloc.node_id]) == mine
                        for alloc in others
                        if alloc.node_id in self.nodes
                    )
                    if same >= int(one.r_target or 1):
                        return "distinct_property"
        return ""

    # -- is there room ------------------------------------------------------------------------------------

    def _there(self, node: Node) -> list[Allocation]:
        return [alloc for alloc in self.allocs.values() if alloc.node_id == node.id]

    def used(self, node: Node) -> tuple[int, int, int]:
        """MHz, MiB, MiB that live allocations take."""
        cpu = memory = disk = 0
        for alloc in self._there(node):
            assert alloc.allocated_resources is not None
            of_tasks = taken_by(alloc)
            cpu, memory = cpu + of_tasks[0], memory + of_tasks[1]
            disk += alloc.allocated_resources.shared.disk_mb
        return cpu, memory, disk

    def usable(self, node: Node) -> tuple[int, int, int]:
        """MHz, MiB, MiB of the node for allocations."""
        have, keep = node.node_resources, node.reserved_resources
        assert have is not None
        total = have.cpu.cpu_shares, have.memory.memory_mb, have.disk.disk_mb
        if keep is None:
            return total
        kept = keep.cpu.cpu_shares, keep.memory.memory_mb, keep.disk.disk_mb
        return total[0] - kept[0], total[1] - kept[1], total[2] - kept[2]

    def asked(self, node: Node, group: TaskGroup) -> tuple[int, int, int]:
        """MHz, MiB, MiB that one more allocation takes there. A whole core counts with its share of the node's MHz."""
        assert node.node_resources is not None
        have = node.node_resources.cpu
        cpu = memory = 0
        for resources in _resources(group):
            if resources.cores:
                cpu += resources.cores * (have.cpu_shares // have.total_cpu_cores)
            else:
                cpu += resources.cpu
            memory += resources.memory_mb
        return cpu, memory, group.ephemeral_disk.size_mb if group.ephemeral_disk else 0

    def _no_room(self, node: Node, group: TaskGroup) -> str:
        sums = zip(
            self.used(node),
            self.asked(node, group),
            self.usable(node),
            ("cpu", "memory", "disk"),
            strict=True,
        )
        for used, asked, usable, name in sums:
            if used + asked > usable:
                return name
        if node.node_max_allocs and len(self._there(node)) >= node.node_max_allocs:
            return "max allocations"
        return (
            self._no_cores(node, group)
            or self._no_ports(node, group)
            or ("" if self._device_choices(node, group) else "devices")
        )

    def _no_cores(self, node: Node, group: TaskGroup) -> str:
        assert node.node_resources is not None
        free = set(node.node_resources.cpu.reservable_cpu_cores or [])
        for alloc in self._there(node):
            for task in (alloc.allocated_resources.tasks or {}).values():  # type: ignore[union-attr]
                free -= set(task.cpu.reserved_cores or [])
        wanted = sum(resources.cores for resources in _resources(group))
        return "cores" if wanted > len(free) else ""

    def _no_ports(self, node: Node, group: TaskGroup) -> str:
        """Every node of these tests has one address, so a port is a number."""
        assert node.node_resources is not None
        taken: set[int] = set()
        for alloc in self._there(node):
            for port in alloc.allocated_resources.shared.ports or []:  # type: ignore[union-attr]
                taken.add(port.value)
        dynamic = 0
        for network in group.networks or []:
            for port in network.reserved_ports or []:
                if port.value in taken:
                    return "port"
                taken.add(port.value)
            dynamic += len(network.dynamic_ports or [])
        low, high = (
            node.node_resources.min_dynamic_port,
            node.node_resources.max_dynamic_port,
        )
        free = high - low + 1 - sum(low <= port <= high for port in taken)
        return "dynamic ports" if dynamic > free else ""

    # -- devices ------------------------------------------------------------------------------------------

    def left_of_devices(self, node: Node) -> dict[Device, int]:
        """Thousandths that are left of each healthy device."""
        assert node.node_resources is not None
        left = {
            (one.vendor, one.type, one.name, instance.id): 1000
            for one in node.node_resources.devices or []
            for instance in one.instances or []
            if instance.healthy
        }
        for alloc in self._there(node):
            for device, share in devices_of(alloc):
                if device in left:
                    left[device] -= share
        return left

    def accepts(self, asked: RequestedDevice, device: Device, node: Node) -> bool:
        """Whether a device is of the kind that is asked for."""
        parts = asked.name.split("/")
        if parts != {1: [device[1]], 2: [*device[:2]], 3: [*device[:3]]}[len(parts)]:
            return False
        return all(
            self._device_fact(one.l_target, device, node) >= int(one.r_target)
            if one.operand == ">="
            else self._device_fact(one.l_target, device, node) == one.r_target
            for one in asked.constraints or []
        )

    def _device_fact(self, target: str, device: Device, node: Node) -> Any:
        assert node.node_resources is not None
        if target == "${device.model}":
            return device[2]
        assert target == "${device.attr.memory}"
        return next(
            one.attributes["memory"].int_val
            for one in node.node_resources.devices or []
            if one.name == device[2] and one.attributes
        )

    def _device_choices(self, node: Node, group: TaskGroup) -> list[list[Device]]:
        """Every way to give each request a model of which there is enough: one device of it for each request."""
        asked = [one for resources in _resources(group) for one in resources.devices or []]
        found: list[list[Device]] = []

        def search(
            rest: list[RequestedDevice], left: dict[Device, int], chosen: list[Device]
        ) -> None:
            if not rest:
                found.append(chosen)
                return
            one, *others = rest
            share = one.share or 1000
            free = [d for d in left if left[d] >= share and self.accepts(one, d, node)]
            for picked in combinations(free, one.count or 1):
                if len({device[:3] for device in picked}) == 1:
                    after = {d: n - share * (d in picked) for d, n in left.items()}
                    search(others, after, [*chosen, picked[0]])

        search(asked, self.left_of_devices(node), [])
        return found

    def _device_affinity(self, node: Node, group: TaskGroup) -> float:
        """The first request gets the model it likes best of those that leave enough for the others, and so on."""
        asked = [one for resources in _resources(group) for one in resources.devices or []]
        total = sum(abs(a.weight or 0) for one in asked for a in one.affinities or [])
        if not total:
            return 0.0
        liked = [
            [
                sum(
                    affinity.weight or 0
                    for affinity in one.affinities or []
                    if self._device_fact(affinity.l_target, device, node) == affinity.r_target
                )
                for one, device in zip(asked, choice, strict=True)
            ]
            for choice in self._device_choices(node, group)
        ]
        return sum(max(liked)) / total

    def collides(self, alloc: Allocation) -> bool:
        """Whether something on its node already holds a port, a core or a device of the allocation."""
        node = self.nodes[alloc.node_id]
        left = self.left_of_devices(node)
        if any(left.get(device, 0) < share for device, share in devices_of(alloc)):
            return True
        others = self._there(node)
        return any(_held(alloc) & _held(other) for other in others if other.id != alloc.id)

    # -- how good it is -----------------------------------------------------------------------------------

    def score(self, node: Node, group: TaskGroup, penalties: Collection[str] = ()) -> float:
        """The average of how full the node gets and of what else says something about it."""
        parts = [self._packing(node, group)]
        same = sum(alloc.node_id == node.id for alloc in self._own(group))
        if same:
            parts.append(-(same + 1) / max(group.count, 1))
        if node.id in penalties:
            parts.append(-1.0)
        affinity = self._affinity(node, group)
        if affinity:
            parts.append(affinity)
        devices = self._device_affinity(node, group)
        if devices:
            parts.append(devices)
        spread = self._spread(node, group)
        if spread:
            parts.append(spread)
        return sum(parts) / len(parts)

    def _packing(self, node: Node, group: TaskGroup) -> float:
        assert node.node_resources is not None
        left = []
        for used, asked, usable in zip(
            self.used(node), self.asked(node, group), self.usable(node), strict=True
        ):
            left.append(1 - (used + asked) / usable if usable else 0.0)
        cpu, memory, _ = left
        if self.algorithm == "gpu-aware":
            return self._still_of_use(node, group, cpu + memory)
        if self.algorithm == "balanced":
            score = 1 - (cpu + memory + 6 * abs(cpu - memory)) / 8
        elif self.algorithm == "spread":
            score = min(max(10**cpu + 10**memory - 2, 0.0), 18.0) / 18.0
        else:
            score = min(max(20 - 10**cpu - 10**memory, 0.0), 18.0) / 18.0
        if not node.node_resources.devices:
            return score
        full = self._devices_full(node, group)
        return (score + 2 * (1 - full if self.algorithm == "spread" else full)) / 3

    def _devices_full(self, node: Node, group: TaskGroup) -> float:
        """The share of the healthy devices that is taken with one more allocation."""
        healthy = _healthy(node)
        taken = sum(share for alloc in self._there(node) for _, share in devices_of(alloc)) / 1000
        return min(1.0, (taken + _devices_wanted(group)) / healthy) if healthy else 0.0

    def _per_device(self) -> tuple[float, float]:
        """MHz and MiB that go with one device, in quarters of a doubling, when the pass begins."""
        mine = [node for node in self.nodes.values() if self._is_mine(node)]
        held = [alloc for node in mine for alloc in self._there(node) if devices_of(alloc)]
        devices = sum(share for alloc in held for _, share in devices_of(alloc)) / 1000
        cpu, memory = (sum(taken_by(alloc)[kind] for alloc in held) for kind in (0, 1))
        if not held:
            equipped = [node for node in mine if _healthy(node)]
            devices = sum(_healthy(node) for node in equipped)
            cpu, memory = (sum(self.usable(node)[kind] for node in equipped) for kind in (0, 1))
        if not devices:
            return 1.0, 1.0
        return _quarter(cpu / devices), _quarter(memory / devices)

    def _still_of_use(self, node: Node, group: TaskGroup, empty: float) -> float:
        """How little of the node's free devices is lost, for want of cpu or memory, to one more allocation."""
        devices = _healthy(node)
        taken = sum(share for alloc in self._there(node) for _, share in devices_of(alloc)) / 1000
        wanted = _devices_wanted(group)
        lost = []
        for more in (0, 1):
            free = max(0.0, devices - taken - more * wanted)
            cpu, memory = (
                (have - used - more * ask) / each
                for have, used, ask, each in zip(
                    self.usable(node),
                    self.used(node),
                    self.asked(node, group),
                    self.per_device,
                    strict=False,
                )
            )
            lost.append(max(0.0, free - cpu, free - memory))
        if devices:
            empty += free / devices + (0 if wanted else 2)
        return 1 / (1 + math.exp(lost[1] - lost[0] + empty / 10))

    def _affinity(self, node: Node, group: TaskGroup) -> float:
        affinities = [*(self.job.affinities or []), *(group.affinities or [])]
        for task in group.tasks or []:
            affinities += task.affinities or []
        total = sum(abs(one.weight or 0) for one in affinities)
        met = sum(one.weight or 0 for one in affinities if self._holds(one, node))
        return met / total if total else 0.0

    def _spread(self, node: Node, group: TaskGroup) -> float:
        spreads = [*(group.spreads or []), *(self.job.spreads or [])]
        total = sum(one.weight or 0 for one in spreads)
        if not total:
            return 0.0
        return sum(self._boost(one, node, group) * (one.weight or 0) / total for one in spreads)

    def _boost(self, spread: Spread, node: Node, group: TaskGroup) -> float:
        mine = self.value(spread.attribute, node)
        if mine is None:
            return -1.0
        counts = Counter(
            self.value(spread.attribute, self.nodes[alloc.node_id])
            for alloc in self._own(group)
            if alloc.node_id in self.nodes
        )
        del counts[None]
        targets = spread.spread_target or []
        if targets:
            wanted = {one.value: one.percent / 100 * group.count for one in targets}
            rest = 100 - sum(one.percent for one in targets)
            desired = wanted.get(mine, rest / 100 * group.count if rest > 0 else 0.0)
            return (desired - (counts[mine] + 1)) / desired if desired else -1.0
        if not counts:
            return 0.0
        least, most = min(counts.values()), max(counts.values())
        if counts[mine] != least:
            return (least - counts[mine]) / least
        if least == most:
            return -1.0
        return (most - least) / least


def _healthy(node: Node) -> int:
    assert node.node_resources is not None
    return sum(
        instance.healthy
        for one in node.node_resources.devices or []
        for instance in one.instances or []
    )


def _devices_wanted(group: TaskGroup) -> float:
    return (
        sum(
            (one.count or 1) * (one.share or 1000)
            for resources in _resources(group)
            for one in resources.devices or []
        )
        / 1000
    )


def _quarter(amount: float) -> float:
    return 2 ** (round(4 * math.log2(max(amount, 1))) / 4)


def _resources(group: TaskGroup) -> list[Resources]:
    tasks: list[Task] = group.tasks or []
    return [task.resources for task in tasks if task.resources is not None]


def _held(alloc: Allocation) -> set[tuple[str, object]]:
    """What only one allocation of a node can hold."""
    assert alloc.allocated_resources is not None
    held: set[tuple[str, object]] = {
        ("port", port.value) for port in alloc.allocated_resources.shared.ports or []
    }
    for task in (alloc.allocated_resources.tasks or {}).values():
        held |= {("core", core) for core in task.cpu.reserved_cores or []}
    return held
