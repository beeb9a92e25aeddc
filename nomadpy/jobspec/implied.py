"""Constraints that a job implies without saying them: what a node must be able to do for it.

They are stored with each group, as Nomad does, so that `job inspect`, plans and placement metrics show them.
"""

from __future__ import annotations

import msgspec

from nomadpy.models.constraint import Constraint
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.service import Service
from nomadpy.models.task import Task

SERVICE_DISCOVERY = Constraint(
    l_target="${attr.nomad.service_discovery}", r_target="true", operand="="
)
SERVICE_CHECKS = Constraint(l_target="${attr.nomad.version}", r_target=">= 1.4.0", operand="semver")
CNI_PLUGINS = ("bridge", "firewall", "host-local", "loopback", "portmap")


def implied_constraints(job: Job) -> Job:
    """Return the job with the implied constraints of each group added where they are missing."""
    groups = job.task_groups
    if not groups:
        return job
    return msgspec.structs.replace(job, task_groups=[_group(group) for group in groups])


def required_signals(group: TaskGroup) -> list[str]:
    """The signals that the group's tasks may be sent on purpose, sorted."""
    signals: set[str] = set()
    for task in group.tasks or []:
        signals.update(_task_signals(task))
    return sorted(signals)


def _task_signals(task: Task) -> list[str]:
    signals = [task.kill_signal] if task.kill_signal else []
    if task.vault and task.vault.change_mode == "signal" and task.vault.change_signal:
        signals.append(task.vault.change_signal)
    signals += [
        template.change_signal
        for template in task.templates or []
        if template.change_mode == "signal" and template.change_signal
    ]
    return signals


def _group(group: TaskGroup) -> TaskGroup:
    held = list(group.constraints or [])
    before = len(held)

    def require(constraint: Constraint, *, once_per_target: bool = False) -> None:
        known = (
            any(one.l_target == constraint.l_target for one in held)
            if once_per_target
            else constraint in held
        )
        if not known:
            held.append(constraint)

    signals = required_signals(group)
    if signals:
        require(
            Constraint(
                l_target="${attr.os.signals}", r_target=",".join(signals), operand="set_contains"
            ),
            once_per_target=True,
        )
    native = [service for service in _services(group) if service.provider == "nomad"]
    if native:
        require(SERVICE_DISCOVERY)
        if any(service.checks for service in native):
            require(SERVICE_CHECKS)
    if any(network.mode == "bridge" for network in group.networks or []):
        for plugin in CNI_PLUGINS:
            require(
                Constraint(
                    l_target=f"${{attr.plugins.cni.version.{plugin}}}",
                    r_target=">= 0.4.0",
                    operand="semver",
                ),
                once_per_target=True,
            )
    if len(held) == before:
        return group
    return msgspec.structs.replace(group, constraints=held)


def _services(group: TaskGroup) -> list[Service]:
    out = list(group.services or [])
    for task in group.tasks or []:
        out += task.services or []
    return out
