"""Recorded exchanges of a real server, by scenario and name."""

from __future__ import annotations

import json
import pathlib
from functools import cache
from typing import Any

import msgspec

from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.jobspec.decode import decode
from nomadpy.models.job import Job

REFERENCE = pathlib.Path(__file__).parents[1] / "wire" / "reference"


@cache
def exchanges(scenario: str) -> dict[str, dict[str, Any]]:
    lines = (REFERENCE / f"{scenario}.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["name"]: one for one in map(json.loads, lines)}


def sent(scenario: str, name: str) -> Any:
    return exchanges(scenario)[name]["request"]["body"]


def answered(scenario: str, name: str) -> Any:
    return exchanges(scenario)[name]["response"]["body"]


def complete(raw: Any) -> Job:
    return canonicalize(decode(raw, Job, path="Job"))


def wire(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def small_job(**over: Any) -> dict[str, Any]:
    """A raw job of one group and one task that is valid."""
    task = {"Name": "task", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}
    group = {"Name": "group", "Tasks": [task | over.pop("task", {})], **over.pop("group", {})}
    return {"ID": "web", "Name": "web", "Type": "service", "TaskGroups": [group], **over}
