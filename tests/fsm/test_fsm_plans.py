"""Plans and what clients report of their allocations."""

from __future__ import annotations

import msgspec
import pytest
from fsm.fsm_samples import SECOND, Machine, alloc, deployment, evaluation, job, node, plan

from nomadpy.fsm.commands import (
    AllocClientUpdate,
    AllocTransition,
    DeploymentUpdate,
    EvalDelete,
    JobDeregister,
    JobRegister,
    JobStability,
    NodeRegister,
    PlanResults,
)
from nomadpy.models import gotime
from nomadpy.models.allocation import (
    Allocation,
    AllocDeploymentStatus,
    AllocNetworkStatus,
    DesiredTransition,
    TaskState,
)
from nomadpy.models.plan import AllocStop, DeploymentStatusUpdate


def stored(m: Machine, alloc_id: str = "a1") -> Allocation:
    found = m.state.alloc(alloc_id)
    assert found is not None
    return found


def placed(*allocs: Allocation) -> Machine:
    """A machine with node n1, job web (index 2) and these placements (index 3)."""
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(JobRegister(job=job()))
    m.run(PlanResults(plans=[plan(*(allocs or (alloc("a1"),)))]))
    return m


def test_a_placement_gets_its_indexes_and_times_and_the_shared_job() -> None:
    m = placed(alloc("a1", client_status="", desired_status=""), alloc("a2"))
    found = stored(m)
    assert (found.create_index, found.modify_index, found.alloc_modify_index) == (3, 3, 3)
    assert found.create_time == found.modify_time == m.now_ns
    assert (found.desired_status, found.client_status) == ("run", "pending")
    assert found.job is m.state.job_version("default", "web", 0)
    assert stored(m, "a2").job is found.job


def test_allocations_are_found_by_job_node_eval_and_deployment() -> None:
    m = placed(alloc("a2", node_id="n2"), alloc("a1", deployment_id="d1"))
    state = m.state
    assert [a.id for a in state.allocs_by_job("default", "web")] == ["a1", "a2"]
    assert [a.id for a in state.allocs_by_node("n2")] == ["a2"]
    assert [a.id for a in state.allocs_by_eval("e1")] == ["a1", "a2"]
    assert [a.id for a in state.allocs_by_deployment("d1")] == ["a1"]
    assert state.allocs_by_job("other", "web") == []


def test_a_replacement_is_linked_from_what_it_replaces() -> None:
    m = placed()
    m.run(
        PlanResults(
            plans=[
                plan(
                    alloc("a2", previous_allocation="a1"),
                    stops=[AllocStop(alloc_id="a1", node_id="n1")],
                )
            ]
        )
    )
    assert stored(m).next_allocation == "a2"
    assert stored(m).desired_status == "stop"
    m.run(PlanResults(plans=[plan(alloc("a3", previous_allocation="collected"))]))


def test_a_link_alone_is_no_change_for_the_client() -> None:
    m = placed()
    m.run(PlanResults(plans=[plan(alloc("a2", previous_allocation="a1"))]))
    assert (stored(m).modify_index, stored(m).alloc_modify_index) == (4, 3)


def test_a_stop_says_why_and_moves_what_the_client_watches() -> None:
    m = placed()
    stop = AllocStop(
        alloc_id="a1", node_id="n1", description="alloc not needed", followup_eval_id="e9"
    )
    m.run(PlanResults(plans=[plan(stops=[stop, AllocStop(alloc_id="collected", node_id="n1")])]))
    found = stored(m)
    assert (found.desired_status, found.desired_description) == ("stop", "alloc not needed")
    assert (found.client_status, found.followup_eval_id) == ("pending", "e9")
    assert (found.modify_index, found.alloc_modify_index, found.create_index) == (4, 4, 3)
    assert found.modify_time == m.now_ns


def test_a_lost_mark_does_not_overwrite_how_an_allocation_ended() -> None:
    m = placed(alloc("a1"), alloc("a2"))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="complete")]))
    lost = [AllocStop(alloc_id=i, node_id="n1", client_status="lost") for i in ("a1", "a2")]
    m.run(PlanResults(plans=[plan(stops=lost)]))
    assert (stored(m).client_status, stored(m, "a2").client_status) == ("complete", "lost")


