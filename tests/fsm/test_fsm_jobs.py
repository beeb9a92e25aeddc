"""Jobs: versions, indexes, statuses, summaries, tags, texts, scaling."""

from __future__ import annotations

import msgspec
import pytest
from fsm.fsm_samples import START_NS, Machine, alloc, deployment, evaluation, job, plan

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError, ValidationError
from nomadpy.fsm.commands import (
    AllocClientUpdate,
    DeploymentUpdate,
    EvalDelete,
    EvalUpsert,
    JobBatchPurge,
    JobDeregister,
    JobRegister,
    JobScale,
    JobStability,
    JobTag,
    PlanResults,
    ReconcileSummaries,
)
from nomadpy.models.job import (
    Job,
    JobChildrenSummary,
    JobSubmission,
    ParameterizedJobConfig,
    PeriodicConfig,
    TaskGroupSummary,
)
from nomadpy.models.scaling import ScalingEvent


def stored(m: Machine, job_id: str = "web") -> Job:
    found = m.state.job("default", job_id)
    assert found is not None
    return found


def summary_of(m: Machine, group: str = "group", job_id: str = "web") -> TaskGroupSummary:
    summary = m.state.job_summary("default", job_id)
    assert summary is not None
    assert summary.summary is not None
    return summary.summary[group]


def children_of(m: Machine, job_id: str) -> JobChildrenSummary | None:
    summary = m.state.job_summary("default", job_id)
    assert summary is not None
    return summary.children


def test_a_new_job_is_version_0_pending_and_has_all_its_indexes_from_its_entry() -> None:
    m = Machine()
    value = m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    found = stored(m)
    assert (found.version, found.status, found.stable) == (0, "pending", False)
    assert (found.create_index, found.modify_index, found.job_modify_index) == (1, 1, 1)
    assert found.submit_time == m.now_ns
    assert value == {"job_modify_index": 1, "version": 0}
    assert m.state.job_versions("default", "web") == [found]


def test_the_evaluation_of_a_registration_learns_the_job_modify_index() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    found = m.state.eval("e1")
    assert found is not None
    assert (found.job_modify_index, found.create_index, found.modify_index) == (1, 1, 1)
    assert found.create_time == found.modify_time == m.now_ns
    m.run(JobRegister(job=job(), evaluation=evaluation("e2")))
    again = m.state.eval("e2")
    assert again is not None
    assert again.job_modify_index == 1


def test_the_same_content_again_moves_only_the_modify_index() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    first = stored(m)
    value = m.run(JobRegister(job=job(status="dead", version=7, stable=True, modify_index=99)))
    assert stored(m) == msgspec.structs.replace(first, modify_index=2)
    assert value == {"job_modify_index": 1, "version": 0}
    assert len(m.state.job_versions("default", "web")) == 1


def test_other_content_is_a_new_version() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(JobRegister(job=job(count=3)))
    found = stored(m)
    assert (found.version, found.create_index, found.modify_index, found.job_modify_index) == (
        1,
        1,
        2,
        2,
    )
    assert [j.version for j in m.state.job_versions("default", "web")] == [1, 0]


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "Enforcing job modify index 0: job already exists"),
        (9, "Enforcing job modify index 9: job exists with conflicting job modify index: 1"),
    ],
)
def test_an_enforced_index_that_does_not_hold_is_refused(index: int, text: str) -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    error = m.refused(
        JobRegister(job=job(count=3), evaluation=evaluation("e1"), enforce_index=index)
    )
    assert isinstance(error, ConflictError)
    assert (error.message, error.status) == (text, 500)


