"""The flag parser: Go's spellings, anywhere in the line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.cli.errors import UsageError
from nomadpy.cli.flags import Flag, many, number, parse, text

FLAGS = (Flag("detach", ""), text("region", ""), number("n", ""), many("var", ""))


@pytest.mark.parametrize(
    "line",
    [
        ["-region", "eu", "job"],
        ["-region=eu", "job"],
        ["--region", "eu", "job"],
        ["job", "--region=eu"],
        ["job", "-region", "eu"],
    ],
)
def test_a_text_flag_has_four_spellings_and_any_place(line: list[str]) -> None:
    options, operands = parse(FLAGS, line)
    assert options.text("region") == "eu"
    assert operands == ["job"]


def test_switches_are_true_false_or_absent() -> None:
    assert parse(FLAGS, ["-detach"])[0].on("detach")
    assert parse(FLAGS, ["-detach", "a"])[1] == ["a"]
    assert not parse(FLAGS, ["-detach=false"])[0].on("detach")
    assert not parse(FLAGS, [])[0].on("detach")


def test_a_repeatable_flag_keeps_every_value_in_order() -> None:
    options, _ = parse(FLAGS, ["-var", "a=1", "x", "-var=b=2"])
    assert options.many("var") == ["a=1", "b=2"]


def test_an_empty_value_after_the_equals_sign_is_a_value() -> None:
    assert parse(FLAGS, ["-region="])[0].given == {"region": ""}


def test_two_hyphens_end_the_flags() -> None:
    assert parse(FLAGS, ["a", "--", "-region", "b"])[1] == ["a", "-region", "b"]


def test_a_lone_hyphen_and_a_negative_number_are_operands() -> None:
    assert parse(FLAGS, ["-", "-3"])[1] == ["-", "-3"]


def test_flags_end_after_the_operands_of_a_command_that_runs_another() -> None:
    options, operands = parse(FLAGS, ["-n", "3", "alloc", "ls", "-la"], flags_end_after=1)
    assert options.number("n") == 3
    assert operands == ["alloc", "ls", "-la"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["-detatch"], "flag provided but not defined: -detatch (did you mean -detach?)"),
        (["-region"], "flag needs an argument: -region"),
        (["-n", "many"], 'invalid value "many" for flag -n'),
        (["-detach=perhaps"], 'invalid boolean value "perhaps" for -detach'),
        (["-n=" + "9" * 5000], "not a whole number"),
    ],
)
def test_a_wrong_flag_is_named(line: list[str], words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(FLAGS, line)
    assert words in str(error.value)


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_line_is_parsed_or_refused(line: list[str]) -> None:
    try:
        _, operands = parse(FLAGS, line)
    except UsageError:
        return
    assert len(operands) <= len(line)
