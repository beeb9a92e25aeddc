"""The short forms that lists show. Pure."""

from __future__ import annotations

from typing import Any

from nomadpy.models.allocation import Allocation, AllocationListStub, DesiredTransition
from nomadpy.models.job import Job, JobListStub, JobSummary
from nomadpy.models.node import Node, NodeListStub


def job_stub(job: Job, summary: JobSummary | None, *, meta: bool) -> JobListStub:
    """A row of /v1/jobs."""
    return JobListStub(
        id=job.id,
        parent_id=job.parent_id,
        name=job.name,
        namespace=job.namespace,
        datacenters=job.datacenters,
        node_pool=job.node_pool,
        type=job.type,
        priority=job.priority,
        periodic=job.periodic is not None,
        parameterized_job=job.parameterized_job is not None,
        multiregion=job.multiregion,
        stop=job.stop,
        status=job.status,
        status_description=job.status_description,
        job_summary=summary,
        create_index=job.create_index,
        modify_index=job.modify_index,
        job_modify_index=job.job_modify_index,
        submit_time=job.submit_time,
        meta=job.meta if meta else None,
    )


def alloc_stub(
    alloc: Allocation, *, resources: bool = False, task_states: bool = True
) -> AllocationListStub:
    """A row of /v1/allocations and its like."""
    return AllocationListStub(
        id=alloc.id,
        eval_id=alloc.eval_id,
        name=alloc.name,
        namespace=alloc.namespace,
        node_id=alloc.node_id,
        node_name=alloc.node_name,
        job_id=alloc.job_id,
        job_type=alloc.job.type if alloc.job is not None else "",
        job_version=alloc.job.version if alloc.job is not None else 0,
        task_group=alloc.task_group,
        allocated_resources=alloc.allocated_resources if resources else None,
        desired_status=alloc.desired_status,
        desired_description=alloc.desired_description,
        desired_transition=alloc.desired_transition or DesiredTransition(),
        client_status=alloc.client_status,
        client_description=alloc.client_description,
        task_states=alloc.task_states if task_states else None,
        deployment_status=alloc.deployment_status,
        followup_eval_id=alloc.followup_eval_id,
        next_allocation=alloc.next_allocation,
        reschedule_tracker=alloc.reschedule_tracker,
        preempted_allocations=alloc.preempted_allocations,
        preempted_by_allocation=alloc.preempted_by_allocation,
        create_index=alloc.create_index,
        modify_index=alloc.modify_index,
        create_time=alloc.create_time,
        modify_time=alloc.modify_time,
    )


def node_stub(node: Node, *, resources: bool = False, os_name: bool = False) -> NodeListStub:
    """A row of /v1/nodes."""
    attributes = node.attributes or {}
    shown: dict[str, Any] = {}
    if resources:
        shown["node_resources"] = node.node_resources
        shown["reserved_resources"] = node.reserved_resources
    if os_name:
        shown["attributes"] = {k: attributes[k] for k in ("os.name",) if k in attributes}
    return NodeListStub(
        address=node.http_addr.rpartition(":")[0],
        id=node.id,
        datacenter=node.datacenter,
        name=node.name,
        node_class=node.node_class,
        node_pool=node.node_pool,
        version=attributes.get("nomad.version", ""),
        drain=node.drain_strategy is not None,
        scheduling_eligibility=node.scheduling_eligibility,
        status=node.status,
        status_description=node.status_description,
        drivers=node.drivers,
        last_drain=node.last_drain,
        create_index=node.create_index,
        modify_index=node.modify_index,
        host_volumes=node.host_volumes,
        **shown,
    )
