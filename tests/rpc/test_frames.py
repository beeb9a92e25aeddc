"""Frames: what a peer may say, in any split of the bytes, and what ends the connection."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomadpy.errors import TooLargeError
from nomadpy.rpc import frames
from nomadpy.rpc.frames import (
    CHUNK_OVERHEAD,
    MAX_CHUNK,
    MAX_FRAME,
    PART_SIZE,
    WINDOW,
    Cancel,
    Chunk,
    Credit,
    Error,
    Finish,
    Frame,
    Multiplexer,
    Open,
    Part,
    Ping,
    Pong,
    ProtocolError,
    Reply,
    Request,
    Splitter,
    encode,
)

NIL = b"\xc0"

ids = st.integers(0, 2**32)
bodies = st.recursive(
    st.none() | st.integers(-(2**31), 2**31) | st.text(max_size=20) | st.binary(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
).map(lambda value: msgspec.Raw(msgspec.msgpack.encode(value)))
any_frame: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Request, ids, st.text(max_size=30), bodies),
    st.builds(Reply, ids, bodies),
    st.builds(Error, ids, st.just({"code": "invalid", "message": "m", "status": 400})),
    st.builds(Part, ids, st.binary(max_size=2000)),
    st.builds(Open, ids, st.text(max_size=30), bodies),
    st.builds(Chunk, ids, st.binary(max_size=2000)),
    st.builds(Finish, ids),
    st.builds(Credit, ids, ids),
    st.builds(Cancel, ids),
    st.builds(Ping, ids),
    st.builds(Pong, ids),
)


def plain(frame: Frame) -> bytes:
    return msgspec.msgpack.encode(frame)


@given(sent=st.lists(any_frame, max_size=8), cuts=st.lists(st.integers(1, 3000), max_size=30))
def test_frames_come_out_as_they_went_in_whatever_the_split(
    sent: list[Frame], cuts: list[int]
) -> None:
    data = b"".join(encode(frame) for frame in sent)
    splitter = Splitter()
    received: list[Frame] = []
    for cut in cuts:
        piece, data = data[:cut], data[cut:]
        received += splitter.feed(piece)
    received += splitter.feed(data)
    assert [plain(frame) for frame in received] == [plain(frame) for frame in sent]


def test_a_stream_of_single_bytes_is_understood() -> None:
    data = encode(Request(1, "Job.List", msgspec.Raw(NIL))) + encode(Ping(7))
    splitter = Splitter()
    received = [frame for byte in data for frame in splitter.feed(bytes([byte]))]
    assert [type(frame) for frame in received] == [Request, Ping]


@given(garbage=st.binary(min_size=1, max_size=400))
@settings(max_examples=300)
def test_garbage_gives_frames_or_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    mux = Multiplexer(dialer=False)
    with contextlib.suppress(ProtocolError):
        mux.receive(garbage)
        mux.receive(garbage)


@given(body=st.binary(min_size=1, max_size=200))
@settings(max_examples=300)
def test_a_well_sized_frame_of_garbage_gives_a_protocol_error_or_a_frame(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        Multiplexer(dialer=False).receive(len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 2**31, 2**32 - 1])
def test_a_length_outside_the_limits_is_refused_by_the_header_alone(length: int) -> None:
    with pytest.raises(ProtocolError, match="frame length"):
        Splitter().feed(length.to_bytes(4, "big"))


def test_an_announced_frame_takes_no_more_memory_than_has_arrived() -> None:
    splitter = Splitter()
    splitter.feed(MAX_FRAME.to_bytes(4, "big") + b"x" * 10)
    assert len(splitter._unfinished) == 14


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode([99, 1]),
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode({"kind": 1}),
        msgspec.msgpack.encode([1, "one", "Job.List", {}]),
        msgspec.msgpack.encode([1, 1]),
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\x80\x04\x95\x10cposix\nsystem\n",
    ],
    ids=["unknown kind", "empty", "map", "id is text", "too short", "deep", "huge array", "pickle"],
)
def test_malformed_frames_end_the_connection(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Splitter().feed(len(body).to_bytes(4, "big") + body)


def pair() -> tuple[Multiplexer, Multiplexer]:
    return Multiplexer(dialer=True), Multiplexer(dialer=False)


def test_both_sides_call_at_the_same_time_without_mixing_ids() -> None:
    one, two = pair()
    first, data_one = one.request("Job.List", NIL)
    second, data_two = two.request("Client.Stats", NIL)
    assert (first % 2, second % 2) == (1, 0)
    assert [frame.id for frame in two.receive(data_one)] == [first]  # type: ignore[union-attr]
    assert [frame.id for frame in one.receive(data_two)] == [second]  # type: ignore[union-attr]
    for piece in two.reply(first, b"\x01"):
        (reply,) = one.receive(piece)
        assert isinstance(reply, Reply)
        assert bytes(reply.body) == b"\x01"
    assert one.under_way == 1
    assert two.under_way == 1


@pytest.mark.parametrize(
    "frame",
    [
        Reply(1, msgspec.Raw(NIL)),
        Reply(2, msgspec.Raw(NIL)),
        Reply(-1, msgspec.Raw(NIL)),
        Error(2, {}),
        Part(2, b"x"),
        Chunk(1, b"x"),
        Chunk(2, b"x"),
        Finish(1),
        Credit(1, 5),
        Cancel(1),
        Request(2, "m", msgspec.Raw(NIL)),
        Request(0, "m", msgspec.Raw(NIL)),
        Request(-1, "m", msgspec.Raw(NIL)),
    ],
    ids=repr,
)
def test_a_frame_about_a_call_that_never_was_is_refused(frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        Multiplexer(dialer=False).receive(encode(frame))


def test_a_call_id_cannot_be_used_twice() -> None:
    mux = Multiplexer(dialer=False)
    request = encode(Request(5, "m", msgspec.Raw(NIL)))
    mux.receive(request)
    list(mux.reply(5, NIL))
    with pytest.raises(ProtocolError, match="not the next"):
        mux.receive(request)


def test_frames_that_cross_the_end_of_a_call_are_dropped() -> None:
    one, two = pair()
    call_id, data = one.open("FS.Logs", NIL)
    two.receive(data)
    late = [two.chunk(call_id, b"late"), two.finish(call_id), *two.reply(call_id, b"")]
    two_hears = one.cancel(call_id)
    assert one.receive(b"".join(late)) == []
    assert two.receive(two_hears) == []
    assert one.under_way == two.under_way == 0


@given(size=st.sampled_from([0, 1, PART_SIZE, PART_SIZE + 1, 3 * PART_SIZE, 20 * 1024 * 1024]))
@settings(max_examples=12, deadline=None)
def test_a_reply_of_any_size_arrives_whole(size: int) -> None:
    one, two = pair()
    call_id, data = one.request("Job.List", NIL)
    two.receive(data)
    body = msgspec.msgpack.encode(b"\xab" * size)
    frames_out = [frame for piece in two.reply(call_id, body) for frame in one.receive(piece)]
    (reply,) = frames_out
    assert isinstance(reply, Reply)
    assert bytes(reply.body) == body
    assert one.under_way == two.under_way == 0
    assert one._parts_held == 0


def test_parts_beyond_the_limit_of_replies_end_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "MAX_REPLY", 3 * PART_SIZE)
    one = Multiplexer(dialer=True)
    call_id, _ = one.request("Job.List", NIL)
    with pytest.raises(ProtocolError, match="parts"):
        for _ in range(5):
            one.receive(encode(Part(call_id, b"x" * PART_SIZE)))


def test_what_is_too_large_is_refused_where_it_is_sent() -> None:
    one = Multiplexer(dialer=True)
    with pytest.raises(TooLargeError):
        one.request("Job.Register", msgspec.msgpack.encode(b"x" * MAX_FRAME))
    assert one.under_way == 0
    call_id, _ = one.open("FS.Logs", NIL)
    with pytest.raises(TooLargeError):
        one.chunk(call_id, b"x" * (MAX_CHUNK + 1))


def test_a_peer_that_sends_beyond_its_window_is_cut_off() -> None:
    one = Multiplexer(dialer=True)
    call_id, _ = one.open("FS.Logs", NIL)
    allowed = 0
    with pytest.raises(ProtocolError, match="window"):
        while allowed < 100_000:
            one.receive(encode(Chunk(call_id, b"")))
            allowed += 1
    assert allowed == WINDOW // CHUNK_OVERHEAD


def test_credit_that_was_not_used_is_refused() -> None:
    one = Multiplexer(dialer=True)
    call_id, _ = one.open("FS.Logs", NIL)
    for amount in (1, 0, -5, 2**62):
        with pytest.raises(ProtocolError, match="credit"):
            one.receive(encode(Credit(call_id, amount)))


@given(
    sizes=st.lists(st.integers(0, 200_000), max_size=60),
    reads=st.lists(st.booleans(), max_size=200),
)
@settings(deadline=None, max_examples=60)
def test_a_reader_of_any_speed_gets_everything_and_bounds_the_memory(
    sizes: list[int], reads: list[bool]
) -> None:
    one, two = pair()
    call_id, data = one.open("FS.Logs", NIL)
    two.receive(data)
    to_send = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    sent, got, waiting = 0, 0, []
    steps = iter(reads)
    while got < len(to_send):
        # When the random steps are used up, the reader reads: nothing may be stuck.
        reading = next(steps, True) and bool(waiting)
        if reading:
            chunk = waiting.pop(0)
            assert chunk == to_send[got]
            got += 1
            two.receive(one.consumed(call_id, len(chunk)))
        elif sent < len(to_send) and two.may_send(call_id):
            for frame in one.receive(two.chunk(call_id, to_send[sent])):
                assert isinstance(frame, Chunk)
                waiting.append(frame.data)
            sent += 1
        assert waiting or sent == len(to_send) or two.may_send(call_id)
        assert sum(map(len, waiting)) <= WINDOW + MAX_CHUNK
    assert got == len(to_send)
