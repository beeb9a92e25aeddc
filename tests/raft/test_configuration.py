"""Which servers count, whatever the log goes through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nomadpy.raft.config import PeerSpec
from nomadpy.raft.configuration import (
    Add,
    Change,
    Configuration,
    ConfigurationHistory,
    Remove,
    after,
    begin,
    decode_change,
    encode_change,
)


def peer(name: str) -> PeerSpec:
    return PeerSpec(name, name, f"{name}:1")


CHANGES = st.one_of(
    st.sampled_from("abcde").map(lambda n: Add(peer(n))), st.sampled_from("abcde").map(Remove)
)


@given(st.lists(CHANGES, max_size=20), st.integers(0, 25), st.integers(0, 25))
def test_truncating_and_rebasing_never_changes_what_remains(
    changes: list[Change], cut: int, base: int
) -> None:
    history = ConfigurationHistory()
    states = [Configuration()]
    for index, change in enumerate(changes, start=1):
        history.append(index, change)
        states.append(after(states[-1], change))
    assert history.current == states[-1]
    base = min(base, len(changes))
    history.rebase(base, states[base])
    assert history.current == states[-1]
    cut = max(cut, base + 1)
    history.truncate_from(cut)
    assert history.current == states[min(cut - 1, len(changes))]


def test_the_first_configuration_does_not_depend_on_the_order_of_its_servers() -> None:
    one = begin([peer("b"), peer("a")])
    other = begin([peer("a"), peer("b")])
    assert one == other == decode_change(encode_change(one))
    assert begin([peer("a")]).cluster != one.cluster


def test_adding_a_known_server_moves_it() -> None:
    moved = PeerSpec("a", "a", "elsewhere:1")
    configuration = after(after(Configuration(), begin([peer("a"), peer("b")])), Add(moved))
    assert configuration.peers == (moved, peer("b"))
