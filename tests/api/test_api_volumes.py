"""Host volumes over HTTP: what reaches the servers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import FakeCaller, answer, serving

from nomadpy.errors import NotFoundError
from nomadpy.models.calls import HostVolumeWrite, Read, Write
from nomadpy.models.constraint import Constraint
from nomadpy.models.envelope import QueryOptions, WriteOptions
from nomadpy.models.host_volume import HostVolume, HostVolumeCapability

pytestmark = pytest.mark.real_time

ID = "80b4ad5e-3cc9-b5c4-3c62-a2f35a1a0a4f"
BODY = {
    "volume": {
        "Name": "data",
        "PluginID": "mkdir",
        "NodePool": "gpu",
        "RequestedCapacityMinBytes": 7,
        "RequestedCapabilities": [{"AccessMode": "a", "AttachmentMode": "b"}],
        "Constraints": [{"LTarget": "${meta.rack}", "RTarget": "r1", "Operand": "="}],
        "Parameters": {"mode": "0700"},
        "Whatever": True,
    },
    "PolicyOverride": False,
}
VOLUME = HostVolume(
    name="data",
    plugin_id="mkdir",
    node_pool="gpu",
    requested_capacity_min_bytes=7,
    requested_capabilities=[HostVolumeCapability(access_mode="a", attachment_mode="b")],
    constraints=[Constraint(l_target="${meta.rack}", r_target="r1", operand="=")],
    parameters={"mode": "0700"},
)


@pytest.mark.parametrize(
    ("method", "path", "body", "name", "call"),
    [
        ("PUT", "/v1/volume/host/create", BODY, "Create", HostVolumeWrite(volume=VOLUME)),
        ("POST", "/v1/volume/host/create", BODY, "Create", HostVolumeWrite(volume=VOLUME)),
        (
            "PUT",
            "/v1/volume/host/register?namespace=prod",
            BODY,
            "Register",
            HostVolumeWrite(volume=VOLUME, options=WriteOptions(namespace="prod")),
        ),
        ("DELETE", f"/v1/volume/host/{ID}", None, "Delete", Write(id=ID)),
        (
            "DELETE",
            f"/v1/volume/host/{ID}/delete?force=true",
            None,
            "Delete",
            Write(id=ID, flags={"force": "true"}),
        ),
    ],
)
async def test_a_write_becomes_one_call(
    method: str, path: str, body: Any, name: str, call: Any
) -> None:
    reply = answer({"Index": 7}, index=7)
    async with serving(FakeCaller(**{f"HostVolume__{name}": reply})) as api:
        status, headers, data = await api.ask(method, path, json=body)
        assert (status, headers["X-Nomad-Index"], json.loads(data)) == (200, "7", {"Index": 7})
        assert api.caller.last == call


async def test_the_namespace_of_the_volume_counts_unless_the_query_names_one() -> None:
    body = {"Volume": {"Name": "data", "Namespace": "prod"}}
    async with serving(FakeCaller(HostVolume__Create=answer({}))) as api:
        for query, namespace in (("", "prod"), ("?namespace=other", "other")):
            await api.ask("PUT", f"/v1/volume/host/create{query}", json=body)
            assert api.caller.last.options.namespace == namespace


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Request body is empty"),
        (b"{}", "missing volume definition"),
        (b'{"Volume": null}', "missing volume definition"),
        (b'{"Volume": 3}', "cannot unmarshal"),
        (b'{"Volume": {"RequestedCapacityMinBytes": "much"}}', "cannot unmarshal"),
        (b'{"Volume": {"Constraints": [{}, 7]}}', "cannot unmarshal"),
        (b"{", "unexpected EOF"),
    ],
)
async def test_a_body_that_describes_no_volume_is_refused(body: bytes, said: str) -> None:
    async with serving(FakeCaller()) as api:
        for path in ("create", "register"):
            status, _, data = await api.ask("PUT", f"/v1/volume/host/{path}", data=body)
            assert (status, said in data.decode()) == (400, True), data


async def test_a_force_that_is_no_boolean_is_refused() -> None:
    async with serving(FakeCaller()) as api:
        status, _, data = await api.ask("DELETE", f"/v1/volume/host/{ID}?force=very")
        assert status == 400
        assert b'Failed to parse value of "force"' in data


async def test_a_list_carries_its_filters_and_other_types_are_not_there() -> None:
    caller = FakeCaller(HostVolume__List=answer([], index=7))
    async with serving(caller) as api:
        query = "type=host&node_id=n&node_pool=p&prefix=80&per_page=2&next_token=t&namespace=*"
        status, _, data = await api.get(f"/v1/volumes?{query}")
        assert (status, data) == (200, b"[]")
        assert caller.last == Read(
            options=QueryOptions(namespace="*", prefix="80", per_page=2, next_token="t"),
            flags={"node_id": "n", "node_pool": "p"},
        )
        for path in ("/v1/volumes", "/v1/volumes?type=csi"):
            status, _, data = await api.get(path)
            assert (status, json.loads(data)) == (200, [])
        for path in ("/v1/volumes?type=", "/v1/volumes?type=nfs"):
            assert (await api.get(path))[0] == 404


async def test_one_volume_is_read_or_not_found() -> None:
    caller = FakeCaller(HostVolume__Get=answer({"ID": ID}, index=7))
    async with serving(caller) as api:
        status, headers, data = await api.get(f"/v1/volume/host/{ID}?index=3")
        assert (status, headers["X-Nomad-Index"], json.loads(data)) == (200, "7", {"ID": ID})
        assert caller.last == Read(id=ID, options=QueryOptions(min_index=3))
    missing = NotFoundError("volume not found")
    async with serving(FakeCaller(HostVolume__Get=missing)) as api:
        assert (await api.get("/v1/volume/host/none"))[::2] == (404, b"volume not found")


async def test_claims_are_listed_and_deleted() -> None:
    caller = FakeCaller(
        TaskGroupHostVolumeClaim__List=answer([]),
        TaskGroupHostVolumeClaim__Delete=answer({"Index": 9}, index=9),
    )
    async with serving(caller) as api:
        await api.get("/v1/volumes/claims?job_id=db&task_group=g&volume_name=v&prefix=c")
        assert caller.last == Read(
            options=QueryOptions(prefix="c"),
            flags={"job_id": "db", "task_group": "g", "volume_name": "v"},
        )
        status, _, data = await api.ask("DELETE", "/v1/volumes/claim/c1")
        assert (status, json.loads(data)) == (200, {"Index": 9})
        assert caller.last == Write(id="c1")
