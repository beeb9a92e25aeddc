"""Registers: what a linearizable history is, and what is not; the search against a brute force."""

from __future__ import annotations

import itertools

from histories import event, history, read, refused, write
from hypothesis import given, settings
from hypothesis import strategies as st
from jepsen_style.checker import wgl
from jepsen_style.checker.monotonic import check_monotonic
from jepsen_style.checker.register import EMPTY, check_register, step
from jepsen_style.history import FOREVER


def test_reads_may_see_either_value_while_a_write_is_under_way() -> None:
    assert check_register(
        history(
            write(1, 0, 1, 0, 10, "a"),
            write(1, 10, 30, 10, 20, "b"),
            read(2, 11, 12, 10, "a"),
            read(3, 13, 14, 20, "b"),
            read(2, 15, 16, 20, "b"),
        )
    ).valid


def test_a_stale_read_is_found_and_shown_with_the_write_it_missed() -> None:
    result = check_register(
        history(write(1, 0, 1, 0, 10, "a"), write(1, 10, 12, 10, 20, "b"), read(2, 13, 14, 10, "a"))
    )
    assert result.valid is False
    assert len(result.offending) == 2
    assert '"b"' in result.offending[0]
    assert "version 10" in result.offending[1]


def test_two_reads_that_turn_back_are_found_though_the_write_is_still_under_way() -> None:
    result = check_register(
        history(
            write(1, 0, 1, 0, 10, "a"),
            write(1, 10, 100, 10, 20, "b"),
            read(2, 20, 30, 20, "b"),
            read(3, 40, 50, 10, "a"),
        )
    )
    assert result.valid is False
    assert len(result.offending) == 2


def test_a_lost_update_is_found() -> None:
    result = check_register(
        history(
            write(1, 0, 1, 0, 10, "a"), write(1, 10, 12, 10, 20, "b"), write(2, 10, 12, 10, 30, "c")
        )
    )
    assert result.valid is False
    assert "demanded version 10 was accepted at version 20" in result.summary


def test_an_unknown_write_that_nobody_saw_need_not_have_happened() -> None:
    assert check_register(
        history(
            write(1, 0, 1, 0, 10, "a"),
            write(2, 2, 5, 10, None, "lost", outcome="info"),
            write(1, 10, 11, 10, 20, "b"),
            read(3, 12, 13, 20, "b"),
        )
    ).valid


def test_an_unknown_write_that_was_seen_happened_before_the_reader_ended() -> None:
    seen = (
        write(1, 0, 1, 0, 10, "a"),
        write(2, 2, 5, 10, None, "u", outcome="info"),
        read(3, 50, 60, 20, "u"),
    )
    assert check_register(history(*seen, read(4, 20, 30, 10, "a"))).valid
    after = check_register(history(*seen, read(4, 70, 80, 10, "a")))
    assert after.valid is False


def test_a_refusal_must_show_another_version_than_demanded() -> None:
    first = write(1, 0, 1, 0, 10, "a")
    assert check_register(history(first, refused(2, 2, 3, 5, 10, "a"))).valid
    result = check_register(history(first, refused(2, 2, 3, 10, 10, "a")))
    assert result.valid is False
    assert "refused although" in result.summary


def test_a_refusal_that_shows_an_old_value_is_a_stale_read() -> None:
    result = check_register(
        history(
            write(1, 0, 1, 0, 10, "a"),
            write(1, 2, 3, 10, 20, "b"),
            refused(2, 4, 5, 0, 10, "a"),
        )
    )
    assert result.valid is False


def test_a_value_that_nobody_wrote_is_found() -> None:
    result = check_register(history(write(1, 0, 1, 0, 10, "a"), read(2, 2, 3, 15, "ghost")))
    assert result.valid is False
    assert "nobody wrote" in result.summary


def test_a_history_without_a_write_proves_nothing() -> None:
    assert check_register(history(read(1, 0, 1, 0, None))).valid is None


def test_the_search_that_runs_out_of_its_budget_does_not_know() -> None:
    parts = [write(n, 0, 100, n, n + 1, f"v{n}") for n in range(50)]
    assert check_register(history(*parts), budget=10).valid is None
    assert check_register(history(*parts)).valid


def test_five_thousand_operations_of_one_key_are_judged_in_the_search_alone() -> None:
    # Ten processes; each write takes long, so that many are under way at one time.
    parts = []
    for n in range(2500):
        parts.append(write(n % 10, 10 * n, 10 * n + 9, n, n + 1, f"v{n}"))
        parts.append(read(10 + n % 10, 10 * n, 10 * n + 15, n + 1, f"v{n}"))
    result = check_register(history(*parts), budget=50_000)
    assert result.valid, result.summary


def test_reads_at_one_node_may_not_go_back_unless_it_was_restarted() -> None:
    back = (write(1, 0, 1, 0, 10, "a"), read(2, 2, 3, 10, "a"), read(2, 6, 7, 0, None))
    assert check_monotonic(history(*back)).valid is False
    assert check_monotonic(history(*back, event(4, "restarted", node="n1"))).valid
    assert check_monotonic(history(*back, event(4, "restarted", node="n2"))).valid is False


Small = tuple[int, int, int | None, int]


@st.composite
def small_histories(draw: st.DrawFn) -> list[Small]:
    """Up to six operations: (start, end, expected or None for a read, version)."""
    count = draw(st.integers(1, 6))
    found = []
    for _ in range(count):
        start = draw(st.integers(0, 12))
        end = draw(st.one_of(st.just(FOREVER), st.integers(start, 14)))
        version = draw(st.integers(0, 3))
        expected = draw(st.one_of(st.none(), st.integers(0, max(0, version - 1))))
        found.append((start, end, expected if version else None, version))
    return found


def _plainly(small: list[Small]) -> bool:
    """Try every order of every choice of the operations that may be left out."""

    def allowed(state: int, op: Small) -> int | None:
        if op[2] is None:
            return state if state == op[3] else None
        return op[3] if state == op[2] and op[3] > state else None

    optional = [i for i, op in enumerate(small) if op[1] == FOREVER]
    for left_out in itertools.product((False, True), repeat=len(optional)):
        gone = {i for i, out in zip(optional, left_out, strict=True) if out}
        kept = [op for i, op in enumerate(small) if i not in gone]
        for order in itertools.permutations(kept):
            if any(b[1] < a[0] for a, b in itertools.combinations(order, 2)):
                continue
            state: int | None = 0
            for op in order:
                state = allowed(state, op)
                if state is None:
                    break
            if state is not None:
                return True
    return False


@settings(max_examples=300, deadline=None)
@given(small=small_histories())
def test_the_search_agrees_with_trying_every_order(small: list[Small]) -> None:
    class Version:
        def __init__(self, op: Small) -> None:
            self.expected, self.version = op[2], op[3]
            self.value = "null" if not op[3] else f"v{op[3]}"

    timed = [wgl.Timed(op[0], op[1], Version(op)) for op in small]
    verdict = wgl.check(timed, EMPTY, step)  # type: ignore[arg-type]
    assert verdict.linearizable is _plainly(small)
