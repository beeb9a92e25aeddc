"""One struct for every replicated command, and the entry that carries it.

An entry is a msgpack map, compressed when it is long; its command is a map tagged with an integer under "type". Maps, so that a field with a
default can be added later and an older entry still decodes. A tag is for ever: append, never reuse. One encoded sample
of each command is kept in tests/fsm/cases and must decode for ever.

A command carries all it needs: ids, chance and time are the proposer's. `now_ns` of the entry is the only clock there is.
What applying returns as `Applied.value` is said at each command; without a word it is None.
"""

from __future__ import annotations

import zlib
from typing import Any, get_args

import msgspec

from nomadpy.fsm.packing import PackedPlan, pack
from nomadpy.models.allocation import Allocation, DesiredTransition
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import HostVolume
from nomadpy.models.job import Job, JobSubmission
from nomadpy.models.node import DrainStrategy, Node, NodeEvent, NodePool
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration
from nomadpy.models.plan import Plan
from nomadpy.models.root_key import RootKey
from nomadpy.models.scaling import ScalingEvent
from nomadpy.models.variable import Sealed


class JobRegister(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=1):
    """Store a job. enforce_index: the JobModifyIndex that must be current, 0 that there must be none.

    Value: {"job_modify_index": int, "version": int}.
    """

    job: Job
    submission: JobSubmission | None = None
    evaluation: Evaluation | None = None
    enforce_index: int | None = None


class JobDeregister(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=2):
    """Stop or purge a job. Value: as JobRegister."""

    namespace: str
    job_id: str
    purge: bool = False
    evaluation: Evaluation | None = None


class JobStability(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=3):
    """Mark a version stable or not."""

    namespace: str
    job_id: str
    version: int
    stable: bool


class JobTag(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=4):
    """Name a version (None: the newest), or with `unset` take the name away.

    Value: {"name", "description", "tagged_time"}, or None for unset.
    """

    namespace: str
    job_id: str
    version: int | None = None
    name: str = ""
    description: str = ""
    unset: bool = False


class JobScale(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=5):
    """Record a scaling event; `job` is the scaled job, None when nothing was scaled. Value: as JobRegister."""

    namespace: str
    job_id: str
    group: str
    event: ScalingEvent
    job: Job | None = None
    evaluation: Evaluation | None = None
    enforce_index: int | None = None


class NodeRegister(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=6):
    """What an agent says of its node; secret_id is bound at the first time."""

    node: Node


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=7):
    """A node is initializing, ready, down or disconnected."""

    node_id: str
    status: str
    event: NodeEvent | None = None
    evaluations: list[Evaluation] = []


class NodeDrain(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=8):
    """Begin (drain) or end (None) a drain. last_drain_status: draining | complete | canceled."""

    node_id: str
    drain: DrainStrategy | None = None
    mark_eligible: bool = False
    meta: dict[str, str] | None = None
    event: NodeEvent | None = None
    evaluations: list[Evaluation] = []
    last_drain_status: str = ""
    accessor_id: str = ""


class NodeEligibility(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=9):
    """eligibility: eligible | ineligible."""

    node_id: str
    eligibility: str
    event: NodeEvent | None = None
    evaluations: list[Evaluation] = []


class NodeDeregister(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=10):
    """Remove nodes."""

    node_ids: list[str]
    evaluations: list[Evaluation] = []


class EvalUpsert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=11):
    """Insert or update evaluations."""

    evals: list[Evaluation]


class EvalDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=12):
    """Remove collected evaluations and allocations."""

    eval_ids: list[str] = []
    alloc_ids: list[str] = []


class AllocClientUpdate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=13):
    """What clients report; of each allocation only what clients own is read."""

    allocs: list[Allocation]
    evaluations: list[Evaluation] = []


class AllocTransition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=14):
    """Wishes for allocations, by id."""

    transitions: dict[str, DesiredTransition]
    evaluations: list[Evaluation] = []


class PlanResults(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=15):
    """Plans as the applier let them pass. Value: for each plan "" or why it was left out."""

    plans: list[Plan]


class DeploymentUpdate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=16):
    """A new status of a deployment. job: a version to roll back to, registered with it."""

    deployment_id: str
    status: str
    description: str = ""
    evaluation: Evaluation | None = None
    job: Job | None = None


class DeploymentAllocHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=17):
    """Which allocations are healthy; status None leaves the deployment's."""

    deployment_id: str
    healthy: list[str] = []
    unhealthy: list[str] = []
    status: str | None = None
    description: str = ""
    evaluation: Evaluation | None = None
    job: Job | None = None


