"""The cluster's certificates: what servers, clients and operators carry, and the files of `tls ca create`.

The door of this package for all that issues certificates: tasks' (workload.py) and authorities' come through here too.
A private key leaves these functions as PEM bytes, or as a file of mode 0600.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nomadpy.errors import ConfigError, ConflictError
from nomadpy.pki.authority import (
    CA_DAYS,
    CA_NAME,
    authority_identifier,
    certificate_builder,
    certificate_pem,
    key_usage,
    load_ca,
    private_key_pem,
    signature_hash,
)
from nomadpy.pki.authority import create_ca as create_ca
from nomadpy.pki.roles import DOMAIN, common_name
from nomadpy.pki.workload import create_workload_ca as create_workload_ca
from nomadpy.pki.workload import sign_task_certificate as sign_task_certificate
from nomadpy.pki.workload import spiffe_id as spiffe_id

CERTIFICATE_DAYS = 365

_EXTENDED_USES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
    "cli": [ExtendedKeyUsageOID.CLIENT_AUTH],
}


def issue_certificate(
    ca_cert: bytes,
    ca_key: bytes,
    role: str,
    region: str,
    *,
    names: Sequence[str] = (),
    ips: Sequence[str] = (),
    days: float = CERTIFICATE_DAYS,
    now_ns: int,
) -> tuple[bytes, bytes]:
    """Return (certificate, private key), PEM, for a server, client or cli of a region.

    names, ips: what else it answers to besides its common name, localhost and 127.0.0.1. days may be
    negative: tests need expired certificates. Raises ConfigError when any input cannot be used.
    """
    name = common_name(role, region)
    authority, signer = load_ca(ca_cert, ca_key)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alternatives = x509.SubjectAlternativeName(_alternative_names(name, names, ips))
    builder = (
        certificate_builder(
            subject, authority.subject, key.public_key(), now_ns, timedelta(days=days)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_EXTENDED_USES[role]), critical=False)
        .add_extension(authority_identifier(authority), critical=False)
        .add_extension(alternatives, critical=False)
    )
    certificate = builder.sign(signer, signature_hash(signer))
    return certificate_pem(certificate), private_key_pem(key)


def write_ca(
    folder: Path,
    *,
    name: str = CA_NAME,
    days: int = CA_DAYS,
    domain: str = DOMAIN,
    now_ns: int,
) -> tuple[Path, Path]:
    """Make an authority and write `<domain>-agent-ca.pem` and `-key.pem`; return both paths.

    Raises ConflictError when either exists: a CA is never overwritten.
    """
    certificate_file = folder / f"{domain}-agent-ca.pem"
    key_file = folder / f"{domain}-agent-ca-key.pem"
    _refuse_existing(certificate_file, key_file)
    certificate, key = create_ca(name, days, now_ns=now_ns)
    _write_pair(certificate_file, certificate, key_file, key)
    return certificate_file, key_file


def write_certificate(
    folder: Path,
    ca_cert_file: Path,
    ca_key_file: Path,
    role: str,
    region: str = "global",
    *,
    names: Sequence[str] = (),
    ips: Sequence[str] = (),
    days: float = CERTIFICATE_DAYS,
    now_ns: int,
) -> tuple[Path, Path]:
    """Issue a certificate and write `<region>-<role>-nomad.pem` and `-key.pem`; return both paths.

    Raises ConflictError when either exists, ConfigError when the CA's files cannot be read or used.
    """
    stem = f"{region}-{role}-{DOMAIN}"
    certificate_file, key_file = folder / f"{stem}.pem", folder / f"{stem}-key.pem"
    common_name(role, region)
    _refuse_existing(certificate_file, key_file)
    certificate, key = issue_certificate(
        read_pem(ca_cert_file),
        read_pem(ca_key_file),
        role,
        region,
        names=names,
        ips=ips,
        days=days,
        now_ns=now_ns,
    )
    _write_pair(certificate_file, certificate, key_file, key)
    return certificate_file, key_file


def read_pem(path: Path) -> bytes:
    """The bytes of a file. Raises ConfigError that says which file and why."""
    try:
        return path.read_bytes()
    except OSError as cause:
        raise ConfigError(f"{path}: cannot be read: {cause.strerror}") from cause


def _alternative_names(
    name: str, names: Sequence[str], ips: Sequence[str]
) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for dns in dict.fromkeys((name, "localhost", *names)):
        try:
            found.append(x509.DNSName(dns))
        except ValueError as cause:
            raise ConfigError(f"{dns!r} is not a DNS name: {cause}") from cause
    for address in dict.fromkeys(("127.0.0.1", *ips)):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError as cause:
            raise ConfigError(f"{address!r} is not an IP address") from cause
    return found


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise ConflictError(f"{path} exists already and is not overwritten")


def _write_pair(certificate_file: Path, certificate: bytes, key_file: Path, key: bytes) -> None:
    _write_new(key_file, key, 0o600)
    _write_new(certificate_file, certificate, 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Create the file with its final mode, so that a key is never readable by others, not even briefly."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as cause:
        raise ConflictError(f"{path} exists already and is not overwritten") from cause
    except OSError as cause:
        raise ConfigError(f"{path}: cannot be written: {cause.strerror}") from cause
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