def test_an_allocation_on_a_disconnected_node_is_unknown_and_can_run_again() -> None:
    m = placed()
    unknown = AllocStop(alloc_id="a1", node_id="n1", desired_status="run", client_status="unknown")
    m.run(PlanResults(plans=[plan(stops=[unknown])]))
    assert (stored(m).desired_status, stored(m).client_status) == ("run", "unknown")
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running")]))
    assert stored(m).client_status == "running"


def test_an_update_in_place_keeps_what_the_client_told() -> None:
    m = placed()
    states = {"task": TaskState(state="running")}
    network = AllocNetworkStatus(address="10.0.0.1")
    m.run(
        AllocClientUpdate(
            allocs=[
                alloc(
                    "a1",
                    client_status="running",
                    client_description="up",
                    task_states=states,
                    network_status=network,
                )
            ]
        )
    )
    created = stored(m)
    m.run(JobRegister(job=job(count=3)))
    m.run(AllocTransition(transitions={"a1": DesiredTransition(migrate=True)}))
    m.run(PlanResults(plans=[plan(alloc("a1", eval_id="e2", client_status="pending"), version=1)]))
    found = stored(m)
    assert (found.client_status, found.client_description) == ("running", "up")
    assert (found.task_states, found.network_status) == (states, network)
    assert found.desired_transition == DesiredTransition(migrate=True)
    assert (found.create_index, found.create_time) == (created.create_index, created.create_time)
    assert (found.eval_id, found.alloc_modify_index) == ("e2", m.index)
    assert found.job is m.state.job_version("default", "web", 1)


def test_a_placement_of_an_older_version_shares_the_stored_job() -> None:
    m = placed()
    m.run(JobRegister(job=job(count=3)))
    old = m.state.job_version("default", "web", 0)
    assert old is not None
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=type(old))
    m.run(PlanResults(plans=[plan(alloc("a2", job=copy), version=1)]))
    assert stored(m, "a2").job is old


def test_a_placement_of_a_version_that_is_kept_no_more_shares_the_job_of_what_it_replaces() -> None:
    m = placed()
    for count in range(3, 12):
        m.run(JobRegister(job=job(count=count)))
    assert m.state.job_version("default", "web", 0) is None
    kept = stored(m).job
    assert kept is not None
    copy = msgspec.structs.replace(kept)
    m.run(PlanResults(plans=[plan(alloc("a2", job=copy, previous_allocation="a1"), version=9)]))
    assert stored(m, "a2").job is kept


def test_a_later_change_of_the_job_does_not_reach_into_its_allocations() -> None:
    m = placed()
    before = stored(m)
    m.run(JobStability(namespace="default", job_id="web", version=0, stable=True))
    assert stored(m) is before


def test_a_plan_whose_job_was_purged_is_left_out_whole_and_the_others_hold() -> None:
    m = placed()
    m.run(JobRegister(job=job("db")))
    m.run(JobDeregister(namespace="default", job_id="web", purge=True))
    value = m.run(
        PlanResults(
            plans=[
                plan(
                    alloc("a2"),
                    stops=[AllocStop(alloc_id="a1", node_id="n1")],
                    evaluations=[evaluation("e1", status="complete")],
                ),
                plan(alloc("a3", "db"), job_id="db"),
                plan(alloc("a4"), job=None),
            ]
        )
    )
    assert value == ['job "web" has no version 0', "", 'allocation "a4" belongs to no job']
    assert m.state.alloc("a2") is None
    assert stored(m).desired_status == "run"
    assert m.state.eval("e1") is None
    assert m.state.alloc("a3") is not None


def test_a_plan_that_only_stops_needs_no_job() -> None:
    m = placed()
    m.run(JobDeregister(namespace="default", job_id="web", purge=True))
    stop = AllocStop(alloc_id="a1", node_id="n1")
    assert m.run(PlanResults(plans=[plan(stops=[stop]), plan(stops=[stop], job=None)])) == ["", ""]
    assert stored(m).desired_status == "stop"


def test_an_evicted_allocation_names_who_took_its_place() -> None:
    m = placed()
    m.run(JobRegister(job=job("vip")))
    m.run(
        PlanResults(
            plans=[
                plan(
                    alloc("a2", "vip", preempted_allocations=["a1"]),
                    job_id="vip",
                    stops=[AllocStop(alloc_id="a1", node_id="n1", desired_status="evict")],
                )
            ]
        )
    )
    assert (stored(m).desired_status, stored(m).preempted_by_allocation) == ("evict", "a2")


