"""What may be done to jobs: what is stored, what is refused and with which words, and what follows from it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_world import World, body, job, rolling, running

from nomadpy.errors import (
    ConflictError,
    InvalidRequestError,
    NomadError,
    NotFoundError,
    ValidationError,
)
from nomadpy.models import calls
from nomadpy.models.envelope import WriteOptions
from nomadpy.models.job import Job


def stored(world: World, name: str = "web") -> Job:
    found = world.state.job("default", name)
    assert found is not None
    return found


# -- register ---------------------------------------------------------------------------------------------


async def test_the_same_job_again_is_evaluated_again_and_keeps_its_version() -> None:
    async with running() as world:
        first = await world.register(job())
        again = await world.register(job())
        assert again["JobModifyIndex"] == first["JobModifyIndex"]
        assert again["EvalID"] != first["EvalID"]
        assert stored(world).version == 0
        changed = await world.register(job(Priority=70))
        assert changed["JobModifyIndex"] == changed["Index"] > first["JobModifyIndex"]
        assert stored(world).version == 1


@pytest.mark.parametrize(
    ("index", "exists", "text"),
    [
        (0, True, "Enforcing job modify index 0: job already exists"),
        (
            999,
            True,
            "Enforcing job modify index 999: job exists with conflicting job modify index: ",
        ),
        (5, False, "Enforcing job modify index 5: job does not exist"),
    ],
)
async def test_an_enforced_index_that_does_not_hold_changes_nothing(
    index: int, exists: bool, text: str
) -> None:
    async with running() as world:
        if exists:
            await world.register(job())
        before = world.state.job("default", "web")
        with pytest.raises(ConflictError) as caught:
            await world.register(job(Priority=70), enforce_index=index)
        assert caught.value.message.startswith(text)
        assert caught.value.status == 500
        assert world.state.job("default", "web") == before


async def test_an_enforced_index_that_holds_lets_the_job_in() -> None:
    async with running() as world:
        first = await world.register(job(), enforce_index=0)
        await world.register(job(Priority=70), enforce_index=first["JobModifyIndex"])
        assert stored(world).priority == 70


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ({"Name": "x"}, InvalidRequestError, "Job ID hasn't been provided"),
        ({"ID": "x", "Name": "x"}, ValidationError, "Missing job task groups"),
        (job(NodePool="zz"), ValidationError, 'is in nonexistent node pool "zz"'),
        (job(Priority=1000), ValidationError, "priority"),
        (job(count=-1), ValidationError, "count"),
    ],
)
async def test_a_job_that_breaks_a_rule_is_refused_and_named(
    spec: dict[str, Any], error: type[NomadError], text: str
) -> None:
    async with running() as world:
        with pytest.raises(error) as caught:
            await world.register(spec)
        assert text in caught.value.message
        assert list(world.state.jobs(None)) == []


async def test_all_faults_of_a_job_are_told_at_once_and_validating_stores_nothing() -> None:
    async with running() as world:
        spec = job(Priority=1000, Type="odd")
        answer = body(await world.call("Job.Validate", calls.JobWrite(job=spec)))
        assert len(answer["ValidationErrors"]) >= 2
        assert answer["Error"]
        good = body(await world.call("Job.Validate", calls.JobWrite(job=job())))
        assert (good["ValidationErrors"], good["Error"]) == (None, "")
        assert list(world.state.jobs(None)) == []


async def test_counts_are_kept_when_asked() -> None:
    async with running() as world:
        await world.register(job(count=4))
        await world.register(job(count=1, Priority=70), preserve_counts=True)
        assert (stored(world).task_groups or [])[0].count == 4


async def test_registration_can_be_closed_by_the_operator() -> None:
    async with running() as world:
        config = msgspec.structs.replace(
            world.state.scheduler_config(), reject_job_registration=True
        )
        await world.call(
            "Operator.SetSchedulerConfiguration", calls.SchedulerConfigWrite(config=config)
        )
        with pytest.raises(ValidationError, match="job registration is currently disabled"):
            await world.register(job())


@pytest.mark.parametrize(
    "parent",
    [
        {"Type": "batch", "Periodic": {"Enabled": True, "Spec": "@daily", "SpecType": "cron"}},
        {"Type": "batch", "ParameterizedJob": {}},
    ],
)
async def test_a_job_that_only_launches_others_is_not_evaluated(parent: dict[str, Any]) -> None:
    async with running() as world:
        answer = await world.register(job(Update=None, **parent))
        assert (answer["EvalID"], answer["EvalCreateIndex"]) == ("", 0)
        assert world.state.evals_by_job("default", "web") == []
        assert stored(world).status == "running"
        with pytest.raises(ValidationError, match="can't evaluate p"):
            await world.call("Job.Evaluate", calls.JobEvaluate(job_id="web"))
        gone = body(await world.call("Job.Deregister", calls.JobDeregister(job_id="web")))
        assert gone["EvalID"] == ""


async def test_a_write_to_all_namespaces_is_refused() -> None:
    async with running() as world:
        await world.register(job())
        options = WriteOptions(namespace="*")
        for method, request in (
            ("Job.Deregister", calls.JobDeregister(job_id="web", options=options)),
            ("Job.Evaluate", calls.JobEvaluate(job_id="web", options=options)),
            ("Job.Scale", calls.JobScale(job_id="web", group="group", options=options)),
        ):
            with pytest.raises(InvalidRequestError, match="one namespace"):
                await world.call(method, request)


# -- stop, evaluate -----------------------------------------------------------------------------------------


async def test_stopping_an_unknown_job_does_nothing_and_says_so() -> None:
    async with running() as world:
        answer = body(await world.call("Job.Deregister", calls.JobDeregister(job_id="zz")))
        assert (answer["EvalID"], answer["Index"]) == ("", 0)


async def test_a_stopped_job_stays_and_its_allocations_stop() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=2))
        await world.settled()
        answer = body(await world.call("Job.Deregister", calls.JobDeregister(job_id="web")))
        assert (await world.evaluated(answer["EvalID"])).triggered_by == "job-deregister"
        assert stored(world).stop
        assert node.wanted() == []
        await node.obey()
        assert stored(world).status == "dead"
        # The same job again starts it anew.
        await world.register(job(count=2))
        await world.settled()
        assert not stored(world).stop
        assert len(node.wanted()) == 2


async def test_what_failed_for_good_is_placed_again_only_by_force() -> None:
    never = {"Attempts": 0, "Interval": 10**9, "Unlimited": False}
    async with running() as world:
        node = await world.node()
        await world.register(job(group={"ReschedulePolicy": never}))
        await world.settled()
        (alloc,) = node.wanted()
        await node.report(alloc, status="failed")
        await world.settled()
        answer = body(await world.call("Job.Evaluate", calls.JobEvaluate(job_id="web")))
        await world.evaluated(answer["EvalID"])
        assert len(node.allocs()) == 1
        answer = body(
            await world.call("Job.Evaluate", calls.JobEvaluate(job_id="web", force_reschedule=True))
        )
        await world.evaluated(answer["EvalID"])
        assert len(node.allocs()) == 2
        assert world.state.alloc(alloc.id).next_allocation  # type: ignore[union-attr]


async def test_stopping_an_allocation_moves_it() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job())
        await world.settled()
        await node.obey()
        (alloc,) = node.wanted()
        answer = await world.write("Alloc.Stop", alloc.id, flags={"no_shutdown_delay": "true"})
        assert (await world.evaluated(answer["EvalID"])).triggered_by == "alloc-stop"
        (moved,) = node.wanted()
        assert moved.previous_allocation == alloc.id
        wish = world.state.alloc(alloc.id).desired_transition  # type: ignore[union-attr]
        assert wish is not None
        assert wish.no_shutdown_delay
        with pytest.raises(NotFoundError, match="alloc not found"):
            await world.write("Alloc.Stop", "0" * 36)
        with pytest.raises(InvalidRequestError, match="UUID must be 36 characters"):
            await world.write("Alloc.Stop", "zz")


# -- scale ----------------------------------------------------------------------------------------------------


async def scale(world: World, **fields: Any) -> Any:
    request = calls.JobScale(**{"job_id": "web", "group": "group", **fields})
    return body(await world.call("Job.Scale", request))


async def test_scaling_changes_the_count_and_remembers_it() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=1))
        await world.settled()
        answer = await scale(world, count=3, message="more", meta={"by": "me"})
        assert (await world.evaluated(answer["EvalID"])).triggered_by == "job-scaling"
        assert len(node.wanted()) == 3
        shown = await world.get("Job.ScaleStatus", "web")
        (event,) = shown["TaskGroups"]["group"]["Events"]
        assert (event["Count"], event["PreviousCount"], event["Message"]) == (3, 1, "more")
        assert event["EvalID"] == answer["EvalID"]
        assert shown["TaskGroups"]["group"]["Desired"] == 3


async def test_without_a_count_only_the_event_is_kept() -> None:
    async with running() as world:
        await world.register(job(count=2))
        await world.settled()
        version = stored(world).version
        answer = await scale(world, message="cannot", error=True)
        assert (answer["EvalID"], answer["EvalCreateIndex"]) == ("", 0)
        assert stored(world).version == version
        (event,) = world.state.scaling_events("default", "web")["group"]
        assert (event.count, event.error, event.message) == (None, True, "cannot")


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"job_id": "zz", "count": 1}, NotFoundError, "not found"),
        ({"group": "zz", "count": 1}, InvalidRequestError, 'task group "zz" specified for scaling'),
        ({"count": -1}, InvalidRequestError, "can't be negative"),
        ({"count": 1, "error": True}, InvalidRequestError, "should not contain count"),
        ({"count": 9}, InvalidRequestError, "greater than scaling policy maximum: 9 > 5"),
        ({"count": 1}, InvalidRequestError, "less than scaling policy minimum: 1 < 2"),
        ({"count": 3, "enforce_index": 1}, ConflictError, "Enforcing job modify index 1"),
    ],
)
async def test_a_scaling_that_is_not_allowed_changes_nothing(
    fields: dict[str, Any], error: type[NomadError], text: str
) -> None:
    async with running() as world:
        policy = {"Min": 2, "Max": 5, "Enabled": True, "Policy": {}}
        await world.register(job(count=3, group={"Scaling": policy}))
        await world.settled()
        before = stored(world)
        with pytest.raises(error) as caught:
            await scale(world, **fields)
        assert text in caught.value.message
        assert stored(world) == before
        assert world.state.scaling_events("default", "web") == {}


async def test_a_job_that_is_being_deployed_or_runs_everywhere_is_not_scaled() -> None:
    async with running() as world:
        await world.node()
        await world.register(job(Update=rolling()))
        await world.settled()
        with pytest.raises(
            InvalidRequestError, match="job scaling blocked due to active deployment"
        ):
            await scale(world, count=2)
        await world.register(job("everywhere", Type="system"))
        with pytest.raises(InvalidRequestError, match='cannot scale jobs of type "system"'):
            await scale(world, job_id="everywhere", count=2)


# -- versions -------------------------------------------------------------------------------------------------


async def versions(world: World, count: int) -> None:
    for number in range(count):
        await world.register(job(Meta={"v": str(number)}))


async def revert(world: World, version: int = 0, **fields: Any) -> Any:
    request = calls.JobRevert(job_id="web", version=version, **fields)
    return body(await world.call("Job.Revert", request))


async def test_reverting_makes_a_new_version_of_the_old_content() -> None:
    async with running() as world:
        await versions(world, 3)
        answer = await revert(world, 0, enforce_prior_version=2)
        assert answer["EvalID"]
        assert (stored(world).version, stored(world).meta) == (3, {"v": "0"})


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"version": 2}, ValidationError, "can't revert to current version"),
        (
            {"version": 9},
            ValidationError,
            'job "web" in namespace "default" at version 9 not found',
        ),
        (
            {"version": 0, "enforce_prior_version": 99},
            ValidationError,
            "Current job has version 2; enforcing version 99",
        ),
        (
            {"version": 1, "enforce_prior_version": 0},
            ValidationError,
            "Current job has version 2; enforcing version 0",
        ),
        ({"version": 0, "tag_name": "zz"}, NotFoundError, 'tag "zz" not found for job "web"'),
    ],
)
async def test_a_revert_that_cannot_be_says_why(
    fields: dict[str, Any], error: type[NomadError], text: str
) -> None:
    async with running() as world:
        await versions(world, 3)
        with pytest.raises(error) as caught:
            await revert(world, **fields)
        assert text in caught.value.message
        assert stored(world).version == 2


async def test_a_tagged_version_is_kept_and_can_be_reverted_to_by_name() -> None:
    async with running() as world:
        await versions(world, 2)
        tag = calls.JobTag(job_id="web", name="golden", version=0, description="works")
        answer = body(await world.call("Job.Tag", tag))
        assert (answer["Name"], answer["Description"]) == ("golden", "works")
        assert answer["TaggedTime"] > 0
        for number in range(2, 12):
            await world.register(job(Meta={"v": str(number)}))
        kept = [v.version for v in world.state.job_versions("default", "web")]
        assert kept == [11, 10, 9, 8, 7, 6, 0]
        with pytest.raises(InvalidRequestError, match='tag "golden" already exists'):
            await world.call("Job.Tag", calls.JobTag(job_id="web", name="golden", version=9))
        await revert(world, 0, tag_name="golden")
        assert stored(world).meta == {"v": "0"}
        assert stored(world).version_tag is None
        await world.call("Job.Tag", calls.JobTag(job_id="web", name="golden", unset=True))
        assert 0 not in [v.version for v in world.state.job_versions("default", "web")]
        with pytest.raises(NotFoundError, match='tag "golden" not found'):
            await world.call("Job.Tag", calls.JobTag(job_id="web", name="golden", unset=True))


async def test_a_version_can_be_called_stable() -> None:
    async with running() as world:
        await versions(world, 2)
        request = calls.JobStability(job_id="web", version=0, stable=True)
        answer = body(await world.call("Job.Stability", request))
        assert answer["Index"] > 0
        found = world.state.job_version("default", "web", 0)
        assert found is not None
        assert found.stable
        for missing, error in (("web", NomadError), ("zz", NotFoundError)):
            with pytest.raises(error, match="not found"):
                await world.call(
                    "Job.Stability", calls.JobStability(job_id=missing, version=77, stable=True)
                )


async def test_versions_are_told_newest_first_with_what_changed_between_them() -> None:
    async with running() as world:
        await versions(world, 3)
        shown = await world.get("Job.Versions", "web", flags={"diffs": "true"})
        assert [v["Version"] for v in shown["Versions"]] == [2, 1, 0]
        assert len(shown["Diffs"]) == 2
        (field,) = shown["Diffs"][0]["Fields"]
        assert (field["Name"], field["Old"], field["New"]) == ("Meta[v]", "1", "2")
        plain = await world.get("Job.Versions", "web")
        assert plain["Diffs"] is None
        with pytest.raises(NotFoundError, match="job versions not found"):
            await world.read("Job.Versions", "zz")


# -- plan -----------------------------------------------------------------------------------------------------


async def test_a_dry_run_tells_what_would_happen_and_changes_nothing() -> None:
    async with running(3) as world:
        node = await world.node()
        await world.register(job(count=1, Meta={"v": "0"}))
        await world.settled()
        index = world.state.index
        request = calls.JobWrite(job=job(count=3, Meta={"v": "0"}), diff=True)
        answer = body(await world.call("Job.Plan", request, at=world.followers[0]))
        updates = answer["Annotations"]["DesiredTGUpdates"]["group"]
        # One is there already.
        assert updates["Place"] == 2
        assert answer["JobModifyIndex"] == stored(world).job_modify_index
        assert answer["Diff"]["Type"] == "Edited"
        too_much = calls.JobWrite(job=job(count=1, cpu=100_000))
        answer = body(await world.call("Job.Plan", too_much))
        assert list(answer["FailedTGAllocs"]) == ["group"]
        assert answer["Diff"] is None
        await asyncio.sleep(2)
        assert world.state.index == index
        assert len(node.wanted()) == 1
        assert stored(world).version == 0


async def test_a_dry_run_of_a_job_that_breaks_a_rule_is_refused() -> None:
    async with running() as world:
        with pytest.raises(ValidationError, match="nonexistent node pool"):
            await world.call("Job.Plan", calls.JobWrite(job=job(NodePool="zz")))
