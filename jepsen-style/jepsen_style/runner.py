"""One run: the cluster up, clients and faults against the clock, everything healed, the history on disk."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import psutil

from jepsen_style import generator
from jepsen_style.checker.recovery import UNHEALED
from jepsen_style.client import NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.cluster import Cluster, OwnCluster
from jepsen_style.equipment_registry import AGENTS, equipment_for
from jepsen_style.history import NEMESIS, OBSERVER, SCALES, Kind, Op, Recorder
from jepsen_style.nemesis.base import Nemesis
from jepsen_style.nemesis.combined import Strikes
from jepsen_style.nemesis.registry import NEMESES, family_of
from jepsen_style.undo import UndoList
from jepsen_style.workload.base import Outcome, Reads, Request, Workload
from jepsen_style.workload.registry import WORKLOADS
from nomadpy.clock import SystemClock
from nomadpy.demo.client import until

READY_S = 90.0
OBSERVE_S = 0.2
WEIGH_S = 1.0
CLOCK = "clock"

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to be. combined: faults of different families overlap. rate: requests a second of all clients together, 0 for as fast as they can."""

    workload: str = "register"
    nemeses: list[str] = []
    combined: bool = False
    time_limit_s: float = 30.0
    liveness_s: float = 10.0
    concurrency: int = 9
    rate: float = 0.0
    seed: int = 0
    nodes: int = 3
    agents: int = 0
    reads: Reads = "default"
    mutation: str = ""
    timeout_s: float = 5.0
    command: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept about a run beside its history. nodes: the servers."""

    options: Options
    nodes: list[str]
    began_ns: int
    version: str
    agents: list[str] = []


AGENTS_WHEN_NEEDED = 2


def needs(workload: str, nemeses: Iterable[str]) -> set[str]:
    """What a workload and its nemeses need together."""
    found = set(WORKLOADS[workload].needs)
    for name in nemeses:
        found |= NEMESES[name].needs
    return found


def agents_for(asked: int, workload: str, nemeses: Iterable[str]) -> int:
    """How many agents a run has: what was asked for, and some when somebody needs them."""
    return asked or (AGENTS_WHEN_NEEDED if AGENTS in needs(workload, nemeses) else 0)


class _Time:
    """Nanoseconds since the run began."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._zero = self._clock.monotonic()

    def ns(self) -> int:
        return int((self._clock.monotonic() - self._zero) * 1e9)

    def seconds(self) -> float:
        return self._clock.monotonic() - self._zero


def steps_of(options: Options) -> list[generator.Step]:
    """The schedule of a run's faults."""
    if options.combined:
        families = {name: family_of(name) for name in options.nemeses}
        return generator.overlapping(options.seed, families, options.time_limit_s)
    return generator.schedule(options.seed, options.nemeses, options.time_limit_s)


@contextlib.contextmanager
def own_cluster(options: Options, say: Say, logs: Path) -> Iterator[OwnCluster]:
    """A cluster of the kit's own that leaves nothing behind, also when the kit is killed (`run.py heal`).

    logs: the folder where its logs are kept.
    """
    undo = UndoList()
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-jepsen-"))
    undo.note("folder", str(folder))
    try:
        workload = WORKLOADS[options.workload]
        equipment = [
            kind(folder / kind.need, undo)
            for kind in equipment_for(needs(options.workload, options.nemeses))
        ]
        cluster = OwnCluster(
            folder / "nodes",
            options.nodes,
            agents=options.agents,
            mutation=options.mutation,
            equipment=equipment,
            extra=workload.configuration,
        )
        with cluster:
            try:
                cluster.equip()
                cluster.prepare()
                cluster.start()
                say(f"{cluster.await_leader(seconds=READY_S)} leads")
                cluster.await_agents(seconds=READY_S)
                yield cluster
            finally:
                # Also those of a cluster that did not start.
                for name, text in cluster.logs().items():
                    (logs / f"{name}.log").write_text(text, encoding="utf-8")
    finally:
        undo.undo_all()


