"""Why a job's groups can be placed where, or nowhere: every obstacle of every node, and what to do about it.

Unlike scheduling, which stops at a node's first obstacle, this looks at all of them, for people. It changes nothing.

In:      a snapshot, the job as it is or would be.
Out:     models/explanation.py, in sentences.
Not here: what helps (suggestions.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import Allocation
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.explanation import (
    GroupExplanation,
    JobExplanation,
    NodeVerdict,
    Obstacle,
    PlacedAlloc,
)
from nomadpy.models.host_volume import index_of
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.scheduler import devices as node_devices
from nomadpy.scheduler import suggestions
from nomadpy.scheduler.cluster import Cluster, NodeState
from nomadpy.scheduler.feasibility import (
    ALL_POOL,
    Feasibility,
    Requirements,
    has_driver,
    has_network,
    in_datacenters,
    requirements,
    resolve,
)
from nomadpy.scheduler.fit import not_ready, terminal
from nomadpy.scheduler.node_table import NodeRow, NodeTable
from nomadpy.scheduler.numa import APART
from nomadpy.scheduler.operators import holds
from nomadpy.scheduler.placement import GroupPlacer
from nomadpy.scheduler.preemption import Preemptor
from nomadpy.scheduler.ranking import combine
from nomadpy.scheduler.refusals import GrantError
from nomadpy.scheduler.settings import effective_config, may_preempt
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.volumes import per_alloc

NODES_SHOWN = 20


def explain_job(
    job: Job, snapshot: Snapshot, entropy: Entropy, *, nodes_shown: int = NODES_SHOWN
) -> JobExplanation:
    """Return the explanation of a job on a snapshot that has it. nodes_shown: how many verdicts a group lists."""
    table = NodeTable()
    table.catch_up(snapshot)
    allocs = [
        alloc for alloc in snapshot.allocs_by_job(job.namespace, job.id) if not terminal(alloc)
    ]
    cluster = Cluster(snapshot, table, table.view(job), allocs)
    looker = _Looker(job, snapshot, cluster, table, entropy)
    return JobExplanation(
        job_id=job.id,
        namespace=job.namespace,
        job_type=job.type,
        job_version=job.version,
        stopped=job.stop,
        groups=[
            looker.group(group, [a for a in allocs if a.task_group == group.name], nodes_shown)
            for group in job.task_groups or ()
        ],
    )


class _Looker:
    """Looks at every node for one job."""

    def __init__(
        self,
        job: Job,
        snapshot: Snapshot,
        cluster: Cluster,
        table: NodeTable,
        entropy: Entropy,
    ) -> None:
        self._job = job
        self._snapshot = snapshot
        self._cluster = cluster
        self._table = table
        self._entropy = entropy
        self._config = effective_config(snapshot, job)
        self._nodes = sorted(snapshot.nodes(), key=lambda node: node.id)

    def group(self, group: TaskGroup, allocs: list[Allocation], shown: int) -> GroupExplanation:
        """Explain one group. allocs: its live ones."""
        index = _next_index(allocs) if per_alloc(group) else 0
        placer = GroupPlacer(
            self._cluster, self._job, group, self._config, self._entropy, index=index
        )
        placer.expect_newcomer()
        wanted = requirements(self._job, group, index)
        verdicts = [self._verdict(node, placer, wanted) for node in self._nodes]
        by_node: dict[str, list[str]] = {}
        for alloc in allocs:
            by_node.setdefault(alloc.node_id, []).append(alloc.id)
        if self._job.type in ("system", "sysbatch"):
            # Nodes that have it already are no obstacle.
            open_nodes = [one for one in verdicts if one.node_id not in by_node]
            count = len(allocs) + sum(
                1 for one in open_nodes if all(o.kind in _ROOM for o in one.obstacles or ())
            )
            missing = count - len(allocs)
            if self._job.type == "sysbatch" or self._job.stop:
                missing, count = 0, len(allocs)
        else:
            count = 0 if self._job.stop else group.count
            missing = max(0, count - len(allocs))
            if self._job.type == "batch" and not any(
                e.status == "blocked" for e in self._evaluations()
            ):
                missing = 0
            open_nodes = verdicts
        ordered = sorted(open_nodes, key=_nearness)
        fitting = sum(one.fits for one in verdicts)
        tally: dict[str, int] = {}
        for one in verdicts:
            for kind in dict.fromkeys(o.kind for o in one.obstacles or ()):
                tally[kind] = tally.get(kind, 0) + 1
        nearest = ordered[0] if ordered and not ordered[0].fits else None
        facts = suggestions.Facts(
            job=self._job,
            group=group,
            wanted=wanted,
            nodes=self._nodes,
            rows=[row for row in map(self._row, self._nodes) if row is not None],
            verdicts=verdicts,
            ask=placer.ask,
            preemption_would_help=bool(missing and not fitting)
            and self._preemption_would_help(placer),
            preemption_allowed=may_preempt(self._config, self._job.type),
            held=self._held(group, placer) if missing else [],
        )
        return GroupExplanation(
            name=group.name,
            wanted=count,
            placed=len(allocs),
            missing=missing,
            fitting_nodes=fitting,
            total_nodes=len(verdicts),
            summary=suggestions.summary(facts, count, len(allocs), missing, fitting),
            suggestions=suggestions.suggest(facts) if missing or not fitting else None,
            tally=dict(sorted(tally.items(), key=lambda pair: (-pair[1], pair[0]))) or None,
            nearest=nearest,
            nodes=ordered[:shown],
            left_out=max(0, len(ordered) - shown),
            allocs=[self._placed(alloc) for alloc in allocs] or None,
        )

    def _held(self, group: TaskGroup, placer: GroupPlacer) -> list[str]:
        """Sentences on the sticky volumes that the group holds, and that its next allocation must have."""
        allowed = {one for ids in placer.volumes.aim.allowed.values() for one in ids}
        found = []
        for claim in self._snapshot.volume_claims_by_job(self._job.namespace, self._job.id):
            volume = self._snapshot.host_volume(claim.namespace, claim.volume_id)
            if claim.task_group_name == group.name and claim.volume_id in allowed:
                node = self._snapshot.node(volume.node_id) if volume is not None else None
                where = "a node that is gone" if node is None else f"node {node.name}"
                found.append(
                    f'the group holds volume "{claim.volume_name}" on {where}, and its next allocation goes only there. To do '
                    f"without what was written: nomadpy volume claim delete {claim.id}"
                )
        return found

    def _evaluations(self) -> Iterable[Evaluation]:
        return self._snapshot.evals_by_job(self._job.namespace, self._job.id)

    def _row(self, node: Node) -> NodeRow | None:
        return self._table.row(node.id)

    def _verdict(self, node: Node, placer: GroupPlacer, wanted: Requirements) -> NodeVerdict:
        found = [*self._standing_obstacles(node), *_needs(node, wanted)]
        row = self._row(node)
        state = self._cluster.get(node.id) or (
            NodeState(-1, row, self._table) if row is not None else None
        )
        score, scores = 0.0, None
        if state is not None:
            lacks = any(one.kind == _DEVICE for one in found)
            found += [
                one
                for one in self._room_obstacles(state, placer)
                # What is not there is not taken either.
                if not (lacks and one.kind == "devices")
            ]
        if state is not None and all(one.kind != _VOLUME for one in found):
            lacking = placer.volumes.why(state)
            if lacking:
                found.append(Obstacle(kind=_VOLUME, text=lacking))
        if not found and state is not None and state.index >= 0:
            problem = placer.forbidden(state)
            if problem:
                kind = problem.partition(":")[0]
                found.append(
                    Obstacle(kind=kind, text=suggestions.distinct_text(problem, node.name))
                )
            else:
                parts = placer.trial(state)
                if parts is not None:
                    scores = {name: value for name, value in parts.items() if value}
                    score = combine(parts)
        return NodeVerdict(
            node_id=node.id,
            node_name=node.name,
            datacenter=node.datacenter,
            node_pool=node.node_pool,
            fits=not found,
            obstacles=found,
            score=score,
            scores=scores,
        )

    def _standing_obstacles(self, node: Node) -> list[Obstacle]:
        """Whether the node takes anything, and this job at all."""
        job, found = self._job, []
        refused = not_ready(node)
        if refused:
            has = node.status if node.status != "ready" else refused.removeprefix("node is ")
            found.append(Obstacle(kind="not ready", asked="ready", has=has, text=f"the {refused}"))
        pool = node.node_pool or "default"
        if job.node_pool not in (ALL_POOL, pool, ""):
            found.append(
                Obstacle(
                    kind="node pool",
                    asked=job.node_pool,
                    has=pool,
                    text=f'it is in node pool "{pool}", the job in "{job.node_pool}"',
                )
            )
        if not in_datacenters(node.datacenter, job.datacenters):
            asked = ", ".join(job.datacenters or ())
            found.append(
                Obstacle(
                    kind="datacenter",
                    asked=asked,
                    has=node.datacenter,
                    text=f'it is in datacenter "{node.datacenter}", the job wants {asked}',
                )
            )
        return found

    def _room_obstacles(self, state: NodeState, placer: GroupPlacer) -> list[Obstacle]:
        """Every dimension in which the node has too little left."""
        amount, have = placer.ask.amount(state.have), state.have
        found: list[Obstacle] = []
        for kind, unit, asked, used, total in (
            ("cpu", "MHz", amount.cpu, state.cpu, have.cpu),
            ("memory", "MiB", amount.memory_mb, state.memory_mb, have.memory_mb),
            ("disk", "MiB", amount.disk_mb, state.disk_mb, have.disk_mb),
        ):
            if used + asked > total:
                free = max(0, total - used)
                found.append(
                    Obstacle(
                        kind=kind,
                        asked=str(asked),
                        has=str(free),
                        text=f"{kind}: needs {asked:,} {unit}, {free:,} of {total:,} are free",
                    )
                )
        shortage = placer.ask.shortage(state)
        if shortage and shortage not in ("cpu", "memory", "disk"):
            kind = shortage.partition(":")[0]
            found.append(Obstacle(kind=kind, text=_SHORTAGES.get(shortage, shortage)))
        if not shortage:
            try:
                placer.ask.grant(state, self._entropy)
            except GrantError as problem:
                found.append(Obstacle(kind="network", text=suggestions.port_text(str(problem))))
            state.forget_ports()
        return found

    def _preemption_would_help(self, placer: GroupPlacer) -> bool:
        preemptor = Preemptor(self._cluster, self._job, placer)
        return preemptor.possible()

    def _placed(self, alloc: Allocation) -> PlacedAlloc:
        told = (alloc.metrics.score_meta_data if alloc.metrics else None) or []
        mine = next((one for one in told if one.node_id == alloc.node_id), None)
        other = next((one for one in told if one.node_id != alloc.node_id), None)
        other_node = self._snapshot.node(other.node_id) if other else None
        return PlacedAlloc(
            alloc_id=alloc.id,
            name=alloc.name,
            node_id=alloc.node_id,
            node_name=alloc.node_name,
            client_status=alloc.client_status,
            score=mine.norm_score if mine else 0.0,
            scores={name: value for name, value in (mine.scores or {}).items() if value}
            if mine
            else None,
            runner_up=other_node.name if other_node else "",
            runner_up_score=other.norm_score if other else 0.0,
        )


_VOLUME = "host volume"
_DEVICE = "device"
_ROOM = frozenset(
    {"cpu", "memory", "disk", "cores", "network", "devices", "max allocations exceeded"}
)
_SHORTAGES = {
    "cores": "not enough whole cores are free",
    "max allocations exceeded": "it runs as many allocations as it may",
    node_devices.EXHAUSTED: "the devices that are asked for are taken",
    APART: "no free device that is asked for is on the NUMA node of enough free cores",
}


def _devices(node: Node, wanted: Requirements) -> list[Obstacle]:
    """Devices that the node would not have even if all of them were free."""
    told = (node.node_resources.devices if node.node_resources is not None else None) or []
    if not wanted.devices or node_devices.has(wanted.devices, node_devices.device_groups(told)):
        return []
    has = ", ".join(
        f"{sum(i.healthy for i in one.instances or ())} of {len(one.instances or ())} "
        f"{one.vendor}/{one.type}/{one.name}"
        for one in told
    )
    asked = ", ".join(f"{one.count} {one.name}" for one in wanted.devices)
    return [
        Obstacle(
            kind=_DEVICE,
            asked=asked,
            has=has,
            text=f"devices: needs {asked}"
            + (f", healthy here are {has}" if has else ", and there are none"),
        )
    ]


def _needs(node: Node, wanted: Requirements) -> list[Obstacle]:
    """Drivers, constraints, volumes and networks that the node does not have."""
    found: list[Obstacle] = []
    for driver in wanted.drivers:
        if not has_driver(node, driver):
            info = (node.drivers or {}).get(driver)
            sick = info is not None and info.detected
            said = f": {info.health_description}" if info and info.health_description else ""
            found.append(
                Obstacle(
                    kind="driver",
                    asked=driver,
                    has=", ".join(drivers_of(node)),
                    text=f'its driver "{driver}" is not healthy{said}'
                    if sick
                    else f'it has no driver "{driver}"',
                )
            )
    for one in wanted.constraints:
        left, right = resolve(one.l_target, node), resolve(one.r_target, node)
        if not holds(one.operand or "=", left, right):
            asked = f"{one.l_target} {one.operand or '='} {one.r_target}".strip()
            value = "not set" if left is None else f'"{left}"'
            found.append(
                Obstacle(
                    kind="constraint",
                    asked=asked,
                    has=left or "",
                    text=f"constraint {asked}: here it is {value}",
                )
            )
    found += _devices(node, wanted)
    for source, read_only in wanted.host_volumes:
        volume = (node.host_volumes or {}).get(source)
        if volume is None:
            found.append(
                Obstacle(kind=_VOLUME, asked=source, text=f'it has no host volume "{source}"')
            )
        elif volume.read_only and not read_only:
            found.append(
                Obstacle(
                    kind=_VOLUME,
                    asked=source,
                    has="read only",
                    text=f'its host volume "{source}" is read only',
                )
            )
    found += [
        Obstacle(kind="network mode", asked=mode, text=f'it has no "{mode}" network')
        for mode in wanted.network_modes
        if not has_network(node, mode)
    ]
    if not found:
        # What is not told apart above, in the scheduler's words.
        problem = Feasibility(wanted).problem(node)
        if problem:
            found.append(Obstacle(kind="requirement", asked=problem, text=problem))
    return found


def _next_index(allocs: list[Allocation]) -> int:
    """The lowest index that none of a group's allocations has."""
    there = {index_of(alloc.name) for alloc in allocs}
    return next(index for index in range(len(there) + 1) if index not in there)


def drivers_of(node: Node) -> list[str]:
    """The drivers that work on a node, by name."""
    names = {name for name, one in (node.drivers or {}).items() if one.detected and one.healthy}
    for name, value in (node.attributes or {}).items():
        if name.startswith("driver.") and name.count(".") == 1 and value in ("1", "true"):
            names.add(name[7:])
    return sorted(names)


def _nearness(verdict: NodeVerdict) -> tuple[bool, int, float, str]:
    """Nodes that fit, best first; then the fewest obstacles, then the smallest shortage."""
    short = 0.0
    for one in verdict.obstacles or ():
        if one.asked.isdigit() and one.has.isdigit() and int(one.asked):
            short += 1 - int(one.has) / int(one.asked)
    return (not verdict.fits, len(verdict.obstacles or ()), short - verdict.score, verdict.node_id)
