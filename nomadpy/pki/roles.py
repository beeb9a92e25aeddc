"""The name in a certificate: which role of which region a peer has.

`server.global.nomad` is a server of region global. Pure: the simulator uses it without any TLS.
"""

from __future__ import annotations

import re

import msgspec

from nomadpy.errors import ConfigError, PermissionDeniedError

ROLES = ("server", "client", "cli")
DOMAIN = "nomad"

# An X.509 common name has at most 64 characters: role, region and domain with their dots must fit.
_REGION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,49}[A-Za-z0-9])?")
_COMMON_NAME = re.compile(rf"({'|'.join(ROLES)})\.({_REGION.pattern})\.{DOMAIN}")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the peer's certificate proves. Without TLS (loopback only) `role` is what it claims.

    role: server | client | cli; region: e.g. global; name: the common name, e.g. server.global.nomad;
    fingerprint: sha256 of the certificate in hex, "" without TLS.
    """

    role: str
    region: str
    name: str = ""
    fingerprint: str = ""


def common_name(role: str, region: str) -> str:
    """Return `<role>.<region>.nomad`. Raises ConfigError for an unknown role or an unusable region."""
    if role not in ROLES:
        raise ConfigError(f"certificate role {role!r} is unknown; use one of {', '.join(ROLES)}")
    if _REGION.fullmatch(region) is None:
        raise ConfigError(
            f"region {region!r} cannot stand in a certificate: use at most 51 letters, digits, '-' and '_'"
        )
    return f"{role}.{region}.{DOMAIN}"


def parse_common_name(name: str, *, fingerprint: str = "") -> Identity:
    """Return whose name it is. Raises PermissionDeniedError unless it is `<role>.<region>.nomad`."""
    match = _COMMON_NAME.fullmatch(name)
    if match is None:
        raise PermissionDeniedError(
            f"certificate name {name[:80]!r} is not <role>.<region>.{DOMAIN} with a role of {', '.join(ROLES)}"
        )
    return Identity(role=match[1], region=match[2], name=name, fingerprint=fingerprint)
