"""The root key: what signs workload identities and task certificates, replicated inside the state.

It never leaves the servers: no HTTP answer and no log line carries it, and its repr hides the secrets.
"""

from __future__ import annotations

from typing import Literal

import msgspec

KeyState = Literal["active", "inactive", "deprecated"]


class RootKey(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of the cluster's signing keys; exactly one is active.

    algorithm: what Nomad's API calls the key's algorithm (it names the cipher of variables).
    create_time, publish_time: nanoseconds since 1970 UTC; publish_time 0 means published at once.
    signing_key_pem: PKCS#8 of the RSA key of identities. ca_certificate_pem, ca_key_pem: the authority of
    task certificates. `pki.keys.create_root_key` makes one.
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

    def __repr__(self) -> str:
        """What may be logged: no key material."""
        return (
            f"RootKey(key_id={self.key_id!r}, state={self.state!r}, create_time={self.create_time},"
            f" modify_index={self.modify_index}, secrets hidden)"
        )
