"""The agent's line to a supervisor: start one when none listens, ask it, read what a dead one left.

Every request has its own connection, so giving up on an answer is closing a socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from agent.drivers.base import DriverError
from agent.drivers.supervisor import main as supervisor_main
from agent.drivers.supervisor import process, tasks

SPAWN_TIMEOUT_S = 20.0
CONNECT_ATTEMPTS = 500
_SCRIPT = os.path.abspath(supervisor_main.__file__)


class SupervisorGoneError(DriverError):
    """No supervisor listens, or it died before it answered."""

    code = "supervisor-gone"


class SupervisorClient:
    """Talks to the supervisor of one allocation, whose files are in `directory`.

    cgroup: where a new supervisor moves itself, "" for nowhere.
    """

    def __init__(self, directory: str, *, cgroup: str = "") -> None:
        self._directory = directory
        self._cgroup = cgroup
        self._spawning = asyncio.Lock()

    async def request(
        self, operation: str, fds: Sequence[int] = (), **fields: Any
    ) -> dict[str, Any]:
        """Send one request and return its answer, an error's included.

        Raises SupervisorGoneError; the request may or may not have been carried out then.
        """
        body = json.dumps({"op": operation, **fields}).encode()
        loop = asyncio.get_running_loop()
        sock = await self._connect()
        try:
            header = len(body).to_bytes(4, "big")
            if fds:
                socket.send_fds(sock, [header], list(fds))
                await loop.sock_sendall(sock, body)
            else:
                await loop.sock_sendall(sock, header + body)
            size = int.from_bytes(await _receive(sock, 4), "big")
            answer: dict[str, Any] = json.loads(await _receive(sock, size))
            return answer
        except OSError as error:
            raise SupervisorGoneError(f"supervisor in {self._directory}: {error}") from error
        finally:
            sock.close()

    async def ensure(self) -> None:
        """Make sure that one listens. Raises DriverError with what the new one said."""
        async with self._spawning:
            try:
                await self.request("ping")
            except SupervisorGoneError:
                await self._spawn()

    def record(self, key: str) -> dict[str, Any] | None:
        """What is written down of task `key`; None when nothing is."""
        try:
            with open(self._path(tasks.record_name(key)), encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except (OSError, ValueError):
            return None

    def records(self) -> list[tuple[str, bool]]:
        """All tasks that are written down here: (key, whether it has not ended as far as is written)."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            key = tasks.key_of(name)
            record = None if key is None else self.record(key)
            if key is not None and record is not None:
                found.append((key, record.get("exit") is None))
        return found

    def forget(self, key: str) -> None:
        """Remove the record of a task whose supervisor has gone."""
        try:
            os.unlink(self._path(tasks.record_name(key)))
        except FileNotFoundError:
            return

    def kill_orphans(self, record: dict[str, Any]) -> int:
        """Kill what a dead supervisor's task left; blocking, some milliseconds. Returns how many were hit."""
        if record["boot_id"] != process.boot_id():
            return 0
        leader = process.Identity(record["pid"], record["start_ticks"])
        hit = process.kill_family(leader, record["mark"], record["cgroups"])
        process.remove_cgroups(record["cgroups"])
        return hit

    async def _spawn(self) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            _SCRIPT,
            self._directory,
            *([self._cgroup] if self._cgroup else []),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(SPAWN_TIMEOUT_S):
                _, said = await child.communicate()
        except TimeoutError as error:
            child.kill()
            await child.wait()
            raise DriverError(
                f"the supervisor did not start in {SPAWN_TIMEOUT_S:.0f} s", recoverable=True
            ) from error
        if child.returncode not in (0, supervisor_main.ALREADY_RUNS):
            text = said.decode("utf-8", "replace").strip()
            raise DriverError(
                f"the supervisor ended with {child.returncode}: {text}", recoverable=True
            )

    async def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # A socket's path holds 107 bytes; an allocation's may be longer.
                path = f"/proc/self/fd/{folder}/{supervisor_main.SOCKET}"
                for _ in range(CONNECT_ATTEMPTS):
                    if _connected(sock, path):
                        return sock
                    await asyncio.sleep(0.01)
                raise BlockingIOError("its queue is full")
            finally:
                os.close(folder)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise SupervisorGoneError(f"supervisor in {self._directory}: {error}") from error
            raise

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _connected(sock: socket.socket, path: str) -> bool:
    """Connect; False when the queue of the listener is full at the moment."""
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


async def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not part:
            raise ConnectionResetError("it closed the connection")
        data += part
    return bytes(data)
