"""The host volumes of a simulated node: made and deleted when servers ask for it.

They lie on the node's disk, and outlive its agent and its power. Making one takes a while and sometimes fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from nomadpy.entropy import Entropy, SeededEntropy
from nomadpy.errors import DefiniteError, InvalidRequestError
from nomadpy.models.calls import (
    ClientHostVolumeCreateReply,
    ClientHostVolumeCreateRequest,
    ClientHostVolumeDeleteReply,
    ClientHostVolumeDeleteRequest,
)
from nomadpy.models.host_volume import PLUGIN_ATTRIBUTE
from nomadpy.models.node import HostVolumeInfo, Node
from nomadpy.rpc.dispatch import Dispatcher

PLUGIN = "sim"
FAILURES = 0.1
"""How often the plugin fails."""


class NodeVolumes:
    """The volumes of one node, by name."""

    def __init__(self) -> None:
        self.offered: dict[str, HostVolumeInfo] = {}
        self._entropy: Entropy = SeededEntropy("volumes")
        self._changed: Callable[[], None] = lambda: None

    def serve(self, dispatcher: Dispatcher, entropy: Entropy, changed: Callable[[], None]) -> None:
        """Answer the servers in the agent's present life."""
        self._entropy, self._changed = entropy, changed
        dispatcher.register("ClientHostVolume.Create", self._create)
        dispatcher.register("ClientHostVolume.Delete", self._delete)

    def told(self, node: Node) -> Node:
        """The node as it registers."""
        return msgspec.structs.replace(
            node,
            host_volumes=dict(self.offered) or None,
            attributes={**(node.attributes or {}), PLUGIN_ATTRIBUTE.format(PLUGIN): "1"},
        )

    async def _create(
        self, _: object, request: ClientHostVolumeCreateRequest
    ) -> ClientHostVolumeCreateReply:
        await asyncio.sleep(self._entropy.uniform(0.05, 2.0))
        there = self.offered.get(request.name)
        if there is not None and there.id != request.id:
            raise DefiniteError(f"the node has a volume {request.name} already: {there.id}")
        if there is None and self._entropy.uniform(0, 1) < FAILURES:
            raise InvalidRequestError("the plugin failed")
        path = f"/volumes/{request.id}"
        self.offered[request.name] = HostVolumeInfo(
            name=request.name, path=path, read_only=False, id=request.id
        )
        self._changed()
        return ClientHostVolumeCreateReply(
            volume_name=request.name, volume_id=request.id, host_path=path, capacity_bytes=1
        )

    async def _delete(
        self, _: object, request: ClientHostVolumeDeleteRequest
    ) -> ClientHostVolumeDeleteReply:
        await asyncio.sleep(self._entropy.uniform(0.05, 0.5))
        there = self.offered.get(request.name)
        if there is not None and there.id == request.id:
            del self.offered[request.name]
            self._changed()
        return ClientHostVolumeDeleteReply(volume_name=request.name, volume_id=request.id)
