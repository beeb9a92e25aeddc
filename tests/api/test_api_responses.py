"""How answers are dressed: headers, pretty, gzip, streams, and what the node says about itself."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import time
from typing import Any

import msgspec
import pytest
from serving import FakeCaller, FakeLocal, FakeStream, answer, recorded, serving

from nomadpy import logs
from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models.envelope import Answer

pytestmark = pytest.mark.real_time


async def test_a_read_has_the_three_index_headers_also_at_index_0() -> None:
    caller = FakeCaller(Job__List=answer([], last_contact_ms=0, next_token="default.p1"))
    async with serving(caller) as api:
        status, headers, body = await api.get("/v1/jobs")
        assert (status, body) == (200, b"[]")
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Nomad-Index"] == "0"
        assert headers["X-Nomad-Lastcontact"] == "0"
        assert headers["X-Nomad-Knownleader"] == "true"
        assert headers["X-Nomad-Nexttoken"] == "default.p1"
        assert headers["Vary"] == "Accept-Encoding"


async def test_an_empty_answer_has_no_content_type() -> None:
    async with serving(FakeCaller(NodePool__Upsert=Answer(index=20))) as api:
        status, headers, body = await api.ask("PUT", "/v1/node/pools", json={"Name": "gpu"})
        assert (status, body, headers["X-Nomad-Index"]) == (200, b"", "20")
        assert "Content-Type" not in headers


async def test_revert_alone_among_writes_has_read_headers() -> None:
    async with serving(FakeCaller(Job__Revert=answer({}, index=49))) as api:
        _, headers, _ = await api.ask("PUT", "/v1/job/web/revert", json={"JobID": "web"})
        assert headers["X-Nomad-Index"] == "49"
        assert headers["X-Nomad-Knownleader"] == "false"


@pytest.mark.parametrize(
    ("query", "pretty"), [("pretty", True), ("pretty=1", True), ("pretty=0", False), ("", False)]
)
async def test_pretty_indents_unless_it_is_0(query: str, pretty: bool) -> None:
    body = recorded("jobs", "read")
    async with serving(FakeCaller(Job__Get=answer(body))) as api:
        _, _, got = await api.get(f"/v1/job/web?{query}")
        assert json.loads(got) == body
        assert got.endswith(b"\n") == pretty
        assert (b"\n    " in got) == pretty


@pytest.mark.parametrize("size", [10, 300_000])
async def test_gzip_only_when_asked_for(size: int) -> None:
    value = "x" * size
    async with serving(FakeCaller(Status__Leader=answer(value))) as api:
        _, headers, body = await api.get("/v1/status/leader", headers={"Accept-Encoding": "gzip"})
        assert headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(body)) == value
        _, headers, body = await api.get(
            "/v1/status/leader", headers={"Accept-Encoding": "identity"}
        )
        assert "Content-Encoding" not in headers
        assert json.loads(body) == value


async def test_an_error_is_compressed_when_asked_for() -> None:
    async with serving(FakeCaller(Job__Get=NotFoundError("job not found"))) as api:
        _, headers, body = await api.get("/v1/job/x", headers={"Accept-Encoding": "gzip"})
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(body) == b"job not found"


async def test_configured_headers_are_on_every_answer() -> None:
    async with serving(response_headers=(("X-Site", "a"),)) as api:
        assert (await api.get("/v1/nothing"))[1]["X-Site"] == "a"


async def test_a_client_that_goes_cancels_its_blocking_call() -> None:
    async def forever(_: Any) -> None:
        await asyncio.Event().wait()

    caller = FakeCaller(Job__List=forever)
    async with serving(caller) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await api.get("/v1/jobs?index=5&wait=60s")
        for _ in range(100):
            if caller.cancelled:
                break
            await asyncio.sleep(0.02)
        assert caller.cancelled == ["Job.List"]


async def test_logs_are_passed_on_as_they_come() -> None:
    frame = msgspec.json.encode(recorded("batch", "logs-framed"))
    async with serving(FakeCaller(FS__Logs=FakeStream([frame, b"{}"]))) as api:
        status, headers, body = await api.get("/v1/client/fs/logs/a1?task=task&type=stderr")
        assert (status, body) == (200, frame + b"{}")
        assert headers["Content-Type"] == "application/json"
        assert api.caller.last.alloc_id == "a1"
    async with serving(FakeCaller(FS__Logs=FakeStream([b"out\n"]))) as api:
        _, headers, body = await api.get(
            "/v1/client/fs/logs/a1?task=task&type=stdout&plain=true&follow=true&offset=3&origin=end"
        )
        assert (body, headers["Content-Type"]) == (b"out\n", "text/plain")
        call = api.caller.last
        assert (call.plain, call.follow, call.offset, call.origin) == (True, True, 3, "end")


async def test_an_error_before_the_first_chunk_has_its_own_status() -> None:
    stream = FakeStream([InvalidRequestError('unknown task name "nope"')])
    async with serving(FakeCaller(FS__Logs=stream)) as api:
        status, _, body = await api.get("/v1/client/fs/logs/a1?task=nope&type=stdout")
        assert (status, body) == (400, b'unknown task name "nope"')
        assert stream.left


async def test_an_error_after_the_first_chunk_ends_the_body_with_its_text() -> None:
    stream = FakeStream([b"some", NotFoundError("gone")])
    async with serving(FakeCaller(FS__Cat=stream)) as api:
        status, _, body = await api.get("/v1/client/fs/cat/a1?path=f")
        assert (status, body) == (200, b"somegone")


async def test_a_quiet_follower_gets_its_head_before_the_first_line() -> None:
    stream = FakeStream([], echo=True)
    async with serving(FakeCaller(FS__Logs=stream)) as api:
        started = time.monotonic()
        url = "/v1/client/fs/logs/a1?task=t&type=stdout&follow=true&plain=true"
        async with api.session.get(url) as response:
            assert response.status == 200
            assert time.monotonic() - started < 3
            stream.push(b"late\n")
            assert await response.content.readany() == b"late\n"
            stream.end()
            assert await response.read() == b""


async def test_a_tasks_markup_is_never_shown_as_markup() -> None:
    stream = FakeStream([b"<script>alert(1)</script>"])
    async with serving(FakeCaller(FS__Cat=stream)) as api:
        _, headers, _ = await api.get("/v1/client/fs/cat/a1?path=f")
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]
    async with serving(FakeCaller(FS__Cat=FakeStream([b"\x7fELF\0\0"]))) as api:
        _, headers, _ = await api.get("/v1/client/fs/cat/a1?path=f")
        assert headers["Content-Type"] == "application/octet-stream"


async def test_self_members_and_servers() -> None:
    body = recorded("agent", "members")
    async with serving(FakeCaller(Status__Members=answer(body))) as api:
        mine = json.loads((await api.get("/v1/agent/self"))[2])
        assert set(mine) == {"config", "member", "stats"}
        assert mine["member"]["Name"] == "vm.global"
        assert mine["stats"]["raft"]["applied_index"] == "7"
        assert json.loads((await api.get("/v1/agent/members"))[2]) == body
        assert json.loads((await api.get("/v1/agent/servers"))[2]) == ["127.0.0.1:4647"]
        status, _, joined = await api.ask("PUT", "/v1/agent/join?address=a:1&address=b:2")
        assert (status, json.loads(joined)["num_joined"]) == (200, 2)
        await api.ask("PUT", "/v1/agent/force-leave?node=x.global&prune")
        assert api.local.left == [("x.global", True)]


async def test_what_a_node_is_not_it_does_not_answer_for() -> None:
    local = FakeLocal(node_id="")
    local.is_server = False
    async with serving(local=local) as api:
        assert (await api.get("/v1/agent/servers"))[0] == 501
        assert (await api.ask("PUT", "/v1/agent/join?address=a"))[0] == 501
        status, _, body = await api.get("/v1/client/stats")
        assert status == 400
        assert b"?node_id=" in body


async def test_health_is_500_when_an_asked_role_is_not_well() -> None:
    async with serving() as api:
        status, headers, body = await api.get("/v1/agent/health?type=server")
        assert (status, json.loads(body)) == (200, recorded("agent", "health-server"))
        assert headers["Content-Type"] == "application/json"
        api.local.well = False
        status, headers, body = await api.get("/v1/agent/health")
        assert status == 500
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert json.loads(body)["server"] == {"ok": False, "message": "No cluster leader"}
        assert (await api.get("/v1/agent/health?type=client"))[0] == 200
        assert (await api.get("/v1/agent/health?type=cow"))[0] == 400


async def test_metrics_have_nomads_shape_and_prometheus_text_when_enabled() -> None:
    async with serving(prometheus=True) as api:
        api.local.metrics.count("nomad.rpc.request", method="x")
        body = json.loads((await api.get("/v1/metrics"))[2])
        assert set(body) == set(recorded("agent", "metrics"))
        assert {g["Name"] for g in body["Gauges"]} >= {"nomad.runtime.sys_bytes"}
        status, headers, text = await api.get("/v1/metrics?format=prometheus")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b'nomad_rpc_request{host="vm",method="x"} 1.0' in text


async def test_autopilot_health_is_429_when_unhealthy() -> None:
    health = recorded("agent", "autopilot-health")
    caller = FakeCaller(Operator__AutopilotHealth=answer(health))
    async with serving(caller) as api:
        assert (await api.get("/v1/operator/autopilot/health"))[0] == 200
        caller.replies["Operator.AutopilotHealth"] = answer({**health, "Healthy": False})
        status, _, body = await api.get("/v1/operator/autopilot/health")
        assert (status, json.loads(body)["Healthy"]) == (429, False)


@pytest.fixture
def ring() -> Any:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.addHandler(logs.ring)
    root.setLevel(logging.INFO)
    logs.ring.lines.clear()
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("ring")
async def test_the_monitor_sends_what_was_and_what_comes() -> None:
    log = logs.get("test.monitor")
    log.info("before the reader")
    async with serving() as api, api.session.get("/v1/agent/monitor?plain=true") as response:
        assert b"before the reader" in await response.content.readline()
        log.info("after it")
        await asyncio.to_thread(log.warning, "from a thread")
        seen = b""
        while b"from a thread" not in seen:
            seen += await response.content.readany()
        assert b"after it" in seen
    assert logs.ring.listeners == []


@pytest.mark.usefixtures("ring")
async def test_the_framed_monitor_filters_by_level_and_beats() -> None:
    logs.get("test.monitor").info("too low")
    logs.get("test.monitor").error("high enough")
    async with serving() as api, api.session.get("/v1/agent/monitor?log_level=error") as response:
        frame = json.loads(await response.content.readuntil(b"}"))
        text = base64.b64decode(frame["Data"])
        assert b"high enough" in text
        assert b"too low" not in text
        assert await response.content.readuntil(b"}") == b"{}"
