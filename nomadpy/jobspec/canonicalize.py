"""Fill in what a job leaves unsaid, as a Nomad server does, so that what is stored is always complete.

In:      a job in wire case (decode.py), where absence means "not said".
Out:     models.job.Job.
Not here: whether it makes sense (validate.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec import defaults
from nomadpy.jobspec.canonicalize_task import (
    filled,
    ports_and_networks,
    services,
    task,
    without_empty,
)
from nomadpy.jobspec.defaults import Block
from nomadpy.jobspec.implied import implied_constraints
from nomadpy.models.job import Job


def canonicalize(
    raw: Block,
    *,
    region: str = defaults.REGION,
    namespace: str = "",
    default_priority: int = defaults.PRIORITY,
    previous: Job | None = None,
    new_policy_id: Callable[[], str] | None = None,
) -> Job:
    """Return the complete job that `raw` stands for. `raw` is not changed.

    region:        the region of this server, where the job says none or "global".
    namespace:     wins over the job's own (a request's ?namespace= does); "" leaves the job's or the default.
    previous:      the stored version, whose scaling policies keep their ids.
    new_policy_id: makes the id of a scaling policy that has none (Entropy.uuid); None leaves it "".
    Raises InvalidRequestError (400) where a value has a kind the wire does not allow.
    """
    job = without_empty(raw)
    job["Name"] = job.get("Name", job.get("ID", ""))
    job["Region"] = _region(str(job.get("Region", "")), region)
    job["Namespace"] = namespace or job.get("Namespace") or defaults.NAMESPACE
    job["Type"] = job.get("Type", "service")
    job["Priority"] = job.get("Priority") or default_priority
    job["NodePool"] = job.get("NodePool") or defaults.NODE_POOL
    if not job.get("Datacenters"):
        job["Datacenters"] = [] if job.get("Multiregion") else ["*"]
    weigh(job)
    if "Periodic" in job:
        job["Periodic"] = _periodic(job["Periodic"])
    if "ParameterizedJob" in job:
        parameterized = without_empty(job["ParameterizedJob"])
        job["ParameterizedJob"] = {
            **parameterized,
            "Payload": parameterized.get("Payload") or "optional",
        }
    if "Multiregion" in job:
        job["Multiregion"] = _multiregion(job["Multiregion"])
    update = _job_update(job)
    shared = {
        "Update": update,
        "Reschedule": job.pop("Reschedule", None),
        "Migrate": job.pop("Migrate", None),
    }
    job["TaskGroups"] = [
        _group(group, job, shared) for group in job.get("TaskGroups") or []
    ] or None
    # Only these two say something about the job as a whole; the rest stands on each group.
    job["Update"] = {key: update[key] for key in ("Stagger", "MaxParallel")} if update else {}
    _name_policies(job, previous, new_policy_id)
    try:
        complete = msgspec.convert(job, Job, strict=True)
    except msgspec.ValidationError as cause:
        raise InvalidRequestError(f"invalid job: {cause}") from cause
    return implied_constraints(complete)


def weigh(holder: Block) -> None:
    """Give the affinities and spreads of a job, group, task or device their weight."""
    for key in ("Affinities", "Spreads"):
        if holder.get(key):
            holder[key] = [{"Weight": 50, **without_empty(item)} for item in holder[key]]


def _region(asked: str, here: str) -> str:
    # "global" is every SDK's default, so it means wherever the request arrived.
    return here if asked in ("", defaults.REGION) else asked


def _job_update(job: Block) -> Block | None:
    if "Update" in job:
        return filled(defaults.UPDATE, job["Update"])
    return dict(defaults.UPDATE) if job["Type"] in ("service", "system") else None


def _periodic(raw: Block) -> Block:
    periodic = filled(defaults.PERIODIC, raw)
    periodic["TimeZone"] = periodic["TimeZone"] or "UTC"
    periodic["SpecType"] = periodic["SpecType"] or "cron"
    return periodic


def _multiregion(raw: Block) -> Block:
    multiregion = dict(raw)
    multiregion["Strategy"] = {"MaxParallel": 0, "OnFailure": "", **(raw.get("Strategy") or {})}
    multiregion["Regions"] = [{"Count": 1, **region} for region in raw.get("Regions") or []]
    return multiregion


def _group(raw: Block, job: Block, shared: dict[str, Any]) -> Block:
    """One task group, with what it takes over from its job."""
    group = without_empty(raw)
    job_type = str(job["Type"])
    group["Name"] = group.get("Name", "")
    scaling = group.get("Scaling")
    if "Count" not in group:
        group["Count"] = scaling["Min"] if scaling and "Min" in scaling else 1
    if scaling is not None:
        target = {"Namespace": job["Namespace"], "Job": job.get("ID", ""), "Group": group["Name"]}
        group["Scaling"] = scaling_policy(scaling, group["Count"], "horizontal", target)
    group["EphemeralDisk"] = filled(defaults.EPHEMERAL_DISK, group.get("EphemeralDisk", {}))
    group["RestartPolicy"] = filled(
        defaults.restart_policy(job_type), group.get("RestartPolicy", {})
    )
    _inherit_update(group, shared["Update"])
    _inherit_reschedule(group, shared["Reschedule"], job_type)
    _inherit_migrate(group, shared["Migrate"], job_type)
    if "Disconnect" in group:
        group["Disconnect"] = filled(defaults.DISCONNECT, group["Disconnect"])
    if "Consul" in group:
        group["Consul"] = filled(defaults.CONSUL, group["Consul"])
    weigh(group)
    if "Volumes" in group:
        group["Volumes"] = {
            name: {**without_empty(volume), "Name": volume.get("Name") or name}
            for name, volume in group["Volumes"].items()
        }
    if "Networks" in group:
        group["Networks"] = ports_and_networks(group["Networks"])
    if "Services" in group:
        group["Services"] = services(group["Services"], job, group, None)
    group["Tasks"] = [task(one, job, group) for one in group.get("Tasks") or []] or None
    for one in group["Tasks"] or []:
        weigh(one)
        _task_scaling(one, job, group)
    return group


def _inherit_update(group: Block, from_job: Block | None) -> None:
    if "Update" in group:
        group["Update"] = filled(from_job or defaults.UPDATE, group["Update"])
    elif from_job is not None and any(from_job.values()):
        # A stored batch job read back has an all-zero block, which says nothing.
        group["Update"] = dict(from_job)


def _inherit_reschedule(group: Block, from_job: Block | None, job_type: str) -> None:
    said = from_job is not None or "ReschedulePolicy" in group
    if said or job_type not in ("system", "sysbatch"):
        base = filled(defaults.reschedule_policy(job_type), from_job or {})
        group["ReschedulePolicy"] = filled(base, group.get("ReschedulePolicy", {}))


def _inherit_migrate(group: Block, from_job: Block | None, job_type: str) -> None:
    if from_job is not None or "Migrate" in group or job_type == "service":
        base = filled(defaults.MIGRATE, from_job or {})
        group["Migrate"] = filled(base, group.get("Migrate", {}))


def scaling_policy(raw: Block, count: int, kind: str, target: dict[str, str]) -> Block:
    """A complete scaling policy; a maximum that was not given is -1, which validation refuses."""
    policy = {"Enabled": True, "Min": count, "Max": -1, "ID": "", **raw}
    policy["Type"] = raw.get("Type") or kind
    policy["Target"] = {**target, **(raw.get("Target") or {})}
    return policy


def _task_scaling(one: Block, job: Block, group: Block) -> None:
    if "ScalingPolicies" in one:
        target = {
            "Namespace": job["Namespace"],
            "Job": job.get("ID", ""),
            "Group": group["Name"],
            "Task": one["Name"],
        }
        one["ScalingPolicies"] = [
            scaling_policy(policy, 0, "", target) for policy in one["ScalingPolicies"]
        ]


def _name_policies(job: Block, previous: Job | None, new_id: Callable[[], str] | None) -> None:
    """Give each scaling policy the id its target had before, or a new one."""
    known: dict[tuple[str, str, str], str] = {}
    for old_group in (previous.task_groups if previous else None) or []:
        if old_group.scaling:
            known[old_group.name, "", old_group.scaling.type] = old_group.scaling.id
        for old_task in old_group.tasks or []:
            for old in old_task.scaling_policies or []:
                known[old_group.name, old_task.name, old.type] = old.id
    for group in job["TaskGroups"] or []:
        owned = [("", policy) for policy in [group.get("Scaling")] if policy]
        for one in group["Tasks"] or []:
            owned += [(one["Name"], policy) for policy in one.get("ScalingPolicies") or []]
        for task_name, policy in owned:
            key = (group["Name"], task_name, policy["Type"])
            policy["ID"] = policy["ID"] or known.get(key, "") or (new_id() if new_id else "")
