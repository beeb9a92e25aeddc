from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_recordings import exchanges

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.decode import decode, decode_body
from nomadpy.models.base import Wire
from nomadpy.models.diff import ObjectDiff
from nomadpy.models.job import Job


class Register(Wire, frozen=True, kw_only=True):
    job: Job | None = None
    enforce_index: bool = False
    job_modify_index: int = 0


@pytest.mark.parametrize("name", ["empty-body", "not-json", "wrong-type-field"])
def test_a_body_that_cannot_be_read_is_refused_in_the_words_of_the_wire(name: str) -> None:
    exchange = exchanges("job_errors")[name]
    body = exchange["request"]["body"]
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(InvalidRequestError) as refused:
        decode_body(text.encode(), Register)
    assert refused.value.message == exchange["response"]["body"]
    assert refused.value.status == exchange["response"]["status"]


def test_keys_match_in_any_case_and_unknown_ones_are_dropped() -> None:
    body = b'{"jOB": {"id": "a", "TASKGROUPS": [{"name": "g", "count": 0}], "Colour": 1}, "Enforceindex": true}'
    assert decode_body(body, Register) == {
        "Job": {"ID": "a", "TaskGroups": [{"Name": "g", "Count": 0}]},
        "EnforceIndex": True,
    }


def test_null_is_absent_but_zero_and_empty_are_not() -> None:
    raw = {
        "ID": "",
        "Priority": 0,
        "Meta": None,
        "TaskGroups": [None, {"Count": None}],
        "Datacenters": [],
    }
    assert decode(raw, Job) == {"ID": "", "Priority": 0, "TaskGroups": [{}], "Datacenters": []}


@pytest.mark.parametrize(
    ("said", "ns"), [("1m30s", 90_000_000_000), (5, 5), ("0", 0), ("1.5h", 5_400_000_000_000)]
)
def test_durations_are_nanoseconds_or_go_text(said: Any, ns: int) -> None:
    raw = {"TaskGroups": [{"Tasks": [{"KillTimeout": said}], "ShutdownDelay": said}]}
    group = decode(raw, Job)["TaskGroups"][0]
    assert group["Tasks"][0]["KillTimeout"] == ns
    assert group["ShutdownDelay"] == ns


def test_bytes_are_base64() -> None:
    assert decode({"Payload": "aGVsbG8="}, Job) == {"Payload": b"hello"}
    with pytest.raises(InvalidRequestError, match=r"illegal base64 data in Job\.Job\.Payload"):
        decode({"Payload": "%%%"}, Job, path="Job")


def test_free_maps_stay_as_they_are() -> None:
    config = {"args": [1, None, {"Deep": {"x": 1.5}}], "Image": "busybox", "none": None}
    raw = {"TaskGroups": [{"Tasks": [{"Config": config}]}]}
    assert decode(raw, Job)["TaskGroups"][0]["Tasks"][0]["Config"] == config


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ([], "json: cannot unmarshal array into Go value of type api.Job"),
        (
            {"TaskGroups": {}},
            "json: cannot unmarshal object into Go struct field Job.TaskGroups of type []*api.TaskGroup",
        ),
        (
            {"TaskGroups": [{"Count": 1.5}]},
            "json: cannot unmarshal number 1.5 into Go struct field TaskGroup.TaskGroups.Count of type int",
        ),
        (
            {"TaskGroups": [{"Count": True}]},
            "json: cannot unmarshal bool into Go struct field TaskGroup.TaskGroups.Count of type int",
        ),
        (
            {"Meta": {"a": 1}},
            "json: cannot unmarshal number into Go struct field Job.Meta of type string",
        ),
        (
            {"Meta": []},
            "json: cannot unmarshal array into Go struct field Job.Meta of type map[string]string",
        ),
        (
            {"AllAtOnce": "yes"},
            "json: cannot unmarshal string into Go struct field Job.AllAtOnce of type bool",
        ),
        (
            {"Priority": 1 << 70},
            f"json: cannot unmarshal number {1 << 70} into Go struct field Job.Priority of type int",
        ),
        (
            {"Update": {"Stagger": "10 parsecs"}},
            'UpdateStrategy.Update.Stagger: time: unknown unit " parsecs" in duration "10 parsecs"',
        ),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_field(raw: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode(raw, Job)
    assert refused.value.message == text


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"Job":' * 50_000,
        b'{"Job":{"TaskGroups":[{"Tasks":[{"Config":{"a":' + b"[" * 400 + b"]" * 400 + b"}}]}]}}",
    ],
    ids=["open", "objects", "config"],
)
def test_nesting_too_deep_is_refused_and_not_a_crash(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        decode_body(body, Register)


def test_recursive_structs_can_be_decoded() -> None:
    raw = {"name": "a", "objects": [{"name": "b", "objects": [{"name": "c"}]}]}
    assert decode(raw, ObjectDiff)["Objects"][0]["Objects"] == [{"Name": "c"}]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "unexpected EOF"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b"{} {}", "invalid character '{' after top-level value"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b"[tru]", "invalid character ']' in literal true (expecting 'e')"),
        (b"[01]", "invalid character '1' after array element"),
        (b"[-]", "invalid character ']' in numeric literal"),
        (b'["\\x"]', "invalid character 'x' in string escape code"),
        (b'["\n"]', "invalid character '\\n' in string literal"),
        (b'["\\u12g4"]', "invalid character 'g' in \\u hexadecimal character escape"),
    ],
)
def test_broken_json_says_which_character_is_wrong(body: bytes, text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_body(body, Register)
    assert refused.value.message == text


@given(st.text(alphabet='{}[]:,"\\u0123456789abcdeftrulns.-+E \n', max_size=40))
def test_any_text_is_read_or_refused_with_400(text: str) -> None:
    refused = refusal(lambda: decode_body(text.encode(), Register))
    if refused is not None:
        assert refused.status == 400
        assert refused.message


def refusal(call: Callable[[], object]) -> InvalidRequestError | None:
    try:
        call()
    except InvalidRequestError as refused:
        return refused
    return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(Job.__struct_encode_fields__), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON)
def test_decoding_any_json_gives_plain_values_or_a_400(raw: Any) -> None:
    refused = refusal(lambda: decode(raw, Job))
    if refused is not None:
        assert refused.status == 400
    else:
        msgspec.msgpack.encode(decode(raw, Job))
