"""Search.Prefix: what begins with a few letters, in every kind of object."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nomadpy.errors import ValidationError
from nomadpy.models import calls
from nomadpy.models.envelope import ALL_NAMESPACES, Answer
from nomadpy.models.replies import SearchResponse
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services
from nomadpy.server.query import Found
from nomadpy.state.store import Snapshot

LIMIT = 20
CONTEXTS = (
    "allocs",
    "jobs",
    "nodes",
    "node_pools",
    "evals",
    "deployment",
    "namespaces",
    "vars",
    "host_volumes",
)
# Contexts of the wire whose objects do not exist here yet: they match nothing.
EMPTY = ("plugins", "volumes", "scaling_policy")


class Search:
    """The handler. `id` is the prefix, flags: context."""

    def __init__(self, services: Services) -> None:
        self._queries = services.queries
        services.router.register("Search.Prefix", self.prefix)

    async def prefix(self, _: CallContext, request: calls.Read) -> Answer:
        """At most 20 ids of each kind."""
        context = request.flags.get("context") or "all"
        if context not in (*CONTEXTS, *EMPTY, "all"):
            raise ValidationError(
                f"context must be one of {[*CONTEXTS, *EMPTY]} or 'all' for all contexts; "
                f'got "{context}"'
            )
        chosen = (*CONTEXTS, *EMPTY) if context == "all" else (context,)

        def read(snapshot: Snapshot) -> Found:
            matches: dict[str, list[str] | None] = {}
            truncations: dict[str, bool] = {}
            for name in chosen:
                ids = _ids(snapshot, name, request) if name in CONTEXTS else []
                matches[name] = ids[:LIMIT]
                truncations[name] = len(ids) > LIMIT
            index = snapshot.index
            value = SearchResponse(
                matches=matches, truncations=truncations, index=index, known_leader=True
            )
            return Found(index=index, value=value)

        return await self._queries.answer(request.options, [("index",)], read)


def _ids(snapshot: Snapshot, context: str, request: calls.Read) -> list[str]:
    prefix, namespace = request.id, request.options.namespace
    # Ids of UUID kind are looked up by whole bytes; an odd digit at the end says nothing yet.
    digits = prefix.replace("-", "")
    even = prefix[:-1] if len(digits) % 2 and context in ("allocs", "nodes", "evals") else prefix

    def visible(space: str) -> bool:
        return namespace in (ALL_NAMESPACES, space)

    sources: dict[str, Callable[[], Iterable[str]]] = {
        "allocs": lambda: (a.id for a in snapshot.allocs_by_prefix(even) if visible(a.namespace)),
        "evals": lambda: (e.id for e in snapshot.evals_by_prefix(even) if visible(e.namespace)),
        "nodes": lambda: (n.id for n in snapshot.nodes_by_prefix(even)),
        "jobs": lambda: (j.id for j in snapshot.jobs(None) if visible(j.namespace)),
        "deployment": lambda: (d.id for d in snapshot.deployments() if visible(d.namespace)),
        "node_pools": lambda: (p.name for p in snapshot.node_pools()),
        "vars": lambda: (
            v.path
            for v in snapshot.variables(None if namespace == ALL_NAMESPACES else namespace, prefix)
        ),
        "namespaces": lambda: (n.name for n in snapshot.namespaces()),
        "host_volumes": lambda: (v.id for v in snapshot.host_volumes() if visible(v.namespace)),
    }
    found: list[str] = []
    for identity in sources[context]():
        if identity.startswith(even):
            found.append(identity)
            if len(found) > LIMIT:
                break
    return found
