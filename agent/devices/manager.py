"""All devices of this node: what its plugins find, and what they say that a task needs.

Every plugin is looked at on its own period, and at once when it says that something changed. While one fails, its devices stay
known and are unhealthy: what runs on them goes on, and nothing new comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec

from agent.devices.base import (
    DeviceError,
    DevicePlugin,
    Reservation,
    Supervised,
    generic_env,
    merged,
)
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.models.node import NodeDevice, NodeDeviceResource, NodeResources
from nomadpy.models.resources import AllocatedDeviceResource
from nomadpy.models.stats import DeviceGroupStats

log = logs.get(__name__)

FIRST_LOOK_S = 5.0
"""For so long the node waits for its plugins before it says what it has."""
LOOK_TIMEOUT_S = 20.0
STATS_TIMEOUT_S = 5.0
STATS_AGE_S = 1.0
BROKEN_PAUSE_S = 60.0
_SHORTEST_PAUSE_S = 0.5

_Key = tuple[str, str, str, str]


class Devices:
    """The node's devices. `run` looks at them; everything else may be asked at any time."""

    def __init__(
        self,
        plugins: Sequence[DevicePlugin] = (),
        clock: Clock | None = None,
        *,
        numa_nodes: dict[str, int] | None = None,
    ) -> None:
        """clock: needed with plugins. numa_nodes: of PCI bus ids, where the operator knows better than the kernel."""
        assert clock is not None or not plugins
        self._plugins = list(plugins)
        self._clock = clock
        self.numa_nodes = numa_nodes or {}
        self._found: dict[str, list[NodeDeviceResource]] = {}
        self._wake = {plugin.name: asyncio.Event() for plugin in plugins}
        self._looked = {plugin.name: asyncio.Event() for plugin in plugins}
        self._stats: list[DeviceGroupStats] = []
        self._stats_at_s = float("-inf")
        self._stats_lock = asyncio.Lock()

    # -- what there is ------------------------------------------------------------------------------------

    def groups(self) -> list[NodeDeviceResource] | None:
        """The devices as the node tells them, in the plugins' order; None where there are none."""
        seen: set[_Key] = set()
        found: list[NodeDeviceResource] = []
        for plugin in self._plugins:
            for group in self._found.get(plugin.name, ()):
                # A device that two plugins find is the first one's.
                own = [one for one in group.instances or () if _key(group, one) not in seen]
                seen.update(_key(group, one) for one in own)
                if own:
                    found.append(msgspec.structs.replace(group, instances=own))
        return found or None

    def on_node(self, have: NodeResources | None) -> NodeResources | None:
        """The node's resources with its devices, and with where they are as far as the operator knows better."""
        if have is None or not self._plugins:
            return have
        topology = have.processors.topology
        if topology is not None and self.numa_nodes:
            buses = {**(topology.bus_associativity or {}), **self.numa_nodes}
            topology = msgspec.structs.replace(topology, bus_associativity=buses)
        return msgspec.structs.replace(
            have,
            devices=self.groups(),
            processors=msgspec.structs.replace(have.processors, topology=topology),
        )

    async def ready(self) -> None:
        """Return when every plugin was looked at once, or after FIRST_LOOK_S; needs `run`."""
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                for looked in self._looked.values():
                    await looked.wait()
        except TimeoutError:
            late = [name for name, looked in self._looked.items() if not looked.is_set()]
            log.warning("device plugins are slow; going on without them", plugins=",".join(late))

    # -- what tasks get -----------------------------------------------------------------------------------

    async def reserve(self, wanted: Sequence[AllocatedDeviceResource] | None) -> Reservation:
        """What a task needs for the devices that it was given. Raises DeviceError."""
        if not wanted:
            return Reservation()
        owners = self._owners()
        if not _all_known(wanted, owners):
            # The agent may have just begun.
            await self.ready()
            owners = self._owners()
        mine: dict[str, list[AllocatedDeviceResource]] = {}
        for one in wanted:
            by_plugin: dict[str, list[str]] = {}
            for device in one.device_ids or ():
                owner = owners.get((one.vendor, one.type, one.name, device))
                if owner is None:
                    raise DeviceError(
                        f"device {one.vendor}/{one.type}/{one.name} {device!r} is not on this node"
                    )
                by_plugin.setdefault(owner, []).append(device)
            for owner, ids in by_plugin.items():
                part = msgspec.structs.replace(one, device_ids=ids)
                mine.setdefault(owner, []).append(part)
        parts = [
            await plugin.reserve(mine[plugin.name])
            for plugin in self._plugins
            if plugin.name in mine
        ]
        whole = merged(parts)
        return msgspec.structs.replace(whole, env={**generic_env(wanted), **whole.env})

    def _owners(self) -> dict[_Key, str]:
        owners: dict[_Key, str] = {}
        for plugin in self._plugins:
            for group in self._found.get(plugin.name, ()):
                for one in group.instances or ():
                    owners.setdefault(_key(group, one), plugin.name)
        return owners

    # -- what they do -------------------------------------------------------------------------------------

    async def stats(self) -> list[DeviceGroupStats]:
        """What the devices do, at most STATS_AGE_S old; a plugin that fails is left out."""
        if self._clock is None:
            return []
        async with self._stats_lock:
            if self._clock.monotonic() - self._stats_at_s >= STATS_AGE_S:
                parts = await asyncio.gather(*(self._measure(one) for one in self._plugins))
                self._stats = [group for part in parts for group in part]
                self._stats_at_s = self._clock.monotonic()
            return self._stats

    async def task_stats(
        self, given: Iterable[AllocatedDeviceResource] | None
    ) -> list[DeviceGroupStats] | None:
        """What the devices of a task do; None where it has none or nothing is known of them."""
        wanted = {
            (one.vendor, one.type, one.name, device)
            for one in given or ()
            for device in one.device_ids or ()
        }
        if not wanted:
            return None
        found: list[DeviceGroupStats] = []
        for group in await self.stats():
            mine = {
                device: stats
                for device, stats in (group.instance_stats or {}).items()
                if (group.vendor, group.type, group.name, device) in wanted
            }
            if mine:
                found.append(msgspec.structs.replace(group, instance_stats=mine))
        return found or None

    async def _measure(self, plugin: DevicePlugin) -> list[DeviceGroupStats]:
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await plugin.stats()
        except (DeviceError, TimeoutError) as error:
            log.debug("device plugin cannot measure", plugin=plugin.name, error=str(error))
            return []

    # -- life ---------------------------------------------------------------------------------------------

    async def run(self, changed: Callable[[], None]) -> None:
        """Look at the devices for ever. changed: called when `groups` has changed."""
        async with asyncio.TaskGroup() as group:
            for plugin in self._plugins:
                if isinstance(plugin, Supervised):
                    group.create_task(
                        self._supervise(plugin, plugin.name), name=f"device plugin {plugin.name}"
                    )
                group.create_task(self._watch(plugin, changed), name=f"devices {plugin.name}")

    async def _supervise(self, plugin: Supervised, name: str) -> None:
        while True:
            try:
                await plugin.run(self._wake[name].set)
            except Exception:
                log.exception("a device plugin broke", plugin=name)
            self._wake[name].set()
            await asyncio.sleep(BROKEN_PAUSE_S)

    async def close(self) -> None:
        """Release what the plugins hold; tasks go on."""
        for plugin in self._plugins:
            await plugin.close()

    async def _watch(self, plugin: DevicePlugin, changed: Callable[[], None]) -> None:
        wake = self._wake[plugin.name]
        if isinstance(plugin, Supervised):
            # It says when it is there.
            await _within(FIRST_LOOK_S, wake)
        while True:
            wake.clear()
            before = self._found.get(plugin.name) or []
            await self._look(plugin)
            self._looked[plugin.name].set()
            found = self._found[plugin.name]
            if found != before:
                log.info("devices changed", plugin=plugin.name, **_counts(found))
                changed()
            await asyncio.sleep(_SHORTEST_PAUSE_S)
            await _within(plugin.interval_s, wake)

    async def _look(self, plugin: DevicePlugin) -> None:
        """Ask a plugin what there is. What is known stays, unhealthy, while it cannot tell."""
        known = self._found.get(plugin.name)
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                self._found[plugin.name] = await plugin.fingerprint()
        except (DeviceError, TimeoutError) as error:
            reason = str(error) or f"device plugin {plugin.name} does not answer"
            self._found[plugin.name] = [_unhealthy(group, reason) for group in known or ()]
        except Exception as error:
            log.exception("a device plugin broke", plugin=plugin.name)
            reason = f"device plugin {plugin.name} broke: {error!r}"
            self._found[plugin.name] = [_unhealthy(group, reason) for group in known or ()]


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, and no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _all_known(wanted: Sequence[AllocatedDeviceResource], owners: dict[_Key, str]) -> bool:
    return all(
        (one.vendor, one.type, one.name, device) in owners
        for one in wanted
        for device in one.device_ids or ()
    )


def _key(group: NodeDeviceResource, one: NodeDevice) -> _Key:
    return (group.vendor, group.type, group.name, one.id)


def _unhealthy(group: NodeDeviceResource, reason: str) -> NodeDeviceResource:
    return msgspec.structs.replace(
        group,
        instances=[
            msgspec.structs.replace(one, healthy=False, health_description=reason)
            for one in group.instances or ()
        ],
    )


def _counts(groups: Sequence[NodeDeviceResource]) -> dict[str, int]:
    instances = [one for group in groups for one in group.instances or ()]
    return {"devices": len(instances), "healthy": sum(one.healthy for one in instances)}
