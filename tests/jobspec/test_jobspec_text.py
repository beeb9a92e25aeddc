"""Job texts (parse.py) and the references inside them (interpolate.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.interpolate import interpolate, interpolate_value, references
from nomadpy.jobspec.parse import parse

ENV = {
    "node.unique.id": "n1",
    "attr.kernel.name": "linux",
    "attr.cpu.arch": "amd64",
    "meta.rack": "r1",
    "NOMAD_PORT_http": "8080",
    "env.HOME": "/root",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${attr.kernel.name}-${attr.cpu.arch}", "linux-amd64"),
        ("0.0.0.0:${NOMAD_PORT_http}", "0.0.0.0:8080"),
        ("${ meta.rack }", "r1"),
        ('${meta["rack"]}', "r1"),
        ('${env["NOMAD_PORT_http"]}', "8080"),
        ("${env.HOME}", "/root"),
        ("${HOME}", "/root"),
        ("${meta.none}", "${meta.none}"),
        ("$NOMAD_PORT_http {x}", "$NOMAD_PORT_http {x}"),
        ("${unclosed", "${unclosed"),
    ],
)
def test_known_references_are_replaced_and_unknown_ones_stay(text: str, expected: str) -> None:
    assert interpolate(text, ENV) == expected


def test_values_are_interpolated_deep_with_their_keys() -> None:
    value = {"${meta.rack}": ["${node.unique.id}", 1, None, {"a": ("${meta.rack}",)}], "n": True}
    assert interpolate_value(value, ENV) == {"r1": ["n1", 1, None, {"a": ["r1"]}], "n": True}


@given(st.text())
def test_text_without_known_references_is_unchanged(text: str) -> None:
    assert interpolate(text, {}) == text


def test_a_value_that_holds_a_reference_is_not_resolved_again() -> None:
    assert interpolate("${a}", {"a": "${b}", "b": "x"}) == "${b}"
    assert references("${a} and ${b.c}") == ["a", "b.c"]


JOB = {
    "ID": "web",
    "TaskGroups": [{"Name": "g", "Count": 2, "Tasks": [{"Name": "t", "KillTimeout": "5s"}]}],
}
DECODED = {
    "ID": "web",
    "TaskGroups": [{"Name": "g", "Count": 2, "Tasks": [{"Name": "t", "KillTimeout": 5 * 10**9}]}],
}
YAML = """
ID: web
TaskGroups:
  - Name: g
    Count: 2
    Tasks:
      - {Name: t, KillTimeout: 5s}
"""


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(JOB),
        json.dumps({"Job": JOB}),
        json.dumps({"job": JOB}),
        YAML,
        "Job:\n" + "".join(f"  {line}\n" for line in YAML.strip().splitlines()),
    ],
    ids=["json", "json-wrapped", "json-lower", "yaml", "yaml-wrapped"],
)
def test_both_shapes_in_both_languages_are_the_same_job(text: str) -> None:
    assert parse(text) == DECODED


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        ("", "job", "job: the job is empty"),
        ("[1]", "job", "a job is a map of its fields, not a list"),
        ('{"Job": null}', "job", '"Job" must hold a map of fields, not nothing'),
        ("ID: [", "a.yaml", r"a.yaml:1,6: "),
        (
            "a: !!python/object/apply:os.system ['true']",
            "a.yaml",
            "could not determine a constructor",
        ),
        (
            '{"ID": 1}',
            "a.json",
            "cannot unmarshal number into Go struct field Job.Job.ID of type string",
        ),
        ("{", "a.json", "unexpected EOF"),
    ],
)
def test_a_bad_text_says_what_is_wrong_and_where(text: str, name: str, fault: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse(text, name=name)
    assert fault in refused.value.message


def test_aliases_cannot_grow_without_bound() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n"
        for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(InvalidRequestError, match="too deep or too large"):
        parse(bomb)
    with pytest.raises(InvalidRequestError):
        parse("a: &a [*a]")


@given(st.text(max_size=30))
def test_any_text_is_a_job_or_a_400(text: str) -> None:
    try:
        decoded: Any = parse(text)
    except InvalidRequestError:
        return
    assert isinstance(decoded, dict)
