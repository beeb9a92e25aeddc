"""What a task group asks of a node, and the resources an allocation is granted there."""

from __future__ import annotations

from typing import Protocol

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.job import TaskGroup
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedResources,
    AllocatedSharedResources,
    AllocatedTaskResources,
    NetworkResource,
    Resources,
)
from nomadpy.models.task import Task
from nomadpy.scheduler import cores, devices, numa
from nomadpy.scheduler.cluster import NodeState
from nomadpy.scheduler.devices import DeviceKey
from nomadpy.scheduler.fit import Amount, Capacity, first_shortage, flatten, resources_used
from nomadpy.scheduler.refusals import GrantError


class Grant(msgspec.Struct, frozen=True):
    """An allocation's resources: as allocated, the three older summaries of them, and what they amount to."""

    allocated: AllocatedResources
    total: Resources
    tasks: dict[str, Resources]
    shared: Resources
    amount: Amount


class NodeUse(Protocol):
    """A node with what is taken of it: a row of the node table, or its state in a pass."""

    @property
    def have(self) -> Capacity:
        """What the node has for allocations."""
        ...

    @property
    def cpu(self) -> int:
        """MHz that are taken."""
        ...

    @property
    def memory_mb(self) -> int:
        """MiB that are taken."""
        ...

    @property
    def disk_mb(self) -> int:
        """MiB that are taken."""
        ...

    @property
    def count(self) -> int:
        """How many allocations there are."""
        ...

    @property
    def cores(self) -> dict[int, int]:
        """How many hold each core."""
        ...

    @property
    def devices(self) -> dict[DeviceKey, int]:
        """Thousandths that are taken of each device."""
        ...


