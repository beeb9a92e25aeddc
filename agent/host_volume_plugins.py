"""What makes and removes dynamic host volumes: `mkdir`, which is built in, and executables that speak Nomad's plugin protocol.

An executable of the plugin directory is called with one argument, `fingerprint`, `create` or `delete`, and variables DHV_*; it
answers with JSON on its standard output: {"version"}, {"path", "bytes"}, or {"error"}. It has a time limit, its answer a
size limit, and when either is over, its whole process group is killed. A process that it leaves behind must not hold
its output open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from agent.local_state import VolumeRecord
from nomadpy import logs
from nomadpy.errors import DefiniteError, InvalidRequestError

log = logs.get(__name__)

MKDIR = "mkdir"
MKDIR_VERSION = "0.0.1"
DEFAULT_MODE = 0o700
FINGERPRINT_TIMEOUT_S = 5.0
WORK_TIMEOUT_S = 60.0
ANSWER_BYTES = 64 * 1024

_REMOVED = ".removed"
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v?\d+(\.\d+)*[-+.0-9A-Za-z~]*")
_MOST_ID = (1 << 32) - 2
_SHOWN_BYTES = 500
_LAST_WAIT_S = 5.0

T = TypeVar("T", bound=msgspec.Struct)


class VolumePluginError(DefiniteError):
    """The plugin did not do it."""

    code = "volume-plugin"


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that is there. path: absolute. capacity_bytes: 0 when nothing bounds it."""

    path: str
    capacity_bytes: int = 0


class VolumePlugin(Protocol):
    """Makes and removes volumes. Both may be asked for again with the same values, to the same effect."""

    @property
    def version(self) -> str:
        """What the node says of it."""
        ...

    async def create(self, volume: VolumeRecord, node_id: str, *, anew: bool) -> Made:
        """Make the volume, or see that it is there. anew: False when only an agent's restart asks.

        Raises VolumePluginError, InvalidRequestError for parameters it cannot use."""
        ...

    async def delete(self, volume: VolumeRecord, node_id: str) -> None:
        """Remove the volume with all that is in it; one that is not there is no error. Raises VolumePluginError."""
        ...


class MkdirParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What the directory of a `mkdir` volume is to be. mode: permission bits. uid, gid: None for the agent's own."""

    mode: int = DEFAULT_MODE
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> MkdirParameters:
        """From a volume's parameters, all text; mode is octal. Raises InvalidRequestError."""
        unknown = sorted(set(parameters) - {"mode", "uid", "gid"})
        if unknown:
            raise InvalidRequestError(f"mkdir takes mode, uid and gid, not {unknown[0]!r}")
        mode = parameters.get("mode", "")
        if mode and not re.fullmatch(r"(0o?)?[0-7]{1,4}", mode):
            raise InvalidRequestError(f"mode {mode!r} is not an octal number up to 7777")
        return cls(
            mode=int(mode.removeprefix("0o"), 8) if mode else DEFAULT_MODE,
            uid=_owner(parameters, "uid"),
            gid=_owner(parameters, "gid"),
        )


class MkdirPlugin:
    """A directory for each volume: `<volumes_dir>/<volume id>`, with the mode and owner that the parameters name."""

    version = MKDIR_VERSION

    def __init__(self, volumes_dir: Path) -> None:
        self._volumes_dir = volumes_dir

    async def create(self, volume: VolumeRecord, node_id: str, *, anew: bool) -> Made:  # noqa: ARG002
        """See VolumePlugin. After a restart a directory that is gone is not made again: its data would be missing."""
        wanted = MkdirParameters.parse(volume.parameters)
        path = self._volumes_dir / volume.id
        try:
            await asyncio.to_thread(_make if anew else _find, path, wanted)
        except OSError as cause:
            raise VolumePluginError(f"mkdir: {path}: {cause.strerror}") from cause
        return Made(path=str(path))

    async def delete(self, volume: VolumeRecord, node_id: str) -> None:  # noqa: ARG002
        """See VolumePlugin."""
        try:
            await asyncio.to_thread(_remove, self._volumes_dir, volume.id)
        except OSError as cause:
            raise VolumePluginError(f"mkdir: cannot remove: {cause}") from cause


