"""A host for every server: network namespaces on one switch, and packet filters that cut it apart. Needs root.

The switch has a namespace of its own, so that neither the machine's firewall nor Docker's rules reach it. The kit itself
is joined to it by a link of its own and can always reach every server.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

from jepsen_style.undo import UndoList


def available() -> str:
    """Why partitions are not possible here; "" when they are."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "nsenter", "iptables"):
        if subprocess.run(["which", program], capture_output=True).returncode:
            return f"needs {program}"
    return ""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Hosts 1 to `count`, each with an address."""

    def __init__(self, count: int, undo: UndoList) -> None:
        # Interface names hold 15 characters; runs at the same time need subnets of their own.
        self._tag = f"nj{os.getpid() % 100000}"
        self._subnet = f"10.77.{os.getpid() % 250}"
        self._undo = undo
        self.count = count

    def up(self) -> None:
        """Make it. Raises RuntimeError with the words of the command that failed."""
        switch = f"{self._tag}s"
        self._undo.note("netns", switch)
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        for number in range(1, self.count + 1):
            host = self.namespace(number)
            self._undo.note("netns", host)
            _run("ip", "netns", "add", host)
            port = f"p{number}"
            _run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)  # fmt: skip
            _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", host, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            _run("ip", "-n", host, "link", "set", "eth0", "up")
            _run("ip", "-n", host, "link", "set", "lo", "up")
        control = f"{self._tag}c"
        self._undo.note("link", control)
        _run("ip", "link", "add", control, "type", "veth", "peer", "name", "control", "netns", switch)  # fmt: skip
        _run("ip", "-n", switch, "link", "set", "control", "master", "br0", "up")
        _run("ip", "addr", "add", f"{self._subnet}.254/24", "dev", control)
        _run("ip", "link", "set", control, "up")

    def namespace(self, number: int) -> str:
        """The name of a host's namespace."""
        return f"{self._tag}h{number}"

    def address(self, number: int) -> str:
        """A host's address."""
        return f"{self._subnet}.{number}"

    def inside(self, number: int) -> list[str]:
        """What to put before a command that is to run in a host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(number)}"]

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Drop what the first of each pair sends to the second."""
        for sender, receiver in pairs:
            _run(*self.inside(receiver), "iptables", "-w", "-A", "INPUT", "-s", self.address(sender), "-j", "DROP")  # fmt: skip

    def heal(self) -> None:
        """Let everything through again."""
        for number in range(1, self.count + 1):
            _run(*self.inside(number), "iptables", "-w", "-F", "INPUT")
