"""Job.Explain and Eval.Explain over the servers."""

from __future__ import annotations

import pytest
from server_world import body, job, running

from nomadpy.errors import NomadError
from nomadpy.models.calls import JobWrite


async def test_a_job_that_waits_is_explained_with_the_evaluation_that_waits() -> None:
    async with running() as world:
        await world.node()
        answer = await world.register(job("huge", cpu=99_999))
        await world.evaluated(answer["EvalID"])
        await world.settled()
        found = await world.get("Job.Explain", "huge")
        (group,) = found["Groups"]
        assert group["Missing"] == 1
        assert "99,999 MHz is more than any node has" in group["Suggestions"][0]
        blocked = [e for e in world.state.evals_by_job("default", "huge") if e.status == "blocked"]
        assert found["WaitingEval"] == blocked[0].id
        told = await world.get("Eval.Explain", answer["EvalID"])
        assert (told["EvalStatus"], told["EvalTriggeredBy"]) == ("complete", "job-register")
        assert told["Groups"] == found["Groups"]


async def test_a_job_is_explained_before_it_is_registered() -> None:
    async with running() as world:
        await world.node()
        spec = job("new")
        spec["TaskGroups"][0]["Tasks"][0]["Driver"] = "mock_drivr"
        found = body(await world.call("Job.ExplainChange", JobWrite(job=spec)))
        assert 'Did you mean "mock_driver"?' in found["Groups"][0]["Suggestions"][0]
        assert world.state.job("default", "new") is None


async def test_how_many_nodes_are_listed_is_asked_for() -> None:
    async with running() as world:
        for number in range(3):
            await world.node(f"n{number}")
        await world.register(job("huge", cpu=99_999))
        found = await world.get("Job.Explain", "huge", flags={"nodes": "1"})
        assert len(found["Groups"][0]["Nodes"]) == 1
        assert found["Groups"][0]["LeftOut"] == 2
        with pytest.raises(NomadError, match="nodes must be a number"):
            await world.get("Job.Explain", "huge", flags={"nodes": "many"})


async def test_what_is_unknown_is_said_so() -> None:
    async with running() as world:
        with pytest.raises(NomadError, match="job not found"):
            await world.get("Job.Explain", "nobody")
        with pytest.raises(NomadError, match="eval not found"):
            await world.get("Eval.Explain", "00000000-0000-0000-0000-000000000001")
