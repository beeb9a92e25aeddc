"""Random sequences of commands, many of them senseless: what holds after every one of them.

Few names are used, so that commands meet each other's rows. A model counts what the state forgets when it collects.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from fsm.fsm_samples import (
    SECOND,
    START_NS,
    Machine,
    alloc,
    deployment,
    evaluation,
    job,
    node,
    plan,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nomadpy.fsm import commands as c
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import Command, Entry, encode_entry
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus, DesiredTransition
from nomadpy.models.deployment import DeploymentState
from nomadpy.models.job import Job, ParameterizedJobConfig, TaskGroupSummary
from nomadpy.models.node import DrainStrategy, NodeEvent, NodePool
from nomadpy.models.operator import SchedulerConfiguration
from nomadpy.models.plan import AllocStop, DeploymentStatusUpdate, JobRef, Plan
from nomadpy.models.root_key import RootKey
from nomadpy.models.scaling import ScalingEvent
from nomadpy.state import persist, schema
from nomadpy.state.changes import ChangeSet
from nomadpy.state.derive import job_status
from nomadpy.state.store import Snapshot, StateStore
from nomadpy.state.table import values

BINS = {
    "pending": "starting",
    **{s: s for s in ("running", "complete", "failed", "lost", "unknown")},
}

some = st.sampled_from
job_ids = some(["web", "db", "etl", "etl/dispatch-1", "etl/dispatch-2"])
alloc_ids = some(["a1", "a2", "a3", "a4", "a5"])
eval_ids = some(["e1", "e2", "e3", "e4"])
node_ids = some(["n1", "n2"])
deployment_ids = some(["d1", "d2"])
statuses = some(["pending", "running", "complete", "failed", "lost", "unknown", "bogus"])
healths = some([None, True, False])


@st.composite
def jobs(draw: Any) -> Job:
    job_id = draw(job_ids)
    more: dict[str, Any] = {"type": draw(some(["service", "batch", "system"]))}
    if job_id == "etl":
        more = {"type": "batch", "parameterized_job": ParameterizedJobConfig()}
    elif job_id.startswith("etl/"):
        more = {"type": "batch", "parent_id": "etl", "dispatched": True}
    groups = draw(some([("group",), ("group", "other")]))
    return job(job_id, count=draw(st.integers(1, 3)), groups=groups, **more)


@st.composite
def evaluations(draw: Any) -> Any:
    job_id = draw(job_ids)
    # An evaluation is of one job for life; its id says which.
    return evaluation(
        f"{draw(eval_ids)}-{job_id}",
        job_id,
        status=draw(some(["pending", "blocked", "complete", "failed", "canceled"])),
        queued_allocations=draw(some([None, {"group": 2}, {"group": 0, "other": 1, "gone": 1}])),
    )


maybe_evals = st.lists(evaluations(), max_size=2)


@st.composite
def allocs(draw: Any, job_id: str | None = None) -> Allocation:
    health = draw(some([None, AllocDeploymentStatus(), AllocDeploymentStatus(canary=True)]))
    return alloc(
        draw(alloc_ids),
        job_id or draw(job_ids),
        node_id=draw(node_ids),
        client_status=draw(some(["pending", "pending", "lost", "unknown"])),
        deployment_id=draw(some(["", "d1", "d2"])),
        deployment_status=health,
        previous_allocation=draw(some(["", "a1", "a2"])),
    )


@st.composite
def reports(draw: Any) -> Allocation:
    return alloc(
        draw(alloc_ids),
        client_status=draw(statuses),
        deployment_status=AllocDeploymentStatus(healthy=draw(healths)),
    )


@st.composite
def plans(draw: Any) -> Plan:
    job_id = draw(job_ids)
    # An allocation is of one group of one job for life, which is the scheduler's doing: its id says which.
    placements = [
        msgspec.structs.replace(
            a, id=f"{a.id}-{job_id}", task_group="other" if a.id > "a3" else "group"
        )
        for a in draw(st.lists(allocs(job_id=job_id), max_size=3, unique_by=lambda a: a.id))
    ]
    stops = [
        AllocStop(
            alloc_id=f"{draw(alloc_ids)}-{job_id}",
            node_id="n1",
            desired_status=draw(some(["stop", "evict", "run"])),
            client_status=draw(some(["", "lost", "unknown"])),
        )
        for _ in range(draw(st.integers(0, 2)))
    ]
    planned = draw(st.booleans())
    state = DeploymentState(
        desired_total=2, progress_deadline=SECOND, desired_canaries=draw(st.integers(0, 1))
    )
    return Plan(
        eval_id="e1",
        job=JobRef(namespace="default", job_id=job_id, version=draw(st.integers(0, 3))),
        placements=placements,
        stops=stops,
        deployment=deployment(draw(deployment_ids), job_id, task_groups={"group": state})
        if planned
        else None,
        deployment_updates=[
            DeploymentStatusUpdate(
                deployment_id=draw(deployment_ids), status="cancelled", description="x"
            )
        ]
        if draw(st.booleans())
        else [],
        evaluations=draw(maybe_evals),
    )


full_eval_ids = st.builds(lambda e, j: f"{e}-{j}", eval_ids, job_ids)
full_ids = st.builds(lambda a, j: f"{a}-{j}", alloc_ids, job_ids)
named_reports = st.builds(lambda a, i: msgspec.structs.replace(a, id=i), reports(), full_ids)
maybe_index = some([None, None, 0, 1])

COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        c.JobRegister, job=jobs(), evaluation=st.none() | evaluations(), enforce_index=maybe_index
    ),
    st.builds(c.JobRegister, job=jobs()),
    st.builds(
        c.JobDeregister,
        namespace=st.just("default"),
        job_id=job_ids,
        purge=st.booleans(),
        evaluation=st.none() | evaluations(),
    ),
    st.builds(
        c.JobStability,
        namespace=st.just("default"),
        job_id=job_ids,
        version=st.integers(0, 2),
        stable=st.booleans(),
    ),
    st.builds(
        c.JobTag,
        namespace=st.just("default"),
        job_id=job_ids,
        version=st.none() | st.integers(0, 2),
        name=some(["x", "y"]),
        unset=st.booleans(),
    ),
    st.builds(
        c.JobScale,
        namespace=st.just("default"),
        job_id=some(["web"]),
        group=some(["group", "no"]),
        event=st.just(ScalingEvent()),
        job=st.none() | st.builds(job, count=st.integers(1, 4)),
    ),
    st.builds(c.NodeRegister, node=st.builds(node, node_ids, secret_id=some(["s", "s", "t"]))),
    st.builds(
        c.NodeStatus,
        node_id=node_ids,
        status=some(["ready", "down", "disconnected", "no"]),
        event=st.just(NodeEvent(message="m")),
        evaluations=maybe_evals,
    ),
    st.builds(
        c.NodeDrain,
        node_id=node_ids,
        drain=some([None, DrainStrategy()]),
        mark_eligible=st.booleans(),
    ),
    st.builds(c.NodeEligibility, node_id=node_ids, eligibility=some(["eligible", "ineligible"])),
    st.builds(c.NodeDeregister, node_ids=st.lists(node_ids, max_size=2)),
    st.builds(c.EvalUpsert, evals=st.lists(evaluations(), max_size=3)),
    st.builds(
        c.EvalDelete,
        eval_ids=st.lists(full_eval_ids, max_size=2),
        alloc_ids=st.lists(full_ids, max_size=3),
    ),
    st.builds(
        c.AllocClientUpdate, allocs=st.lists(named_reports, max_size=4), evaluations=maybe_evals
    ),
    st.builds(c.AllocClientUpdate, allocs=st.lists(named_reports, max_size=4)),
    st.builds(
        c.AllocTransition,
        transitions=st.dictionaries(full_ids, st.just(DesiredTransition(migrate=True))),
    ),
    st.builds(c.PlanResults, plans=st.lists(plans(), min_size=1, max_size=2)),
    st.builds(c.PlanResults, plans=st.lists(plans(), min_size=1, max_size=1)),
    st.builds(
        c.DeploymentUpdate,
        deployment_id=deployment_ids,
        status=some(["running", "paused", "failed", "successful"]),
        job=st.none() | jobs(),
    ),
    st.builds(
        c.DeploymentAllocHealth,
        deployment_id=deployment_ids,
        healthy=st.lists(full_ids, max_size=2),
        unhealthy=st.lists(full_ids, max_size=1),
    ),
    st.builds(c.DeploymentPromote, deployment_id=deployment_ids, groups=some([None, ["group"]])),
    st.builds(c.DeploymentDelete, ids=st.lists(deployment_ids, max_size=1)),
    st.builds(c.JobBatchPurge, jobs=st.lists(st.tuples(st.just("default"), job_ids), max_size=2)),
    st.builds(c.NodePoolUpsert, pools=st.just([NodePool(name="gpu")])),
    st.builds(c.NodePoolDelete, names=some([["gpu"], ["default"], ["all"]])),
    st.builds(c.SchedulerConfigSet, config=st.just(SchedulerConfiguration()), cas=maybe_index),
    st.builds(c.RootKeyUpsert, key=st.builds(RootKey, key_id=some(["k1", "k2"]))),
    st.builds(c.RootKeyDelete, key_id=some(["k1", "k2"])),
    st.builds(c.ClusterMetadataSet, cluster_id=some(["x", "y"])),
    st.just(c.Noop()),
)


SEQUENCES = st.lists(COMMANDS, min_size=12, max_size=40)


def _beginning() -> list[Command]:
    """Every job with an allocation in a deployment, on two nodes: something for random commands to meet."""
    begin: list[Command] = [c.NodeRegister(node=node(n, secret_id="s")) for n in ("n1", "n2")]
    parent = job("etl", type="batch", parameterized_job=ParameterizedJobConfig())
    begin += [
        c.JobRegister(job=job("web"), evaluation=evaluation("e1-web", "web")),
        c.JobRegister(job=job("db", type="batch"), evaluation=evaluation("e2-db", "db")),
        c.JobRegister(job=parent),
    ]
    for n in (1, 2):
        child = job(f"etl/dispatch-{n}", type="batch", parent_id="etl", dispatched=True)
        begin.append(c.JobRegister(job=child, evaluation=evaluation(f"e{n}-{child.id}", child.id)))
    for job_id in ("web", "db", "etl/dispatch-1"):
        placements = [
            alloc(f"{a}-{job_id}", job_id, deployment_id="d1" if job_id == "web" else "")
            for a in ("a1", "a2", "a3")
        ]
        begin.append(
            c.PlanResults(
                plans=[
                    plan(
                        *placements,
                        job_id=job_id,
                        deployment=deployment() if job_id == "web" else None,
                    )
                ]
            )
        )
    return begin


def aimed(m: Machine, command: Command) -> Command:
    """The same, but most plans are of the job's version at that moment: others are refused whole."""
    if not isinstance(command, c.PlanResults):
        return command
    result = []
    for one in command.plans:
        assert one.job is not None
        current = m.state.job("default", one.job.job_id)
        if current is not None and one.job.version < 3:
            ref = msgspec.structs.replace(one.job, version=current.version)
            one = msgspec.structs.replace(one, job=ref)
        result.append(one)
    return c.PlanResults(plans=result)


