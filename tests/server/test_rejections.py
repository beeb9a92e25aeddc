"""Nodes whose plans are refused again and again are taken out, a few at a time."""

from __future__ import annotations

import msgspec
from server_world import job, running

from nomadpy.models.allocation import Allocation
from nomadpy.models.plan import JobRef, Plan
from nomadpy.server.leader.rejections import REASON, Rejections


def test_the_threshold_within_the_window_takes_a_node_out() -> None:
    tracker = Rejections(threshold=3, window_s=60)
    assert [tracker.add("n1", now=at) for at in (0.0, 10.0, 20.0)] == [False, False, True]


def test_refusals_far_apart_do_not_add_up() -> None:
    tracker = Rejections(threshold=3, window_s=60)
    assert not any(tracker.add("n1", now=at * 40.0) for at in range(10))


def test_nodes_count_for_themselves() -> None:
    tracker = Rejections(threshold=2, window_s=60)
    assert not tracker.add("n1", now=0)
    assert not tracker.add("n2", now=0)
    assert tracker.score("n1", now=1) == 1


def test_without_a_threshold_nothing_is_counted() -> None:
    tracker = Rejections(threshold=0, window_s=60)
    assert not any(tracker.add("n1", now=0) for _ in range(1000))


def test_no_more_than_a_few_nodes_are_taken_out_at_one_time() -> None:
    tracker = Rejections(threshold=1, window_s=60)
    taken = sum(tracker.add(f"n{number}", now=1.0) for number in range(100))
    assert taken == 10
    assert tracker.add("again", now=500.0)


async def test_a_bad_node_is_marked_with_an_event() -> None:
    async with running(plan_rejection_threshold=3, plan_rejection_window_s=60.0) as world:
        node = await world.node()
        await world.register(job("web"))
        await world.until(lambda: len(node.wanted()) == 1)
        await world.settled()
        (alloc,) = node.wanted()
        for number in range(3):
            # As if a worker believed the node to be empty: the same port or memory twice.
            clones = [_copy(alloc, f"00000000-0000-4000-8000-{number:06}{k:06}") for k in range(60)]
            plan = Plan(
                eval_id=world.entropy.uuid(),
                snapshot_index=world.state.index,
                job=JobRef(namespace="default", job_id="web", version=0),
                placements=clones,
            )
            outcome = await world.leader.server.duties.applier.submit(plan)
            assert outcome.rejected_nodes == [node.id]
        found = world.state.node(node.id)
        assert found is not None
        assert found.scheduling_eligibility == "ineligible"
        assert any(event.message == REASON for event in found.events or ())


def _copy(alloc: Allocation, identity: str) -> Allocation:
    return msgspec.structs.replace(alloc, id=identity, job=None)
