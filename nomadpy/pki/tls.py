"""What TLS needs: the three files, checked so that an error says which and why; contexts; who a peer is.

Rpc is always mutual: both sides show a certificate of the cluster's CA. A dialer also demands the role and
region of the peer, by the name `<role>.<region>.nomad` in its certificate: `check_hostname` with that name.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from nomadpy.errors import ConfigError, PermissionDeniedError
from nomadpy.pki.authority import moment
from nomadpy.pki.ca import read_pem
from nomadpy.pki.roles import Identity, parse_common_name

_VERSIONS = {"tls12": ssl.TLSVersion.TLSv1_2, "tls13": ssl.TLSVersion.TLSv1_3}
RPC_MINIMUM = "tls13"
HTTPS_MINIMUM = "tls12"

# TLS 1.2 suites, where the configuration allows 1.2: forward secrecy and authenticated encryption only.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class TLSMaterial(msgspec.Struct, frozen=True, kw_only=True):
    """Certificate, key and CA of this node, as files because OpenSSL reads the key from one.

    identity: what our own certificate says. not_after_ns: when it ends, for whoever rotates or warns.
    """

    ca_file: Path
    certificate_file: Path
    key_file: Path
    ca_pem: str
    identity: Identity
    not_after_ns: int

    def read_again(self, *, now_ns: int | None = None) -> TLSMaterial:
        """The same files as they are now. Raises ConfigError as load_material does."""
        return load_material(self.ca_file, self.certificate_file, self.key_file, now_ns=now_ns)


def load_material(
    ca_file: Path, certificate_file: Path, key_file: Path, *, now_ns: int | None = None
) -> TLSMaterial:
    """Read and check the files; every fault is a ConfigError with file and reason.

    now_ns: when given, a certificate that has expired or does not yet hold is a fault too.
    """
    ca_pem = read_pem(ca_file)
    authorities = _certificates(ca_file, ca_pem)
    chain = _certificates(certificate_file, read_pem(certificate_file))
    leaf = chain[0]
    _check_key(leaf, certificate_file, key_file)
    if not _issued_by_any(leaf, [*authorities, *chain[1:]]):
        raise ConfigError(f"{certificate_file}: not issued by the CA in {ca_file}")
    if now_ns is not None:
        _check_validity(leaf, certificate_file, now_ns)
    try:
        identity = parse_common_name(_only_common_name(leaf), fingerprint=_fingerprint(leaf))
    except PermissionDeniedError as cause:
        raise ConfigError(f"{certificate_file}: {cause}") from cause
    return TLSMaterial(
        ca_file=ca_file,
        certificate_file=certificate_file,
        key_file=key_file,
        ca_pem=ca_pem.decode("ascii", "replace"),
        identity=identity,
        not_after_ns=int(leaf.not_valid_after_utc.timestamp()) * 1_000_000_000,
    )


def rpc_server_context(material: TLSMaterial, minimum: str = RPC_MINIMUM) -> ssl.SSLContext:
    """Accepts peers that show a certificate of our CA, and nobody else. minimum: tls12 | tls13."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _arm(context, material, minimum)
    context.verify_mode = ssl.CERT_REQUIRED
    # No resumption: a resumed session would not look at the certificate again.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def rpc_client_context(material: TLSMaterial, minimum: str = RPC_MINIMUM) -> ssl.SSLContext:
    """Shows our certificate; dial with server_hostname=common_name(role, region) to demand the role."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _arm(context, material, minimum)
    context.check_hostname = True
    context.hostname_checks_common_name = False
    return context


def https_server_context(
    material: TLSMaterial, *, verify_client: bool, minimum: str = HTTPS_MINIMUM
) -> ssl.SSLContext:
    """For the HTTP API. verify_client: browsers without a certificate of our CA are refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _arm(context, material, minimum)
    context.verify_mode = ssl.CERT_REQUIRED if verify_client else ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def renew_https(context: ssl.SSLContext, material: TLSMaterial) -> None:
    """Show this certificate in handshakes from now on. A CA that is no longer named stays trusted until a restart."""
    try:
        context.load_cert_chain(material.certificate_file, material.key_file)
        context.load_verify_locations(cadata=material.ca_pem)
    except (OSError, ValueError, ssl.SSLError) as cause:
        raise ConfigError(f"{material.certificate_file}: {cause}") from cause


def identity_of(certificate: Mapping[str, Any] | bytes) -> Identity:
    """Who a verified peer is, from `getpeercert()` or the DER bytes (which alone give a fingerprint).

    Raises PermissionDeniedError unless there is exactly one common name, and it is `<role>.<region>.nomad`.
    """
    if isinstance(certificate, bytes):
        try:
            parsed = x509.load_der_x509_certificate(certificate)
        except ValueError as cause:
            raise PermissionDeniedError(f"not a certificate: {cause}") from cause
        return parse_common_name(_only_common_name(parsed), fingerprint=_fingerprint(parsed))
    names = [
        value
        for relative in certificate.get("subject", ())
        for key, value in relative
        if key == "commonName"
    ]
    return parse_common_name(_the_only(names))


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> Identity:
    """Who is at the other end of an established mutual TLS connection. Raises PermissionDeniedError."""
    encoded = connection.getpeercert(binary_form=True)
    certificate = connection.getpeercert()
    if not encoded or not certificate:
        raise PermissionDeniedError("the peer showed no certificate")
    # The dict form costs a fraction of a second parse; the fingerprint needs only the bytes.
    identity = identity_of(certificate)
    return msgspec.structs.replace(identity, fingerprint=hashlib.sha256(encoded).hexdigest())


def minimum_version(name: str) -> ssl.TLSVersion:
    """tls12 or tls13 as OpenSSL has it. Raises ConfigError: older versions are not offered."""
    version = _VERSIONS.get(name)
    if version is None:
        raise ConfigError(f"tls_min_version {name!r} is not offered; use tls12 or tls13")
    return version


def _arm(context: ssl.SSLContext, material: TLSMaterial, minimum: str) -> None:
    context.minimum_version = minimum_version(minimum)
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(material.certificate_file, material.key_file)
    except (OSError, ssl.SSLError) as cause:
        raise ConfigError(
            f"{material.certificate_file} with {material.key_file}: {cause}"
        ) from cause
    try:
        context.load_verify_locations(cadata=material.ca_pem)
    except (ValueError, ssl.SSLError) as cause:
        raise ConfigError(f"{material.ca_file}: {cause}") from cause


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as cause:
        raise ConfigError(f"{path}: no usable PEM certificate: {cause}") from cause


def _check_key(leaf: x509.Certificate, certificate_file: Path, key_file: Path) -> None:
    try:
        key = serialization.load_pem_private_key(read_pem(key_file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise ConfigError(f"{key_file}: not an unencrypted PEM private key: {cause}") from cause
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise ConfigError(f"{key_file}: not the key of {certificate_file}")


def _issued_by_any(leaf: x509.Certificate, issuers: list[x509.Certificate]) -> bool:
    for issuer in issuers:
        try:
            leaf.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def _check_validity(leaf: x509.Certificate, path: Path, now_ns: int) -> None:
    now = moment(now_ns)
    if now > leaf.not_valid_after_utc:
        raise ConfigError(f"{path}: expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    if now < leaf.not_valid_before_utc:
        raise ConfigError(
            f"{path}: not valid before {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
        )


def _only_common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _the_only([str(name.value) for name in names])


def _the_only(names: list[str]) -> str:
    if len(names) != 1:
        raise PermissionDeniedError(f"the certificate has {len(names)} common names, not one")
    return names[0]


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
