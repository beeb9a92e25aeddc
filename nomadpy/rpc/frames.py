"""Framing and multiplexing of calls over one ordered byte stream: bytes in, frames out. No I/O.

A frame is a length (4 bytes, big endian) and a msgpack array whose first element is its kind. Both sides
originate calls: the dialer's ids are odd, the acceptor's even, and each side's ids only grow. A stream is a call
with chunks: the opener ends it with Cancel, the other side with Reply or Error. Chunks are paid from a
credit window that the receiver refills as it consumes, so a slow reader bounds the memory.

Whatever breaks these rules is a ProtocolError, and the connection ends: length over the limit (before anything is
parsed or kept), unknown kind, ids that fall, a reply to nothing, chunks beyond the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from nomadpy.errors import DefiniteError, TooLargeError

MAX_FRAME = 16 * 1024 * 1024
MAX_CHUNK = 1024 * 1024
MAX_REPLY = 256 * 1024 * 1024
PART_SIZE = 1024 * 1024
WINDOW = 256 * 1024
CHUNK_OVERHEAD = 64
"""What a chunk costs of the window besides its bytes, so that empty chunks are bounded too."""

_HEADER = 4


class ProtocolError(DefiniteError):
    """The peer broke the rules of the framing; nothing more can be understood of this connection."""

    code = "protocol"


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    pass


class Request(_Frame, tag=1, frozen=True, array_like=True):
    """A call. body: the request struct as msgpack."""

    id: int
    method: str
    body: msgspec.Raw


class Reply(_Frame, tag=2, frozen=True, array_like=True):
    """The answer of a call, or the end of a stream's handler (body nil)."""

    id: int
    body: msgspec.Raw


class Error(_Frame, tag=3, frozen=True, array_like=True):
    """The call or stream failed. error: NomadError.to_wire()."""

    id: int
    error: dict[str, Any]


class Part(_Frame, tag=4, frozen=True, array_like=True):
    """A piece of a reply that is longer than PART_SIZE; the Reply that follows has the last piece as a bin."""

    id: int
    data: bytes


class Open(_Frame, tag=5, frozen=True, array_like=True):
    """Start a streaming method."""

    id: int
    method: str
    body: msgspec.Raw


class Chunk(_Frame, tag=6, frozen=True, array_like=True):
    """A piece of a stream, in either direction."""

    id: int
    data: bytes


class Finish(_Frame, tag=7, frozen=True, array_like=True):
    """No more chunks from the sender of this; the other direction goes on."""

    id: int


class Credit(_Frame, tag=8, frozen=True, array_like=True):
    """The receiver has consumed this much of its window."""

    id: int
    amount: int


class Cancel(_Frame, tag=9, frozen=True, array_like=True):
    """The originator of the call or stream does not want it any more."""

    id: int


class Ping(_Frame, tag=10, frozen=True, array_like=True):
    """Are you there?"""

    id: int


class Pong(_Frame, tag=11, frozen=True, array_like=True):
    """Yes. id: the ping's."""

    id: int


Frame = Request | Reply | Error | Part | Open | Chunk | Finish | Credit | Cancel | Ping | Pong

_decoder = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()
_NIL = msgspec.Raw(b"\xc0")


def encode(frame: Frame) -> bytes:
    """The frame's bytes, length first. Raises TooLargeError when it is over MAX_FRAME."""
    buffer = bytearray(_HEADER)
    _encoder.encode_into(frame, buffer, _HEADER)
    length = len(buffer) - _HEADER
    if length > MAX_FRAME:
        raise TooLargeError(f"a message of {length} bytes is over the limit of {MAX_FRAME}")
    buffer[:_HEADER] = length.to_bytes(_HEADER, "big")
    return bytes(buffer)


def decode(body: bytes | memoryview) -> Frame:
    """One frame from what follows its length. Raises ProtocolError."""
    try:
        frame: Frame = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise ProtocolError(f"malformed frame: {cause}") from cause
    return frame


class Splitter:
    """Cuts a byte stream into frames. Keeps at most one unfinished frame, and no more of it than has arrived."""

    def __init__(self) -> None:
        self._unfinished = bytearray()
        self._need = _HEADER

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises ProtocolError; after that the splitter is of no more use."""
        if self._unfinished:
            self._unfinished += data
            if len(self._unfinished) < self._need:
                return []
            data = bytes(self._unfinished)
            self._unfinished = bytearray()
        frames: list[Frame] = []
        view = memoryview(data)
        start, size = 0, len(data)
        while True:
            if size - start < _HEADER:
                self._need = _HEADER
                break
            length = int.from_bytes(view[start : start + _HEADER], "big")
            if not 0 < length <= MAX_FRAME:
                raise ProtocolError(f"frame length {length} is outside 1 to {MAX_FRAME}")
            end = start + _HEADER + length
            if end > size:
                self._need = _HEADER + length
                break
            frames.append(decode(view[start + _HEADER : end]))
            start = end
        self._unfinished += view[start:]
        return frames


class _Call:
    """What we remember of a call that is under way, ours or the peer's."""

    __slots__ = ("finished_here", "finished_there", "parts", "parts_size", "receive_window",
                 "send_window", "stream", "unreturned")  # fmt: skip

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self.finished_here = False
        self.finished_there = False
        self.send_window = WINDOW
        self.receive_window = WINDOW
        self.unreturned = 0
        self.parts: list[bytes] = []
        self.parts_size = 0


