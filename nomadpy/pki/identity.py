"""Workload identities: signed tokens (JWT) that say which task of which job holds them, and the keys to check them.

Claims and key set are Nomad's: `sub` is REGION:NAMESPACE:JOB:GROUP:TASK:IDENTITY, RS256, `/.well-known/jwks.json`.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nomadpy.errors import ConfigError, PermissionDeniedError
from nomadpy.models.allocation import Allocation
from nomadpy.models.calls import SignedIdentity
from nomadpy.models.root_key import RootKey
from nomadpy.models.task_blocks import WorkloadIdentity

DEFAULT_IDENTITY = "default"
DEFAULT_AUDIENCE = "nomadproject.io"
ALGORITHM = "RS256"
KEY_BITS = 2048

_NANOSECONDS = 1_000_000_000

# Clocks of those who check a token differ from ours; Nomad's own leeway.
LEEWAY_S = 60


class SigningKey:
    """One key that signs identities. Parsing the PEM takes a millisecond: keep the object."""

    def __init__(self, key_id: str, private: rsa.RSAPrivateKey) -> None:
        self.key_id = key_id
        self._private = private

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id!r})"

    @classmethod
    def load(cls, key_id: str, pem: bytes) -> SigningKey:
        """From the PEM of a RootKey. Raises ConfigError when that is no RSA key."""
        try:
            # The key comes out of our own state; its full check costs 50 ms and proves nothing new.
            private = serialization.load_pem_private_key(
                pem, password=None, unsafe_skip_rsa_key_validation=True
            )
        except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
            raise ConfigError(f"root key {key_id}: no usable signing key: {cause}") from cause
        if not isinstance(private, rsa.RSAPrivateKey):
            raise ConfigError(f"root key {key_id}: the signing key is not RSA")
        return cls(key_id, private)

    @classmethod
    def create(cls, key_id: str) -> SigningKey:
        """A new key; takes some hundred milliseconds of CPU, so a server calls it in a thread."""
        return cls(key_id, rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS))

    def pem(self) -> bytes:
        """The private key as PKCS#8 PEM: it belongs into the replicated state and nowhere else."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, claims: Mapping[str, Any]) -> str:
        """The claims as a compact JWT whose header names this key."""
        return jwt.encode(
            dict(claims), self._private, algorithm=ALGORITHM, headers={"kid": self.key_id}
        )

    def public(self) -> rsa.RSAPublicKey:
        """What checks its signatures."""
        return self._private.public_key()

    def public_jwk(self) -> dict[str, str]:
        """The public key as a member of a JWKS, with the members Nomad publishes."""
        numbers = self.public().public_numbers()
        return {
            "use": "sig",
            "kty": "RSA",
            "kid": self.key_id,
            "alg": ALGORITHM,
            "n": _base64url(numbers.n),
            "e": _base64url(numbers.e),
        }


def signing_key(root: RootKey) -> SigningKey:
    """The key of a root key, parsed once."""
    return _parsed(root.key_id, root.signing_key_pem)


@functools.lru_cache(maxsize=16)
def _parsed(key_id: str, pem: bytes) -> SigningKey:
    return SigningKey.load(key_id, pem)


def sign_identity(
    key: RootKey,
    *,
    region: str,
    alloc: Allocation,
    task: str,
    identity: WorkloadIdentity,
    now_ns: int,
    token_id: str,
    issuer: str = "",
    extra: Mapping[str, Any] | None = None,
) -> SignedIdentity:
    """The token of one identity of a task of an allocation.

    token_id: a new UUID (`jti`). A ttl of 0 never expires. An identity without audience gets Nomad's own. One
    audience is written as a string, several as a list. extra: claims that never replace ours.
    """
    name = identity.name or DEFAULT_IDENTITY
    audience = identity.audience or [DEFAULT_AUDIENCE]
    now = now_ns // _NANOSECONDS
    subject = (region, alloc.namespace, alloc.job_id, alloc.task_group, task, name)
    claims: dict[str, Any] = {
        **(extra or {}),
        "aud": audience[0] if len(audience) == 1 else audience,
        "iat": now,
        "jti": token_id,
        "nbf": now,
        "nomad_allocation_id": alloc.id,
        "nomad_job_id": alloc.job_id,
        "nomad_namespace": alloc.namespace,
        "sub": ":".join(subject),
    }
    if identity.service_name:
        claims["nomad_service"] = identity.service_name
    else:
        claims["nomad_task"] = task
    if issuer:
        claims["iss"] = issuer
    expires = 0
    if identity.ttl > 0:
        # Never in the second it was made, however short the ttl.
        claims["exp"] = expires = now + max(1, identity.ttl // _NANOSECONDS)
    token = signing_key(key).sign(claims)
    return SignedIdentity(name=name, jwt=token, expires_ns=expires * _NANOSECONDS)


def verify_identity(
    token: str, keys: Iterable[RootKey], *, now_ns: int, audience: str = DEFAULT_AUDIENCE
) -> dict[str, Any]:
    """Return the claims of a token that one of `keys` signed and that holds now, for `audience`.

    Raises PermissionDeniedError for any other; the message does not say what was wrong with it.
    """
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = next(known for known in keys if known.key_id == key_id)
        claims: dict[str, Any] = jwt.decode(
            token,
            signing_key(key).public(),
            algorithms=[ALGORITHM],
            audience=audience,
            # Time is an input here; PyJWT would read the system's clock.
            options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
        now = now_ns // _NANOSECONDS
        if now > int(claims.get("exp", now)) + LEEWAY_S or now < int(claims["nbf"]) - LEEWAY_S:
            raise PermissionDeniedError()
    except (jwt.PyJWTError, StopIteration, ValueError, TypeError, KeyError) as cause:
        raise PermissionDeniedError() from cause
    return claims


def jwks(keys: Iterable[RootKey]) -> dict[str, list[dict[str, str]]]:
    """The JSON Web Key Set of all keys that may have signed a token still in use."""
    return {"keys": [signing_key(key).public_jwk() for key in keys]}


def _base64url(number: int) -> str:
    encoded = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(encoded).rstrip(b"=").decode()
