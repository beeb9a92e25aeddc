"""Operator.* and Server.* that change which servers count, and how well they are."""

from __future__ import annotations

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.models.gotime import from_ns
from nomadpy.models.operator import OperatorHealthReply, ServerHealth
from nomadpy.raft.config import PeerSpec
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services, done, written
from nomadpy.server.leader.autopilot import Autopilot
from nomadpy.server.state_check import StateCheck


class Quorum:
    """Handlers."""

    def __init__(self, services: Services, autopilot: Autopilot, check: StateCheck) -> None:
        self._core = services.core
        self._members = services.members
        self._autopilot = autopilot
        self._check = check
        register = services.router.register
        register("Operator.RemovePeer", self.remove_peer)
        register("Operator.TransferLeadership", self.transfer_leadership)
        register("Operator.AutopilotHealth", self.health)
        register("Server.Leave", self.leave)

    async def remove_peer(self, _: CallContext, request: calls.Write) -> Answer:
        """Take a server out for good; named by `id` or by flags["address"].

        Raises NotFoundError, ConflictError when the rest would have no live majority.
        """
        peer = self._find(request.id, request.flags.get("address", ""))
        if not self._autopilot.majority_stays_without(peer.id):
            raise ConflictError(
                f"without {peer.name} ({peer.id}) no majority of the remaining servers would be alive: start them, or add "
                "others, before it is removed"
            )
        await self._core.raft.remove_server(peer.id)
        return done()

    async def transfer_leadership(self, _: CallContext, request: calls.Write) -> Answer:
        """Hand leadership to the server named by `id` or by flags["address"]."""
        peer = self._find(request.id, request.flags.get("address", ""))
        me = self._core.settings.id
        raft = self._core.raft
        before = next((p for p, _ in raft.peers() if p.id == me), peer)
        if peer.id != me:
            await raft.transfer_leadership(peer.id)
        body = {
            "From": {"ID": before.id, "Address": before.address},
            "To": {"ID": peer.id, "Address": peer.address},
            "Noop": peer.id == me,
            "Err": None,
        }
        return written(body)

    async def leave(self, _: CallContext, request: calls.Write) -> Answer:
        """A server goes of its own will, and may come back as the same."""
        if len(self._core.raft.peers()) < 2:
            raise InvalidRequestError("the last server cannot leave")
        await self._core.raft.remove_server(request.id, final=False)
        return done()

    async def health(self, _: CallContext, _request: calls.Read) -> Answer:
        """How the servers are, as this one sees them; only the leader knows how far the others hold its log."""
        core = self._core
        raft, leader = core.raft, core.raft.leader
        servers: list[ServerHealth] = []
        for peer, votes in raft.peers():
            member = self._members.by_id(peer.id)
            alive = member is not None and member.status == "alive"
            hello = member.hello if member is not None else None
            progress = raft.progress(peer.id)
            well_s = self._autopilot.healthy_for(peer.id)
            healthy = well_s is not None if raft.is_leader else alive
            # Who holds another state than the others is not well, however quickly it answers.
            healthy = healthy and peer.id not in self._check.verdict.odd
            silent_s = progress[1] if progress is not None else 0.0
            servers.append(
                ServerHealth(
                    id=peer.id,
                    name=f"{peer.name}.{core.settings.region}",
                    address=peer.address,
                    serf_status=member.status if member is not None else "failed",
                    version=hello.version if hello is not None else "",
                    leader=leader is not None and leader.id == peer.id,
                    last_contact=f"{silent_s * 1000:.0f}ms" if silent_s else "0s",
                    last_term=hello.raft_term if hello is not None else 0,
                    last_index=progress[0]
                    if progress is not None
                    else (hello.raft_index if hello is not None else 0),
                    healthy=healthy,
                    voter=votes,
                    stable_since=from_ns(core.clock.now_ns() - int((well_s or 0.0) * 1e9)),
                )
            )
        voters = [s for s in servers if s.voter]
        live = sum(s.healthy for s in voters)
        return written(
            OperatorHealthReply(
                healthy=all(s.healthy for s in servers) and leader is not None,
                failure_tolerance=max(0, live - (len(voters) // 2 + 1)),
                servers=servers,
                leader=leader.id if leader is not None else "",
                voters=[s.id for s in voters],
            )
        )

    def _find(self, server_id: str, address: str) -> PeerSpec:
        if bool(server_id) == bool(address):
            raise InvalidRequestError("name a server by its id or by its address, not both")
        for peer, _ in self._core.raft.peers():
            if peer.id == server_id or peer.address == address:
                return peer
        what = f"id {server_id}" if server_id else f"address {address}"
        raise NotFoundError(f"no server of the configuration has the {what}")
