"""Deployments: status, health, promotion, stability."""

from __future__ import annotations

import pytest
from fsm.fsm_samples import SECOND, Machine, alloc, deployment, evaluation, job, plan

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.fsm.commands import (
    AllocClientUpdate,
    DeploymentAllocHealth,
    DeploymentDelete,
    DeploymentPromote,
    DeploymentUpdate,
    JobDeregister,
    JobRegister,
    PlanResults,
)
from nomadpy.models import gotime
from nomadpy.models.allocation import AllocDeploymentStatus
from nomadpy.models.deployment import Deployment, DeploymentState

CANARY = AllocDeploymentStatus(canary=True)


def stored(m: Machine) -> Deployment:
    found = m.state.deployment("d1")
    assert found is not None
    return found


def group(m: Machine) -> DeploymentState:
    groups = stored(m).task_groups
    assert groups is not None
    return groups["group"]


def deploying(**state: object) -> Machine:
    m = Machine()
    m.run(JobRegister(job=job()))
    more = {"desired_total": 2, "progress_deadline": 40 * SECOND, **state}
    status = CANARY if state.get("desired_canaries") else None
    placements = [alloc(i, deployment_id="d1", deployment_status=status) for i in ("a1", "a2")]
    m.run(
        PlanResults(
            plans=[
                plan(
                    *placements,
                    deployment=deployment(task_groups={"group": DeploymentState(**more)}),
                )
            ]
        )
    )
    return m


def test_success_marks_the_version_of_the_job_stable() -> None:
    m = deploying()
    m.run(
        DeploymentUpdate(
            deployment_id="d1", status="successful", description="done", evaluation=evaluation("e2")
        )
    )
    assert (stored(m).status, stored(m).status_description, stored(m).modify_index) == (
        "successful",
        "done",
        3,
    )
    assert stored(m).modify_time == m.now_ns
    found = m.state.job("default", "web")
    assert found is not None
    assert found.stable
    assert m.state.eval("e2") is not None


def test_success_of_a_deployment_whose_job_was_purged_is_still_success() -> None:
    m = deploying()
    m.run(JobDeregister(namespace="default", job_id="web", purge=True))
    m.run(DeploymentUpdate(deployment_id="d1", status="successful"))
    assert stored(m).status == "successful"


def test_a_failure_can_bring_the_job_to_roll_back_to() -> None:
    m = deploying()
    m.run(
        DeploymentUpdate(
            deployment_id="d1", status="failed", job=job(count=9), evaluation=evaluation("e2")
        )
    )
    found = m.state.job("default", "web")
    assert found is not None
    assert found.version == 1


def test_an_ended_or_unknown_deployment_cannot_be_changed() -> None:
    m = deploying()
    assert isinstance(
        m.refused(DeploymentUpdate(deployment_id="d9", status="paused")), NotFoundError
    )
    m.run(DeploymentUpdate(deployment_id="d1", status="failed"))
    for command in (
        DeploymentUpdate(deployment_id="d1", status="running", evaluation=evaluation("e9")),
        DeploymentAllocHealth(deployment_id="d1", healthy=["a1"]),
        DeploymentPromote(deployment_id="d1"),
    ):
        error = m.refused(command)
        assert isinstance(error, InvalidRequestError)
        assert (error.message, error.status) == (
            'deployment "d1" has terminal status "failed"',
            500,
        )


def test_pausing_and_resuming_restart_the_progress_deadline() -> None:
    m = deploying()
    m.run(DeploymentUpdate(deployment_id="d1", status="paused", description="Deployment is paused"))
    assert group(m).require_progress_by == gotime.from_ns(m.now_ns + 40 * SECOND)
    m.run(DeploymentUpdate(deployment_id="d1", status="running"))
    resumed = gotime.from_ns(m.now_ns + 40 * SECOND)
    assert group(m).require_progress_by == resumed
    m.run(DeploymentUpdate(deployment_id="d1", status="running", description="still"))
    assert group(m).require_progress_by == resumed


def test_servers_can_say_which_allocations_are_healthy() -> None:
    m = deploying()
    m.run(
        DeploymentAllocHealth(
            deployment_id="d1",
            healthy=["a1"],
            unhealthy=["a2"],
            status="failed",
            description="Failed due to unhealthy allocations",
            evaluation=evaluation("e2"),
        )
    )
    assert (group(m).healthy_allocs, group(m).unhealthy_allocs) == (1, 1)
    assert group(m).require_progress_by == gotime.from_ns(m.now_ns + 40 * SECOND)
    found = m.state.alloc("a1")
    assert found is not None
    assert found.deployment_status == AllocDeploymentStatus(
        healthy=True, timestamp=gotime.from_ns(m.now_ns), modify_index=m.index
    )
    assert stored(m).status == "failed"


def test_health_of_a_strange_allocation_is_refused_and_nothing_is_half_done() -> None:
    m = deploying()
    m.run(PlanResults(plans=[plan(alloc("a3"))]))
    for stranger, text in (
        ("a9", 'unknown alloc "a9"'),
        ("a3", 'alloc "a3" is not part of deployment "d1"'),
    ):
        error = m.refused(DeploymentAllocHealth(deployment_id="d1", healthy=["a1", stranger]))
        assert error.message == text
    assert group(m).healthy_allocs == 0


def test_canaries_are_promoted_when_all_of_them_are_healthy() -> None:
    m = deploying(desired_canaries=2)
    assert group(m).placed_canaries == ["a1", "a2"]
    m.run(DeploymentAllocHealth(deployment_id="d1", healthy=["a1"]))
    error = m.refused(DeploymentPromote(deployment_id="d1"))
    assert error.message == 'Task group "group" has 1/2 healthy allocations'
    m.run(DeploymentAllocHealth(deployment_id="d1", healthy=["a2"]))
    m.run(DeploymentPromote(deployment_id="d1", groups=["group"], evaluation=evaluation("e2")))
    assert group(m).promoted
    assert stored(m).status_description == "Deployment is running"
    found = m.state.alloc("a1")
    assert found is not None
    assert found.deployment_status is not None
    assert (found.deployment_status.canary, found.deployment_status.healthy) == (False, True)
    assert group(m).placed_canaries == ["a1", "a2"]
    assert (group(m).healthy_allocs, group(m).placed_allocs) == (2, 2)


def test_a_canary_that_failed_after_it_was_healthy_does_not_count() -> None:
    m = deploying(desired_canaries=2)
    m.run(DeploymentAllocHealth(deployment_id="d1", healthy=["a1", "a2"]))
    m.run(AllocClientUpdate(allocs=[alloc("a2", client_status="failed")]))
    assert "has 1/2 healthy" in m.refused(DeploymentPromote(deployment_id="d1")).message


@pytest.mark.parametrize("groups", [None, ["group"], ["other"]])
def test_without_canaries_there_is_nothing_to_promote(groups: list[str] | None) -> None:
    m = deploying()
    assert isinstance(
        m.refused(DeploymentPromote(deployment_id="d1", groups=groups)), InvalidRequestError
    )


def test_collected_deployments_are_gone() -> None:
    m = deploying()
    m.run(DeploymentDelete(ids=["d1", "unknown"]))
    assert list(m.state.deployments()) == []
    assert m.state.deployments_by_job("default", "web") == []
