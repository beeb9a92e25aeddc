"""`operator snapshot state` and `redact`: what they show, and that no key material is left."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from faking import run

from nomadpy.clock import SystemClock
from nomadpy.entropy import SeededEntropy
from nomadpy.fsm import commands
from nomadpy.fsm.apply import StateMachine
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.root_key import RootKey
from nomadpy.pki.keyring import Keyring
from nomadpy.pki.keys import create_root_key
from nomadpy.state import archive, persist
from nomadpy.state.store import StateStore


def root_key() -> RootKey:
    return create_root_key("global", SeededEntropy("k"), SystemClock())


@pytest.fixture(scope="module")
def key() -> RootKey:
    return root_key()


def saved(folder: Path, key: RootKey) -> Path:
    store = StateStore()
    machine = StateMachine(store)
    for number, name in enumerate(("web", "db"), 1):
        group = TaskGroup(name="group", count=1)
        job = Job(
            id=name,
            name=name,
            namespace="default",
            type="service",
            node_pool="default",
            task_groups=[group],
            meta={"n": "1"},
        )
        entry = commands.Entry(command=commands.JobRegister(job=job))
        machine.apply(number, commands.encode_entry(entry))
    machine.apply(3, commands.encode_entry(commands.Entry(command=commands.RootKeyUpsert(key=key))))
    path = folder / "state.snap"
    with path.open("wb") as file:
        meta = archive.Meta(id="2-3-0", index=3, term=2, by="s1.global")
        archive.write(file, meta, persist.write(store.snapshot()))
    return path


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    status, out, told = run(capsys, "operator", "snapshot", "state", *words)
    assert status == 0, told
    found: dict[str, Any] = json.loads(out)
    return found


def test_state_prints_rows_by_table_without_key_material(
    tmp_path: Path, key: RootKey, capsys: pytest.CaptureFixture[str]
) -> None:
    found = shown(capsys, str(saved(tmp_path, key)))
    assert found["Index"] == 3
    assert [job["ID"] for job in found["Jobs"]] == ["db", "web"]
    assert found["Nodes"] == []
    assert found["RootKeys"][0]["key_id"] == key.key_id
    text = json.dumps(found)
    for secret in (key.signing_key_pem, key.ca_key_pem):
        assert secret
        assert base64.b64encode(secret).decode() not in text


def test_state_shows_only_rows_that_the_filter_takes(
    tmp_path: Path, key: RootKey, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(tmp_path, key))
    found = shown(capsys, "-filter", 'ID == "web"', path)
    assert [job["ID"] for job in found["Jobs"]] == ["web"]
    assert found["RootKeys"] == []
    status, _, told = run(capsys, "operator", "snapshot", "state", "-filter", "ID ==", path)
    assert status == 1
    assert "-filter" in told


@pytest.mark.parametrize("wrapped", [False, True])
def test_redact_leaves_no_key_material_and_all_else(
    tmp_path: Path, key: RootKey, wrapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Keyring().wrap(key, SeededEntropy("w")) if wrapped else key
    path = saved(tmp_path, held)
    secrets = [s for s in (held.signing_key_pem, held.ca_key_pem, held.data_key) if s]
    if held.wrapped is not None:
        secrets += [held.wrapped.data, held.wrapped.kek]
    assert any(secret in _state(path) for secret in secrets)
    assert run(capsys, "operator", "snapshot", "redact", str(path))[0] == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["state.snap"]
    left = _state(path)
    assert not any(secret in left for secret in secrets)
    with path.open("rb") as file:
        contents = archive.read(file)
    assert contents.redacted
    assert contents.sha256 == hashlib.sha256(left).hexdigest()
    snapshot = archive.state_of(contents)
    assert [job.id for job in snapshot.jobs(None)] == ["db", "web"]
    assert [k.key_id for k in snapshot.root_keys()] == [key.key_id]
    assert contents.meta.id == "2-3-0"


def _state(path: Path) -> bytes:
    with path.open("rb") as file, archive.read(file).state as state:
        return state.read()


@pytest.mark.parametrize("command", ["state", "redact"])
def test_a_file_that_is_no_snapshot_stays_as_it_is(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"something else")
    status, _, told = run(capsys, "operator", "snapshot", command, str(path))
    assert status == 1
    assert "not a snapshot" in told
    assert path.read_bytes() == b"something else"
