"""The wire: what it does to packets, as values; and, for root, hosts whose traffic it carries."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jepsen_style import undo
from jepsen_style.net.links import QUEUE_S, Counters, Line, Link, both, laid_over
from jepsen_style.net.packets import checksum, with_bit_flipped, with_payload_forged
from jepsen_style.net.wire import KIT, Wire
from jepsen_style.undo import UndoList

from nomadpy.entropy import SeededEntropy

needs_wire = pytest.mark.skipif(Wire.missing() != "", reason=Wire.missing())

shares = st.floats(0, 1)
links = st.builds(
    Link,
    cut=st.booleans(),
    loss=shares,
    delay_ms=st.floats(0, 100),
    jitter_ms=st.floats(0, 100),
    reorder=shares,
    duplicate=shares,
    corrupt=shares,
    forge=shares,
    rate_kbit=st.sampled_from([0, 64, 1000]),
)


def tcp(payload: bytes) -> bytes:
    """An IPv4 packet with a TCP segment whose checksum fits."""
    total = 40 + len(payload)
    ip = bytes((0x45, 0)) + total.to_bytes(2, "big") + bytes((0, 1, 0x40, 0, 64, 6, 0, 0))
    ip += bytes((10, 77, 0, 1, 10, 77, 0, 2))
    segment = bytes((1, 2, 3, 4)) + bytes(8) + bytes((0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0)) + payload
    fits = checksum(ip + segment).to_bytes(2, "big")
    return ip + segment[:16] + fits + segment[18:]


def line(link: Link, seed: int = 0) -> tuple[Line, Counters]:
    """A line with a link's faults, and what it counts."""
    counters = Counters()
    return Line(link, SeededEntropy(seed), counters), counters


# -- packets ----------------------------------------------------------------------------------------------------


@given(payload=st.binary(max_size=200))
def test_a_checksum_over_a_whole_packet_is_nought(payload: bytes) -> None:
    assert checksum(tcp(payload)) == 0


@given(payload=st.binary(max_size=200), seed=st.integers())
def test_a_flipped_bit_is_one_bit_that_the_checksum_shows(payload: bytes, seed: int) -> None:
    packet = tcp(payload)
    changed = with_bit_flipped(packet, SeededEntropy(seed))
    assert differing_bits(packet, changed) == 1
    assert changed[:20] == packet[:20]
    assert checksum(changed) != 0


@given(payload=st.binary(min_size=1, max_size=200), seed=st.integers())
def test_a_forged_payload_differs_in_one_bit_and_its_checksum_fits(
    payload: bytes, seed: int
) -> None:
    packet = tcp(payload)
    changed = with_payload_forged(packet, SeededEntropy(seed))
    assert differing_bits(packet[40:], changed[40:]) == 1
    assert changed[:36] == packet[:36]
    assert checksum(changed) == 0


def test_what_has_no_payload_is_not_forged() -> None:
    acknowledgement = tcp(b"")
    assert with_payload_forged(acknowledgement, SeededEntropy(1)) == acknowledgement
    icmp = bytearray(tcp(b"ping"))
    icmp[9] = 1
    assert with_payload_forged(bytes(icmp), SeededEntropy(1)) == bytes(icmp)
    fragment = bytearray(tcp(b"rest"))
    fragment[6:8] = (0x20).to_bytes(2, "big")
    assert with_payload_forged(bytes(fragment), SeededEntropy(1)) == bytes(fragment)


def differing_bits(one: bytes, other: bytes) -> int:
    """How many bits two packets of one length differ in."""
    assert len(one) == len(other)
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


# -- links ------------------------------------------------------------------------------------------------------


