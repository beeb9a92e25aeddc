"""Examples of the table, and its behaviour against a plain dict."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nomadpy.state.table import Table, TableSpec, between, prefixed, select, table_of, under, values

Row = tuple[str, int]
SPEC: TableSpec[str, Row] = TableSpec(
    "rows",
    key_type=str,
    row_type=Row,
    indexes={"colour": lambda row: row[0] or None, "odd": lambda row: row[1] % 2 or None},
)


def filled(**rows: Row) -> Table[str, Row]:
    return table_of(SPEC, rows.items())


def test_rows_are_found_by_key_and_by_index() -> None:
    table = filled(b=("red", 1), a=("red", 2), c=("", 3))
    assert table.get("a") == ("red", 2)
    assert table.get("z") is None
    assert list(values(table)) == [("red", 2), ("red", 1), ("", 3)]
    assert select(table, "colour", "red") == [("red", 2), ("red", 1)]
    assert table.members("colour", "blue") == []
    assert table.count("odd", 1) == 2


def test_a_row_without_an_index_key_is_in_no_set_of_that_index() -> None:
    assert filled(c=("", 3)).members("colour", "") == []


def test_a_writer_leaves_the_version_it_came_from_alone() -> None:
    table = filled(a=("red", 1))
    writer = table.writer()
    writer.put("b", ("red", 2))
    writer.put("a", ("blue", 1))
    after = writer.commit()
    assert list(table.keys()) == ["a"]
    assert table.members("colour", "red") == ["a"]
    assert list(after.keys()) == ["a", "b"]
    assert after.members("colour", "red") == ["b"]
    assert after.members("colour", "blue") == ["a"]


def test_a_writer_reads_its_own_writes() -> None:
    writer = filled(a=("red", 1)).writer()
    writer.put("c", ("red", 3))
    assert writer.delete("a") == ("red", 1)
    assert writer.delete("a") is None
    writer.put("b", ("red", 2))
    assert list(writer.keys()) == ["b", "c"]
    assert writer.members("colour", "red") == ["b", "c"]
    assert (writer.get("a"), len(writer)) == (None, 2)


def test_what_was_committed_does_not_see_later_writes_of_the_same_writer() -> None:
    writer = filled().writer()
    writer.put("a", ("red", 1))
    first = writer.commit()
    writer.put("b", ("red", 2))
    assert list(first.keys()) == ["a"]
    assert first.members("colour", "red") == ["a"]
    assert list(writer.commit().keys()) == ["a", "b"]


def test_prefix_scans_find_exactly_what_begins_so() -> None:
    table = filled(ab=("", 1), abc=("", 2), ac=("", 3), b=("", 4))
    assert [row[1] for row in prefixed(table, "ab")] == [1, 2]
    assert [row[1] for row in prefixed(table, "")] == [1, 2, 3, 4]
    assert list(prefixed(table, "x")) == []
    assert [row[1] for row in between(table, "abc", "b")] == [2, 3]


def test_tuple_keys_are_scanned_within_their_first_part() -> None:
    spec: TableSpec[tuple[str, str], int] = TableSpec("pairs", key_type=Any, row_type=int)
    table = table_of(spec, [(("a", "web"), 1), (("a", "wab"), 2), (("ab", "web"), 3)])
    assert list(under(table, "a")) == [2, 1]
    assert list(under(table, "a", "we")) == [1]


_KEYS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
_WRITES = st.lists(
    st.tuples(
        _KEYS,
        st.one_of(st.none(), st.tuples(st.sampled_from(["", "red", "blue"]), st.integers(0, 3))),
    ),
    max_size=8,
)


_ROWS = st.dictionaries(_KEYS, st.tuples(st.sampled_from(["", "red"]), st.integers(0, 3)))


@given(transactions=st.lists(st.tuples(_WRITES, _ROWS, st.booleans()), max_size=8))
def test_a_table_is_a_dict_with_indexes_whatever_is_written_and_whenever_it_is_listed(
    transactions: list[tuple[list[tuple[str, Row | None]], dict[str, Row], bool]],
) -> None:
    model: dict[str, Row] = {}
    table = filled()
    versions: list[tuple[Table[str, Row], dict[str, Row]]] = []
    for writes, rows, listed in transactions:
        writer = table.writer()
        for key, row in writes:
            if row is None:
                assert writer.delete(key) == model.pop(key, None)
            else:
                assert writer.put(key, row) == model.get(key)
                model[key] = row
            if listed:
                assert list(writer.keys()) == sorted(model)
        fresh = {key: row for key, row in rows.items() if key not in model}
        writer.insert(fresh)
        model.update(fresh)
        table = writer.commit()
        if listed:
            assert list(table.keys()) == sorted(model)
        versions.append((table, dict(model)))
    for version, expected in versions:
        assert list(version.keys()) == sorted(expected)
        assert len(version) == len(expected)
        assert [version.get(k) for k in sorted(expected)] == [expected[k] for k in sorted(expected)]
        for name, index_of in SPEC.indexes.items():
            for index_key in ("red", "blue", 1):
                members = sorted(k for k, row in expected.items() if index_of(row) == index_key)
                assert version.members(name, index_key) == members
                assert version.count(name, index_key) == len(members)


def test_keys_stay_in_order_when_far_more_changes_than_the_order_remembers() -> None:
    table = filled()
    expected: set[str] = set()
    for number in range(40):
        if number % 7 == 0:
            assert list(table.keys()) == sorted(expected)
        writer = table.writer()
        for step in range(60):
            key = f"{(number * 37 + step * 11) % 500:03d}"
            if key in expected and step % 3 == 0:
                writer.delete(key)
                expected.discard(key)
            else:
                writer.put(key, ("", step))
                expected.add(key)
        table = writer.commit()
    assert list(table.keys()) == sorted(expected)