def test_an_enforced_index_of_an_absent_job_must_be_0() -> None:
    m = Machine()
    error = m.refused(JobRegister(job=job(), enforce_index=4))
    assert error.message == "Enforcing job modify index 4: job does not exist"
    m.run(JobRegister(job=job(), enforce_index=0))
    m.run(JobRegister(job=job(count=5), enforce_index=stored(m).job_modify_index))
    assert stored(m).version == 1


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"namespace": "zz"}, 'job "web" is in nonexistent namespace "zz"'),
        ({"node_pool": "zz"}, 'job "web" is in nonexistent node pool "zz"'),
    ],
)
def test_a_job_in_a_place_that_does_not_exist_is_refused(where: dict[str, str], text: str) -> None:
    error = Machine().refused(JobRegister(job=job(**where)))
    assert isinstance(error, ValidationError)
    assert error.message == text


def test_stopping_is_a_new_version_and_the_row_stays() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), evaluation=evaluation("e1", status="complete")))
    value = m.run(JobDeregister(namespace="default", job_id="web", evaluation=evaluation("e2")))
    found = stored(m)
    assert (found.stop, found.version, found.job_modify_index) == (True, 1, 2)
    assert value == {"job_modify_index": 2, "version": 1}
    assert found.status == "pending"
    m.run(EvalUpsert(evals=[evaluation("e2", status="complete")]))
    assert stored(m).status == "dead"


def test_registering_a_stopped_job_again_starts_it() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(JobDeregister(namespace="default", job_id="web"))
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    assert (stored(m).stop, stored(m).version, stored(m).status) == (False, 2, "pending")


def test_purging_removes_all_that_is_known_of_the_job_but_its_allocations() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), submission=JobSubmission(source="x", format="hcl2")))
    m.run(PlanResults(plans=[plan(alloc("a1"))]))
    m.run(
        JobScale(namespace="default", job_id="web", group="group", event=ScalingEvent(message="m"))
    )
    m.run(JobDeregister(namespace="default", job_id="web", purge=True, evaluation=evaluation("e2")))
    state = m.state
    assert state.job("default", "web") is None
    assert state.job_versions("default", "web") == []
    assert state.job_summary("default", "web") is None
    assert state.job_submission("default", "web", 0) is None
    assert state.scaling_events("default", "web") == {}
    assert state.alloc("a1") is not None
    evaluation_2 = state.eval("e2")
    assert evaluation_2 is not None
    assert evaluation_2.job_modify_index == m.index
    for table in ("jobs", "job_versions", "job_summaries", "job_submissions", "scaling_events"):
        assert state.table_index(table) == m.index


def test_a_job_that_does_not_exist_cannot_be_stopped_scaled_tagged_or_made_stable() -> None:
    m = Machine()
    for command in (
        JobDeregister(namespace="default", job_id="web", evaluation=evaluation("e1")),
        JobDeregister(namespace="default", job_id="web", purge=True),
        JobScale(namespace="default", job_id="web", group="group", event=ScalingEvent()),
        JobTag(namespace="default", job_id="web", name="x"),
        JobStability(namespace="default", job_id="web", version=0, stable=True),
    ):
        assert isinstance(m.refused(command), NotFoundError)


def test_collected_jobs_are_removed_and_unknown_ones_passed_over() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(JobBatchPurge(jobs=[("default", "web"), ("default", "other")]))
    assert list(m.state.jobs()) == []


def test_six_untagged_versions_are_kept_and_every_tagged_one() -> None:
    m = Machine()
    m.run(JobRegister(job=job(count=100)))
    m.run(JobTag(namespace="default", job_id="web", version=0, name="golden", description="good"))
    for count in range(1, 10):
        m.run(JobRegister(job=job(count=count)))
    assert [j.version for j in m.state.job_versions("default", "web")] == [9, 8, 7, 6, 5, 4, 0]
    m.run(JobTag(namespace="default", job_id="web", name="golden", unset=True))
    assert [j.version for j in m.state.job_versions("default", "web")] == [9, 8, 7, 6, 5, 4]


