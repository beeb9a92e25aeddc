"""The life of allocations through a whole agent: from the servers' wish to the driver and back."""

from __future__ import annotations

import msgspec
from agent_world import SECOND, Script, World, allocation, kinds, task

from agent.garbage import GarbageLimits
from nomadpy.models.allocation import AllocDeploymentStatus, DesiredTransition
from nomadpy.models.job import DisconnectStrategy, UpdateStrategy


def update_block(min_healthy_s: float, deadline_s: float) -> UpdateStrategy:
    return UpdateStrategy(
        max_parallel=1,
        health_check="task_states",
        min_healthy_time=int(min_healthy_s * SECOND),
        healthy_deadline=int(deadline_s * SECOND),
    )


async def test_an_allocation_runs_and_its_state_reaches_the_servers() -> None:
    world = World()
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        seen = world.servers.reported[alloc.id]
        assert seen.client_description == "Tasks are running"
        assert kinds(seen) == ["Received", "Task Setup", "Started"]
        assert world.servers.statuses[0] == "ready"
        assert world.driver.configs[0].env["NOMAD_ALLOC_ID"] == alloc.id


async def test_a_stopped_allocation_is_killed_and_complete() -> None:
    world = World()
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    seen = world.servers.reported[alloc.id]
    assert seen.client_description == "All tasks have completed"
    assert kinds(seen)[-3:] == ["Killing", "Terminated", "Killed"]
    assert world.driver.live() == []


async def test_a_batch_task_that_ends_well_is_complete_and_a_failing_one_failed() -> None:
    world = World()
    world.driver.script("good", Script(runs_s=1.0))
    world.driver.script("bad", Script(runs_s=1.0, exit_code=3))
    good = allocation(task("good"), number=1, kind="batch")
    bad = allocation(task("bad"), number=2, kind="batch")
    async with world.running():
        world.servers.want(good)
        world.servers.want(bad)
        await world.servers.until(lambda: world.servers.status(bad.id) == "failed")
        await world.servers.until(lambda: world.servers.status(good.id) == "complete")
    assert kinds(world.servers.reported[good.id], "good") == [
        "Received",
        "Task Setup",
        "Started",
        "Terminated",
    ]
    failed = world.servers.reported[bad.id]
    assert failed.client_description == "Failed tasks"
    assert failed.task_states is not None
    state = failed.task_states["bad"]
    assert state.failed
    assert kinds(failed, "bad")[-1] == "Not Restarting"
    assert (state.events or [])[-1].restart_reason == "Policy allows no restarts"


async def test_a_workload_survives_the_agents_death_and_is_taken_up_again() -> None:
    world = World()
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    assert world.driver.live() == ["task"]
    world.servers.reports.clear()
    async with world.running():
        await world.servers.until(lambda: world.servers.reports)
        assert world.driver.started == ["task"]
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    assert "recover task" in world.driver.calls


async def test_an_end_during_the_agents_absence_is_seen_afterwards() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=5.0, exit_code=4))
    alloc = allocation(kind="batch")
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    await world.servers.until(lambda: world.driver.live() == [])
    async with world.running():
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    seen = world.servers.reported[alloc.id]
    assert seen.task_states is not None
    ended = [e for e in seen.task_states["task"].events or [] if e.type == "Terminated"]
    assert [e.exit_code for e in ended] == [4]
    assert world.driver.started == ["task"]


async def test_a_finished_batch_task_does_not_run_again_after_a_restart_of_the_agent() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=1.0))
    alloc = allocation(kind="batch")
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    world.servers.reported.clear()
    async with world.running():
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    assert world.driver.started == ["task"]


async def test_a_task_lost_with_the_host_starts_again_only_after_servers_were_heard() -> None:
    world = World()
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    world.driver.processes.clear()
    world.servers.stop(up=False)
    async with world.running() as agent:
        await world.servers.until(lambda: agent.sync.restored.is_set())
        start = world.servers.index
        await world.servers.until(lambda: len(world.driver.calls) >= 2)
        assert world.driver.started == ["task"]
        world.servers.stop(up=True)
        await world.servers.until(lambda: world.driver.started == ["task", "task"])
        assert world.servers.index == start


