"""Which form plans have in the log: the packed one where every server reads it, and then on every server the same state."""

from __future__ import annotations

import pytest
from server_world import World, job, running

from nomadpy.fsm.commands import Command, PackedPlans, PlanResults, decode_entry
from nomadpy.raft.pysyncobj_seam import REGULAR


def plans_in_the_log(world: World) -> list[Command]:
    """The entries with plans, as the leader has them on its disk."""
    commands = [
        decode_entry(data[1:]).command
        for data, _index, _term in world.leader.raft.journal.entries
        if data[0] == REGULAR
    ]
    return [one for one in commands if isinstance(one, PlanResults | PackedPlans)]


@pytest.mark.parametrize(("highest", "form"), [(2, PlanResults), (3, PackedPlans)])
async def test_plans_are_packed_from_the_third_format_of_the_log_on(
    highest: int, form: type[Command]
) -> None:
    async with running(servers=3, log_formats=(1, highest)) as world:
        await world.node()
        answer = await world.register(job(count=3, cpu=10))
        await world.evaluated(answer["EvalID"])
        (written,) = plans_in_the_log(world)
        assert type(written) is form
        await world.caught_up()
        sums = {server.process.state_machine.checksum() for server in world.servers}
        assert len(sums) == 1
        assert len(world.state.allocs_by_job("default", "web")) == 3