@given(link=links, seed=st.integers(0, 9), count=st.integers(1, 30))
def test_one_seed_has_one_outcome_and_nothing_arrives_before_it_was_sent(
    link: Link, seed: int, count: int
) -> None:
    packets = [tcp(bytes([n]) * 50) for n in range(count)]
    first, second = line(link, seed)[0], line(link, seed)[0]
    for number, packet in enumerate(packets):
        now = number / 100
        arrived = first.arrivals(packet, now)
        assert arrived == second.arrivals(packet, now)
        assert len(arrived) <= (0 if link.cut else 2)
        assert all(moment >= now for moment, _ in arrived)


@given(link=links, seed=st.integers(0, 9))
def test_packets_keep_their_order_unless_they_are_to_lose_it(link: Link, seed: int) -> None:
    quiet = Link(
        loss=link.loss,
        delay_ms=link.delay_ms,
        jitter_ms=link.jitter_ms,
        duplicate=link.duplicate,
        rate_kbit=link.rate_kbit,
    )
    slow = line(quiet, seed)[0]
    moments = [m for n in range(50) for m, _ in slow.arrivals(tcp(b"x" * 100), n / 1000)]
    assert moments == sorted(moments)


def test_a_reordered_packet_is_passed_by_later_ones() -> None:
    held, counters = line(Link(reorder=0.3, hold_ms=20))
    moments = [held.arrivals(tcp(b"x"), n / 1000)[0][0] for n in range(200)]
    assert moments != sorted(moments)
    assert 30 < counters.reordered < 90


def test_shares_are_kept() -> None:
    lossy, counters = line(Link(loss=0.2, duplicate=0.1))
    arrived = [len(lossy.arrivals(tcp(b"x"), 0.0)) for _ in range(2000)]
    assert 300 < counters.dropped < 500
    assert arrived.count(0) == counters.dropped
    assert arrived.count(2) == counters.duplicated > 100


def test_a_slow_link_passes_its_rate_and_drops_what_would_wait_too_long() -> None:
    slow, counters = line(Link(rate_kbit=64))
    moments = [m for _ in range(100) for m, _ in slow.arrivals(tcp(b"x" * 960), 0.0)]
    assert moments[0] == pytest.approx(0.125)
    assert all(b - a == pytest.approx(0.125) for a, b in itertools.pairwise(moments))
    assert moments[-1] <= QUEUE_S + 0.126
    assert counters.dropped == 100 - len(moments)


def test_layers_lie_over_each_other_and_of_each_fault_the_worse_counts() -> None:
    slow, lossy = Link(delay_ms=50, rate_kbit=64), Link(loss=0.5, rate_kbit=1000)
    assert both(slow, lossy) == Link(delay_ms=50, loss=0.5, rate_kbit=64)
    merged = laid_over([{(1, 2): slow}, {(1, 2): Link(cut=True), (2, 1): lossy}])
    assert merged == {(1, 2): both(slow, Link(cut=True)), (2, 1): lossy}


# -- hosts ------------------------------------------------------------------------------------------------------

ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 7))
print("ready", flush=True)
while True:
    data, sender = s.recvfrom(2000)
    s.sendto(data, sender)
"""

ASK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.5)
s.connect((sys.argv[1], 7))
back, late, count = 0, 0.0, int(sys.argv[2])
for n in range(count):
    began = time.monotonic()
    s.send(str(n).encode() + b"x" * 50)
    try:
        while not s.recv(2000).startswith(str(n).encode() + b"x"):
            pass
    except TimeoutError:
        continue
    back += 1
    late = max(late, time.monotonic() - began)
print(back, late)
"""


@contextlib.contextmanager
def wire(folder: Path, *names: str) -> Iterator[Wire]:
    """A wire whose every host echoes datagrams."""
    notes = UndoList(folder / "notes")
    made = Wire(folder, notes)
    echoes = []
    try:
        made.connect(names)
        for name in names:
            command = [*made.inside(name), sys.executable, "-c", ECHO, made.address(name)]
            echo = subprocess.Popen(command, stdout=subprocess.PIPE)
            echoes.append(echo)
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
        yield made
    finally:
        for echo in echoes:
            echo.kill()
            echo.wait()
            assert echo.stdout is not None
            echo.stdout.close()
        made.down()
        notes.undo_all()


