from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.hcl.parser import parse, parse_json
from nomadpy.hcl.source import HclError
from nomadpy.hcl.syntax import (
    Attribute,
    Block,
    Body,
    Expression,
    ListValue,
    Literal,
    ObjectValue,
    Reference,
    Template,
)
from nomadpy.hcl.tokens import Interpolation

CONFIG = pathlib.Path(__file__).parents[2] / "config"


def plain(value: Expression) -> Any:
    if isinstance(value, Literal):
        return value.value
    if isinstance(value, Template):
        return value.verbatim
    if isinstance(value, Reference):
        return ("reference", value.name)
    if isinstance(value, ListValue):
        return [plain(one) for one in value.items]
    return {entry.key: plain(entry.value) for entry in value.entries}


def tree(body: Body) -> list[Any]:
    return [
        (item.name, plain(item.value))
        if isinstance(item, Attribute)
        else (item.type, *[label.text for label in item.labels], tree(item.body))
        for item in body.items
    ]


def value_of(text: str) -> Any:
    (item,) = parse(f"x = {text}\n").body.items
    assert isinstance(item, Attribute)
    return plain(item.value)


def test_blocks_labels_and_settings_become_a_tree() -> None:
    text = """
    # a comment
    name = "a" // another
    server { enabled = true bootstrap_expect = 3 }
    plugin "docker" {
      config {
        args = [ "a",
                 "b", ] /* and
                 another */
      }
    }
    "quoted.key" = 1
    client = { servers = ["x"], meta = { "a.b" = 1, c : 2 } }
    """
    assert tree(parse(text).body) == [
        ("name", "a"),
        ("server", [("enabled", True), ("bootstrap_expect", 3)]),
        ("plugin", "docker", [("config", [("args", ["a", "b"])])]),
        ("quoted.key", 1),
        ("client", {"servers": ["x"], "meta": {"a.b": 1, "c": 2}}),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-2.5", -2.5),
        ("1e3", 1000),
        ("0x1F", 31),
        ("true", True),
        ("null", None),
        ('"a\\n\\t\\"\\\\\\u00e9\\U0001F600"', 'a\n\t"\\é😀'),
        ('"${node.x}-$${y}-%%{z}-$5-100%"', "${node.x}-${y}-%{z}-$5-100%"),
        ('"${env["A}"]} b"', '${env["A}"]} b'),
        ('"${ {a = "}"}.a }"', '${ {a = "}"}.a }'),
        ('""', ""),
        ("attr.kernel.name", ("reference", "attr.kernel.name")),
        ("[]", []),
        ("{}", {}),
        ("[[1], {a = [2]}]", [[1], {"a": [2]}]),
    ],
)
def test_values_are_read(text: str, value: Any) -> None:
    assert value_of(text) == value


def test_heredocs_keep_lines_and_lose_a_shared_indent_when_asked() -> None:
    assert value_of("<<EOF\n  a\n b\nEOF\n") == "  a\n b\n"
    assert value_of("<<-EOF\n    a\n\n      b ${c}\n    EOF\n") == "a\n\n  b ${c}\n"
    assert value_of("<<EOF\nEOF\n") == ""


def test_an_interpolation_knows_its_place() -> None:
    (item,) = parse('x = "ab${c}"').body.items
    assert isinstance(item, Attribute)
    assert isinstance(item.value, Template)
    part = item.value.parts[1]
    assert isinstance(part, Interpolation)
    assert (part.source, part.span.start.column, part.span.end.column) == ("${c}", 8, 12)


def test_names_and_values_know_their_place() -> None:
    document = parse('a = 1\n\nblock "x" {\n\tb = [2]\n}\n')
    block = document.body.items[1]
    assert isinstance(block, Block)
    inner = block.body.items[0]
    assert isinstance(inner, Attribute)
    start = inner.value.span.start
    assert (block.type_span.start.line, inner.name_span.start.line, start.line, start.column) == (
        3,
        4,
        4,
        6,
    )


