"""What servers say to each other about the log: frames of a length and a msgpack message.

A request travels on the stream that its sender dialed, an answer comes back on the same stream. All messages are
arrays on the wire, told apart by their tag; tags are never reused.
"""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 1
FIRST_BYTE = b"R"
MAX_FRAME_BYTES = 16 << 20
_LENGTH_BYTES = 4


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First frame of a dialed stream: who calls, and whom it means to reach. cluster: "" before a configuration.

    reads_format: the highest format of the log that the caller reads; a server that does not say so reads the first.
    """

    version: int
    id: str
    name: str
    address: str
    region: str
    cluster: str
    to: str
    reads_format: int = 1


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The answer to Hello. refusal: "" when the stream may be used, else why not. needs_format: the format of the log here."""

    version: int
    id: str
    cluster: str
    refusal: str
    reads_format: int = 1
    needs_format: int = 1


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Asks for a Pong, to notice a dead connection."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The answer to Ping."""


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Leader to follower. entries: (term, command) for the indexes after prev_index; round: see ReadIndex."""

    term: int
    commit: int
    round: int
    prev_index: int
    prev_term: int
    entries: list[tuple[int, bytes]]


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """ok: the follower holds, on disk, the leader's log up to `index`. Else `index` is the one to send next."""

    term: int
    round: int
    ok: bool
    index: int


class VoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """A candidate asks; transfer: the leader itself wants this election."""

    term: int
    last_index: int
    last_term: int
    transfer: bool


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """A granted vote; a refusal is silence."""

    term: int


class PreVoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Would you vote for me in `term`? Changes nothing at the receiver."""

    term: int
    last_index: int
    last_term: int
    attempt: int


class PreVoteReply(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """term: the answering server's own."""

    term: int
    granted: bool
    attempt: int


class TermHint(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """A leader of a lower term was heard; it must learn of this one."""

    term: int


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The leader hands leadership over: start an election at once."""

    term: int


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """A piece of the snapshot file that ends at (index, snapshot_term)."""

    term: int
    commit: int
    round: int
    index: int
    snapshot_term: int
    attempt: int
    offset: int
    data: bytes
    last: bool


class SnapshotReply(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Bytes of the snapshot up to `offset` are staged; not ok: the piece was not the one that follows them."""

    term: int
    round: int
    index: int
    attempt: int
    ok: bool
    offset: int


Message = (
    Hello
    | Welcome
    | Ping
    | Pong
    | AppendEntries
    | AppendReply
    | VoteRequest
    | VoteReply
    | PreVoteRequest
    | PreVoteReply
    | TermHint
    | TimeoutNow
    | SnapshotChunk
    | SnapshotReply
)

ANSWERS = (AppendReply, VoteReply, PreVoteReply, TermHint, SnapshotReply)
"""Kinds that go back on the stream of the request."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def encode_frame(message: Message) -> bytes:
    """One frame."""
    body = _encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameDecoder:
    """Cuts a byte stream into messages."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[tuple[int, Message]]:
        """Take bytes, give the messages they complete, each with its size in bytes.

        Raises ValueError on a frame over the limit or one that is not a message; the stream is then of no use.
        """
        buffer = self._buffer
        buffer += data
        messages: list[tuple[int, Message]] = []
        position = 0
        while len(buffer) - position >= _LENGTH_BYTES:
            length = int.from_bytes(buffer[position : position + _LENGTH_BYTES], "big")
            if length > self._limit:
                raise ValueError(f"raft frame of {length} bytes is over the limit of {self._limit}")
            end = position + _LENGTH_BYTES + length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                messages.append((length, _message(view[position + _LENGTH_BYTES : end])))
            position = end
        if position:
            del buffer[:position]
        return messages


def _message(body: memoryview) -> Message:
    try:
        message: Message = _decode(body)
        return message
    except msgspec.DecodeError as cause:
        raise ValueError(f"raft frame is not a message: {cause}") from cause
