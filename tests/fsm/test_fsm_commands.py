"""Entries: what was ever written to a log decodes for ever, and a damaged one is an error and never an exception."""

from __future__ import annotations

import typing

import msgspec
import pytest
from fsm.command_samples import COMMANDS, case_of, entry_of
from fsm.fsm_samples import Machine, evaluation
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import LogFormatError, NomadError
from nomadpy.fsm.apply import _HANDLERS, _WHOLE_STATE
from nomadpy.fsm.commands import (
    COMPRESS_ABOVE,
    Command,
    Entry,
    EvalUpsert,
    decode_entry,
    encode_entry,
)

KINDS = typing.get_args(Command)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_the_recorded_case_of_a_command_decodes(command: Command) -> None:
    assert decode_entry(bytes.fromhex(case_of(command).read_text())) == entry_of(command)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_survives_the_log(command: Command) -> None:
    assert decode_entry(encode_entry(entry_of(command))) == entry_of(command)


def test_every_command_has_a_case_a_handler_and_a_tag_of_its_own() -> None:
    assert [type(command) for command in COMMANDS] == list(KINDS) == list(_in_tag_order())
    assert set(_HANDLERS) | set(_WHOLE_STATE) == set(KINDS)
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len(set(tags)) == len(tags)
    assert tags[:36] == list(range(1, 37))


def _in_tag_order() -> list[type]:
    return sorted(KINDS, key=lambda kind: kind.__struct_config__.tag)


def test_a_long_entry_is_compressed_and_a_short_one_is_not() -> None:
    short = Entry(command=EvalUpsert(evals=[evaluation("e1")]))
    assert encode_entry(short) == msgspec.msgpack.encode(short)
    long = Entry(command=EvalUpsert(evals=[evaluation(f"e{n}") for n in range(200)]))
    assert len(msgspec.msgpack.encode(long)) > COMPRESS_ABOVE
    assert len(encode_entry(long)) < len(msgspec.msgpack.encode(long)) / 4
    assert decode_entry(encode_entry(long)) == long


def test_an_unknown_field_of_a_newer_server_is_passed_over() -> None:
    raw = msgspec.msgpack.decode(encode_entry(Entry(command=EvalUpsert(evals=[]), request_id="r")))
    raw["command"]["new_field"] = 1
    raw["other"] = 2
    assert decode_entry(msgspec.msgpack.encode(raw)).request_id == "r"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"x",
        b"\x78\x01\x00",
        b"not msgpack at all",
        msgspec.msgpack.encode({"command": {"type": 0}}),
        msgspec.msgpack.encode({"command": {"type": 7}}),
        encode_entry(Entry(command=EvalUpsert(evals=[evaluation(f"e{n}") for n in range(200)])))[
            :-3
        ],
        encode_entry(Entry(command=EvalUpsert(evals=[evaluation(f"e{n}") for n in range(200)])))
        + b"x",
    ],
)
def test_an_entry_that_cannot_be_decoded_is_an_error_and_moves_only_the_index(data: bytes) -> None:
    m = Machine()
    result = m.machine.apply(1, data)
    assert isinstance(result, NomadError)
    assert m.index == 1
    assert m.state.table_index("evals") == 0


@given(data=st.binary(max_size=200))
def test_no_bytes_whatever_stop_the_log(data: bytes) -> None:
    m = Machine()
    assert isinstance(m.machine.apply(1, data), NomadError)
    assert m.index == 1


@given(position=st.integers(0, 400), byte=st.integers(0, 255), which=st.sampled_from(COMMANDS))
def test_a_damaged_entry_is_applied_or_refused_or_taken_for_a_newer_servers(
    position: int, byte: int, which: Command
) -> None:
    data = bytearray(encode_entry(entry_of(which)))
    data[position % len(data)] = byte
    m = Machine()
    try:
        m.machine.apply(1, bytes(data))
    except LogFormatError:
        assert m.index == 0
    else:
        assert m.index == 1
