"""Plugin blocks in, drivers out."""

from __future__ import annotations

import asyncio

import pytest

from agent.drivers.base import DriverFingerprint
from agent.drivers.mock import MockDriver
from agent.drivers.registry import Drivers, build
from nomadpy.clock import SystemClock
from nomadpy.errors import ConfigError


async def test_raw_exec_is_off_unless_turned_on() -> None:
    clock = SystemClock()
    for drivers, detected in (
        (build({}, clock), False),
        (build({"raw_exec": {"enabled": True}}, clock), True),
        (build({}, clock, options={"driver.raw_exec.enable": "1"}), True),
    ):
        assert (await drivers["raw_exec"].fingerprint()).detected is detected
        await drivers.close()


async def test_a_driver_that_breaks_or_hangs_is_undetected_and_the_others_are_found() -> None:
    class Broken(MockDriver):
        async def fingerprint(self) -> DriverFingerprint:
            raise RuntimeError("no luck")

    class Hanging(MockDriver):
        async def fingerprint(self) -> DriverFingerprint:
            await asyncio.Event().wait()
            raise AssertionError

    clock = SystemClock()
    drivers = Drivers({"a": Broken(clock), "b": Hanging(clock), "c": MockDriver(clock)})
    found = await drivers.fingerprint_all()
    assert (found["a"].detected, found["a"].description) == (False, "no luck")
    assert (found["b"].detected, found["c"].healthy) == (False, True)
    assert drivers.get("d") is None


async def test_a_block_that_cannot_be_understood_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r'plugin "docker": .*volumes'):
        build({"docker": {"volumes": {"enabled": "perhaps"}}}, SystemClock())
    with pytest.raises(ConfigError, match="unknown key 'enabeld'"):
        build({"raw_exec": {"enabeld": True}}, SystemClock())


async def test_lists_of_drivers_are_obeyed() -> None:
    clock = SystemClock()
    assert set(build({}, clock, mock=True)) == {"docker", "raw_exec", "mock_driver"}
    assert set(build({}, clock, options={"driver.allowlist": "docker"})) == {"docker"}
    assert set(build({}, clock, options={"driver.denylist": "docker"})) == {"raw_exec"}
