"""A host for every node: network namespaces on one switch, and packet filters that cut it apart. Needs root.

The switch has a namespace of its own, so that neither the machine's firewall nor Docker's rules reach it. The kit itself
is joined to it by a link of its own and can always reach every node.
"""

from __future__ import annotations

import os
import subprocess
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jepsen_style.equipment import Equipment
from jepsen_style.undo import UndoList

if TYPE_CHECKING:
    from jepsen_style.cluster import HostDaemon, OwnCluster


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


class Network(Equipment):
    """Hosts with addresses, and links between them that can be cut. Whatever kind it is, the cluster has it as
    `cluster.network`."""

    @abstractmethod
    def address(self, name: str) -> str:
        """A node's address."""

    @abstractmethod
    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Drop what the first node of each pair sends to the second."""

    @abstractmethod
    def mend(self) -> None:
        """Undo every cut, and nothing else."""

    def configure(self, node: HostDaemon) -> None:
        node.address = self.address(node.name)

    def heal(self) -> None:
        self.mend()


class Hosts(Network):
    """A network namespace for each node."""

    need: ClassVar[str] = "hosts"
    about: ClassVar[str] = "a network namespace for every node"

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        # Interface names hold 15 characters; runs at the same time need subnets of their own.
        self._tag = f"nj{os.getpid() % 100000}"
        self._subnet = f"10.77.{os.getpid() % 250}"
        self._numbers: dict[str, int] = {}

    @classmethod
    def missing(cls) -> str:
        if os.geteuid() != 0:
            return "needs root"
        for program in ("ip", "nsenter", "iptables"):
            if subprocess.run(["which", program], capture_output=True).returncode:
                return f"needs {program}"
        return ""

    def up(self, cluster: OwnCluster) -> None:
        switch = f"{self._tag}s"
        self.undo.note("netns", switch)
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(cluster.all_names, 1):
            host = self._namespace(number)
            self.undo.note("netns", host)
            _run("ip", "netns", "add", host)
            self._numbers[name] = number
            port = f"p{number}"
            _run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)  # fmt: skip
            _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", host, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _run("ip", "-n", host, "link", "set", "eth0", "up")
            _run("ip", "-n", host, "link", "set", "lo", "up")
        control = f"{self._tag}c"
        self.undo.note("link", control)
        _run("ip", "link", "add", control, "type", "veth", "peer", "name", "control", "netns", switch)  # fmt: skip
        _run("ip", "-n", switch, "link", "set", "control", "master", "br0", "up")
        _run("ip", "addr", "add", f"{self._subnet}.254/24", "dev", control)
        _run("ip", "link", "set", control, "up")

    def _namespace(self, number: int) -> str:
        return f"{self._tag}h{number}"

    def address(self, name: str) -> str:
        return f"{self._subnet}.{self._numbers[name]}"

    def inside(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._namespace(self._numbers[name])}"]

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        for sender, receiver in pairs:
            _run(*self.inside(receiver), "iptables", "-w", "-A", "INPUT", "-s", self.address(sender), "-j", "DROP")  # fmt: skip

    def mend(self) -> None:
        for name in self._numbers:
            _run(*self.inside(name), "iptables", "-w", "-F", "INPUT")
