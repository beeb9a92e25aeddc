"""`volume ...`: what specifications become, what is sent, and what is shown."""

from __future__ import annotations

import io
import json
import pathlib
import sys
from typing import Any

import pytest
from faking import answering, run, sequence

from nomadpy.cli.errors import CliError
from nomadpy.cli.volume_spec import EXAMPLE_HCL, EXAMPLE_JSON, read_spec

ID = "80b4ad5e-3cc9-b5c4-3c62-a2f35a1a0a4f"
NODE = "d87c86d7-d22b-f811-c329-09e263995e86"
VOLUME = {
    "Namespace": "default",
    "ID": ID,
    "Name": "data",
    "PluginID": "mkdir",
    "NodePool": "default",
    "NodeID": NODE,
    "RequestedCapacityMinBytes": 0,
    "RequestedCapacityMaxBytes": 0,
    "CapacityBytes": 0,
    "RequestedCapabilities": [
        {"AttachmentMode": "file-system", "AccessMode": "single-node-writer"}
    ],
    "HostPath": f"/volumes/{ID}",
    "State": "ready",
    "CreateIndex": 7,
    "CreateTime": 1_795_393_104_553_227_679,
    "ModifyIndex": 9,
    "ModifyTime": 1_795_393_104_553_227_679,
}
STUB = {
    key: VOLUME[key]
    for key in (
        "Namespace",
        "ID",
        "Name",
        "PluginID",
        "NodePool",
        "NodeID",
        "CapacityBytes",
        "State",
    )
}
OTHER = {**STUB, "ID": "80b4ffff-0000-0000-0000-000000000000", "Name": "logs"}
LIST = "GET /v1/volumes"
READ = f"GET /v1/volume/host/{ID}"
CREATE = "PUT /v1/volume/host/create"
TOLD = {f"GET /v1/node/{NODE}": {"HostVolumes": {"data": {"ID": ID}}}}

SPEC = """
name         = "data"
type         = "host"
plugin_id    = "mkdir"
capacity_min = "1GiB"
capacity_max = 5000000000
capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}
capability {
  access_mode     = "single-node-multi-writer"
  attachment_mode = "file-system"
}
constraint {
  attribute = "${attr.kernel.name}"
  operator  = "!="
  value     = "plan9"
}
parameters {
  mode  = "0700"
  depth = 3
}
"""


def test_a_specification_in_hcl_becomes_what_the_api_takes() -> None:
    assert read_spec(SPEC, name="volume.hcl") == {
        "Name": "data",
        "PluginID": "mkdir",
        "RequestedCapacityMinBytes": 1 << 30,
        "RequestedCapacityMaxBytes": 5_000_000_000,
        "RequestedCapabilities": [
            {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"},
            {"AccessMode": "single-node-multi-writer", "AttachmentMode": "file-system"},
        ],
        "Constraints": [{"LTarget": "${attr.kernel.name}", "Operand": "!=", "RTarget": "plan9"}],
        "Parameters": {"mode": "0700", "depth": "3"},
    }


def test_a_specification_may_be_json_or_the_body_of_a_request() -> None:
    example = read_spec(EXAMPLE_HCL, name="x")
    assert read_spec(json.dumps(EXAMPLE_JSON), name="x") == example
    assert read_spec(json.dumps({"Volume": example}), name="x") == example


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("7", 7), ('"7"', 7), ('"1k"', 1000), ('"1KiB"', 1024), ('"1.5 GB"', 1_500_000_000)],
)
def test_sizes_are_decimal_unless_they_say_otherwise(text: str, bytes_: int) -> None:
    assert read_spec(f"capacity = {text}", name="x") == {"CapacityBytes": bytes_}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nam = "x"', 'Did you mean "name"?'),
        ("capability = 3", "capability must be a block"),
        ('capability { mode = "x" }', "capability has no 'mode'; it has access_mode"),
        ('capacity_min = "much"', 'capacity_min must be a size such as "10GiB"'),
        ('type = "csi"', 'type "csi" is not supported'),
        ("name = [1]", "name must be text"),
        ("parameters = 3", "parameters must be a block"),
        ('name = "x', "spec:1"),
        ("{", "is not JSON"),
        ("{" * 100_000, "is not JSON"),
        ('{"Volume": 3}', "has no 'Volume'"),
    ],
)
def test_a_specification_that_makes_no_sense_says_where(text: str, said: str) -> None:
    with pytest.raises(CliError) as caught:
        read_spec(text, name="spec")
    assert said in str(caught.value)
    assert str(caught.value).startswith("spec")


