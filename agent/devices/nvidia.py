"""NVIDIA GPUs: found where the kernel lists them, measured by `nvidia-smi` where that is installed.

A GPU counts once the NVIDIA driver holds it (/proc/driver/nvidia/gpus); without hardware or driver there is nothing and
no error. Names and units of attributes and figures are those of Nomad's NVIDIA plugin. GPUs that are cut into
instances (MIG) are whole GPUs here.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from agent.devices.base import DeviceError, Reservation
from nomadpy.clock import Clock
from nomadpy.models import gotime
from nomadpy.models.node import NodeDevice, NodeDeviceLocality, NodeDeviceResource
from nomadpy.models.resources import AllocatedDeviceResource, Attribute
from nomadpy.models.stats import DeviceGroupStats, DeviceStats, StatObject, StatValue

VENDOR, TYPE = "nvidia", "gpu"
VISIBLE = "NVIDIA_VISIBLE_DEVICES"
SMI_TIMEOUT_S = 10.0

_PCI_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"
_UNKNOWN_MODEL = "unknown"
_FACTS = (
    "pci.bus_id uuid name driver_version memory.total power.limit clocks.max.sm clocks.max.mem pcie.link.gen.max "
    "pcie.link.width.max display_mode persistence_mode"
).split()
_FIGURES = (
    "pci.bus_id uuid name memory.used memory.total utilization.gpu utilization.memory temperature.gpu power.draw power.limit"
).split()
# Megabytes a second of one lane, by the generation of PCI Express.
_LANE_MB_S = {1: 250, 2: 500, 3: 985, 4: 1969, 5: 3938, 6: 7877}

Row = Mapping[str, str]
"""What nvidia-smi says of one GPU, by the name of the column; what it does not know is left out."""


class NvidiaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says. ignored_gpu_ids: GPUs that are not for tasks. period_s: how often to look."""

    enabled: bool = True
    ignored_gpu_ids: list[str] = []
    period_s: float = 60.0


class _Gpu(msgspec.Struct, frozen=True):
    """One GPU as the kernel shows it. bus: `0000:3b:00.0`."""

    bus: str
    uuid: str
    model: str


class NvidiaPlugin:
    """The NVIDIA GPUs of this host."""

    name = "nvidia"

    def __init__(
        self,
        clock: Clock,
        settings: NvidiaSettings | None = None,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        smi: str | None = None,
    ) -> None:
        """proc, sys: other roots for tests. smi: the program; None looks for it on the path."""
        self._clock = clock
        self._settings = settings or NvidiaSettings()
        self._proc = proc
        self._sys = sys
        self._smi = smi
        self._known: frozenset[str] = frozenset()
        # What nvidia-smi said last: a GPU keeps its id and facts while the program fails.
        self._rows: dict[str, Row] = {}

    @property
    def interval_s(self) -> float:
        """See DevicePlugin."""
        return self._settings.period_s

    async def fingerprint(self) -> list[NodeDeviceResource]:
        """See DevicePlugin. GPUs of one model with the same facts are one group."""
        gpus = await asyncio.to_thread(self._gpus)
        if not gpus:
            self._known = frozenset()
            return []
        sick = ""
        try:
            rows = await self._ask(_FACTS)
            self._rows = rows or {}
        except DeviceError as error:
            rows, sick = None, error.message
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], NodeDeviceResource] = {}
        for gpu in gpus:
            row = self._rows.get(gpu.bus, {})
            unlisted = rows is not None and not row
            device = _device(gpu, row, sick=_UNLISTED if unlisted else sick)
            if device.id in self._settings.ignored_gpu_ids:
                continue
            model = row.get("name") or gpu.model or _UNKNOWN_MODEL
            attributes = _attributes(row)
            key = (model, tuple(sorted((k, repr(v)) for k, v in attributes.items())))
            group = groups.get(key) or NodeDeviceResource(
                vendor=VENDOR, type=TYPE, name=model, instances=[], attributes=attributes or None
            )
            groups[key] = msgspec.structs.replace(
                group, instances=[*(group.instances or ()), device]
            )
        found = list(groups.values())
        self._known = frozenset(i.id for group in found for i in group.instances or ())
        return found

    async def reserve(self, wanted: Sequence[AllocatedDeviceResource]) -> Reservation:
        """The variable by which NVIDIA's container runtime, and CUDA's tools, know what is the task's."""
        ids = [device for one in wanted for device in one.device_ids or ()]
        for device in ids:
            if device not in self._known:
                raise DeviceError(f"there is no NVIDIA GPU {device!r}")
        return Reservation(env={VISIBLE: ",".join(dict.fromkeys(ids))})

    async def stats(self) -> list[DeviceGroupStats]:
        """Memory, utilization, temperature and power of each GPU; [] without nvidia-smi."""
        gpus = await asyncio.to_thread(self._gpus)
        rows = await self._ask(_FIGURES) if gpus else None
        if not rows:
            return []
        moment = gotime.from_ns(self._clock.now_ns())
        by_model: dict[str, dict[str, DeviceStats]] = {}
        models = {
            gpu.bus: rows.get(gpu.bus, {}).get("name") or gpu.model or _UNKNOWN_MODEL
            for gpu in gpus
        }
        for bus, row in rows.items():
            uuid = row.get("uuid", bus)
            if bus in models and uuid not in self._settings.ignored_gpu_ids:
                by_model.setdefault(models[bus], {})[uuid] = _stats(row, moment)
        return [
            DeviceGroupStats(vendor=VENDOR, type=TYPE, name=model, instance_stats=mine)
            for model, mine in by_model.items()
        ]

    async def close(self) -> None:
        """Nothing is held."""

    # -- looking ------------------------------------------------------------------------------------------

    def _gpus(self) -> list[_Gpu]:
        """Display controllers of NVIDIA's that NVIDIA's driver holds, by bus."""
        held = self._held()
        found: list[_Gpu] = []
        for folder in _folders(self._sys / "bus/pci/devices"):
            vendor, kind = _read(folder / "vendor"), _read(folder / "class")
            bus = bus_id(folder.name)
            if vendor == _PCI_VENDOR and kind.startswith(_DISPLAY_CLASS) and bus in held:
                found.append(held[bus])
        return sorted(found, key=lambda gpu: gpu.bus)

    def _held(self) -> dict[str, _Gpu]:
        found: dict[str, _Gpu] = {}
        for folder in _folders(self._proc / "driver/nvidia/gpus"):
            facts = {
                name.strip(): value.strip()
                for name, colon, value in (
                    line.partition(":") for line in _read(folder / "information").splitlines()
                )
                if colon
            }
            bus = bus_id(folder.name)
            uuid = facts.get("GPU UUID", "")
            # The driver shows question marks until something has used the GPU.
            found[bus] = _Gpu(bus, "" if "?" in uuid else uuid, facts.get("Model", ""))
        return found

    async def _ask(self, columns: Sequence[str]) -> dict[str, Row] | None:
        """nvidia-smi's answer by bus; None without the program. Raises DeviceError when it fails."""
        program = self._smi or await asyncio.to_thread(shutil.which, "nvidia-smi")
        if program is None:
            return None
        try:
            output = await _run(
                program,
                f"--query-gpu={','.join(columns)}",
                "--format=csv,noheader,nounits",
            )
        except TimeoutError as error:
            raise DeviceError("nvidia-smi does not answer") from error
        except OSError as error:
            raise DeviceError(f"nvidia-smi cannot be run: {error.strerror}") from error
        return _rows(output, columns)


