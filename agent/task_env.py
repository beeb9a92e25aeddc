"""The environment of a task, and what `${...}` in its definition stands for.

Names are Nomad's; NOMAD_TASK_CERT_FILE, NOMAD_TASK_KEY_FILE, NOMAD_TASK_CA_FILE and NOMAD_SPIFFE_ID are ours and come
from the credentials. Paths are the host's: a driver that shows the task other paths translates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from agent.drivers.base import TaskPaths
from nomadpy.jobspec.interpolate import interpolate, interpolate_value
from nomadpy.models.allocation import Allocation
from nomadpy.models.job import TaskGroup
from nomadpy.models.node import Node
from nomadpy.models.resources import AllocatedTaskResources, PortMapping
from nomadpy.models.task import Task

_UNFIT = re.compile(r"[^A-Za-z0-9_]")
_INDEX = re.compile(r"\[(\d+)\]$")


class TaskEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """variables: what the task gets. names: what `${...}` may refer to, node attributes and metadata included."""

    variables: dict[str, str]
    names: dict[str, str]

    def resolve(self, text: str) -> str:
        """Replace what is known in `text`; the rest stays verbatim."""
        return interpolate(text, self.names)

    def resolve_all(self, value: object) -> object:
        """The same for every string within lists and maps."""
        resolved: object = interpolate_value(value, self.names)
        return resolved


def build(
    alloc: Allocation,
    task: Task,
    node: Node,
    paths: TaskPaths,
    *,
    region: str,
    extra: Mapping[str, str],
    devices: Mapping[str, str] | None = None,
) -> TaskEnvironment:
    """Put the environment of one task together. extra: from credentials and other hooks; the job's env wins over it.

    devices: from device plugins. They win over the job's, which may not say that others' devices are its own.
    """
    group = group_of(alloc)
    variables = {
        **_identity(alloc, task, node, region),
        **_limits(task_resources(alloc, task.name)),
        **_directories(paths),
    }
    for mapping in ports_of(alloc, task.name):
        variables.update(_port(mapping))
    variables.update(extra)
    variables.update(devices or {})
    names = {**_node_names(node, region), **variables}
    meta = {
        key: interpolate(value, names) for key, value in _merged_meta(alloc, group, task).items()
    }
    for key, value in meta.items():
        name = _clean(key)
        variables[f"NOMAD_META_{name}"] = value
        variables[f"NOMAD_META_{name.upper()}"] = value
    names.update(variables)
    # Entries do not refer to each other: the order of a map on the wire means nothing.
    own = {key: interpolate(value, names) for key, value in sorted((task.env or {}).items())}
    own.update(devices or {})
    variables.update(own)
    names.update(own)
    return TaskEnvironment(variables=variables, names=names)


def group_of(alloc: Allocation) -> TaskGroup:
    """The allocation's task group. Raises LookupError when its job does not have it."""
    for group in (alloc.job.task_groups if alloc.job is not None else None) or []:
        if group.name == alloc.task_group:
            return group
    raise LookupError(f"allocation {alloc.id}: its job has no group {alloc.task_group!r}")


def task_resources(alloc: Allocation, task: str) -> AllocatedTaskResources | None:
    """What the scheduler gave the task."""
    given = alloc.allocated_resources
    return (given.tasks or {}).get(task) if given is not None else None


def ports_of(alloc: Allocation, task: str) -> list[PortMapping]:
    """All ports the task may use: the group's, and its own legacy network's."""
    given = alloc.allocated_resources
    if given is None:
        return []
    ports = list(given.shared.ports or [])
    known = {port.label for port in ports}
    resources = (given.tasks or {}).get(task)
    networks = [
        *(given.shared.networks or []),
        *((resources.networks if resources else None) or []),
    ]
    for network in networks:
        for port in [*(network.reserved_ports or []), *(network.dynamic_ports or [])]:
            if port.label not in known:
                known.add(port.label)
                ports.append(
                    PortMapping(label=port.label, value=port.value, to=port.to, host_ip=network.ip)
                )
    return ports