class Multiplexer:
    """The state of one connection's calls. Every method that sends returns the bytes to write."""

    def __init__(self, *, dialer: bool) -> None:
        self._splitter = Splitter()
        self._next_id = 1 if dialer else 2
        self._highest_theirs = 0
        self._our_parity = self._next_id % 2
        self._ours: dict[int, _Call] = {}
        self._theirs: dict[int, _Call] = {}
        self._parts_held = 0

    @property
    def under_way(self) -> int:
        """Calls and streams of both sides that have not ended."""
        return len(self._ours) + len(self._theirs)

    # -- receiving ---------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Frame]:
        """What the peer says that still concerns someone here, checked against the rules. Raises ProtocolError.

        Parts are put together: only the whole Reply comes out. Frames of calls that have ended here and
        crossed on the way are dropped.
        """
        return [
            whole
            for frame in self._splitter.feed(data)
            if (whole := self._admit(frame)) is not None
        ]

    def _admit(self, frame: Frame) -> Frame | None:
        match frame:
            case Request(id=call_id) | Open(id=call_id):
                if call_id <= self._highest_theirs or call_id % 2 == self._our_parity:
                    raise ProtocolError(f"call id {call_id} is not the next of the peer")
                self._highest_theirs = call_id
                self._theirs[call_id] = _Call(stream=isinstance(frame, Open))
            case Reply(id=call_id):
                return self._reply(frame, self._end_ours(call_id))
            case Error(id=call_id):
                return frame if self._end_ours(call_id) is not None else None
            case Part(id=call_id, data=data):
                self._keep_part(self._known(call_id, ours=True), data)
                return None
            case Cancel(id=call_id):
                known = self._known(call_id, ours=False)
                self._theirs.pop(call_id, None)
                return frame if known is not None else None
            case Chunk(id=call_id, data=data):
                return frame if self._take_chunk(call_id, data) else None
            case Finish(id=call_id):
                call = self._stream(call_id)
                if call is None:
                    return None
                if call.finished_there:
                    raise ProtocolError("a stream was finished twice")
                call.finished_there = True
            case Credit(id=call_id, amount=amount):
                call = self._stream(call_id)
                if call is None:
                    return None
                if amount <= 0 or call.send_window + amount > WINDOW:
                    raise ProtocolError(f"credit of {amount} is more than was used")
                call.send_window += amount
            case _:
                pass
        return frame

    def _reply(self, frame: Reply, call: _Call | None) -> Reply | None:
        if call is None:
            return None
        if not call.parts:
            return frame
        try:
            last = msgspec.msgpack.decode(frame.body, type=bytes)
        except msgspec.MsgspecError as cause:
            raise ProtocolError(f"the end of a long reply is malformed: {cause}") from cause
        return Reply(frame.id, msgspec.Raw(b"".join((*call.parts, last))))

    def _keep_part(self, call: _Call | None, data: bytes) -> None:
        if call is None:
            return
        self._parts_held += len(data)
        if call.stream or not data or self._parts_held > MAX_REPLY:
            raise ProtocolError(
                f"the parts of replies are over {MAX_REPLY} bytes, or not of a reply"
            )
        call.parts.append(data)
        call.parts_size += len(data)

    def _take_chunk(self, call_id: int, data: bytes) -> bool:
        if len(data) > MAX_CHUNK:
            raise ProtocolError(f"a chunk of {len(data)} bytes is over the limit of {MAX_CHUNK}")
        call = self._stream(call_id)
        if call is None:
            return False
        if call.finished_there or call.receive_window <= 0:
            raise ProtocolError("a chunk after the end of a stream, or beyond its window")
        call.receive_window -= len(data) + CHUNK_OVERHEAD
        return True

    def _stream(self, call_id: int) -> _Call | None:
        call = self._known(call_id, ours=call_id % 2 == self._our_parity)
        if call is not None and not call.stream:
            raise ProtocolError("a stream's frame for a call that is not one")
        return call

    def _known(self, call_id: int, *, ours: bool) -> _Call | None:
        """The call; None when it has ended. Raises ProtocolError when there never was one."""
        parity_is_ours = call_id % 2 == self._our_parity
        begun = 0 < call_id < self._next_id if ours else 0 < call_id <= self._highest_theirs
        if parity_is_ours != ours or not begun:
            raise ProtocolError(f"call {call_id} was never made")
        return (self._ours if ours else self._theirs).get(call_id)

    def _end_ours(self, call_id: int) -> _Call | None:
        call = self._known(call_id, ours=True)
        if call is not None:
            del self._ours[call_id]
            self._parts_held -= call.parts_size
        return call

    # -- sending: calls of ours ---------------------------------------------------------------------------------

    def request(self, method: str, body: bytes) -> tuple[int, bytes]:
        """Make a call; return its id and the bytes. Raises TooLargeError, and then no call was made."""
        return self._originate(Request, method, body)

    def open(self, method: str, body: bytes) -> tuple[int, bytes]:
        """Start a stream; return its id and the bytes. Raises TooLargeError as `request` does."""
        return self._originate(Open, method, body)

    def _originate(
        self, kind: type[Request] | type[Open], method: str, body: bytes
    ) -> tuple[int, bytes]:
        call_id = self._next_id
        encoded = encode(kind(call_id, method, msgspec.Raw(body)))
        self._next_id += 2
        self._ours[call_id] = _Call(stream=kind is Open)
        return call_id, encoded

    def cancel(self, call_id: int) -> bytes:
        """Give up a call or stream of ours; b"" when it has ended already."""
        call = self._ours.pop(call_id, None)
        if call is None:
            return b""
        self._parts_held -= call.parts_size
        return encode(Cancel(call_id))

    # -- sending: answers to the peer's calls --------------------------------------------------------------------

    def reply(self, call_id: int, body: bytes) -> Iterator[bytes]:
        """Answer a call of the peer, in one piece or several; nothing when the peer has given it up.

        Raises TooLargeError when the body is over MAX_REPLY; the call then still waits for an answer.
        """
        if len(body) > MAX_REPLY:
            raise TooLargeError(f"a reply of {len(body)} bytes is over the limit of {MAX_REPLY}")
        if self._theirs.pop(call_id, None) is None:
            return iter(())
        if len(body) <= PART_SIZE:
            return iter((encode(Reply(call_id, msgspec.Raw(body) if body else _NIL)),))
        return _in_parts(call_id, body)

    def fail(self, call_id: int, error: dict[str, Any]) -> bytes:
        """Answer a call or stream of the peer with an error; b"" when the peer has given it up."""
        if call_id not in self._theirs:
            return b""
        encoded = encode(Error(call_id, error))
        del self._theirs[call_id]
        return encoded

    # -- sending: streams of either side -------------------------------------------------------------------------

    def is_open(self, call_id: int) -> bool:
        """Whether neither side has ended the call."""
        return call_id in self._ours or call_id in self._theirs

    def may_send(self, call_id: int) -> bool:
        """Whether the window has room; one chunk may exceed what is left."""
        return self._get(call_id).send_window > 0

    def chunk(self, call_id: int, data: bytes) -> bytes:
        """Send a piece; `may_send` must hold. Raises TooLargeError over MAX_CHUNK."""
        if len(data) > MAX_CHUNK:
            raise TooLargeError(f"a chunk of {len(data)} bytes is over the limit of {MAX_CHUNK}")
        call = self._get(call_id)
        assert call.send_window > 0, "sent beyond the window"
        assert not call.finished_here, "sent after finish"
        call.send_window -= len(data) + CHUNK_OVERHEAD
        return encode(Chunk(call_id, data))

    def finish(self, call_id: int) -> bytes:
        """No more chunks from here; b"" when that was said already or the stream has ended."""
        call = self._ours.get(call_id) or self._theirs.get(call_id)
        if call is None or call.finished_here:
            return b""
        call.finished_here = True
        return encode(Finish(call_id))

    def consumed(self, call_id: int, size: int) -> bytes:
        """The reader has taken a chunk of `size` bytes; the credit frame when enough has come together, else b""."""
        call = self._ours.get(call_id) or self._theirs.get(call_id)
        if call is None or call.finished_there:
            return b""
        call.unreturned += size + CHUNK_OVERHEAD
        if call.unreturned < WINDOW // 2:
            return b""
        amount, call.unreturned = call.unreturned, 0
        call.receive_window += amount
        return encode(Credit(call_id, amount))

    def _get(self, call_id: int) -> _Call:
        call = self._ours.get(call_id) or self._theirs.get(call_id)
        assert call is not None, "the stream has ended"
        return call


def _in_parts(call_id: int, body: bytes) -> Iterator[bytes]:
    view = memoryview(body)
    cut = 0
    while len(body) - cut > PART_SIZE:
        yield encode(Part(call_id, bytes(view[cut : cut + PART_SIZE])))
        cut += PART_SIZE
    yield encode(Reply(call_id, msgspec.Raw(_encoder.encode(view[cut:]))))


def ping(number: int) -> bytes:
    """The bytes of a Ping."""
    return encode(Ping(number))


def pong(number: int) -> bytes:
    """The bytes of a Pong."""
    return encode(Pong(number))
