"""`operator raft`, `operator autopilot set-config` and `operator snapshot`: what they send, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faking import answering, run

from nomadpy.state import archive, persist
from nomadpy.state.store import StateStore

PEER = "/v1/operator/raft/peer"
TRANSFER = "/v1/operator/raft/transfer-leadership"
AUTOPILOT = "/v1/operator/autopilot/configuration"
CONFIG = {
    "CleanupDeadServers": True,
    "LastContactThreshold": "200ms",
    "MaxTrailingLogs": 250,
    "MinQuorum": 0,
    "ServerStabilizationTime": "10s",
    "ModifyIndex": 7,
}


def snapshot_file(folder: Path) -> Path:
    store = StateStore()
    store.advance(41)
    path = folder / "state.snap"
    with path.open("wb") as file:
        meta = archive.Meta(id="2-41-0", index=41, term=2, by="s1.global")
        archive.write(file, meta, persist.write(store.snapshot()))
    return path


def test_a_peer_is_removed_by_its_id_or_its_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering({f"DELETE {PEER}": None}, monkeypatch) as agent:
        assert run(capsys, "operator", "raft", "remove-peer", "-peer-id=abc")[0] == 0
        assert run(capsys, "operator", "raft", "remove-peer", "-peer-address=h:1")[0] == 0
        assert [q for q, _ in agent.of(f"DELETE {PEER}")] == [{"id": "abc"}, {"address": "h:1"}]
        for words in ([], ["-peer-id=a", "-peer-address=h:1"]):
            status, _, told = run(capsys, "operator", "raft", "remove-peer", *words)
            assert status != 0
            assert "Name one server" in told


def test_leadership_is_handed_to_the_server_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering({f"PUT {TRANSFER}": {"Noop": False}}, monkeypatch) as agent:
        status, out, _ = run(capsys, "operator", "raft", "transfer-leadership", "-peer-id=abc")
        assert status == 0
        assert "abc" in out
        assert agent.of(f"PUT {TRANSFER}")[0][0] == {"id": "abc"}


def test_autopilot_settings_that_are_not_named_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    routes = {f"GET {AUTOPILOT}": CONFIG, f"PUT {AUTOPILOT}": True}
    with answering(routes, monkeypatch) as agent:
        words = ("-cleanup-dead-servers=false", "-server-stabilization-time=5s", "-min-quorum=3")
        assert run(capsys, "operator", "autopilot", "set-config", *words)[0] == 0
        query, body = agent.of(f"PUT {AUTOPILOT}")[0]
        assert query == {"cas": "7"}
        assert body == {
            **CONFIG,
            "CleanupDeadServers": False,
            "ServerStabilizationTime": "5s",
            "MinQuorum": 3,
        }
        bad = run(capsys, "operator", "autopilot", "set-config", "-cleanup-dead-servers=maybe")
        assert bad[0] != 0


def test_a_snapshot_is_inspected_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = snapshot_file(tmp_path)
    status, out, _ = run(capsys, "operator", "snapshot", "inspect", "-json", str(path))
    assert status == 0
    assert (json.loads(out)["Index"], json.loads(out)["Term"]) == (41, 2)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    for words in (["inspect"], ["restore"]):
        status, _, told = run(capsys, "operator", "snapshot", *words, str(path))
        assert status == 1
        assert "snapshot" in told
    assert run(capsys, "operator", "snapshot", "inspect", str(tmp_path / "none"))[0] == 1


def test_a_snapshot_is_never_saved_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = snapshot_file(tmp_path)
    status, _, told = run(capsys, "operator", "snapshot", "save", str(path))
    assert status == 1
    assert "is there already" in told
