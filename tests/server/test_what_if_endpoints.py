"""Scheduler.Simulate and Scheduler.Rebalance on a running server."""

from __future__ import annotations

import pytest
from server_world import body, job, running

from nomadpy.errors import NomadError
from nomadpy.models.calls import Rebalance, WhatIf
from nomadpy.models.what_if import RebalanceRequest, WhatIfRequest


async def test_what_would_move_is_said_and_nothing_moves() -> None:
    async with running() as world:
        one, two = await world.node("n0"), await world.node("n1")
        await world.register(job("web", count=2))
        await world.obeyed([one, two], lambda: len(one.wanted()) + len(two.wanted()) == 2)
        await world.settled()
        index = world.state.index
        home = one if one.wanted() else two
        request = WhatIfRequest(nodes_down=[home.node.name], jobs=[job("new", cpu=99_999)])
        found = body(await world.call("Scheduler.Simulate", WhatIf(request=request)))
        assert len(found["Moved"]) == len(home.wanted())
        assert [one["JobID"] for one in found["Unplaced"]] == ["new"]
        assert world.state.index == index
        with pytest.raises(NomadError, match="Missing job task groups"):
            await world.call(
                "Scheduler.Simulate", WhatIf(request=WhatIfRequest(jobs=[{"ID": "x"}]))
            )


async def test_moves_are_said_and_then_made() -> None:
    async with running(scheduler_algorithm="spread") as world:
        one = await world.node("n0")
        for name in "abcd":
            await world.register(job(name, cpu=400))
        await world.obeyed([one], lambda: len(one.wanted()) == 4)
        await world.obeyed([one], lambda: all(a.client_status == "running" for a in one.wanted()))
        two = await world.node("n1")
        request = RebalanceRequest(dry_run=True)
        dry = body(await world.call("Scheduler.Rebalance", Rebalance(request=request)))
        assert (len(dry["Moves"]), dry["EvalIDs"]) == (2, [])
        assert len(one.wanted()) == 4
        made = body(await world.call("Scheduler.Rebalance", Rebalance(request=RebalanceRequest())))
        assert len(made["EvalIDs"]) == 2
        await world.obeyed([one, two], lambda: len(two.wanted()) == 2)
        assert len(one.wanted()) == 2
        with pytest.raises(NomadError, match="goal must be pack or spread"):
            await world.call(
                "Scheduler.Rebalance", Rebalance(request=RebalanceRequest(goal="best"))
            )