class NodePoolUpsert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=18):
    """Make or change node pools."""

    pools: list[NodePool]


class NodePoolDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=19):
    """Remove node pools, all or none. region: named when one is in use."""

    names: list[str]
    region: str = "global"


class SchedulerConfigSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=20):
    """cas: the ModifyIndex that must be current. Value: whether it was set."""

    config: SchedulerConfiguration
    cas: int | None = None


class AutopilotConfigSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=21):
    """cas: the ModifyIndex that must be current. Value: whether it was set."""

    config: AutopilotConfiguration
    cas: int | None = None


class RootKeyUpsert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=22):
    """Store a root key; an active one makes the others inactive, or with `full` rekeying."""

    key: RootKey
    full: bool = False


class RootKeyDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=23):
    """Remove a root key that is not active and, without force, that no variable is encrypted with."""

    key_id: str
    force: bool = False


class ClusterMetadataSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=24):
    """Give the cluster its id, and the log its first format, unless it has one. Value: the id it has."""

    cluster_id: str
    log_format: int = 1


class DeploymentDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=25):
    """Remove collected deployments."""

    ids: list[str]


class JobBatchPurge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=26):
    """Remove collected jobs, as (namespace, id). only_dead: one that was registered again since stays."""

    jobs: list[tuple[str, str]]
    only_dead: bool = False


class ReconcileSummaries(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=27):
    """Count every job summary anew."""


class Noop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=28):
    """Nothing: a barrier in the log."""


class DeploymentPromote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=29):
    """Promote canaries of some groups; None is all."""

    deployment_id: str
    groups: list[str] | None = None
    evaluation: Evaluation | None = None


class VariableSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=30):
    """Store a variable. cas: the ModifyIndex that must be current, 0 that there must be none.

    lock_id: what the holder of its lock shows. Value: models.variable.Written, as a map.
    """

    namespace: str
    path: str
    sealed: Sealed
    cas: int | None = None
    lock_id: str = ""


class VariableDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=31):
    """Remove a variable; none is no error. cas, value: as VariableSet."""

    namespace: str
    path: str
    cas: int | None = None


class VariableLock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=32):
    """Take the lock of a variable, which is made when there is none.

    lock_id: of a new lock; held_id: what a holder shows to keep its own. ttl, delay: nanoseconds.
    keep: a variable that exists keeps its items, and `sealed` is only for a new one. Value: as VariableSet.
    """

    namespace: str
    path: str
    sealed: Sealed
    lock_id: str
    ttl: int
    delay: int
    keep: bool = False
    held_id: str = ""


class VariableUnlock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=33):
    """End a lock. reason: released (by its holder), expired (the delay begins), delayed (the delay is over).

    Value: as VariableSet.
    """

    namespace: str
    path: str
    lock_id: str
    reason: str


class Resealed(msgspec.Struct, frozen=True, array_like=True):
    """A variable encrypted anew. was: the nonce of what was decrypted; another one means it was written since."""

    namespace: str
    path: str
    was: bytes
    sealed: Sealed


class VariableReseal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=34):
    """Replace ciphertext whose content is the same; indexes and times stay.

    Root keys in state rekeying that no variable uses any more become inactive.
    """

    variables: list[Resealed] = []


class RestorePart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=35):
    """Set a piece of a snapshot aside; number 0 begins anew, and drops what another restore had set aside."""

    restore_id: str
    number: int
    data: bytes


class Restore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=36):
    """Replace the whole state by the pieces that were set aside, in order.

    parts, sha256: how many there must be, and the digest of them together. Nothing changes when they do not fit, or when the
    snapshot's index is not below this entry's: indexes never fall.
    """

    restore_id: str
    parts: int
    sha256: str


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=37):
    """Changes nothing: every server sums up its state at this entry, so that the sums can be compared."""


class LogFormatSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=38):
    """From here on the log may hold commands of format `version` (formats.py). Refused unless it is above the present one.

    This command's own shape is for ever: whoever reads it and does not read that format stops here.
    """

    version: int


class HostVolumeUpsert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=39):
    """Make host volumes known, or change them; one with a CreateIndex must be there. Value: their ids."""

    volumes: list[HostVolume]


class HostVolumeDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=40):
    """Remove host volumes that no allocation uses, all or none, with the claims on them."""

    namespace: str
    ids: list[str]


class VolumeClaimDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=41):
    """Forget which volume a group holds: it may be placed anywhere again."""

    claim_id: str


