"""The Docker Engine's HTTP API, as much of it as the driver needs, over its Unix socket or TCP.

Every call can be cancelled, also those that last as long as a container lives; a daemon that hangs holds no thread.
Works against podman's compatible socket too. Source: Docker Engine API 1.41.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from agent.drivers.base import DriverError
from agent.drivers.docker_policy import TLSPolicy

DEFAULT_ENDPOINT = "unix:///var/run/docker.sock"
CALL_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
_STREAM_NAMES = {0: "stdin", 1: "stdout", 2: "stderr"}
_FRAME_HEADER = 8


class EngineUnreachableError(DriverError):
    """No daemon answers at the endpoint, or it went away in the middle."""

    code = "docker-unreachable"

    def __init__(self, message: str, *, recoverable: bool = True, **details: Any) -> None:
        super().__init__(message, recoverable=recoverable, **details)


class EngineError(DriverError):
    """The daemon answered with an error. `answer_status`: its HTTP status."""

    code = "docker-engine"

    def __init__(
        self, message: str, *, answer_status: int = 500, recoverable: bool = False
    ) -> None:
        super().__init__(message, recoverable=recoverable, answer_status=answer_status)
        self.answer_status = answer_status


class LogFrame(msgspec.Struct, frozen=True):
    """One message of a container's log: a line with its newline, or a part of a very long one."""

    stream: str
    timestamp_ns: int
    data: bytes


