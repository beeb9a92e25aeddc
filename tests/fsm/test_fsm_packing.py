"""Plans in the log's form: whatever is packed comes back equal, and columns that do not fit together change nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fsm.fsm_samples import Machine, alloc, evaluation, job, node, plan
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import InvalidRequestError
from nomadpy.fsm.commands import JobRegister, NodeRegister, PackedPlans, PlanResults
from nomadpy.fsm.packing import PackedPlan, pack, unpack
from nomadpy.models.allocation import Allocation, AllocationMetric, NodeScoreMeta
from nomadpy.models.plan import Plan
from nomadpy.models.resources import Resources

_SCORE = st.sampled_from([0.0, -0.0, 0.25, 1 / 3, -1.0, 5e-324, 1e300])
_SCORES = st.builds(
    NodeScoreMeta,
    node_id=st.sampled_from(["", "n1", "n2", "n3"]),
    norm_score=_SCORE,
    scores=st.none()
    | st.dictionaries(st.sampled_from(["binpack", "devices", "node-affinity"]), _SCORE),
)
_METRICS = st.builds(
    AllocationMetric,
    nodes_evaluated=st.integers(0, 2),
    nodes_available=st.sampled_from([None, {"dc1": 3}]),
    score_meta_data=st.none() | st.lists(_SCORES, max_size=3),
)
_ALLOCS = st.builds(
    Allocation,
    id=st.sampled_from(["a1", "a2", "a3"]),
    name=st.sampled_from(["", "web.group[0]", "web.group[1]"]),
    node_id=st.sampled_from(["", "n1", "n2"]),
    node_name=st.sampled_from(["", "one", "two"]),
    metrics=st.none() | _METRICS,
    task_group=st.sampled_from(["group", "other"]),
    resources=st.sampled_from([None, Resources(cpu=1)]),
    job=st.sampled_from([None, None, job()]),
    previous_allocation=st.sampled_from(["", "", "a9"]),
)


def written(packed: PackedPlan) -> PackedPlan:
    """As another server reads it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=PackedPlan)


@given(st.lists(_ALLOCS, max_size=6))
def test_what_is_packed_comes_back_to_the_last_bit(allocs: list[Allocation]) -> None:
    made = plan(*allocs, evaluations=[evaluation("e1")])
    found = unpack(written(pack(made)))
    assert found == made
    # Equality takes 0.0 for -0.0 and knows nothing of the order of keys; the bytes do.
    assert msgspec.msgpack.encode(found) == msgspec.msgpack.encode(made)


def many(number: int) -> Plan:
    """A plan as the scheduler makes them: one allocation over and over, scores shared between neighbours."""
    scores = [
        NodeScoreMeta(
            node_id=f"node-{n}", norm_score=1 / (n + 3), scores={"binpack": n / 7, "devices": 0.0}
        )
        for n in range(number + 4)
    ]
    return plan(
        *(
            alloc(
                f"a{n:05}",
                name=f"web.group[{n}]",
                node_id=f"node-{n % 7}",
                metrics=AllocationMetric(nodes_evaluated=7, score_meta_data=scores[n : n + 5]),
            )
            for n in range(number)
        )
    )


def test_a_plan_of_one_group_is_one_run_whose_scores_are_written_once() -> None:
    made = many(50)
    (placed,) = pack(made).placed
    assert (len(placed.ids), len(placed.scores.at), len(placed.metrics)) == (50, 54, 1)
    first, second, *_ = unpack(written(pack(made))).placements
    assert first.metrics is not None
    assert second.metrics is not None
    assert first.metrics.score_meta_data is not None
    assert second.metrics.score_meta_data is not None
    assert first.metrics.score_meta_data[1] is second.metrics.score_meta_data[0]


def test_a_packed_plan_is_much_shorter() -> None:
    made = many(200)
    short, long = msgspec.msgpack.encode(pack(made)), msgspec.msgpack.encode(made)
    assert len(short) < len(long) / 6


def test_an_allocation_that_differs_in_more_begins_a_new_run() -> None:
    made = plan(alloc("a1"), alloc("a2"), alloc("a3", task_group="other"), alloc("a4"))
    assert [placed.ids for placed in pack(made).placed] == [["a1", "a2"], ["a3"], ["a4"]]


def ready() -> Machine:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    return m


@pytest.mark.parametrize(
    "damage",
    [
        {"at": [9, 9]},
        {"ids": ["a1"]},
        {"metric_at": [7, 7]},
        {"scored": [99] * 10},
        {"scored": [0] * 9},
        {"told": [5, 4]},
        {"names": []},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_columns_that_do_not_fit_together_change_nothing(damage: dict[str, Any]) -> None:
    m = ready()
    packed = pack(many(2))
    damaged = PackedPlan(packed.plan, [msgspec.structs.replace(packed.placed[0], **damage)])
    before = m.state.tables
    error = m.refused(PackedPlans(plans=[damaged]))
    assert isinstance(error, InvalidRequestError)
    assert m.state.tables == before


def test_a_part_of_a_score_that_is_missing_changes_nothing() -> None:
    m = ready()
    packed = pack(many(2))
    (placed,) = packed.placed
    scores = msgspec.structs.replace(placed.scores, parts=placed.scores.parts[1:])
    damaged = PackedPlan(packed.plan, [msgspec.structs.replace(placed, scores=scores)])
    assert isinstance(m.refused(PackedPlans(plans=[damaged])), InvalidRequestError)


def test_a_packed_entry_gives_what_the_plain_one_gives() -> None:
    made = many(30)
    one, other = ready(), ready()
    assert one.run(PackedPlans(plans=[pack(made)])) == [""]
    assert other.run(PlanResults(plans=[made])) == [""]
    assert one.state.tables["allocs"].keys() == [alloc.id for alloc in made.placements]
    assert one.store.checksum() == other.store.checksum()
