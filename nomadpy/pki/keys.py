"""Make a root key: a signing key for identities and an authority for task certificates, under one id."""

from __future__ import annotations

import msgspec

from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.models.root_key import RootKey
from nomadpy.pki.identity import SigningKey
from nomadpy.pki.workload import create_workload_ca, trust_domain


def create_root_key(region: str, entropy: Entropy, clock: Clock) -> RootKey:
    """A new active key for a region. Takes some hundred milliseconds of CPU: call it in a thread.

    Its key material comes from the operating system even when `entropy` is seeded; only the id follows the seed.
    """
    now_ns = clock.now_ns()
    key_id = entropy.uuid()
    certificate, key = create_workload_ca(trust_domain(region), now_ns=now_ns)
    return RootKey(
        key_id=key_id,
        create_time=now_ns,
        publish_time=0,
        signing_key_pem=SigningKey.create(key_id).pem(),
        ca_certificate_pem=certificate,
        ca_key_pem=key,
    )


def with_new_id(key: RootKey, entropy: Entropy) -> RootKey:
    """The same material under another id; for simulations, where making keys would cost more than the run."""
    return msgspec.structs.replace(key, key_id=entropy.uuid())