def begun() -> Machine:
    m = Machine()
    for command in _beginning():
        m.run(command)
    return m


class Forgotten:
    """What was collected, and stays counted: allocations that had ended, children of parents."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[Any, ...]] = Counter()
        self.children: Counter[tuple[str, int]] = Counter()
        self._state: Snapshot | None = None

    def hear(self, changes: ChangeSet, before: Snapshot) -> None:
        for change in changes.changes:
            if change.after is not None:
                continue
            row = change.before
            if change.table == "allocs" and row.client_status in schema.CLIENT_TERMINAL:
                self.ended[
                    (row.job_id, row.job.create_index, row.task_group, row.client_status)
                ] += 1
            if change.table == "jobs" and row.parent_id:
                parent = before.job("default", row.parent_id)
                if parent is not None:
                    self.children[(parent.id, parent.create_index)] += 1


def recounted(state: Snapshot, owner: Job, forgotten: Forgotten) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for found in state.allocs_by_job("default", owner.id):
        assert found.job is not None
        if found.job.create_index == owner.create_index:
            counts.setdefault(found.task_group, Counter())[BINS[found.client_status]] += 1
    for (job_id, created, group, status), number in forgotten.ended.items():
        if (job_id, created) == (owner.id, owner.create_index):
            counts.setdefault(group, Counter())[BINS[status]] += number
    return counts


def check_job(m: Machine, owner: Job, forgotten: Forgotten) -> None:
    state = m.state
    summary = state.job_summary("default", owner.id)
    assert summary is not None
    assert summary.create_index == owner.create_index
    expected = recounted(state, owner, forgotten)
    groups = summary.summary or {}
    assert {g.name for g in owner.task_groups or []} <= set(groups)
    for name in {*groups, *expected}:
        told = msgspec.structs.asdict(groups.get(name, TaskGroupSummary()))
        assert told.pop("queued") >= 0
        assert told == {key: expected.get(name, Counter())[key] for key in told}
    children = Counter(child.status for child in state.jobs_by_parent("default", owner.id))
    children["dead"] += forgotten.children[(owner.id, owner.create_index)]
    assert summary.children is not None
    assert msgspec.structs.asdict(summary.children) == {
        k: children[k] for k in ("pending", "running", "dead")
    }
    versions = state.job_versions("default", owner.id)
    assert versions[0].version == owner.version
    assert sum(v.version_tag is None for v in versions) <= 6
    # Never left, so never committed.
    tx = m.store.transaction(m.index + 1)
    assert job_status(tx, owner) == owner.status


def check(m: Machine, before: Snapshot, forgotten: Forgotten) -> None:
    state = m.state
    for name, index in before.table_indexes.items():
        assert state.table_indexes[name] in (index, state.index)
        if state.tables.get(name) is not before.tables.get(name):
            assert state.table_indexes[name] == state.index
    for owner in state.jobs():
        check_job(m, owner, forgotten)
    summaries = values(state.tables["job_summaries"])
    assert [(s.namespace, s.job_id) for s in summaries] == [
        (j.namespace, j.id) for j in state.jobs()
    ]
    for found in state.allocs():
        assert found.create_index <= found.alloc_modify_index <= found.modify_index <= state.index
        old = before.alloc(found.id)
        if old is not None and old.client_status in schema.CLIENT_TERMINAL:
            assert found.client_status == old.client_status
    for one in state.evals():
        assert one.create_index <= one.modify_index <= state.index
    blocked = Counter(e.job_id for e in state.evals() if e.status == "blocked")
    assert all(number == 1 for number in blocked.values())
    for one_node in state.nodes():
        assert not (one_node.drain and one_node.scheduling_eligibility == "eligible")
        assert len(one_node.events or []) <= 10
    assert sum(key.state == "active" for key in state.root_keys()) <= 1


@settings(max_examples=150, deadline=None)
@given(sequence=SEQUENCES)
def test_what_is_derived_is_what_the_rows_add_up_to_whatever_is_applied(
    sequence: list[Command],
) -> None:
    m = begun()
    forgotten = Forgotten()
    before = m.state
    m.store.subscribe(lambda changes: forgotten.hear(changes, before))
    check(m, before, forgotten)
    for command in sequence:
        before = m.state
        m.try_run(aimed(m, command))
        check(m, before, forgotten)


@settings(max_examples=60, deadline=None)
@given(sequence=SEQUENCES, half=st.integers(0, 40))
def test_servers_with_one_log_are_equal_however_they_came_to_it(
    sequence: list[Command], half: int
) -> None:
    """One applies all of it; one twice as often (repeated requests); one is restored from a snapshot on the way."""
    entries = [
        encode_entry(Entry(request_id=f"r{n}", now_ns=START_NS + n * SECOND, command=command))
        for n, command in enumerate([*_beginning(), *sequence])
    ]
    first, second = StateMachine(StateStore()), StateMachine(StateStore())
    kept: tuple[Snapshot, str] | None = None
    for index, data in enumerate(entries, start=1):
        result = first.apply(index, data)
        assert str(second.apply(index, data)) == str(result)
        assert second.checksum() == first.checksum()
        if index == half:
            kept = (first.store.snapshot(), first.store.checksum())
            chunks = list(first.snapshot()())
            second = StateMachine(StateStore())
            second.restore(chunks)
            assert second.checksum() == first.checksum()
    if kept is not None:
        unchanged = StateStore()
        unchanged.replace(kept[0])
        assert unchanged.checksum() == kept[1]
    before = first.store.snapshot()
    for offset, data in enumerate(entries, start=1):
        first.apply(len(entries) + offset, data)
    after = first.store.snapshot()
    assert after.tables == before.tables
    assert after.table_indexes == before.table_indexes


@settings(max_examples=40, deadline=None)
@given(sequence=SEQUENCES)
def test_a_state_survives_writing_with_the_jobs_shared_as_they_were(
    sequence: list[Command],
) -> None:
    m = begun()
    for command in sequence:
        m.try_run(aimed(m, command))
    state = m.state
    restored = persist.read(persist.write(state)).snapshot
    assert restored.table_indexes == state.table_indexes
    for name, table in state.tables.items():
        assert list(values(restored.tables[name])) == list(values(table))
        assert list(restored.tables[name].keys()) == list(table.keys())
    ids = [a.id for a in state.allocs()]
    for one in ids:
        for other in ids:
            together = _job_of(state, one) is _job_of(state, other)
            assert (_job_of(restored, one) is _job_of(restored, other)) == together


def _job_of(state: Snapshot, alloc_id: str) -> Job | None:
    found = state.alloc(alloc_id)
    assert found is not None
    return found.job
