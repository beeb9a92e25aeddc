"""Cores, their speed and place, and the compute that tasks may have (MHz)."""

from __future__ import annotations

import os
import platform

from agent.fingerprint.parts import FingerprintConfig, Part, format_ids, parse_ids
from nomadpy.models.node import NodeCore, NodeCpuResources, NodeProcessors, NodeTopology

# Where the host tells no speed at all (some virtual machines), a number that lets jobs be placed.
GUESS_MHZ = 1000
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_SYSTEM = "/sys/devices/system"


def architecture() -> str:
    """The architecture as Go names it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def core_mhz() -> float:
    """Speed of one core, for turning percentages into ticks."""
    cores = _cores(_nodes())
    return sum(_speed(core) for core in cores) / len(cores)


def fingerprint(config: FingerprintConfig) -> Part:
    """Read /proc/cpuinfo and /sys; no measuring, so it takes a millisecond."""
    nodes = _nodes()
    cores = _cores(nodes)
    speed = max(_speed(core) for core in cores)
    total = config.cpu_total_compute or sum(_speed(core) for core in cores)
    present = {core.id for core in cores}
    reservable = [c for c in parse_ids(config.reservable_cores) if c in present] or sorted(present)
    reserved = {c for c in parse_ids(config.reserved_cores) if c in present}
    usable = max(0, total - config.reserved_cpu_mhz - total * len(reserved) // len(cores))
    attributes = {
        "cpu.arch": architecture(),
        "cpu.frequency": str(speed),
        "cpu.modelname": _model_name(),
        "cpu.numcores": str(len(cores)),
        "cpu.reservablecores": str(len(reservable)),
        "cpu.totalcompute": str(total),
        "cpu.usablecompute": str(usable),
        "numa.node.count": str(len(nodes)),
    }
    for node, ids in nodes.items():
        attributes[f"numa.node{node}.cores"] = format_ids(ids)
    topology = NodeTopology(
        nodes=sorted(nodes),
        distances=_distances(nodes),
        cores=cores,
        bus_associativity=_buses() or None,
        override_total_compute=config.cpu_total_compute,
        override_withold_compute=config.reserved_cpu_mhz,
    )
    return Part(
        attributes={name: value for name, value in attributes.items() if value},
        cpu=NodeCpuResources(
            cpu_shares=total, total_cpu_cores=len(cores), reservable_cpu_cores=reservable
        ),
        processors=NodeProcessors(topology=topology),
    )


def _nodes() -> dict[int, list[int]]:
    """NUMA node to the cores that this process may use; a host without NUMA has node 0."""
    allowed = sorted(os.sched_getaffinity(0))
    found: dict[int, list[int]] = {}
    try:
        names = os.listdir(f"{_SYSTEM}/node")
    except OSError:
        names = []
    for name in names:
        if name.startswith("node") and name[4:].isdecimal():
            ids = parse_ids(_read(f"{_SYSTEM}/node/{name}/cpulist"))
            if members := [core for core in ids if core in allowed]:
                found[int(name[4:])] = members
    return dict(sorted(found.items())) or {0: allowed}


def _cores(nodes: dict[int, list[int]]) -> list[NodeCore]:
    clock = _clock_mhz()
    cores = []
    for node, ids in nodes.items():
        for core in ids:
            base = f"{_SYSTEM}/cpu/cpu{core}"
            fixed = _khz(f"{base}/cpufreq/base_frequency")
            most = _khz(f"{base}/cpufreq/cpuinfo_max_freq")
            known = fixed or clock.get(core, 0)
            cores.append(
                NodeCore(
                    socket_id=int(_read(f"{base}/topology/physical_package_id") or 0),
                    node_id=node,
                    id=core,
                    grade=True,
                    base_speed=known,
                    max_speed=most,
                    guess_speed=0 if known or most else GUESS_MHZ,
                )
            )
    return sorted(cores, key=lambda core: core.id)


def _speed(core: NodeCore) -> int:
    return core.base_speed or core.max_speed or core.guess_speed


def _clock_mhz() -> dict[int, int]:
    found: dict[int, int] = {}
    core = -1
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "processor":
            core = int(value)
        elif name.strip() == "cpu MHz":
            found[core] = int(float(value))
    return found


def _model_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return ""


def _distances(nodes: dict[int, list[int]]) -> list[list[int]] | None:
    if len(nodes) < 2:
        return None
    return [[int(d) for d in _read(f"{_SYSTEM}/node/node{n}/distance").split()] for n in nodes]


def _buses(root: str = "/sys/bus/pci/devices") -> dict[str, int]:
    """PCI bus id to NUMA node; a device of which the kernel does not know it (-1) is left out."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return {}
    nodes = {name: _read(f"{root}/{name}/numa_node") for name in names}
    return {name: int(node) for name, node in nodes.items() if node.isdecimal()}


def _khz(path: str) -> int:
    text = _read(path)
    return int(text) // 1000 if text.isdecimal() else 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