class GroupAsk:
    """The ask of one group. Groups without ports, cores and devices get one Grant, shared by all their allocations."""

    def __init__(self, group: TaskGroup, *, oversubscribe: bool) -> None:
        self._tasks = group.tasks or []
        self._network = next(iter(group.networks or ()), None)
        self._disk_mb = group.ephemeral_disk.size_mb if group.ephemeral_disk else 0
        self._oversubscribe = oversubscribe
        self._lifecycles = {task.name: task.lifecycle for task in self._tasks}
        self.cores = cores.requests(self._tasks)
        self.devices = devices.requests(self._tasks)
        self._beside = any(one.beside for one in self.devices)
        self.prefers_devices = any(one.affinities for one in self.devices)
        # Without cores every node is asked for the same.
        self._plain = None if self.cores else self._amount(0)
        # Two asks with equal signatures take the same from every node.
        amount = self._amount(1)
        self.signature = (
            amount.cpu,
            amount.memory_mb,
            amount.disk_mb,
            self.cores,
            self.cores and [(task.lifecycle, task.resources) for task in self._tasks],
            self.devices,
        )
        individual = (
            self._network
            or self.cores
            or self.devices
            or any(task.resources and task.resources.networks for task in self._tasks)
        )
        self._shared_grant = None if individual else self._build(None, {}, {})

    def amount(self, have: Capacity) -> Amount:
        """Return what the group takes from a node; a whole core counts with the node's MHz for one core."""
        return self._plain or self._amount(have.mhz_per_core)

    def shortage(self, use: NodeUse) -> str:
        """Return the first dimension in which the node has too little for one more, or "". Ports are not looked at."""
        have, amount = use.have, self.amount(use.have)
        if self.cores and self._free_cores(use) is None:
            return "cores"
        if have.max_allocs and use.count >= have.max_allocs:
            return "max allocations exceeded"
        shortage = first_shortage(
            have,
            use.cpu + amount.cpu,
            use.memory_mb + amount.memory_mb,
            use.disk_mb + amount.disk_mb,
        )
        if not shortage and self.devices:
            if devices.assign(self.devices, use.have.devices, use.devices) is None:
                return devices.EXHAUSTED
            if self._beside and self._one_node(use) is None:
                return numa.APART
        return shortage

    def free_devices(self, use: NodeUse) -> devices.Chosen | None:
        """Return the devices that one more allocation would be given, None when there are not enough."""
        if self._beside:
            both = self._one_node(use)
            return None if both is None else both[1]
        return devices.assign(self.devices, use.have.devices, use.devices)

    def _one_node(self, use: NodeUse) -> tuple[dict[str, list[int]], devices.Chosen] | None:
        """Cores and devices of tasks that want both from one NUMA node."""
        return numa.assign(
            self.cores,
            self.devices,
            free=use.have.cores - use.cores.keys(),
            places=use.have.numa,
            groups=use.have.devices,
            taken=use.devices,
        )

    def device_affinity(self, use: NodeUse) -> float:
        """Return how well the devices that the node would give are liked, -1 to 1."""
        chosen = self.free_devices(use) if self.prefers_devices else None
        return devices.affinity_score(chosen) if chosen else 0.0

    def _free_cores(self, use: NodeUse) -> dict[str, list[int]] | None:
        return cores.assign(self.cores, use.have.cores - use.cores.keys(), use.have.numa)

    def grant(self, state: NodeState, entropy: Entropy) -> Grant:
        """Take ports, cores and devices of the node for one allocation. Raises GrantError, and then nothing is taken."""
        if self._shared_grant is not None:
            return self._shared_grant
        own_cores, chosen = self._cores_and_devices(state)
        shared = AllocatedSharedResources(disk_mb=self._disk_mb)
        networks: dict[str, list[NetworkResource]] = {}
        try:
            if self._network is not None:
                offer = state.ports().assign_group(self._network, entropy)
                shared = AllocatedSharedResources(
                    disk_mb=self._disk_mb, networks=[offer.network], ports=offer.ports or None
                )
            for task in self._tasks:
                asked = task.resources.networks if task.resources else None
                if asked:
                    networks[task.name] = [state.ports().assign_task(one, entropy) for one in asked]
        except GrantError:
            state.forget_ports()
            raise
        return self._build(
            shared, networks, own_cores, state.have.mhz_per_core, devices.granted(chosen)
        )

    def _cores_and_devices(self, state: NodeState) -> tuple[dict[str, list[int]], devices.Chosen]:
        if self._beside:
            both = self._one_node(state)
            if both is None:
                raise GrantError(numa.APART)
            return both
        own_cores = self._free_cores(state) if self.cores else {}
        chosen = self.free_devices(state) if self.devices else []
        if own_cores is None:
            raise GrantError("cores")
        if chosen is None:
            raise GrantError(devices.EXHAUSTED)
        return own_cores, chosen

    def regrant(self, allocated: AllocatedResources) -> Grant:
        """Return the grant of an allocation that is updated where it is: ports, devices and cores stay its own."""
        before = allocated.tasks or {}
        networks = {name: task.networks for name, task in before.items() if task.networks}
        own_cores = {
            name: task.cpu.reserved_cores
            for name, task in before.items()
            if task.cpu.reserved_cores
        }
        shared = AllocatedSharedResources(
            disk_mb=self._disk_mb, networks=allocated.shared.networks, ports=allocated.shared.ports
        )
        held = next((task.cpu for task in before.values() if task.cpu.reserved_cores), None)
        per_core = (
            held.cpu_shares // len(held.reserved_cores) if held and held.reserved_cores else 0
        )
        own_devices = {name: task.devices for name, task in before.items() if task.devices}
        return self._build(shared, networks, own_cores, per_core, own_devices)

    def _amount(self, mhz_per_core: int) -> Amount:
        tasks = {
            task.name: Amount(_cpu(task.resources, mhz_per_core), task.resources.memory_mb)
            for task in self._tasks
            if task.resources is not None
        }
        return flatten(tasks, self._lifecycles, self._disk_mb)

    def _build(
        self,
        shared: AllocatedSharedResources | None,
        networks: dict[str, list[NetworkResource]],
        own_cores: dict[str, list[int]],
        mhz_per_core: int = 0,
        own_devices: devices.Assignment | None = None,
    ) -> Grant:
        shared = shared or AllocatedSharedResources(disk_mb=self._disk_mb)
        allocated_tasks: dict[str, AllocatedTaskResources] = {}
        task_resources: dict[str, Resources] = {}
        total_networks = list(shared.networks or ())
        cpu = memory = memory_max = 0
        for task in self._tasks:
            asked = task.resources or Resources()
            own = networks.get(task.name)
            given = AllocatedTaskResources(
                cpu=AllocatedCpuResources(
                    cpu_shares=_cpu(asked, mhz_per_core), reserved_cores=own_cores.get(task.name)
                ),
                memory=AllocatedMemoryResources(
                    memory_mb=asked.memory_mb,
                    memory_max_mb=asked.memory_max_mb if self._oversubscribe else 0,
                ),
                networks=own,
                devices=(own_devices or {}).get(task.name),
            )
            allocated_tasks[task.name] = given
            task_resources[task.name] = _task_summary(task, given)
            total_networks.extend(own or ())
            cpu += given.cpu.cpu_shares
            memory += given.memory.memory_mb
            memory_max += given.memory.memory_max_mb or given.memory.memory_mb
        allocated = AllocatedResources(
            tasks=allocated_tasks, shared=shared, task_lifecycles=self._lifecycles
        )
        return Grant(
            allocated=allocated,
            total=Resources(
                cpu=cpu,
                memory_mb=memory,
                memory_max_mb=memory_max,
                disk_mb=self._disk_mb,
                networks=total_networks or None,
            ),
            tasks=task_resources,
            shared=Resources(disk_mb=self._disk_mb, networks=shared.networks),
            amount=resources_used(allocated),
        )


def _cpu(asked: Resources, mhz_per_core: int) -> int:
    return asked.cores * mhz_per_core if asked.cores else asked.cpu


def _task_summary(task: Task, given: AllocatedTaskResources) -> Resources:
    return Resources(
        cpu=given.cpu.cpu_shares,
        cores=len(given.cpu.reserved_cores or ()),
        memory_mb=given.memory.memory_mb,
        memory_max_mb=given.memory.memory_max_mb,
        networks=given.networks,
        devices=task.resources.devices if task.resources else None,
    )