class Runner:
    """Runs one workload against one cluster and writes the history."""

    def __init__(self, options: Options, cluster: Cluster, folder: Path, run_id: str) -> None:
        self.options = options
        self.cluster = cluster
        self.folder = folder
        self.workload: Workload = WORKLOADS[options.workload](f"jepsen/{run_id}", options.reads)
        if isinstance(cluster, OwnCluster):
            self.workload.attach(cluster)
        self._time = _Time()
        self._recorder = Recorder(folder / "history.jsonl")
        self._lock = threading.Lock()
        self._phase = ""
        self._phase_over = threading.Event()
        self._over = threading.Event()
        self._failure: BaseException | None = None

    def run(self, say: Say) -> None:
        """Everything but the verdict. Raises what went wrong in the kit itself; the history is closed in any case."""
        names = self.cluster.names
        self._await_writes()
        self._time = _Time()
        # What o'clock it was when the run's time began: for the nodes' logs.
        self._record(SCALES, "info", CLOCK, value=SystemClock().now_ns())
        observers = [
            threading.Thread(
                target=self._guarded, args=(self._observe, name), name=f"observe-{name}"
            )
            for name in names
        ]
        observers.append(
            threading.Thread(target=self._guarded, args=(self._weigh, None), name="weigh")
        )
        try:
            for thread in observers:
                thread.start()
            for phase in generator.phases(self.options.time_limit_s, self.options.liveness_s):
                say(f"{self._time.seconds():6.1f} s  {phase.name}")
                self._phase = phase.name
                if phase.name == "heal":
                    self._heal()
                elif phase.name == "final":
                    self._finals()
                else:
                    self._work(phase, say)
        finally:
            self._phase_over.set()
            self._over.set()
            for thread in observers:
                thread.join()
            self._recorder.close()
        if self._failure is not None:
            raise RuntimeError("a part of the kit failed") from self._failure

    def clean(self) -> None:
        """Remove what the workload wrote."""
        client = self.cluster.client(self.cluster.names[0], 30.0)
        try:
            self.workload.clean(client)
        finally:
            client.close()

    def _await_writes(self) -> None:
        """A new cluster has a leader before it has the keys that variables need."""
        client = self.cluster.client(self.cluster.names[0], 30.0)
        path = f"/v1/var/{self.workload.prefix}/ready"
        try:
            until(lambda: _accepted(client, path), seconds=READY_S, what="the first write")
            client.send("DELETE", path)
        finally:
            client.close()

    # -- phases -----------------------------------------------------------------------------------------------

    def _work(self, phase: generator.Phase, say: Say) -> None:
        self._phase_over.clear()
        threads = [
            threading.Thread(
                target=self._guarded, args=(self._serve, worker), name=f"client-{worker}"
            )
            for worker in range(self.options.concurrency)
        ]
        for thread in threads:
            thread.start()
        try:
            if phase.name == "safety":
                self._strike(say)
                self._wait_until(phase.seconds)
            else:
                self._wait_until(self._time.seconds() + phase.seconds)
        finally:
            self._phase_over.set()
            for thread in threads:
                thread.join()

    def _wait_until(self, moment_s: float) -> bool:
        """Wait for a moment of the run; False when a part of the kit has failed meanwhile."""
        self._over.wait(max(0.0, moment_s - self._time.seconds()))
        return not self._over.is_set()

    def _strike(self, say: Say) -> None:
        options, cluster = self.options, self.cluster
        if not isinstance(cluster, OwnCluster) or not options.nemeses:
            return

        def tell(what: str, step: generator.Step, words: str, at: int) -> None:
            self._record(NEMESIS, "info", what, key=step.nemesis, value=words or None, time=at)
            told = {
                "start": f": {words}",
                "stop": " undone",
                "missed": f" could not strike: {words}",
            }[what]
            say(f"{self._time.seconds():6.1f} s  {step.nemesis}{told}")

        def make(name: str) -> Nemesis:
            return NEMESES[name].make(cluster, self._note)

        strikes = Strikes(options.seed, make, self._time.ns, tell)
        strikes.run(steps_of(options), self._wait_until)

    def _heal(self) -> None:
        if not isinstance(self.cluster, OwnCluster):
            return
        self._record(NEMESIS, "info", "heal")
        try:
            for name in self.cluster.heal():
                self._note("restarted", name)
            self.cluster.await_leader(seconds=READY_S)
            self.cluster.await_answers(seconds=READY_S)
            self.cluster.await_agents(seconds=READY_S)
        except (RuntimeError, TimeoutError) as error:
            # The cluster's failure, not the kit's: the checkers shall say so, and the history go on to its end.
            self._record(NEMESIS, "info", UNHEALED, error=str(error))

    def _finals(self) -> None:
        for number, name in enumerate(self.cluster.names):
            # Processes of their own; patient, for the faults are over.
            process = 1_000_000 + number
            client = self.cluster.client(name, 30.0)
            try:
                for request in self.workload.finals():
                    self._do(process, client, request)
            finally:
                client.close()

    # -- threads ----------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[object], None], argument: object) -> None:
        try:
            work(argument)
        except BaseException as error:  # noqa: BLE001 - the end of a thread's life; the run tells it
            self._failure = self._failure or error
            self._over.set()
            self._phase_over.set()

    def _serve(self, worker: object) -> None:
        """One client: request after request at its node; after an unknown outcome it is a new process."""
        assert isinstance(worker, int)
        options = self.options
        source = generator.chance(options.seed, f"{self._phase}/client-{worker}")
        name = self.cluster.names[worker % len(self.cluster.names)]
        base = worker if self._phase == "safety" else worker + 500_000
        process = base
        client = self.cluster.client(name, options.timeout_s)
        try:
            while not self._phase_over.wait(
                self.workload.rest_s(worker)
                + generator.pause_s(source, options.rate, options.concurrency)
            ):
                with self._lock:
                    request = self.workload.request(worker, source)
                outcome = self._do(process, client, request)
                with self._lock:
                    self.workload.learn(worker, request, outcome)
                if outcome.type == "info":
                    process += options.concurrency
                elif outcome.type == "fail" and outcome.version is None:
                    # Nobody answers: not as fast as the loop can turn.
                    self._phase_over.wait(0.05)
        finally:
            client.close()

    def _do(self, process: int, client: NodeClient, request: Request) -> Outcome:
        self._record(
            process,
            "invoke",
            request.f,
            key=request.key,
            value=request.value,
            cas=request.cas,
            node=client.name,
        )
        try:
            outcome = self.workload.perform(client, request)
        except NotDoneError as error:
            outcome = Outcome(type="fail", error=str(error))
        except OutcomeUnknownError as error:
            outcome = Outcome(type="info", error=str(error))
        value = outcome.value
        if outcome.type == "ok" and value is None and request.f != "read":
            value = request.value
        self._record(
            process,
            outcome.type,
            request.f,
            key=request.key,
            value=value,
            version=outcome.version,
            node=client.name,
            error=outcome.error[:300],
        )
        return outcome

    def _observe(self, name: object) -> None:
        """Who leads, as a node says, whenever that changes."""
        assert isinstance(name, str)
        last = None
        while not self._over.wait(OBSERVE_S):
            asked = self._time.ns()
            said = self.cluster.leader_seen_by(name)
            if said != last:
                last = said
                self._record(OBSERVER, "info", "leader", node=name, value=said, time=asked)

    def _weigh(self, _: object) -> None:
        """What every node's process takes of the machine."""
        cluster = self.cluster
        if not isinstance(cluster, OwnCluster):
            return
        known: dict[int, psutil.Process] = {}
        while not self._over.wait(WEIGH_S):
            for name, host in cluster.hosts.items():
                process = host.process
                if process is None or not host.alive:
                    continue
                with contextlib.suppress(psutil.Error):
                    one = known.setdefault(process.pid, psutil.Process(process.pid))
                    weight = {
                        # Since the sample before; the first is 0.
                        "cpu_percent": round(one.cpu_percent(), 1),
                        "rss_mb": round(one.memory_info().rss / 1e6, 1),
                        "fds": one.num_fds(),
                    }
                    self._record(SCALES, "info", "load", node=name, value=weight)

    # -- records ----------------------------------------------------------------------------------------------

    def _note(self, what: str, node: str) -> None:
        self._record(NEMESIS, "info", what, node=node)

    def _record(
        self,
        process: int,
        kind: Kind,
        f: str,
        *,
        key: str = "",
        value: object = None,
        version: int | None = None,
        cas: int | None = None,
        node: str = "",
        error: str = "",
        time: int | None = None,
    ) -> None:
        self._recorder.write(
            Op(
                time=self._time.ns() if time is None else time,
                type=kind,
                process=process,
                f=f,
                key=key,
                value=value,
                version=version,
                cas=cas,
                node=node,
                error=error,
                phase=self._phase,
            )
        )


def _accepted(client: NodeClient, path: str) -> bool:
    try:
        return client.send("PUT", path, {"Items": {"value": "true"}}).status == 200
    except (NotDoneError, OutcomeUnknownError):
        return False
