"""Variables over HTTP: what reaches the servers, and how a conflict is dressed."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from serving import FakeCaller, answer, serving

from nomadpy.models.calls import VariableApply, VariableReply

pytestmark = pytest.mark.real_time

WRITTEN = VariableReply(body=b'{"Path":"p"}', index=7)
LOCK = {"ID": "l1", "TTL": "15s", "LockDelay": 1_000_000_000}


def caller(reply: Any = WRITTEN) -> FakeCaller:
    return FakeCaller(Variables__Apply=reply)


@pytest.mark.parametrize(
    ("method", "path", "body", "call"),
    [
        (
            "PUT",
            "/v1/var/a/b",
            {"Path": "other", "items": {"k": "v"}, "Unknown": 1},
            VariableApply(path="a/b", op="set", items={"k": "v"}),
        ),
        (
            "POST",
            "/v1/var/a%2Fb%20c?cas=9",
            {"Items": {"k": "v"}},
            VariableApply(path="a/b c", op="set", items={"k": "v"}, cas=9),
        ),
        (
            "PUT",
            "/v1/var/p?cas=0",
            {"Items": {"k": "v"}, "Lock": LOCK},
            VariableApply(
                path="p",
                op="set",
                items={"k": "v"},
                cas=0,
                lock_id="l1",
                ttl=15_000_000_000,
                delay=1_000_000_000,
            ),
        ),
        ("PUT", "/v1/var/p?lock-acquire", {}, VariableApply(path="p", op="lock-acquire")),
        (
            "PUT",
            "/v1/var/p?lock-release=",
            {"Items": {}, "Lock": {"ID": "l1"}},
            VariableApply(path="p", op="lock-release", items={}, lock_id="l1"),
        ),
        (
            "PUT",
            "/v1/var/p?lock-renew=true",
            {"Lock": {"ID": "l1"}},
            VariableApply(path="p", op="lock-renew", lock_id="l1"),
        ),
        (
            "DELETE",
            "/v1/var/p?cas=18446744073709551615",
            None,
            VariableApply(path="p", op="delete", cas=(1 << 64) - 1),
        ),
    ],
)
async def test_a_write_becomes_one_call(
    method: str, path: str, body: Any, call: VariableApply
) -> None:
    async with serving(caller()) as api:
        status, headers, _ = await api.ask(method, path, json=body)
        assert (status, headers["X-Nomad-Index"]) == (200, "7")
        assert api.caller.last == call


async def test_the_namespace_is_the_querys_before_the_bodys() -> None:
    async with serving(caller()) as api:
        body = {"Namespace": "mine", "Items": {"k": "v"}}
        await api.ask("PUT", "/v1/var/p", json=body)
        assert api.caller.last.options.namespace == "mine"
        await api.ask("PUT", "/v1/var/p?namespace=other", json=body)
        assert api.caller.last.options.namespace == "other"
        await api.ask("DELETE", "/v1/var/p?namespace=other")
        assert api.caller.last.options.namespace == "other"


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("PUT", "/v1/var/p", {}, "variable missing required Items object"),
        ("PUT", "/v1/var/p", {"Items": {}}, "variable missing required Items object"),
        ("PUT", "/v1/var/p?lock-acquire&lock-renew", {}, "multiple lock operations"),
        ("PUT", "/v1/var/p?lock-acquire&cas=1", {}, "CAS can't be used with lock operations"),
        (
            "PUT",
            "/v1/var/p?cas=x",
            {"Items": {"a": "b"}},
            'can not parse cas: strconv.ParseUint: parsing "x": invalid syntax',
        ),
        (
            "DELETE",
            "/v1/var/p?cas=-1",
            None,
            'can not parse cas: strconv.ParseUint: parsing "-1": invalid syntax',
        ),
        ("PUT", "/v1/var/p?cas=18446744073709551616", {"Items": {"a": "b"}}, "can not parse cas"),
        ("GET", "/v1/var/", None, "missing variable path"),
        ("PATCH", "/v1/var/p", None, "Invalid method"),
        ("PUT", "/v1/var/p", {"Items": {"a": 1}}, "json: cannot unmarshal number"),
        ("PUT", "/v1/var/p?lock-acquire", {"Lock": {"TTL": "soon"}}, "invalid duration"),
    ],
)
async def test_what_makes_no_sense_is_refused_here(
    method: str, path: str, body: Any, text: str
) -> None:
    async with serving(caller()) as api:
        status, headers, found = await api.ask(method, path, json=body)
        assert status == 400
        assert text in found.decode()
        assert "X-Nomad-Index" not in headers
        assert api.caller.calls == []


async def test_a_removed_variable_is_204_without_a_body() -> None:
    async with serving(caller(VariableReply(index=9))) as api:
        status, headers, body = await api.ask("DELETE", "/v1/var/p")
        assert (status, headers["X-Nomad-Index"], body) == (204, "9", b"")


async def test_a_conflict_is_json_that_calls_itself_text() -> None:
    reply = VariableReply(body=b'{"Path":"p"}', index=0, conflict=True)
    async with serving(caller(reply)) as api:
        status, headers, body = await api.ask("PUT", "/v1/var/p", json={"Items": {"a": "b"}})
        assert (status, json.loads(body)) == (409, {"Path": "p"})
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["X-Nomad-Index"] == "0"
        status, headers, body = await api.ask(
            "PUT", "/v1/var/p", json={"Items": {"a": "b"}}, headers={"Accept-Encoding": "gzip"}
        )
        assert (status, json.loads(gzip.decompress(body))) == (409, {"Path": "p"})
        assert "Content-Type" not in headers


async def test_answers_about_locks_have_no_index() -> None:
    async with serving(caller(VariableReply(body=b"{}"))) as api:
        _, headers, _ = await api.ask("PUT", "/v1/var/p?lock-renew", json={"Lock": {"ID": "x"}})
        assert "X-Nomad-Index" not in headers


async def test_reads_pass_their_path_and_options() -> None:
    replies = FakeCaller(Variables__List=answer([]), Variables__Get=answer({}))
    async with serving(replies) as api:
        await api.get("/v1/var/a/b%2Fc?namespace=n&stale")
        assert api.caller.last.id == "a/b/c"
        assert api.caller.last.options.allow_stale
        await api.get("/v1/vars?prefix=a%2F&namespace=*")
        options = api.caller.last.options
        assert (options.prefix, options.namespace) == ("a/", "*")


@pytest.mark.parametrize(
    ("query", "status", "flags"),
    [
        ("", 200, {"force": "false"}),
        ("?force=true", 200, {"force": "true"}),
        ("?force=perhaps", 422, None),
    ],
)
async def test_removing_a_root_key(query: str, status: int, flags: Any) -> None:
    async with serving(FakeCaller(Keyring__Delete=answer(None))) as api:
        found, _, body = await api.ask("DELETE", f"/v1/operator/keyring/key/k1{query}")
        assert found == status
        if flags is None:
            assert body == b"invalid force parameter"
        else:
            assert (api.caller.last.id, api.caller.last.flags) == ("k1", flags)
