"""Certificates of tasks: an authority inside the cluster's state, short-lived, one name for each task.

The name is a URI, `spiffe://REGION.nomad/ns/NS/job/JOB/group/GROUP/task/TASK`. Of a signing request only the
public key is used: a task cannot ask for another's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from nomadpy.errors import ConfigError, InvalidRequestError
from nomadpy.pki.authority import (
    PublicKey,
    authority_identifier,
    certificate_builder,
    certificate_pem,
    create_ca,
    key_usage,
    load_ca,
    moment,
    signature_hash,
)
from nomadpy.pki.roles import DOMAIN

AUTHORITY_DAYS = 3650
TTL_S = 24 * 3600
MAX_REQUEST = 16 * 1024

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


def trust_domain(region: str) -> str:
    """`REGION.nomad`, in lower case as SPIFFE wants its trust domains."""
    return f"{quote(region.lower(), safe='')}.{DOMAIN}"


def spiffe_id(region: str, namespace: str, job: str, group: str, task: str) -> str:
    """The URI that names a task; what a URI cannot hold is percent-encoded, so no name can pose as another."""
    parts = {"ns": namespace, "job": job, "group": group, "task": task}
    path = "/".join(f"{kind}/{_segment(name)}" for kind, name in parts.items())
    return f"spiffe://{trust_domain(region)}/{path}"


def create_workload_ca(
    domain: str, *, now_ns: int, days: int = AUTHORITY_DAYS
) -> tuple[bytes, bytes]:
    """Return (certificate, private key), PEM, of an authority for the tasks of a trust domain (`global.nomad`)."""
    return create_ca(
        f"Nomad workload CA {domain}"[:64], days, now_ns=now_ns, uri=f"spiffe://{domain}"
    )


def sign_task_certificate(
    ca_cert: bytes,
    ca_key: bytes,
    csr_pem: bytes,
    spiffe_id: str,
    dns_names: Sequence[str] = (),
    *,
    ttl_s: float = TTL_S,
    now_ns: int,
) -> bytes:
    """Return a certificate (PEM) for a client and a server, named by the URI `spiffe_id`.

    dns_names: further names, for clients that check a host; one that is not a plain host name (a wildcard, other
    scripts) is left out, because the URI is what counts. The certificate never outlives the authority. Raises InvalidRequestError for an unusable signing request, ConfigError when
    the authority or a name is.
    """
    public = _key_of(csr_pem)
    authority, signer = load_ca(ca_cert, ca_key)
    now = moment(now_ns)
    ends = min(now + timedelta(seconds=ttl_s), authority.not_valid_after_utc)
    if ends <= now:
        raise ConfigError(
            "the authority of task certificates has expired, or the ttl is not above zero"
        )
    try:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)]
        names += [x509.DNSName(n) for n in dict.fromkeys(dns_names) if _HOST.fullmatch(n)]
    except ValueError as cause:
        raise ConfigError(f"a task certificate cannot hold one of its names: {cause}") from cause
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    usage = key_usage(authority=False, encipher=isinstance(public, rsa.RSAPublicKey))
    certificate = (
        certificate_builder(x509.Name([]), authority.subject, public, now_ns, ends - now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(authority_identifier(authority), critical=False)
        # Critical, because the subject is empty: the names are all there is.
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(signer, signature_hash(signer))
    )
    return certificate_pem(certificate)


def _segment(name: str) -> str:
    encoded = quote(name, safe="")
    # A path segment of dots would be taken for a step up.
    return encoded.replace(".", "%2E") if encoded.strip(".") == "" else encoded


def _key_of(csr_pem: bytes) -> PublicKey:
    if len(csr_pem) > MAX_REQUEST:
        raise InvalidRequestError("the signing request is too long")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        holds = request.is_signature_valid
        public = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as cause:
        raise InvalidRequestError(f"not a usable PEM signing request: {cause}") from cause
    if not holds:
        raise InvalidRequestError("the signing request is not signed by its own key")
    if isinstance(public, rsa.RSAPublicKey) and 2048 <= public.key_size <= 4096:
        return public
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in (
        "secp256r1",
        "secp384r1",
        "secp521r1",
    ):
        return public
    if isinstance(public, ed25519.Ed25519PublicKey):
        return public
    raise InvalidRequestError(
        "the key must be EC P-256 to P-521, Ed25519, or RSA of 2048 to 4096 bits"
    )
