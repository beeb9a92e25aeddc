"""When locks of variables expire: the leader's monotonic clock decides, and nobody else's.

A lock that is not renewed within its TTL expires; its delay begins, and when that is over too the lock is gone. Both
are proposed, so every server sees the same order of holders. A new leader knows nobody's last renewal and gives each
lock its full TTL, each running delay its full length: a lease may last longer than asked for, never shorter.
"""

from __future__ import annotations

import asyncio
import heapq

import msgspec

from nomadpy import logs
from nomadpy.errors import NomadError, NotLeaderError
from nomadpy.fsm.commands import VariableUnlock
from nomadpy.models.variable import StoredVariable
from nomadpy.server.core import Core
from nomadpy.state.schema import VariableKey
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

RETRY_S = 1.0
AT_ONCE = 64
_NS = 1e9


class _Timer(msgspec.Struct):
    """What is to happen to one lock. waiting: its end has not been proposed yet."""

    lock_id: str
    ttl_s: float
    deadline: float
    delayed: bool
    waiting: bool = True


class VariableLocks:
    """Timers of the leader, one a lock. `run` proposes the ends of those whose time has passed."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._timers: dict[VariableKey, _Timer] = {}
        self._heap: list[tuple[float, VariableKey]] = []
        self._changed = asyncio.Event()
        self._active = False

    def __len__(self) -> int:
        return len(self._timers)

    def restore(self, snapshot: Snapshot) -> None:
        """Begin a leadership: every lock has its full time again."""
        self._timers.clear()
        self._heap.clear()
        for variable in snapshot.locked_variables():
            self._start(variable)
        self._active = True

    def stop(self) -> None:
        """The leadership is over: nothing is renewed here any more."""
        self._active = False
        self._timers.clear()
        self._heap.clear()

    def changed(self, before: StoredVariable | None, after: StoredVariable | None) -> None:
        """A variable changed, as the feed tells."""
        variable = after or before
        assert variable is not None
        was = None if before is None else before.lock
        now = None if after is None else after.lock
        if now is None:
            self._timers.pop((variable.namespace, variable.path), None)
        elif after is not None and (
            was is None or was.id != now.id or was.expired is not now.expired
        ):
            self._start(after)

    def renew(self, namespace: str, path: str, lock_id: str) -> bool:
        """Give a held lock its full TTL from now; False when it is not held by this id, or has run out.

        The caller has made sure that this server led when the request had already come. Raises NotLeaderError.
        """
        if not self._active:
            raise NotLeaderError("this server does not lead yet", leader_address="")
        timer = self._timers.get((namespace, path))
        now = self._core.clock.monotonic()
        if timer is None or timer.lock_id != lock_id or timer.delayed or not timer.waiting:
            return False
        if now >= timer.deadline:
            return False
        self._set((namespace, path), timer, now + timer.ttl_s)
        return True

    async def run(self) -> None:
        """Propose what is due; cancelling ends it."""
        clock = self._core.clock
        while True:
            due: list[tuple[VariableKey, _Timer]] = []
            now = clock.monotonic()
            while self._heap and self._heap[0][0] <= now and len(due) < AT_ONCE:
                deadline, key = heapq.heappop(self._heap)
                timer = self._timers.get(key)
                # Every renewal leaves its old place in the heap behind.
                if timer is not None and timer.deadline == deadline:
                    timer.waiting = False
                    due.append((key, timer))
            if due:
                async with asyncio.TaskGroup() as group:
                    for key, timer in due:
                        group.create_task(self._end(key, timer), name=f"unlock-{key[1]}")
                continue
            self._changed.clear()
            wait = None if not self._heap else max(0.0, self._heap[0][0] - now)
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _end(self, key: VariableKey, timer: _Timer) -> None:
        namespace, path = key
        reason = "delayed" if timer.delayed else "expired"
        if not timer.delayed:
            log.info("variable lock expired", namespace=namespace, path=path)
        command = VariableUnlock(
            namespace=namespace, path=path, lock_id=timer.lock_id, reason=reason
        )
        try:
            await self._core.propose(command)
        except NomadError as error:
            log.warning(
                "end of a variable lock not written", path=path, reason=reason, error=error.message
            )
            if self._timers.get(key) is timer:
                self._set(key, timer, self._core.clock.monotonic() + RETRY_S)

    def _start(self, variable: StoredVariable) -> None:
        lock = variable.lock
        assert lock is not None
        length_s = (lock.delay if lock.expired else lock.ttl) / _NS
        key = (variable.namespace, variable.path)
        timer = _Timer(lock.id, length_s, 0.0, lock.expired)
        self._timers[key] = timer
        self._set(key, timer, self._core.clock.monotonic() + length_s)

    def _set(self, key: VariableKey, timer: _Timer, deadline: float) -> None:
        timer.deadline = deadline
        heapq.heappush(self._heap, (deadline, key))
        if len(self._heap) > 64 + 8 * len(self._timers):
            self._heap = [(t.deadline, k) for k, t in self._timers.items()]
            heapq.heapify(self._heap)
        self._changed.set()
