"""The follower against a daemon of the imagination that keeps every message, and agents that die anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.drivers.docker_engine import LogFrame, _FramedLog, _TerminalLog, parse_timestamp
from agent.drivers.docker_logs import LogFollower
from agent.drivers.supervisor.rotation import indexes
from nomadpy.clock import SystemClock

BASE_NS = 1_795_393_293_000_000_000


class Imagined:
    """Gives the messages from `since` on, in batches; `dies_after` batches the agent is killed."""

    def __init__(self, frames: list[LogFrame], batch: int, dies_after: int | None) -> None:
        self.frames = frames
        self.batch = batch
        self.dies_after = dies_after

    async def logs(self, container: str, *, since_ns: int, tty: bool) -> AsyncIterator[Any]:
        frames = [f for f in self.frames if f.timestamp_ns >= since_ns]
        for number, start in enumerate(range(0, len(frames), self.batch)):
            if self.dies_after is not None and number >= self.dies_after:
                raise KilledError
            yield frames[start : start + self.batch]

    async def inspect(self, container: str) -> dict[str, Any]:
        return {"State": {"Running": False}}


class KilledError(BaseException):
    """The agent is gone in this moment."""


def text(folder: Path, stream: str) -> str:
    prefix = str(folder / f"t.{stream}")
    return "".join(Path(f"{prefix}.{n}").read_text() for n in indexes(prefix))


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(0, 2), st.integers(0, 12)),
        max_size=40,
    ),
    deaths=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.booleans()), max_size=5),
    max_bytes=st.integers(min_value=8, max_value=60),
)
def test_no_message_is_lost_or_doubled_wherever_agents_die(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, int]],
    deaths: list[tuple[int, int, bool]],
    max_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    stamp, frames = BASE_NS, []
    for number, (stream, pause, width) in enumerate(steps):
        stamp += pause
        frames.append(LogFrame(stream, stamp, f"{number}{'x' * width}\n".encode()))
    position = str(folder / "state/position")
    (folder / "t.stdout.0").write_text("earlier\n")
    LogFollower.begin(str(folder / "t"), position)

    def follow(batch: int, dies_after: int | None, forgetful: bool) -> None:
        follower = LogFollower(
            Imagined(frames, batch, dies_after),  # type: ignore[arg-type]
            SystemClock(),
            container="c",
            tty=False,
            prefix=str(folder / "t"),
            max_files=1000,
            max_bytes=max_bytes,
            position_path=position,
        )
        saved = Path(position).read_bytes()
        before = len(list(folder.iterdir()))
        try:
            asyncio.run(follower.run())
        except KilledError:
            # SIGKILL leaves the last saved position, which lags behind unless a file was rotated.
            if forgetful and len(list(folder.iterdir())) == before:
                Path(position).write_bytes(saved)

    for batch, dies_after, forgetful in deaths:
        follow(batch, dies_after, forgetful)
    follow(3, None, False)
    for stream in ("stdout", "stderr"):
        expected = "".join(f.data.decode() for f in frames if f.stream == stream)
        assert text(folder, stream) == ("earlier\n" if stream == "stdout" else "") + expected


@given(st.binary(max_size=30), st.lists(st.integers(1, 9), max_size=20))
def test_framed_messages_survive_any_cutting(data: bytes, cuts: list[int]) -> None:
    message = b"2026-11-23T06:40:45.488790819Z " + data
    raw = b"".join(bytes([n, 0, 0, 0]) + len(message).to_bytes(4, "big") + message for n in (1, 2))
    parser, found = _FramedLog(), []
    for cut in [*cuts, len(raw)]:
        found += parser.feed(raw[:cut])
        raw = raw[cut:]
    assert [(f.stream, f.data) for f in found] == [("stdout", data), ("stderr", data)]
    assert {f.timestamp_ns for f in found} == {parse_timestamp("2026-11-23T06:40:45.488790819Z")}


def test_times_are_exact_to_the_nanosecond() -> None:
    assert parse_timestamp("2026-11-23T00:21:33.848282077Z") == 1_795_393_293_848_282_077
    assert parse_timestamp("2026-11-23T00:21:33Z") == 1_795_393_293_000_000_000
    assert parse_timestamp("2026-11-23T00:21:33.5Z") == 1_795_393_293_500_000_000
    with pytest.raises(ValueError):
        parse_timestamp("yesterday")


def test_lines_of_a_terminal_lose_their_times() -> None:
    parser = _TerminalLog()
    frames = parser.feed(b"2026-11-23T00:21:33Z one\r\n2026-11-23T00:21:3")
    frames += parser.feed(b"4Z two")
    frames += parser.end()
    assert [f.data for f in frames] == [b"one\r\n", b"two"]
    assert parser.end() == []
