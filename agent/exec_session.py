"""An exec session: the JSON messages of the wire on one side, a driver's inputs and outputs on the other.

In:  {"stdin":{"data":"<base64>"}}, {"stdin":{"close":true}}, {"tty_size":{"height":h,"width":w}}, {} a sign of life.
Out: {"stdout":{"data":...}}, {"stderr":{...}}, {"exited":true,"result":{"exit_code":0}}; one message a chunk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec

from agent.drivers.base import ExecInput, ExecOutput
from nomadpy.errors import InvalidRequestError
from nomadpy.rpc.caller import Stream

_PIECE = 32 * 1024


class _Data(msgspec.Struct, frozen=True, omit_defaults=True):
    data: bytes = b""
    close: bool = False


class _Size(msgspec.Struct, frozen=True):
    height: int = 0
    width: int = 0


class _Input(msgspec.Struct, frozen=True):
    stdin: _Data | None = None
    tty_size: _Size | None = None


class _Result(msgspec.Struct, frozen=True):
    exit_code: int


class _Output(msgspec.Struct, frozen=True, omit_defaults=True):
    stdout: _Data | None = None
    stderr: _Data | None = None
    exited: bool = False
    result: _Result | None = None


Run = Callable[[AsyncIterator[ExecInput]], AsyncIterator[ExecOutput]]


async def serve(stream: Stream, run: Run) -> None:
    """Carry one session from start to end. Raises the driver's NomadError, InvalidRequestError for a bad message."""
    async for output in run(_inputs(stream)):
        for message in _messages(output):
            await stream.send(message)
        if output.channel == "exit":
            break
    await stream.finish()


async def _inputs(stream: Stream) -> AsyncIterator[ExecInput]:
    while (chunk := await stream.receive()) is not None:
        try:
            message = msgspec.json.decode(chunk, type=_Input)
        except msgspec.MsgspecError as cause:
            raise InvalidRequestError(f"exec message not understood: {cause}") from cause
        if message.tty_size is not None:
            yield ExecInput(height=message.tty_size.height, width=message.tty_size.width)
        if message.stdin is not None:
            if message.stdin.data:
                yield ExecInput(data=message.stdin.data)
            if message.stdin.close:
                yield ExecInput(closed=True)
    yield ExecInput(closed=True)


def _messages(output: ExecOutput) -> list[bytes]:
    if output.channel == "exit":
        done = _Output(exited=True, result=_Result(exit_code=output.exit_code))
        return [msgspec.json.encode(done)]
    pieces = [output.data[at : at + _PIECE] for at in range(0, len(output.data), _PIECE)]
    if output.channel == "stderr":
        return [msgspec.json.encode(_Output(stderr=_Data(data=piece))) for piece in pieces]
    return [msgspec.json.encode(_Output(stdout=_Data(data=piece))) for piece in pieces]