async def test_states_of_a_time_without_servers_arrive_when_they_are_back() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=20.0))
    alloc = allocation(kind="batch")
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        world.servers.stop(up=False)
        await world.servers.until(lambda: world.driver.processes == {})
        assert world.servers.status(alloc.id) == "running"
        world.servers.stop(up=True)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")


async def test_an_allocation_that_servers_forgot_is_killed_and_removed() -> None:
    world = World()
    alloc = allocation()
    async with world.running() as agent:
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        world.servers.forget(alloc.id)
        await world.servers.until(lambda: not agent.sync.runners)
        assert world.driver.live() == []
        assert await world.state.allocs() == []
        assert await world.directories.known() == []


async def test_an_unknown_node_registers_again() -> None:
    world = World()
    async with world.running():
        await world.servers.until(lambda: len(world.servers.beats) > 1)
        world.servers.node = None
        await world.servers.until(lambda: world.servers.node is not None)
    assert len(world.servers.registrations) == 2
    assert [n.status for n in world.servers.registrations] == ["initializing", "ready"]
    assert world.servers.registrations[0].secret_id == world.servers.registrations[1].secret_id


async def test_heartbeats_come_well_within_the_ttl() -> None:
    world = World()
    async with world.running():
        await world.servers.until(lambda: len(world.servers.beats) > 20, within_s=600)
    gaps = [b - a for a, b in zip(world.servers.beats, world.servers.beats[1:], strict=False)]
    assert max(gaps) < 8.0
    assert min(gaps) > 4.0


async def test_the_node_keeps_its_identity_over_restarts() -> None:
    world = World()
    async with world.running():
        await world.servers.until(lambda: world.servers.beats)
    async with world.running():
        await world.servers.until(lambda: len(world.servers.registrations) == 2)
    first, second = world.servers.registrations
    assert (first.id, first.secret_id) == (second.id, second.secret_id)


async def test_dynamic_metadata_registers_the_node_and_survives() -> None:
    world = World()
    async with world.running(meta={"rack": "r1", "tier": "gold"}) as agent:
        await world.servers.until(lambda: world.servers.beats)
        await agent.metadata.apply({"colour": "green", "rack": None})
        await world.servers.until(lambda: len(world.servers.registrations) == 2)
    assert world.servers.registrations[1].meta == {"tier": "gold", "colour": "green"}
    async with world.running(meta={"rack": "r1", "tier": "gold"}) as agent:
        await world.servers.until(lambda: len(world.servers.registrations) == 3)
        assert agent.metadata.dynamic == {"colour": "green", "rack": None}
    assert world.servers.registrations[2].meta == {"tier": "gold", "colour": "green"}


async def test_a_replacement_waits_for_the_allocation_that_it_replaces() -> None:
    world = World()
    world.driver.script("task", Script(stop_s=3.0))
    old = allocation(number=1)
    new = allocation(number=2, previous_allocation=old.id)
    async with world.running():
        world.servers.want(old)
        await world.servers.until(lambda: world.servers.status(old.id) == "running")
        world.servers.change(old.id, desired_status="stop")
        world.servers.want(new)
        await world.servers.until(lambda: world.servers.status(new.id) == "running")
        assert world.servers.status(old.id) == "complete"
    first_running = next(
        i
        for i, a in enumerate(world.servers.reports)
        if a.id == new.id and a.client_status == "running"
    )
    assert any(
        a.id == old.id and a.client_status == "complete"
        for a in world.servers.reports[: first_running + 1]
    )


async def test_a_disconnected_agent_stops_what_must_not_run_alone() -> None:
    world = World()
    disconnect = DisconnectStrategy(stop_on_client_after=30 * SECOND)
    alone = allocation(task("alone"), number=1, group={"disconnect": disconnect})
    free = allocation(task("free"), number=2)
    async with world.running():
        world.servers.want(alone)
        world.servers.want(free)
        await world.servers.until(lambda: world.driver.live() == ["alone", "free"])
        await world.servers.until(lambda: len(world.servers.beats) > 10, within_s=300)
        assert world.driver.live() == ["alone", "free"]
        world.servers.stop(up=False)
        await world.servers.until(lambda: world.driver.live() == ["free"])
        world.servers.stop(up=True)
        await world.servers.until(lambda: world.servers.status(alone.id) == "complete")


