"""Requests of the rpc, and the replies that are not an `Answer`. Method names are in rpc/methods.py."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.envelope import QueryOptions, WriteOptions
from nomadpy.models.host_volume import HostVolume
from nomadpy.models.job import JobSubmission
from nomadpy.models.node import DrainSpec, Node, NodePool
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration
from nomadpy.models.what_if import RebalanceRequest, WhatIfRequest


class _Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all requests and replies."""


class Read(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Read one object by `id`, or a list when the method lists. `flags` are the method's own query parameters."""

    id: str = ""
    options: QueryOptions = QueryOptions()
    flags: dict[str, str] = {}


class Write(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """A write that needs nothing but an `id` and the method's own query parameters in `flags`."""

    id: str = ""
    options: WriteOptions = WriteOptions()
    flags: dict[str, str] = {}


# -- jobs ---------------------------------------------------------------------------------------


class JobWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Job.Register, Job.Plan, Job.Validate.

    job: the job as sent, keys already in wire case, unknown keys dropped, durations in ns, nulls removed
    (jobspec.decode); the server canonicalizes and validates it. enforce_index: None does not check.
    """

    job: dict[str, Any]
    options: WriteOptions = WriteOptions()
    submission: JobSubmission | None = None
    enforce_index: int | None = None
    preserve_counts: bool = False
    preserve_resources: bool = False
    policy_override: bool = False
    eval_priority: int = 0
    diff: bool = False


class JobDeregister(_Call, frozen=True, kw_only=True, omit_defaults=True):
    job_id: str
    options: WriteOptions = WriteOptions()
    purge: bool = False
    is_global: bool = False
    eval_priority: int = 0
    no_shutdown_delay: bool = False


class JobEvaluate(_Call, frozen=True, kw_only=True, omit_defaults=True):
    job_id: str
    options: WriteOptions = WriteOptions()
    force_reschedule: bool = False


class JobScale(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """count None records an event only."""

    job_id: str
    group: str
    options: WriteOptions = WriteOptions()
    count: int | None = None
    message: str = ""
    error: bool = False
    meta: dict[str, Any] | None = None
    policy_override: bool = False
    enforce_index: int | None = None


class JobRevert(_Call, frozen=True, kw_only=True, omit_defaults=True):
    job_id: str
    version: int
    options: WriteOptions = WriteOptions()
    tag_name: str = ""
    enforce_prior_version: int | None = None


class JobStability(_Call, frozen=True, kw_only=True, omit_defaults=True):
    job_id: str
    version: int
    stable: bool
    options: WriteOptions = WriteOptions()


class JobTag(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """version None tags the latest; unset removes the tag called `name`."""

    job_id: str
    name: str
    options: WriteOptions = WriteOptions()
    version: int | None = None
    description: str = ""
    unset: bool = False


# -- nodes --------------------------------------------------------------------------------------


class NodeDrainWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """spec None ends the drain."""

    node_id: str
    options: WriteOptions = WriteOptions()
    spec: DrainSpec | None = None
    mark_eligible: bool = False
    meta: dict[str, str] | None = None


class NodeEligibilityWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    node_id: str
    eligibility: str
    options: WriteOptions = WriteOptions()


class HostVolumeWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """HostVolume.Create and HostVolume.Register. Answer: models.host_volume.HostVolumeWritten."""

    volume: HostVolume
    options: WriteOptions = WriteOptions()


class NodePoolWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    pool: NodePool
    options: WriteOptions = WriteOptions()


class WhatIf(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Scheduler.Simulate. Answer: models.what_if.WhatIfResponse."""

    request: WhatIfRequest
    options: WriteOptions = WriteOptions()


class Rebalance(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Scheduler.Rebalance. Answer: models.what_if.RebalanceResponse."""

    request: RebalanceRequest
    options: WriteOptions = WriteOptions()


class DeploymentPromoteWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Promote canaries of these groups; None is all."""

    deployment_id: str
    groups: list[str] | None = None
    options: WriteOptions = WriteOptions()


class SchedulerConfigWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """cas None sets without a check; else the ModifyIndex that must be current."""

    config: SchedulerConfiguration
    options: WriteOptions = WriteOptions()
    cas: int | None = None


class AutopilotConfigWrite(_Call, frozen=True, kw_only=True, omit_defaults=True):
    config: AutopilotConfiguration
    options: WriteOptions = WriteOptions()
    cas: int | None = None


# -- variables ------------------------------------------------------------------------------------


class VariableApply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """op: set, delete, lock-acquire, lock-renew, lock-release. cas: the ModifyIndex that must be current, 0 none.

    items None were not given. lock_id: what a holder shows. ttl, delay: nanoseconds, None for the defaults.
    """

    path: str
    op: str
    options: WriteOptions = WriteOptions()
    cas: int | None = None
    items: dict[str, str] | None = None
    lock_id: str = ""
    ttl: int | None = None
    delay: int | None = None

    def __repr__(self) -> str:
        """What may be logged: neither items nor the lock's id."""
        return f"VariableApply({self.op!r}, {self.path!r})"


class VariableReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """body: the variable as JSON; of a conflict, what is in the way. index: of the answer's header, -1 for none."""

    body: bytes = b""
    index: int = -1
    conflict: bool = False

    def __repr__(self) -> str:
        """What may be logged: no items."""
        return f"VariableReply(index={self.index}, conflict={self.conflict})"


# -- what agents say to servers -----------------------------------------------------------------


class NodeRegister(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """`node.secret_id` is the node's secret: the first registration binds it to the id."""

    node: Node
    region: str = ""


class NodeHeartbeat(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """status: initializing | ready | down (a leaving agent)."""

    node_id: str
    secret_id: str
    status: str


class ServerAddress(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """name: node name of the server (without region); rpc: host:port; id: its raft id."""

    name: str
    rpc: str
    id: str = ""


class NodeAttach(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Binds the connection it comes over to the node, so that the server can call the agent back."""

    node_id: str
    secret_id: str


class NodeReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """ttl_ns: the next heartbeat must arrive before. servers: all known, the leader first."""

    index: int = 0
    ttl_ns: int = 0
    servers: list[ServerAddress] = []
    eval_ids: list[str] = []


class ClientAllocsRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Blocks like any read (options.min_index, wait_ns)."""

    node_id: str
    secret_id: str
    options: QueryOptions = QueryOptions()


class ClientAllocsReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """allocs: allocation id to AllocModifyIndex (moves when a server changed it, not on client updates).

    restored: index at which an operator last put an earlier state in the place of the servers'; what nodes had reported
    until then may be forgotten.
    """

    index: int
    allocs: dict[str, int] = {}
    restored: int = 0


class AllocsGetRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Whole allocations (job included) of this node; unknown ids are left out of the reply."""

    node_id: str
    secret_id: str
    ids: list[str]
    min_index: int = 0


class AllocsGetReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    allocs: list[Allocation] = []


class UpdateAllocsRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Only what the client owns is read of each: id, client_status, client_description, task_states,
    deployment_status, network_status."""

    node_id: str
    secret_id: str
    allocs: list[Allocation]


class TaskCertificateRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """csr_pem: a signing request whose subject and extensions are ignored; only its key is used."""

    node_id: str
    secret_id: str
    alloc_id: str
    task: str
    csr_pem: bytes


class TaskCertificateReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """certificate_pem: leaf first, then intermediates. bundle_pem: the roots tasks trust."""

    certificate_pem: bytes
    bundle_pem: bytes
    not_after_ns: int


class SignIdentitiesRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """All workload identities of one task of an allocation that this node holds."""

    node_id: str
    secret_id: str
    alloc_id: str
    task: str


class SignedIdentity(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """name: "default" or the identity block's. expires_ns: 0 never."""

    name: str
    jwt: str
    expires_ns: int = 0


class SignIdentitiesReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    identities: list[SignedIdentity] = []


class IndexReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    index: int = 0


# -- what any node asks of the node that owns an allocation ----------------------------------------


class NodeRead(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """A call served by one node. node_id "" with alloc_id "" is the node that was asked."""

    node_id: str = ""
    alloc_id: str = ""
    token: str = ""
    flags: dict[str, str] = {}


class ClientMetaApply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """A value of None removes the key."""

    node_id: str = ""
    token: str = ""
    meta: dict[str, str | None] = {}


class AllocSignal(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """task "" signals all tasks."""

    alloc_id: str
    signal: str
    task: str = ""
    token: str = ""


class AllocRestart(_Call, frozen=True, kw_only=True, omit_defaults=True):
    alloc_id: str
    task: str = ""
    all_tasks: bool = False
    token: str = ""


class FileRead(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """FS.List, FS.Stat (answers) and FS.Cat, FS.ReadAt, FS.Stream (streams).

    path is relative to the allocation directory. origin: start | end. plain: raw bytes, else framed JSON.
    """

    alloc_id: str
    path: str = "/"
    offset: int = 0
    limit: int = 0
    origin: str = "start"
    follow: bool = False
    plain: bool = False
    token: str = ""


class LogsRead(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """type: stdout | stderr."""

    alloc_id: str
    task: str
    type: str
    offset: int = 0
    origin: str = "start"
    follow: bool = False
    plain: bool = False
    token: str = ""


class ExecStart(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Alloc.Exec. The stream then carries the JSON messages of the wire's websocket, one a chunk."""

    alloc_id: str
    task: str
    command: list[str]
    tty: bool = False
    token: str = ""


class ClientHostVolumeCreateRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """ClientHostVolume.Create: make a volume on the node, by one of its plugins; made before under this id, it is answered again.

    Capacities in bytes, 0: not asked for. host_path "": the node chooses.
    """

    id: str
    name: str
    node_id: str
    plugin_id: str
    namespace: str = "default"
    host_path: str = ""
    requested_capacity_min_bytes: int = 0
    requested_capacity_max_bytes: int = 0
    parameters: dict[str, str] = {}


class ClientHostVolumeCreateReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """host_path: where it is on the node. capacity_bytes: 0 when the plugin sets no bound."""

    volume_name: str
    volume_id: str
    host_path: str
    capacity_bytes: int = 0


class ClientHostVolumeRegisterRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """ClientHostVolume.Register: a directory that is on the node already becomes a volume there."""

    id: str
    name: str
    node_id: str
    host_path: str
    namespace: str = "default"
    capacity_bytes: int = 0
    parameters: dict[str, str] = {}


class ClientHostVolumeDeleteRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """ClientHostVolume.Delete: the volume and what its plugin made of it. One that is not there is no error.

    plugin_id "": it was registered, so its directory stays.
    """

    id: str
    name: str
    node_id: str
    plugin_id: str = ""
    namespace: str = "default"
    host_path: str = ""
    parameters: dict[str, str] = {}


class ClientHostVolumeDeleteReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """What was deleted."""

    volume_name: str
    volume_id: str


class Empty(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Nothing."""


class IndexRequest(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Raft.ReadIndex: a server asks the leader for a linearizable index."""


class StateSums(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """What the tables of a server's state added up to at the entry `index`. shape: of rows; others cannot be compared."""

    index: int
    shape: str
    sums: dict[str, str]


class ServerHello(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """What servers tell each other about themselves: at forming, and then every second as a sign of life.

    id: the server's raft id (stable over restarts). http, rpc: advertised host:port. expect: bootstrap_expect.
    initialized: it has raft state already. known: ids of the servers it has heard of, itself included.
    configuration: the raft servers it started from, empty while not initialized. leaving: it is about to go.
    formats: lowest and highest format of the log that it reads, and build the version of this software; a server of the
    first version says neither. checked: the newest sums of its state, see server/state_check.py.
    """

    id: str
    name: str
    region: str
    datacenter: str
    rpc: str
    http: str
    version: str
    expect: int = 0
    initialized: bool = False
    leader_id: str = ""
    raft_index: int = 0
    raft_term: int = 0
    known: list[str] = []
    configuration: list[ServerAddress] = []
    leaving: bool = False
    formats: tuple[int, int] = (1, 1)
    build: str = "0.1.0"
    checked: StateSums | None = None


class RestoreStep(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """Server.RestoreStep: what a server that was given a snapshot asks of the leader.

    reach > 0: only lengthen the log towards this index; the reply's index says how far it is. Else number < parts: set
    `data` aside as that piece; number == parts: replace the state by the pieces, whose digest together is sha256.
    """

    restore_id: str = ""
    number: int = 0
    parts: int = 0
    data: bytes = b""
    sha256: str = ""
    reach: int = 0
    options: WriteOptions = WriteOptions()


class ServerHelloReply(_Call, frozen=True, kw_only=True, omit_defaults=True):
    """The answering server's own hello, and all it has heard of. removed: the one that asked is a server no more.
    too_old: why it cannot take part until it is upgraded, "" when it can.
    """

    me: ServerHello
    members: list[ServerHello] = []
    removed: bool = False
    too_old: str = ""
