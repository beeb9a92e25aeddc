"""What is judged about tasks on agents: valid and invalid histories by hand. Times are in milliseconds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from histories import call, history
from jepsen_style.checker import deployments
from jepsen_style.checker.capacity import Has, State, Takes, check_capacity
from jepsen_style.checker.leaks import Remains, check_leaks
from jepsen_style.checker.placement import Look, Row, check_placement, possible_counts
from jepsen_style.checker.survive import LAST, End, check_survive
from jepsen_style.history import NEMESIS, History, Op
from jepsen_style.processes import Live

Ops = list[Op]

READY = {"n1": "ready", "n2": "ready"}
DOWN = {"n1": "ready", "n2": "down"}


def row(alloc: str, *, name: str = "j-a.g[0]", node: str = "n1", desired: str = "run", client: str = "running") -> Row:  # fmt: skip
    return Row(id=alloc, name=name, job="j-a", node=node, desired=desired, client=client)


def live(alloc: str, pid: int, *, name: str = "j-a.g[0]", started: int = 1) -> Live:
    return Live(alloc=alloc, name=name, job="j-a", task="task", pid=pid, started=started)


def look(at: int, rows: list[Row], lives: list[Live], nodes: dict[str, str] = READY, f: str = "look", **more: Any) -> Ops:  # fmt: skip
    value = Look(nodes=nodes, allocs=rows, live=lives, **more)
    return call(0, at, at + 10, f, got=msgspec.to_builtins(value))


def run(at: int, count: int, outcome: str = "ok") -> Ops:
    return call(1, at, at + 10, "run", outcome, key="a", value={"count": count})


def settle(at: int, rows: list[Row], lives: list[Live], counts: dict[str, int]) -> Ops:
    return look(at, rows, lives, f="settle", counts=counts, seconds=1.0)


ONE = (row("x"), live("x", 100))
END = settle(60_000, [ONE[0]], [ONE[1]], {"j-a": 1})


def test_tasks_that_run_once_and_to_the_end_are_valid() -> None:
    result = check_placement(history(run(0, 1), look(1_000, [ONE[0]], [ONE[1]]), END))
    assert result.valid is True, result


def test_without_an_end_nothing_is_known() -> None:
    assert check_placement(history(run(0, 1), look(1_000, [ONE[0]], [ONE[1]]))).valid is None


def test_two_allocations_of_one_name_are_invalid_while_both_nodes_are_there() -> None:
    rows = [row("x"), row("y", node="n2", client="pending")]
    result = check_placement(history(run(0, 1), look(1_000, rows, []), END))
    assert result.valid is False
    assert "placed twice" in result.summary
    # One that was given up, or is on its way out, is no second one.
    for other in (
        row("y", node="n2", desired="stop"),
        row("y", node="n2", client="lost"),
    ):
        assert check_placement(history(run(0, 1), look(1_000, [rows[0], other], []), END)).valid
    assert check_placement(history(run(0, 1), look(1_000, rows, [], nodes=DOWN), END)).valid


def test_a_name_that_runs_twice_is_invalid_unless_one_was_told_to_stop() -> None:
    lives = [live("x", 100), live("y", 200)]
    before = look(1_000, [row("x")], lives)
    both = [row("x"), row("y", node="n2")]
    assert "twice" in check_placement(history(before, look(1_500, both, lives), END)).summary
    stopping = [row("x"), row("y", node="n2", desired="stop")]
    assert check_placement(history(run(0, 1), before, look(1_500, stopping, lives), END)).valid


def test_two_processes_of_one_task_are_invalid_unless_one_replaces_the_other() -> None:
    twins = [live("x", 100), live("x", 101, started=2)]
    first = look(1_000, [row("x")], twins)
    result = check_placement(history(run(0, 1), first, look(1_500, [row("x")], twins), END))
    assert "two processes" in result.summary
    replaced = look(1_500, [row("x")], twins[1:])
    assert check_placement(history(run(0, 1), first, replaced, END)).valid


@pytest.mark.parametrize(
    ("rows", "nodes", "valid"),
    [
        ([row("x", desired="stop")], READY, False),
        ([], READY, False),
        ([row("x")], READY, True),
        # Its agent has not heard of it.
        ([row("x", node="n2", desired="stop")], DOWN, True),
    ],
)
def test_a_task_must_end_when_its_agent_knows(
    rows: list[Row], nodes: dict[str, str], valid: bool
) -> None:
    seen = [look(at, rows, [live("x", 100)], nodes) for at in range(1_000, 26_000, 1_000)]
    result = check_placement(history(run(0, 1), *seen, END))
    assert result.valid is valid, result
    if not valid:
        assert "went on" in result.summary


def test_time_without_a_look_is_not_held_against_an_agent() -> None:
    stopped = [row("x", desired="stop")]
    seen = [look(at, stopped, [live("x", 100)]) for at in (1_000, 2_000, 22_000, 23_000)]
    assert check_placement(history(run(0, 1), *seen, END)).valid


@pytest.mark.parametrize(
    ("calls", "counts"),
    [
        ((run(0, 2),), {2}),
        ((run(0, 2), run(20, 3, "fail")), {2}),
        ((run(0, 2), run(20, 3, "info")), {2, 3}),
        ((run(0, 2, "info"), run(20, 1)), {1, 2}),
        ((run(0, 2), call(1, 20, 30, "purge", key="a")), {0}),
    ],
)
def test_what_a_job_may_have_follows_from_what_was_acknowledged(
    calls: tuple[Ops, ...], counts: set[int]
) -> None:
    assert possible_counts(history(*calls).calls()) == counts


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (settle(60_000, [], [], {}), "has a count of 0"),
        (settle(60_000, [row("x", client="pending")], [], {"j-a": 1}), "0 of 1 tasks"),
        (settle(60_000, [row("x"), row("y")], [live("x", 1), live("y", 2)], {"j-a": 1}), ""),
        (settle(60_000, [row("x", desired="stop")], [live("x", 1)], {"j-a": 1}), "1 of 1 tasks"),
    ],
)
def test_what_was_acknowledged_must_run_at_the_end(end: Ops, reason: str) -> None:
    result = check_placement(history(run(0, 1), look(1_000, [ONE[0]], [ONE[1]]), end))
    assert result.valid is False
    assert reason in result.summary


# -- capacity ---------------------------------------------------------------------------------------------------

NODE = {"n1": Has(cpu=1_000, memory_mb=500)}


def takes(alloc: str, cpu: int = 400, memory: int = 100, ports: tuple[str, ...] = ()) -> Takes:
    return Takes(id=alloc, name=alloc, node="n1", cpu=cpu, memory_mb=memory, ports=list(ports))


def state(*allocs: Takes, nodes: dict[str, Has] = NODE) -> History:
    value = State(index=7, nodes=nodes, allocs=list(allocs))
    return history(call(0, 0, 10, "look", got=msgspec.to_builtins(value)))


def test_a_node_may_be_full_and_not_more() -> None:
    result = check_capacity(state(takes("a"), takes("b", 600, 400)))
    assert result.valid is True
    assert result.facts["fullest_percent"] == 100
    assert check_capacity(state()).valid is None


@pytest.mark.parametrize(
    ("allocs", "reason"),
    [
        ((takes("a"), takes("b", 601)), "1001 of 1000 MHz"),
        ((takes("a"), takes("b", 1, 401)), "501 of 500 MiB"),
        ((takes("a", ports=("ip:80",)), takes("b", ports=("ip:80",))), "given twice"),
    ],
)
def test_more_than_a_node_has_is_invalid(allocs: tuple[Takes, ...], reason: str) -> None:
    result = check_capacity(state(*allocs))
    assert result.valid is False
    assert reason in result.summary
    assert "index 7" in result.summary


def test_one_port_of_two_addresses_is_two_ports() -> None:
    assert check_capacity(state(takes("a", ports=("x:80",)), takes("b", ports=("y:80",)))).valid


def test_allocations_of_no_node_are_invalid() -> None:
    assert check_capacity(state(takes("a"), nodes={})).valid is False


# -- tasks that survive -----------------------------------------------------------------------------------------

LINES = ["1", "2", "3"]


def job(key: str, ticks: int, code: int = 0) -> Ops:
    return call(ord(key), 0, 10, "run", key=key, value={"ticks": ticks, "code": code})


def end(key: str, **fields: Any) -> Ops:
    known = {"alloc": key, "allocs": 1, "client": "complete", "exit_code": 0, "restarts": 0}
    value = End(**{**known, "lines": [*LINES, LAST], **fields})
    return call(1_000 + ord(key), 50_000, 50_010, "end", key=key, got=msgspec.to_builtins(value))


def lasting(**fields: Any) -> Ops:
    return end("t", **{"client": "running", "exit_code": None, "lines": LINES, **fields})


def ticking(at: int, pid: int = 100) -> Ops:
    return look(at, [row("t")], [live("t", pid)])


SOUND = (job("t", 0), job("e", 3, 7), ticking(1_000), ticking(40_000))


def test_tasks_that_went_on_and_tasks_that_ended_are_valid() -> None:
    result = check_survive(history(*SOUND, lasting(), end("e", client="failed", exit_code=7)))
    assert result.valid is True, result
    assert check_survive(history(*SOUND, lasting())).valid is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"exit_code": 0}, "ended with 7, and 0 is known"),
        ({"exit_code": None}, "ended with 7, and None is known"),
        ({"client": "running"}, "should have ended"),
        ({"lines": [*LINES[:2], LAST]}, "line 3 of its log"),
        ({"lines": ["1", "2", "2", "3", LAST]}, "line 3 of its log"),
        ({"lines": LINES}, "has 3 lines and not 4"),
        ({"restarts": 1}, "restarted"),
        ({"allocs": 2}, "2 allocations"),
    ],
)
def test_an_end_that_was_lost_is_invalid(fields: dict[str, Any], reason: str) -> None:
    known = {"client": "failed", "exit_code": 7, **fields}
    result = check_survive(history(*SOUND, lasting(), end("e", **known)))
    assert result.valid is False
    assert reason in result.summary


def test_a_task_that_a_struck_daemon_did_not_start_is_no_fault_unless_it_ran() -> None:
    unstarted = end("e", client="failed", exit_code=None, lines=[], refused=True)
    assert check_survive(history(*SOUND, lasting(), unstarted)).valid is True
    ran = look(30_000, [row("e")], [live("e", 7)])
    assert check_survive(history(*SOUND, ran, lasting(), unstarted)).valid is False


@pytest.mark.parametrize(
    ("begins", "ends", "lines", "valid"),
    [
        (20_000, 25_000, LINES, True),  # it ended while its daemon was dead
        (20_000, 25_000, ["1", "3"], False),  # a prefix is all that may be left
        (33_000, 36_000, LINES, False),  # it had ended before
        (5_000, 8_000, LINES, False),  # it ran on
    ],
)
def test_a_log_may_be_cut_only_of_a_task_that_ended_while_its_daemon_was_dead(
    begins: int, ends: int, lines: list[str], valid: bool
) -> None:
    looked = (
        look(10_000, [row("e")], [live("e", 7), live("t", 100)]),
        look(15_000, [row("e")], [live("e", 7), live("t", 100)]),
        look(30_000, [row("e")], [live("t", 100)]),
    )
    struck = [
        Op(time=at * 1_000_000, type="info", process=NEMESIS, f=f, key="docker-kill-daemon")
        for f, at in (("start", begins), ("stop", ends))
    ]
    ended = end("e", client="failed", exit_code=7, lines=lines)
    result = check_survive(history(*SOUND, *looked, struck, lasting(), ended))
    assert result.valid is valid, result


def test_a_task_in_a_new_process_is_invalid() -> None:
    anew = (*SOUND, ticking(45_000, 101))
    result = check_survive(history(*anew, lasting(), end("e", client="failed", exit_code=7)))
    assert "started anew" in result.summary


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"client": "failed", "exit_code": 1}, "should run"),
        ({"lines": []}, "empty"),
        ({"lines": ["1", "3"]}, "line 2 of its log"),
        ({"alloc": "u"}, "does not run"),
    ],
)
def test_a_lasting_task_that_did_not_last_is_invalid(fields: dict[str, Any], reason: str) -> None:
    ended = end("e", client="failed", exit_code=7)
    result = check_survive(history(*SOUND, lasting(**fields), ended))
    assert result.valid is False
    assert reason in result.summary


def test_tasks_of_a_node_that_was_given_up_may_be_replaced() -> None:
    away = look(20_000, [row("t")], [live("t", 100)], nodes={"n1": "down", "n2": "ready"})
    ended = end("e", client="failed", exit_code=7)
    assert check_survive(history(*SOUND, away, lasting(allocs=2), ended)).valid is True


# -- leaks ------------------------------------------------------------------------------------------------------


def remains(process: int, at: int, f: str, **fields: Any) -> Ops:
    return call(process, at, at + 10, f, got=msgspec.to_builtins(Remains(**fields)))


def drained(**fields: Any) -> History:
    before = remains(0, 0, "measure", files={"agent-1": 20})
    done = remains(9, 60_000, "drain", seconds=2.0, **{"files": {"agent-1": 22}, **fields})
    return history(before, run(100, 1), done)


def test_nothing_left_is_valid() -> None:
    assert check_leaks(drained()).valid is True
    assert check_leaks(history(run(100, 1))).valid is None


@pytest.mark.parametrize(
    "fields",
    [
        {"processes": ["7: sleep"]},
        {"directories": ["agent-1: x"]},
        {"mounts": ["/m"]},
        {"groups": ["/g"]},
        {"allocations": ["x"]},
        {"files": {"agent-1": 40}},
    ],
)
def test_anything_left_is_invalid_and_named(fields: dict[str, Any]) -> None:
    result = check_leaks(drained(**fields))
    assert result.valid is False
    assert len(result.offending) == 1


# -- deployments ------------------------------------------------------------------------------------------------


def version(at: int, number: int, *, good: bool = True, phase: str = "safety") -> Ops:
    return call(1, at, at + 10, "run", key="d", value={"good": good}, version=number, phase=phase)


def shown(at: int, *rows: tuple[str, int, str], f: str = "look", process: int = 0) -> Ops:
    found = [deployments.Row(id=i, job="d", version=v, status=s) for i, v, s in rows]
    value = deployments.Deployments(rows=found, seconds=3.0)
    return call(process, at, at + 10, f, got=msgspec.to_builtins(value))


def check(*parts: Ops) -> Any:
    return deployments.check_deployments(history(*parts))


def test_deployments_that_end_as_they_deserve_are_valid() -> None:
    result = check(
        version(0, 5),
        shown(100, ("x", 5, "running")),
        shown(200, ("x", 5, "successful")),
        version(300, 8, good=False),
        shown(9_000, ("x", 5, "successful"), ("y", 8, "failed"), f="settle"),
    )
    assert result.valid is True, result
    assert check(version(0, 5), shown(100, ("x", 5, "running"))).valid is None


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((shown(9_000, ("x", 5, "running"), f="settle"),), "is running 3 s after"),
        ((shown(100, ("x", 5, "failed")), shown(200, ("x", 5, "running"))), "had ended changed"),
        (
            (shown(100, ("x", 5, "failed")), shown(100, ("x", 5, "successful"), process=3)),
            "changed",
        ),
        ((version(50, 6, good=False), shown(100, ("x", 6, "successful"))), "cannot run"),
        (
            (version(50, 6, phase="liveness"), shown(9_000, ("x", 6, "failed"), f="settle")),
            "without a fault",
        ),
    ],
)
def test_a_deployment_that_ends_wrongly_or_not_at_all_is_invalid(
    parts: tuple[Ops, ...], reason: str
) -> None:
    result = check(version(0, 5), *parts)
    assert result.valid is False
    assert reason in result.summary


def test_reads_at_the_same_time_may_see_a_deployment_before_and_after_its_end() -> None:
    both = (shown(100, ("x", 5, "successful")), shown(105, ("x", 5, "running"), process=3))
    last = shown(9_000, ("x", 5, "successful"), f="settle")
    assert check(version(0, 5), *both, last).valid is True
