"""Users of the simulated cluster: each owns one job and changes it, again and again, over whatever server it reaches.

What was acknowledged is remembered, and what may or may not have happened is remembered as that.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import IndefiniteError, NomadError
from nomadpy.models.calls import JobDeregister, JobWrite
from nomadpy.models.envelope import Answer, WriteOptions
from nomadpy.simulator.cluster import SimCluster

CALL_TIMEOUT_S = 20.0


At = tuple[int, bool]
"""Where a job is: its generation, and whether it is stopped."""

NOWHERE: At = (0, True)
"""Where a job is that does not exist."""


class Promise(msgspec.Struct):
    """What one job's owner knows: where it was when a server last said yes, at the index acknowledged_at, and where writes
    without an answer may have put it since.

    Who stops a job does not know at which generation, when writes before it had no answer: `acknowledged` may be several.
    may_wait: that not all of it can be placed is no violation by itself.
    """

    job_id: str
    kind: str
    at: list[At] = msgspec.field(default_factory=lambda: [NOWHERE])
    doubts: list[At] = []
    acknowledged: int = 0
    acknowledged_at: int = 0
    may_wait: bool = False

    @property
    def possible(self) -> list[At]:
        """Everywhere that the job may be now, as long as nobody puts an earlier state back."""
        return [*self.at, *self.doubts]

    def acknowledge(self, at: list[At], *, index: int) -> None:
        """The server said yes: nothing older can be the truth any more."""
        self.at, self.doubts = at, []
        self.acknowledged += 1
        self.acknowledged_at = index

    def doubt(self, at: list[At]) -> None:
        """No answer: it may have happened, or may yet."""
        self.doubts = [*self.doubts, *(one for one in at if one not in self.doubts)]


class User:
    """Owns one job. `run` changes it until told to stop."""

    def __init__(self, cluster: SimCluster, number: int, entropy: SeededEntropy) -> None:
        self._cluster = cluster
        self._entropy = entropy
        kind = "batch" if number % 4 == 3 else "service"
        self.promise = Promise(job_id=f"job-{number}", kind=kind, at=[NOWHERE])
        self._generation = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Change the job at random moments until `stop` is set."""
        while not stop.is_set():
            await asyncio.sleep(self._entropy.uniform(0.5, 6.0))
            if stop.is_set():
                return
            if self._generation and self._entropy.uniform(0, 1) < 0.15:
                await self._stop_job()
            else:
                await self._change_job()

    async def settle(self) -> None:
        """With the world healed: one last change that must be acknowledged, so that no doubt is left."""
        for _ in range(20):
            await self._change_job()
            if not self.promise.doubts:
                return
            await asyncio.sleep(1.0)
        raise AssertionError(f"{self.promise.job_id}: no write was acknowledged after healing")

    async def _change_job(self) -> None:
        self._generation += 1
        job = self._job(self._generation)
        await self._write(
            "Job.Register",
            JobWrite(job=job, options=self._options()),
            [(self._generation, False)],
        )

    async def _stop_job(self) -> None:
        request = JobDeregister(job_id=self.promise.job_id, options=self._options())
        generations = sorted({generation for generation, _ in self.promise.possible})
        stopped = [(generation, True) for generation in generations]
        await self._write("Job.Deregister", request, stopped)

    def _options(self) -> WriteOptions:
        return WriteOptions(request_id=self._entropy.uuid())

    async def _write(self, method: str, request: msgspec.Struct, at: list[At]) -> None:
        live = self._cluster.live()
        if not live:
            return
        server = self._entropy.choice(live).process
        assert server is not None
        # A server that is crashed meanwhile never answers; its callers cannot know what became of their write.
        before = self.promise.doubts
        self.promise.doubt(at)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await server.server.call(method, request)
        except (TimeoutError, IndefiniteError):
            return
        except NomadError:
            self.promise.doubts = before
            return
        assert isinstance(answer, Answer)
        self.promise.acknowledge(at, index=answer.index)

    def _job(self, generation: int) -> dict[str, Any]:
        batch = self.promise.kind == "batch"
        config: dict[str, Any] = {"run_for": 3} if batch else {}
        group: dict[str, Any] = {
            "Name": "group",
            "Count": int(self._entropy.uniform(1, 4.99)),
            "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
            "Tasks": [
                {
                    "Name": "task",
                    "Driver": "mock_driver",
                    "Config": config,
                    "Env": {"STYLE": str(generation // 2)},
                    "Resources": {"CPU": 250, "MemoryMB": 100},
                }
            ],
        }
        if self._entropy.uniform(0, 1) < 0.3:
            group["Networks"] = [{"DynamicPorts": [{"Label": "http"}]}]
        job: dict[str, Any] = {
            "ID": self.promise.job_id,
            "Name": self.promise.job_id,
            "Type": self.promise.kind,
            "Datacenters": ["dc1"],
            "Meta": {"generation": str(generation)},
            "TaskGroups": [group],
        }
        if not batch:
            job["Update"] = {
                "MaxParallel": 2,
                "MinHealthyTime": 500_000_000,
                "HealthCheck": "task_states",
                "HealthyDeadline": 20_000_000_000,
                "ProgressDeadline": 60_000_000_000,
            }
            group["ReschedulePolicy"] = {
                "Delay": 5_000_000_000,
                "DelayFunction": "constant",
                "Unlimited": True,
            }
        return job
