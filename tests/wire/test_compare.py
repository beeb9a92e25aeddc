"""The comparator itself: what it must notice, and what honest servers may differ in."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

from compare import compare_scenarios, differences, judge

REFERENCE = pathlib.Path(__file__).parent / "reference"
SCENARIO = [
    json.loads(line) for line in (REFERENCE / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
]
READ: dict[str, Any] = next(e for e in SCENARIO if e["name"] == "read")


def changed(**body: Any) -> dict[str, Any]:
    other = copy.deepcopy(READ)
    other["response"]["body"].update(body)
    return other


def test_a_recording_passes_against_itself(tmp_path: pathlib.Path) -> None:
    (tmp_path / "jobs.jsonl").write_bytes((REFERENCE / "jobs.jsonl").read_bytes())
    counts = compare_scenarios(REFERENCE, tmp_path)["jobs"]
    assert counts.passed == counts.exact == counts.total == len(SCENARIO)
    assert counts.failures == []


def test_a_missing_exchange_is_a_failure(tmp_path: pathlib.Path) -> None:
    lines = (REFERENCE / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines[1:]) + "\n")
    counts = compare_scenarios(REFERENCE, tmp_path)["jobs"]
    assert counts.passed == counts.total - 1
    assert counts.failures[0].startswith(SCENARIO[0]["name"])


def test_another_status_is_noticed() -> None:
    other = copy.deepcopy(READ)
    other["response"]["status"] = 201
    assert ("status" in {what for what, _ in judge(READ, other)}) is True


def test_a_missing_header_is_noticed() -> None:
    other = copy.deepcopy(READ)
    del other["response"]["headers"]["X-Nomad-Index"]
    assert ("header", "X-Nomad-Index missing") in judge(READ, other)


def test_another_kind_and_another_value_are_noticed() -> None:
    assert {w for w, _ in judge(READ, changed(Priority="50"))} == {"type"}
    assert {w for w, _ in judge(READ, changed(Priority=51))} == {"value"}


def test_a_dropped_field_is_noticed() -> None:
    other = copy.deepcopy(READ)
    del other["response"]["body"]["NodePool"]
    assert ("missing", ".NodePool") in judge(READ, other)


def test_ids_indexes_and_times_may_differ() -> None:
    assert judge(READ, changed(CreateIndex=99, SubmitTime=1795393293234519600, ModifyIndex=7)) == []


def test_null_against_an_empty_list_is_only_soft() -> None:
    assert list(differences(None, [], ".Spreads", "Spreads")) == [
        ("empty-kind", ".Spreads: null != []")
    ]
