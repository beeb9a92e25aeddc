"""The process that carries every packet: it holds the TUN device that is each host's only NIC.

A process and not a thread, because the kit's clients are threads that would take the interpreter away from it, and each packet
would wait for them. It is told what to do on stdin, one JSON line each, and answers each on stdout; when stdin ends, also
because the kit was killed, it ends, and the devices are gone with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import selectors
import signal
import struct

import msgspec

from jepsen_style.net.links import Counters, Line, Link
from jepsen_style.net.packets import is_ipv4
from nomadpy.clock import SystemClock
from nomadpy.entropy import SeededEntropy

MTU = 1500
BURST = 64
"""Packets taken from one host before the others have their turn."""

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


class Port(msgspec.Struct, frozen=True):
    """One device to make. number: the host's. namespace: its file, "" for where this process is."""

    number: int
    address: str
    device: str
    namespace: str = ""


class Setup(msgspec.Struct, frozen=True):
    """The first line on stdin."""

    ports: list[Port]


class Table(msgspec.Struct, frozen=True):
    """Every other line: (sender, receiver, faults) of all links that have any.

    flush: what is under way arrives now. seed: what chance goes by from now on; "" as before.
    """

    links: list[tuple[int, int, Link]]
    flush: bool = False
    seed: str = ""


class Forwarder:
    """Reads packets from every device, and writes each to the one its receiver's address belongs to."""

    def __init__(self, setup: Setup) -> None:
        self._entropy = SeededEntropy("")
        self._clock = SystemClock()
        self.counters = Counters()
        self._devices: dict[bytes, tuple[int, int]] = {}
        self._lines: dict[tuple[int, int], Line] = {}
        # (when, in which order it came, the receiver's device, the packet)
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._order = 0
        self._selector = selectors.DefaultSelector()
        for port in setup.ports:
            device = open_tun(port)
            address = bytes(int(part) for part in port.address.split("."))
            self._devices[address] = (port.number, device)
            self._selector.register(device, selectors.EVENT_READ, port.number)
        self._commands = bytearray()
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, 0)

    def run(self) -> None:
        """Carry packets until stdin ends."""
        while True:
            wait_s = self._deliver()
            for key, _ in self._selector.select(wait_s):
                if key.fd == 0:
                    if not self._obey():
                        return
                else:
                    self._take(key.fd, key.data)

    def _take(self, device: int, sender: int) -> None:
        now = self._clock.monotonic() if self._lines else 0.0
        for _ in range(BURST):
            try:
                packet = os.read(device, MTU + 100)
            except BlockingIOError:
                return
            if not is_ipv4(packet):
                continue
            receiver, target = self._devices.get(packet[16:20], (0, -1))
            if target < 0:
                continue
            line = self._lines.get((sender, receiver))
            if line is None:
                self._give(target, packet)
                continue
            for moment, arriving in line.arrivals(packet, now):
                if moment <= now:
                    self._give(target, arriving)
                else:
                    self._order += 1
                    heapq.heappush(self._waiting, (moment, self._order, target, arriving))

    def _deliver(self) -> float | None:
        """Hand over what is due; return how long until the next is, None for nothing."""
        while self._waiting:
            now = self._clock.monotonic()
            if self._waiting[0][0] > now:
                return self._waiting[0][0] - now
            _, _, target, packet = heapq.heappop(self._waiting)
            self._give(target, packet)
        return None

    def _give(self, device: int, packet: bytes) -> None:
        try:
            os.write(device, packet)
        except OSError:
            # The receiver's queue is full or its device is not up yet: dropped, as a switch would.
            self.counters.dropped += 1
        else:
            self.counters.passed += 1

    # -- commands -----------------------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Do what stdin says; False at its end."""
        try:
            piece = os.read(0, 65536)
        except BlockingIOError:
            return True
        if not piece:
            return False
        self._commands += piece
        while (end := self._commands.find(b"\n")) >= 0:
            table = msgspec.json.decode(bytes(self._commands[:end]), type=Table)
            del self._commands[: end + 1]
            self._change(table)
            answer(self.counters)
        return True

    def _change(self, table: Table) -> None:
        lines = {}
        if table.seed:
            self._entropy = SeededEntropy(table.seed)
            self._lines = {}
        for sender, receiver, link in table.links:
            known = self._lines.get((sender, receiver))
            if known is not None and known.link == link:
                lines[sender, receiver] = known
            else:
                lines[sender, receiver] = Line(link, self._entropy, self.counters)
        self._lines = lines
        if table.flush:
            while self._waiting:
                _, _, target, packet = heapq.heappop(self._waiting)
                self._give(target, packet)


def open_tun(port: Port) -> int:
    """Make a port's device in its namespace; return its file, not blocking. Raises OSError."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        if port.namespace:
            there = os.open(port.namespace, os.O_RDONLY)
            _enter(there)
            os.close(there)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", port.device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(device, _TUNSETIFF, request)
    finally:
        _enter(home)
        os.close(home)
    return device


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def answer(value: msgspec.Struct) -> None:
    """One line on stdout."""
    os.write(1, msgspec.json.encode(value) + b"\n")


def main() -> None:
    """Read the setup, make the devices, say so, carry packets."""
    # Ctrl-C is the kit's: it may need the network to end its nodes well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = bytearray()
    while not first.endswith(b"\n"):
        # Byte by byte, so that nothing of the next line is taken.
        piece = os.read(0, 1)
        if not piece:
            return
        first += piece
    forwarder = Forwarder(msgspec.json.decode(bytes(first), type=Setup))
    answer(forwarder.counters)
    forwarder.run()


if __name__ == "__main__":
    main()
