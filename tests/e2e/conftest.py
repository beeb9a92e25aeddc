"""What the tests with real clusters share: a Docker daemon and its image."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nomadpy.demo.dockerd import Docker, DockerUnavailableError, find_or_start, make_image
from nomadpy.demo.leftovers import remove_folder


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    """A Docker daemon with the busybox image. Fails with the reason when there can be none."""
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-docker-"))
    try:
        found = find_or_start(folder)
    except DockerUnavailableError as error:
        remove_folder(folder)
        pytest.fail(f"these tests need Docker: {error}")
    try:
        make_image(found)
        yield found
    finally:
        found.close()
        remove_folder(folder)


@pytest.fixture(scope="session")
def image(docker: Docker) -> str:
    """The tag of the busybox image."""
    return make_image(docker)
