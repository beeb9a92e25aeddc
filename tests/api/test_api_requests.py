"""What of a request reaches the Caller, and what is refused before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import FakeCaller, FakeLocal, answer, serving

from nomadpy.errors import NoLeaderError, NotFoundError, ValidationError

pytestmark = pytest.mark.real_time

JOB = {"ID": "web", "Name": "web", "Type": "service", "TaskGroups": [{"Name": "g", "Count": 1}]}
REGISTERED = {"EvalID": "e", "EvalCreateIndex": 11, "JobModifyIndex": 11, "Index": 11}


async def test_a_plain_read_carries_default_options() -> None:
    async with serving(FakeCaller(Job__List=answer([], last_contact_ms=0))) as api:
        assert (await api.get("/v1/jobs"))[0] == 200
        options = api.caller.last.options
        assert (options.namespace, options.min_index, options.allow_stale) == ("default", 0, False)


async def test_every_query_option_reaches_the_call() -> None:
    async with serving(FakeCaller(Job__List=answer([]))) as api:
        await api.get(
            "/v1/jobs?namespace=*&index=7&wait=1m30s&stale&prefix=we&filter=Type%3D%3Dx&per_page=5"
            "&next_token=default.a&reverse=true&meta=1&region=global",
            headers={"X-Nomad-Token": "secret"},
        )
        options, flags = api.caller.last.options, api.caller.last.flags
        assert options.namespace == "*"
        assert (options.min_index, options.wait_ns) == (7, 90_000_000_000)
        assert options.allow_stale
        assert options.reverse
        assert (options.prefix, options.filter, options.per_page) == ("we", "Type==x", 5)
        assert (options.next_token, options.token) == ("default.a", "secret")
        assert flags == {"meta": "true"}


async def test_the_bearer_token_counts_when_there_is_no_token_header() -> None:
    async with serving(FakeCaller(Job__List=answer([]))) as api:
        await api.get("/v1/jobs", headers={"Authorization": "Bearer abc"})
        assert api.caller.last.options.token == "abc"
        await api.get("/v1/jobs", headers={"Authorization": "Bearer abc", "X-Nomad-Token": "x"})
        assert api.caller.last.options.token == "x"
        await api.get("/v1/jobs", headers={"Authorization": "Basic abc"})
        assert api.caller.last.options.token == ""


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("index=x", 400, "Invalid index"),
        ("index=-1", 400, "Invalid index"),
        ("index=99999999999999999999", 400, "Invalid index"),
        ("index=1&wait=x", 400, "Invalid wait time"),
        ("index=1&wait=5", 400, "Invalid wait time"),
        ("wait=99999999999999h", 400, "Invalid wait time"),
        ("per_page=many", 400, "Expect a number for `per_page` query string parameter"),
        ("stale=maybe", 400, "Expect `true` or `false` for `stale` query string parameter"),
        ("region=mars", 500, "No path to region"),
    ],
)
async def test_a_bad_option_is_answered_with_nomads_text(
    query: str, status: int, text: str
) -> None:
    async with serving() as api:
        got, headers, body = await api.get(f"/v1/jobs?{query}")
        assert (got, body.decode()) == (status, text)
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert api.caller.calls == []


async def test_register_passes_the_raw_job_and_the_rest_of_the_body() -> None:
    async with serving(FakeCaller(Job__Register=answer(REGISTERED, index=11))) as api:
        body = {
            "job": {**JOB, "priority": 70, "Unknown": 1, "Meta": None},
            "EnforceIndex": True,
            "JobModifyIndex": 9,
            "PreserveCounts": True,
            "EvalPriority": 60,
            "Submission": {"Source": "job {}", "Format": "hcl2", "VariableFlags": {"a": "b"}},
        }
        status, headers, _ = await api.ask("PUT", "/v1/jobs", json=body)
        call = api.caller.last
        assert (status, headers["X-Nomad-Index"]) == (200, "11")
        assert "X-Nomad-Knownleader" not in headers
        assert call.job["Priority"] == 70
        assert "Unknown" not in call.job
        assert "Meta" not in call.job
        assert (call.enforce_index, call.preserve_counts, call.eval_priority) == (9, True, 60)
        assert call.submission.source == "job {}"


@pytest.mark.parametrize(
    ("query", "body", "field", "found"),
    [
        ("", "", "", "default"),
        ("", "", "job", "job"),
        ("", "body", "job", "body"),
        ("query", "body", "job", "query"),
    ],
)
async def test_namespace_precedence_is_query_body_job_default(
    query: str, body: str, field: str, found: str
) -> None:
    async with serving(FakeCaller(Job__Register=answer(REGISTERED))) as api:
        request: dict[str, Any] = {"Job": {**JOB, "Namespace": field}, "Namespace": body}
        await api.ask("PUT", f"/v1/jobs?namespace={query}", json=request)
        assert api.caller.last.options.namespace == found
        assert api.caller.last.job["Namespace"] == found


async def test_global_as_the_jobs_region_is_the_agents_own() -> None:
    local = FakeLocal()
    local.region = "mars"
    async with serving(FakeCaller(Job__Register=answer(REGISTERED)), local) as api:
        status, _, _ = await api.ask("PUT", "/v1/jobs", json={"Job": {**JOB, "Region": "global"}})
        assert status == 200
        assert api.caller.last.job["Region"] == "mars"


@pytest.mark.parametrize(
    ("path", "data", "text"),
    [
        ("/v1/jobs", b"", "Request body is empty"),
        ("/v1/jobs", b"{}", "Job must be specified"),
        ("/v1/jobs", b'{"Job":null}', "Job must be specified"),
        ("/v1/jobs", b'{"Job":{"Name":"x"}}', "Job ID hasn't been provided"),
        ("/v1/job/other", json.dumps({"Job": JOB}).encode(), "Job ID does not match name"),
        ("/v1/job/other/plan", json.dumps({"Job": JOB}).encode(), "Job ID does not match"),
        ("/v1/job/web/plan", b'{"Job":{"Name":"x"}}', "Job must have a valid ID"),
        ("/v1/job/web/revert", b"{}", "JobID must be specified"),
        ("/v1/job/web/scale", b'{"Target":{"Job":"x"}}', "job ID in payload did not match URL"),
        ("/v1/jobs", b'{"Job":[]}', "json: cannot unmarshal array into Go struct field"),
        ("/v1/jobs", b'{"Job":{"ID":"web","Priority":"high"}}', "cannot unmarshal string into"),
        ("/v1/jobs", b"\xff\xfe\x00", "invalid character"),
        ("/v1/jobs", b'{"Job":' + b"[" * 200_000, "json"),
        (
            "/v1/jobs",
            b'{"Job":{"ID":"a","TaskGroups":[{"Tasks":[{"Config":{"a":'
            + b'{"a":' * 5_000
            + b"1"
            + b"}" * 5_000
            + b"}}]}]}}",
            "max depth",
        ),
    ],
)
async def test_a_bad_body_is_400_and_never_reaches_the_caller(
    path: str, data: bytes, text: str
) -> None:
    async with serving() as api:
        status, _, body = await api.ask("PUT", path, data=data)
        assert status == 400
        assert text in body.decode()
        assert api.caller.calls == []


async def test_a_body_over_the_limit_is_413_whether_or_not_its_length_is_told() -> None:
    async def endless() -> Any:
        for _ in range(64):
            yield b" " * 1024

    async with serving(max_body_bytes=1024) as api:
        status, _, body = await api.ask("PUT", "/v1/jobs", data=b" " * 2000)
        assert status == 413
        assert b"larger than the limit of 1024 bytes" in body
        status, _, _ = await api.ask("PUT", "/v1/jobs", data=endless())
        assert status == 413


@pytest.mark.parametrize("path", ["/v1/job/a%2Fb/allocations", "/v1/job/a/b/allocations"])
async def test_a_job_id_may_contain_a_slash(path: str) -> None:
    async with serving(FakeCaller(Job__Allocations=answer([]))) as api:
        assert (await api.get(path + "?all=true"))[0] == 200
        assert api.caller.last.id == "a/b"
        assert api.caller.last.flags == {"all": "true"}


async def test_a_job_called_like_a_subresource_is_still_a_job() -> None:
    async with serving(FakeCaller(Job__Get=answer({}))) as api:
        await api.get("/v1/job/summary")
        assert api.caller.last.id == "summary"


@pytest.mark.parametrize(
    ("method", "path", "body", "called", "check"),
    [
        ("DELETE", "/v1/job/web?purge=true", None, "Job.Deregister", {"purge": True}),
        ("POST", "/v1/job/web/evaluate", None, "Job.Evaluate", {"force_reschedule": False}),
        (
            "PUT",
            "/v1/job/web/evaluate",
            {"EvalOptions": {"ForceReschedule": True}},
            "Job.Evaluate",
            {"force_reschedule": True},
        ),
        (
            "PUT",
            "/v1/job/web/scale",
            {"Target": {"Group": "g"}, "Count": 0, "Message": "m"},
            "Job.Scale",
            {"group": "g", "count": 0, "message": "m"},
        ),
        ("PUT", "/v1/job/web/scale", {"Target": {"Group": "g"}}, "Job.Scale", {"count": None}),
        (
            "PUT",
            "/v1/job/web/revert",
            {"JobID": "web", "JobVersion": 3},
            "Job.Revert",
            {"version": 3, "enforce_prior_version": None},
        ),
        (
            "PUT",
            "/v1/job/web/stable",
            {"JobID": "web", "JobVersion": 3, "Stable": True},
            "Job.Stability",
            {"version": 3, "stable": True},
        ),
        (
            "PUT",
            "/v1/job/a/b/versions/v1/tag",
            {"Version": 0, "Description": "d"},
            "Job.Tag",
            {"job_id": "a/b", "name": "v1", "version": 0, "unset": False},
        ),
        ("DELETE", "/v1/job/web/versions/v1/tag", None, "Job.Tag", {"unset": True}),
        (
            "PUT",
            "/v1/node/n1/drain",
            {"DrainSpec": {"Deadline": 60, "IgnoreSystemJobs": True}, "Meta": {"a": "b"}},
            "Node.Drain",
            {"node_id": "n1", "mark_eligible": False, "meta": {"a": "b"}},
        ),
        ("PUT", "/v1/node/n1/drain", {"DrainSpec": None}, "Node.Drain", {"spec": None}),
        (
            "PUT",
            "/v1/node/n1/eligibility",
            {"Eligibility": "ineligible"},
            "Node.Eligibility",
            {"eligibility": "ineligible"},
        ),
        ("PUT", "/v1/node/pools", {"Name": "gpu"}, "NodePool.Upsert", {}),
        ("DELETE", "/v1/node/pool/gpu", None, "NodePool.Delete", {"id": "gpu"}),
        (
            "PUT",
            "/v1/allocation/a1/stop?no_shutdown_delay=true",
            None,
            "Alloc.Stop",
            {"id": "a1", "flags": {"no_shutdown_delay": "true"}},
        ),
        (
            "PUT",
            "/v1/deployment/pause/d1",
            {"DeploymentID": "d1", "Pause": True},
            "Deployment.Pause",
            {"id": "d1", "flags": {"pause": "true"}},
        ),
        ("PUT", "/v1/deployment/fail/d1", None, "Deployment.Fail", {"id": "d1"}),
        ("PUT", "/v1/search", {"Prefix": "we", "Context": "jobs"}, "Search.Prefix", {"id": "we"}),
        (
            "PUT",
            "/v1/operator/scheduler/configuration?cas=7",
            {"SchedulerAlgorithm": "spread"},
            "Operator.SetSchedulerConfiguration",
            {"cas": 7},
        ),
        ("PUT", "/v1/system/gc", None, "System.GarbageCollect", {}),
        (
            "POST",
            "/v1/client/metadata?node_id=n1",
            {"Meta": {"a": "b", "c": None}},
            "Client.MetaApply",
            {"node_id": "n1", "meta": {"a": "b", "c": None}},
        ),
        ("PUT", "/v1/client/gc?node_id=n1", None, "Client.GarbageCollect", {"node_id": "n1"}),
        (
            "PUT",
            "/v1/client/allocation/a1/restart",
            {"TaskName": "t"},
            "ClientAlloc.Restart",
            {"alloc_id": "a1", "task": "t"},
        ),
        (
            "PUT",
            "/v1/client/allocation/a1/signal",
            {"Signal": "SIGUSR1", "Task": "t"},
            "ClientAlloc.Signal",
            {"signal": "SIGUSR1"},
        ),
    ],
)
async def test_a_write_becomes_its_call(
    method: str, path: str, body: Any, called: str, check: dict[str, Any]
) -> None:
    caller = FakeCaller()
    caller.replies[called] = answer({})
    async with serving(caller) as api:
        more = {} if body is None else {"json": body}
        status, _, text = await api.ask(method, path, **more)
        assert (status, text) == (200, b"{}")
        name, call = api.caller.calls[-1]
        assert name == called
        assert {key: getattr(call, key) for key in check} == check


async def test_statuses_with_a_body_asks_in_all_namespaces() -> None:
    async with serving(FakeCaller(Job__Statuses=answer([]))) as api:
        jobs = [{"Namespace": "default", "ID": "web"}]
        await api.ask("POST", "/v1/jobs/statuses", json={"Jobs": jobs})
        assert api.caller.last.options.namespace == "*"
        assert json.loads(api.caller.last.flags["jobs"]) == jobs
        status, _, body = await api.ask("POST", "/v1/jobs/statuses", json={"Jobs": []})
        assert (status, body) == (400, b"no jobs in request")


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("DELETE", "/v1/nodes", 405, b"Invalid method"),
        ("PUT", "/v1/job/web/summary", 405, b"Invalid method"),
        ("GET", "/v1/job/web/plan", 405, b"Invalid method"),
        ("GET", "/v1/operator/utilization", 405, b"Invalid method"),
        ("GET", "/v1/nothing-here", 404, b""),
        ("GET", "/favicon.ico", 404, b""),
        ("GET", "/v1/quotas", 501, b"Nomad Enterprise only endpoint"),
        ("PUT", "/v1/operator/license", 501, b"Nomad Enterprise only endpoint"),
        ("GET", "/v1/operator/license", 204, b""),
        ("GET", "/v1/client/fs/ls/", 400, b"must provide a valid alloc id"),
        ("GET", "/v1/client/fs/stat/a1", 400, b"must provide a file name"),
        ("GET", "/v1/client/fs/logs/a1?type=stdout", 400, b"must provide task name"),
        (
            "GET",
            "/v1/client/fs/logs/a1?task=t&type=both",
            400,
            b"must provide log type (stdout/stderr)",
        ),
        (
            "GET",
            "/v1/client/fs/logs/a1?task=t&type=stdout&origin=x",
            400,
            b"origin must be start or end",
        ),
        ("GET", "/v1/metrics?format=prometheus", 415, b"Prometheus is not enabled"),
        ("GET", "/v1/job/web/submission", 400, b"Unable to parse job submission version parameter"),
        ("PUT", "/v1/agent/force-leave", 400, b"missing node to force leave"),
        ("GET", "/v1/agent/monitor?log_level=loud", 400, b"Unknown log level: loud"),
        ("GET", "/v1/node/pool/default/jobs?prefix=a", 400, b"prefix argument not allowed"),
    ],
)
async def test_a_route_answers_as_nomads_does(
    method: str, path: str, status: int, text: bytes
) -> None:
    async with serving() as api:
        got, headers, body = await api.ask(method, path)
        assert (got, body) == (status, text)
        assert ("Content-Type" in headers) == bool(text)


async def test_the_root_redirects_to_the_ui_and_keeps_the_query() -> None:
    async with serving() as api:
        status, headers, _ = await api.get("/?a=b")
        assert (status, headers["Location"]) == (307, "/ui/?a=b")
        status, headers, _ = await api.get("/ui/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")


async def test_an_error_has_its_status_its_bare_text_and_the_index_of_its_details() -> None:
    caller = FakeCaller(
        Job__Get=NotFoundError("job not found", index=61, last_contact_ms=0, known_leader=True),
        Job__Register=ValidationError("1 error occurred:\n\t* Missing job task groups\n\n"),
        Node__List=NoLeaderError(),
    )
    async with serving(caller) as api:
        status, headers, body = await api.get("/v1/job/none")
        assert (status, body) == (404, b"job not found")
        assert (headers["X-Nomad-Index"], headers["X-Nomad-Knownleader"]) == ("61", "true")
        status, headers, body = await api.ask("PUT", "/v1/jobs", json={"Job": JOB})
        assert (status, body) == (500, b"1 error occurred:\n\t* Missing job task groups\n\n")
        assert "X-Nomad-Index" not in headers
        assert (await api.get("/v1/nodes"))[2] == b"No cluster leader"


async def test_a_fault_of_our_own_is_a_500_that_tells_no_secrets() -> None:
    async def broken(_: Any) -> None:
        raise KeyError("hunter2")

    async with serving(FakeCaller(Job__List=broken)) as api:
        status, _, body = await api.get("/v1/jobs")
        assert status == 500
        assert b"hunter2" not in body