def ask(made: Wire, sender: str, receiver: str, count: int = 5) -> tuple[int, float]:
    """Send datagrams between hosts, KIT for this one; how many came back, and the longest way there and back in seconds."""
    inside = [] if sender == KIT else made.inside(sender)
    command = [*inside, sys.executable, "-c", ASK, made.address(receiver), str(count)]
    back, late = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(back), float(late)


@needs_wire
@pytest.mark.real_time
def test_hosts_reach_each_other_and_faults_lie_on_links_one_way_until_healed(
    tmp_path: Path,
) -> None:
    with wire(tmp_path, "a", "b", "c") as made:
        assert ask(made, "a", "b")[0] == 5
        assert ask(made, KIT, "c")[0] == 5
        made.cut([("b", "a")])
        assert ask(made, "a", "b", 2)[0] == 0
        assert ask(made, "a", "c")[0] == 5
        made.lay("slow", {("c", "a"): Link(delay_ms=80)})
        back, late = ask(made, "a", "c")
        assert back == 5
        assert late >= 0.08
        made.mend()
        assert ask(made, "a", "b")[0] == 5
        assert ask(made, "a", "c")[1] >= 0.08
        made.lay("lossy", {("a", "b"): Link(loss=1.0), ("a", "c"): Link(corrupt=1.0)}, seed="7")
        assert ask(made, "a", "b", 1)[0] == 0
        assert ask(made, "a", "c", 1)[0] == 0  # the receiver's kernel saw the checksum
        made.lay("lossy", {("a", "b"): Link(duplicate=1.0)})
        assert ask(made, "a", "b")[0] == 5
        made.heal()
        assert ask(made, "a", "c")[0] == 5
        counted = made.counters()
        assert counted.dropped >= 3
        assert counted.delayed >= 10
        assert counted.corrupted == 1
        assert counted.duplicated == 5
        assert counted.passed > 60


@needs_wire
@pytest.mark.real_time
def test_a_forged_payload_reaches_the_receiver_as_if_it_had_been_sent_so(tmp_path: Path) -> None:
    with wire(tmp_path, "a", "b") as made:
        made.lay("forged", {(KIT, "a"): Link(forge=1.0)})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(10)
            asking.sendto(bytes(100), (made.address("a"), 7))
            assert differing_bits(asking.recv(200), bytes(100)) == 1


@needs_wire
@pytest.mark.real_time
def test_nothing_stays_when_the_wire_goes_down(tmp_path: Path) -> None:
    with wire(tmp_path, "a", "b") as made:
        host, kit = Path("/run/netns") / made.namespace("a"), Path("/sys/class/net") / made.device
        assert host.exists()
        assert kit.exists()
    assert not host.exists()
    assert not kit.exists()
    with pytest.raises(RuntimeError, match="the wire is not up"):
        made.counters()


@needs_wire
@pytest.mark.real_time
def test_heal_removes_the_wire_of_a_kit_that_was_killed(tmp_path: Path) -> None:
    kit = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from jepsen_style.net.wire import Wire
from jepsen_style.undo import UndoList
made = Wire(Path(sys.argv[1]), UndoList(Path(sys.argv[1])))
made.connect(["a", "b"])
print(made.namespace("a"), made.device, flush=True)
sys.stdin.read()
"""
    folder = str(Path(undo.__file__).parents[1])
    killed = subprocess.Popen(
        [sys.executable, "-c", kit, str(tmp_path / "notes"), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    host, device = killed.stdout.readline().split()
    link = Path("/sys/class/net") / device
    assert link.exists()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    deadline = time.monotonic() + 30
    while link.exists():
        assert time.monotonic() < deadline, "the forwarding process outlives the kit"
        time.sleep(0.02)
    assert len(undo.heal(tmp_path / "notes")) == 2
    assert not (Path("/run/netns") / host).exists()