@pytest.mark.parametrize(
    ("text", "place", "what", "hint"),
    [
        (
            "server {\n  enabled =\n}",
            "2,11",
            'expected a value after "=", found the end of the line',
            "",
        ),
        ("a = 10s", "1,5", "a number cannot be followed by 's'", '"10s"'),
        ('a = "b\n', "1,5", "this text has no closing quote on its line", "<<EOF"),
        ("server {\n", "1,8", "this block has no closing brace", 'Close it with "}"'),
        ("a = [1 2]", "1,8", 'expected "," or "]" in a list', ""),
        ("a = [1,", "1,5", "this list has no closing bracket", 'Close it with "]"'),
        ("a = { b = 1", "1,5", "this object has no closing brace", 'Close it with "}"'),
        ("a = 'b'", "1,5", "unexpected character", "double quotes"),
        ("}", "1,1", "this brace closes nothing", ""),
        ("a b = 1", "1,5", 'expected "=" or "{" after "a"', "a = value"),
        ("a = <<EOF\nx\n", "1,5", "this text has no closing EOF", "only EOF"),
        ("/* a", "1,1", "this comment has no end", "*/"),
        ('a = "\\q"', "1,6", "unknown escape", ""),
        ('a = "${b"', "1,6", 'this "${" has no closing brace', ""),
        ("= 1", "1,1", "expected the name of a setting or block", ""),
        ("a = ,", "1,5", "expected a value", ""),
    ],
)
def test_an_error_shows_place_line_caret_and_what_to_do(
    text: str, place: str, what: str, hint: str
) -> None:
    with pytest.raises(HclError) as refused:
        parse(text, name="server.hcl")
    first, shown, caret, *rest = refused.value.message.split("\n")
    assert first.startswith(f"server.hcl:{place}: {what}")
    line, column = (int(one) for one in place.split(","))
    assert text.split("\n")[line - 1] in shown
    assert caret.index("^") - caret.index("|") - 2 == column - 1
    assert hint in "\n".join(rest)


def test_tabs_before_a_fault_stay_tabs_under_the_line() -> None:
    with pytest.raises(HclError, match=r"\| \t\t    \^"):
        parse("\t\ta = ,")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "a {" * 5000, "a = " + "{b=" * 5000, '{"a":' * 5000]
)
def test_nesting_too_deep_is_an_error_and_not_a_crash(text: str) -> None:
    for parser in (parse, parse_json):
        with pytest.raises(HclError):
            parser(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4
        )
    ),
    max_leaves=10,
)


def balanced(value: Any) -> bool:
    """Whether no text in it has a mark that begins an interpolation."""
    return "${" not in json.dumps(value, ensure_ascii=False) and "%{" not in json.dumps(
        value, ensure_ascii=False
    )


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON, max_size=4
    ).filter(balanced),
    st.booleans(),
)
def test_any_json_object_is_read_as_it_is(value: dict[str, Any], ascii_only: bool) -> None:
    document = parse_json(json.dumps(value, ensure_ascii=ascii_only))
    read = {
        item.name: plain(item.value) for item in document.body.items if isinstance(item, Attribute)
    }
    assert read == value


@given(st.text(alphabet='ab=1."\\${}[]<-EOF\n\t #/*,:%é', max_size=40))
def test_any_text_is_a_tree_or_an_error_with_a_place(text: str) -> None:
    try:
        parse(text)
    except HclError as refused:
        place = refused.message.split(": ")[0].removeprefix("input.hcl:")
        line, _, column = place.partition(",")
        assert 1 <= int(line) <= text.count("\n") + 1
        assert int(column) >= 1


def test_a_json_configuration_must_be_one_object() -> None:
    with pytest.raises(HclError, match="a configuration is an object"):
        parse_json("[1]")
    with pytest.raises(HclError, match="expected the end of the file"):
        parse_json("{} {}")


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.hcl")), ids=lambda path: path.name)
def test_every_sample_file_is_read(path: pathlib.Path) -> None:
    document = parse(path.read_text(encoding="utf-8"), name=path.name)
    assert document.body.items
    assert not any(isinstance(item, ObjectValue) for item in document.body.items)
