"""`alloc exec`: a command in a task, its terminal connected to this one."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

from nomadpy.cli.alloc import TASK, one_task
from nomadpy.cli.alloc_files import chosen_alloc
from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, text
from nomadpy.cli.websocket import Closed, WebSocket

HEARTBEAT_S = 10.0
CHUNK = 32 * 1024


@command(
    "alloc exec [options] <allocation> <command> [<args>...]",
    "Run a command in a task. Flags end at the allocation; what follows is the command.\n"
    "The exit code is the command's.",
    flags=(
        text(
            "e",
            "The escape character; followed by . at a line's start it ends the session. none: no escape.",
            "escape",
        ),
        text("group", "With -job: an allocation of this group.", "group-name"),
        Flag("i", "Pass standard input on (the default)."),
        text(
            "job",
            "Take an allocation of this job; the first operand is then the command.",
            "job-id",
        ),
        Flag("t", "Allocate a terminal (the default when standard input and output are one)."),
        TASK,
    ),
    operands=(1, None),
    flags_end_after=1,
)
def exec_(call: Call) -> int:
    """Run and connect."""
    alloc, words = chosen_alloc(call)
    if words and words[0] == "--":
        words = words[1:]
    if not words:
        raise UsageError("A command is needed after the allocation")
    task = one_task(alloc, call.options.text("task"))
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    tty = bool(call.options.given.get("t", terminal))
    query = {"task": task, "tty": tty, "command": json.dumps(words)}
    target = call.client.target(f"/v1/client/allocation/{alloc['ID']}/exec", query)
    socket = WebSocket(
        call.client.open_socket(), call.client.host, target, call.client.settings.token
    )
    escape = call.options.text("e", "~")
    session = _Session(
        socket,
        stdin=bool(call.options.given.get("i", True)),
        escape=escape if tty and len(escape) == 1 else "",
    )
    try:
        with _raw_terminal() if tty and sys.stdin.isatty() else contextlib.nullcontext():
            return session.run(sized=tty and terminal)
    finally:
        socket.close()


class _Session:
    """Passes bytes between this process and the websocket until the command has ended."""

    def __init__(self, socket: WebSocket, *, stdin: bool, escape: str) -> None:
        self._socket = socket
        self._stdin = sys.stdin.fileno() if stdin else -1
        self._escape = escape.encode()
        self._line_start = True
        self._escaping = False
        self._resized = False
        self._exit = 1

    def run(self, *, sized: bool) -> int:
        """Returns the command's exit code."""
        if sized:
            signal.signal(signal.SIGWINCH, lambda *_: setattr(self, "_resized", True))
            self._send_size()
        while True:
            if self._resized:
                self._resized = False
                self._send_size()
            watched = [self._socket.fileno()] + ([self._stdin] if self._stdin >= 0 else [])
            if not self._socket.pending:
                ready, _, _ = select.select(watched, [], [], HEARTBEAT_S)
                if not ready:
                    self._socket.send("{}")
                if self._stdin in ready and self._pass_input():
                    return self._exit
                if self._socket.fileno() not in ready:
                    continue
            message = self._socket.receive()
            if isinstance(message, Closed):
                if message.code != 1000:
                    raise CliError(
                        f"Error executing: {message.reason or 'the session ended without a result'}"
                    )
                return self._exit
            self._show(json.loads(message))

    def _pass_input(self) -> bool:
        """Send what was typed. True when the escape sequence ends the session."""
        data = os.read(self._stdin, CHUNK)
        if not data:
            self._stdin = -1
            self._send({"stdin": {"close": True}})
            return False
        data, leave = self._without_escape(data)
        if data:
            self._send({"stdin": {"data": base64.b64encode(data).decode()}})
        return leave

    def _without_escape(self, data: bytes) -> tuple[bytes, bool]:
        if not self._escape:
            return data, False
        kept = bytearray()
        for value in data:
            byte = bytes([value])
            if self._escaping:
                self._escaping = False
                if byte == b".":
                    return bytes(kept), True
                if byte != self._escape:
                    kept += self._escape
            elif self._line_start and byte == self._escape:
                self._escaping = True
                continue
            kept += byte
            self._line_start = byte in (b"\r", b"\n")
        return bytes(kept), False

    def _show(self, message: dict[str, Any]) -> None:
        for name, out in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            data = (message.get(name) or {}).get("data")
            if data:
                out.buffer.write(base64.b64decode(data))
                out.buffer.flush()
        if message.get("exited"):
            self._exit = int((message.get("result") or {}).get("exit_code", 0))

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message))

    def _send_size(self) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        self._send({"tty_size": {"height": size.lines, "width": size.columns}})


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the task; the terminal is put back whatever happens."""
    import termios
    import tty

    place = sys.stdin.fileno()
    before = termios.tcgetattr(place)
    try:
        tty.setraw(place)
        yield
    finally:
        termios.tcsetattr(place, termios.TCSADRAIN, before)
