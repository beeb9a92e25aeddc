"""The primitives of a certificate authority: make one, load one, and what every certificate of ours has.

All keys made here are EC P-256. Not here: the certificates of nodes (ca.py) and of tasks (workload.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from nomadpy.errors import ConfigError

CA_NAME = "Nomad Agent CA"
CA_DAYS = 1825

# A certificate is valid from a little before its making: clocks of a cluster differ. A short-lived one gets less, for
# its holder renews it at two thirds of its span, which must not lie in the past.
BACKDATE = timedelta(minutes=5)

CASigner = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
"""The kinds of key a CA may have; ours are EC, a foreign CA may be brought along."""

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
"""The kinds of key that get a certificate."""


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
        certificate_builder(subject, subject, key.public_key(), now_ns, timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
    )
    if uri is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    return certificate_pem(builder.sign(key, hashes.SHA256())), private_key_pem(key)


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


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: PublicKey,
    now_ns: int,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    """What every certificate has: names, key, a random serial number, validity, the key's identifier."""
    now = moment(now_ns)
    # An expired certificate (negative lifetime) still begins before it ends.
    begins = min(now, now + lifetime) - min(BACKDATE, abs(lifetime) / 4)
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


def key_usage(*, authority: bool, encipher: bool = False) -> x509.KeyUsage:
    """Signatures; of certificates too for an authority. encipher: RSA keys in old TLS need it."""
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=encipher,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


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


def _public_der(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