def test_the_newest_stable_version_outlives_newer_ones_that_are_not() -> None:
    m = Machine()
    m.run(JobRegister(job=job(count=100)))
    m.run(JobStability(namespace="default", job_id="web", version=0, stable=True))
    for count in range(1, 9):
        m.run(JobRegister(job=job(count=count)))
    assert [j.version for j in m.state.job_versions("default", "web")] == [8, 7, 6, 5, 4, 0]


def test_stability_of_the_current_version_is_seen_on_the_job_of_an_old_one_only_there() -> None:
    m = Machine()
    m.run(JobRegister(job=job(count=1)))
    m.run(JobRegister(job=job(count=2)))
    m.run(JobStability(namespace="default", job_id="web", version=0, stable=True))
    assert (stored(m).version, stored(m).stable, stored(m).modify_index) == (1, False, 2)
    old = m.state.job_version("default", "web", 0)
    assert old is not None
    assert (old.stable, old.modify_index) == (True, 3)
    m.run(JobStability(namespace="default", job_id="web", version=1, stable=True))
    assert (stored(m).stable, stored(m).modify_index, stored(m).job_modify_index) == (True, 4, 2)
    error = m.refused(JobStability(namespace="default", job_id="web", version=9, stable=True))
    assert error.message == 'job "web" in namespace "default" at version 9 not found'


def test_a_tag_names_one_version_and_is_told_back() -> None:
    m = Machine()
    m.run(JobRegister(job=job(count=1)))
    m.run(JobRegister(job=job(count=2)))
    value = m.run(
        JobTag(namespace="default", job_id="web", version=0, name="golden", description="good")
    )
    assert value == {"name": "golden", "description": "good", "tagged_time": m.now_ns}
    error = m.refused(JobTag(namespace="default", job_id="web", name="golden"))
    assert isinstance(error, InvalidRequestError)
    assert error.message == 'tag "golden" already exists on a different version of job "web"'
    m.run(JobTag(namespace="default", job_id="web", name="latest"))
    assert stored(m).version_tag is not None
    m.run(JobRegister(job=job(count=3)))
    assert stored(m).version_tag is None
    assert isinstance(
        m.refused(JobTag(namespace="default", job_id="web", name="x", unset=True)), NotFoundError
    )
    assert isinstance(
        m.refused(JobTag(namespace="default", job_id="web", name="x", version=8)), NotFoundError
    )


def test_texts_are_kept_of_six_versions_and_carried_over_by_a_stop() -> None:
    m = Machine()
    for count in range(1, 9):
        m.run(
            JobRegister(
                job=job(count=count), submission=JobSubmission(source=str(count), format="hcl2")
            )
        )
    kept = [m.state.job_submission("default", "web", version) for version in range(8)]
    assert [None if s is None else s.source for s in kept] == [
        None,
        None,
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
    ]
    m.run(JobDeregister(namespace="default", job_id="web"))
    last = m.state.job_submission("default", "web", 8)
    assert last is not None
    assert last.source == "8"
    assert m.state.job_submission("default", "web", 2) is None


def test_a_registration_without_a_text_does_not_pretend_to_have_the_old_one() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), submission=JobSubmission(source="a", format="hcl2")))
    m.run(JobRegister(job=job(count=9)))
    assert m.state.job_submission("default", "web", 1) is None


def test_scaling_registers_the_job_and_keeps_twenty_events_newest_first() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    for count in range(3, 25):
        m.run(
            JobScale(
                namespace="default",
                job_id="web",
                group="group",
                job=job(count=count),
                event=ScalingEvent(count=count, previous_count=count - 1),
                evaluation=evaluation(f"e{count}"),
            )
        )
    events = m.state.scaling_events("default", "web")["group"]
    assert len(events) == 20
    assert (events[0].count, events[0].create_index, events[0].eval_id) == (24, m.index, "e24")
    assert events[0].time == m.now_ns
    assert stored(m).version == 22


