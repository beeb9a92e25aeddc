"""The aiohttp application: the route table, and what surrounds every handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from nomadpy import logs
from nomadpy.api import (
    agent,
    allocations,
    client,
    deployments,
    evaluations,
    jobs,
    namespaces,
    nodes,
    operator,
    scheduler,
    search,
    status,
    variables,
    volumes,
)
from nomadpy.api.context import API_KEY, Api, ApiConfig, Handler, Route
from nomadpy.api.errors import error_response, text_response
from nomadpy.api.local import LocalNode
from nomadpy.api.process import process_gauges
from nomadpy.api.response import compressed
from nomadpy.errors import NomadError
from nomadpy.rpc.caller import Caller

log = logs.get(__name__)

_MODULES = (
    jobs,
    nodes,
    allocations,
    evaluations,
    deployments,
    client,
    agent,
    operator,
    namespaces,
    scheduler,
    search,
    status,
    variables,
    volumes,
)


def create_app(
    caller: Caller,
    local: LocalNode,
    config: ApiConfig,
    *,
    more_routes: Iterable[Route] | None = None,
) -> web.Application:
    """Build the application. more_routes take the place of the page that says there is no UI.

    Every handler reaches the cluster through `caller` alone; `local` is asked what only this node knows.
    """
    api = Api(caller=caller, local=local, config=config)
    app = web.Application(client_max_size=config.max_body_bytes)
    app[API_KEY] = api
    by_path: dict[str, dict[str, Handler]] = {}
    rows = [route for module in _MODULES for route in module.ROUTES]
    for route in [*rows, *(status.UI_ROUTES if more_routes is None else more_routes)]:
        for method in route.methods.split():
            by_path.setdefault(route.path, {})[method] = route.handler
    for path, by_method in by_path.items():
        app.router.add_route("*", path, _entry(api, by_method))
    app.router.add_route("*", "/{rest:.*}", _entry(api, {"*": _nothing_here}))
    if config.response_headers:

        async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
            response.headers.extend(config.response_headers)

        app.on_response_prepare.append(add_headers)
    local.metrics.collect_with(process_gauges)
    return app


def _entry(
    api: Api, by_method: dict[str, Handler]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Choose the handler by method, and turn whatever it raises into an answer."""
    metrics = api.local.metrics
    clock = asyncio.get_running_loop
    anything = by_method.get("*")

    async def entry(request: web.Request) -> web.StreamResponse:
        handler = by_method.get(request.method, anything)
        now = clock().time
        started = now()
        metrics.count("nomad.nomad.http.requests")
        try:
            if handler is None:
                return await compressed(request, text_response(405, "Invalid method"))
            return await handler(api, request)
        except NomadError as error:
            metrics.count("nomad.nomad.http.errors", code=str(error.status))
            return await compressed(request, error_response(error))
        except (ConnectionResetError, BrokenPipeError):
            # The client has gone; there is nobody to answer.
            raise
        except Exception as error:
            log.exception("request failed", method=request.method, path=request.path)
            return text_response(
                500, f"internal error: {type(error).__name__}; the agent's log says where"
            )
        finally:
            metrics.observe("nomad.nomad.http.request", (now() - started) * 1000)

    return entry


async def _nothing_here(_api: Api, _request: web.Request) -> web.StreamResponse:
    return text_response(404, "")