class PackedPlans(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=42):
    """PlanResults as the log has it from format 3 on; nobody proposes it, `EntryCodec` writes it. Value: as PlanResults."""

    plans: list[PackedPlan]


Command = (
    JobRegister
    | JobDeregister
    | JobStability
    | JobTag
    | JobScale
    | NodeRegister
    | NodeStatus
    | NodeDrain
    | NodeEligibility
    | NodeDeregister
    | EvalUpsert
    | EvalDelete
    | AllocClientUpdate
    | AllocTransition
    | PlanResults
    | DeploymentUpdate
    | DeploymentAllocHealth
    | NodePoolUpsert
    | NodePoolDelete
    | SchedulerConfigSet
    | AutopilotConfigSet
    | RootKeyUpsert
    | RootKeyDelete
    | ClusterMetadataSet
    | DeploymentDelete
    | JobBatchPurge
    | ReconcileSummaries
    | Noop
    | DeploymentPromote
    | VariableSet
    | VariableDelete
    | VariableLock
    | VariableUnlock
    | VariableReseal
    | RestorePart
    | Restore
    | Checkpoint
    | LogFormatSet
    | HostVolumeUpsert
    | HostVolumeDelete
    | VolumeClaimDelete
    | PackedPlans
)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of the log.

    request_id: names the request; a second entry with it returns the first one's result and changes nothing. "" is
    never looked up. now_ns: when it was proposed, nanoseconds since 1970.
    """

    command: Command
    request_id: str = ""
    now_ns: int = 0


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What applying an entry gave. index: where it took effect, the first one's for a repeated request."""

    index: int
    value: Any = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
_LAST_TAG = max(int(str(kind.__struct_config__.tag)) for kind in get_args(Command))

COMPRESS_ABOVE = 4096
"""Bytes. A plan of a thousand placements shrinks from 900 KiB to 65 in 2 ms; disk and network then carry less."""

MAX_DECODED = 256 << 20
_ZLIB = 0x78
"""The first byte of zlib's format; an entry that is not compressed begins with a msgpack map, which never is that."""


def encode_entry(entry: Entry) -> bytes:
    """The bytes that go into the log: msgpack, or zlib of it when that is long."""
    data = _encoder.encode(entry)
    return data if len(data) <= COMPRESS_ABOVE else zlib.compress(data, 1)


class EntryCodec:
    """Encodes what one server proposes, and remembers the newest plans, so that they need not be decoded when they are
    applied where they were made. Equal bytes are equal entries; each is handed out once.
    """

    def __init__(self) -> None:
        self._made: dict[bytes, Entry] = {}

    def encode(self, entry: Entry, *, packed: bool = False) -> bytes:
        """As `encode_entry`; packed: plans in the form that came with format 3 of the log."""
        if not isinstance(entry.command, PlanResults):
            return encode_entry(entry)
        written = entry
        if packed:
            plans = PackedPlans(plans=[pack(plan) for plan in entry.command.plans])
            written = msgspec.structs.replace(entry, command=plans)
        data = encode_entry(written)
        self._made[data] = entry
        if len(self._made) > _REMEMBERED_PLANS:
            del self._made[next(iter(self._made))]
        return data

    def decode(self, data: bytes) -> Entry:
        """As `decode_entry`."""
        made = self._made.pop(data, None) if self._made else None
        return decode_entry(data) if made is None else made


_REMEMBERED_PLANS = 16


class _Tagged(msgspec.Struct, frozen=True):
    type: int


class _Unknown(msgspec.Struct, frozen=True):
    command: _Tagged


def unknown_tag(data: bytes) -> int | None:
    """The tag of a command that is not known here, of an entry that `decode_entry` refused; None when that is not why."""
    try:
        tag = msgspec.msgpack.decode(_inflated(data), type=_Unknown).command.type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return tag if tag > _LAST_TAG else None


def decode_entry(data: bytes) -> Entry:
    """What `encode_entry` was given. Raises msgspec.DecodeError (ValidationError is one)."""
    data = _inflated(data)
    try:
        return _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        # Text that is not UTF-8, or nesting without end, is no ValidationError to msgspec.
        raise msgspec.DecodeError(f"entry is damaged: {error}") from error


def _inflated(data: bytes) -> bytes:
    if data[:1] != bytes((_ZLIB,)):
        return data
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(data, MAX_DECODED)
    except zlib.error as error:
        raise msgspec.DecodeError(f"entry is not zlib: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise msgspec.DecodeError("entry is cut, too long, or has something behind its end")
    return data
