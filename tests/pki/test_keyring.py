"""The keyring: what goes in comes out, under the right key, name and path alone, and secrets never show."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import ConfigError, CorruptionError
from nomadpy.models.root_key import RootKey, WrappedSecrets
from nomadpy.models.variable import Sealed
from nomadpy.pki.keyring import Keyring, kek_id, load_key_file

ENTROPY = SeededEntropy("keyring")
KEK = bytes(range(32))
ROOT = RootKey(
    key_id="k1",
    data_key=b"d" * 32,
    signing_key_pem=b"the signing key",
    ca_certificate_pem=b"public",
    ca_key_pem=b"the authority's key",
)
SECRETS = (b"d" * 32, b"the signing key", b"the authority's key")

texts = st.text(st.characters(codec="utf-8"), max_size=40)
items = st.dictionaries(texts, texts, max_size=8)
names = st.text("abc/-_", min_size=1, max_size=12)


@given(items=items, namespace=names, path=names)
def test_items_survive_encryption(items: dict[str, str], namespace: str, path: str) -> None:
    ring = Keyring()
    sealed = ring.encrypt(ROOT, namespace, path, items, ENTROPY)
    assert len(sealed.nonce) == 12
    assert Keyring().decrypt(ROOT, namespace, path, sealed) == items


@given(
    one=st.tuples(names, names),
    other=st.tuples(names, names),
    items=items,
)
def test_ciphertext_moved_to_another_place_is_refused(
    one: tuple[str, str], other: tuple[str, str], items: dict[str, str]
) -> None:
    ring = Keyring()
    sealed = ring.encrypt(ROOT, *one, items, ENTROPY)
    if one == other:
        assert ring.decrypt(ROOT, *other, sealed) == items
    else:
        with pytest.raises(CorruptionError, match="changed, or moved"):
            ring.decrypt(ROOT, *other, sealed)


@given(items=items, place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_single_changed_bit_is_noticed(items: dict[str, str], place: int, bit: int) -> None:
    ring = Keyring()
    sealed = ring.encrypt(ROOT, "default", "p", items, ENTROPY)
    whole = bytearray(sealed.nonce + sealed.data)
    whole[place % len(whole)] ^= 1 << bit
    changed = Sealed("k1", bytes(whole[:12]), bytes(whole[12:]))
    with pytest.raises(CorruptionError):
        ring.decrypt(ROOT, "default", "p", changed)


@pytest.mark.parametrize("length", [0, 1, 12, 15])
def test_cut_ciphertext_is_refused(length: int) -> None:
    ring = Keyring()
    sealed = ring.encrypt(ROOT, "default", "p", {"a": "b"}, ENTROPY)
    with pytest.raises(CorruptionError):
        ring.decrypt(ROOT, "default", "p", Sealed("k1", sealed.nonce, sealed.data[:length]))
    with pytest.raises(CorruptionError):
        ring.decrypt(ROOT, "default", "p", Sealed("k1", sealed.nonce[:length], b""))


def test_the_names_of_key_namespace_and_path_are_bound_each_on_its_own() -> None:
    ring = Keyring()
    sealed = ring.encrypt(ROOT, "ab", "c", {"a": "b"}, ENTROPY)
    for namespace, path in (("a", "bc"), ("abc", ""), ("", "abc"), ("c", "ab")):
        with pytest.raises(CorruptionError):
            ring.decrypt(ROOT, namespace, path, sealed)
    renamed = msgspec.structs.replace(ROOT, key_id="k2")
    with pytest.raises(CorruptionError):
        ring.decrypt(renamed, "ab", "c", sealed)
    with pytest.raises(CorruptionError):
        ring.decrypt(renamed, "ab", "c", Sealed("k2", sealed.nonce, sealed.data))


def test_the_same_items_never_look_the_same() -> None:
    ring = Keyring()
    seen = {ring.encrypt(ROOT, "default", "p", {"a": "b"}, ENTROPY).nonce for _ in range(1000)}
    assert len(seen) == 1000


@pytest.mark.parametrize("ring", [Keyring(), Keyring(KEK)], ids=["aead", "file"])
def test_a_wrapped_key_opens_to_what_it_was_and_shows_nothing(ring: Keyring) -> None:
    wrapped = ring.wrap(ROOT, ENTROPY)
    assert ring.open(wrapped) == ROOT
    assert ring.open(wrapped) == ROOT  # remembered
    assert ring.is_current(wrapped)
    stored = msgspec.msgpack.encode(wrapped)
    assert not any(secret in stored for secret in SECRETS)
    assert b"public" in stored
    shown = repr(wrapped) + repr(ROOT) + repr(ring) + repr(wrapped.wrapped)
    assert not any(secret.decode() in shown for secret in SECRETS)
    assert msgspec.msgpack.decode(stored, type=RootKey) == wrapped
    assert ring.open(msgspec.structs.replace(wrapped, state="inactive")).state == "inactive"


def test_a_key_that_was_stored_unwrapped_opens_as_it_is_and_is_not_current() -> None:
    assert Keyring().open(ROOT) is ROOT
    assert not Keyring().is_current(ROOT)
    old = msgspec.structs.replace(ROOT, data_key=b"")
    opened = Keyring().open(Keyring().wrap(old, ENTROPY))
    assert len(opened.data_key) == 32
    with pytest.raises(CorruptionError, match="has no data key"):
        Keyring().encrypt(old, "default", "p", {}, ENTROPY)


def test_the_key_of_a_file_never_enters_the_state() -> None:
    wrapped = Keyring(KEK).wrap(ROOT, ENTROPY)
    assert wrapped.wrapped is not None
    assert wrapped.wrapped.kek == b""
    assert KEK not in msgspec.msgpack.encode(wrapped)
    with pytest.raises(ConfigError, match="every server needs the same file"):
        Keyring().open(wrapped)
    with pytest.raises(ConfigError, match=kek_id(b"x" * 32)):
        Keyring(b"x" * 32).open(wrapped)


def test_the_way_to_a_file_and_back() -> None:
    plain = Keyring().wrap(ROOT, ENTROPY)
    to_file = Keyring(KEK)
    assert not to_file.is_current(plain)
    filed = to_file.wrap(to_file.open(plain), ENTROPY)
    assert to_file.is_current(filed)
    # The block stays, inactive, until every key is wrapped without it.
    back = Keyring(KEK, wrap_with_file=False)
    assert not back.is_current(filed)
    again = back.wrap(back.open(filed), ENTROPY)
    assert back.is_current(again)
    assert Keyring().open(again) == ROOT
    # Another file is another provider.
    assert not Keyring(b"x" * 32).is_current(filed)


def test_a_tampered_wrapping_and_an_unknown_provider_are_refused() -> None:
    wrapped = Keyring().wrap(ROOT, ENTROPY)
    assert wrapped.wrapped is not None
    stolen = msgspec.structs.replace(wrapped, key_id="k2")
    with pytest.raises(CorruptionError, match="root key k2 does not open"):
        Keyring().open(stolen)
    changed = msgspec.structs.replace(wrapped.wrapped, data=wrapped.wrapped.data[:-1] + b"\x00")
    with pytest.raises(CorruptionError):
        Keyring().open(msgspec.structs.replace(wrapped, wrapped=changed))
    newer = WrappedSecrets(provider="transit", kek_id="", nonce=b"n" * 12, data=b"")
    with pytest.raises(ConfigError, match="'transit'"):
        Keyring().open(msgspec.structs.replace(wrapped, wrapped=newer))
    with pytest.raises(ConfigError, match="32 bytes"):
        Keyring(b"short")


def test_many_keys_are_remembered_up_to_a_bound() -> None:
    ring = Keyring()
    for number in range(200):
        key = ring.wrap(RootKey(key_id=f"k{number}", data_key=number.to_bytes(32, "big")), ENTROPY)
        assert ring.open(key).data_key == number.to_bytes(32, "big")
        ring.encrypt(ring.open(key), "default", "p", {}, ENTROPY)
    assert len(ring._opened) <= 64
    assert len(ring._ciphers) <= 64


# -- the file -------------------------------------------------------------------------------------------


def test_a_key_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "kek"
    file.write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    file.chmod(0o600)
    assert load_key_file(file) == KEK
    file.chmod(0o400)
    assert load_key_file(file) == KEK


@pytest.mark.parametrize(
    "content",
    ["", "AAEC", "no base64!", "A" * 9000],
)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kek"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold 32 bytes"):
        load_key_file(file)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o777])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "kek"
    file.write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 0600"):
        load_key_file(file)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="if the cluster has one, copy it here"):
        load_key_file(tmp_path / "none")
    os.mkdir(tmp_path / "folder")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key_file(tmp_path / "folder")
