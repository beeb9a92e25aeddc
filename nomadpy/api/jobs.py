"""/v1/jobs, /v1/job/:id and /v1/validate/job.

A job id may contain `/`, raw or as %2F, so everything below /v1/job/ is one route, and the last words of the path
say what is meant.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Handler, Route
from nomadpy.api.errors import text_response
from nomadpy.api.request import (
    as_struct,
    body_of,
    flags,
    go_bool,
    go_int,
    query_options,
    raw_body,
    write_options,
)
from nomadpy.api.response import read_response, write_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls
from nomadpy.models.envelope import ALL_NAMESPACES, DEFAULT_NAMESPACE, WriteOptions

_READS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # last word of the path: method, switches, words
    "allocations": ("Job.Allocations", ("all",), ()),
    "evaluations": ("Job.Evaluations", (), ()),
    "deployments": ("Job.Deployments", ("all",), ()),
    "deployment": ("Job.LatestDeployment", (), ()),
    "summary": ("Job.Summary", (), ()),
    "versions": ("Job.Versions", ("diffs",), ("diff_tag", "diff_version")),
    "services": ("Job.Services", (), ()),
    "actions": ("Job.Actions", (), ()),
    "submission": ("Job.Submission", (), ("version",)),
    "scale": ("Job.ScaleStatus", (), ()),
}


_JobHandler = Callable[[Api, web.Request, str], Awaitable[web.StreamResponse]]


async def list_jobs(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/jobs; flags: meta."""
    call = calls.Read(options=query_options(api, request), flags=flags(request, switches=("meta",)))
    return await read_response(request, await api.caller.call("Job.List", call))


async def list_statuses(api: Api, request: web.Request) -> web.StreamResponse:
    """GET or POST /v1/jobs/statuses; flags: include_children, and jobs (a JSON list of {Namespace, ID}) of a body."""
    options = query_options(api, request)
    mine = flags(request, switches=("include_children",))
    if request.body_exists:
        body = await body_of(api, request, bodies.JobStatusesRequest)
        if not body.jobs:
            raise InvalidRequestError("no jobs in request")
        mine["jobs"] = msgspec.json.encode(body.jobs).decode()
        if body.include_children:
            mine["include_children"] = "true"
        if options.namespace == DEFAULT_NAMESPACE:
            options = msgspec.structs.replace(options, namespace=ALL_NAMESPACES)
    call = calls.Read(options=options, flags=mine)
    return await read_response(request, await api.caller.call("Job.Statuses", call))


async def register(api: Api, request: web.Request, path_id: str = "") -> web.StreamResponse:
    """PUT or POST /v1/jobs and /v1/job/:id."""
    raw, body = await _job_body(api, request, bodies.JobRegisterRequest)
    job = _named_job(raw, path_id, missing="Job ID hasn't been provided")
    if body.eval_priority and not 1 <= body.eval_priority <= 100:
        raise InvalidRequestError("Eval priority must be between 1 and 100 inclusively")
    call = calls.JobWrite(
        job=job,
        options=_job_options(api, request, job, body.namespace, body.region),
        submission=body.submission,
        enforce_index=body.job_modify_index if body.enforce_index else None,
        preserve_counts=body.preserve_counts,
        preserve_resources=body.preserve_resources,
        policy_override=body.policy_override,
        eval_priority=body.eval_priority,
    )
    return await write_response(request, await api.caller.call("Job.Register", call))


