"""Hosts whose only NIC is a TUN device held by one process of the kit, so that links can lose, delay or change packets. Needs root.

The kernel's own means for this (netem) are not in every kernel; a TUN is. The kit has an address on the same wire and can
always reach every host. Whatever stops the forwarding process takes its devices away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from jepsen_style.net.forwarder import MTU, Port, Setup, Table
from jepsen_style.net.links import Counters, Link, Pair, laid_over
from jepsen_style.network import Network
from jepsen_style.undo import UndoList

if TYPE_CHECKING:
    from jepsen_style.cluster import OwnCluster

KIT = "kit"
"""The name of the kit itself on the wire."""

_KIT_NUMBER = 254
_CUTS = "partition"
_KIT_FOLDER = Path(__file__).resolve().parents[2]


class Wire(Network):
    """A host for every node. Faults lie on links in layers, so that two nemeses do not undo each other's."""

    need: ClassVar[str] = "wire"
    about: ClassVar[str] = "a network namespace for every node, and every packet in the kit's hands"
    gives: ClassVar[frozenset[str]] = frozenset({"hosts"})

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        # Interface names hold 15 characters; runs at the same time need subnets of their own.
        self._tag = f"nj{os.getpid() % 100000}"
        self._subnet = f"10.77.{os.getpid() % 250}"
        self._numbers = {KIT: _KIT_NUMBER}
        self._layers: dict[str, dict[Pair, Link]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @classmethod
    def missing(cls) -> str:
        if os.geteuid() != 0:
            return "needs root"
        for program in ("ip", "nsenter"):
            if subprocess.run(["which", program], capture_output=True).returncode:
                return f"needs {program}"
        return "" if Path("/dev/net/tun").exists() else "needs /dev/net/tun"

    # -- hosts --------------------------------------------------------------------------------------------------

    def up(self, cluster: OwnCluster) -> None:
        self.connect(cluster.all_names)

    def connect(self, names: Sequence[str]) -> None:
        """Make a host for each name. Raises RuntimeError with the words of what failed."""
        ports = [Port(_KIT_NUMBER, self.address(KIT), self.device)]
        for number, name in enumerate(names, 1):
            self._numbers[name] = number
            host = self.namespace(name)
            self.undo.note("netns", host)
            _run("ip", "netns", "add", host)
            _run("ip", "-n", host, "link", "set", "lo", "up")
            ports.append(Port(number, self.address(name), "eth0", f"/run/netns/{host}"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jepsen_style.net.forwarder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_KIT_FOLDER)},
            start_new_session=True,
        )
        self._ask(Setup(ports))
        for port in ports:
            inside = ["ip", "-n", port.namespace.rpartition("/")[2]] if port.namespace else ["ip"]
            _run(*inside, "addr", "add", f"{port.address}/24", "dev", port.device)
            _run(*inside, "link", "set", port.device, "mtu", str(MTU), "up")

    def down(self) -> None:
        # The devices go with the process that holds them; the namespaces are the undo list's.
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

    @property
    def device(self) -> str:
        """The kit's own device."""
        return f"{self._tag}c"

    def namespace(self, name: str) -> str:
        """The name of a host's namespace."""
        return f"{self._tag}h{self._numbers[name]}"

    def address(self, name: str) -> str:
        return f"{self._subnet}.{self._numbers[name]}"

    def inside(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}"]

    # -- faults -------------------------------------------------------------------------------------------------

    def lay(self, layer: str, links: Mapping[tuple[str, str], Link], seed: str = "") -> None:
        """Put faults on links, in place of what this layer had. Raises RuntimeError when the wire has ended.

        links: by sender and receiver. seed: what chance on all links goes by from now on; "" as before.
        """
        with self._lock:
            self._layers[layer] = {self._pair(pair): link for pair, link in links.items()}
            self._tell(seed=seed)

    def lift(self, layer: str) -> None:
        """Take a layer away."""
        with self._lock:
            if self._layers.pop(layer, None) is not None:
                self._tell()

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            cuts = self._layers.setdefault(_CUTS, {})
            cuts.update({self._pair(pair): Link(cut=True) for pair in pairs})
            self._tell()

    def mend(self) -> None:
        self.lift(_CUTS)

    def heal(self) -> None:
        with self._lock:
            self._layers = {}
            self._tell(flush=True)

    def counters(self) -> Counters:
        """What happened to packets so far."""
        with self._lock:
            return self._tell()

    def _pair(self, names: tuple[str, str]) -> Pair:
        return self._numbers[names[0]], self._numbers[names[1]]

    def _tell(self, *, flush: bool = False, seed: str = "") -> Counters:
        merged = laid_over(self._layers.values())
        table = Table([(a, b, link) for (a, b), link in merged.items()], flush, seed)
        return self._ask(table)

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
