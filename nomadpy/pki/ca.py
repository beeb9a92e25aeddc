"""The cluster's certificate authority: make it, and issue what servers, clients and operators carry.

All keys are EC P-256. A private key leaves these functions as PEM bytes; who writes it to disk uses mode 0600.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nomadpy.errors import ConfigError, ConflictError
from nomadpy.pki.roles import DOMAIN, common_name

CA_NAME = "Nomad Agent CA"
CA_DAYS = 1825
CERTIFICATE_DAYS = 365

# A certificate is valid from a little before its making: clocks of a cluster differ.
BACKDATE = timedelta(minutes=5)

CASigner = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
"""The kinds of key a CA may have; ours are EC, a foreign CA may be brought along."""

_EXTENDED_USES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
    "cli": [ExtendedKeyUsageOID.CLIENT_AUTH],
}


def create_ca(
    name: str = CA_NAME, days: int = CA_DAYS, *, now_ns: int, uri: str | None = None
) -> tuple[bytes, bytes]:
    """Return (certificate, private key) of a new self-signed authority, both PEM.

    uri: the trust domain it signs for (`spiffe://global.nomad`), of an authority of tasks.
    """
    if days <= 0:
        raise ConfigError(f"a CA cannot be valid for {days} days")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), now_ns, timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    if uri is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    return certificate_pem(builder.sign(key, hashes.SHA256())), private_key_pem(key)


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
        _builder(subject, authority.subject, key.public_key(), now_ns, timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
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


def load_ca(ca_cert: bytes, ca_key: bytes) -> tuple[x509.Certificate, CASigner]:
    """Parse an authority's PEM pair. Raises ConfigError when they do not belong together or cannot sign."""
    try:
        certificate = x509.load_pem_x509_certificate(ca_cert)
    except ValueError as cause:
        raise ConfigError(f"the CA certificate is not a PEM certificate: {cause}") from cause
    try:
        key = serialization.load_pem_private_key(ca_key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise ConfigError(f"the CA key is not an unencrypted PEM private key: {cause}") from cause
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise ConfigError("the CA key must be an EC or Ed25519 key")
    if _public_der(key.public_key()) != _public_der(certificate.public_key()):
        raise ConfigError("the CA key does not belong to the CA certificate")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as cause:
        raise ConfigError("the CA certificate is not a CA: it has no basic constraints") from cause
    if not constraints.ca:
        raise ConfigError("the CA certificate is not a CA: its basic constraints say so")
    return certificate, key


def signature_hash(signer: CASigner) -> hashes.SHA256 | None:
    """The hash that a signature with this key takes; Ed25519 has its own."""
    return None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def authority_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The extension that says which key signed, so that two CAs of one name can be told apart."""
    try:
        subject = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public = authority.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject)


def read_pem(path: Path) -> bytes:
    """The bytes of a file. Raises ConfigError that says which file and why."""
    try:
        return path.read_bytes()
    except OSError as cause:
        raise ConfigError(f"{path}: cannot be read: {cause.strerror}") from cause


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_key_pem(key: CASigner) -> bytes:
    """The key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def moment(now_ns: int) -> datetime:
    """Nanoseconds since 1970 as the datetime that certificates take (whole seconds)."""
    return datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now_ns: int,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    now = moment(now_ns)
    # An expired certificate (negative lifetime) still begins before it ends.
    begins = min(now, now + lifetime) - BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


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


def _public_der(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


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
