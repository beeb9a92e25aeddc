"""Faults of the agents' Docker daemon, and of what it holds behind their backs. It is always the kit's own."""

from __future__ import annotations

from jepsen_style.docker import PrivateDaemon
from jepsen_style.nemesis.base import Nemesis
from nomadpy.entropy import Entropy


class _DockerFault(Nemesis):
    @property
    def _daemon(self) -> PrivateDaemon:
        daemon = self.cluster.equipment[PrivateDaemon.need]
        assert isinstance(daemon, PrivateDaemon)
        return daemon

    def _some_containers(self, source: Entropy) -> list[str]:
        """One of the running ones, or about half of them."""
        running = self._daemon.containers()
        if running and source.uniform(0, 1) < 0.5:
            return [source.choice(running)]
        return [c for c in running if source.uniform(0, 1) < 0.5]


class KillDaemon(_DockerFault):
    """SIGKILL of the Docker daemon, started again later; containers live on."""

    def begin(self, source: Entropy) -> str:  # noqa: ARG002
        self._daemon.kill_daemon()
        return "dockerd"

    def end(self) -> None:
        self._daemon.start_daemon()


class StopDaemon(_DockerFault):
    """SIGSTOP of the Docker daemon, SIGCONT later; it takes connections and answers none."""

    def begin(self, source: Entropy) -> str:  # noqa: ARG002
        self._daemon.pause_daemon()
        return "dockerd"

    def end(self) -> None:
        self._daemon.resume_daemon()


class KillContainers(_DockerFault):
    """Containers' first processes die."""

    def begin(self, source: Entropy) -> str:
        struck = self._some_containers(source)
        for container in struck:
            self._daemon.kill_container(container)
        return _names(struck)

    def end(self) -> None:
        """Nothing to undo: whoever wants them starts them again."""


class RemoveContainers(_DockerFault):
    """Containers are killed and removed."""

    def begin(self, source: Entropy) -> str:
        struck = self._some_containers(source)
        for container in struck:
            self._daemon.remove_container(container)
        return _names(struck)

    def end(self) -> None:
        """Nothing to undo: whoever wants them makes them again."""


class RemoveImage(_DockerFault):
    """The image is removed, though containers use it; some of them are killed, so that it is missed."""

    def begin(self, source: Entropy) -> str:
        self._daemon.remove_image()
        struck = self._some_containers(source)
        for container in struck:
            self._daemon.kill_container(container)
        return f"the image; {_names(struck)}"

    def end(self) -> None:
        self._daemon.restore_image()


def _names(containers: list[str]) -> str:
    return f"containers {', '.join(c[:12] for c in containers)}" if containers else "no container"
