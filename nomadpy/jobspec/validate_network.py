"""Rules for networks and ports of a group and its tasks."""

from __future__ import annotations

from collections.abc import Iterator

from nomadpy.jobspec.durations import go_quote
from nomadpy.jobspec.patterns import valid_hostname
from nomadpy.models.job import TaskGroup
from nomadpy.models.resources import NetworkResource, Port

MAX_PORT = 65535


def network_faults(group: TaskGroup) -> list[str]:
    """Return what is wrong with the ports of the group, and those of its tasks, which share their names."""
    faults: list[str] = []
    labels: dict[str, str] = {}
    # Per host network, static port to who asked for it.
    taken: dict[str, dict[int, str]] = {}
    if len(group.networks or []) > 1:
        faults.append(f"only one network block may be given, found {len(group.networks or [])}")
    for network in group.networks or []:
        for port in _ports(network):
            faults += _label_fault(port, labels, "taskgroup network")
            faults += _static_faults(port, taken, f"taskgroup network:{port.label}")
            faults += _target_faults(port)
            if port.ignore_collision and network.mode not in ("", "host"):
                faults.append(
                    f"Port {go_quote(port.label)} collision may not be ignored on non-host network mode {go_quote(network.mode)}"
                )
        faults += _mode_faults(network)
    for task in group.tasks or []:
        for network in (task.resources.networks if task.resources else None) or []:
            for port in _ports(network):
                faults += _label_fault(port, labels, f"task {go_quote(task.name)}")
                faults += _static_faults(port, taken, f"{task.name}:{port.label}")
    return faults


def _ports(network: NetworkResource) -> Iterator[Port]:
    yield from network.reserved_ports or []
    yield from network.dynamic_ports or []


def _label_fault(port: Port, labels: dict[str, str], owner: str) -> list[str]:
    if not port.label:
        return ["Port label must not be empty"]
    if port.label in labels:
        return [f"Port label {port.label} already in use by {labels[port.label]}"]
    labels[port.label] = owner
    return []


def _static_faults(port: Port, taken: dict[str, dict[int, str]], owner: str) -> list[str]:
    if port.value == 0:
        return []
    if port.value < 0:
        return [f"Port {port.label} ({port.value}) cannot be negative"]
    if port.value > MAX_PORT:
        return [f"Port {port.label} ({port.value}) cannot be greater than {MAX_PORT}"]
    here = taken.setdefault(port.host_network or "default", {})
    if port.value in here and not port.ignore_collision:
        return [f"Static port {port.value} already reserved by {here[port.value]}"]
    here[port.value] = owner
    return []


def _target_faults(port: Port) -> list[str]:
    if port.to < -1:
        return [f"Port {go_quote(port.label)} cannot be mapped to negative value {port.to}"]
    if port.to > MAX_PORT:
        return [
            f"Port {go_quote(port.label)} cannot be mapped to a port ({port.to}) greater than {MAX_PORT}"
        ]
    return []


def _mode_faults(network: NetworkResource) -> list[str]:
    faults: list[str] = []
    mode = network.mode
    if mode not in ("", "none", "bridge", "host") and not mode.startswith("cni/"):
        faults.append(f"invalid network mode {go_quote(mode)}")
    if network.hostname:
        if mode in ("", "host", "none"):
            faults.append("hostname is only supported on bridge or CNI networks")
        elif "${" not in network.hostname and not valid_hostname(network.hostname):
            faults.append(f"Hostname {go_quote(network.hostname)} is not a valid DNS name")
    return faults