def alloc_index(name: str) -> str:
    """The index in an allocation's name, `web.frontend[3]`; "" when it has none."""
    found = _INDEX.search(name)
    return found.group(1) if found else ""


def _identity(alloc: Allocation, task: Task, node: Node, region: str) -> dict[str, str]:
    job = alloc.job
    variables = {
        "NOMAD_ALLOC_ID": alloc.id,
        "NOMAD_SHORT_ALLOC_ID": alloc.id[:8],
        "NOMAD_ALLOC_NAME": alloc.name,
        "NOMAD_ALLOC_INDEX": alloc_index(alloc.name),
        "NOMAD_TASK_NAME": task.name,
        "NOMAD_GROUP_NAME": alloc.task_group,
        "NOMAD_JOB_ID": alloc.job_id,
        "NOMAD_JOB_NAME": job.name if job is not None else alloc.job_id,
        "NOMAD_DC": node.datacenter,
        "NOMAD_REGION": region,
        "NOMAD_NAMESPACE": alloc.namespace,
    }
    if job is not None and job.parent_id:
        variables["NOMAD_JOB_PARENT_ID"] = job.parent_id
    if node.cgroup_parent:
        variables["NOMAD_PARENT_CGROUP"] = node.cgroup_parent
    return variables


def _limits(resources: AllocatedTaskResources | None) -> dict[str, str]:
    if resources is None:
        return {}
    variables = {
        "NOMAD_CPU_LIMIT": str(resources.cpu.cpu_shares),
        "NOMAD_MEMORY_LIMIT": str(resources.memory.memory_mb),
    }
    if resources.memory.memory_max_mb > resources.memory.memory_mb:
        variables["NOMAD_MEMORY_MAX_LIMIT"] = str(resources.memory.memory_max_mb)
    if resources.cpu.reserved_cores:
        variables["NOMAD_CPU_CORES"] = core_list(resources.cpu.reserved_cores)
    return variables


def core_list(cores: list[int]) -> str:
    """Cores as the kernel writes them: `0-2,5`."""
    ranges: list[list[int]] = []
    for core in sorted(set(cores)):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _directories(paths: TaskPaths) -> dict[str, str]:
    return {
        "NOMAD_ALLOC_DIR": paths.alloc,
        "NOMAD_TASK_DIR": paths.local,
        "NOMAD_SECRETS_DIR": paths.secrets,
    }


def _port(mapping: PortMapping) -> dict[str, str]:
    label = _clean(mapping.label)
    host = str(mapping.value)
    inside = str(mapping.to) if mapping.to > 0 else host
    address = mapping.host_ip
    joined = f"[{address}]" if ":" in address else address
    return {
        f"NOMAD_IP_{label}": address,
        f"NOMAD_PORT_{label}": inside,
        f"NOMAD_ADDR_{label}": f"{joined}:{host}",
        f"NOMAD_ALLOC_PORT_{label}": inside,
        f"NOMAD_HOST_IP_{label}": address,
        f"NOMAD_HOST_PORT_{label}": host,
        f"NOMAD_HOST_ADDR_{label}": f"{joined}:{host}",
    }


def _merged_meta(alloc: Allocation, group: TaskGroup, task: Task) -> dict[str, str]:
    job_meta = (alloc.job.meta if alloc.job is not None else None) or {}
    return {**job_meta, **(group.meta or {}), **(task.meta or {})}


def _node_names(node: Node, region: str) -> dict[str, str]:
    names = {
        "node.unique.id": node.id,
        "node.unique.name": node.name,
        "node.datacenter": node.datacenter,
        "node.region": region,
        "node.class": node.node_class,
        "node.pool": node.node_pool,
    }
    names.update({f"attr.{key}": value for key, value in (node.attributes or {}).items()})
    names.update({f"meta.{key}": value for key, value in (node.meta or {}).items()})
    return names


def _clean(name: str) -> str:
    return _UNFIT.sub("_", name)