async def test_an_allocation_becomes_healthy_after_min_healthy_time() -> None:
    world = World()
    alloc = allocation(group={"update": update_block(10, 60)}, deployment_id="d1")
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        assert world.servers.reported[alloc.id].deployment_status is None
        await world.servers.until(
            lambda: world.servers.reported[alloc.id].deployment_status is not None
        )
        status = world.servers.reported[alloc.id].deployment_status
        assert status is not None
        assert status.healthy is True
        # An update in place for the next deployment is judged anew.
        world.servers.change(alloc.id, deployment_id="d2")
        await world.servers.until(
            lambda: (
                world.servers.reports[-1].deployment_id == "d2"
                and world.servers.reports[-1].deployment_status is not None
            )
        )
    assert world.driver.started == ["task"]


async def test_a_failing_allocation_is_unhealthy_at_once_and_a_canary_stays_one() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=1.0, exit_code=1))
    alloc = allocation(
        group={"update": update_block(10, 60)},
        deployment_id="d1",
        deployment_status=AllocDeploymentStatus(canary=True),
    )
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
        status = world.servers.reported[alloc.id].deployment_status
    assert status is not None
    assert status.healthy is False
    assert status.canary


async def test_an_allocation_that_keeps_restarting_is_unhealthy_at_the_deadline() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=2.0, exit_code=1))
    alloc = allocation(
        task(attempts=100), group={"update": update_block(10, 30)}, deployment_id="d1"
    )
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(
            lambda: (
                alloc.id in world.servers.reported
                and world.servers.reported[alloc.id].deployment_status is not None
            )
        )
        status = world.servers.reported[alloc.id].deployment_status
    assert status is not None
    assert status.healthy is False


async def test_updates_of_many_allocations_travel_in_few_batches() -> None:
    world = World()
    allocs = [allocation(number=n) for n in range(1, 41)]
    async with world.running():
        for alloc in allocs:
            world.servers.want(alloc)
        await world.servers.until(
            lambda: all(world.servers.status(a.id) == "running" for a in allocs)
        )
    assert max(world.servers.batches) >= 20


async def test_a_throw_away_agent_takes_its_workloads_with_it() -> None:
    world = World()
    alloc = allocation()
    async with world.running(destroy_on_exit=True):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    assert world.driver.live() == []
    assert world.driver.processes == {}
    assert await world.state.allocs() == []


async def test_an_allocation_that_must_stop_and_never_came_is_acknowledged() -> None:
    world = World()
    alloc = allocation(desired_status="stop")
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    assert world.driver.started == []


async def test_a_job_without_the_group_fails_its_allocation_and_nothing_else() -> None:
    world = World()
    broken = msgspec.structs.replace(allocation(number=1), task_group="other")
    fine = allocation(number=2)
    async with world.running():
        world.servers.want(broken)
        world.servers.want(fine)
        await world.servers.until(lambda: world.servers.status(broken.id) == "failed")
        await world.servers.until(lambda: world.servers.status(fine.id) == "running")


async def test_a_returning_node_tells_the_truth_about_what_servers_called_unknown() -> None:
    world = World()
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        world.servers.reports.clear()
        world.servers.change(alloc.id, client_status="unknown")
        await world.servers.until(
            lambda: any("Reconnected" in kinds(report) for report in world.servers.reports)
        )
    assert world.servers.status(alloc.id) == "running"


async def test_no_shutdown_delay_skips_a_delay_that_has_begun() -> None:
    world = World()
    alloc = allocation(task(shutdown_delay=100 * SECOND))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(
            lambda: "Waiting for shutdown delay" in kinds(world.servers.reported[alloc.id])
        )
        assert world.driver.live() == ["task"]
        world.servers.change(alloc.id, desired_transition=DesiredTransition(no_shutdown_delay=True))
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete", within_s=20)


