"""The supervisor's process: `python -I -S main.py DIRECTORY [CGROUP]`, one for each allocation that needs it.

It holds the pipes of the allocation's plain tasks, writes their logs, reaps them and writes down how they ended,
whether or not an agent runs. DIRECTORY gets the socket, the lock, one record per task. CGROUP is the group that the
supervisor itself moves to, away from the agent's service. Exit status of the first process: 0 when the supervisor
listens, 3 when another one does.

Requests come one to a connection: four bytes of length, big-endian, then JSON, with file descriptors beside it for
`exec`. Answers have the same form.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

if __name__ == "__main__":
    # Isolated mode has no path to our package; the standard library still comes first.
    sys.path.append(os.path.abspath(__file__).rsplit("/agent/", 1)[0])

from agent.drivers.supervisor import process
from agent.drivers.supervisor.tasks import Stream, Task, exec_in

# mypy knows the name; importing typing itself would cost half a megabyte in every supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "supervisor.sock"
LOCK = "lock"
ALREADY_RUNS = 3
IDLE_S = 10.0
RETRY_S = 1.0
MAX_REQUEST = 4 * 1024 * 1024
MAX_FDS = 3


class Connection:
    """One request being read or waiting for its answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = bytearray()
        self.fds: list[int] = []
        self.waits_for: Task | None = None
        self.session: process.Identity | None = None
        self.answered = False

    def close(self) -> None:
        """Drop it and the descriptors that came with it."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.sock.close()


class Supervisor:
    """The loop and its tasks. Single-threaded: nothing in here may wait for long."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.poll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._tasks: dict[str, Task] = {}
        self._connections: dict[int, Connection] = {}
        self._leaving = False
        self._idle_since = _now()
        self._wake, wake_write = os.pipe()
        for fd in (self._wake, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self._watch(self._wake, self._woken)
        self._watch(listener.fileno(), self._accept)

    def run(self) -> None:
        """Serve until nothing has run for IDLE_S; the records on disk then say all there is to say."""
        while True:
            for fd, _ in self._poll.poll(self._timeout_ms()):
                action = self._ready.get(fd)
                if action is not None:
                    action()
            self._finish_drained()
            if not self._is_idle():
                self._idle_since = _now()
            elif self._leaving or _now() - self._idle_since > IDLE_S:
                return

    # -- requests ------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        connection = Connection(sock)
        self._connections[sock.fileno()] = connection
        self._watch(sock.fileno(), lambda: self._read(connection))

    def _read(self, connection: Connection) -> None:
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            data, extra, _, _ = connection.sock.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, extra = b"", []
        for level, kind, payload in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                connection.fds.extend(fds)
        if not data:
            self._hang_up(connection)
            return
        connection.data += data
        length = int.from_bytes(connection.data[:4], "big")
        if length > MAX_REQUEST:
            self._answer(connection, {"error": f"request of {length} bytes is too long"})
        elif len(connection.data) >= 4 + length and len(connection.data) >= 4:
            self._serve(connection, bytes(connection.data[4 : 4 + length]))

    def _serve(self, connection: Connection, body: bytes) -> None:
        try:
            request = json.loads(body)
            answer = self._perform(connection, request)
        except (process.StartError, OSError) as error:
            answer = {"error": str(error)}
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": f"bad request: {error!r}"}
        if answer is not None:
            self._answer(connection, answer)

    def _perform(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any] | None:
        operation = request["op"]
        if operation == "ping":
            return {"pid": os.getpid(), "tasks": sorted(self._tasks)}
        if operation == "start":
            return self._start(request)
        task = self._tasks.get(request["key"])
        if task is None:
            return {"error": f"no task {request['key']}", "missing": True}
        if operation == "wait":
            if task.exit is not None:
                return {"exit": task.exit}
            connection.waits_for = task
            return None
        if operation == "exec" and task.status is None:
            connection.session = exec_in(task, request, connection.fds)
            for fd in connection.fds:
                os.close(fd)
            connection.fds = []
            return None
        return self._on_task(operation, task, request)

    def _on_task(self, operation: str, task: Task, request: dict[str, Any]) -> dict[str, Any]:
        if operation == "pids":
            return {"pids": task.members()}
        if operation == "forget":
            if task.exit is None:
                return {"error": f"task {task.key} still runs"}
            task.forget()
            del self._tasks[task.key]
            return {}
        if task.status is not None:
            return {"ended": True}
        if operation == "signal":
            os.kill(task.identity.pid, request["signal"])
        elif operation == "signal_group":
            os.killpg(task.identity.pid, request["signal"])
        elif operation == "kill":
            task.kill()
        else:
            return {"error": f"unknown operation {operation!r}"}
        return {}

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        key = str(request["key"])
        if os.path.basename(key) != key or key.startswith("."):
            raise ValueError(f"key {key!r}")
        present = self._tasks.get(key)
        if present is not None and present.exit is None:
            return {"error": f"task {key} already runs"}
        task = Task(key, request)
        task.start()
        self._tasks[key] = task
        for stream in task.streams:
            self._watch(stream.fd, lambda stream=stream: self._pump(stream))  # type: ignore[misc]
        return {"pid": task.identity.pid, "start_ticks": task.identity.start_ticks}

    def _answer(self, connection: Connection, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        connection.sock.setblocking(True)
        connection.sock.settimeout(1.0)
        try:
            connection.sock.sendall(len(body).to_bytes(4, "big") + body)
        except OSError:
            connection.answered = False
        connection.answered = True
        self._hang_up(connection)

    def _hang_up(self, connection: Connection) -> None:
        self._unwatch(connection.sock.fileno())
        self._connections.pop(connection.sock.fileno(), None)
        if connection.session is not None and not connection.answered:
            # The one who asked for this program is gone, so nobody wants it.
            process.kill_family(connection.session, "", [])
        connection.close()

    # -- processes -----------------------------------------------------------------------------

    def _woken(self) -> None:
        os.read(self._wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._reaped(pid, status)

    def _reaped(self, pid: int, status: int) -> None:
        for task in self._tasks.values():
            if task.identity.pid == pid and task.status is None:
                task.ended(status)
                return
        for connection in list(self._connections.values()):
            if connection.session is not None and connection.session.pid == pid:
                killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                code = 128 + killed if killed else os.WEXITSTATUS(status)
                self._answer(connection, {"exit_code": code, "signal": killed})
                return

    def _pump(self, stream: Stream) -> None:
        if not stream.pump():
            self._unwatch(stream.fd)

    def _finish_drained(self) -> None:
        for task in self._tasks.values():
            if task.status is None or task.exit is not None:
                continue
            at_end = not any(stream.fd in self._ready for stream in task.streams)
            if at_end or _now() > task.drain_until:
                for stream in task.streams:
                    self._unwatch(stream.fd)
                try:
                    task.finish()
                except OSError as error:
                    # The disk refuses the record; whoever waits still gets the answer from memory.
                    print(f"record of {task.key}: {error}", file=sys.stderr, flush=True)  # noqa: T201
                for connection in list(self._connections.values()):
                    if connection.waits_for is task:
                        self._answer(connection, {"exit": task.exit})

    # -- the loop ------------------------------------------------------------------------------

    def _leave(self, *_: object) -> None:
        self._leaving = True

    def _is_idle(self) -> bool:
        return not self._connections and all(t.exit is not None for t in self._tasks.values())

    def _timeout_ms(self) -> int | None:
        if any(t.status is not None and t.exit is None for t in self._tasks.values()):
            return 50
        waiting = [s.log for t in self._tasks.values() for s in t.streams if s.log.has_pending]
        for log in waiting:
            log.write(b"")
        if waiting:
            return int(RETRY_S * 1000)
        return int(IDLE_S * 1000 / 4) if self._is_idle() else None

    def _watch(self, fd: int, action: Callable[[], None]) -> None:
        self._ready[fd] = action
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._poll.unregister(fd)


def _now() -> float:
    return time.monotonic()  # noqa: TID251 - its own process, no Clock


def _listen() -> socket.socket:
    """Bind the socket that only this user may use. Under the lock, so what lies there is a dead one's."""
    process.unlink_if_there(SOCKET)
    os.umask(0o177)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(SOCKET)
    os.umask(0o077)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _detach() -> None:
    """Leave the agent's session, process tree and descriptors."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open("supervisor.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for target, fd in ((0, null), (1, null), (2, errors)):
        os.dup2(fd, target)


def main(directory: str, cgroup: str = "") -> int:
    """Run it; the caller's process returns when the supervisor listens."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    os.chdir(directory)
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALREADY_RUNS
    listener = _listen()
    _detach()
    if cgroup:
        try:
            process.make_cgroups([cgroup])
            with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
        except OSError as error:
            print(f"stay in the agent's control group: {error}", file=sys.stderr)  # noqa: T201
    process.adopt_orphans()
    Supervisor(listener).run()
    process.unlink_if_there(SOCKET)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
