"""Do these allocations fit this node: sums of cpu, memory, disk, cores, ports and devices.

Used by the scheduler to choose, and by the plan applier to re-check each node of a plan on the newest state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.lifecycle import TaskLifecycle
from nomadpy.models.node import Node
from nomadpy.models.plan import AllocStop, Plan
from nomadpy.models.resources import AllocatedResources
from nomadpy.scheduler.cores import numa_nodes
from nomadpy.scheduler.devices import WHOLE, DeviceGroup, DeviceKey, DeviceUse, device_groups, held
from nomadpy.scheduler.devices import count as count_devices
from nomadpy.scheduler.numa import bus_nodes
from nomadpy.scheduler.ports import NodePorts
from nomadpy.scheduler.snapshot import Snapshot

_NO_CORES: frozenset[int] = frozenset()
_CLIENT_TERMINAL = frozenset({"complete", "failed", "lost"})
_SERVER_TERMINAL = frozenset({"stop", "evict"})


class Amount(msgspec.Struct, frozen=True):
    """An amount of resources: cpu in MHz, memory and disk in MiB, the ids of cores held alone, devices.

    Sums of amounts are of tasks that have no devices yet: what a group holds of them is added last.
    """

    cpu: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    cores: frozenset[int] = _NO_CORES
    devices: DeviceUse = ()

    def plus(self, other: Amount) -> Amount:
        """The sum; cores unite."""
        return Amount(
            self.cpu + other.cpu,
            self.memory_mb + other.memory_mb,
            self.disk_mb + other.disk_mb,
            self.cores | other.cores,
        )

    def largest(self, other: Amount) -> Amount:
        """The larger of each; cores unite."""
        return Amount(
            max(self.cpu, other.cpu),
            max(self.memory_mb, other.memory_mb),
            max(self.disk_mb, other.disk_mb),
            self.cores | other.cores,
        )


class Capacity(msgspec.Struct, frozen=True):
    """What a node has for allocations: its total less what it reserves for itself. numa: the NUMA node of each core."""

    cpu: int
    memory_mb: int
    disk_mb: int
    cores: frozenset[int]
    max_allocs: int
    mhz_per_core: int
    devices: tuple[DeviceGroup, ...] = ()
    numa: dict[int, int] = {}


class FitResult(msgspec.Struct, frozen=True):
    """ok, or the first dimension that does not suffice; `used` is the sum over the allocations."""

    ok: bool
    dimension: str
    used: Amount


class NodePlan(msgspec.Struct):
    """What a plan wants on one node."""

    placements: list[Allocation]
    stops: list[AllocStop]


def client_terminal(alloc: Allocation) -> bool:
    """Whether the client says that nothing of the allocation runs or will run."""
    return alloc.client_status in _CLIENT_TERMINAL


def server_terminal(alloc: Allocation) -> bool:
    """Whether the servers want the allocation gone."""
    return alloc.desired_status in _SERVER_TERMINAL


def terminal(alloc: Allocation) -> bool:
    """Whether the allocation no longer counts against its node."""
    return alloc.desired_status in _SERVER_TERMINAL or alloc.client_status in _CLIENT_TERMINAL


def ready_for_placements(node: Node) -> bool:
    """Whether new allocations may go to the node."""
    return (
        node.status == "ready"
        and node.scheduling_eligibility != "ineligible"
        and not draining(node)
    )


def draining(node: Node) -> bool:
    """Whether the node is being emptied."""
    return node.drain or node.drain_strategy is not None


def flatten(
    tasks: Mapping[str, Amount], lifecycles: Mapping[str, TaskLifecycle | None], disk_mb: int
) -> Amount:
    """Return the most that the tasks of a group use at one time.

    Prestart tasks end before the main ones begin, and poststop ones start after them, so only the largest of the
    three counts; sidecars run beside all of them.
    """
    sidecar = before = main = after = Amount()
    for name, amount in tasks.items():
        lifecycle = lifecycles.get(name)
        if lifecycle is None or lifecycle.hook == "poststart":
            main = main.plus(amount)
        elif lifecycle.hook == "poststop":
            after = after.plus(amount)
        elif lifecycle.sidecar:
            sidecar = sidecar.plus(amount)
        else:
            before = before.plus(amount)
    peak = before.largest(main).largest(after).plus(sidecar)
    return Amount(peak.cpu, peak.memory_mb, disk_mb, peak.cores)


def usage(alloc: Allocation) -> Amount:
    """Return what an allocation takes from its node."""
    resources = alloc.allocated_resources
    return Amount() if resources is None else resources_used(resources)


def resources_used(resources: AllocatedResources) -> Amount:
    """Return the most that the allocated resources amount to at one time."""
    tasks = {
        name: Amount(
            task.cpu.cpu_shares, task.memory.memory_mb, 0, frozenset(task.cpu.reserved_cores or ())
        )
        for name, task in (resources.tasks or {}).items()
    }
    devices = held((resources.tasks or {}).values())
    lifecycles = resources.task_lifecycles or {}
    if len(tasks) == 1 and not any(lifecycles.values()):
        (only,) = tasks.values()
        return Amount(only.cpu, only.memory_mb, resources.shared.disk_mb, only.cores, devices)
    peak = flatten(tasks, lifecycles, resources.shared.disk_mb)
    return msgspec.structs.replace(peak, devices=devices) if devices else peak


def capacity(node: Node) -> Capacity:
    """Return what the node has for allocations."""
    have, keep = node.node_resources, node.reserved_resources
    if have is None:
        return Capacity(0, 0, 0, _NO_CORES, node.node_max_allocs, 0)
    cpu, memory, disk = have.cpu.cpu_shares, have.memory.memory_mb, have.disk.disk_mb
    cores = frozenset(have.cpu.reservable_cpu_cores or ())
    total_cores = have.cpu.total_cpu_cores or len(cores)
    per_core = cpu // total_cores if total_cores else 0
    if keep is not None:
        cpu -= keep.cpu.cpu_shares
        memory -= keep.memory.memory_mb
        disk -= keep.disk.disk_mb
        cores -= frozenset(keep.cpu.reserved_cpu_cores or ())
    numa = numa_nodes(node)
    return Capacity(
        cpu,
        memory,
        disk,
        cores,
        node.node_max_allocs,
        per_core,
        device_groups(have.devices, bus_nodes(node, numa)) if have.devices else (),
        numa,
    )


def allocs_fit(node: Node, allocs: Iterable[Allocation]) -> FitResult:
    """Whether the node can hold all of `allocs` at once; terminal ones are left out of the sum."""
    have = capacity(node)
    ports = NodePorts(node)
    cpu = memory = disk = count = 0
    cores: set[int] = set()
    devices: dict[DeviceKey, int] = {}
    problem = ""
    for alloc in allocs:
        if terminal(alloc):
            continue
        count += 1
        amount = usage(alloc)
        cpu += amount.cpu
        memory += amount.memory_mb
        disk += amount.disk_mb
        if amount.cores:
            if not cores.isdisjoint(amount.cores):
                problem = problem or "cores"
            cores |= amount.cores
        if amount.devices:
            count_devices(devices, amount.devices, 1)
            if any(devices[key] > WHOLE for key, _ in amount.devices):
                problem = problem or "device oversubscribed"
        problem = ports.add(alloc) or problem
    used = Amount(cpu, memory, disk, frozenset(cores))
    dimension = problem or first_shortage(have, cpu, memory, disk, cores)
    if not dimension and have.max_allocs and count > have.max_allocs:
        dimension = "max allocations exceeded"
    return FitResult(not dimension, dimension, used)


def first_shortage(
    have: Capacity,
    cpu: int,
    memory_mb: int,
    disk_mb: int,
    cores: set[int] | frozenset[int] = _NO_CORES,
) -> str:
    """Return the first dimension in which `have` does not suffice, or ""."""
    if cores and not have.cores >= cores:
        return "cores"
    if cpu > have.cpu:
        return "cpu"
    if memory_mb > have.memory_mb:
        return "memory"
    if disk_mb > have.disk_mb:
        return "disk"
    return ""


def plan_by_node(plan: Plan) -> dict[str, NodePlan]:
    """Return the plan cut into nodes, in the order in which it names them."""
    nodes: dict[str, NodePlan] = {}
    for alloc in plan.placements:
        wanted = nodes.get(alloc.node_id)
        if wanted is None:
            nodes[alloc.node_id] = NodePlan([alloc], [])
        else:
            wanted.placements.append(alloc)
    for stop in plan.stops:
        nodes.setdefault(stop.node_id, NodePlan([], [])).stops.append(stop)
    return nodes


def plan_fits_node(snapshot: Snapshot, plan: Plan, node_id: str) -> tuple[bool, str]:
    """Whether what the plan wants on one node still holds; the reason when not.

    Reads the whole plan each time: for all nodes of a large one take `plan_by_node` and `node_plan_fits`.
    """
    wanted = NodePlan(
        [alloc for alloc in plan.placements if alloc.node_id == node_id],
        [stop for stop in plan.stops if stop.node_id == node_id],
    )
    return node_plan_fits(snapshot.node(node_id), snapshot.allocs_by_node(node_id), wanted)


def node_plan_fits(
    node: Node | None, allocs: Iterable[Allocation], wanted: NodePlan
) -> tuple[bool, str]:
    """Whether `wanted` still holds on the node with these allocations; the reason when not.

    Stops always hold. Updates of allocations that the node already has do not need it to take new ones.
    """
    if not wanted.placements:
        return True, ""
    if node is None:
        return False, "node does not exist"
    present = {alloc.id: alloc for alloc in allocs if not terminal(alloc)}
    refused = not_ready(node)
    if refused and any(alloc.id not in present for alloc in wanted.placements):
        return False, refused
    for stop in wanted.stops:
        if stop.desired_status != "run":
            present.pop(stop.alloc_id, None)
    for alloc in wanted.placements:
        if alloc.id not in present and not _devices_are_there(node, alloc):
            return False, "device is not there"
        present[alloc.id] = alloc
    result = allocs_fit(node, present.values())
    return result.ok, result.dimension


def _devices_are_there(node: Node, alloc: Allocation) -> bool:
    """What was chosen on an older snapshot may have been taken out since, or have failed."""
    devices = usage(alloc).devices
    if not devices:
        return True
    there = {key for group in capacity(node).devices for key in group.keys}
    return all(key in there for key, _ in devices)


def not_ready(node: Node) -> str:
    """Return why the node takes no new allocations, or ""."""
    if node.status != "ready":
        return "node is not ready for placements"
    if draining(node):
        return "node is draining"
    if node.scheduling_eligibility == "ineligible":
        return "node is not eligible"
    return ""
