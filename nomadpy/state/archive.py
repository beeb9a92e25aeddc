"""The file that an operator saves and restores: a gzipped tar of `meta.json`, `state.bin` and `SHA256SUMS`.

state.bin is the stream of persist.py; meta.json says at which index and term it was taken, by whom and when; SHA256SUMS has a
line for each of both. A file is good only when both digests hold, and the stream then decodes to its end.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from typing import IO

import msgspec

from nomadpy.errors import CorruptionError
from nomadpy.models.root_key import RootKey
from nomadpy.state import persist
from nomadpy.state.schema import ROOT_KEYS
from nomadpy.state.store import Snapshot

VERSION = 1
META, STATE, SUMS = "meta.json", "state.bin", "SHA256SUMS"
_READ = 256 << 10
_MAX_META = 16 << 20


class Server(msgspec.Struct, frozen=True, rename="pascal"):
    """A server of the configuration at that index; it is told, and never restored."""

    id: str = msgspec.field(name="ID")
    address: str
    suffrage: str = "Voter"


class Meta(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a snapshot is. created: RFC 3339; by: the server that took it."""

    id: str = msgspec.field(name="ID")
    index: int
    term: int
    version: int = VERSION
    created: str = ""
    by: str = ""
    servers: list[Server] = []


class Contents(msgspec.Struct, frozen=True):
    """A file that was found good. state: its stream, at its beginning; the caller closes it.

    log_format: of the log that it was taken from. redacted: its root keys hold no key material.
    """

    meta: Meta
    size: int
    sha256: str
    counts: dict[str, int]
    state: IO[bytes]
    log_format: int = 1
    redacted: bool = False


def write(target: IO[bytes], meta: Meta, chunks: Iterable[bytes]) -> None:
    """Write an archive; blocks for as long as the state is large."""
    with tempfile.TemporaryFile() as state:
        digest = hashlib.sha256()
        for chunk in chunks:
            state.write(chunk)
            digest.update(chunk)
        size = state.tell()
        state.seek(0)
        told = msgspec.json.encode(meta)
        sums = f"{hashlib.sha256(told).hexdigest()}  {META}\n{digest.hexdigest()}  {STATE}\n"
        with (
            gzip.GzipFile(fileobj=target, mode="wb", compresslevel=3, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|") as tar,
        ):
            _add(tar, META, len(told), io.BytesIO(told))
            _add(tar, STATE, size, state)
            _add(tar, SUMS, len(sums), io.BytesIO(sums.encode()))


def read(source: IO[bytes]) -> Contents:
    """Check the whole of an archive and decode its state once. Raises CorruptionError; blocks meanwhile."""
    state = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's from here on
    try:
        return _read(source, state)
    except BaseException:
        state.close()
        raise


def _read(source: IO[bytes], state: IO[bytes]) -> Contents:
    found: dict[str, str] = {}
    meta_data = sums = b""
    size = 0
    try:
        with tarfile.open(fileobj=source, mode="r|gz") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None or member.name not in (META, STATE, SUMS) or member.name in found:
                    raise CorruptionError(f"not a snapshot: it holds {member.name!r}")
                digest = hashlib.sha256()
                while data := file.read(_READ):
                    digest.update(data)
                    if member.name == STATE:
                        state.write(data)
                        size += len(data)
                    elif member.size > _MAX_META:
                        raise CorruptionError(f"not a snapshot: {member.name} is too long")
                    elif member.name == META:
                        meta_data += data
                    else:
                        sums += data
                found[member.name] = digest.hexdigest()
            # Past the tar's end: the gzip stream's own checksum is read, and whatever else there is.
            while source.read(_READ):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise CorruptionError(f"not a snapshot, or a damaged one: {error}") from error
    lines = [line.partition("  ") for line in sums.decode("latin-1").splitlines()]
    wanted = {name: digest for digest, _, name in lines}
    for name in (META, STATE):
        if name not in found or found[name] != wanted.get(name):
            raise CorruptionError(f"the snapshot is damaged: the digest of {name} does not hold")
    try:
        meta = msgspec.json.decode(meta_data, type=Meta)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"the snapshot's {META} cannot be read: {error}") from error
    if meta.version > VERSION:
        raise CorruptionError(
            f"the snapshot is of version {meta.version}, this program knows {VERSION}; use the newer one"
        )
    state.seek(0)
    reader = persist.Reader()
    try:
        while data := state.read(_READ):
            reader.feed(data)
        restored = reader.finish()
    except persist.UNREADABLE as error:
        raise CorruptionError(f"snapshot cannot be decoded: {error}") from error
    if restored.snapshot.index != meta.index:
        raise CorruptionError(
            f"the snapshot says index {meta.index} and holds {restored.snapshot.index}"
        )
    state.seek(0)
    snapshot = restored.snapshot
    keys = list(snapshot.root_keys())
    return Contents(
        meta=meta,
        size=size,
        sha256=found[STATE],
        counts=reader.counts(),
        state=state,
        log_format=snapshot.log_format(),
        redacted=bool(keys) and not any(_has_material(key) for key in keys),
    )


def state_of(contents: Contents) -> Snapshot:
    """Decode the state of a file that was found good; closes it."""
    with contents.state as state:
        return persist.read(iter(lambda: state.read(_READ), b"")).snapshot


def without_keys(snapshot: Snapshot) -> Snapshot:
    """The same state with root keys that name themselves and hold nothing secret."""
    writer = snapshot.tables[ROOT_KEYS.name].writer()
    for key in snapshot.root_keys():
        bare = msgspec.structs.replace(
            key, signing_key_pem=b"", ca_key_pem=b"", data_key=b"", wrapped=None
        )
        writer.put(key.key_id, bare)
    tables = {**snapshot.tables, ROOT_KEYS.name: writer.commit()}
    return Snapshot(snapshot.index, tables, snapshot.table_indexes)


def _has_material(key: RootKey) -> bool:
    return bool(key.signing_key_pem or key.ca_key_pem or key.data_key or key.wrapped)


def _add(tar: tarfile.TarFile, name: str, size: int, data: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    tar.addfile(member, data)
