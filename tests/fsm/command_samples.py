"""One entry with each command, every field filled. `PYTHONPATH=tests python -m fsm.command_samples` writes those without a case.

A case is written once and then must decode for ever, so it is never written again. When a command gets a new field, its
sample keeps the old value: the field's default.
"""

from __future__ import annotations

from pathlib import Path

from fsm.fsm_samples import alloc, deployment, evaluation, job, node, plan

from nomadpy.fsm import commands as c
from nomadpy.fsm.packing import pack
from nomadpy.models.allocation import AllocationMetric, DesiredTransition, NodeScoreMeta
from nomadpy.models.constraint import Constraint
from nomadpy.models.host_volume import HostVolume, HostVolumeCapability
from nomadpy.models.job import JobSubmission
from nomadpy.models.node import DrainStrategy, NodeEvent, NodePool
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration
from nomadpy.models.plan import AllocStop, DeploymentStatusUpdate
from nomadpy.models.root_key import RootKey
from nomadpy.models.scaling import ScalingEvent
from nomadpy.models.variable import Sealed

CASES = Path(__file__).parent / "cases"

_EVENT = NodeEvent(message="m", subsystem="s", details={"a": "b"}, timestamp="2026-11-23T00:16:52Z")
_SEALED = Sealed("k1", b"n" * 12, b"ciphertext")
_EVALS = [evaluation("e1"), evaluation("e2", status="blocked")]
_METRIC = AllocationMetric(
    nodes_evaluated=2,
    score_meta_data=[NodeScoreMeta(node_id="n1", scores={"binpack": 0.25}, norm_score=0.25)],
)

