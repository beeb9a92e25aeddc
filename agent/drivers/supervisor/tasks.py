"""One task inside the supervisor: its process, its log pipes, and the record of both on disk.

The record is written before the program runs and again when it has ended, so whoever finds it knows either how the
task ended or which process to look for.
"""

from __future__ import annotations

import json
import os
import time

from agent.drivers.supervisor import process
from agent.drivers.supervisor.rotation import RotatingLog

# mypy knows the name; importing typing itself would cost half a megabyte in every supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READ_SIZE = 65536
DRAIN_S = 1.0


class Stream:
    """The reading end of a task's stdout or stderr, and the log it goes to."""

    def __init__(self, fd: int, log: RotatingLog) -> None:
        self.fd = fd
        self.log = log

    def pump(self) -> bool:
        """Move what is there, at most one buffer; False at the end of the stream."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return True
        if data:
            self.log.write(data)
        return bool(data)

    def close(self) -> None:
        """No more is read."""
        os.close(self.fd)
        self.log.close()


class Task:
    """A task from its start until it is forgotten. `exit` is None while it runs or is being drained."""

    def __init__(self, key: str, request: dict[str, Any]) -> None:
        self.key = key
        self.mark = "" if request["cgroups"] else request["mark"]
        self.spec = _spec(request, self.mark)
        self.streams: list[Stream] = []
        self.identity = process.Identity(0, 0)
        self.status: int | None = None
        self.exit: dict[str, Any] | None = None
        self.drain_until = 0.0
        self._started_ns = 0
        self._logs = request.get("logs")
        self._oom_before = 0

    def start(self) -> None:
        """Run the program. Raises process.StartError or OSError; nothing is left then."""
        readers: list[int] = []
        writers: list[int] = []
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            process.make_cgroups(self.spec.cgroups)
            self._oom_before = process.oom_kills(self.spec.cgroups)
            for _ in range(2 if self._logs else 0):
                reader, writer = os.pipe()
                os.set_blocking(reader, False)
                readers.append(reader)
                writers.append(writer)
            out, err = writers or (null, null)
            held = process.fork(self.spec, (null, out, err))
            self.identity = process.Identity(held.pid, held.start_ticks)
            self._started_ns = time.time_ns()  # noqa: TID251 - its own process, no Clock
            try:
                self.save()
            except OSError:
                held.abandon()
                raise
            held.release()
        except BaseException:
            for fd in readers:
                os.close(fd)
            process.remove_cgroups(self.spec.cgroups)
            process.unlink_if_there(record_name(self.key))
            raise
        finally:
            for fd in (*writers, null):
                os.close(fd)
        if self._logs:
            self.streams = [
                Stream(reader, _log(self._logs, name))
                for reader, name in zip(readers, ("stdout", "stderr"), strict=True)
            ]

    def ended(self, status: int) -> None:
        """The main process was reaped: kill what it left behind, so that its pipes end too."""
        self.status = status
        process.kill_family(self.identity, self.mark, self.spec.cgroups)
        self.drain_until = time.monotonic() + DRAIN_S  # noqa: TID251 - its own process, no Clock

    def finish(self) -> None:
        """All output is read, or long enough was waited: write down how it ended."""
        assert self.status is not None
        for stream in self.streams:
            stream.close()
        self.streams = []
        killed = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        oom = process.oom_kills(self.spec.cgroups) > self._oom_before
        self.exit = {
            # Shells and the wire say it so.
            "exit_code": 128 + killed if killed else os.WEXITSTATUS(self.status),
            "signal": killed,
            "oom_killed": bool(killed and oom),
            "ended_ns": time.time_ns(),  # noqa: TID251 - its own process, no Clock
        }
        process.remove_cgroups(self.spec.cgroups)
        self.save()

    def members(self) -> list[int]:
        """Its live processes."""
        return process.members_of(self.identity, self.mark, self.spec.cgroups)

    def kill(self) -> None:
        """SIGKILL all of it."""
        process.kill_family(self.identity, self.mark, self.spec.cgroups)

    def save(self) -> None:
        """Write the record aside, sync it, put it in place. Raises OSError."""
        record = {
            "key": self.key,
            "pid": self.identity.pid,
            "start_ticks": self.identity.start_ticks,
            "boot_id": process.boot_id(),
            "mark": self.mark,
            "cgroups": self.spec.cgroups,
            "started_ns": self._started_ns,
            "exit": self.exit,
        }
        name = record_name(self.key)
        with open(f"{name}.new", "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{name}.new", name)

    def forget(self) -> None:
        """Remove its record."""
        process.remove_cgroups(self.spec.cgroups)
        process.unlink_if_there(record_name(self.key))


def exec_in(task: Task, request: dict[str, Any], fds: list[int]) -> process.Identity:
    """Run one more program as `task` runs, on the given descriptors. Raises process.StartError, OSError."""
    spec = process.Spec(
        argv=request["argv"],
        path=request["path"],
        env={**request["env"], **task.spec.env},
        cwd=task.spec.cwd,
        uid=task.spec.uid,
        gid=task.spec.gid,
        groups=task.spec.groups,
        cgroups=task.spec.cgroups,
        join=task.spec.join,
        mark=task.mark,
    )
    stdin, stdout, stderr = fds if len(fds) == 3 else fds * 3
    held = process.fork(spec, (stdin, stdout, stderr), tty=bool(request.get("tty")))
    held.release()
    return process.Identity(held.pid, held.start_ticks)


def record_name(key: str) -> str:
    """The file of a task's record, in the supervisor's directory."""
    return f"{key}.json"


def key_of(name: str) -> str | None:
    """The task whose record a file is; None for other files."""
    return name.removesuffix(".json") if name.endswith(".json") else None


def _spec(request: dict[str, Any], mark: str) -> process.Spec:
    names = "argv path env cwd uid gid groups cgroups join oom_score_adj".split()
    return process.Spec(mark=mark, **{name: request[name] for name in names})


def _log(logs: dict[str, Any], name: str) -> RotatingLog:
    return RotatingLog(
        f"{logs['prefix']}.{name}", max_files=logs["max_files"], max_bytes=logs["max_bytes"]
    )
