"""Variables: check-and-set, what a lock guards, and ciphertext that is replaced while keys go."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fsm.fsm_samples import Machine
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import InvalidRequestError
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import (
    Resealed,
    RootKeyDelete,
    RootKeyUpsert,
    VariableDelete,
    VariableLock,
    VariableReseal,
    VariableSet,
    VariableUnlock,
)
from nomadpy.models.root_key import RootKey
from nomadpy.models.variable import HeldLock, Sealed, StoredVariable, Written
from nomadpy.state.store import StateStore
from nomadpy.state.variables import RetiredKeyError


def sealed(text: str = "one", key_id: str = "k1") -> Sealed:
    return Sealed(key_id, text.encode().ljust(12)[:12], text.encode())


class Vars:
    """A machine with one root key, and the commands on one path."""

    def __init__(self) -> None:
        self.m = Machine()
        self.m.run(RootKeyUpsert(key=RootKey(key_id="k1")))

    @property
    def row(self) -> StoredVariable | None:
        return self.m.state.variable("default", "p")

    @property
    def lock_state(self) -> HeldLock | None:
        assert self.row is not None
        return self.row.lock

    def _run(self, command: Any) -> Written:
        return msgspec.convert(self.m.run(command), Written)

    def set(self, text: str = "one", **more: Any) -> Written:
        return self._run(VariableSet(namespace="default", path="p", sealed=sealed(text), **more))

    def delete(self, **more: Any) -> Written:
        return self._run(VariableDelete(namespace="default", path="p", **more))

    def lock(self, lock_id: str, text: str = "one", delay: int = 5, **more: Any) -> Written:
        return self._run(
            VariableLock(
                namespace="default",
                path="p",
                sealed=sealed(text),
                lock_id=lock_id,
                ttl=10,
                delay=delay,
                **more,
            )
        )

    def unlock(self, lock_id: str, reason: str) -> Written:
        return self._run(
            VariableUnlock(namespace="default", path="p", lock_id=lock_id, reason=reason)
        )


def test_a_write_moves_the_modify_index_and_keeps_the_beginning() -> None:
    v = Vars()
    first = v.set()
    begun = v.m.now_ns
    second = v.set("two")
    assert (first.create_index, first.modify_index, first.create_time) == (2, 2, begun)
    assert (second.create_index, second.modify_index) == (2, 3)
    assert (second.create_time, second.modify_time) == (begun, v.m.now_ns)
    assert v.m.state.table_index("variables") == 3
    assert v.row is not None
    assert v.row.sealed.data == b"two"


def test_check_and_set_holds_only_at_the_named_index() -> None:
    v = Vars()
    assert v.set(cas=5).conflict == "cas"
    assert v.row is None
    assert v.set(cas=0).conflict == ""
    refused = v.set("two", cas=0)
    assert (refused.conflict, refused.modify_index) == ("cas", 3)
    assert v.set("two", cas=3).modify_index == 5
    assert v.delete(cas=3).conflict == "cas"
    assert v.delete(cas=5).conflict == ""
    assert v.row is None
    assert v.delete().conflict == ""
    assert v.delete(cas=0).conflict == ""
    assert v.delete(cas=9).conflict == "cas"


def test_a_refused_write_changes_nothing_but_the_index() -> None:
    v = Vars()
    v.set()
    before = v.m.state
    v.set("two", cas=0)
    assert v.m.state.index == before.index + 1
    assert v.m.state.table_indexes == before.table_indexes
    assert v.row is before.variable("default", "p")


def test_a_lock_is_taken_once_and_refuses_all_others() -> None:
    v = Vars()
    taken = v.lock("l1")
    assert taken.lock == HeldLock(id="l1", ttl=10, delay=5)
    assert v.lock("l2").conflict == "lock"
    assert v.lock("l2", held_id="other").conflict == "lock"
    assert v.set("two").conflict == "lock"
    assert v.set("two", lock_id="l2").conflict == "lock"
    assert v.delete().conflict == "lock"
    assert v.lock_state == taken.lock
    refused = v.set("two", cas=1)
    assert refused.conflict == "cas"  # the index is looked at first
    assert [w.path for w in v.m.state.locked_variables()] == ["p"]


def test_the_holder_writes_and_takes_its_own_lock_again() -> None:
    v = Vars()
    v.lock("l1")
    assert v.set("two", lock_id="l1").lock == HeldLock(id="l1", ttl=10, delay=5)
    again = v.lock("l9", "three", held_id="l1")
    assert (again.conflict, again.lock) == ("", HeldLock(id="l1", ttl=10, delay=5))
    assert v.row is not None
    assert v.row.sealed.data == b"three"


def test_taking_a_lock_may_keep_the_items() -> None:
    v = Vars()
    v.set("items")
    kept = v.lock("l1", "empty", keep=True)
    assert v.row is not None
    assert v.row.sealed.data == b"items"
    assert kept.modify_index > kept.create_index
    assert kept.modify_time == kept.create_time
    w = Vars()
    w.lock("l1", "empty", keep=True)
    assert w.row is not None
    assert w.row.sealed.data == b"empty"


def test_releasing_takes_the_right_id_and_moves_the_index_but_not_the_time() -> None:
    v = Vars()
    taken = v.lock("l1")
    assert v.unlock("l2", "released").conflict == "lock"
    freed = v.unlock("l1", "released")
    assert (freed.conflict, freed.lock) == ("", None)
    assert freed.modify_index > taken.modify_index
    assert freed.modify_time == taken.modify_time
    assert v.unlock("l1", "released").conflict == "lock"
    assert v.m.state.locked_variables() == []
    # Who still shows the id believes in a lease that has ended.
    assert v.set("two", lock_id="l1").conflict == "lock"
    assert v.set("two").conflict == ""


def test_an_expired_lock_is_nobodys_until_its_delay_is_over() -> None:
    v = Vars()
    v.lock("l1")
    assert v.unlock("l1", "expired").lock == HeldLock(id="l1", ttl=10, delay=5, expired=True)
    assert v.set("two", lock_id="l1").conflict == "lock"
    assert v.set("two").conflict == "lock"
    assert v.delete().conflict == "lock"
    assert v.lock("l2").conflict == "lock"
    assert v.lock("l2", held_id="l1").conflict == "lock"
    assert v.unlock("l1", "released").conflict == "lock"
    assert v.unlock("l1", "expired").conflict == "lock"
    assert v.unlock("l2", "delayed").conflict == "lock"
    assert v.unlock("l1", "delayed").conflict == ""
    assert v.lock("l2").conflict == ""
    # Late words about the first lock do not touch the second.
    assert v.unlock("l1", "expired").conflict == "lock"
    assert v.unlock("l1", "delayed").conflict == "lock"


def test_a_lock_without_delay_is_free_when_it_expires() -> None:
    v = Vars()
    v.lock("l1", delay=0)
    assert v.unlock("l1", "expired").lock is None
    assert v.lock_state is None


@pytest.mark.parametrize("locked", [False, True])
def test_a_variable_needs_its_namespace(locked: bool) -> None:
    v = Vars()
    command: Any = VariableSet(namespace="none", path="p", sealed=sealed())
    if locked:
        command = VariableLock(
            namespace="none", path="p", sealed=sealed(), lock_id="l1", ttl=1, delay=1
        )
    error = v.m.refused(command)
    assert isinstance(error, InvalidRequestError)
    assert error.message == 'variable "p" is in nonexistent namespace "none"'


def test_nothing_new_is_stored_under_a_key_that_is_gone_or_going() -> None:
    v = Vars()
    stranger = VariableSet(namespace="default", path="p", sealed=sealed(key_id="none"))
    assert isinstance(v.m.refused(stranger), RetiredKeyError)
    v.set()
    v.m.run(RootKeyUpsert(key=RootKey(key_id="k2"), full=True))
    late = VariableSet(namespace="default", path="p", sealed=sealed("late"))
    assert isinstance(v.m.refused(late), RetiredKeyError)
    # Without `full`, an older key may still come through: what it encrypts stays readable.
    w = Vars()
    w.m.run(RootKeyUpsert(key=RootKey(key_id="k2")))
    assert w.set("late").conflict == ""


def test_resealing_changes_ciphertext_alone_and_ends_the_old_key() -> None:
    v = Vars()
    v.set()
    v.m.run(VariableSet(namespace="default", path="q", sealed=sealed("q")))
    before = v.row
    assert before is not None
    v.m.run(RootKeyUpsert(key=RootKey(key_id="k2"), full=True))
    assert _state_of(v, "k1") == "rekeying"
    new = sealed("new", "k2")
    v.m.run(VariableReseal(variables=[Resealed("default", "p", before.sealed.nonce, new)]))
    assert v.row == msgspec.structs.replace(before, sealed=new)
    assert _state_of(v, "k1") == "rekeying"
    assert v.m.refused(RootKeyDelete(key_id="k1")).message == "root key in use, cannot delete"
    v.m.run(VariableReseal(variables=[Resealed("default", "q", sealed("q").nonce, new)]))
    assert _state_of(v, "k1") == "inactive"
    v.m.run(RootKeyDelete(key_id="k1"))


def test_resealing_leaves_alone_what_was_written_or_removed_meanwhile() -> None:
    v = Vars()
    v.m.run(RootKeyUpsert(key=RootKey(key_id="k2")))
    v.set("newer")
    late = Resealed("default", "p", sealed("older").nonce, sealed("x", "k2"))
    gone = Resealed("default", "gone", b"n" * 12, sealed("x", "k2"))
    keyless = Resealed("default", "p", sealed("newer").nonce, sealed("x", "none"))
    v.m.run(VariableReseal(variables=[late, gone, keyless]))
    assert v.row is not None
    assert v.row.sealed == sealed("newer")
    assert v.m.state.variable("default", "gone") is None


def test_a_key_in_use_is_removed_by_force_only() -> None:
    v = Vars()
    v.set()
    v.m.run(RootKeyUpsert(key=RootKey(key_id="k2")))
    retired = v.m.state.root_key("k1")
    assert retired is not None
    assert retired.retired_time == v.m.now_ns
    assert v.m.refused(RootKeyDelete(key_id="k1")).message == "root key in use, cannot delete"
    v.m.run(RootKeyDelete(key_id="k1", force=True))
    assert v.m.state.root_key("k1") is None


def test_a_prepublished_key_is_not_active_and_survives_a_rotation() -> None:
    v = Vars()
    v.m.run(RootKeyUpsert(key=RootKey(key_id="k2", state="prepublished", publish_time=9)))
    assert _state_of(v, "k1") == "active"
    v.m.run(RootKeyUpsert(key=RootKey(key_id="k3"), full=True))
    assert [_state_of(v, k) for k in ("k1", "k2", "k3")] == ["rekeying", "prepublished", "active"]


def test_a_repeated_acquisition_gives_the_first_ones_lock() -> None:
    v = Vars()
    command = VariableLock(
        namespace="default", path="p", sealed=sealed(), lock_id="l1", ttl=10, delay=5
    )
    first = v.m.run(command, request_id="same")
    again = v.m.run(msgspec.structs.replace(command, lock_id="l2"), request_id="same")
    assert first == again
    restored = StateMachine(StateStore())
    restored.restore(v.m.machine.snapshot()())
    assert restored.checksum() == v.m.machine.checksum()


def test_lists_are_by_path_within_a_namespace() -> None:
    v = Vars()
    for path in ("a/b", "a", "b", "a/c"):
        v.m.run(VariableSet(namespace="default", path=path, sealed=sealed()))
    state = v.m.state
    assert [w.path for w in state.variables("default")] == ["a", "a/b", "a/c", "b"]
    assert [w.path for w in state.variables("default", "a/")] == ["a/b", "a/c"]
    assert [w.path for w in state.variables(None, "a/")] == ["a/b", "a/c"]
    assert list(state.variables("other")) == []
    assert len(state.variables_by_root_key("k1")) == 4


ids = st.sampled_from(["l1", "l2"])
steps = st.one_of(
    st.tuples(st.just("lock"), ids, ids),
    st.tuples(st.just("set"), ids),
    st.tuples(st.just("free"), st.just("")),
    st.tuples(st.sampled_from(["released", "expired", "delayed"]), ids),
)


@given(steps=st.lists(steps, max_size=30))
def test_a_locked_variable_changes_by_its_holder_alone(steps: list[tuple[str, ...]]) -> None:
    v = Vars()
    v.set()
    for number, step in enumerate(steps):
        before = v.row
        assert before is not None
        held = before.lock
        if step[0] == "lock":
            done = v.lock(step[1], f"n{number}", held_id=step[2])
            allowed = held is None or (not held.expired and held.id == step[2])
        elif step[0] in ("set", "free"):
            done = v.set(f"n{number}", lock_id=step[1])
            allowed = before.open_to(step[1])
        else:
            done = v.unlock(step[1], step[0])
            allowed = (
                held is not None and held.id == step[1] and held.expired is (step[0] == "delayed")
            )
        assert (done.conflict == "") is allowed
        assert (v.row == before) is not allowed


def _state_of(v: Vars, key_id: str) -> str:
    key = v.m.state.root_key(key_id)
    assert key is not None
    return key.state
