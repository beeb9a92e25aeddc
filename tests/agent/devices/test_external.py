"""Device plugins that are programs: the sample, and programs that die, hang, or say what they must not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_world import LoopClock
from hypothesis import given
from hypothesis import strategies as st

from agent.devices import wire
from agent.devices.base import DeviceError
from agent.devices.external import MAX_LINE, ExternalPlugin, ExternalSettings
from agent.devices.manager import Devices
from nomadpy.entropy import SeededEntropy
from nomadpy.models.node import NodeDevice
from nomadpy.models.resources import AllocatedDeviceResource, Attribute

pytestmark = pytest.mark.real_time

SAMPLE = Path(__file__).parents[3] / "docs/plugins/device_plugin.py"
GREETING = """
import json, os, sys, time
def answer(request, **said):
    sys.stdout.write(json.dumps({"id": request["id"], **said}) + "\\n")
    sys.stdout.flush()
answer(json.loads(sys.stdin.readline()), result={})
DEVICE = {"vendor": "v", "type": "t", "name": "m", "instances": [{"id": "d"}]}
"""
ANSWERS = """
for line in sys.stdin:
    answer(json.loads(line), result={"devices": [DEVICE]})
"""


def settings(script: Path, **changes: Any) -> ExternalSettings:
    values = {"name": "outer", "command": sys.executable, "args": [str(script)], **changes}
    return ExternalSettings(**values)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    def write(body: str) -> Path:
        path = tmp_path / "program.py"
        path.write_text(GREETING + body)
        return path

    return write


class Host:
    """One plugin under its manager."""

    def __init__(self, said: ExternalSettings) -> None:
        self.plugin = ExternalPlugin(said, LoopClock(), SeededEntropy(1))
        self.devices = Devices([self.plugin], LoopClock())
        self.changes = 0

    def _changed(self) -> None:
        self.changes += 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.devices.run(self._changed))
            try:
                yield
            finally:
                task.cancel()

    def device(self) -> NodeDevice | None:
        groups = self.devices.groups() or []
        return next((one for group in groups for one in group.instances or []), None)

    async def until(self, what: Callable[[NodeDevice], bool]) -> NodeDevice:
        async with asyncio.timeout(30):
            while True:
                device = self.device()
                if device is not None and what(device):
                    return device
                await asyncio.sleep(0.02)


def is_healthy(device: NodeDevice) -> bool:
    return device.healthy


def is_sick(device: NodeDevice) -> bool:
    return not device.healthy


def one_of(device: str) -> AllocatedDeviceResource:
    return AllocatedDeviceResource(
        vendor="example", type="file", name="plain", device_ids=[device], share=500
    )


async def test_the_sample_tells_reserves_and_measures_its_devices(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x" * 10)
    (tmp_path / "two").write_text("broken")
    host = Host(settings(SAMPLE, config={"folder": str(tmp_path)}, interval_s=0.1))
    async with host.running():
        await host.until(is_healthy)
        (group,) = host.devices.groups() or []
        assert group.attributes == {"memory": Attribute(int_val=4, unit="GiB")}
        assert [(one.id, one.healthy, one.health_description) for one in group.instances or []] == [
            ("one", True, ""),
            ("two", False, "the file says so"),
        ]
        found = await host.devices.reserve([one_of("one")])
        assert found.env == {
            "NOMAD_DEVICE_EXAMPLE_FILE_PLAIN": "one",
            "NOMAD_DEVICE_EXAMPLE_FILE_PLAIN_SHARE": "500",
            "EXAMPLE_FILES": "one",
        }
        assert [(m.host_path, m.task_path) for m in found.mounts] == [
            (f"{tmp_path}/one", "/devices/one")
        ]
        (measured,) = await host.devices.task_stats([one_of("one")]) or []
        assert list(measured.instance_stats or {}) == ["one"]
        summary = (measured.instance_stats or {})["one"].summary
        assert summary is not None
        assert (summary.int_numerator_val, summary.int_denominator_val) == (10, 4096)
        # Known to the agent still, gone for the plugin.
        host.plugin._settings = settings(SAMPLE, interval_s=1000)
        (tmp_path / "one").unlink()
        with pytest.raises(DeviceError, match="device one is gone"):
            await host.plugin.reserve([one_of("one")])
        pid = host.plugin.pid
    assert not Path(f"/proc/{pid}").exists()


async def test_a_program_that_is_killed_leaves_sick_devices_and_is_started_again(
    program: Callable[[str], Path],
) -> None:
    host = Host(settings(program(ANSWERS), interval_s=1000))
    async with host.running():
        await host.until(is_healthy)
        first = host.plugin.pid
        os.kill(first, signal.SIGKILL)
        device = await host.until(is_sick)
        assert device.health_description == "device plugin outer is not running"
        with pytest.raises(DeviceError, match="not running"):
            await host.plugin.reserve([one_of("d")])
        await host.until(is_healthy)
        assert host.plugin.pid not in (0, first)
        assert host.changes == 3


async def test_a_program_that_hangs_is_killed_and_started_again(
    program: Callable[[str], Path], tmp_path: Path
) -> None:
    script = program(f"""
