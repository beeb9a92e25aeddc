"""/v1/simulate and /v1/rebalance, which Nomad does not have."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Route
from nomadpy.api.request import as_struct, body_of, raw_body, write_options
from nomadpy.api.response import write_response
from nomadpy.models import calls
from nomadpy.models.what_if import RebalanceRequest, WhatIfRequest


async def simulate(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/simulate: what would move if this changed."""
    raw = await raw_body(api, request, bodies.SimulateRequest)
    jobs = [job for job in raw.get("Jobs") or () if isinstance(job, dict)]
    rest = {key: value for key, value in raw.items() if key != "Jobs"}
    said = as_struct(rest, bodies.SimulateRequest)
    options = write_options(api, request)
    for job in jobs:
        job.setdefault("Namespace", options.namespace)
    changed = WhatIfRequest(
        nodes_down=said.nodes_down,
        nodes_drained=said.nodes_drained,
        nodes_added=said.nodes_added,
        jobs=jobs,
        jobs_stopped=said.jobs_stopped,
    )
    call = calls.WhatIf(request=changed, options=options)
    return await write_response(request, await api.caller.call("Scheduler.Simulate", call))


async def rebalance(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/rebalance: moves that better the cluster, within a budget; DryRun only says them."""
    said = await body_of(api, request, RebalanceRequest, optional=True)
    call = calls.Rebalance(request=said, options=write_options(api, request))
    return await write_response(request, await api.caller.call("Scheduler.Rebalance", call))


ROUTES = [
    Route("PUT POST", "/v1/simulate", simulate),
    Route("PUT POST", "/v1/rebalance", rebalance),
]