COMMANDS: list[c.Command] = [
    c.JobRegister(
        job=job(),
        submission=JobSubmission(
            source="job {}", format="hcl2", variable_flags={"a": "b"}, variables="c=d"
        ),
        evaluation=evaluation("e1"),
        enforce_index=7,
    ),
    c.JobDeregister(namespace="default", job_id="web", purge=True, evaluation=evaluation("e1")),
    c.JobStability(namespace="default", job_id="web", version=3, stable=True),
    c.JobTag(
        namespace="default", job_id="web", version=3, name="golden", description="good", unset=True
    ),
    c.JobScale(
        namespace="default",
        job_id="web",
        group="group",
        job=job(count=5),
        event=ScalingEvent(count=5, previous_count=2, message="more", meta={"by": "hand"}),
        evaluation=evaluation("e1"),
        enforce_index=7,
    ),
    c.NodeRegister(node=node()),
    c.NodeStatus(node_id="n1", status="down", event=_EVENT, evaluations=_EVALS),
    c.NodeDrain(
        node_id="n1",
        drain=DrainStrategy(deadline=60_000_000_000, ignore_system_jobs=True),
        mark_eligible=True,
        meta={"reason": "kernel"},
        event=_EVENT,
        evaluations=_EVALS,
        last_drain_status="draining",
        accessor_id="someone",
    ),
    c.NodeEligibility(node_id="n1", eligibility="eligible", event=_EVENT, evaluations=_EVALS),
    c.NodeDeregister(node_ids=["n1", "n2"], evaluations=_EVALS),
    c.EvalUpsert(evals=_EVALS),
    c.EvalDelete(eval_ids=["e1"], alloc_ids=["a1"]),
    c.AllocClientUpdate(allocs=[alloc("a1", client_status="running")], evaluations=_EVALS),
    c.AllocTransition(transitions={"a1": DesiredTransition(migrate=True)}, evaluations=_EVALS),
    c.PlanResults(
        plans=[
            plan(
                alloc("a1", deployment_id="d1"),
                stops=[
                    AllocStop(alloc_id="a2", node_id="n1", description="why", client_status="lost")
                ],
                deployment=deployment(),
                deployment_updates=[
                    DeploymentStatusUpdate(deployment_id="d0", status="cancelled", description="x")
                ],
                evaluations=_EVALS,
            )
        ]
    ),
    c.DeploymentUpdate(
        deployment_id="d1", status="failed", description="x", evaluation=evaluation("e1"), job=job()
    ),
    c.DeploymentAllocHealth(
        deployment_id="d1",
        healthy=["a1"],
        unhealthy=["a2"],
        status="failed",
        description="x",
        evaluation=evaluation("e1"),
        job=job(),
    ),
    c.NodePoolUpsert(pools=[NodePool(name="gpu", description="gpu machines", meta={"team": "ml"})]),
    c.NodePoolDelete(names=["gpu"], region="eu"),
    c.SchedulerConfigSet(config=SchedulerConfiguration(scheduler_algorithm="spread"), cas=7),
    c.AutopilotConfigSet(config=AutopilotConfiguration(min_quorum=3), cas=7),
    c.RootKeyUpsert(
        key=RootKey(key_id="k1", signing_key_pem=b"a", ca_certificate_pem=b"b", ca_key_pem=b"c")
    ),
    c.RootKeyDelete(key_id="k1"),
    c.ClusterMetadataSet(cluster_id="cluster"),
    c.DeploymentDelete(ids=["d1"]),
    c.JobBatchPurge(jobs=[("default", "web")]),
    c.ReconcileSummaries(),
    c.Noop(),
    c.DeploymentPromote(deployment_id="d1", groups=["group"], evaluation=evaluation("e1")),
    c.VariableSet(namespace="default", path="app/config", sealed=_SEALED, cas=7, lock_id="l1"),
    c.VariableDelete(namespace="default", path="app/config", cas=7),
    c.VariableLock(
        namespace="default",
        path="app/config",
        sealed=_SEALED,
        lock_id="l1",
        ttl=15_000_000_000,
        delay=1_000_000_000,
        keep=True,
        held_id="l0",
    ),
    c.VariableUnlock(namespace="default", path="app/config", lock_id="l1", reason="expired"),
    c.VariableReseal(
        variables=[c.Resealed("default", "app/config", b"n" * 12, Sealed("k2", b"m" * 12, b"data"))]
    ),
    c.RestorePart(restore_id="r1", number=2, data=b"piece"),
    c.Restore(restore_id="r1", parts=3, sha256="ab" * 32),
    c.Checkpoint(),
    c.LogFormatSet(version=2),
    c.HostVolumeUpsert(
        volumes=[
            HostVolume(
                namespace="default",
                id="v1",
                name="data",
                plugin_id="mkdir",
                node_pool="default",
                node_id="n1",
                constraints=[Constraint(l_target="${meta.rack}", r_target="r1", operand="=")],
                requested_capacity_min_bytes=1,
                requested_capacity_max_bytes=2,
                capacity_bytes=2,
                requested_capabilities=[
                    HostVolumeCapability(
                        attachment_mode="file-system", access_mode="single-node-writer"
                    )
                ],
                parameters={"mode": "0750"},
                host_path="/volumes/v1",
                state="ready",
            )
        ]
    ),
    c.HostVolumeDelete(namespace="default", ids=["v1"]),
    c.VolumeClaimDelete(claim_id="c1"),
    c.PackedPlans(
        plans=[
            pack(
                plan(
                    alloc("a1", deployment_id="d1", metrics=_METRIC),
                    alloc("a2", deployment_id="d1"),
                    stops=[AllocStop(alloc_id="a3", node_id="n1", description="why")],
                    evaluations=_EVALS,
                )
            )
        ]
    ),
]


def entry_of(command: c.Command) -> c.Entry:
    """The entry that a command's case holds."""
    return c.Entry(request_id="request", now_ns=1_795_393_293_000_000_000, command=command)


def case_of(command: c.Command) -> Path:
    """Where the case of a command is: its tag and name, the bytes as hexadecimal lines."""
    kind = type(command)
    return CASES / f"{kind.__struct_config__.tag:02d}-{kind.__name__}.hex"


if __name__ == "__main__":
    for sample in COMMANDS:
        if not case_of(sample).exists():
            text = c.encode_entry(entry_of(sample)).hex()
            lines = [text[start : start + 100] for start in range(0, len(text), 100)]
            case_of(sample).write_text("\n".join(lines) + "\n")
            print(f"wrote {case_of(sample).name}")