def test_the_evaluations_of_a_plan_are_written_with_it() -> None:
    m = placed()
    m.run(
        PlanResults(
            plans=[
                plan(
                    evaluations=[
                        evaluation("e1", status="complete"),
                        evaluation("e2", status="blocked", previous_eval="e1"),
                    ]
                )
            ]
        )
    )
    assert [(e.id, e.status) for e in m.state.evals()] == [("e1", "complete"), ("e2", "blocked")]


def test_a_plan_ends_older_deployments_only_as_it_says_itself() -> None:
    m = placed()
    m.run(PlanResults(plans=[plan(deployment=deployment("d1"))]))
    m.run(
        PlanResults(
            plans=[
                plan(
                    deployment=deployment("d2"),
                    deployment_updates=[
                        DeploymentStatusUpdate(
                            deployment_id="d1",
                            status="cancelled",
                            description="Cancelled due to newer version of job",
                        ),
                        DeploymentStatusUpdate(
                            deployment_id="d0", status="cancelled", description="collected"
                        ),
                    ],
                )
            ]
        )
    )
    assert [(d.id, d.status) for d in m.state.deployments_by_job("default", "web")] == [
        ("d2", "running"),
        ("d1", "cancelled"),
    ]
    latest = m.state.latest_deployment("default", "web")
    assert latest is not None
    assert latest.id == "d2"


# -- what clients report ----------------------------------------------------------------------------------


def test_a_report_changes_only_what_the_client_owns() -> None:
    m = placed()
    before = stored(m)
    states = {"task": TaskState(state="running")}
    forged = alloc(
        "a1",
        client_status="running",
        task_states=states,
        desired_status="stop",
        node_id="n9",
        name="other",
        job_id="other",
        eval_id="e9",
        deployment_id="d9",
        create_index=99,
    )
    m.run(
        AllocClientUpdate(
            allocs=[forged, alloc("collected", client_status="running")],
            evaluations=[evaluation("e2")],
        )
    )
    assert stored(m) == msgspec.structs.replace(
        before, client_status="running", task_states=states, modify_index=4, modify_time=m.now_ns
    )
    assert m.state.eval("e2") is not None
    assert m.state.alloc("collected") is None


@pytest.mark.parametrize("ended", ["complete", "failed", "lost"])
def test_how_an_allocation_ended_is_final(ended: str) -> None:
    m = placed()
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status=ended, client_description="ended")]))
    states = {"task": TaskState(state="dead")}
    m.run(
        AllocClientUpdate(
            allocs=[
                alloc("a1", client_status="running", client_description="no", task_states=states)
            ]
        )
    )
    found = stored(m)
    assert (found.client_status, found.client_description) == (ended, "ended")
    assert found.task_states == states


def test_a_status_that_does_not_exist_and_states_that_are_missing_are_not_taken_over() -> None:
    m = placed()
    states = {"task": TaskState(state="running")}
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running", task_states=states)]))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="bogus")]))
    assert (stored(m).client_status, stored(m).task_states) == ("running", states)


def test_reported_health_counts_in_the_deployment_and_moves_its_deadline() -> None:
    m = placed()
    m.run(
        PlanResults(
            plans=[
                plan(
                    alloc("a2", deployment_id="d1"),
                    alloc("a3", deployment_id="d1"),
                    deployment=deployment(),
                )
            ]
        )
    )

    def group() -> tuple[int, int, int, str]:
        found = m.state.deployment("d1")
        assert found is not None
        assert found.task_groups is not None
        state = found.task_groups["group"]
        return (
            state.placed_allocs,
            state.healthy_allocs,
            state.unhealthy_allocs,
            state.require_progress_by,
        )

    first = gotime.from_ns(m.now_ns + 40 * SECOND)
    assert group() == (2, 0, 0, first)
    undecided = alloc("a2", client_status="running", deployment_status=AllocDeploymentStatus())
    m.run(AllocClientUpdate(allocs=[undecided]))
    assert group() == (2, 0, 0, first)
    healthy = AllocDeploymentStatus(healthy=True, timestamp="2026-11-23T00:21:33.848282077Z")
    m.run(
        AllocClientUpdate(allocs=[alloc("a2", client_status="running", deployment_status=healthy)])
    )
    second = gotime.from_ns(m.now_ns + 40 * SECOND)
    assert group() == (2, 1, 0, second)
    told = stored(m, "a2").deployment_status
    assert told == msgspec.structs.replace(healthy, modify_index=m.index)
    m.run(
        AllocClientUpdate(allocs=[alloc("a2", client_status="running", deployment_status=healthy)])
    )
    assert group() == (2, 1, 0, second)
    unhealthy = AllocDeploymentStatus(healthy=False)
    m.run(
        AllocClientUpdate(
            allocs=[
                alloc(i, client_status="failed", deployment_status=unhealthy) for i in ("a2", "a3")
            ]
        )
    )
    assert group() == (2, 0, 2, second)


