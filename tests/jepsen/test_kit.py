"""The kit's own parts: schedules, grudges, histories on disk, reports, the command line's refusals; the guard of mutations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from histories import call, event, history, read, write
from hypothesis import given
from hypothesis import strategies as st
from jepsen_style import generator, undo
from jepsen_style.cli import FAILED, main
from jepsen_style.history import FOREVER, Op, Recorder, read_history
from jepsen_style.judge import judge
from jepsen_style.nemesis.partition import GRUDGES
from jepsen_style.nemesis.registry import NEMESES, expand
from jepsen_style.report import write_index, write_report
from jepsen_style.runner import Options, Run

from nomadpy import mutations
from nomadpy.entropy import SeededEntropy
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