def test_create_sends_the_volume_waits_for_its_node_and_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    spec = tmp_path / "volume.hcl"
    spec.write_text(SPEC)
    routes: dict[str, Any] = {
        CREATE: {"Volume": VOLUME, "Warnings": "", "Index": 9},
        f"GET /v1/node/{NODE}": sequence({"HostVolumes": None}, TOLD[f"GET /v1/node/{NODE}"]),
        READ: VOLUME,
    }
    with answering(routes, monkeypatch) as agent:
        status, out, _ = run(capsys, "volume", "create", str(spec))
        assert status == 0
        assert agent.of(CREATE)[0][1] == {"Volume": read_spec(SPEC, name="x")}
        assert [query for query, _ in agent.of(f"GET /v1/node/{NODE}")][1]["index"] == "7"
    lines = out.splitlines()
    assert lines[0] == f"==> Created host volume data with ID {ID}"
    assert lines[1] == '  ✓ Host volume "80b4ad5e" ready'
    assert "    Name      = data" in lines
    assert "    State     = ready" in lines
    assert f"    Host Path = /volumes/{ID}" in lines


def test_create_reads_standard_input_and_may_return_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('name = "data"\nnamespace = "prod"'))
    reply = {"Volume": VOLUME, "Warnings": "small", "Index": 9}
    with answering({CREATE: reply}, monkeypatch) as agent:
        status, out, _ = run(capsys, "volume", "create", "-detach", "-id", ID, "-")
        assert status == 0
        query, body = agent.of(CREATE)[0]
        assert query == {"namespace": "prod"}
        assert body["Volume"]["ID"] == ID
    assert out == f"Warning: small\n==> Created host volume data with ID {ID}\n"


def test_create_says_what_the_servers_say_and_what_is_wrong_with_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    spec = tmp_path / "volume.hcl"
    spec.write_text(SPEC)
    with answering({CREATE: (400, 'no node for volume "data"')}, monkeypatch):
        status, _, err = run(capsys, "volume", "create", str(spec))
        assert (status, 'no node for volume "data"' in err) == (1, True)
    status, _, err = run(capsys, "volume", "create", str(tmp_path / "none.hcl"))
    assert (status, "cannot be read: No such file" in err) == (1, True)
    (tmp_path / "binary.hcl").write_bytes(b"\xff\xfe")
    status, _, err = run(capsys, "volume", "create", str(tmp_path / "binary.hcl"))
    assert (status, "is not UTF-8 text" in err) == (1, True)


def test_register_is_sent_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    spec = tmp_path / "volume.json"
    spec.write_text(json.dumps({"name": "data", "node_id": NODE, "host_path": "/srv/data"}))
    route = "PUT /v1/volume/host/register"
    with answering({route: {"Volume": VOLUME}, READ: VOLUME, **TOLD}, monkeypatch) as agent:
        status, out, _ = run(capsys, "volume", "register", str(spec))
        assert status == 0
        assert agent.of(route)[0][1]["Volume"]["HostPath"] == "/srv/data"
    assert out.startswith(f"==> Registered host volume data with ID {ID}\n")


