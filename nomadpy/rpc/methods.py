"""Every method of the rpc: its request, its reply, who may call it and where it runs.

where: "leader" runs on the leader (any server forwards); "any" on the server that is asked; "read" on the leader, or
on the asked server when the request allows stale; "node" on the client agent that node_id or alloc_id names.
roles: certificate roles that may call. Every role may call what the HTTP API offers, because every node
serves that API; what agents and servers say among themselves is theirs alone.
"""

from __future__ import annotations

import msgspec

from nomadpy.models import calls
from nomadpy.models.envelope import Answer

ANYONE = frozenset({"server", "client", "cli"})
AGENTS = frozenset({"client", "server"})
SERVERS = frozenset({"server"})


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. stream: chunks follow the request, and there is no reply. slow: the leader waits for a node."""

    name: str
    request: type[msgspec.Struct]
    reply: type[msgspec.Struct] = Answer
    where: str
    roles: frozenset[str] = ANYONE
    stream: bool = False
    slow: bool = False


_SLOW = frozenset({"HostVolume.Create", "HostVolume.Register", "HostVolume.Delete"})


def _reads(*names: str) -> list[Method]:
    return [Method(name=name, request=calls.Read, where="read") for name in names]


def _writes(**requests: type[msgspec.Struct]) -> list[Method]:
    return [
        Method(name=name, request=request, where="leader", slow=name in _SLOW)
        for name, request in ((key.replace("_", "."), kind) for key, kind in requests.items())
    ]


_TABLE: list[Method] = [
    # the answering server's own view
    *(
        Method(name=name, request=calls.Read, where="any")
        for name in (
            "Status.Leader",
            "Status.Peers",
            "Status.Members",
            "Status.Regions",
            "Operator.RaftConfiguration",
            "Keyring.JWKS",
        )
    ),
    *_reads(
        "Operator.AutopilotConfiguration",
        "Operator.AutopilotHealth",
        "Operator.SchedulerConfiguration",
        "Keyring.List",
        "Job.List",
        "Job.Get",
        "Job.Statuses",
        "Job.Summary",
        "Job.Allocations",
        "Job.Evaluations",
        "Job.Deployments",
        "Job.Explain",
        "Eval.Explain",
        "Job.LatestDeployment",
        "Job.Versions",
        "Job.Submission",
        "Job.ScaleStatus",
        "Job.Services",
        "Job.Actions",
        "Eval.List",
        "Eval.Count",
        "Eval.Get",
        "Eval.Allocations",
        "Alloc.List",
        "Alloc.Get",
        "Alloc.Services",
        "Deployment.List",
        "Deployment.Get",
        "Deployment.Allocations",
        "Node.List",
        "Node.Get",
        "Node.Allocations",
        "NodePool.List",
        "NodePool.Get",
        "NodePool.Nodes",
        "NodePool.Jobs",
        "Namespace.List",
        "Namespace.Get",
        "Search.Prefix",
        "Variables.List",
        "Variables.Get",
        "HostVolume.List",
        "HostVolume.Get",
        "TaskGroupHostVolumeClaim.List",
    ),
    *_writes(
        Job_Register=calls.JobWrite,
        Job_Plan=calls.JobWrite,
        Job_ExplainChange=calls.JobWrite,
        Job_Validate=calls.JobWrite,
        Job_Deregister=calls.JobDeregister,
        Job_Evaluate=calls.JobEvaluate,
        Job_Scale=calls.JobScale,
        Job_Revert=calls.JobRevert,
        Job_Stability=calls.JobStability,
        Job_Tag=calls.JobTag,
        Alloc_Stop=calls.Write,
        Node_Drain=calls.NodeDrainWrite,
        Node_Eligibility=calls.NodeEligibilityWrite,
        Node_Evaluate=calls.Write,
        Node_Purge=calls.Write,
        NodePool_Upsert=calls.NodePoolWrite,
        NodePool_Delete=calls.Write,
        Deployment_Fail=calls.Write,
        Deployment_Pause=calls.Write,
        Deployment_Promote=calls.DeploymentPromoteWrite,
        Scheduler_Simulate=calls.WhatIf,
        Scheduler_Rebalance=calls.Rebalance,
        Operator_SetSchedulerConfiguration=calls.SchedulerConfigWrite,
        Operator_SetAutopilotConfiguration=calls.AutopilotConfigWrite,
        Operator_RemovePeer=calls.Write,
        Operator_TransferLeadership=calls.Write,
        Keyring_Rotate=calls.Write,
        Keyring_Delete=calls.Write,
        HostVolume_Create=calls.HostVolumeWrite,
        HostVolume_Register=calls.HostVolumeWrite,
        HostVolume_Delete=calls.Write,
        TaskGroupHostVolumeClaim_Delete=calls.Write,
        System_GarbageCollect=calls.Write,
        System_ReconcileSummaries=calls.Write,
    ),
    Method(
        name="Variables.Apply",
        request=calls.VariableApply,
        reply=calls.VariableReply,
        where="leader",
    ),
    Method(name="Operator.SnapshotSave", request=calls.Read, where="any", stream=True),
    Method(name="Operator.SnapshotRestore", request=calls.Write, where="any", stream=True),
    # agents to servers
    Method(
        name="Node.Register",
        request=calls.NodeRegister,
        reply=calls.NodeReply,
        where="leader",
        roles=AGENTS,
    ),
    Method(
        name="Node.Heartbeat",
        request=calls.NodeHeartbeat,
        reply=calls.NodeReply,
        where="leader",
        roles=AGENTS,
    ),
    Method(
        name="Node.ClientAllocs",
        request=calls.ClientAllocsRequest,
        reply=calls.ClientAllocsReply,
        where="read",
        roles=AGENTS,
    ),
    Method(
        name="Alloc.GetMany",
        request=calls.AllocsGetRequest,
        reply=calls.AllocsGetReply,
        where="read",
        roles=AGENTS,
    ),
    Method(
        name="Node.UpdateAllocs",
        request=calls.UpdateAllocsRequest,
        reply=calls.IndexReply,
        where="leader",
        roles=AGENTS,
    ),
    Method(
        name="Alloc.SignCertificate",
        request=calls.TaskCertificateRequest,
        reply=calls.TaskCertificateReply,
        where="leader",
        roles=AGENTS,
    ),
    Method(
        name="Alloc.SignIdentities",
        request=calls.SignIdentitiesRequest,
        reply=calls.SignIdentitiesReply,
        where="leader",
        roles=AGENTS,
    ),
    Method(
        name="Node.Attach",
        request=calls.NodeAttach,
        reply=calls.IndexReply,
        where="any",
        roles=AGENTS,
    ),
    # servers among themselves
    Method(
        name="Server.Hello",
        request=calls.ServerHello,
        reply=calls.ServerHelloReply,
        where="any",
        roles=SERVERS,
    ),
    Method(
        name="Server.RestoreStep",
        request=calls.RestoreStep,
        where="leader",
        roles=SERVERS,
    ),
    Method(
        name="Server.Leave",
        request=calls.Write,
        where="leader",
        roles=SERVERS,
    ),
    Method(
        name="Raft.ReadIndex",
        request=calls.IndexRequest,
        reply=calls.IndexReply,
        where="any",
        roles=SERVERS,
    ),
    # the node that owns it
    *(
        Method(name=name, request=calls.NodeRead, where="node")
        for name in (
            "Client.Stats",
            "Client.Meta",
            "Client.GarbageCollect",
            "ClientAlloc.Stats",
            "ClientAlloc.Checks",
            "ClientAlloc.GarbageCollect",
        )
    ),
    Method(name="Client.MetaApply", request=calls.ClientMetaApply, where="node"),
    Method(name="ClientAlloc.Signal", request=calls.AllocSignal, where="node"),
    Method(name="ClientAlloc.Restart", request=calls.AllocRestart, where="node"),
    # what servers have the node do with its volumes
    Method(
        name="ClientHostVolume.Create",
        request=calls.ClientHostVolumeCreateRequest,
        reply=calls.ClientHostVolumeCreateReply,
        where="node",
        roles=SERVERS,
    ),
    Method(
        name="ClientHostVolume.Register",
        request=calls.ClientHostVolumeRegisterRequest,
        reply=calls.Empty,
        where="node",
        roles=SERVERS,
    ),
    Method(
        name="ClientHostVolume.Delete",
        request=calls.ClientHostVolumeDeleteRequest,
        reply=calls.ClientHostVolumeDeleteReply,
        where="node",
        roles=SERVERS,
    ),
    Method(name="FS.List", request=calls.FileRead, where="node"),
    Method(name="FS.Stat", request=calls.FileRead, where="node"),
    *(
        Method(name=name, request=request, where="node", stream=True)
        for name, request in (
            ("FS.Cat", calls.FileRead),
            ("FS.ReadAt", calls.FileRead),
            ("FS.Stream", calls.FileRead),
            ("FS.Logs", calls.LogsRead),
            ("FS.Disk", calls.NodeRead),
            ("ClientAlloc.Exec", calls.ExecStart),
        )
    ),
]

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}
