"""Rules for services and their checks, of groups and of tasks."""

from __future__ import annotations

from collections.abc import Sequence

from nomadpy.jobspec.durations import SECOND, format_duration, go_quote
from nomadpy.jobspec.faults import nested
from nomadpy.jobspec.patterns import valid_label
from nomadpy.models.job import TaskGroup
from nomadpy.models.service import Service, ServiceCheck
from nomadpy.models.task import Task

ADDRESS_MODES = ("auto", "alloc", "auto_advertise", "driver", "host")
PROVIDERS = ("consul", "nomad")
CHECK_TYPES = {"consul": ("http", "tcp", "script", "grpc"), "nomad": ("http", "tcp")}
ON_UPDATE = ("require_healthy", "ignore_warnings", "ignore")
MIN_CHECK_INTERVAL = SECOND
MIN_CHECK_TIMEOUT = SECOND


def group_service_faults(group: TaskGroup) -> list[str]:
    """Return what is wrong with the services that stand on the group."""
    labels = _group_ports(group)
    faults: list[str] = []
    providers = {service.provider for service in _all(group)}
    if len(providers) > 1:
        faults.append(
            "Multiple service providers used: task group services must use the same provider"
        )
    faults += _unique(group.services or [])
    tasks = {task.name for task in group.tasks or []}
    for service in group.services or []:
        inner = _service_faults(service, labels)
        for check in service.checks or []:
            owner = check.task_name or service.task_name
            if check.type == "script" and not owner:
                inner.append(
                    f"Check {check.name} invalid: Service {service.name} is a script check and must name its task"
                )
            elif owner and owner not in tasks:
                inner.append(f"Check {check.name} invalid: refers to non-existent task {owner}")
        faults += nested(f"Service {service.name} validation failed", inner)
    return faults


def task_service_faults(task: Task, group: TaskGroup) -> list[str]:
    """Return what is wrong with the services that stand on a task."""
    labels = _group_ports(group)
    for network in (task.resources.networks if task.resources else None) or []:
        for port in [*(network.reserved_ports or []), *(network.dynamic_ports or [])]:
            labels.add(port.label)
    faults = _unique(task.services or [])
    for service in task.services or []:
        inner = _service_faults(service, labels)
        faults += nested(f"service {go_quote(service.name)} validation failed", inner)
    return faults


def _all(group: TaskGroup) -> list[Service]:
    return [
        *(group.services or []),
        *(one for task in group.tasks or [] for one in task.services or []),
    ]


def _group_ports(group: TaskGroup) -> set[str]:
    return {
        port.label
        for network in group.networks or []
        for port in [*(network.reserved_ports or []), *(network.dynamic_ports or [])]
    }


def _unique(services: Sequence[Service]) -> list[str]:
    faults: list[str] = []
    seen: set[tuple[str, str]] = set()
    for service in services:
        key = (service.name, service.port_label)
        if key in seen:
            faults.append(f"service {go_quote(service.name)} is duplicate")
        seen.add(key)
    return faults


def _service_faults(service: Service, labels: set[str]) -> list[str]:
    faults: list[str] = []
    if not valid_label(service.name):
        faults.append(
            "Service name must be valid per RFC 1123 and can contain only alphanumeric characters or dashes and must be "
            f"no longer than 63 characters: {go_quote(service.name)}"
        )
    if service.address_mode not in ("", *ADDRESS_MODES):
        known = ", ".join(go_quote(mode) for mode in ADDRESS_MODES)
        faults.append(
            f"Service address_mode must be one of {known}; not {go_quote(service.address_mode)}"
        )
    if service.address and service.address_mode not in ("", "auto"):
        faults.append(
            f'Service address_mode must be "auto" if address is set; not {go_quote(service.address_mode)}'
        )
    if service.provider not in PROVIDERS:
        faults.append(
            f'Service provider must be "consul", or "nomad"; not {go_quote(service.provider)}'
        )
    if service.on_update not in ("", *ON_UPDATE):
        faults.append(
            f"Service on_update must be one of {', '.join(ON_UPDATE)}; not {go_quote(service.on_update)}"
        )
    if service.provider == "nomad" and service.connect is not None:
        faults.append(f'Service {service.name} is Connect Native and requires provider "consul"')
    faults += _port_faults(
        service.port_label,
        labels,
        f"port label {go_quote(service.port_label)} referenced by services {service.name} does not exist",
    )
    for check in service.checks or []:
        inner = _check_faults(check, service, labels)
        faults += [f"Check {check.name} invalid: {fault}" for fault in inner]
    return faults


def _port_faults(label: str, labels: set[str], text: str) -> list[str]:
    # A number is a port by itself, and what is interpolated is known on the node only.
    if not label or label in labels or label.isdigit() or "${" in label:
        return []
    return [text]


def _check_faults(check: ServiceCheck, service: Service, labels: set[str]) -> list[str]:
    faults: list[str] = []
    known = CHECK_TYPES.get(service.provider, CHECK_TYPES["consul"])
    if not check.type:
        faults.append("check type must be given")
    elif check.type not in known:
        choices = ", ".join(go_quote(name) for name in known)
        faults.append(f"check type must be one of {choices}; not {go_quote(check.type)}")
    if check.interval < MIN_CHECK_INTERVAL:
        faults.append(
            f"interval ({format_duration(check.interval)}) cannot be lower than {format_duration(MIN_CHECK_INTERVAL)}"
        )
    if check.timeout < MIN_CHECK_TIMEOUT:
        faults.append(
            f"timeout ({format_duration(check.timeout)}) is lower than required minimum timeout {format_duration(MIN_CHECK_TIMEOUT)}"
        )
    if check.type == "http" and not check.path:
        faults.append("http type must have http path")
    if check.type == "http" and "://" in check.path:
        faults.append("relative http path is required, not a URL")
    if check.type == "script" and not check.command:
        faults.append("script type must have a valid script path")
    if check.protocol and check.protocol not in ("http", "https"):
        faults.append(f"check protocol must be http or https; not {go_quote(check.protocol)}")
    if check.initial_status not in ("", "passing", "warning", "critical"):
        faults.append(
            f"invalid initial check state ({check.initial_status}), must be one of critical, warning, passing or empty"
        )
    if check.type != "script" and not check.port_label and not service.port_label:
        faults.append(
            f"{check.type} checks require a port but neither check nor service {go_quote(service.name)} have a port"
        )
    faults += _port_faults(
        check.port_label, labels, f"port label {go_quote(check.port_label)} does not exist"
    )
    if check.check_restart is not None:
        if check.check_restart.limit < 0:
            faults.append("limit must be greater than or equal to 0")
        if (check.check_restart.grace or 0) < 0:
            faults.append("grace period cannot be negative")
    return faults
