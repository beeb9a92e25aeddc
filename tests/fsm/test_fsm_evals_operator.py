"""Evaluations, and what belongs to the cluster as a whole."""

from __future__ import annotations

from fsm.fsm_samples import Machine, evaluation, job

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.fsm.commands import (
    AutopilotConfigSet,
    ClusterMetadataSet,
    EvalDelete,
    EvalUpsert,
    JobRegister,
    RootKeyDelete,
    RootKeyUpsert,
    SchedulerConfigSet,
)
from nomadpy.models.allocation import AllocationMetric
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration
from nomadpy.models.root_key import RootKey


def statuses(m: Machine) -> dict[str, str]:
    return {e.id: e.status for e in m.state.evals()}


def test_an_evaluation_keeps_its_beginning_when_it_is_updated() -> None:
    m = Machine()
    m.run(EvalUpsert(evals=[evaluation("e1", create_time=5)]))
    m.run(EvalUpsert(evals=[evaluation("e1", status="complete", create_time=9, create_index=9)]))
    found = m.state.eval("e1")
    assert found is not None
    assert (found.create_index, found.modify_index, found.create_time) == (1, 2, 5)
    assert found.modify_time == m.now_ns
    assert [e.id for e in m.state.evals_by_prefix("e")] == ["e1"]
    assert [e.id for e in m.state.evals_by_job("default", "web")] == ["e1"]


def test_a_new_blocked_evaluation_cancels_the_older_ones_of_its_job() -> None:
    m = Machine()
    m.run(
        EvalUpsert(
            evals=[evaluation("e1", status="blocked"), evaluation("x1", "db", status="blocked")]
        )
    )
    m.run(EvalUpsert(evals=[evaluation("e2", status="blocked")]))
    assert statuses(m) == {"e1": "canceled", "e2": "blocked", "x1": "blocked"}
    found = m.state.eval("e1")
    assert found is not None
    assert found.status_description == 'existing blocked evaluation exists for job "web"'
    assert found.modify_index == 2


def test_an_evaluation_that_placed_everything_cancels_the_blocked_ones() -> None:
    m = Machine()
    m.run(EvalUpsert(evals=[evaluation("e1", status="blocked")]))
    m.run(
        EvalUpsert(
            evals=[
                evaluation("e2", status="complete", failed_tg_allocs={"group": AllocationMetric()})
            ]
        )
    )
    assert statuses(m)["e1"] == "blocked"
    m.run(EvalUpsert(evals=[evaluation("e3", status="complete")]))
    assert statuses(m)["e1"] == "canceled"
    found = m.state.eval("e1")
    assert found is not None
    assert found.status_description == 'evaluation "e3" successful'


def test_blocked_evaluations_of_single_nodes_do_not_cancel_each_other() -> None:
    m = Machine()
    blocked = [
        evaluation(f"e{n}", type="system", status="blocked", node_id=f"n{n}") for n in (1, 2)
    ]
    m.run(EvalUpsert(evals=blocked))
    m.run(EvalUpsert(evals=[evaluation("e3", type="system", status="complete", node_id="n2")]))
    assert statuses(m) == {"e1": "blocked", "e2": "canceled", "e3": "complete"}
    m.run(EvalUpsert(evals=[evaluation("e4", type="system", status="complete")]))
    assert statuses(m)["e1"] == "canceled"


def test_collected_evaluations_are_gone_from_every_index() -> None:
    m = Machine()
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    m.run(EvalDelete(eval_ids=["e1"]))
    assert m.state.evals_by_job("default", "web") == []
    found = m.state.job("default", "web")
    assert found is not None
    assert found.status == "dead"


def test_scheduler_settings_are_set_with_a_check_or_without() -> None:
    m = Machine()
    assert (
        m.run(SchedulerConfigSet(config=SchedulerConfiguration(scheduler_algorithm="spread")))
        is True
    )
    found = m.state.scheduler_config()
    assert (found.scheduler_algorithm, found.create_index, found.modify_index) == ("spread", 1, 1)
    assert m.run(SchedulerConfigSet(config=SchedulerConfiguration(), cas=7)) is False
    assert m.state.scheduler_config() is found
    assert m.state.table_index("scheduler_config") == 1
    assert m.run(SchedulerConfigSet(config=SchedulerConfiguration(), cas=1)) is True
    assert (m.state.scheduler_config().create_index, m.state.scheduler_config().modify_index) == (
        1,
        3,
    )


def test_autopilot_settings_are_set_with_a_check_or_without() -> None:
    m = Machine()
    assert m.run(AutopilotConfigSet(config=AutopilotConfiguration(min_quorum=3), cas=0)) is True
    assert m.run(AutopilotConfigSet(config=AutopilotConfiguration(), cas=0)) is False
    assert m.state.autopilot_config().min_quorum == 3
    assert m.state.autopilot_config().modify_index == 1


def test_one_root_key_is_active_and_the_others_still_verify() -> None:
    m = Machine()
    m.run(RootKeyUpsert(key=RootKey(key_id="k1", signing_key_pem=b"secret")))
    m.run(RootKeyUpsert(key=RootKey(key_id="k2", create_time=5)))
    active = m.state.active_root_key()
    assert active is not None
    assert (active.key_id, active.create_index, active.create_time) == ("k2", 2, 5)
    old = m.state.root_key("k1")
    assert old is not None
    assert (old.state, old.create_index, old.modify_index) == ("inactive", 1, 2)
    assert old.signing_key_pem == b"secret"
    assert isinstance(m.refused(RootKeyDelete(key_id="k2")), InvalidRequestError)
    m.run(RootKeyDelete(key_id="k1"))
    assert [k.key_id for k in m.state.root_keys()] == ["k2"]
    assert isinstance(m.refused(RootKeyDelete(key_id="k1")), NotFoundError)


def test_the_cluster_gets_its_id_once() -> None:
    m = Machine()
    assert m.run(ClusterMetadataSet(cluster_id="first")) == "first"
    assert m.run(ClusterMetadataSet(cluster_id="second")) == "first"
    metadata = m.state.cluster_metadata()
    assert metadata is not None
    assert (metadata.cluster_id, m.state.table_index("cluster")) == ("first", 1)