def test_a_canary_stays_a_canary_when_its_health_is_reported() -> None:
    m = placed()
    canary = alloc("a2", deployment_id="d1", deployment_status=AllocDeploymentStatus(canary=True))
    m.run(PlanResults(plans=[plan(canary, deployment=deployment())]))
    m.run(
        AllocClientUpdate(
            allocs=[alloc("a2", deployment_status=AllocDeploymentStatus(healthy=True))]
        )
    )
    status = stored(m, "a2").deployment_status
    assert status is not None
    assert (status.canary, status.healthy) == (True, True)
    assert status.timestamp == gotime.from_ns(m.now_ns)
    found = m.state.deployment("d1")
    assert found is not None
    assert found.task_groups is not None
    assert found.task_groups["group"].placed_canaries == ["a2"]


def test_health_of_an_allocation_without_a_deployment_is_not_kept() -> None:
    m = placed()
    m.run(
        AllocClientUpdate(
            allocs=[alloc("a1", deployment_status=AllocDeploymentStatus(healthy=True))]
        )
    )
    assert stored(m).deployment_status is None


def test_a_deployment_that_a_plan_updates_keeps_what_was_counted_meanwhile() -> None:
    m = placed()
    m.run(PlanResults(plans=[plan(alloc("a2", deployment_id="d1"), deployment=deployment())]))
    m.run(
        AllocClientUpdate(
            allocs=[alloc("a2", deployment_status=AllocDeploymentStatus(healthy=True))]
        )
    )
    before = m.state.deployment("d1")
    m.run(PlanResults(plans=[plan(deployment=deployment())]))
    after = m.state.deployment("d1")
    assert before is not None
    assert after is not None
    assert after.task_groups == before.task_groups
    assert (after.create_index, after.modify_index) == (before.create_index, m.index)
    m.run(DeploymentUpdate(deployment_id="d1", status="failed", description="over"))
    m.run(PlanResults(plans=[plan(deployment=deployment())]))
    ended = m.state.deployment("d1")
    assert ended is not None
    assert (ended.status, ended.status_description) == ("failed", "over")


def test_an_allocation_that_joins_another_deployment_counts_there_as_placed() -> None:
    m = placed()
    m.run(PlanResults(plans=[plan(alloc("a2", deployment_id="d1"), deployment=deployment("d1"))]))
    m.run(
        AllocClientUpdate(
            allocs=[alloc("a2", deployment_status=AllocDeploymentStatus(healthy=True))]
        )
    )
    m.run(PlanResults(plans=[plan(alloc("a2", deployment_id="d2"), deployment=deployment("d2"))]))
    found = m.state.deployment("d2")
    assert found is not None
    assert found.task_groups is not None
    state = found.task_groups["group"]
    assert (state.placed_allocs, state.healthy_allocs) == (1, 0)
    assert stored(m, "a2").deployment_status is None


def test_transitions_are_merged_and_reach_the_client() -> None:
    m = placed()
    m.run(
        AllocTransition(
            transitions={"a1": DesiredTransition(migrate=True), "collected": DesiredTransition()},
            evaluations=[evaluation("e2")],
        )
    )
    m.run(AllocTransition(transitions={"a1": DesiredTransition(reschedule=False)}))
    found = stored(m)
    assert found.desired_transition == DesiredTransition(migrate=True, reschedule=False)
    assert (found.modify_index, found.alloc_modify_index) == (5, 5)
    assert m.state.eval("e2") is not None


def test_collected_allocations_are_gone_from_every_index() -> None:
    m = placed(alloc("a1", deployment_id="d1"))
    m.run(EvalDelete(alloc_ids=["a1"]))
    state = m.state
    assert list(state.allocs()) == []
    assert state.allocs_by_job("default", "web") == []
    assert state.allocs_by_node("n1") == []
    assert state.allocs_by_eval("e1") == []
    assert state.allocs_by_deployment("d1") == []