class ExternalPlugin:
    """An executable. Its operations for one volume never overlap; that is for the caller to see to."""

    def __init__(self, path: Path, volumes_dir: Path, node_pool: str, version: str) -> None:
        self._path = path
        self._volumes_dir = volumes_dir
        self._node_pool = node_pool
        self.version = version

    async def create(self, volume: VolumeRecord, node_id: str, *, anew: bool) -> Made:  # noqa: ARG002
        """See VolumePlugin. Called alike after a restart: a mount may have to be made again."""
        variables = {
            **self._variables(volume, node_id),
            "DHV_CAPACITY_MIN_BYTES": str(volume.capacity_min_bytes),
            "DHV_CAPACITY_MAX_BYTES": str(volume.capacity_max_bytes),
        }
        raw = await execute(self._path, "create", variables, WORK_TIMEOUT_S)
        answer = _decode(self._path.name, raw, _Created)
        if not os.path.isabs(answer.path) or not await asyncio.to_thread(
            os.path.isdir, answer.path
        ):
            raise VolumePluginError(
                f"plugin {self._path.name} answered with a path that is no directory: {answer.path!r}"
            )
        if answer.bytes < 0:
            raise VolumePluginError(f"plugin {self._path.name} answered with {answer.bytes} bytes")
        return Made(path=posixpath.normpath(answer.path), capacity_bytes=answer.bytes)

    async def delete(self, volume: VolumeRecord, node_id: str) -> None:
        """See VolumePlugin."""
        variables = {**self._variables(volume, node_id), "DHV_CREATED_PATH": volume.path}
        await execute(self._path, "delete", variables, WORK_TIMEOUT_S)

    def _variables(self, volume: VolumeRecord, node_id: str) -> dict[str, str]:
        return {
            "DHV_VOLUMES_DIR": str(self._volumes_dir),
            "DHV_PLUGIN_DIR": str(self._path.parent),
            "DHV_NAMESPACE": volume.namespace,
            "DHV_VOLUME_NAME": volume.name,
            "DHV_VOLUME_ID": volume.id,
            "DHV_NODE_ID": node_id,
            "DHV_NODE_POOL": self._node_pool,
            "DHV_PARAMETERS": msgspec.json.encode(volume.parameters).decode(),
        }


class _Versioned(msgspec.Struct):
    version: str


class _Created(msgspec.Struct):
    path: str
    bytes: int = 0


class _Failed(msgspec.Struct):
    error: str = ""


async def find_plugins(
    volumes_dir: Path, plugin_dir: Path, node_pool: str
) -> dict[str, VolumePlugin]:
    """The plugins of this node by their ids: `mkdir`, and every executable that answers to `fingerprint`."""
    found: dict[str, VolumePlugin] = {MKDIR: MkdirPlugin(volumes_dir)}
    paths = await asyncio.to_thread(_executables, plugin_dir)
    versions = await asyncio.gather(*(_fingerprint(path) for path in paths))
    for path, version in zip(paths, versions, strict=True):
        if version:
            found[path.name] = ExternalPlugin(path, volumes_dir, node_pool, version)
    return found


