"""Is there an order of the operations that a single register could have had? The search of Wing, Gong and Lowe.

An operation takes effect at one moment between its beginning and its end. The search goes through the operations
in order of time, takes one that may come next and that the model allows, and goes back where none is left.
Three things keep it short: configurations seen before are not entered again; an operation that changes nothing and is
allowed now is taken now, for waiting cannot help it; and versions (see register.py) leave hardly ever two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import msgspec

from jepsen_style.history import FOREVER

S = TypeVar("S", bound=Hashable)
P = TypeVar("P")

DEFAULT_BUDGET = 2_000_000


class Timed(msgspec.Struct, Generic[P], frozen=True):
    """An operation of the model with the time it had. end_ns FOREVER: it may also never take effect."""

    start_ns: int
    end_ns: int
    op: P


class Verdict(msgspec.Struct, frozen=True):
    """linearizable: None when the budget ran out. reached: how many operations the longest order had.

    stuck: of a refuted history, the position of the operation that ended before any order could hold it.
    """

    linearizable: bool | None
    steps: int
    reached: int
    stuck: int = -1


class _Node:
    __slots__ = ("index", "is_call", "match", "next", "previous")

    def __init__(self, index: int, *, is_call: bool) -> None:
        self.index = index
        self.is_call = is_call
        self.previous: _Node | None = None
        self.next: _Node | None = None
        self.match: _Node | None = None


def check(
    operations: Sequence[Timed[P]],
    initial: S,
    step: Callable[[S, P], S | None],
    *,
    budget: int = DEFAULT_BUDGET,
) -> Verdict:
    """Search. step: the state after an operation, or None when the register could not have answered so."""
    head = _linked(operations)
    required = sum(o.end_ns < FOREVER for o in operations)
    state = initial
    done = 0
    seen: set[tuple[int, S]] = set()
    # (operation, state before it, whether another choice there could help)
    taken: list[tuple[_Node, S, bool]] = []
    steps = reached = 0
    stuck = -1
    node = head.next
    while required:
        steps += 1
        if steps > budget:
            return Verdict(None, steps, reached, stuck)
        if node is not None and node.is_call:
            after = step(state, operations[node.index].op)
            if after is None:
                node = node.next
                continue
            bit = 1 << node.index
            forced = after == state
            if not forced and (done | bit, after) in seen:
                node = node.next
                continue
            if not forced:
                seen.add((done | bit, after))
            taken.append((node, state, not forced))
            state = after
            done |= bit
            required -= operations[node.index].end_ns < FOREVER
            _lift(node)
            if len(taken) > reached:
                reached, stuck = len(taken), -1
            node = head.next
            continue
        # An operation ended here, and nothing that is left can come before its end.
        if stuck < 0 and node is not None:
            stuck = node.index
        while taken:
            back, state, choice = taken.pop()
            done &= ~(1 << back.index)
            required += operations[back.index].end_ns < FOREVER
            _unlift(back)
            if choice:
                node = back.next
                break
        else:
            return Verdict(False, steps, reached, stuck)
    return Verdict(True, steps, reached)


def _linked(operations: Sequence[Timed[P]]) -> _Node:
    events: list[tuple[int, int, _Node]] = []
    for index, operation in enumerate(operations):
        call = _Node(index, is_call=True)
        # At one moment beginnings come before ends: touching operations are concurrent.
        events.append((operation.start_ns, 0, call))
        if operation.end_ns < FOREVER:
            call.match = _Node(index, is_call=False)
            events.append((operation.end_ns, 1, call.match))
    events.sort(key=lambda event: event[:2])
    head = last = _Node(-1, is_call=True)
    for _, _, node in events:
        last.next = node
        node.previous = last
        last = node
    return head


def _lift(node: _Node) -> None:
    for one in (node, node.match):
        if one is not None and one.previous is not None:
            one.previous.next = one.next
            if one.next is not None:
                one.next.previous = one.previous


def _unlift(node: _Node) -> None:
    for one in (node.match, node):
        if one is not None and one.previous is not None:
            one.previous.next = one
            if one.next is not None:
                one.next.previous = one
