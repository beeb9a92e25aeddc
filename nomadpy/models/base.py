"""The base of every wire struct: Go names on the wire, Python names in code, immutable values.

A slice, map or pointer that Go leaves nil is `None` here and `null` on the wire; it is never dropped,
except where Nomad's struct says omitempty. There the struct carries `omit_defaults=True`, and the
fields that are always written use `always(...)`, whose default msgspec cannot compare and so keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

Duration = Annotated[int, msgspec.Meta(extra_json_schema={"x-go": "duration"})]
"""Nanoseconds. Requests may spell it as a Go duration string; see jobspec/decode.py."""

Time = str
"""RFC 3339 with up to nine decimals, UTC; `ZERO_TIME` is Go's zero time."""

ZERO_TIME = "0001-01-01T00:00:00Z"

_ACRONYMS = {
    word.lower(): word
    for word in (
        "ACL API CIDR CNI CPU CSI DNS GC GRPC HCL HTTP ID IDs IOPS IP JWT MB MBits NUMA OS PCI RSS "
        "SDS SNI TG TLS TTL UI URI URL"
    ).split()
}


def wire_name(python_name: str) -> str:
    """Return the Go name of a field: `job_id` is `JobID`, `memory_mb` is `MemoryMB`."""
    return "".join(_ACRONYMS.get(w, w[:1].upper() + w[1:]) for w in python_name.split("_"))


def always(factory: Callable[[], Any], name: str | None = None) -> Any:
    """A field of an `omit_defaults` struct that is written even when it has its default."""
    return msgspec.field(default_factory=factory, name=name)


class Wire(msgspec.Struct, rename=wire_name, frozen=True, kw_only=True, gc=False):
    """A value of the wire. Change one with `msgspec.structs.replace`.

    Frozen values form no cycles, so the garbage collector need not walk them: the state holds millions.
    """