def test_a_scaling_event_alone_changes_no_job() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    before = stored(m)
    m.run(
        JobScale(
            namespace="default", job_id="web", group="group", event=ScalingEvent(error=True, time=7)
        )
    )
    assert stored(m) is before
    assert m.state.scaling_events("default", "web")["group"][0].time == 7
    error = m.refused(
        JobScale(namespace="default", job_id="web", group="nope", event=ScalingEvent())
    )
    assert error.message == 'task group "nope" specified for scaling does not exist in job'
    assert error.status == 400


# -- status ---------------------------------------------------------------------------------------------


def test_a_service_job_goes_from_pending_to_running_to_dead() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    assert stored(m).status == "pending"
    m.run(PlanResults(plans=[plan(alloc("a1"), evaluations=[evaluation("e1", status="complete")])]))
    assert (stored(m).status, stored(m).modify_index, stored(m).job_modify_index) == (
        "running",
        2,
        1,
    )
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running")]))
    assert stored(m).modify_index == 2
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="complete")]))
    assert (stored(m).status, stored(m).modify_index) == ("dead", 4)


def test_a_blocked_evaluation_keeps_a_job_pending_and_a_deployment_keeps_it_running() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    m.run(
        EvalUpsert(
            evals=[
                evaluation("e1", status="complete", failed_tg_allocs={}, blocked_eval="e2"),
                evaluation("e2", status="blocked"),
            ]
        )
    )
    assert stored(m).status == "pending"
    m.run(PlanResults(plans=[plan(deployment=deployment())]))
    assert stored(m).status == "running"
    m.run(DeploymentUpdate(deployment_id="d1", status="cancelled", description="x"))
    assert stored(m).status == "pending"
    m.run(EvalUpsert(evals=[evaluation("e2", status="canceled")]))
    assert stored(m).status == "dead"


@pytest.mark.parametrize(
    "more",
    [
        {"type": "system"},
        {"type": "batch", "periodic": PeriodicConfig(enabled=True)},
        {"type": "batch", "parameterized_job": ParameterizedJobConfig()},
    ],
)
def test_jobs_that_wait_for_work_run_until_they_are_stopped(more: dict[str, object]) -> None:
    m = Machine()
    m.run(JobRegister(job=job(**more)))
    assert stored(m).status == "running"
    m.run(JobDeregister(namespace="default", job_id="web"))
    assert stored(m).status == "dead"


def test_a_dispatched_child_has_the_status_of_its_work() -> None:
    m = Machine()
    m.run(
        JobRegister(
            job=job(type="batch", dispatched=True, parameterized_job=ParameterizedJobConfig())
        )
    )
    assert stored(m).status == "pending"


def test_a_finished_job_stays_dead_when_its_last_evaluation_is_collected() -> None:
    m = Machine()
    m.run(JobRegister(job=job(type="batch"), evaluation=evaluation("e1")))
    m.run(PlanResults(plans=[plan(alloc("a1"), evaluations=[evaluation("e1", status="complete")])]))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="complete")]))
    m.run(EvalDelete(eval_ids=["e1"], alloc_ids=["a1"]))
    assert stored(m).status == "dead"
    m.run(JobStability(namespace="default", job_id="web", version=0, stable=True))
    assert stored(m).status == "dead"


# -- summaries ------------------------------------------------------------------------------------------


