from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import InvalidRequestError
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import DriverInfo, Node
from nomadpy.server.filter_expression import parse

NODE = Node(
    status="ready",
    name="n1",
    drain=False,
    meta={"rack": "r1", "a.b": "x"},
    drivers={"raw_exec": DriverInfo(healthy=True)},
    create_index=8,
)


@pytest.mark.parametrize(
    "text",
    [
        'Status == "ready"',
        "Status == ready",
        'Status == "ready" and Drivers.raw_exec.Healthy == true',
        'Meta.rack == "r1"',
        'Meta["a.b"] == x',
        '"rack" in Meta',
        'Meta contains "rack"',
        "nothing not in Meta",
        "Meta not contains nothing",
        'Name matches "^n[0-9]$"',
        'Name not matches "^m"',
        "HostVolumes is empty",
        "Meta is not empty",
        "not Drain == true",
        "CreateIndex == 8",
        "(Status == down or Name == n1) and Drain == false",
        "Status == `ready`",
        "Meta.missing == ``",
    ],
)
def test_expression_matches(text: str) -> None:
    assert parse(text)(NODE)


@pytest.mark.parametrize(
    "text",
    [
        'Status != "ready"',
        "Meta is empty",
        "rack not in Meta",
        "Drain == true",
        "not Status == ready",
    ],
)
def test_expression_does_not_match(text: str) -> None:
    assert not parse(text)(NODE)


def test_lists_are_selected_by_number_and_searched() -> None:
    job = Job(datacenters=["dc1", "dc2"], task_groups=[TaskGroup(name="web")])
    assert parse("dc2 in Datacenters")(job)
    assert parse('TaskGroups.0.Name == "web"')(job)


def test_a_syntax_error_says_where_and_what_was_expected() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse("Status = ready")
    assert caught.value.status == 400
    assert "1:8 (7): no match found, expected: " in caught.value.message


def test_an_unknown_field_is_an_error_only_when_an_object_is_looked_at() -> None:
    predicate = parse("Nonsense == 1")
    with pytest.raises(InvalidRequestError, match="Nonsense"):
        predicate(NODE)


@pytest.mark.parametrize(
    "text", ["(" * 1000, "not " * 1000 + "A == 1", "A == 1 and", "x" * 5000, "A matches '['"]
)
def test_hostile_text_is_refused_with_400(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(text)
    assert caught.value.status == 400


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        predicate = parse(text)
    except InvalidRequestError:
        return
    try:
        assert predicate(NODE) in (True, False)
    except InvalidRequestError:
        return
