"""Kernel, operating system, control groups, names, signals, and what this software is."""

from __future__ import annotations

import ctypes
import platform
import socket
import uuid

from agent.drivers import cgroups
from agent.fingerprint.parts import FingerprintConfig, Part
from nomadpy import __version__

# What a job's kill_signal may be and the runtimes know.
SIGNALS = (
    "SIGABRT SIGALRM SIGBUS SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL SIGNULL SIGPIPE SIGPROF SIGQUIT "
    "SIGSEGV SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGUSR1 SIGUSR2 SIGWINCH SIGXCPU SIGXFSZ"
).split()
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION_FLAG = 1


def fingerprint(config: FingerprintConfig) -> Part:
    """Read a few files; nothing that can hang."""
    release = _os_release()
    hostname = socket.gethostname()
    attributes = {
        "kernel.arch": platform.machine(),
        "kernel.landlock": _landlock(),
        "kernel.name": platform.system().lower(),
        "kernel.version": platform.release(),
        "nomad.bridge.hairpin_mode": "false",
        "nomad.service_discovery": "true",
        "nomad.version": config.version,
        "nomadpy.version": __version__,
        "os.cgroups.version": cgroups.detect().version,
        "os.name": release.get("ID", ""),
        "os.signals": ",".join(SIGNALS),
        "os.version": _os_version(release),
        "unique.advertise.address": config.http_addr,
        "unique.host_id": _host_id(),
        "unique.hostname": hostname,
    }
    return Part(attributes={name: value for name, value in attributes.items() if value})


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _os_version(release: dict[str, str]) -> str:
    """With the point release where Debian keeps it apart: "12.11"."""
    version = release.get("VERSION_ID", "")
    if release.get("ID") == "debian":
        text = _read("/etc/debian_version")
        if text.startswith(f"{version}."):
            return text
    return version


def _host_id() -> str:
    """The firmware's id of the machine, else the installation's; "" where both are hidden."""
    for path in ("/sys/class/dmi/id/product_uuid", "/etc/machine-id"):
        try:
            return str(uuid.UUID(_read(path)))
        except ValueError:
            continue
    return ""


def _landlock() -> str:
    """`v7` for version 7 of the kernel's Landlock interface, "" without it."""
    syscall = ctypes.CDLL(None).syscall
    version = syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_FLAG)
    return f"v{version}" if version > 0 else ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
