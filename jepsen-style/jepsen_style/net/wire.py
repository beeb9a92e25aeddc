"""Hosts whose only NIC is a TUN device held by one process of the kit, so that links can lose, delay or change packets. Needs root.

The kernel's own means for this (netem) are not in every kernel; a TUN is. The kit has an address on the same wire and can
always reach every host. Whatever stops the forwarding process takes its devices away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from jepsen_style.net.forwarder import MTU, Port, Setup, Table
from jepsen_style.net.links import Counters, Link, Pair, laid_over
from jepsen_style.undo import UndoList

KIT = 254
"""The kit's own number on the wire."""

_CUTS = "partition"
_KIT_FOLDER = Path(__file__).resolve().parents[2]


def available() -> str:
    """Why the wire cannot be had here; "" when it can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "nsenter"):
        if subprocess.run(["which", program], capture_output=True).returncode:
            return f"needs {program}"
    return "" if Path("/dev/net/tun").exists() else "needs /dev/net/tun"


class Wire:
    """Hosts 1 to `count`, each with an address. Faults lie on links in layers, so that two nemeses do not undo each other's."""

    def __init__(self, count: int, undo: UndoList, seed: str = "0") -> None:
        # Interface names hold 15 characters; runs at the same time need subnets of their own.
        self._tag = f"nj{os.getpid() % 100000}"
        self._subnet = f"10.77.{os.getpid() % 250}"
        self._undo = undo
        self._seed = seed
        self.count = count
        self._layers: dict[str, dict[Pair, Link]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    # -- hosts --------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make it. Raises RuntimeError with the words of what failed."""
        ports = [Port(KIT, self.address(KIT), f"{self._tag}c")]
        for number in range(1, self.count + 1):
            host = self.namespace(number)
            self._undo.note("netns", host)
            _run("ip", "netns", "add", host)
            _run("ip", "-n", host, "link", "set", "lo", "up")
            ports.append(Port(number, self.address(number), "eth0", f"/run/netns/{host}"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jepsen_style.net.forwarder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_KIT_FOLDER)},
            start_new_session=True,
        )
        self._ask(Setup(ports, self._seed))
        for port in ports:
            inside = ["ip", "-n", port.namespace.rpartition("/")[2]] if port.namespace else ["ip"]
            _run(*inside, "addr", "add", f"{port.address}/24", "dev", port.device)
            _run(*inside, "link", "set", port.device, "mtu", str(MTU), "up")

    def down(self) -> None:
        """End the forwarding process, and with it the devices; the namespaces are the undo list's."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def namespace(self, number: int) -> str:
        """The name of a host's namespace."""
        return f"{self._tag}h{number}"

    def address(self, number: int) -> str:
        """A host's address."""
        return f"{self._subnet}.{number}"

    def inside(self, number: int) -> list[str]:
        """What to put before a command that is to run in a host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(number)}"]

    # -- faults -------------------------------------------------------------------------------------------------

    def lay(self, layer: str, links: dict[Pair, Link]) -> None:
        """Put faults on links, in place of what this layer had. Raises RuntimeError when the wire has ended."""
        with self._lock:
            self._layers[layer] = links
            self._tell()

    def lift(self, layer: str) -> None:
        """Take a layer away."""
        with self._lock:
            if self._layers.pop(layer, None) is not None:
                self._tell()

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Drop what the first of each pair sends to the second, besides what is cut already."""
        with self._lock:
            cuts = self._layers.setdefault(_CUTS, {})
            cuts.update({pair: Link(cut=True) for pair in pairs})
            self._tell()

    def join(self) -> None:
        """Undo every cut, and no other fault."""
        self.lift(_CUTS)

    def heal(self) -> None:
        """Take all faults away; what is delayed arrives now."""
        with self._lock:
            self._layers = {}
            self._tell(flush=True)

    def counters(self) -> Counters:
        """What happened to packets so far."""
        with self._lock:
            return self._tell()

    def _tell(self, *, flush: bool = False) -> Counters:
        merged = laid_over(self._layers.values())
        return self._ask(Table([(a, b, link) for (a, b), link in merged.items()], flush))

    def _ask(self, line: Setup | Table) -> Counters:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the wire is not up")
        try:
            process.stdin.write(msgspec.json.encode(line) + b"\n")
            process.stdin.flush()
            told = process.stdout.readline()
        except BrokenPipeError:
            told = b""
        if not told:
            raise RuntimeError(f"the process that forwards packets has ended: {process.poll()}")
        return msgspec.json.decode(told, type=Counters)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
