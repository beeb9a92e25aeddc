"""Groups of several tasks, restarts, signals and failures, through a whole agent with a scripted driver."""

from __future__ import annotations

import msgspec
import pytest
from agent_world import SECOND, Script, World, allocation, kinds, task

from agent.drivers.base import ExitResult, TaskConfig, TaskPaths
from agent.runner.alloc_runner import UnknownTaskError
from agent.runner.task_runner import TaskNotRunningError
from nomadpy.errors import NomadError
from nomadpy.models.task_blocks import DispatchPayloadConfig, Template


async def test_tasks_start_in_the_order_of_their_hooks_and_end_in_theirs() -> None:
    world = World()
    world.driver.script("init", Script(runs_s=2.0))
    world.driver.script("main", Script(runs_s=10.0))
    world.driver.script("after", Script(runs_s=1.0))
    world.driver.script("clean", Script(runs_s=1.0))
    alloc = allocation(
        task("clean", hook="poststop"),
        task("after", hook="poststart"),
        task("main"),
        task("init", hook="prestart"),
        task("side", hook="prestart", sidecar=True),
        kind="batch",
    )
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    assert sorted(world.driver.started[:2]) == ["init", "side"]
    assert world.driver.started[2:] == ["main", "after", "clean"]
    seen = world.servers.reported[alloc.id]
    assert "Main Tasks Dead" in kinds(seen, "side")
    assert "Killed" not in kinds(seen, "main")


async def test_a_failed_task_ends_its_siblings_then_poststop_runs() -> None:
    world = World()
    world.driver.script("bad", Script(runs_s=1.0, exit_code=1))
    world.driver.script("clean", Script(runs_s=1.0))
    alloc = allocation(task("bad"), task("good"), task("clean", hook="poststop"))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    seen = world.servers.reported[alloc.id]
    assert kinds(seen, "good")[-4:] == ["Sibling Task Failed", "Killing", "Terminated", "Killed"]
    assert world.driver.started[-1] == "clean"
    # Servers heard "failed" only when nothing lived any more.
    assert [r.client_status for r in world.servers.reports].count("failed") == 1


async def test_a_failed_prestart_task_keeps_the_main_task_from_starting() -> None:
    world = World()
    world.driver.script("init", Script(runs_s=1.0, exit_code=1))
    alloc = allocation(task("init", hook="prestart"), task("main"))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    assert world.driver.started == ["init"]


async def test_the_leaders_end_ends_the_group() -> None:
    world = World()
    world.driver.script("lead", Script(runs_s=3.0))
    alloc = allocation(task("lead", leader=True), task("log"), kind="batch")
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    assert "Leader Task Dead" in kinds(world.servers.reported[alloc.id], "log")


async def test_the_leader_is_stopped_before_the_others() -> None:
    world = World()
    world.driver.script("lead", Script(stop_s=2.0))
    alloc = allocation(task("log"), task("lead", leader=True))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        await world.servers.until(lambda: world.driver.live() == ["lead", "log"])
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    stops = [c for c in world.driver.calls if c.startswith(("stop", "destroy"))]
    assert stops.index("destroy lead") < stops.index("stop log")


async def test_a_crashing_task_restarts_by_its_policy_and_then_fails() -> None:
    world = World()
    world.driver.script("task", Script(runs_s=1.0, exit_code=9))
    alloc = allocation(task(attempts=2, delay_s=5.0))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    assert world.driver.started == ["task"] * 3
    seen = world.servers.reported[alloc.id]
    assert seen.task_states is not None
    assert seen.task_states["task"].restarts == 2
    assert [c.attempt for c in world.driver.configs] == [1, 2, 3]


async def test_a_task_that_ignores_its_signal_is_killed_after_the_capped_timeout() -> None:
    world = World()
    world.driver.script("task", Script(stop_s=None))
    alloc = allocation(task(kill_timeout=3600 * SECOND, kill_signal="SIGQUIT"))
    async with world.running(max_kill_timeout_s=10.0):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        process = next(iter(world.driver.processes.values()))
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete", within_s=20)
    assert process.signals == ["SIGQUIT"]
    states = world.servers.reported[alloc.id].task_states
    assert states is not None
    killing = next(e for e in states["task"].events or [] if e.type == "Killing")
    assert killing.kill_timeout == 10 * SECOND


async def test_a_driver_that_cannot_stop_a_task_is_asked_again() -> None:
    world = World()
    world.driver.refuse_stop = 2
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
    assert world.driver.live() == []


async def test_one_task_all_running_tasks_and_all_tasks_can_be_restarted() -> None:
    world = World()
    world.driver.script("init", Script(runs_s=0.5))
    alloc = allocation(task("init", hook="prestart"), task("a"), task("b"))
    async with world.running() as agent:
        world.servers.want(alloc)
        await world.servers.until(lambda: world.driver.live() == ["a", "b"])
        runner = agent.sync.runner(alloc.id)
        await world.servers.until(lambda: runner.tasks["b"].is_running)
        await runner.restart("a")
        await world.servers.until(lambda: world.driver.started[3:] == ["a"])
        await world.servers.until(lambda: runner.tasks["a"].is_running)
        await runner.restart()
        await world.servers.until(lambda: sorted(world.driver.started[4:]) == ["a", "b"])
        await world.servers.until(lambda: all(runner.tasks[n].is_running for n in "ab"))
        await runner.restart(all_tasks=True)
        await world.servers.until(lambda: len(world.driver.started) == 9)
        assert world.driver.started[6] == "init"
        with pytest.raises(UnknownTaskError, match="Could not find task runner for task: zz"):
            await runner.restart("zz")
        with pytest.raises(TaskNotRunningError, match="Task not running"):
            await runner.restart("init")