def test_a_summary_follows_the_life_of_an_allocation() -> None:
    m = Machine()
    m.run(JobRegister(job=job(groups=("group", "other"))))
    assert summary_of(m) == summary_of(m, "other") == TaskGroupSummary()
    m.run(EvalUpsert(evals=[evaluation("e1", status="blocked", queued_allocations={"group": 3})]))
    assert summary_of(m) == TaskGroupSummary(queued=3)
    m.run(PlanResults(plans=[plan(alloc("a1"))]))
    assert summary_of(m) == TaskGroupSummary(queued=2, starting=1)
    m.run(
        PlanResults(
            plans=[
                plan(alloc("a2"), evaluations=[evaluation("e1", queued_allocations={"group": 0})])
            ]
        )
    )
    assert summary_of(m) == TaskGroupSummary(starting=2)
    for status, expected in (
        ("running", TaskGroupSummary(starting=1, running=1)),
        ("unknown", TaskGroupSummary(starting=1, unknown=1)),
        ("running", TaskGroupSummary(starting=1, running=1)),
        ("failed", TaskGroupSummary(starting=1, failed=1)),
        ("complete", TaskGroupSummary(starting=1, failed=1)),
    ):
        m.run(AllocClientUpdate(allocs=[alloc("a1", client_status=status)]))
        assert summary_of(m) == expected
    assert summary_of(m, "other") == TaskGroupSummary()


def test_a_collected_allocation_stays_counted_as_what_it_ended() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(PlanResults(plans=[plan(alloc("a1"), alloc("a2"))]))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="complete")]))
    m.run(EvalDelete(alloc_ids=["a1", "a2"]))
    assert summary_of(m) == TaskGroupSummary(complete=1)


def test_a_summary_has_the_jobs_create_index_and_moves_only_when_it_changes() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(JobRegister(job=job(meta={"a": "b"})))
    summary = m.state.job_summary("default", "web")
    assert summary is not None
    assert (summary.create_index, summary.modify_index) == (1, 1)
    assert m.state.table_index("job_summaries") == 1


def test_a_job_registered_anew_after_a_purge_does_not_count_its_former_allocations() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(PlanResults(plans=[plan(alloc("a1"))]))
    m.run(JobDeregister(namespace="default", job_id="web", purge=True))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running")]))
    m.run(JobRegister(job=job()))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="failed")]))
    assert summary_of(m) == TaskGroupSummary()


def test_a_parent_counts_its_children_by_status() -> None:
    m = Machine()
    m.run(JobRegister(job=job("etl", type="batch", parameterized_job=ParameterizedJobConfig())))
    for number in (1, 2):
        child = job(f"etl/dispatch-{number}", type="batch", parent_id="etl", dispatched=True)
        m.run(JobRegister(job=child, evaluation=evaluation(f"e{number}", child.id)))
    assert children_of(m, "etl") == JobChildrenSummary(pending=2)
    m.run(
        PlanResults(
            plans=[
                plan(
                    alloc("a1", "etl/dispatch-1"),
                    job_id="etl/dispatch-1",
                    evaluations=[evaluation("e1", "etl/dispatch-1", status="complete")],
                )
            ]
        )
    )
    assert children_of(m, "etl") == JobChildrenSummary(pending=1, running=1)
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="complete")]))
    assert children_of(m, "etl") == JobChildrenSummary(pending=1, dead=1)
    m.run(JobBatchPurge(jobs=[("default", "etl/dispatch-1"), ("default", "etl/dispatch-2")]))
    assert children_of(m, "etl") == JobChildrenSummary(dead=2)
    assert [j.id for j in m.state.jobs_by_parent("default", "etl")] == []


def test_reconciling_counts_what_is_there_and_keeps_what_is_queued() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(
        PlanResults(
            plans=[
                plan(alloc("a1"), evaluations=[evaluation("e1", queued_allocations={"group": 1})])
            ]
        )
    )
    index = m.state.table_index("job_summaries")
    m.run(ReconcileSummaries())
    assert summary_of(m) == TaskGroupSummary(starting=1, queued=1)
    assert m.state.table_index("job_summaries") == index
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="complete")]))
    m.run(EvalDelete(alloc_ids=["a1"]))
    m.run(ReconcileSummaries())
    assert summary_of(m) == TaskGroupSummary(queued=1)


def test_time_comes_from_the_entry_alone() -> None:
    m = Machine()
    m.run(JobRegister(job=job(submit_time=5)))
    assert stored(m).submit_time == START_NS + 1_000_000_000
