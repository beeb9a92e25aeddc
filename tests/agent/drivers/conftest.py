"""The Docker fixtures for the driver tests."""

from __future__ import annotations

from docker_daemon import docker_host, private_docker

__all__ = ["docker_host", "private_docker"]