async def test_a_signal_reaches_the_task_and_its_events() -> None:
    world = World()
    alloc = allocation()
    async with world.running() as agent:
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        runner = agent.sync.runner(alloc.id)
        await runner.signal("SIGUSR1", "task")
        await world.servers.until(lambda: "Signaling" in kinds(world.servers.reported[alloc.id]))
        with pytest.raises(NomadError) as caught:
            await runner.signal("SIGUSR1", "zz")
        assert caught.value.status == 500
    assert next(iter(world.driver.processes.values())).signals == ["SIGUSR1"]


async def test_a_start_error_shows_as_driver_failure_and_is_tried_again_when_recoverable() -> None:
    world = World()
    world.driver.script("task", Script(start_error="image pull failed"), Script())
    alloc = allocation(task(attempts=1))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    states = world.servers.reported[alloc.id].task_states
    assert states is not None
    failure = next(e for e in states["task"].events or [] if e.type == "Driver Failure")
    assert failure.driver_error == "image pull failed"


async def test_a_task_whose_start_broke_off_with_the_agent_is_not_run_twice() -> None:
    world = World()
    world.driver.script("task", Script(start_s=5.0))
    alloc = allocation()
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: "start task" in world.driver.calls)
    record = (await world.state.allocs())[0].tasks["task"]
    assert record.launching
    # The start went through after all, though no agent heard of it.
    world.driver.script("task", Script())
    other = World()
    other.driver, other.state, other.servers = world.driver, world.state, world.servers
    paths = TaskPaths(alloc="", task="", local="", secrets="", logs="")
    await world.driver.start(
        TaskConfig(
            id=f"{alloc.id}/task",
            alloc_id=alloc.id,
            task="task",
            namespace="default",
            job_id="web",
            group="g",
            paths=paths,
        )
    )
    async with other.running():
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        assert world.driver.live() == ["task"]
    # It was taken over: neither ended nor started again.
    assert "destroy task" not in world.driver.calls
    assert world.driver.started == ["task"]


async def test_an_update_in_place_changes_what_comes_next_and_restarts_nothing() -> None:
    world = World()
    alloc = allocation(task(attempts=0))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        changed = allocation(task(attempts=3, delay_s=1.0), job={"version": 1})
        world.servers.change(alloc.id, job=changed.job)
        process = next(iter(world.driver.processes.values()))
        await world.servers.until(
            lambda: len(world.servers.wanted) == 1 and len(world.servers.beats) > 2
        )
        assert world.driver.started == ["task"]
        process.ended.set_result(ExitResult(exit_code=1))
        await world.servers.until(lambda: world.driver.started == ["task", "task"])


async def test_blocks_that_this_agent_cannot_honour_fail_the_task_with_a_reason() -> None:
    world = World()
    alloc = allocation(task(templates=[Template(embedded_tmpl="x", dest_path="local/x")]))
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    states = world.servers.reported[alloc.id].task_states
    assert states is not None
    failure = next(e for e in states["task"].events or [] if e.type == "Setup Failure")
    assert "template" in failure.setup_error
    assert world.driver.started == []


async def test_a_bad_driver_config_or_an_absent_driver_fails_the_task() -> None:
    world = World()
    bad = allocation(task("bad", config={"bad": True}), number=1)
    absent = allocation(task("absent"), number=2)
    group = (absent.job.task_groups or [])[0] if absent.job else None
    assert group is not None
    other = msgspec.structs.replace((group.tasks or [])[0], driver="qemu")
    job = msgspec.structs.replace(
        absent.job, task_groups=[msgspec.structs.replace(group, tasks=[other])]
    )
    absent = msgspec.structs.replace(absent, job=job)
    async with world.running():
        world.servers.want(bad)
        world.servers.want(absent)
        await world.servers.until(lambda: world.servers.status(bad.id) == "failed")
        await world.servers.until(lambda: world.servers.status(absent.id) == "failed")
    assert world.driver.started == []


async def test_a_dispatched_payload_lies_in_local() -> None:
    world = World()
    alloc = allocation(
        task(dispatch_payload=DispatchPayloadConfig(file="in.txt")), job={"payload": b"work"}
    )
    async with world.running():
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        assert await world.directories.read(alloc.id, "task", "local/in.txt") == b"work"


async def test_config_and_env_are_interpolated() -> None:
    world = World()
    alloc = allocation(
        task(
            config={
                "command": "${attr.kernel.name}",
                "args": ["${NOMAD_TASK_NAME}", '${env["COLOUR"]}'],
            },
            env={"COLOUR": "green", "WHERE": "${node.datacenter}/${meta.rack}"},
            meta={"owner": "team-${NOMAD_GROUP_NAME}"},
        )
    )
    async with world.running(meta={"rack": "r7"}):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    config = world.driver.configs[0]
    assert config.config == {"command": "linux", "args": ["task", "green"]}
    assert config.env["WHERE"] == "dc1/r7"
    assert config.env["NOMAD_META_owner"] == config.env["NOMAD_META_OWNER"] == "team-g"