_UNLISTED = "nvidia-smi does not list this GPU"


def bus_id(text: str) -> str:
    """A PCI bus id with a domain of four digits and small letters: `00000000:3B:00.0` is `0000:3b:00.0`."""
    domain, colon, rest = text.strip().lower().partition(":")
    if ":" not in rest:
        # Without a domain there is one colon only.
        return f"0000:{domain}{colon}{rest}"
    return f"{domain[-4:].rjust(4, '0')}:{rest}"


def _device(gpu: _Gpu, row: Row, *, sick: str) -> NodeDevice:
    return NodeDevice(
        id=row.get("uuid") or gpu.uuid or gpu.bus,
        healthy=not sick,
        health_description=sick,
        locality=NodeDeviceLocality(pci_bus_id=gpu.bus),
    )


def _attributes(row: Row) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for name, column, unit in (
        ("memory", "memory.total", "MiB"),
        ("power", "power.limit", "W"),
        ("cores_clock", "clocks.max.sm", "MHz"),
        ("memory_clock", "clocks.max.mem", "MHz"),
    ):
        amount = _number(row.get(column, ""))
        if amount is not None:
            found[name] = Attribute(int_val=int(amount), unit=unit)
    generation, width = (_number(row.get(f"pcie.link.{what}.max", "")) for what in ("gen", "width"))
    if generation is not None and width and int(generation) in _LANE_MB_S:
        found["pci_bandwidth"] = Attribute(
            int_val=_LANE_MB_S[int(generation)] * int(width), unit="MB/s"
        )
    for name, column in (
        ("driver_version", "driver_version"),
        ("display_state", "display_mode"),
        ("persistence_mode", "persistence_mode"),
    ):
        if column in row:
            found[name] = Attribute(string_val=row[column])
    return found


def _stats(row: Row, moment: str) -> DeviceStats:
    memory = _figure(row, "memory.used", "MiB", "UsedMemory / TotalMemory", of="memory.total")
    figures = {
        "Memory state": memory,
        "GPU utilization": _figure(row, "utilization.gpu", "%", "Percent of time in use"),
        "Memory utilization": _figure(
            row, "utilization.memory", "%", "Percent of time that memory was read or written"
        ),
        "Temperature": _figure(row, "temperature.gpu", "C", "Temperature of the GPU"),
        "Power usage": _figure(
            row, "power.draw", "W", "Power of the GPU and its memory / the most", of="power.limit"
        ),
    }
    return DeviceStats(
        summary=memory,
        stats=StatObject(attributes={n: v for n, v in figures.items() if v is not None}),
        timestamp=moment,
    )


def _figure(row: Row, column: str, unit: str, text: str, *, of: str = "") -> StatValue | None:
    value = _number(row.get(column, ""))
    if value is None:
        return None
    most = _number(row.get(of, "")) if of else None
    return StatValue(
        int_numerator_val=round(value),
        int_denominator_val=None if most is None else round(most),
        unit=unit,
        desc=text,
    )


def _rows(output: str, columns: Sequence[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for line in output.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(columns):
            continue
        row = {
            column: value
            for column, value in zip(columns, values, strict=True)
            # `[N/A]`, `[Not Supported]`, `[Unknown Error]`
            if value and not value.startswith("[") and value != "N/A"
        }
        if "pci.bus_id" in row:
            found[bus_id(row["pci.bus_id"])] = row
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


async def _run(*command: str) -> str:
    """The output of a program. Raises OSError and TimeoutError, and DeviceError when it says that it failed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(SMI_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise DeviceError(f"nvidia-smi ended with exit code {process.returncode}")
    return output.decode(errors="replace")


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
