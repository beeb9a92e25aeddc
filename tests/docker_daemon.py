"""Docker for tests: the daemon that answers, or a private one with all its files under a temporary folder.

The module is not called `docker`, because pytest puts this folder first on the import path and the SDK has that name.
There is no registry: the one image is imported from the busybox of the host.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

IMAGE = "busybox:local"
_APPLETS = "sh sleep cat echo id env ls true false kill head seq stty tty nc httpd dd ps printf pwd"
_START_S = 30.0


class DockerUnavailableError(Exception):
    """No daemon could be started; the text has the end of its log."""


class UnixHTTP(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def answers(path: str) -> bool:
    """Whether a daemon at the Unix socket `path` is ready."""
    try:
        connection = UnixHTTP(path, timeout=2.0)
        connection.request("GET", "/_ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


class PrivateDocker:
    """A dockerd with its own containerd, so that containers live through its death. Needs root."""

    def __init__(self) -> None:
        # Not pytest's folder: the paths of Unix sockets are short, and overlay mounts must go before the files.
        self.root = Path(tempfile.mkdtemp(prefix="dockerd-", dir="/tmp"))
        self.socket = str(self.root / "docker.sock")
        self._containerd: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._options: list[str] | None = None
        self._bridge = ""

    @property
    def endpoint(self) -> str:
        """As DOCKER_HOST wants it."""
        return f"unix://{self.socket}"

    @property
    def has_bridge(self) -> bool:
        """Whether containers can have a network of their own."""
        return self._options is not None and "--bridge=none" not in self._options

    def start(self) -> None:
        """Start it, with fewer features where the host refuses some; DockerUnavailableError when it refuses all."""
        for program in ("dockerd", "containerd", "runc"):
            if shutil.which(program) is None:
                raise DockerUnavailableError(f"{program} is not installed")
        if self._containerd is None:
            self._start_containerd()
        base = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        if self._options is None:
            self._bridge = _make_bridge()
        none = [*base, "--bridge=none"]
        candidates = [none, [*none, "--storage-driver=vfs"]]
        if self._bridge:
            candidates.insert(0, [*base, f"--bridge={self._bridge}"])
        for options in [self._options] if self._options else candidates:
            if self._try(options):
                self._options = options
                return
        tail = (self.root / "dockerd.log").read_text(errors="replace")[-2000:]
        raise DockerUnavailableError(f"dockerd does not start:\n{tail}")

    def kill(self) -> None:
        """SIGKILL the daemon; its containers go on."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        (self.root / "docker.pid").unlink(missing_ok=True)

    def remove(self) -> None:
        """End everything and remove the files."""
        for container in self._containers():
            self._request("DELETE", f"/containers/{container}?force=1&v=1")
        for process in (self._daemon, self._containerd):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            point = line.split(" ")[1]
            if point.startswith(f"{self.root}/"):
                subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(self.root, ignore_errors=True)
        if self._bridge:
            subprocess.run(["ip", "link", "delete", self._bridge], check=False, capture_output=True)

    def _containers(self) -> list[str]:
        if not answers(self.socket):
            return []
        body = self._request("GET", "/containers/json?all=1")
        return [entry["Id"] for entry in json.loads(body)]

    def _request(self, method: str, path: str) -> bytes:
        connection = UnixHTTP(self.socket, timeout=30.0)
        connection.request(method, path)
        return connection.getresponse().read()

    def _start_containerd(self) -> None:
        folder = self.root / "containerd"
        folder.mkdir()
        config = folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{folder}/c.sock"\n'
        )
        with open(folder / "log", "wb") as log:
            self._containerd = subprocess.Popen(
                ["containerd", "--config", str(config)], stdout=log, stderr=log
            )
        _until(lambda: (folder / "c.sock").exists(), "containerd's socket")

    def _try(self, options: list[str]) -> bool:
        with open(self.root / "dockerd.log", "ab") as log:
            self._daemon = subprocess.Popen(
                [
                    "dockerd",
                    f"--host={self.endpoint}",
                    f"--containerd={self.root}/containerd/c.sock",
                    f"--data-root={self.root}/data",
                    f"--exec-root={self.root}/exec",
                    f"--pidfile={self.root}/docker.pid",
                    "--live-restore",
                    *options,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if answers(self.socket):
                return True
            if self._daemon.poll() is not None:
                break
            time.sleep(0.1)
        if self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()
        return False


def _make_bridge() -> str:
    """A bridge of our own, so that other daemons on the host keep theirs; "" when the host allows none."""
    name = f"npd{os.getpid()}"
    address = f"172.31.{os.getpid() % 250 + 1}.1/24"
    for command in (
        ["ip", "link", "add", name, "type", "bridge"],
        ["ip", "address", "add", address, "dev", name],
        ["ip", "link", "set", name, "up"],
    ):
        if shutil.which("ip") is None or subprocess.run(command, capture_output=True).returncode:
            return ""
    return name


def import_image(path: str, name: str = IMAGE) -> None:
    """Make the test image from the host's static busybox, by `docker import`'s call."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise DockerUnavailableError("busybox-static is not installed")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "tmp", "etc", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        for name_in, text in (
            ("etc/passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/\n"),
        ):
            entry = tarfile.TarInfo(name_in)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        entry = tarfile.TarInfo("bin/busybox")
        content = Path(busybox).read_bytes()
        entry.size, entry.mode = len(content), 0o755
        archive.addfile(entry, io.BytesIO(content))
        for applet in _APPLETS.split():
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    repository, _, tag = name.partition(":")
    connection = UnixHTTP(path, timeout=60.0)
    connection.request(
        "POST",
        f"/images/create?fromSrc=-&repo={repository}&tag={tag}",
        body=buffer.getvalue(),
        headers={"Content-Type": "application/x-tar"},
    )
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200 or b'"error"' in body:
        raise DockerUnavailableError(f"image import: {answer.status} {body[-300:]!r}")


@pytest.fixture(scope="session")
def private_docker() -> Iterator[PrivateDocker]:
    """A daemon of our own, which a test may kill and start again. Fails with the reason when there can be none."""
    docker = PrivateDocker()
    try:
        docker.start()
        import_image(docker.socket)
    except DockerUnavailableError as error:
        docker.remove()
        pytest.fail(f"docker cannot be started: {error}")
    yield docker
    docker.remove()


@pytest.fixture(scope="session")
def docker_host(request: pytest.FixtureRequest) -> str:
    """Endpoint of a daemon that has `busybox:local`: the host's when it answers, else a private one."""
    endpoint = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if endpoint.startswith("unix://") and answers(endpoint.removeprefix("unix://")):
        import_image(endpoint.removeprefix("unix://"))
        return endpoint
    docker: PrivateDocker = request.getfixturevalue("private_docker")
    return docker.endpoint


def _until(condition: object, what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise DockerUnavailableError(f"{what} does not appear")
        time.sleep(0.05)
