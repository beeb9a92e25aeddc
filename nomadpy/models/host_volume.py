"""Dynamic host volumes, the claims of sticky ones, and what a group's volume request means on a node."""

from __future__ import annotations

from collections.abc import Iterator

from nomadpy.models.allocation import AllocationListStub
from nomadpy.models.base import Wire, always
from nomadpy.models.constraint import Constraint
from nomadpy.models.job import Job, TaskGroup, VolumeRequest

PENDING, READY, UNAVAILABLE = "pending", "ready", "unavailable"

READER_ONLY = "single-node-reader-only"
WRITER = "single-node-writer"
SINGLE_WRITER = "single-node-single-writer"
MULTI_WRITER = "single-node-multi-writer"
ACCESS_MODES = (READER_ONLY, WRITER, SINGLE_WRITER, MULTI_WRITER)

FILE_SYSTEM, BLOCK_DEVICE = "file-system", "block-device"
ATTACHMENT_MODES = (FILE_SYSTEM, BLOCK_DEVICE)

PLUGIN_ATTRIBUTE = "plugins.host_volume.{}.version"
"""The attribute by which a node says that it has a plugin."""


class HostVolumeCapability(Wire, frozen=True, kw_only=True):
    attachment_mode: str = ""
    access_mode: str = ""


class HostVolume(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that was made (`create`) or made known (`register`) at run time.

    Capacities in bytes, 0: no bound. Times: nanoseconds since 1970. plugin_id "": registered. allocations: only in answers. deleting
    (not Nomad's): its node has been asked to remove it, so that it is not ready any more, whatever the node says of it.
    """

    namespace: str = always(str)
    id: str = always(str)
    name: str = always(str)
    plugin_id: str = always(str)
    node_pool: str = always(str)
    node_id: str = always(str)
    constraints: list[Constraint] | None = None
    requested_capacity_min_bytes: int = always(int)
    requested_capacity_max_bytes: int = always(int)
    capacity_bytes: int = always(int)
    requested_capabilities: list[HostVolumeCapability] | None = always(lambda: None)
    parameters: dict[str, str] | None = None
    host_path: str = always(str)
    state: str = always(str)
    create_index: int = always(int)
    create_time: int = always(int)
    modify_index: int = always(int)
    modify_time: int = always(int)
    allocations: list[AllocationListStub] | None = None
    deleting: bool = False


class HostVolumeStub(Wire, frozen=True, kw_only=True):
    """A row of /v1/volumes?type=host."""

    namespace: str = ""
    id: str = ""
    name: str = ""
    plugin_id: str = ""
    node_pool: str = ""
    node_id: str = ""
    capacity_bytes: int = 0
    state: str = ""
    create_index: int = 0
    create_time: int = 0
    modify_index: int = 0
    modify_time: int = 0


class HostVolumeWritten(Wire, frozen=True, kw_only=True):
    """The answer to create and register."""

    volume: HostVolume | None = None
    warnings: str = ""
    index: int = 0


class TaskGroupHostVolumeClaim(Wire, frozen=True, kw_only=True):
    """A group's hold on one volume: its allocation, or the one that comes after it, goes where that volume is."""

    id: str = ""
    namespace: str = ""
    job_id: str = ""
    task_group_name: str = ""
    alloc_id: str = ""
    volume_id: str = ""
    volume_name: str = ""
    create_index: int = 0
    modify_index: int = 0


# -- what a request means ---------------------------------------------------------------------------------


def index_of(alloc_name: str) -> int:
    """The index in an allocation's name, `<job>.<group>[i]`; 0 when there is none."""
    number = alloc_name.rpartition("[")[2].removesuffix("]")
    return int(number) if number.isascii() and number.isdigit() else 0


def source_of(request: VolumeRequest, index: int) -> str:
    """The name of the volume that the allocation of this index asks for: with per_alloc, one of its own."""
    return f"{request.source}[{index}]" if request.per_alloc else request.source


def access_of(request: VolumeRequest) -> str:
    """The access mode, with its default."""
    return request.access_mode or (READER_ONLY if request.read_only else WRITER)


def attachment_of(request: VolumeRequest) -> str:
    """The attachment mode, with its default."""
    return request.attachment_mode or FILE_SYSTEM


def host_requests(group: TaskGroup | None) -> Iterator[VolumeRequest]:
    """The group's requests for host volumes, by name."""
    for _, request in sorted(((group.volumes if group is not None else None) or {}).items()):
        if request.type == "host":
            yield request


def group_of(job: Job | None, name: str) -> TaskGroup | None:
    """One group of a job."""
    groups = (job.task_groups if job is not None else None) or ()
    return next((group for group in groups if group.name == name), None)