async def execute(
    path: Path, operation: str, variables: Mapping[str, str], timeout_s: float
) -> bytes:
    """Run a plugin; returns its standard output. Raises VolumePluginError with what it said when it failed."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            str(path),
            operation,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**kept, **variables, "DHV_OPERATION": operation},
            start_new_session=True,
        )
    except (OSError, ValueError) as cause:
        raise VolumePluginError(f"plugin {path.name} cannot be run: {cause}") from cause
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            out = group.create_task(_read(process, process.stdout), name=f"stdout of {path.name}")
            err = group.create_task(_read(process, process.stderr), name=f"stderr of {path.name}")
            code = await process.wait()
    except TimeoutError as cause:
        await _kill(process)
        raise VolumePluginError(
            f"plugin {path.name}: {operation} was not done within {timeout_s:g} seconds"
        ) from cause
    except asyncio.CancelledError:
        await _kill(process)
        raise
    stdout, stderr = out.result(), err.result()
    log.debug(
        "volume plugin ran",
        plugin=path.name,
        operation=operation,
        code=code,
        stdout=_shown(stdout),
        stderr=_shown(stderr),
    )
    if len(stdout) > ANSWER_BYTES or len(stderr) > ANSWER_BYTES:
        raise VolumePluginError(
            f"plugin {path.name}: {operation} wrote more than {ANSWER_BYTES} bytes"
        )
    if code != 0:
        said = _error_in(stdout) or _shown(stderr) or _shown(stdout)
        raise VolumePluginError(f"plugin {path.name}: {operation} failed with code {code}: {said}")
    return stdout


async def _read(process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None) -> bytes:
    """All that a plugin writes; one that writes more than anybody reads is killed."""
    assert stream is not None
    data = b""
    while chunk := await stream.read(ANSWER_BYTES):
        data += chunk
        if len(data) > ANSWER_BYTES:
            _signal(process)
            break
    return data


async def _kill(process: asyncio.subprocess.Process) -> None:
    _signal(process)
    # Someone who left its group may hold its output; nobody waits for that.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WAIT_S):
            await process.wait()


def _signal(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _fingerprint(path: Path) -> str:
    """The version that a plugin tells; "" for one that does not work."""
    try:
        raw = await execute(path, "fingerprint", {}, FINGERPRINT_TIMEOUT_S)
        version = _decode(path.name, raw, _Versioned).version
        if not _VERSION.fullmatch(version):
            raise VolumePluginError(f"plugin {path.name}: {version!r} is not a version")
    except VolumePluginError as cause:
        log.warning("host volume plugin left out", plugin=path.name, error=cause.message)
        return ""
    return version


def _executables(plugin_dir: Path) -> list[Path]:
    try:
        entries = sorted(plugin_dir.iterdir())
    except FileNotFoundError:
        return []
    except OSError as cause:
        log.warning("host volume plugins not read", path=plugin_dir, error=str(cause))
        return []
    found: list[Path] = []
    for path in entries:
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        if path.name == MKDIR or not _NAME.fullmatch(path.name):
            log.warning("host volume plugin has a name that cannot be used", path=path)
            continue
        found.append(path)
    return found


def _decode(plugin: str, raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise VolumePluginError(
            f"plugin {plugin} answered with what cannot be read: {_shown(raw)!r}: {cause}"
        ) from cause


def _error_in(raw: bytes) -> str:
    try:
        return msgspec.json.decode(raw, type=_Failed).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def _shown(raw: bytes) -> str:
    return raw[-_SHOWN_BYTES:].decode("utf-8", "replace").strip()


def _owner(parameters: Mapping[str, str], name: str) -> int | None:
    text = parameters.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _MOST_ID:
        raise InvalidRequestError(f"{name} {text!r} is not a number of a user or group")
    return int(text)


def _make(path: Path, wanted: MkdirParameters) -> None:
    new = True
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        new = False
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # The owner first: changing it takes setuid and setgid bits away. The mode without the umask.
        os.fchown(
            folder,
            -1 if wanted.uid is None else wanted.uid,
            -1 if wanted.gid is None else wanted.gid,
        )
        os.fchmod(folder, wanted.mode)
    except OSError:
        if new:
            path.rmdir()
        raise
    finally:
        os.close(folder)


def _find(path: Path, _wanted: MkdirParameters) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))


def _remove(volumes_dir: Path, volume_id: str) -> None:
    """Move it aside first: so it is gone at once and whole; what the agent's death interrupts is found by `leftovers`."""
    aside = volumes_dir / _REMOVED / volume_id
    if aside.exists():
        shutil.rmtree(aside)
    try:
        (volumes_dir / volume_id).lstat()
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        os.rename(volumes_dir / volume_id, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def leftovers(volumes_dir: Path) -> list[Path]:
    """What deletes moved aside that an agent did not live to remove."""
    try:
        return sorted((volumes_dir / _REMOVED).iterdir())
    except OSError:
        return []


def remove_leftovers(paths: list[Path]) -> None:
    """Remove what `leftovers` found."""
    for path in paths:
        try:
            shutil.rmtree(path)
        except OSError as cause:
            log.warning("a removed volume is still on the disk", path=path, error=str(cause))