async def test_old_ended_allocations_are_collected_when_there_are_too_many() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=0.5))
    async with world.running(garbage=GarbageLimits(max_allocs=3, interval_s=10.0)) as agent:
        for number in range(1, 9):
            world.servers.want(allocation(number=number, kind="batch"))
        await world.servers.until(lambda: len(agent.sync.runners) == 3)
        kept = sorted(agent.sync.runners)
    # Servers still list all of them; an agent that comes back does not run any again.
    async with world.running() as agent:
        await world.servers.until(lambda: agent.sync.restored.is_set())
        await world.servers.until(lambda: len(world.servers.beats) > 3)
        assert sorted(agent.sync.runners) == kept
    assert len(world.driver.started) == 8


async def test_the_same_world_replays_to_the_same_reports() -> None:
    async def life() -> list[tuple[str, str, list[str]]]:
        world = World()
        world.driver.script("task", Script(runs_s=3.0, exit_code=1))
        async with world.running():
            for number in range(1, 6):
                world.servers.want(allocation(task(attempts=2), number=number))
            await world.servers.until(
                lambda: [a.client_status for a in world.servers.reported.values()] == ["failed"] * 5
            )
        return [(a.id, a.client_status, kinds(a)) for a in world.servers.reports]

    assert await life() == await life()


async def test_the_mock_driver_serves_an_agent_on_virtual_time() -> None:
    world = World()
    alloc = allocation(
        msgspec.structs.replace(
            task(attempts=1), driver="mock_driver", config={"run_for": "5s", "exit_code": 2}
        )
    )
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    states = world.servers.reported[alloc.id].task_states
    assert states is not None
    assert states["task"].restarts == 1


async def test_after_a_restore_what_ended_meanwhile_is_reported_again() -> None:
    world = World()
    world.driver.script("short", Script(runs_s=30.0))
    short = allocation(task("short"), number=1, kind="batch")
    long = allocation(task("long"), number=2)
    async with world.running():
        servers = world.servers
        servers.want(short)
        servers.want(long)
        await servers.until(lambda: servers.status(short.id) == "running")
        await servers.until(lambda: servers.status(long.id) == "running")
        saved = (dict(servers.wanted), dict(servers.reported))
        await servers.until(lambda: servers.status(short.id) == "complete")
        count = len(servers.reports)
        servers.restore(*saved)
        assert servers.status(short.id) == "running"
        await servers.until(lambda: servers.status(short.id) == "complete")
        assert {a.id for a in servers.reports[count:]} == {short.id, long.id}
        assert len(world.driver.configs) == 2


async def test_after_a_restore_the_node_is_registered_again() -> None:
    """What servers have of it may be from before a volume was made, or a device was lost."""
    world = World()
    alloc = allocation()
    async with world.running():
        servers = world.servers
        servers.want(alloc)
        await servers.until(lambda: servers.status(alloc.id) == "running")
        count = len(servers.registrations)
        servers.restore(dict(servers.wanted), dict(servers.reported))
        await servers.until(lambda: len(servers.registrations) > count)
        assert servers.registrations[-1].status == "ready"


async def test_after_a_restore_an_allocation_that_servers_had_stopped_is_said_to_have_ended() -> (
    None
):
    world = World()
    alloc = allocation()
    async with world.running():
        servers = world.servers
        servers.want(alloc)
        await servers.until(lambda: servers.status(alloc.id) == "running")
        saved = (dict(servers.wanted), dict(servers.reported))
        servers.change(alloc.id, desired_status="stop")
        await servers.until(lambda: servers.status(alloc.id) == "complete")
        servers.restore(*saved)
        await servers.until(lambda: servers.status(alloc.id) == "complete")


async def test_after_a_restore_an_allocation_that_was_forgotten_here_runs_again() -> None:
    world = World()
    alloc = allocation()
    async with world.running():
        servers = world.servers
        servers.want(alloc)
        await servers.until(lambda: servers.status(alloc.id) == "running")
        saved = (dict(servers.wanted), dict(servers.reported))
        servers.forget(alloc.id)
        await servers.until(lambda: not world.driver.live())
        servers.restore(*saved)
        await servers.until(lambda: len(world.driver.live()) == 1)
