"""The disk that allocations use, and the host volumes that jobs may mount."""

from __future__ import annotations

import os

import psutil

from agent.fingerprint.parts import FingerprintConfig, Part
from nomadpy import logs
from nomadpy.models.node import HostVolumeInfo

log = logs.get(__name__)

_MEGABYTE = 1024 * 1024


def fingerprint(config: FingerprintConfig) -> Part:
    """The file system that holds the data directory, or its nearest parent that exists."""
    path = os.path.abspath(config.data_dir or "/")
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    total = psutil.disk_usage(path).total
    if config.disk_total_mb:
        total = config.disk_total_mb * _MEGABYTE
    return Part(
        attributes={
            "unique.storage.bytestotal": str(total),
            "unique.storage.volume": _device(path),
        },
        disk_mb=total // _MEGABYTE,
    )


def volumes(config: FingerprintConfig) -> Part:
    """The configured volumes whose path exists, a file or a socket too; a job must not get an empty directory for it."""
    found: dict[str, HostVolumeInfo] = {}
    for name, volume in config.host_volumes.items():
        if os.path.isabs(volume.path) and os.path.exists(volume.path):
            found[name] = volume
        else:
            log.warning("host volume is not there", volume=name, path=volume.path)
    return Part(host_volumes=found)


def _device(path: str) -> str:
    """The device of the longest mount point above `path`; "" when the kernel names none."""
    real = os.path.realpath(path)
    best, device = "", ""
    for part in psutil.disk_partitions(all=True):
        point = part.mountpoint.rstrip("/")
        if f"{real}/".startswith(f"{point}/") and len(point) >= len(best):
            best, device = point, part.device
    return device
