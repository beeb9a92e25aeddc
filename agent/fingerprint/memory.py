"""The host's memory."""

from __future__ import annotations

import psutil

from agent.fingerprint.parts import FingerprintConfig, Part

_MEGABYTE = 1024 * 1024


def fingerprint(config: FingerprintConfig) -> Part:
    """Total memory, or what the operator says it is."""
    total = psutil.virtual_memory().total
    if config.memory_total_mb:
        total = config.memory_total_mb * _MEGABYTE
    return Part(attributes={"memory.totalbytes": str(total)}, memory_mb=total // _MEGABYTE)