for line in sys.stdin:
    if os.path.exists({str(tmp_path / "hang")!r}):
        os.unlink({str(tmp_path / "hang")!r})
        time.sleep(1000)
    answer(json.loads(line), result={{"devices": [DEVICE]}})
""")
    host = Host(settings(script, interval_s=0.1, timeout_s=1.0))
    async with host.running():
        await host.until(is_healthy)
        first = host.plugin.pid
        (tmp_path / "hang").touch()
        device = await host.until(is_sick)
        assert device.health_description == "device plugin outer does not answer"
        await host.until(is_healthy)
        assert host.plugin.pid != first
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("'no json'", "it wrote what is no answer"),
        ("'[1]'", "it wrote what is no answer"),
        ("""'{"id": 1, "error": "' + chr(0xDCFF) + '"}'""", "it wrote what is no answer"),
        ("""'{"result": ' + '[' * 100000 + ']' * 100000 + '}'""", "it is nested too deep"),
        ("""'{"result": ' + '[' * 900 + ']' * 900 + '}'""", "it is nested too deep"),
        (f"'x' * {MAX_LINE + 10}", "it wrote a line longer than"),
    ],
)
async def test_a_program_that_says_what_it_must_not_is_ended(
    program: Callable[[str], Path], line: str, reason: str
) -> None:
    script = program(
        "sys.stdout.reconfigure(errors='surrogateescape')\n"
        f"sys.stdout.write({line} + '\\n')\nsys.stdout.flush()\ntime.sleep(1000)\n"
    )
    plugin = ExternalPlugin(settings(script), LoopClock(), SeededEntropy(1))
    async with asyncio.timeout(30):
        assert reason in await plugin._live(lambda: None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit(3)", "it ended with exit code 3"),
        ("", "it ended with exit code 0"),
    ],
)
async def test_the_log_says_why_a_program_ended(
    program: Callable[[str], Path], body: str, reason: str
) -> None:
    plugin = ExternalPlugin(settings(program(body)), LoopClock(), SeededEntropy(1))
    async with asyncio.timeout(30):
        assert await plugin._live(lambda: None) == reason


async def test_a_program_that_is_not_there_or_does_not_like_its_settings_gives_nothing(
    tmp_path: Path,
) -> None:
    nowhere = ExternalPlugin(
        settings(SAMPLE, command="/nonexistent/program"), LoopClock(), SeededEntropy(1)
    )
    assert await nowhere._live(lambda: None) == "it cannot be started: No such file or directory"
    refused = ExternalPlugin(
        settings(SAMPLE, config={"folder": f"{tmp_path}/none"}), LoopClock(), SeededEntropy(1)
    )
    async with asyncio.timeout(30):
        reason = await refused._live(lambda: None)
    assert reason == f"it could not be configured: {tmp_path}/none is no folder"


async def test_an_answer_of_the_wrong_shape_is_an_error_and_no_end(
    program: Callable[[str], Path],
) -> None:
    script = program("""
