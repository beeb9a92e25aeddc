"""Under which names calls are counted and timed: those that Nomad's dashboards look for.

Every method has a rate, `nomad.nomad.rpc.<endpoint>.<read|list|write>`, and a timer, `nomad.nomad.<endpoint>.<what>`.
Source: the metrics that a running Nomad shows; nodes are its "client".
"""

from __future__ import annotations

import re

import msgspec

from nomadpy.rpc.methods import METHODS, Method

REQUESTS = "nomad.nomad.rpc.request"

_TIMERS = {
    "Node.Register": "client.register",
    "Node.Heartbeat": "client.update_status",
    "Node.ClientAllocs": "client.get_client_allocs",
    "Node.UpdateAllocs": "client.update_alloc",
    "Node.Drain": "client.update_drain",
    "Node.Eligibility": "client.update_eligibility",
    "Node.Purge": "client.deregister",
    "Node.Get": "client.get_node",
    "Node.Allocations": "client.get_allocs",
    "Alloc.Get": "alloc.get_alloc",
    "Alloc.GetMany": "alloc.get_allocs",
    "Eval.Get": "eval.get_eval",
    "Job.Get": "job.get_job",
    "Job.Summary": "job_summary.get_job_summary",
    "Job.Versions": "job.get_job_versions",
    "Job.Stability": "job.stable",
    "Deployment.Get": "deployment.get_deployment",
    "NodePool.Get": "node_pool.get_node_pool",
    "Search.Prefix": "search.prefix_search",
    "Client.Stats": "client_stats.stats",
    "ClientAlloc.Stats": "client_allocations.stats",
    "ClientAlloc.Restart": "client_allocations.restart",
    "ClientAlloc.Signal": "client_allocations.signal",
    "ClientAlloc.GarbageCollect": "client_allocations.garbage_collect",
    "ClientAlloc.Checks": "client_allocations.checks",
    "ClientAlloc.Exec": "client_allocations.exec",
}
_ENDPOINTS = {"Node": "client", "FS": "file_system"}
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


class CallFigures(msgspec.Struct, frozen=True):
    """What one method is counted and timed as."""

    rate: str
    timer: str


def figures_of(method: Method) -> CallFigures:
    """The names for a method."""
    endpoint, _, what = method.name.partition(".")
    if method.where == "leader":
        kind = "write"
    else:
        kind = "list" if what in ("List", "Members", "Peers", "Regions") else "read"
    timer = _TIMERS.get(method.name, f"{_ENDPOINTS.get(endpoint, _snake(endpoint))}.{_snake(what)}")
    return CallFigures(f"nomad.nomad.rpc.{_snake(endpoint)}.{kind}", f"nomad.nomad.{timer}")


def _snake(name: str) -> str:
    return _WORD.sub("_", name).lower()


FIGURES: dict[str, CallFigures] = {name: figures_of(method) for name, method in METHODS.items()}