async def validate(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/validate/job."""
    raw, body = await _job_body(api, request, bodies.JobValidateRequest)
    job = raw["Job"]
    options = _job_options(api, request, job, body.namespace, body.region)
    answer = await api.caller.call("Job.Validate", calls.JobWrite(job=job, options=options))
    return await write_response(request, answer, index_header=False)


async def job(api: Api, request: web.Request) -> web.StreamResponse:
    """Everything below /v1/job/."""
    rest = request.path.removeprefix("/v1/job/")
    name, _, last = rest.rpartition("/")
    method = request.method
    if name and method == "GET" and last in _READS:
        return await _read(api, request, name, last)
    for suffix, by_method in _WRITES.items():
        if rest.endswith(suffix) and len(rest) > len(suffix):
            handler = by_method.get(method)
            if handler is None:
                return text_response(405, "Invalid method")
            return await handler(api, request, rest.removesuffix(suffix))
    if name and last in _READS:
        return text_response(405, "Invalid method")
    if last == "tag" and name.count("/") >= 2:
        return await _tag(api, request, name)
    if last == "action" and name:
        return text_response(501, "job actions are not supported by this agent")
    if method == "GET":
        return await _read(api, request, rest, "")
    if method in ("PUT", "POST"):
        return await register(api, request, rest)
    if method == "DELETE":
        return await _stop(api, request, rest)
    return text_response(405, "Invalid method")


async def _read(api: Api, request: web.Request, job_id: str, what: str) -> web.StreamResponse:
    method, switches, words = _READS[what] if what else ("Job.Get", (), ())
    options = query_options(api, request)
    mine = flags(request, switches=switches, words=words)
    if what == "submission" and not mine.get("version", "").isdecimal():
        raise InvalidRequestError("Unable to parse job submission version parameter")
    if "diff_version" in mine and not mine["diff_version"].isdecimal():
        raise InvalidRequestError(
            f'error parsing diff_version: strconv.ParseUint: parsing "{mine["diff_version"]}": invalid syntax'
        )
    call = calls.Read(id=job_id, options=options, flags=mine)
    return await read_response(request, await api.caller.call(method, call))


async def _stop(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    query = request.query
    priority = go_int(query["eval_priority"], "eval_priority") if "eval_priority" in query else 0
    if "eval_priority" in query and not 1 <= priority <= 100:
        raise InvalidRequestError("Eval priority must be between 1 and 100 inclusively")
    call = calls.JobDeregister(
        job_id=job_id,
        options=write_options(api, request),
        purge=go_bool(query.get("purge", ""), "purge"),
        is_global=go_bool(query.get("global", ""), "global"),
        eval_priority=priority,
        no_shutdown_delay=go_bool(query.get("no_shutdown_delay", ""), "no_shutdown_delay"),
    )
    return await write_response(request, await api.caller.call("Job.Deregister", call))


async def _plan(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    raw, body = await _job_body(api, request, bodies.JobPlanRequest)
    planned = _named_job(
        raw, job_id, missing="Job must have a valid ID", other="Job ID does not match"
    )
    call = calls.JobWrite(
        job=planned,
        options=_job_options(api, request, planned, body.namespace, body.region),
        policy_override=body.policy_override,
        diff=body.diff,
    )
    return await write_response(request, await api.caller.call("Job.Plan", call))


async def _explain(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    """GET: the job that is registered (flags: nodes). PUT or POST: the one in the body. Nomad does not have it."""
    if request.method == "GET":
        call = calls.Read(
            id=job_id, options=query_options(api, request), flags=flags(request, words=("nodes",))
        )
        return await read_response(request, await api.caller.call("Job.Explain", call))
    raw, body = await _job_body(api, request, bodies.JobPlanRequest)
    changed = _named_job(
        raw, job_id, missing="Job must have a valid ID", other="Job ID does not match"
    )
    options = _job_options(api, request, changed, body.namespace, body.region)
    write = calls.JobWrite(job=changed, options=options)
    return await write_response(request, await api.caller.call("Job.ExplainChange", write))


async def _evaluate(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    body = await body_of(api, request, bodies.JobEvaluateRequest, optional=True)
    if body.job_id and body.job_id != job_id:
        raise InvalidRequestError("Job ID does not match")
    call = calls.JobEvaluate(
        job_id=job_id,
        options=write_options(api, request, body_namespace=body.namespace),
        force_reschedule=body.eval_options.force_reschedule,
    )
    return await write_response(request, await api.caller.call("Job.Evaluate", call))


async def _scale(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    body = await body_of(api, request, bodies.ScalingRequest)
    target = body.target or {}
    if target.get("Job", job_id) != job_id:
        raise InvalidRequestError("job ID in payload did not match URL")
    if body.job_modify_index < 0:
        raise InvalidRequestError("json: JobModifyIndex must not be negative")
    call = calls.JobScale(
        job_id=job_id,
        group=target.get("Group", ""),
        options=write_options(api, request, body_namespace=body.namespace),
        count=body.count,
        message=body.message,
        error=body.error,
        meta=body.meta,
        policy_override=body.policy_override,
        enforce_index=body.job_modify_index or None,
    )
    return await write_response(request, await api.caller.call("Job.Scale", call))


async def _revert(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    body = await body_of(api, request, bodies.JobRevertRequest)
    if not body.job_id:
        raise InvalidRequestError("JobID must be specified")
    if body.job_id != job_id:
        raise InvalidRequestError("Job ID does not match")
    call = calls.JobRevert(
        job_id=job_id,
        version=body.job_version,
        options=write_options(api, request, body_namespace=body.namespace),
        tag_name=body.tagged_version,
        enforce_prior_version=body.enforce_prior_version,
    )
    response = await write_response(request, await api.caller.call("Job.Revert", call))
    # Of all writes, this one has the headers of a read, with nothing known of the leader.
    response.headers.update({"X-Nomad-Knownleader": "false", "X-Nomad-Lastcontact": "0"})
    return response


async def _stability(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    body = await body_of(api, request, bodies.JobStabilityRequest)
    if not body.job_id:
        raise InvalidRequestError("JobID must be specified")
    if body.job_id != job_id:
        raise InvalidRequestError("Job ID does not match")
    call = calls.JobStability(
        job_id=job_id,
        version=body.job_version,
        stable=body.stable,
        options=write_options(api, request, body_namespace=body.namespace),
    )
    return await write_response(request, await api.caller.call("Job.Stability", call))


async def _tag(api: Api, request: web.Request, rest: str) -> web.StreamResponse:
    """rest: `<job>/versions/<tag>`, the job's id with slashes of its own perhaps."""
    before, _, tag = rest.rpartition("/")
    job_id = before.removesuffix("/versions")
    if job_id == before or not tag:
        return text_response(404, "")
    if request.method not in ("PUT", "POST", "DELETE"):
        return text_response(405, "Invalid method")
    body = bodies.TagVersionRequest()
    if request.method != "DELETE":
        body = await body_of(api, request, bodies.TagVersionRequest)
    call = calls.JobTag(
        job_id=job_id,
        name=tag,
        options=write_options(api, request),
        version=body.version,
        description=body.description,
        unset=request.method == "DELETE",
    )
    return await write_response(request, await api.caller.call("Job.Tag", call), index_header=False)


async def _unsupported(api: Api, request: web.Request, job_id: str) -> web.StreamResponse:
    await api.caller.call("Job.Get", calls.Read(id=job_id, options=query_options(api, request)))
    return text_response(501, "periodic and parameterized jobs are not supported by this agent")


def _both(handler: _JobHandler) -> dict[str, _JobHandler]:
    return {"PUT": handler, "POST": handler}


_WRITES: dict[str, dict[str, _JobHandler]] = {
    "/evaluate": _both(_evaluate),
    "/explain": {"GET": _explain, **_both(_explain)},
    "/plan": _both(_plan),
    "/scale": _both(_scale),
    "/revert": _both(_revert),
    "/stable": _both(_stability),
    "/periodic/force": _both(_unsupported),
    "/dispatch": _both(_unsupported),
}


async def _job_body(
    api: Api, request: web.Request, kind: type[bodies.JobRegisterRequest | Any]
) -> tuple[dict[str, Any], Any]:
    """The body with its job left raw, and the rest of it as a struct."""
    raw = await raw_body(api, request, kind)
    if not raw.get("Job"):
        raise InvalidRequestError("Job must be specified")
    return raw, as_struct({k: v for k, v in raw.items() if k != "Job"}, kind)


def _named_job(
    raw: dict[str, Any], path_id: str, *, missing: str, other: str = "Job ID does not match name"
) -> dict[str, Any]:
    named: dict[str, Any] = raw["Job"]
    job_id = named.get("ID")
    if not job_id:
        raise InvalidRequestError(missing)
    if path_id and job_id != path_id:
        raise InvalidRequestError(other)
    return named


def _job_options(
    api: Api, request: web.Request, named: dict[str, Any], namespace: str, region: str
) -> WriteOptions:
    """Query over body over the job's own field over the default; the job is told what was found.

    `global` as the job's region means the region of this agent.
    """
    job_region = str(named.get("Region") or "")
    options = write_options(
        api,
        request,
        body_namespace=namespace or str(named.get("Namespace") or ""),
        body_region=region or ("" if job_region == "global" else job_region),
    )
    named["Namespace"] = options.namespace
    named["Region"] = options.region or api.local.region
    return options


_job: Handler = job

ROUTES = [
    Route("GET", "/v1/jobs", list_jobs),
    Route("PUT POST", "/v1/jobs", register),
    Route("GET POST", "/v1/jobs/statuses", list_statuses),
    Route("PUT POST", "/v1/validate/job", validate),
    Route("*", "/v1/job/{rest:.+}", _job),
]
