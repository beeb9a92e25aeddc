"""A Docker daemon to try things on: the one that answers, or a private one started here; and an image without a registry."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from nomadpy.demo.client import until

DEFAULT_SOCKET = "/var/run/docker.sock"
IMAGE = "nomadpy/busybox:local"
BUSYBOX = "/bin/busybox"
APPLETS = ("sh", "sleep", "echo", "cat", "ls", "httpd", "nc", "wget", "id", "env", "kill", "true")


class DockerUnavailableError(Exception):
    """No daemon answers and none could be started; the text says why."""


class Docker:
    """A reachable daemon. `close` ends it when it was started here."""

    def __init__(self, endpoint: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.endpoint = endpoint
        self._process = process

    def client(self) -> Any:
        """The SDK's client for it; the caller closes it."""
        import docker

        return docker.DockerClient(base_url=self.endpoint, timeout=20)

    def close(self) -> None:
        """Stop the daemon if it is ours; its containers stop with it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def find_or_start(folder: Path) -> Docker:
    """Return a daemon that answers: the system's, or a private one under `folder`. Raises DockerUnavailableError."""
    named = os.environ.get("DOCKER_HOST", "")
    for endpoint in (named, f"unix://{DEFAULT_SOCKET}"):
        if endpoint and _answers(endpoint):
            return Docker(endpoint)
    return start_private(folder)


def start_private(folder: Path) -> Docker:
    """Start a daemon with everything of its own under `folder`. Raises DockerUnavailableError with its last words."""
    binary = shutil.which("dockerd")
    if binary is None:
        raise DockerUnavailableError(
            "no Docker daemon answers, and dockerd is not installed (Debian: docker.io)"
        )
    if os.geteuid() != 0:
        raise DockerUnavailableError("no Docker daemon answers, and only root may start one")
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "dockerd.log"
    # A Unix socket's path must stay short; the folder may be deep.
    socket_file = Path("/run") / f"nomadpy-docker-{os.getpid()}.sock"
    failures: list[str] = []
    for extra in (
        [],
        ["--iptables=false", "--ip6tables=false", "--storage-driver=vfs"],
        ["--iptables=false", "--bridge=none", "--storage-driver=vfs"],
    ):
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [
                    binary,
                    f"--host=unix://{socket_file}",
                    f"--data-root={folder / 'data'}",
                    f"--exec-root={folder / 'exec'}",
                    f"--pidfile={folder / 'dockerd.pid'}",
                    *extra,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        endpoint = f"unix://{socket_file}"
        try:
            until(
                lambda p=process, e=endpoint: p.poll() is not None or _answers(e),  # type: ignore[misc]
                seconds=30,
                what="dockerd",
                every_s=0.1,
            )
        except TimeoutError as error:
            failures.append(str(error))
        if process.poll() is None and _answers(endpoint):
            return Docker(endpoint, process)
        if process.poll() is None:
            process.kill()
            process.wait()
        failures.append(_last_words(log_file))
    raise DockerUnavailableError("dockerd does not start: " + " / ".join(failures))


def make_image(docker: Docker, tag: str = IMAGE) -> str:
    """Make a small image out of the host's static busybox, when it is not there yet; returns its tag.

    Raises DockerUnavailableError when there is no static busybox to make it of.
    """
    busybox = Path(BUSYBOX)
    if not busybox.exists():
        raise DockerUnavailableError(f"{BUSYBOX} is missing (Debian: busybox-static)")
    client = docker.client()
    try:
        if any(tag in image.tags for image in client.images.list()):
            return tag
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(busybox, arcname="bin/busybox")
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
            for name in ("tmp", "etc", "proc", "sys", "dev"):
                directory = tarfile.TarInfo(name)
                directory.type = tarfile.DIRTYPE
                directory.mode = 0o1777 if name == "tmp" else 0o755
                archive.addfile(directory)
        repository, _, label = tag.rpartition(":")
        client.api.import_image_from_data(packed.getvalue(), repository=repository, tag=label)
    finally:
        client.close()
    return tag


def _answers(endpoint: str) -> bool:
    import docker
    import requests

    if endpoint.startswith("unix://") and not Path(endpoint.removeprefix("unix://")).exists():
        return False
    client: Any = None
    try:
        client = docker.DockerClient(base_url=endpoint, timeout=5)
        return bool(client.ping())
    except (docker.errors.DockerException, requests.RequestException, OSError):
        return False
    finally:
        if client is not None:
            client.close()


def _last_words(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