def test_status_lists_volumes_and_shows_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {**VOLUME, "Parameters": {"mode": "0700"}}
    with answering({LIST: [STUB, OTHER], READ: parameters}, monkeypatch) as agent:
        out = run(capsys, "volume", "status", "-type=host", "-node-pool=default")[1]
        assert out.splitlines() == [
            "ID        Name  Namespace  Plugin ID  Node ID   Node Pool  State",
            "80b4ad5e  data  default    mkdir      d87c86d7  default    ready",
            "80b4ffff  logs  default    mkdir      d87c86d7  default    ready",
        ]
        assert agent.of(LIST)[0][0] == {"type": "host", "node_pool": "default"}
        assert json.loads(run(capsys, "volume", "status", "-json")[1]) == [STUB, OTHER]
        for wanted in (ID, "80b4a", "data"):
            out = run(capsys, "volume", "status", wanted)[1]
            assert f"ID        = {ID}" in out
            assert "Capacity  = 0 B" in out
            assert "Capabilities\nAccess Mode         Attachment Mode\nsingle-node-writer" in out
            assert "Parameters\nmode = 0700" in out
            assert out.rstrip().endswith("Allocations\nNo allocations placed")
        assert "Allocations" not in run(capsys, "volume", "status", "-short", "data")[1]
        assert json.loads(run(capsys, "volume", "status", "-json", "data")[1]) == parameters
        status, _, err = run(capsys, "volume", "status", "80b4")
        assert (status, "is not one volume" in err) == (1, True)
        status, _, err = run(capsys, "volume", "status", "zz")
        assert (status, 'No volume with the ID, prefix or name "zz"' in err) == (1, True)
        assert run(capsys, "volume", "status", "-type=csi")[0] == 1
    with answering({LIST: []}, monkeypatch):
        assert run(capsys, "volume", "status")[1] == "No dynamic host volumes\n"


def test_delete_names_the_volume_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    route = f"DELETE /v1/volume/host/{ID}/delete"
    with answering({LIST: [STUB], route: {"Index": 9}}, monkeypatch) as agent:
        out = run(capsys, "volume", "delete", "data")[1]
        assert out == f'Successfully deleted volume "{ID}"!\n'
        run(capsys, "volume", "delete", "-force", ID)
        assert [query for query, _ in agent.of(route)] == [
            {"namespace": "default"},
            {"namespace": "default", "force": "true"},
        ]
    with answering({LIST: [STUB], route: (400, "volume is in use")}, monkeypatch):
        status, _, err = run(capsys, "volume", "delete", "data")
        assert (status, "volume is in use" in err) == (1, True)


def test_claims_are_listed_and_deleted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = {
        "ID": "c0ffee00-3cc9-b5c4-3c62-a2f35a1a0a4f",
        "Namespace": "default",
        "JobID": "db",
        "TaskGroupName": "group",
        "AllocID": "a1a1a1a1-3cc9-b5c4-3c62-a2f35a1a0a4f",
        "VolumeID": ID,
        "VolumeName": "data",
    }
    route = f"DELETE /v1/volumes/claim/{claim['ID']}"
    with answering({"GET /v1/volumes/claims": [claim], route: {"Index": 1}}, monkeypatch) as agent:
        out = run(capsys, "volume", "claim", "list", "-job=db", "-volume-name", "data")[1]
        assert out.splitlines()[1].split() == [
            "c0ffee00",
            "default",
            "db",
            "group",
            "data",
            "80b4ad5e",
            "a1a1a1a1",
        ]
        assert agent.of("GET /v1/volumes/claims")[0][0] == {"job_id": "db", "volume_name": "data"}
        out = run(capsys, "volume", "claim", "delete", "c0ffee")[1]
        assert out == f'Volume claim "{claim["ID"]}" successfully deleted\n'
    with answering({"GET /v1/volumes/claims": []}, monkeypatch):
        assert run(capsys, "volume", "claim", "list")[1] == "No volume claims\n"
        status, _, err = run(capsys, "volume", "claim", "delete", "c0ffee")
        assert (status, "No volume claim with prefix" in err) == (1, True)


def test_init_writes_an_example_that_create_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        run(capsys, "volume", "init")[1] == "Example volume specification written to volume.hcl\n"
    )
    assert run(capsys, "volume", "init", "-json", "mine.json")[0] == 0
    assert read_spec(pathlib.Path("volume.hcl").read_text(), name="x") == read_spec(
        pathlib.Path("mine.json").read_text(), name="x"
    )
    status, _, err = run(capsys, "volume", "init")
    assert (status, "exists already" in err) == (1, True)
