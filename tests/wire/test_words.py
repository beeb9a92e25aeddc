"""Every recorded body that has a type decodes into its model and encodes back: same keys, kinds and null rules."""

from __future__ import annotations

import importlib
import json
import pathlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import nomadpy.models

REFERENCE = pathlib.Path(__file__).parent / "reference"

# scenario, names of its exchanges, model ("[]" before it: a list of it). The first row that matches is taken.
TYPES = [
    ("agent", r"self", "AgentSelf"),
    ("agent", r"members", "ServerMembers"),
    ("agent", r"health.*", "AgentHealthResponse"),
    ("agent", r"raft", "RaftConfiguration"),
    ("agent", r"autopilot", "AutopilotConfiguration"),
    ("agent", r"autopilot-health", "OperatorHealthReply"),
    ("agent", r"scheduler|scheduler-get.*", "SchedulerConfigurationResponse"),
    ("agent", r"scheduler-set|scheduler-reset", "SchedulerSetConfigurationResponse"),
    ("agent", r"keyring", "[]RootKeyMeta"),
    ("agent", r"metrics", "MetricsSummary"),
    ("nodes", r"list.*", "[]NodeListStub"),
    ("nodes", r"read|drained", "Node"),
    ("nodes", r"allocations", "[]Allocation"),
    ("nodes", r"stats", "HostStats"),
    ("nodes", r"client-metadata.*", "NodeMetaResponse"),
    ("nodes", r"ineligible|eligible", "NodeEligibilityUpdateResponse"),
    ("nodes", r"drain|undrain", "NodeDrainUpdateResponse"),
    ("nodes", r"pools", "[]NodePool"),
    ("nodes", r"pool-read", "NodePool"),
    ("nodes", r"pool-nodes", "[]NodeListStub"),
    ("nodes", r"pool-jobs", "[]JobListStub"),
    ("jobs", r"list.*", "[]JobListStub"),
    ("jobs", r"validate.*", "JobValidateResponse"),
    ("jobs", r"plan.*", "JobPlanResponse"),
    ("jobs", r"register|register-again|scale|revert|evaluate", "JobRegisterResponse"),
    ("jobs", r"read|read-stopped", "Job"),
    ("jobs", r"summary", "JobSummary"),
    ("jobs", r"allocations.*|eval-allocations", "[]AllocationListStub"),
    ("jobs", r"evaluations|evals", "[]Evaluation"),
    ("jobs", r"deployments", "[]Deployment"),
    ("jobs", r"deployment", "Deployment"),
    ("jobs", r"versions.*", "JobVersionsResponse"),
    ("jobs", r"submission", "JobSubmission"),
    ("jobs", r"scale-status.*", "JobScaleStatusResponse"),
    ("jobs", r"eval-read.*", "Evaluation"),
    ("jobs", r"evals-count", "EvalCountResponse"),
    ("jobs", r"stable", "JobStabilityResponse"),
    ("jobs", r"stop|purge", "JobDeregisterResponse"),
    ("batch", r".*allocations", "[]AllocationListStub"),
    ("batch", r"alloc-read", "Allocation"),
    ("batch", r".*job", "Job"),
    ("batch", r".*evaluations", "[]Evaluation"),
    ("batch", r".*summary", "JobSummary"),
    ("batch", r".*plan", "JobPlanResponse"),
    ("allocations", r"list.*|after-stop", "[]AllocationListStub"),
    ("allocations", r"read|read-after.*", "Allocation"),
    ("allocations", r"stats", "AllocResourceUsage"),
    ("allocations", r"fs-ls.*|fs-secrets", "[]AllocFileInfo"),
    ("allocations", r"fs-stat", "AllocFileInfo"),
    ("allocations", r"fs-stream", "StreamFrame"),
    ("allocations", r"stop", "AllocStopResponse"),
    ("allocations", r"node-allocations", "[]Allocation"),
    ("batch", r"logs-framed", "StreamFrame"),
    ("blocking", r"wait.*|old.*|stale|consistent", "Job"),
    ("deployments", r"list", "[]Deployment"),
    ("deployments", r"read.*", "Deployment"),
    ("deployments", r"pause|resume|promote|fail", "DeploymentUpdateResponse"),
    ("deployments", r"summary", "JobSummary"),
    ("deployments", r"allocations", "[]AllocationListStub"),
    ("dispatch", r"register|periodic-register", "JobRegisterResponse"),
    ("dispatch", r"read|child|periodic-read", "Job"),
    ("dispatch", r"dispatch", "JobDispatchResponse"),
    ("dispatch", r"children|periodic-children", "[]JobListStub"),
    ("dispatch", r"summary", "JobSummary"),
    ("services_and_search", r"job.*", "Job"),
    ("services_and_search", r"alloc", "Allocation"),
    ("services_and_search", r"search.*", "SearchResponse"),
]

LEAST = 120


def _models() -> dict[str, type[msgspec.Struct]]:
    modules = (
        importlib.import_module(f"nomadpy.models.{module.name}")
        for module in pkgutil.iter_modules(nomadpy.models.__path__)
    )
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
    }


MODELS = _models()


def _bodies() -> Iterator[tuple[str, str, str, Any]]:
    for path in sorted(REFERENCE.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            exchange = json.loads(line)
            response = exchange["response"]
            if response["status"] != 200 or not isinstance(response["body"], dict | list):
                continue
            for scenario, pattern, kind in TYPES:
                if scenario == path.stem and re.fullmatch(pattern, exchange["name"]):
                    yield scenario, exchange["name"], kind, response["body"]
                    break


BODIES = list(_bodies())


def differences(want: Any, got: Any, where: str = "") -> Iterator[str]:
    """What the way through the model changed: a key dropped or added, a kind, a value."""
    numbers = isinstance(want, int | float) and isinstance(got, int | float)
    if type(want) is not type(got) and not (numbers and bool not in (type(want), type(got))):
        yield f"{where}: {want!r:.60} became {got!r:.60}"
    elif isinstance(want, dict):
        for key in want:
            if key not in got:
                yield f"{where}.{key} dropped"
            else:
                yield from differences(want[key], got[key], f"{where}.{key}")
        yield from (f"{where}.{key} added" for key in got if key not in want)
    elif isinstance(want, list):
        if len(want) != len(got):
            yield f"{where}: {len(want)} items became {len(got)}"
        for number, (one, other) in enumerate(zip(want, got, strict=False)):
            yield from differences(one, other, f"{where}[{number}]")
    elif want != got:
        yield f"{where}: {want!r:.60} became {got!r:.60}"


def test_enough_bodies_have_a_type() -> None:
    assert len(BODIES) >= LEAST


@pytest.mark.parametrize(
    ("kind", "body"),
    [pytest.param(kind, body, id=f"{scenario}/{name}") for scenario, name, kind, body in BODIES],
)
def test_recorded_body_survives_its_model(kind: str, body: Any) -> None:
    model = MODELS[kind.removeprefix("[]")]
    wanted: Any = list[model] if kind.startswith("[]") else model  # type: ignore[valid-type]
    value = msgspec.convert(body, wanted)
    again = json.loads(msgspec.json.encode(value))
    assert list(differences(body, again)) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [pytest.param(kind, body, id=f"{scenario}/{name}") for scenario, name, kind, body in BODIES],
)
def test_recorded_body_survives_messagepack(kind: str, body: Any) -> None:
    """Snapshots and the rpc carry the same values as msgpack."""
    model = MODELS[kind.removeprefix("[]")]
    wanted: Any = list[model] if kind.startswith("[]") else model  # type: ignore[valid-type]
    value = msgspec.convert(body, wanted)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=wanted) == value
