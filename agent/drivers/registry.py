"""The drivers of this node by name, built from the client's configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from agent.drivers.base import Driver, DriverFingerprint
from agent.drivers.cgroups import DEFAULT_PARENT
from agent.drivers.config_schema import decode
from agent.drivers.docker import DockerDriver
from agent.drivers.docker_policy import DockerPolicy
from agent.drivers.mock import MockDriver
from agent.drivers.raw_exec import RawExecDriver, RawExecPolicy
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.errors import ConfigError

log = logs.get(__name__)

FINGERPRINT_TIMEOUT_S = 5.0
P = TypeVar("P", bound=msgspec.Struct)


class Drivers(Mapping[str, Driver]):
    """What this node can run: a mapping of driver names, also of those that are turned off."""

    def __init__(self, drivers: Mapping[str, Driver]) -> None:
        self._drivers = dict(drivers)

    def __getitem__(self, name: str) -> Driver:
        return self._drivers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._drivers)

    def __len__(self) -> int:
        return len(self._drivers)

    async def fingerprint_all(self) -> dict[str, DriverFingerprint]:
        """Ask every driver at once; one that fails or hangs is undetected, with the reason."""
        names = list(self._drivers)
        found = await asyncio.gather(*(_fingerprint(self._drivers[name]) for name in names))
        return dict(zip(names, found, strict=True))

    async def close(self) -> None:
        """Close every driver; tasks go on."""
        for driver in self._drivers.values():
            await driver.close()


def build(
    plugins: Mapping[str, Mapping[str, Any]],
    clock: Clock,
    *,
    core_mhz: float = 0.0,
    cgroup_parent: str = DEFAULT_PARENT,
    options: Mapping[str, str] | None = None,
    mock: bool = False,
) -> Drivers:
    """Build the drivers.

    plugins: driver name to the `config` of its plugin block. options: the client's old option map, of which
    `driver.raw_exec.enable`, `docker.privileged.enabled`, `docker.volumes.enabled`, `driver.allowlist` and `driver.denylist` are heard. mock: whether
    the mock driver exists. Raises ConfigError for a block that cannot be understood.
    """
    old = options or {}
    raw_exec = dict(plugins.get("raw_exec", {}))
    if "enabled" not in raw_exec and old.get("driver.raw_exec.enable", "").lower() in ("1", "true"):
        raw_exec["enabled"] = True
    docker = dict(plugins.get("docker", {}))
    if "allow_privileged" not in docker and "docker.privileged.enabled" in old:
        docker["allow_privileged"] = old["docker.privileged.enabled"]
    if "volumes" not in docker and "docker.volumes.enabled" in old:
        docker["volumes"] = {"enabled": old["docker.volumes.enabled"]}
    drivers: dict[str, Driver] = {
        "raw_exec": RawExecDriver(
            clock,
            _policy("raw_exec", raw_exec, RawExecPolicy),
            core_mhz=core_mhz,
            cgroup_parent=cgroup_parent,
        ),
        "docker": DockerDriver(clock, _policy("docker", docker, DockerPolicy), core_mhz=core_mhz),
    }
    if mock:
        drivers["mock_driver"] = MockDriver(clock)
    for name in plugins:
        if name not in drivers:
            log.warning("plugin block for a driver this node does not have", driver=name)
    allowed = _names(old.get("driver.allowlist", ""))
    denied = _names(old.get("driver.denylist", ""))
    return Drivers(
        {
            name: driver
            for name, driver in drivers.items()
            if name not in denied and (not allowed or name in allowed)
        }
    )


async def _fingerprint(driver: Driver) -> DriverFingerprint:
    try:
        async with asyncio.timeout(FINGERPRINT_TIMEOUT_S):
            return await driver.fingerprint()
    except Exception as error:  # noqa: BLE001
        # A driver's task ends here; the agent starts without it.
        log.warning("driver cannot be fingerprinted", driver=driver.name, error=str(error))
        return DriverFingerprint(detected=False, healthy=False, description=str(error))


def _policy(name: str, config: Mapping[str, Any], schema: type[P]) -> P:
    try:
        return decode(dict(config), schema)
    except ValueError as error:
        raise ConfigError(f'plugin "{name}": {error}') from error


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",") if name.strip()}
