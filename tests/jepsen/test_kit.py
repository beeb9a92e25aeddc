"""The kit's own parts: schedules, grudges, histories on disk, reports, the command line's refusals; the guard of mutations."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from histories import MS, call, event, history, read, write
from hypothesis import given
from hypothesis import strategies as st
from jepsen_style import generator, suites, undo
from jepsen_style.checker.logs import check_logs
from jepsen_style.checker.recovery import UNHEALED, Longest, by_nemesis, check_recovery, outages
from jepsen_style.checker.result import Result
from jepsen_style.cli import FAILED, main
from jepsen_style.cluster import OwnCluster
from jepsen_style.equipment import Equipment
from jepsen_style.equipment_registry import EQUIPMENT, all_missing, equipment_for
from jepsen_style.history import FOREVER, NEMESIS, OBSERVER, Op, Recorder, read_history
from jepsen_style.judge import judge
from jepsen_style.nemesis.base import Nemesis
from jepsen_style.nemesis.combined import Strikes
from jepsen_style.nemesis.partition import GRUDGES
from jepsen_style.nemesis.registry import NEMESES, expand, family_of
from jepsen_style.report import write_index, write_report
from jepsen_style.runner import Options, Run
from jepsen_style.serve import MOST_AT_ONCE, Store
from jepsen_style.workload.registry import WORKLOADS

from nomadpy import mutations
from nomadpy.demo.client import until
from nomadpy.entropy import Entropy, SeededEntropy
from nomadpy.errors import ConfigError
from nomadpy.pki.ca import create_ca


@given(seed=st.integers(), limit=st.floats(0, 300), count=st.integers(0, 5))
def test_faults_follow_one_another_and_end_before_the_limit(
    seed: int, limit: float, count: int
) -> None:
    names = list(NEMESES)[:count]
    steps = generator.schedule(seed, names, limit)
    assert steps == generator.schedule(seed, names, limit)
    border = generator.GRACE_S
    for step in steps:
        assert border <= step.start_s < step.end_s <= limit
        border = step.end_s
    first = [s.nemesis for s in steps[:count]]
    assert len(first) == len(set(first))


def test_another_seed_is_another_schedule() -> None:
    schedules = {tuple(generator.schedule(seed, list(NEMESES), 60)) for seed in range(10)}
    assert len(schedules) == 10


@given(
    name=st.sampled_from(sorted(GRUDGES)),
    count=st.integers(3, 9),
    leads=st.integers(1, 3),
    seed=st.integers(),
)
def test_every_grudge_cuts_something_and_nobody_from_itself(
    name: str, count: int, leads: int, seed: int
) -> None:
    pairs = GRUDGES[name](range(1, count + 1), leads, SeededEntropy(seed))
    assert pairs
    assert all(a != b and min(a, b) >= 1 and max(a, b) <= count for a, b in pairs)
    if name == "ring" and count > 3:
        for host in range(1, count + 1):
            heard = count - sum(receiver == host for _, receiver in pairs)
            assert heard > count // 2
    if name == "halves":
        cut_off = {a for a, b in pairs if b not in {leads} and (leads, b) in pairs}
        assert leads in cut_off
        assert len(cut_off) <= (count - 1) // 2


def test_a_fault_without_target_means_all_of_its_targets() -> None:
    assert expand(["kill"]) == ["kill-leader", "kill-one", "kill-majority", "kill-all"]
    assert expand(["none"]) == []
    assert expand(["restart-all", "restart-all"]) == ["restart-all"]
    with pytest.raises(ValueError, match="there is no nemesis 'earthquake'"):
        expand(["earthquake"])


def test_a_history_survives_the_disk_and_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    recorder = Recorder(file)
    written = history(write(1, 0, 1, 0, 10, "a"), read(2, 2, 3, 10, "a")).ops
    for op in written:
        recorder.write(op)
    recorder.close()
    assert read_history(file).ops == written
    file.write_bytes(file.read_bytes()[:-5])
    assert read_history(file).ops == written[:-1]
    file.write_bytes(b"{broken\n" + file.read_bytes())
    with pytest.raises(msgspec.DecodeError):
        read_history(file)


def test_a_call_without_completion_is_unknown() -> None:
    [cut] = history([Op(time=5, type="invoke", process=1, f="cas")]).calls()
    assert cut.done.type == "info"
    assert cut.end_ns == FOREVER


def test_a_report_is_one_file_that_shows_the_verdict_and_escapes_what_it_shows(
    tmp_path: Path,
) -> None:
    happened = history(
        write(1, 0, 1, 0, 10, "<script>"),
        write(1, 10, 12, 10, 20, "b"),
        read(2, 1013, 1014, 10, "<script>"),
        event(2, "start", "kill-leader"),
        event(9, "stop", "kill-leader"),
        call(1, 2000, 2001, "cas", key="x", cas=20, value="c", version=30, phase="liveness"),
    )
    run = Run(
        options=Options(nemeses=["kill-leader"], command="python run.py"),
        nodes=["n1"],
        began_ns=1_700_000_000_000_000_000,
        version="1",
    )
    results = judge(run, happened, {})
    folder = tmp_path / "register" / "one"
    folder.mkdir(parents=True)
    page = write_report(folder, run, happened, results, {"n1": "2023-11-14T22:13:20.5Z <b>\n"})
    text = page.read_text()
    assert "class=invalid" in text
    assert "<script" not in text
    assert "&lt;b&gt;" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    (folder / "run.json").write_bytes(msgspec.json.encode(run))
    verdicts = {"valid": False, "results": results}
    (folder / "results.json").write_bytes(msgspec.json.encode(verdicts))
    assert "register/one/report.html" in write_index(tmp_path).read_text()


def test_what_cannot_be_asked_for_is_a_failure_of_the_kit_not_a_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--workload", "nothing"]) == FAILED
    assert "there is no workload 'nothing'" in capsys.readouterr().err


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in (*NEMESES, "register", "counter", "append", "jobs-set", *mutations.MUTATIONS):
        assert f"  {name} " in out


def test_heal_undoes_what_a_dead_run_left_and_spares_a_living_one(tmp_path: Path) -> None:
    notes, left = tmp_path / "notes", tmp_path / "left"
    notes.mkdir()
    left.mkdir()
    sleeper = subprocess.Popen(["sleep", "600"], cwd=left)
    os.kill(sleeper.pid, 19)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    entries = msgspec.json.encode([undo.Undo("folder", str(left))])
    (notes / f"{gone.pid}.json").write_bytes(entries)
    alive = notes / f"{os.getpid()}.json"
    alive.write_bytes(msgspec.json.encode([undo.Undo("folder", str(tmp_path / "other"))]))
    (tmp_path / "other").mkdir()
    assert undo.heal(notes) == [undo.Undo("folder", str(left))]
    assert sleeper.wait(5) == -9
    assert not left.exists()
    assert alive.exists()
    assert (tmp_path / "other").exists()


def test_a_mutation_is_refused_on_every_cluster_but_the_kits() -> None:
    theirs = create_ca(now_ns=1_700_000_000_000_000_000)[0].decode()
    for ca in (None, theirs):
        with pytest.raises(ConfigError, match="is not the fault-injection kit's"):
            mutations.apply(None, {mutations.VARIABLE: "stale-reads"}, ca)  # type: ignore[arg-type]
    kits = create_ca(mutations.KIT_CA, now_ns=1_700_000_000_000_000_000)[0].decode()
    with pytest.raises(ConfigError, match="is not the fault-injection kit's"):
        mutations.apply(None, {mutations.VARIABLE: "stale-reads"}, kits + theirs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no 'typo'"):
        mutations.apply(None, {mutations.VARIABLE: "typo"}, kits)  # type: ignore[arg-type]
    mutations.apply(None, {}, theirs)  # type: ignore[arg-type]


@given(seed=st.integers(), limit=st.floats(0, 300), picked=st.sets(st.sampled_from(list(NEMESES))))
def test_overlapping_faults_are_of_different_families_and_end_before_the_limit(
    seed: int, limit: float, picked: set[str]
) -> None:
    families = {name: family_of(name) for name in sorted(picked)}
    steps = generator.overlapping(seed, families, limit)
    assert steps == generator.overlapping(seed, families, limit)
    for number, step in enumerate(steps):
        assert generator.GRACE_S <= step.start_s < step.end_s <= limit
        others = [s for s in steps[:number] if s.end_s > step.start_s]
        assert len(others) < generator.MOST_AT_ONCE
        assert families[step.nemesis] not in {families[o.nemesis] for o in others}
    first = [s.nemesis for s in steps[: len(families)]]
    assert len(first) == len(set(first))


def test_overlapping_faults_overlap_and_leave_times_of_calm() -> None:
    families = {name: family_of(name) for name in ("kill-one", "pause-one", "partition-one")}
    for seed in range(10):
        steps = generator.overlapping(seed, families, 120.0)
        assert any(b.start_s < a.end_s for a, b in itertools.pairwise(steps))
        assert any(b.start_s > a.end_s + 3 for a, b in itertools.pairwise(steps))


class Fragile(Nemesis):
    """A fault that tells what is done to it, and may fail."""

    done: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self._name = name

    def begin(self, source: Entropy) -> str:
        self.done.append(f"{self._name} begins")
        if self._name == "fails-to-begin":
            raise RuntimeError("no such thing")
        return "somebody"

    def end(self) -> None:
        self.done.append(f"{self._name} ends")
        if self._name == "fails-to-end":
            raise RuntimeError("it stays")


def _strike(*steps: generator.Step) -> list[str]:
    Fragile.done.clear()
    strikes = Strikes(1, Fragile, lambda: 0, lambda *_: None)
    strikes.run(steps, lambda _: True)
    return Fragile.done


def test_every_fault_is_undone_whatever_happens_to_the_others() -> None:
    one = generator.Step("one", 1.0, 9.0, "1/a")
    assert _strike(one, generator.Step("two", 2.0, 5.0, "1/b")) == [
        "one begins",
        "two begins",
        "two ends",
        "one ends",
    ]
    # One that another does not let strike is undone, and missed; alone it is the kit's failure.
    missed = generator.Step("fails-to-begin", 2.0, 5.0, "1/b")
    assert _strike(one, missed)[1:] == ["fails-to-begin begins", "fails-to-begin ends", "one ends"]
    with pytest.raises(RuntimeError, match="no such thing"):
        _strike(missed)
    assert Fragile.done == ["fails-to-begin begins", "fails-to-begin ends"]
    with pytest.raises(RuntimeError, match="it stays"):
        _strike(one, generator.Step("fails-to-end", 2.0, 5.0, "1/b"))
    assert Fragile.done[2:] == ["fails-to-end ends", "one ends"]


def test_a_run_that_is_over_undoes_what_has_begun() -> None:
    Fragile.done.clear()
    moments = iter([True, False])
    Strikes(1, Fragile, lambda: 0, lambda *_: None).run(
        [generator.Step("one", 1.0, 9.0, "1/a")], lambda _: next(moments)
    )
    assert Fragile.done == ["one begins", "one ends"]


def test_every_plan_of_every_suite_can_be_run_and_the_long_one_leaves_no_nemesis_out() -> None:
    for plans in suites.SUITES.values():
        for plan in plans:
            names = [n for n in plan.nemeses.split(",") if n != "combined"]
            assert plan.workload in WORKLOADS
            agents = "agents" in WORKLOADS[plan.workload].needs
            assert expand(names, agents=agents) or plan.nemeses in ("combined", "none")
    assert len(suites.SUITES["ci"]) == 6
    struck = {
        nemesis
        for plan in suites.SUITES["long"]
        for nemesis in expand(
            [n for n in plan.nemeses.split(",") if n != "combined"],
            agents="agents" in WORKLOADS[plan.workload].needs,
        )
    }
    # What must be found invalid has tests of its own.
    assert {n for n, kind in NEMESES.items() if not kind.refuted} == struck
    refuted = {n for n, kind in NEMESES.items() if kind.refuted}
    assert refuted <= {p.nemeses for p in suites.SUITES["proofs"]}
    assert set(mutations.MUTATIONS) == {p.mutation for p in suites.SUITES["proofs"]} - {""}
    assert set(WORKLOADS) - {plan.workload for plan in suites.SUITES["long"]} == set()


def test_a_suite_ends_with_a_verdict_for_each_run_and_the_longest_outage_for_each_fault(
    tmp_path: Path,
) -> None:
    outage = Longest(
        nemesis="kill-leader", count=2, silence_s=4.25, after_up_s=None, promised="NOT kept"
    )
    results = [
        Result(checker="perf", valid=True, summary="", facts={"ok_per_s": 512.5}),
        Result(
            checker="recovery",
            valid=True,
            summary="",
            facts={"kill-leader": msgspec.to_builtins(outage)},
        ),
    ]
    (tmp_path / "results.json").write_bytes(
        msgspec.json.encode({"valid": True, "results": results})
    )
    ran = suites.Outcome(suites.Plan("register", "kill-leader"), 0, tmp_path)
    proof = suites.Plan("register", "none", mutation="stale-reads", refuted=True)
    found, missed = (suites.Outcome(proof, verdict, None) for verdict in (1, 0))
    assert [found.code, missed.code] == [0, 1]
    assert [found.word, missed.word] == ["refuted", "NOT FOUND"]
    assert suites.Outcome(proof, suites.FAILED, None).code == suites.FAILED
    failed = suites.Outcome(suites.Plan("append", "none"), suites.FAILED, None)
    lines = list(suites.table([ran, failed]))
    assert lines[1].split() == ["valid", "register", "512.5", "s", "kill-leader"]
    assert lines[2].split() == ["FAILED", "append", "none"]
    assert lines[-1].split() == ["kill-leader", "2", "4.25", "s", "-", "NOT", "kept"]


def test_an_outage_begins_with_its_fault_and_ends_with_the_next_write() -> None:
    def wrote(at: int, phase: str = "safety") -> list[Op]:
        return call(1, at - 1, at, "cas", key="x", cas=0, value=str(at), version=at, phase=phase)

    def said(at: int, who: str) -> list[Op]:
        return [Op(time=at * MS, type="info", process=OBSERVER, f="leader", node="n1", value=who)]

    happened = history(
        wrote(900),
        event(1000, "start", "kill-leader"),
        said(1100, "?"),
        # A write that was under way is not the end of it.
        wrote(1010),
        wrote(3000),
        event(4000, "stop", "kill-leader"),
        said(5000, "n1"),
        wrote(5200),
        event(8000, "start", "pause-leader"),
        wrote(8001),
        wrote(9900),
        event(9950, "stop", "pause-leader"),
        event(10_000, "heal"),
        wrote(14_000, phase="liveness"),
    )
    kill, pause = outages(happened)
    assert kill.silence_ns == 2801 * MS  # from 5.2 s to the write after the next fault's beginning
    assert (kill.up_ns, kill.after_up_ns) == (5000 * MS, 200 * MS)
    assert pause.silence_ns == 1899 * MS
    assert pause.up_ns == 0
    [told] = [r for r in by_nemesis([kill]) if r.nemesis == "kill-leader"]
    assert told.promised == "at most 3 s: kept"


def test_nodes_that_fall_again_before_they_could_lead_are_not_late() -> None:
    def said(at: int, who: str) -> list[Op]:
        return [Op(time=at * MS, type="info", process=OBSERVER, f="leader", node="n1", value=who)]

    happened = history(
        call(1, 0, 1, "cas", key="x", cas=0, value="a", version=1),
        event(1000, "start", "kill-all"),
        said(1100, "?"),
        event(2000, "stop", "kill-all"),
        said(4000, ""),
        event(4500, "start", "kill-all"),
        said(4600, "?"),
        event(5000, "stop", "kill-all"),
        said(8000, ""),
        call(1, 9000, 9100, "cas", key="x", cas=1, value="b", version=2),
    )
    first, second = outages(happened)
    assert (first.silence_ns, first.after_up_ns) == (8100 * MS, 500 * MS)
    assert (second.silence_ns, second.after_up_ns) == (4600 * MS, 1100 * MS)


def test_overlapping_faults_have_no_outage_of_their_own() -> None:
    happened = history(
        call(1, 0, 1, "cas", key="x", cas=0, value="a", version=1),
        event(10, "start", "kill-one"),
        event(20, "start", "pause-one"),
        event(30, "stop", "kill-one"),
        event(40, "stop", "pause-one"),
        event(50, "start", "kill-all"),
        event(60, "stop", "kill-all"),
    )
    assert [o.nemesis for o in outages(happened)] == ["kill-all"]


def test_a_cluster_that_does_not_come_back_is_invalid() -> None:
    broken = Op(time=5, type="info", process=NEMESIS, f=UNHEALED, error="no leader")
    result = check_recovery(history([broken]))
    assert result.valid is False
    assert "no leader" in result.offending[0]
    assert check_recovery(history()).valid is True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A folder of runs on loopback."""
    folder = tmp_path / "store"
    (folder / "register" / "one").mkdir(parents=True)
    (folder / "index.html").write_text("the index")
    (folder / "register" / "one" / "report.html").write_text("a report")
    (folder / "register" / "one" / "binary").write_text("no report")
    (folder / "latest").symlink_to(Path("register") / "one")
    (tmp_path / "secret.html").write_text("a secret")
    (folder / "out.html").symlink_to(tmp_path / "secret.html")
    with Store(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _ask(store: Store, target: str, method: str = "GET", host: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*store.server_address[:2], timeout=10)  # type: ignore[arg-type]
    connection.putrequest(method, target, skip_host=bool(host))
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.real_time
def test_the_store_serves_reports_and_nothing_outside(store: Store) -> None:
    assert _ask(store, "/") == (200, "the index")
    assert _ask(store, "/latest/report.html") == (200, "a report")
    assert _ask(store, "/", "HEAD") == (200, "")
    for target in (
        "/../secret.html",
        "/%2e%2e/secret.html",
        "/register/../../secret.html",
        "//../secret.html",
        "/out.html",
        "/latest/binary",
        "/register",
        "/nothing.html",
        "/%00",
        "secret.html",
        "/" + "a" * 5000,
    ):
        status, body = _ask(store, target)
        assert status == 404, target
        assert "secret" not in body.replace("secret.html", "")
    assert _ask(store, "/", "POST")[0] == 501
    assert _ask(store, "/", "DELETE")[0] == 501
    # A name that somebody else made to mean this machine.
    assert _ask(store, "/", host="elsewhere.example:80")[0] == 421


@pytest.mark.real_time
def test_the_store_takes_only_some_requests_at_a_time(store: Store) -> None:
    address = ("127.0.0.1", store.server_address[1])
    with contextlib.ExitStack() as idle:
        for _ in range(MOST_AT_ONCE):
            idle.enter_context(socket.create_connection(address)).sendall(b"GET / HTTP/1.1\r\n")
        until(lambda: _closed(address), seconds=60, what="a request that is turned away")
    until(lambda: not _closed(address), seconds=60, what="room for a request")


def _closed(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, timeout=30) as one:
        try:
            one.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            return one.recv(1) == b""
        except ConnectionError:
            return True


class Stand(Equipment):
    """Equipment for tests."""

    need = "stand"
    about = "a test"

    @classmethod
    def missing(cls) -> str:
        return ""

    def up(self, cluster: OwnCluster) -> None: ...


class Better(Stand):
    """Serves two needs."""

    need = "better"
    gives = frozenset({"stand"})


def test_equipment_that_gives_more_takes_the_place_of_what_gives_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(EQUIPMENT, "stand", Stand)
    monkeypatch.setitem(EQUIPMENT, "better", Better)
    assert equipment_for({"stand"}) == [Stand]
    assert equipment_for({"stand", "better"}) == [Better]
    assert equipment_for({"agents", "root"}) == []
    assert all_missing({"nothing-like-it"}) == "there is no equipment 'nothing-like-it'"
    assert all_missing({"stand", "agents"}) == ""


def test_faults_of_agents_are_meant_only_where_there_are_any() -> None:
    assert "kill-agent" not in expand(["kill"])
    assert "kill-agent" in expand(["kill"], agents=True)
    assert expand(["kill-agent"]) == ["kill-agent"]


def test_agents_have_configurations_of_their_own_and_not_the_machines_docker(
    tmp_path: Path,
) -> None:
    cluster = OwnCluster(tmp_path / "c", 1, agents=1, extra={"client": "# for agents\n"})
    assert (cluster.names, cluster.agent_names) == (["server-1"], ["agent-1"])
    cluster.prepare()
    agent = cluster.hosts["agent-1"].config_file.read_text()
    server = cluster.hosts["server-1"].config_file.read_text()
    assert 'name      = "agent-1"' in agent
    assert "# for agents" in agent
    assert "# for agents" not in server
    assert "/no-docker" in agent
    assert "global-client-nomad.pem" in agent
    assert cluster.hosts["server-1"].rpc in agent


def test_undoing_knows_mounts_and_cgroups_that_are_gone_already(tmp_path: Path) -> None:
    undo.undo(
        [
            undo.Undo("mount", str(tmp_path / "no-mount")),
            undo.Undo("cgroup", str(tmp_path / "no-cgroup")),
            undo.Undo("netns", "nj-no-such"),
            undo.Undo("link", "nj-no-such"),
            undo.Undo("folder", str(tmp_path / "no-folder")),
        ]
    )


@pytest.mark.parametrize(
    ("end", "valid"),
    [
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("OSError: [Errno 23] Too many open files in system", True),
        ("MemoryError", True),
        ("KeyError: 'Cannot'", False),
    ],
)
def test_what_the_kernel_refuses_a_starved_node_is_no_broken_program(end: str, valid: bool) -> None:
    log = f'Traceback (most recent call last):\n  File "a.py", line 1, in a\n    b()\n{end}\nmore\n'
    assert check_logs({"n1": log}, starved=True).valid is valid
    # Where nobody starved it, a node that runs out of something leaks.
    assert check_logs({"n1": log}).valid is False
