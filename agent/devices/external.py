"""A device plugin that is a program of its own: one JSON object a line over its standard input and output.

Every request is `{"id": N, "method": NAME, "params": {...}}`, and its answer `{"id": N, "result": {...}}` or
`{"id": N, "error": TEXT}`, in any order; the shapes are in wire.py. `{"event": "changed"}` asks for a fingerprint at once.
A program that ends, says nothing in time or what is no JSON is ended and started again after a growing pause. Its
input ends with the agent, and it must end with that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from agent.devices import wire
from agent.devices.base import DeviceError, Reservation
from agent.server_list import Backoff
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.node import NodeDeviceResource
from nomadpy.models.resources import AllocatedDeviceResource
from nomadpy.models.stats import DeviceGroupStats

log = logs.get(__name__)

MAX_LINE = 1 << 20
"""Bytes of one line, both ways."""
STOP_S = 2.0
STEADY_S = 60.0
"""Who has lived for so long begins with the shortest pause again."""
_STDERR_SHOWN = 500

T = TypeVar("T")


class ExternalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One program. interval_s: between fingerprints. timeout_s: for each answer. config: handed to the program."""

    name: str
    command: str
    args: list[str] = []
    config: dict[str, Any] = {}
    interval_s: float = 30.0
    timeout_s: float = 5.0


class ExternalPlugin:
    """One program and its supervision."""

    def __init__(self, settings: ExternalSettings, clock: Clock, entropy: Entropy) -> None:
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._session: _Session | None = None
        self._log = log.bind(plugin=settings.name)

    @property
    def name(self) -> str:
        """See DevicePlugin."""
        return self._settings.name

    @property
    def interval_s(self) -> float:
        """See DevicePlugin."""
        return self._settings.interval_s

    @property
    def pid(self) -> int:
        """The program's process, 0 while there is none."""
        return self._session.pid if self._session is not None else 0

    async def fingerprint(self) -> list[NodeDeviceResource]:
        """See DevicePlugin."""
        found = await self._ask("fingerprint", {}, wire.Fingerprint)
        if fault := wire.fault(found):
            raise DeviceError(f"device plugin {self.name}: {fault}")
        return [wire.node_device(one) for one in found.devices]

    async def reserve(self, wanted: Sequence[AllocatedDeviceResource]) -> Reservation:
        """See DevicePlugin."""
        params = {"devices": [wire.asked(one) for one in wanted]}
        return wire.reservation(await self._ask("reserve", params, wire.Reserved))

    async def stats(self) -> list[DeviceGroupStats]:
        """See DevicePlugin."""
        found = await self._ask("stats", {}, wire.Stats)
        moment = gotime.from_ns(self._clock.now_ns())
        return [wire.group_stats(one, moment) for one in found.devices]

    async def close(self) -> None:
        """The program ends with `run`."""

    # -- life ---------------------------------------------------------------------------------------------

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep the program running for ever."""
        backoff = Backoff(self._entropy, first_s=1.0, most_s=60.0)
        while True:
            began_s = self._clock.monotonic()
            reason = await self._live(changed)
            changed()
            if self._clock.monotonic() - began_s >= STEADY_S:
                backoff.reset()
            wait_s = backoff.next_s()
            self._log.warning(
                "device plugin ended; starting it again", reason=reason, wait_s=round(wait_s, 1)
            )
            await asyncio.sleep(wait_s)

    async def _live(self, changed: Callable[[], None]) -> str:
        """One life of the program; returns why it is over."""
        settings = self._settings
        try:
            process = await asyncio.create_subprocess_exec(
                settings.command,
                *settings.args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE,
                start_new_session=True,
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror}"
        session = _Session(process, changed, self._log)
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(session.read(), name=f"plugin {self.name}")
                complaints = group.create_task(session.read_errors(), name=f"errors {self.name}")
                await self._greet(session)
                self._session = session if not session.reason else None
                if self._session is not None:
                    self._log.info("device plugin started", pid=session.pid)
                    changed()
                await reading
                complaints.cancel()
        finally:
            self._session = None
            await session.close()
        return session.reason

    async def _greet(self, session: _Session) -> None:
        settings = self._settings
        params = {"protocol": wire.PROTOCOL, "name": settings.name, "config": settings.config}
        try:
            await session.ask("configure", params, settings.timeout_s)
        except DeviceError as error:
            session.end(f"it could not be configured: {error.message}")
        except TimeoutError:
            session.end("it gave no answer to configure")

    # -- questions ------------------------------------------------------------------------------------------

    async def _ask(self, method: str, params: dict[str, Any], kind: type[T]) -> T:
        session = self._session
        if session is None:
            raise DeviceError(f"device plugin {self.name} is not running")
        try:
            answer = await session.ask(method, params, self._settings.timeout_s)
            return msgspec.convert(answer, kind)
        except TimeoutError as error:
            session.end(f"it gave no answer to {method}")
            raise DeviceError(f"device plugin {self.name} does not answer") from error
        except msgspec.ValidationError as error:
            raise DeviceError(
                f"device plugin {self.name} answered {method} with what it must not: {error}"
            ) from error


class _Session:
    """One running program. reason: why it is over, "" while it is not."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        changed: Callable[[], None],
        said: logs.FieldLogger,
    ) -> None:
        self._process = process
        self._changed = changed
        self._log = said
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self.reason = ""

    @property
    def pid(self) -> int:
        """Of the program, which leads its own process group."""
        return self._process.pid

    async def ask(self, method: str, params: dict[str, Any], timeout_s: float) -> Any:
        """The result. Raises DeviceError with the program's words or because it ended; TimeoutError."""
        if self.reason:
            raise DeviceError(f"the program ended: {self.reason}")
        assert self._process.stdin is not None
        self._last += 1
        number = self._last
        line = msgspec.json.encode({"id": number, "method": method, "params": params})
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.suppress(ConnectionError):
                    self._process.stdin.write(line + b"\n")
                    await self._process.stdin.drain()
                return await future
        finally:
            self._waiting.pop(number, None)

    async def read(self) -> None:
        """Take answers until the program says nothing more, or what it must not."""
        assert self._process.stdout is not None
        while not self.reason:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                self.end(f"it wrote a line longer than {MAX_LINE} bytes")
                break
            if not line:
                self.end(await self._farewell())
                break
            try:
                self._take(wire.read(line))
            except ValueError as error:
                self.end(f"it wrote what is no answer: {error}")

    def _take(self, line: wire.Line) -> None:
        if line.event == "changed":
            self._changed()
        future = self._waiting.get(line.id) if line.id is not None else None
        if future is None or future.done():
            return
        if line.error:
            future.set_exception(DeviceError(line.error))
        else:
            future.set_result(line.result)

    async def read_errors(self) -> None:
        """What it writes to its standard error goes to the log, a line's beginning each."""
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()[:_STDERR_SHOWN]
            self._log.info("device plugin says", text=text)

    def end(self, reason: str) -> None:
        """Kill it, and fail whoever waits for an answer."""
        if self.reason:
            return
        self.reason = reason
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DeviceError(f"the program ended: {reason}"))
        self._signal(signal.SIGKILL)

    async def _farewell(self) -> str:
        """Why its output is over."""
        try:
            async with asyncio.timeout(STOP_S):
                return f"it ended with exit code {await self._process.wait()}"
        except TimeoutError:
            return "it closed its output"

    async def close(self) -> None:
        """End its input, which it must follow; kill it when it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(0 if self.reason else STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        finally:
            self.end("it was stopped")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
