"""What a task group asks of a node, and the resources an allocation is granted there."""

from __future__ import annotations

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
from nomadpy.scheduler.cluster import NodeState
from nomadpy.scheduler.fit import Amount, Capacity, flatten, resources_used
from nomadpy.scheduler.ports import NoPortError


class Grant(msgspec.Struct, frozen=True):
    """An allocation's resources: as allocated, the three older summaries of them, and what they amount to."""

    allocated: AllocatedResources
    total: Resources
    tasks: dict[str, Resources]
    shared: Resources
    amount: Amount


class GroupAsk:
    """The ask of one group. Groups without ports and cores get one Grant, shared by all their allocations."""

    def __init__(self, group: TaskGroup, *, oversubscribe: bool) -> None:
        self._tasks = group.tasks or []
        self._network = next(iter(group.networks or ()), None)
        self._disk_mb = group.ephemeral_disk.size_mb if group.ephemeral_disk else 0
        self._oversubscribe = oversubscribe
        self._lifecycles = {task.name: task.lifecycle for task in self._tasks}
        self.cores = sum(task.resources.cores for task in self._tasks if task.resources)
        # Without cores every node is asked for the same.
        self._plain = None if self.cores else self._amount(0)
        # Two asks with equal signatures take the same from every node. With cores, only their presence is told.
        plain = self._plain
        self.signature = None if plain is None else (plain.cpu, plain.memory_mb, plain.disk_mb)
        individual = (
            self._network
            or self.cores
            or any(task.resources and task.resources.networks for task in self._tasks)
        )
        self._shared_grant = None if individual else self._build(None, {}, {})

    def amount(self, have: Capacity) -> Amount:
        """Return what the group takes from a node; a whole core counts with the node's MHz for one core."""
        return self._plain or self._amount(have.mhz_per_core)

    def grant(self, state: NodeState, entropy: Entropy) -> Grant:
        """Take ports and cores of the node for one allocation. Raises NoPortError, and then nothing is taken."""
        if self._shared_grant is not None:
            return self._shared_grant
        cores: dict[str, list[int]] = {}
        if self.cores:
            free = state.free_cores()
            for task in self._tasks:
                wanted = task.resources.cores if task.resources else 0
                if wanted:
                    cores[task.name], free = free[:wanted], free[wanted:]
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
        except NoPortError:
            state.forget_ports()
            raise
        return self._build(shared, networks, cores, state.have.mhz_per_core)

    def regrant(self, allocated: AllocatedResources) -> Grant:
        """Return the grant of an allocation that is updated where it is: ports, devices and cores stay its own."""
        before = allocated.tasks or {}
        networks = {name: task.networks for name, task in before.items() if task.networks}
        cores = {
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
        grant = self._build(shared, networks, cores, per_core)
        devices = {name: task.devices for name, task in before.items() if task.devices}
        if not devices:
            return grant
        tasks = {
            name: msgspec.structs.replace(task, devices=devices.get(name))
            for name, task in (grant.allocated.tasks or {}).items()
        }
        return msgspec.structs.replace(
            grant, allocated=msgspec.structs.replace(grant.allocated, tasks=tasks)
        )

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
        cores: dict[str, list[int]],
        mhz_per_core: int = 0,
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
                    cpu_shares=_cpu(asked, mhz_per_core), reserved_cores=cores.get(task.name)
                ),
                memory=AllocatedMemoryResources(
                    memory_mb=asked.memory_mb,
                    memory_max_mb=asked.memory_max_mb if self._oversubscribe else 0,
                ),
                networks=own,
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
