"""Damage to the files of a node that is stopped: flipped bits, zeros, cut ends. It must be found, said, and got over.

A server either goes on with what is sound or refuses to start and says what to do, and then that is done: its raft
directory is emptied, and it joins as a new server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from jepsen_style.nemesis.voters import JOIN_S, Voters, raft_folder
from nomadpy.demo.client import until
from nomadpy.entropy import Entropy

SAYS_WHAT_TO_DO = "let it join again", "let this server join again"
PAGE = 4096

Damage = Callable[[Path, Entropy], str]
"""Damages a file that is not empty and says how."""


def flip(file: Path, source: Entropy) -> str:
    """One bit is another."""
    data = bytearray(file.read_bytes())
    place = _place(len(data), source)
    bit = source.choice(range(8))
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {place} of {len(data)} flipped in {file.name}"


def truncate(file: Path, source: Entropy) -> str:
    """The end is missing."""
    size = file.stat().st_size
    left = _place(size, source)
    with file.open("r+b") as opened:
        opened.truncate(left)
    return f"{file.name} cut from {size} to {left} bytes"


def zero(file: Path, source: Entropy) -> str:
    """Up to a page is zeros."""
    data = bytearray(file.read_bytes())
    place = _place(len(data), source)
    end = min(len(data), place + PAGE)
    data[place:end] = bytes(end - place)
    file.write_bytes(data)
    return f"{end - place} bytes from byte {place} of {len(data)} zeroed in {file.name}"


def _place(size: int, source: Entropy) -> int:
    return min(size - 1, int(source.uniform(0, size)))


DAMAGES: dict[str, Damage] = {"flip": flip, "truncate": truncate, "zero": zero}


class CorruptServer(Nemesis):
    """One server's files are damaged while it is off."""

    def __init__(
        self, cluster: OwnCluster, note: Note, files: str, damages: tuple[str, ...], target: Target
    ) -> None:
        """files: a pattern below the raft directory."""
        super().__init__(cluster, note)
        self._files = files
        self._damages = damages
        self._target = target
        self._voters = Voters(cluster)
        self._struck = ""

    def begin(self, source: Entropy) -> str:
        self._voters.hurry()
        self._struck = targets(self.cluster, self._target, source)[0]
        name = self._struck
        self.cluster.kill(name)
        files = sorted(raft_folder(self.cluster, name).glob(self._files))
        files = [f for f in files if f.stat().st_size]
        if not files:
            self.cluster.start_node(name)
            return f"{name} has no {self._files} yet"
        words = DAMAGES[source.choice(self._damages)](source.choice(files), source)
        self._said = len(self.cluster.hosts[name].log_text())
        self.cluster.start_node(name)
        self.note(RESTARTS, name)
        return f"{name}: {words}"

    def end(self) -> None:
        name, self._struck = self._struck, ""
        if not name:
            return
        if self.cluster.start_node(name):
            self.note(RESTARTS, name)
        if not self._serves(name):
            said = self.cluster.hosts[name].log_text()[self._said :]
            if not any(words in said for words in SAYS_WHAT_TO_DO):
                raise RuntimeError(f"{name} ended and did not say what to do: {said[-2000:]}")
            self._voters.empty(name)
            self.note("emptied, as it said", name)
            self.cluster.start_node(name)
        else:
            self.note("went on with what it has", name)
        self._voters.await_all()

    def _serves(self, name: str) -> bool:
        """Whether it came to answer, rather than to its end."""

        def look() -> str:
            if not self.cluster.alive(name):
                return "ended"
            return "serves" if self.cluster.leader_seen_by(name) != "?" else ""

        return bool(until(look, seconds=JOIN_S, what=f"{name} to start or refuse to") == "serves")


class CorruptAgent(Nemesis):
    """One agent's local state is damaged while it is off; it must come up again, perhaps as a new node."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self._struck = False

    def begin(self, source: Entropy) -> str:
        name = source.choice(self.cluster.agent_names)
        self._struck = True
        self.cluster.kill(name)
        files = sorted((self.cluster.hosts[name].data / "client").glob("client.db*"))
        files = [f for f in files if f.stat().st_size and not f.name.endswith("-shm")]
        words = "nothing there yet"
        if files:
            damage = source.choice(sorted(DAMAGES))
            words = DAMAGES[damage](source.choice(files), source)
        self.cluster.start_node(name)
        self.note(RESTARTS, name)
        return f"{name}: {words}"

    def end(self) -> None:
        if self._struck:
            self.cluster.await_agents(seconds=JOIN_S)
        self._struck = False
