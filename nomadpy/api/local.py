"""What the API asks of the node it runs on; everything else goes through the Caller.

The daemon implements it out of the configuration, the server and the agent it has built.
"""

from __future__ import annotations

from typing import Any, Protocol

from nomadpy.metrics import Registry
from nomadpy.models.operator import AgentHealthResponse, AgentMember


class LocalNode(Protocol):
    """One node as only it knows itself. Methods are cheap: none may wait for the cluster for more than a second."""

    @property
    def region(self) -> str:
        """The region this node belongs to, e.g. global; a request for another one is refused."""
        ...

    @property
    def node_id(self) -> str:
        """The id of the client agent on this node; "" when it runs none."""
        ...

    @property
    def is_server(self) -> bool:
        """Whether a server runs on this node."""
        ...

    @property
    def metrics(self) -> Registry:
        """The figures of this process; /v1/metrics renders them, the API counts requests in them."""
        ...

    def config(self) -> dict[str, Any]:
        """The effective configuration for /v1/agent/self: Go-style keys (Region, Datacenter, Name, BindAddr, Ports,
        Server, Client, TLSConfig ...), values JSON can carry, every secret replaced by "<redacted>"."""
        ...

    def stats(self) -> dict[str, dict[str, str]]:
        """Groups of figures as text for /v1/agent/self, e.g. {"raft": {"applied_index": "7"}, "client": {...}}."""
        ...

    def member(self) -> AgentMember:
        """This server as a member (name `<node>.<region>`); an empty AgentMember on a node without a server."""
        ...

    async def health(self) -> AgentHealthResponse:
        """How the roles of this node are; the role it does not have is None. ok False makes the answer a 500."""
        ...

    def servers(self) -> list[str]:
        """host:port of the rpc of every server the client agent knows. Only asked when node_id is not ""."""
        ...

    def set_servers(self, addresses: list[str]) -> None:
        """Replace the servers the client agent talks to (host:port). Only called when node_id is not "".

        Raises InvalidRequestError for an address that cannot be one."""
        ...

    async def join(self, addresses: list[str]) -> int:
        """Contact these servers (host or host:port of their rpc) and return how many answered.

        Raises NomadError when none did. Only called when is_server."""
        ...

    async def force_leave(self, name: str, *, prune: bool) -> None:
        """Treat the server `name` (`<node>.<region>` or `<node>`) as gone; an unknown name is no error.

        prune also forgets it. Only called when is_server."""
        ...
