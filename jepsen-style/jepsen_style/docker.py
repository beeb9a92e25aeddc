"""A Docker daemon of the kit's own, for the agents of a cluster."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jepsen_style.equipment import Equipment
from jepsen_style.undo import UndoList
from nomadpy.demo.dockerd import BUSYBOX, Docker, make_image, start_private

if TYPE_CHECKING:
    from jepsen_style.cluster import OwnCluster


class PrivateDaemon(Equipment):
    """One daemon for all agents, with an image made of the machine's busybox."""

    need: ClassVar[str] = "docker"
    about: ClassVar[str] = "a Docker daemon of the kit's own"

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        self._docker: Docker | None = None
        self.image = ""

    @classmethod
    def missing(cls) -> str:
        if os.geteuid() != 0:
            return "needs root"
        if shutil.which("dockerd") is None:
            return "needs dockerd"
        return "" if Path(BUSYBOX).exists() else f"needs {BUSYBOX}"

    @property
    def endpoint(self) -> str:
        """As DOCKER_HOST wants it."""
        assert self._docker is not None
        return self._docker.endpoint

    def up(self, cluster: OwnCluster) -> None:  # noqa: ARG002
        self._docker = start_private(self.folder)
        self.image = make_image(self._docker)

    def down(self) -> None:
        if self._docker is not None:
            self._docker.close()
