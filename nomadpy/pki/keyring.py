"""The keyring: root keys wrapped by a key-encryption key, and variables encrypted by the data key of a root key.

AES-256-GCM throughout. Wrapping: the secrets of a root key are encrypted before they are proposed, so the log, the
state and snapshots hold ciphertext. The provider `aead` keeps its key-encryption key beside them in the state, as
Nomad does by default: that guards against nothing but accidents. The provider `file` keeps it in a file that every
server has and that never enters the log.

Variables: the nonce comes from the proposer's entropy and goes into the command. Namespace, path and the id of the
root key are authenticated, so ciphertext that is moved to another path does not decrypt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nomadpy.entropy import Entropy
from nomadpy.errors import ConfigError, CorruptionError
from nomadpy.models.root_key import RootKey, WrappedSecrets
from nomadpy.models.variable import Items, Sealed

AEAD = "aead"
FILE = "file"
KEY_BYTES = 32
NONCE_BYTES = 12
CACHED_KEYS = 64
_VARIABLE = b"nomadpy variable 1"
_ROOT_KEY = b"nomadpy root key 1"
_KEK_ID = b"nomadpy key-encryption key"


class _Secrets(msgspec.Struct, frozen=True, array_like=True):
    """What is wrapped of a root key."""

    data_key: bytes
    signing_key_pem: bytes
    ca_key_pem: bytes


class Keyring:
    """Wraps and opens root keys, encrypts and decrypts variables. It remembers opened keys."""

    def __init__(self, file_key: bytes | None = None, *, wrap_with_file: bool = True) -> None:
        """file_key: the key of the provider `file`, 32 bytes, None without it.

        wrap_with_file: new keys are wrapped with it; False only opens what it wrapped (on the way back to `aead`).
        """
        if file_key is not None and len(file_key) != KEY_BYTES:
            raise ConfigError(f"a key-encryption key has {KEY_BYTES} bytes, not {len(file_key)}")
        self._file_key = file_key
        self.provider = FILE if file_key is not None and wrap_with_file else AEAD
        self._opened: dict[tuple[str, bytes], RootKey] = {}
        self._ciphers: dict[bytes, AESGCM] = {}

    def __repr__(self) -> str:
        return f"Keyring(provider={self.provider!r})"

    # -- root keys --------------------------------------------------------------------------------

    def is_current(self, key: RootKey) -> bool:
        """Whether the key is wrapped as new ones are."""
        if key.wrapped is None or key.wrapped.provider != self.provider:
            return False
        return self._file_key is None or key.wrapped.kek_id in ("", kek_id(self._file_key))

    def wrap(self, key: RootKey, entropy: Entropy) -> RootKey:
        """The key as the state has it. One without a data key gets one."""
        kek = self._file_key if self.provider == FILE else entropy.token_bytes(KEY_BYTES)
        assert kek is not None
        secrets = _Secrets(
            key.data_key or entropy.token_bytes(KEY_BYTES), key.signing_key_pem, key.ca_key_pem
        )
        nonce = entropy.token_bytes(NONCE_BYTES)
        data = AESGCM(kek).encrypt(
            nonce, msgspec.msgpack.encode(secrets), _bound(_ROOT_KEY, key.key_id)
        )
        wrapped = WrappedSecrets(
            provider=self.provider,
            kek_id=kek_id(kek) if self.provider == FILE else "",
            kek=b"" if self.provider == FILE else kek,
            nonce=nonce,
            data=data,
        )
        return msgspec.structs.replace(
            key, data_key=b"", signing_key_pem=b"", ca_key_pem=b"", wrapped=wrapped
        )

    def open(self, key: RootKey) -> RootKey:
        """The key with its secrets; one that is not wrapped as it is.

        Raises ConfigError when this server lacks the key-encryption key, CorruptionError when the key does not open.
        """
        wrapped = key.wrapped
        if wrapped is None:
            return key
        known = self._opened.get((key.key_id, wrapped.nonce))
        if known is None:
            known = self._open(key, wrapped)
            while len(self._opened) >= CACHED_KEYS:
                del self._opened[next(iter(self._opened))]
            self._opened[(key.key_id, wrapped.nonce)] = known
        # State and indexes are those of the row that was given.
        return msgspec.structs.replace(
            key,
            data_key=known.data_key,
            signing_key_pem=known.signing_key_pem,
            ca_key_pem=known.ca_key_pem,
            wrapped=None,
        )

    def _open(self, key: RootKey, wrapped: WrappedSecrets) -> RootKey:
        kek = wrapped.kek or self._kek(key, wrapped)
        try:
            data = AESGCM(kek).decrypt(wrapped.nonce, wrapped.data, _bound(_ROOT_KEY, key.key_id))
            secrets = msgspec.msgpack.decode(data, type=_Secrets)
        except (InvalidTag, ValueError, msgspec.DecodeError) as cause:
            raise CorruptionError(f"root key {key.key_id} does not open: it was changed") from cause
        return msgspec.structs.replace(
            key,
            data_key=secrets.data_key,
            signing_key_pem=secrets.signing_key_pem,
            ca_key_pem=secrets.ca_key_pem,
            wrapped=None,
        )

    def _kek(self, key: RootKey, wrapped: WrappedSecrets) -> bytes:
        if wrapped.provider != FILE:
            raise ConfigError(
                f"root key {key.key_id} is wrapped by the key provider {wrapped.provider!r}, which this server "
                "does not have"
            )
        if self._file_key is None:
            raise ConfigError(
                f'root key {key.key_id} is wrapped by a key in a file, and this server has no keyring "file" block: '
                "every server needs the same file"
            )
        if kek_id(self._file_key) != wrapped.kek_id:
            raise ConfigError(
                f"root key {key.key_id} is wrapped by the key {wrapped.kek_id}, and this server's file has the key "
                f"{kek_id(self._file_key)}: every server needs the same file"
            )
        return self._file_key

    # -- variables --------------------------------------------------------------------------------

    def encrypt(
        self, key: RootKey, namespace: str, path: str, items: Items, entropy: Entropy
    ) -> Sealed:
        """Encrypt the items of a variable with the data key of an opened root key."""
        nonce = entropy.token_bytes(NONCE_BYTES)
        data = self._cipher(key).encrypt(
            nonce, msgspec.msgpack.encode(items), _bound(_VARIABLE, key.key_id, namespace, path)
        )
        return Sealed(key.key_id, nonce, data)

    def decrypt(self, key: RootKey, namespace: str, path: str, sealed: Sealed) -> Items:
        """The items of a variable. Raises CorruptionError when anything about it was changed."""
        if key.key_id != sealed.key_id:
            raise CorruptionError(f"the variable at {path} was not encrypted by {key.key_id}")
        try:
            data = self._cipher(key).decrypt(
                sealed.nonce, sealed.data, _bound(_VARIABLE, key.key_id, namespace, path)
            )
            items: Items = msgspec.msgpack.decode(data, type=Items)
        except (InvalidTag, ValueError, msgspec.DecodeError) as cause:
            raise CorruptionError(
                f"the variable at {path} does not decrypt: it was changed, or moved from another path"
            ) from cause
        return items

    def _cipher(self, key: RootKey) -> AESGCM:
        cipher = self._ciphers.get(key.data_key)
        if cipher is None:
            if len(key.data_key) != KEY_BYTES:
                raise CorruptionError(f"root key {key.key_id} has no data key")
            while len(self._ciphers) >= CACHED_KEYS:
                del self._ciphers[next(iter(self._ciphers))]
            cipher = self._ciphers[key.data_key] = AESGCM(key.data_key)
        return cipher


def kek_id(kek: bytes) -> str:
    """Sixteen hexadecimal digits that tell a key-encryption key from others and nothing about it."""
    return hashlib.blake2b(_KEK_ID, key=kek, digest_size=8).hexdigest()


def load_key_file(path: Path) -> bytes:
    """Read a key-encryption key: 32 bytes in base64, in a file that only its owner can read.

    Raises ConfigError that says what is wrong and how such a file is made.
    """
    how = (
        f"make one with: (umask 077; openssl rand -base64 32 > {path}), and copy it to every server"
    )
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4096)
    except FileNotFoundError as cause:
        raise ConfigError(
            f"the key-encryption key {path} does not exist; if the cluster has one, copy it here, else {how}"
        ) from cause
    except OSError as cause:
        raise ConfigError(
            f"the key-encryption key {path} cannot be read: {cause.strerror}"
        ) from cause
    if mode & 0o077:
        raise ConfigError(
            f"the key-encryption key {path} is open to others (mode {mode:04o}): chmod 0600 {path}"
        )
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path} does not hold {KEY_BYTES} bytes in base64; {how}")
    return key


def _bound(*parts: str | bytes) -> bytes:
    """What a ciphertext is bound to; the encoding keeps ("a", "bc") and ("ab", "c") apart."""
    return msgspec.msgpack.encode(parts)
