"""Run a program on a terminal or on pipes of ours, and give its input and output as events."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.drivers.base import ExecInput, ExecOutput
from agent.drivers.session import Put, merge, pump_inputs

READ_SIZE = 32768
DRAIN_S = 1.0


def run(
    program: Callable[[list[int]], Awaitable[int]], *, tty: bool, inputs: AsyncIterator[ExecInput]
) -> AsyncIterator[ExecOutput]:
    """Yield the outputs of `program`, then its exit.

    program gets the descriptors for stdin, stdout, stderr (or one terminal for all three), must not close them, and
    returns the exit code; it may raise.
    """

    async def produce(put: Put) -> None:
        if tty:
            await _on_terminal(program, inputs, put)
        else:
            await _on_pipes(program, inputs, put)

    return merge(produce)


async def _on_terminal(
    program: Callable[[list[int]], Awaitable[int]], inputs: AsyncIterator[ExecInput], put: Put
) -> None:
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)

    async def close() -> None:
        # A terminal has no end of input but the character for it.
        await _write(ours, b"\x04")

    async def resize(height: int, width: int) -> None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    try:
        async with asyncio.TaskGroup() as group:
            typing = group.create_task(
                pump_inputs(inputs, write=lambda d: _write(ours, d), close=close, resize=resize),
                name="exec-input",
            )
            reading = group.create_task(_copy(ours, "stdout", put), name="exec-output")
            try:
                code = await program([theirs])
            finally:
                # Without a writer left the terminal tells its end, after the last byte.
                os.close(theirs)
                typing.cancel()
            await _drained([reading])
    finally:
        os.close(ours)
    await put(ExecOutput(channel="exit", exit_code=code))


async def _on_pipes(
    program: Callable[[list[int]], Awaitable[int]], inputs: AsyncIterator[ExecInput], put: Put
) -> None:
    their_in, our_in = os.pipe()
    our_out, their_out = os.pipe()
    our_err, their_err = os.pipe()
    open_fds = {their_in, our_in, our_out, their_out, our_err, their_err}
    for fd in (our_in, our_out, our_err):
        os.set_blocking(fd, False)

    def shut(fd: int) -> None:
        if fd in open_fds:
            open_fds.discard(fd)
            os.close(fd)

    async def write(data: bytes) -> None:
        if our_in in open_fds:
            await _write(our_in, data)

    async def close() -> None:
        shut(our_in)

    async def resize(_height: int, _width: int) -> None:
        return

    try:
        async with asyncio.TaskGroup() as group:
            typing = group.create_task(
                pump_inputs(inputs, write=write, close=close, resize=resize), name="exec-input"
            )
            reading = [
                group.create_task(_copy(our_out, "stdout", put), name="exec-stdout"),
                group.create_task(_copy(our_err, "stderr", put), name="exec-stderr"),
            ]
            try:
                code = await program([their_in, their_out, their_err])
            finally:
                for fd in (their_in, their_out, their_err):
                    shut(fd)
                typing.cancel()
            await _drained(reading)
    finally:
        for fd in sorted(open_fds):
            os.close(fd)
    await put(ExecOutput(channel="exit", exit_code=code))


async def _drained(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the ends of the outputs; a child that keeps one open is not waited for."""
    _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
    for task in late:
        task.cancel()


async def _copy(fd: int, channel: str, put: Put) -> None:
    while True:
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            await _ready(fd, write=False)
            continue
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # How a terminal says that nobody has its other side open.
            return
        if not data:
            return
        await put(ExecOutput(channel=channel, data=data))


async def _write(fd: int, data: bytes) -> None:
    """Write all; a program that no longer reads is no error."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await _ready(fd, write=True)
        except (BrokenPipeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)