class DockerEngine:
    """A daemon at `endpoint` (unix:///path, tcp://host:port); "" takes DOCKER_HOST, then the usual socket."""

    def __init__(self, endpoint: str = "", tls: TLSPolicy | None = None) -> None:
        self.endpoint = endpoint or os.environ.get("DOCKER_HOST", "") or DEFAULT_ENDPOINT
        self._tls = tls or TLSPolicy()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Drop all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- calls ---------------------------------------------------------------------------------

    async def version(self) -> dict[str, Any]:
        """Version, ApiVersion, Os and more."""
        return await self._json("GET", "/version")

    async def info(self) -> dict[str, Any]:
        """Runtimes, storage, cgroups and more."""
        return await self._json("GET", "/info")

    async def network(self, name: str) -> dict[str, Any]:
        """One network. Raises EngineError 404."""
        return await self._json("GET", f"/networks/{quote(name)}")

    async def image(self, name: str) -> dict[str, Any] | None:
        """A local image by name or id, None when it is not here."""
        try:
            return await self._json("GET", f"/images/{quote(name, safe='/:@')}/json")
        except EngineError as error:
            if error.answer_status == 404:
                return None
            raise

    async def create(self, name: str, body: dict[str, Any]) -> str:
        """Create a container and return its id."""
        answer = await self._json("POST", "/containers/create", {"name": name}, body)
        return str(answer["Id"])

    async def start(self, container: str) -> None:
        """Start it; one that runs already is fine."""
        await self._json("POST", f"/containers/{container}/start")

    async def kill(self, container: str, signal: str) -> None:
        """Send a signal to its first process. Raises EngineError 409 when it does not run."""
        await self._json("POST", f"/containers/{container}/kill", {"signal": signal})

    async def inspect(self, container: str) -> dict[str, Any]:
        """All the daemon knows of it, by id or name. Raises EngineError 404."""
        return await self._json("GET", f"/containers/{quote(container)}/json")

    async def remove(self, container: str) -> None:
        """Remove it with its anonymous volumes, also when it runs; one that is gone is fine."""
        try:
            await self._json("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})
        except EngineError as error:
            # 409: somebody removes it at this moment.
            if error.answer_status not in (404, 409):
                raise

    async def wait(self, container: str) -> int:
        """Return its exit code when it does not run any more; no timeout."""
        answer = await self._json("POST", f"/containers/{container}/wait", timeout_s=None)
        return int(answer["StatusCode"])

    async def stats(self, container: str) -> dict[str, Any]:
        """One sample, without the second that the daemon would wait for another."""
        params = {"stream": "0", "one-shot": "1"}
        return await self._json("GET", f"/containers/{container}/stats", params)

    async def exec_create(self, container: str, body: dict[str, Any]) -> str:
        """Prepare a program to run inside; returns its id."""
        return str((await self._json("POST", f"/containers/{container}/exec", None, body))["Id"])

    async def exec_inspect(self, exec_id: str) -> dict[str, Any]:
        """Running, ExitCode."""
        return await self._json("GET", f"/exec/{exec_id}/json")

    async def exec_resize(self, exec_id: str, height: int, width: int) -> None:
        """Tell its terminal a new size."""
        params = {"h": str(height), "w": str(width)}
        await self._json("POST", f"/exec/{exec_id}/resize", params)

    async def load(self, path: str) -> None:
        """Load images from a tar file of the host."""
        file = await asyncio.to_thread(open, path, "rb")
        with file:
            async with self._answer(
                "POST", "/images/load", {"quiet": "1"}, data=file, timeout_s=None
            ) as answer:
                async for message in _json_lines(answer):
                    if "error" in message:
                        raise EngineError(str(message["error"]))

    # -- streams -------------------------------------------------------------------------------

    async def pull(self, image: str, auth_header: str = "") -> AsyncIterator[dict[str, Any]]:
        """Pull an image, yielding its progress. Raises EngineError with the registry's reason."""
        headers = {"X-Registry-Auth": auth_header} if auth_header else {}
        params = {"fromImage": image}
        async with self._answer(
            "POST", "/images/create", params, headers=headers, timeout_s=None
        ) as answer:
            async for message in _json_lines(answer):
                if "error" in message:
                    raise EngineError(str(message["error"]), recoverable=True)
                yield message

    async def logs(
        self, container: str, *, since_ns: int, tty: bool
    ) -> AsyncIterator[list[LogFrame]]:
        """Follow the log from `since_ns` on (inclusive), in batches as they come, until the container ends."""
        params = {"follow": "1", "stdout": "1", "stderr": "1", "timestamps": "1"}
        if since_ns:
            params["since"] = f"{since_ns // 10**9}.{since_ns % 10**9:09d}"
        parser = _TerminalLog() if tty else _FramedLog()
        async with self._answer(
            "GET", f"/containers/{container}/logs", params, timeout_s=None
        ) as answer:
            async for chunk in answer.content.iter_any():
                if frames := parser.feed(chunk):
                    yield frames
        if frames := parser.end():
            yield frames

    async def exec_attach(
        self, exec_id: str, *, tty: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Start the prepared program; the connection becomes its input and output.

        With a terminal the output is raw, else it is framed: see `read_frame`.
        """
        body = json.dumps({"Detach": False, "Tty": tty}).encode()
        head = (
            f"POST /exec/{exec_id}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
            f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await self._connect()
        try:
            writer.write(head.encode() + body)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                status = int(answer.split(" ", 2)[1])
                if status not in (101, 200):
                    text = (await reader.read(4096)).decode("utf-8", "replace")
                    raise EngineError(_message(text), answer_status=status)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            writer.close()
            raise EngineUnreachableError(f"docker at {self.endpoint}: {error}") from error
        except BaseException:
            writer.close()
            raise
        return reader, writer

    # -- inside --------------------------------------------------------------------------------

    async def _json(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with self._answer(
            method, path, params, data=data, headers=headers, timeout_s=timeout_s
        ) as answer:
            raw = await answer.read()
        if not raw.strip():
            return {}
        found: dict[str, Any] = json.loads(raw)
        return found

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._open_session().request(
                method,
                f"http://docker{path}" if self._is_unix() else f"{self._tcp_base()}{path}",
                params=params,
                data=data,
                headers=headers,
                timeout=timeout,
            ) as answer:
                if answer.status >= 400:
                    raise EngineError(
                        _message(await answer.text()),
                        answer_status=answer.status,
                        recoverable=answer.status >= 500,
                    )
                yield answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise EngineUnreachableError(f"docker at {self.endpoint}: {reason}") from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Every running container holds a connection or two, so there is no limit.
            connector: aiohttp.BaseConnector
            if self._is_unix():
                connector = aiohttp.UnixConnector(self._path(), limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl() or False)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        return self._session

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if self._is_unix():
                    return await asyncio.open_unix_connection(self._path())
                parts = urlsplit(self.endpoint)
                return await asyncio.open_connection(
                    parts.hostname, parts.port or 2375, ssl=self._ssl()
                )
        except (OSError, TimeoutError) as error:
            raise EngineUnreachableError(f"docker at {self.endpoint}: {error}") from error

    def is_absent(self) -> bool:
        """Whether there is no daemon on this host at all, not even one that is down for a while."""
        return self._is_unix() and not os.path.exists(self._path())

    def _is_unix(self) -> bool:
        return self.endpoint.startswith(("unix:", "/"))

    def _path(self) -> str:
        return self.endpoint.removeprefix("unix://")

    def _tcp_base(self) -> str:
        scheme = "https" if self._tls.cert or self._tls.ca else "http"
        return f"{scheme}://{urlsplit(self.endpoint).netloc}"

    def _ssl(self) -> ssl.SSLContext | None:
        if not (self._tls.cert or self._tls.ca):
            return None
        context = ssl.create_default_context(cafile=self._tls.ca or None)
        if self._tls.cert:
            context.load_cert_chain(self._tls.cert, self._tls.key)
        return context


async def read_frame(reader: asyncio.StreamReader) -> tuple[str, bytes] | None:
    """One frame of a connection without a terminal: (stream, bytes); None at its end."""
    try:
        header = await reader.readexactly(_FRAME_HEADER)
        data = await reader.readexactly(int.from_bytes(header[4:], "big"))
    except asyncio.IncompleteReadError:
        return None
    return _STREAM_NAMES.get(header[0], "stdout"), data


def parse_timestamp(text: str) -> int:
    """Nanoseconds of `2026-11-23T06:40:45.488790819Z`, exactly. Raises ValueError."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0")[:9])


