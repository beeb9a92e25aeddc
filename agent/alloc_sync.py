"""What servers want this node to run, and what runs: pulls one, pushes the other.

Pull: a blocking query tells which allocations belong here and when servers last changed each; only the changed ones are
fetched. Push: the newest state of each changed allocation goes out in batches, and is kept until a server has it.
Stored allocations are taken up again before servers are asked anything.

When the servers' state went back, because an operator restored a snapshot or a lost majority took writes with it, what this node
had reported may be forgotten: then everything is reported anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.local_state import AllocRecord
from agent.runner.alloc_runner import AllocRunner
from agent.runner.context import RunnerContext
from agent.server_list import Backoff
from agent.services.certificates import NodeProof
from agent.strays import end_strays
from nomadpy import logs
from nomadpy.errors import NomadError, NotFoundError
from nomadpy.models.allocation import Allocation
from nomadpy.models.calls import (
    AllocsGetReply,
    AllocsGetRequest,
    ClientAllocsReply,
    ClientAllocsRequest,
    UpdateAllocsRequest,
)
from nomadpy.models.envelope import QueryOptions
from nomadpy.models.job import TaskGroup
from nomadpy.rpc.caller import Caller

log = logs.get(__name__)

BATCH_S = 0.2
BATCH_MOST = 256
FETCH_MOST = 64
WAIT_S = 300.0

_SECOND = 1_000_000_000
_CALL_TIMEOUT_S = 15.0
_CONTACT_CHECK_S = 10.0
_TERMINAL = ("complete", "failed", "lost")


class Outbox:
    """Allocation states on their way to the servers: the newest of each, until a server has acknowledged it."""

    def __init__(self, caller: Caller, proof: Callable[[], NodeProof], backoff: Backoff) -> None:
        self._caller = caller
        self._proof = proof
        self._backoff = backoff
        self._waiting: dict[str, Allocation] = {}
        self._acknowledged: dict[str, Allocation] = {}
        self._filled = asyncio.Event()

    def put(self, update: Allocation) -> None:
        """Queue a state; one that servers have already is dropped."""
        if update.id not in self._waiting and self._acknowledged.get(update.id) == update:
            return
        self._waiting[update.id] = update
        self._filled.set()

    def resend(self, update: Allocation) -> None:
        """Queue a state although servers may have it."""
        self._acknowledged.pop(update.id, None)
        self.put(update)

    def forget(self, alloc_id: str) -> None:
        """Servers have forgotten the allocation."""
        self._waiting.pop(alloc_id, None)
        self._acknowledged.pop(alloc_id, None)

    def has_arrived(self, alloc_id: str) -> bool:
        """Whether servers have the newest state."""
        return alloc_id not in self._waiting and alloc_id in self._acknowledged

    async def run(self) -> None:
        """Send batches for ever."""
        while True:
            await self._filled.wait()
            await asyncio.sleep(BATCH_S)
            await self._send()

    async def _send(self) -> None:
        batch = dict(list(self._waiting.items())[:BATCH_MOST])
        proof = self._proof()
        try:
            await self._caller.call(
                "Node.UpdateAllocs",
                UpdateAllocsRequest(
                    node_id=proof.node_id, secret_id=proof.secret_id, allocs=list(batch.values())
                ),
                timeout_s=_CALL_TIMEOUT_S,
            )
        except NomadError as cause:
            log.warning("allocation states not sent", count=len(batch), error=cause.message)
            await asyncio.sleep(self._backoff.next_s())
            return
        self._backoff.reset()
        for alloc_id, update in batch.items():
            self._acknowledged[alloc_id] = update
            # A newer one may have come while this one was on its way.
            if self._waiting.get(alloc_id) is update:
                del self._waiting[alloc_id]
        if not self._waiting:
            self._filled.clear()


class AllocSync:
    """Keeps the runners of this node in step with the servers."""

    def __init__(
        self,
        context: RunnerContext,
        caller: Caller,
        proof: Callable[[], NodeProof],
        silence_s: Callable[[], float],
        registered: asyncio.Event,
        register_anew: Callable[[], None],
    ) -> None:
        """registered: set once servers know the node; nothing is pulled before. silence_s: for how long no server has answered; 0 while nothing is overdue.
        register_anew: tells servers of the node, when they may have an older word of it than they acknowledged."""
        self.runners: dict[str, AllocRunner] = {}
        self.outbox = Outbox(caller, proof, Backoff(context.entropy, first_s=1.0))
        self.restored = asyncio.Event()
        self._context = context
        self._caller = caller
        self._proof = proof
        self._silence_s = silence_s
        self._registered = registered
        self._register_anew = register_anew
        self._known: dict[str, int] = {}
        self._restored = 0  # index of the restore that was answered to
        self._removing: set[str] = set()

    async def run(self) -> None:
        """Take up what is stored, then serve for ever. Cancelling leaves workloads alone."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await self._restore()
            group.create_task(self.outbox.run(), name="alloc-updates")
            group.create_task(self._pull(), name="alloc-pull")
            group.create_task(self._watch_contact(), name="alloc-contact")

    def runner(self, alloc_id: str) -> AllocRunner:
        """The runner of an allocation. Raises NotFoundError when this node does not have it."""
        runner = self.runners.get(alloc_id)
        if runner is None:
            raise NotFoundError(f'Unknown allocation "{alloc_id}"')
        return runner

    async def remove(self, alloc_id: str) -> None:
        """End an allocation, remove its files and forget it here; servers may still list it."""
        runner = self.runners.get(alloc_id)
        if runner is None or alloc_id in self._removing:
            return
        self._removing.add(alloc_id)
        try:
            await runner.destroy()
            del self.runners[alloc_id]
        finally:
            self._removing.discard(alloc_id)

    # -- at the start -----------------------------------------------------------------------------

    async def _restore(self) -> None:
        records = await self._context.state.allocs()
        for record in records:
            self._known[record.alloc.id] = record.alloc.alloc_modify_index
            self._start(record)
        for runner in list(self.runners.values()):
            await runner.restored.wait()
        if records:
            log.info("allocations restored", count=len(records))
        # Before any server is told what runs here, and before any of it is started a second time.
        await end_strays(self._context.drivers, self._context.directories, self.runners)
        self.restored.set()

    # -- pull -------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        await self._registered.wait()
        backoff = Backoff(self._context.entropy)
        index = 0
        while True:
            try:
                reply = await self._ask(index)
                if reply.index < index:
                    # A lost majority took the end of the log with it: ask again for all of it.
                    log.warning("allocations' index went back", was=index, is_now=reply.index)
                    index = 0
                    self._report_anew()
                    await asyncio.sleep(backoff.next_s())
                    continue
                went_back = reply.restored > self._restored
                if went_back:
                    # What had ended here and is forgotten here may be wanted again.
                    self._known = {i: n for i, n in self._known.items() if i in self.runners}
                complete = await self._take(reply)
                if went_back:
                    log.warning("servers' state was restored, reporting anew", at=reply.restored)
                    self._report_anew()
                    self._restored = reply.restored
            except NomadError as cause:
                log.warning("allocations not pulled", error=cause.message)
                await asyncio.sleep(backoff.next_s())
                continue
            self._context.contacted.set()
            if complete:
                index = reply.index
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next_s())

    def _report_anew(self) -> None:
        """Tell servers of the node and of every allocation, whatever they have acknowledged."""
        self._register_anew()
        for runner in self.runners.values():
            self.outbox.resend(runner.client_update())

    async def _ask(self, index: int) -> ClientAllocsReply:
        proof = self._proof()
        reply: ClientAllocsReply = await self._caller.call(
            "Node.ClientAllocs",
            ClientAllocsRequest(
                node_id=proof.node_id,
                secret_id=proof.secret_id,
                options=QueryOptions(min_index=index, wait_ns=int(WAIT_S * _SECOND)),
            ),
            timeout_s=WAIT_S * 17 / 16 + _CALL_TIMEOUT_S,
        )
        return reply

    async def _take(self, reply: ClientAllocsReply) -> bool:
        """Follow what servers want; False when some of it could not be fetched and must be asked for again."""
        wanted = [i for i, index in sorted(reply.allocs.items()) if self._known.get(i) != index]
        found = await self._fetch(wanted, reply.index)
        for alloc_id in sorted({*self.runners, *self._known} - set(reply.allocs)):
            self._forget(alloc_id)
        # Ends before beginnings: whoever is replaced must know before its replacement asks whether it is ending.
        for alloc in sorted(found, key=lambda a: a.id not in self.runners):
            await self._apply(alloc)
            self._known[alloc.id] = alloc.alloc_modify_index
        return all(self._known.get(i) == reply.allocs[i] for i in wanted)

    async def _fetch(self, ids: list[str], index: int) -> list[Allocation]:
        found: list[Allocation] = []
        proof = self._proof()
        for first in range(0, len(ids), FETCH_MOST):
            reply: AllocsGetReply = await self._caller.call(
                "Alloc.GetMany",
                AllocsGetRequest(
                    node_id=proof.node_id,
                    secret_id=proof.secret_id,
                    ids=ids[first : first + FETCH_MOST],
                    min_index=index,
                ),
                timeout_s=_CALL_TIMEOUT_S,
            )
            found.extend(reply.allocs)
        return found

    async def _apply(self, alloc: Allocation) -> None:
        runner = self.runners.get(alloc.id)
        if runner is not None:
            was_unknown = alloc.client_status == "unknown"
            try:
                await runner.update(alloc)
            except (LookupError, OSError) as cause:
                log.error("allocation not updated", alloc_id=alloc.id, error=str(cause))
            if was_unknown:
                # Servers gave up on us meanwhile: they need the truth even if it has not changed.
                self.outbox.resend(runner.client_update())
        elif alloc.client_status in _TERMINAL:
            log.debug("allocation had ended", alloc_id=alloc.id)
        elif alloc.desired_status != "run":
            # It never ran here, or this node has lost its memory; servers wait to hear that it is over.
            self.outbox.put(_ended(alloc, "complete", "Allocation is not on this node"))
        else:
            await self._begin(alloc)

    async def _begin(self, alloc: Allocation) -> None:
        since_ns = self._context.clock.now_ns()
        try:
            await self._context.state.put_alloc(alloc, since_ns=since_ns)
        except OSError as cause:
            log.error("allocation not stored", alloc_id=alloc.id, error=str(cause))
        self._start(AllocRecord(alloc=alloc, since_ns=since_ns))

    def _start(self, record: AllocRecord) -> None:
        alloc = record.alloc
        try:
            runner = AllocRunner(
                self._context, record, report=self.outbox.put, predecessors=self._ended
            )
        except LookupError as cause:
            log.error("allocation cannot run", alloc_id=alloc.id, error=str(cause))
            self.outbox.put(_ended(alloc, "failed", str(cause)))
            return
        log.info("allocation taken on", alloc_id=alloc.id, name=alloc.name)
        self.runners[alloc.id] = runner
        self._group.create_task(runner.run(), name=f"alloc {alloc.id}")

    def _forget(self, alloc_id: str) -> None:
        """Servers have no such allocation any more."""
        self._known.pop(alloc_id, None)
        self.outbox.forget(alloc_id)
        if alloc_id in self.runners:
            self._group.create_task(self._remove_forgotten(alloc_id), name=f"remove {alloc_id}")

    async def _remove_forgotten(self, alloc_id: str) -> None:
        await self.remove(alloc_id)
        self.outbox.forget(alloc_id)

    async def _ended(self, alloc_ids: list[str]) -> list[str]:
        """Wait for those of the allocations that are on their way out here; returns those that are not and run on."""
        alive: list[str] = []
        for alloc_id in alloc_ids:
            runner = self.runners.get(alloc_id)
            if runner is None:
                continue
            if runner.is_ending:
                await runner.finished.wait()
            else:
                alive.append(alloc_id)
        return alive

    # -- without servers --------------------------------------------------------------------------

    async def _watch_contact(self) -> None:
        """Stop the allocations whose group says so when no server was heard of for too long."""
        while True:
            silence_s = self._silence_s()
            wait_s = _CONTACT_CHECK_S
            for runner in self.runners.values():
                limit_s = stop_after_s(runner.group)
                if limit_s is None or runner.is_ending:
                    continue
                if silence_s >= limit_s:
                    log.warning("no server heard; stopping", alloc_id=runner.alloc.id)
                    runner.stop("Client is disconnected from servers")
                else:
                    wait_s = min(wait_s, limit_s - silence_s)
            await asyncio.sleep(wait_s)


def stop_after_s(group: TaskGroup) -> float | None:
    """How long the group's tasks may run without contact to servers; None for ever."""
    duration = group.stop_after_client_disconnect
    if group.disconnect is not None and group.disconnect.stop_on_client_after is not None:
        duration = group.disconnect.stop_on_client_after
    return None if duration is None else duration / _SECOND


def _ended(alloc: Allocation, status: str, description: str) -> Allocation:
    return Allocation(
        id=alloc.id,
        namespace=alloc.namespace,
        node_id=alloc.node_id,
        job_id=alloc.job_id,
        task_group=alloc.task_group,
        deployment_id=alloc.deployment_id,
        client_status=status,
        client_description=description,
        task_states=alloc.task_states,
        deployment_status=alloc.deployment_status,
    )
