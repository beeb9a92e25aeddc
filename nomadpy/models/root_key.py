"""The root key: what signs workload identities and task certificates and encrypts variables, replicated inside the state.

It never leaves the servers: no HTTP answer and no log line carries it, and its repr hides the secrets.
"""

from __future__ import annotations

from typing import Literal

import msgspec

KeyState = Literal["active", "inactive", "rekeying", "prepublished", "deprecated"]
"""rekeying: inactive, and every variable it encrypted is about to be encrypted anew. prepublished: known to all who
check signatures, and active from its publish_time on."""


class WrappedSecrets(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The secrets of a root key, encrypted with a key-encryption key (pki/keyring.py).

    provider: who has that key. kek: the key itself, when the provider keeps it in the state; b"" when it does not.
    kek_id: a digest that tells which key it was. nonce, data: of the encryption.
    """

    provider: str
    kek_id: str
    nonce: bytes
    data: bytes
    kek: bytes = b""

    def __repr__(self) -> str:
        """What may be logged."""
        return f"WrappedSecrets(provider={self.provider!r}, kek_id={self.kek_id!r})"


class RootKey(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of the cluster's keys; exactly one is active.

    algorithm: what Nomad's API calls the key's algorithm (it names the cipher of variables).
    create_time, publish_time: nanoseconds since 1970 UTC; publish_time 0 means published at once.
    retired_time: when it stopped being active, 0 before.
    signing_key_pem: PKCS#8 of the RSA key of identities. ca_certificate_pem, ca_key_pem: the authority of
    task certificates. data_key: 32 bytes that encrypt variables. `pki.keys.create_root_key` makes one.
    wrapped: as the state has it, the three secrets are in here and their own fields are empty (pki/keyring.py).
    """

    key_id: str
    algorithm: str = "aes256-gcm"
    state: KeyState = "active"
    create_time: int = 0
    create_index: int = 0
    modify_index: int = 0
    publish_time: int = 0
    signing_key_pem: bytes = b""
    ca_certificate_pem: bytes = b""
    ca_key_pem: bytes = b""
    data_key: bytes = b""
    wrapped: WrappedSecrets | None = None
    retired_time: int = 0

    def __repr__(self) -> str:
        """What may be logged: no key material."""
        return (
            f"RootKey(key_id={self.key_id!r}, state={self.state!r}, create_time={self.create_time},"
            f" modify_index={self.modify_index}, secrets hidden)"
        )