for line in sys.stdin:
    answer(json.loads(line), result={"devices": [{"vendor": 7}]})
""")
    plugin = ExternalPlugin(settings(script), LoopClock(), SeededEntropy(1))
    started = asyncio.Event()
    async with asyncio.TaskGroup() as group, asyncio.timeout(30):
        task = group.create_task(plugin.run(started.set))
        await started.wait()
        with pytest.raises(DeviceError, match="answered fingerprint with what it must not"):
            await plugin.fingerprint()
        assert plugin.pid
        task.cancel()


@pytest.mark.parametrize(
    "group",
    [
        {"vendor": "", "type": "t", "name": "m", "instances": []},
        {"vendor": "a/b", "type": "t", "name": "m", "instances": []},
        {"vendor": "v", "type": "t", "name": "m", "instances": [{"id": ""}]},
        {"vendor": "v", "type": "t", "name": "m", "instances": [{"id": "a,b"}]},
        {"vendor": "v", "type": "t", "name": "m", "instances": [{"id": "a"}, {"id": "a"}]},
    ],
)
def test_devices_without_a_name_of_their_own_are_refused(group: dict[str, Any]) -> None:
    assert wire.fault(msgspec.convert({"devices": [group]}, wire.Fingerprint))


async def test_a_program_may_write_null_for_what_it_does_not_know(
    program: Callable[[str], Path],
) -> None:
    script = program("""
for line in sys.stdin:
    one = {"id": "d", "healthy": None, "pci_bus_id": None}
    group = {"vendor": "v", "type": "t", "name": "m", "instances": [one], "attributes": {"a": None, "b": 1}}
    answer(json.loads(line), error=None, event=None, result={"devices": [group]})
""")
    host = Host(settings(script, interval_s=1000))
    async with host.running():
        await host.until(is_healthy)
        (group,) = host.devices.groups() or []
        assert group.attributes == {"b": Attribute(int_val=1)}


@given(
    line=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ).map(lambda value: json.dumps({"id": 1, "result": value}).encode()),
    )
)
def test_whatever_a_program_writes_is_an_answer_or_a_fault_and_nothing_else(line: bytes) -> None:
    try:
        answer = wire.read(line)
        for kind in (wire.Fingerprint, wire.Reserved, wire.Stats):
            found = msgspec.convert(answer.result, kind)
            if isinstance(found, wire.Fingerprint) and not wire.fault(found):
                msgspec.msgpack.encode([wire.node_device(one) for one in found.devices])
    except ValueError:
        return


async def test_a_program_may_ask_for_a_look_and_answer_in_any_order(
    program: Callable[[str], Path],
) -> None:
    script = program("""
answered = 0
for line in sys.stdin:
    DEVICE["instances"][0]["healthy"] = answered > 0
    request = json.loads(line)
    answer({"id": 999}, result="late")
    answer(request, result={"devices": [DEVICE]})
    answered += 1
    if answered == 1:
        sys.stderr.write("warming up\\n")
        sys.stdout.write(json.dumps({"event": "changed"}) + "\\n")
        sys.stdout.flush()
""")
    host = Host(settings(script, interval_s=1000))
    async with host.running():
        await host.until(is_healthy)


async def test_a_program_that_stays_when_its_input_ends_is_killed(
    program: Callable[[str], Path],
) -> None:
    script = program(
        "answer(json.loads(sys.stdin.readline()), result={'devices': [DEVICE]})\ntime.sleep(1000)\n"
    )
    host = Host(settings(script, interval_s=1000))
    async with host.running():
        await host.until(is_healthy)
        pid = host.plugin.pid
    assert not Path(f"/proc/{pid}").exists()