class _FramedLog:
    """The log of a container without a terminal: each message has a header that names its stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[LogFrame]:
        """Take bytes, give the messages that are complete."""
        self._buffer += chunk
        frames = []
        while len(self._buffer) >= _FRAME_HEADER:
            end = _FRAME_HEADER + int.from_bytes(self._buffer[4:8], "big")
            if len(self._buffer) < end:
                break
            stream = _STREAM_NAMES.get(self._buffer[0], "stdout")
            frames.append(_stamped(stream, bytes(self._buffer[_FRAME_HEADER:end])))
            del self._buffer[:end]
        return frames

    def end(self) -> list[LogFrame]:
        """A message cut off by the end comes again with the next connection."""
        return []


class _TerminalLog:
    """The log of a container with a terminal: plain lines, each with its time."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[LogFrame]:
        """Take bytes, give the lines that are complete."""
        self._buffer += chunk
        frames = []
        while (end := self._buffer.find(b"\n") + 1) > 0:
            frames.append(_stamped("stdout", bytes(self._buffer[:end])))
            del self._buffer[:end]
        return frames

    def end(self) -> list[LogFrame]:
        """What came without a newline."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return [_stamped("stdout", rest)] if b" " in rest else []


def _stamped(stream: str, message: bytes) -> LogFrame:
    stamp, _, data = message.partition(b" ")
    try:
        return LogFrame(stream, parse_timestamp(stamp.decode("ascii")), data)
    except (ValueError, UnicodeDecodeError):
        # Some log drivers give no time; 0 is before everything and never skips a line.
        return LogFrame(stream, 0, message)


async def _json_lines(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    buffer = b""
    async for chunk in answer.content.iter_any():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if buffer.strip():
        yield json.loads(buffer)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or "no reason given"
