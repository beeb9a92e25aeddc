"""A Docker daemon of the kit's own, for the agents of a cluster, and what can be done behind their backs.

Its containerd is the kit's own too: one that the Docker daemon starts for itself would be in the way when it is killed and started again.
Its containers have no network and no firewall rules, so that the machine's own are not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import docker
import requests

from jepsen_style.equipment import Equipment
from jepsen_style.undo import UndoList
from nomadpy.demo.client import until
from nomadpy.demo.dockerd import BUSYBOX, Docker, make_image

if TYPE_CHECKING:
    from jepsen_style.cluster import OwnCluster

START_S = 60.0
STOP_S = 20.0
ASK_S = 20
PING_S = 2

_CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{sockets}/containerd.sock"
"""


class PrivateDaemon(Equipment):
    """One daemon for all agents, with an image made of the machine's busybox."""

    need: ClassVar[str] = "docker"
    about: ClassVar[str] = "a Docker daemon of the kit's own"

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        # A socket's path must stay short; the run's folder may be deep.
        self._sockets = Path("/run") / f"nomadpy-jepsen-{os.getpid()}"
        self._group = f"nomadpy-jepsen-docker-{os.getpid()}"
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._storage: list[str] = []
        self._paused = False
        self.image = ""

    @classmethod
    def missing(cls) -> str:
        if os.geteuid() != 0:
            return "needs root"
        for program in ("dockerd", "containerd"):
            if shutil.which(program) is None:
                return f"needs {program}"
        return "" if Path(BUSYBOX).exists() else f"needs {BUSYBOX}"

    @property
    def endpoint(self) -> str:
        """As DOCKER_HOST wants it."""
        return f"unix://{self._sockets}/docker.sock"

    # -- its life -----------------------------------------------------------------------------------------------

    def up(self, cluster: OwnCluster) -> None:  # noqa: ARG002
        self.begin()

    def begin(self) -> None:
        """Start it, and make the image. Raises RuntimeError with its last words, TimeoutError."""
        self.undo.note("folder", str(self._sockets))
        for tree in sorted(Path("/sys/fs/cgroup").glob("*/")):
            self.undo.note("cgroup", str(tree / self._group))
        self.undo.note("cgroup", f"/sys/fs/cgroup/{self._group}")
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "containerd.toml"
        settings.write_text(
            _CONTAINERD.format(folder=self.folder, sockets=self._sockets), encoding="utf-8"
        )
        self._containerd = self._run("containerd", "--config", str(settings))
        until(
            lambda: (self._sockets / "containerd.sock").exists(),
            seconds=START_S,
            what="containerd",
            every_s=0.05,
        )
        try:
            self.start_daemon()
        except RuntimeError:
            # Layers on top of each other cannot be had on every file system; whole copies can.
            self._storage = ["--storage-driver=vfs"]
            self.start_daemon()
        self.image = make_image(Docker(self.endpoint))

    def start_daemon(self) -> None:
        """Start the Docker daemon on what it left; nothing when it runs. Raises RuntimeError with its last words, TimeoutError."""
        if self._dockerd is not None and self._dockerd.poll() is None:
            return
        # The file of one that was killed names a process that may be another one by now.
        (self.folder / "dockerd.pid").unlink(missing_ok=True)
        started = self._dockerd = self._run(
            "dockerd",
            f"--host={self.endpoint}",
            f"--containerd={self._sockets}/containerd.sock",
            "--containerd-namespace=kit",
            "--containerd-plugins-namespace=kit-plugins",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/dockerd.pid",
            f"--cgroup-parent=/{self._group}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--live-restore",
            *self._storage,
        )
        until(
            lambda: started.poll() is not None or self.answers(),
            seconds=START_S,
            what="dockerd",
            every_s=0.1,
        )
        if started.poll() is not None:
            lines = (self.folder / "dockerd.log").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"dockerd does not start: {lines[-1][:300] if lines else ''}")

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether the Docker daemon answers now."""
        if not (self._sockets / "docker.sock").exists():
            return False
        try:
            # A question that came while it was starting is not answered ever.
            with self.client(PING_S) as client:
                return bool(client.ping())
        except (docker.errors.DockerException, requests.RequestException, OSError):
            return False

    def heal(self) -> None:
        """Let it run again, with its image."""
        self.resume_daemon()
        if self._containerd is not None:
            self.start_daemon()
            self.image = make_image(Docker(self.endpoint))

    def down(self) -> None:
        self.resume_daemon()
        if self._dockerd is not None and self._dockerd.poll() is None:
            self._remove_containers()
        for process in (self._dockerd, self._containerd):
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._dockerd = self._containerd = None

    def _remove_containers(self) -> None:
        """They would live on: this daemon leaves its containers alone when it ends."""
        with self.client() as client:
            for container in client.containers.list(all=True, ignore_removed=True):
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True)

    # -- faults -------------------------------------------------------------------------------------------------

    def kill_daemon(self) -> None:
        """SIGKILL; its containers live on."""
        if self._dockerd is not None:
            self._dockerd.kill()
            self._dockerd.wait()
            self._paused = False

    def pause_daemon(self) -> None:
        """SIGSTOP: it takes connections and never answers."""
        if self._dockerd is not None and self._dockerd.poll() is None:
            self._dockerd.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume_daemon(self) -> None:
        """SIGCONT."""
        if self._dockerd is not None and self._paused:
            self._dockerd.send_signal(signal.SIGCONT)
        self._paused = False

    def containers(self) -> list[str]:
        """The ids of running containers, in order."""
        with self.client() as client:
            return sorted(c.id for c in client.containers.list(ignore_removed=True))

    def kill_container(self, container: str) -> None:
        """SIGKILL of its first process, past the daemon; nothing when it has ended."""
        with self.client() as client, contextlib.suppress(docker.errors.NotFound):
            pid = int(client.api.inspect_container(container)["State"]["Pid"])
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove_container(self, container: str) -> None:
        """Kill and remove it; nothing when it is gone."""
        with self.client() as client, contextlib.suppress(docker.errors.NotFound):
            client.api.remove_container(container, force=True)

    def remove_image(self) -> None:
        """Remove the image, though containers use it."""
        with self.client() as client, contextlib.suppress(docker.errors.ImageNotFound):
            client.api.remove_image(self.image, force=True)

    def restore_image(self) -> None:
        """Make the image again if it is not there."""
        self.image = make_image(Docker(self.endpoint))

    @contextlib.contextmanager
    def client(self, timeout_s: int = ASK_S) -> Iterator[Any]:
        """The SDK's client for this daemon and no other."""
        made = docker.DockerClient(base_url=self.endpoint, timeout=timeout_s)
        try:
            yield made
        finally:
            made.close()
