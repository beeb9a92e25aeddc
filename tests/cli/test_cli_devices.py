"""Devices in `node status` and `alloc status`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from faking import answering, recorded, run

from nomadpy.cli.devices import figure

ALLOC, NODE = recorded("allocations", "read"), recorded("nodes", "read")
AID, NID = ALLOC["ID"], NODE["ID"]

GROUP = {"Vendor": "nvidia", "Type": "gpu", "Name": "Tesla T4"}
DEVICES = [
    {
        **GROUP,
        "Instances": [
            {
                "ID": "GPU-1",
                "Healthy": True,
                "HealthDescription": "",
                "Locality": {"PciBusID": "0000:3b:00.0"},
            },
            {
                "ID": "GPU-2",
                "Healthy": False,
                "HealthDescription": "it has fallen off",
                "Locality": None,
            },
        ],
        "Attributes": {
            "memory": {"Int": 15360, "Unit": "MiB"},
            "driver_version": {"String": "535", "Unit": ""},
        },
    }
]
MEMORY = {"IntNumeratorVal": 300, "IntDenominatorVal": 15360, "Unit": "MiB"}
STATS = [
    {
        **GROUP,
        "InstanceStats": {
            "GPU-1": {
                "Summary": MEMORY,
                "Stats": {
                    "Attributes": {"GPU utilization": {"IntNumeratorVal": 45, "Unit": "%"}},
                    "Nested": {"Clocks": {"Attributes": {"Memory": {"FloatNumeratorVal": 1.5}}}},
                },
            }
        },
    }
]


def routes(*, devices: bool) -> dict[str, Any]:
    alloc, node = copy.deepcopy(ALLOC), copy.deepcopy(NODE)
    stats = copy.deepcopy(recorded("allocations", "stats"))
    host = copy.deepcopy(recorded("nodes", "stats"))
    if devices:
        given = [{**GROUP, "DeviceIDs": ["GPU-1"], "Share": 500}, {**GROUP, "DeviceIDs": ["GPU-2"]}]
        alloc["AllocatedResources"]["Tasks"]["task"]["Devices"] = given
        node["NodeResources"]["Devices"] = DEVICES
        stats["Tasks"]["task"]["ResourceUsage"]["DeviceStats"] = STATS
        host["DeviceStats"] = STATS
    return {
        "GET /v1/allocations": recorded("allocations", "list"),
        f"GET /v1/allocation/{AID}": alloc,
        f"GET /v1/client/allocation/{AID}/stats": stats,
        "GET /v1/nodes": recorded("nodes", "list"),
        f"GET /v1/node/{NID}": node,
        f"GET /v1/node/{NID}/allocations": [],
        "GET /v1/client/stats": host,
    }


def test_node_status_shows_what_there_is_and_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(devices=True), monkeypatch):
        _, out, _ = run(capsys, "node", "status", "-verbose", "-stats", NID)
        _, plain, _ = run(capsys, "node", "status", NID)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "Device ID Healthy Message PCI Bus",
        "nvidia/gpu/Tesla T4 GPU-1 true <none> 0000:3b:00.0",
        "nvidia/gpu/Tesla T4 GPU-2 false it has fallen off <none>",
        "Device Group Attributes of nvidia/gpu/Tesla T4",
        "memory = 15360 MiB",
        "driver_version = 535",
        "nvidia/gpu/Tesla T4[GPU-1] = 300 / 15360 MiB",
        "GPU utilization = 45 %",
        "Clocks.Memory = 1.5",
    ):
        assert line in lines, out
    assert "nvidia" not in plain


def test_alloc_status_shows_the_devices_of_each_task(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(devices=True), monkeypatch):
        _, out, _ = run(capsys, "alloc", "status", "-stats", AID)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "nvidia/gpu/Tesla T4 GPU-1 500/1000" in lines, out
    assert "nvidia/gpu/Tesla T4 GPU-2 whole" in lines
    assert "nvidia/gpu/Tesla T4[GPU-1] = 300 / 15360 MiB" in lines


def test_without_devices_nothing_is_said_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(devices=False), monkeypatch):
        for command in (("node", "status", "-verbose", "-stats", NID), ("alloc", "status", AID)):
            status, out, _ = run(capsys, *command)
            assert status == 0
            assert "Device" not in out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (MEMORY, "300 / 15360 MiB"),
        ({"IntNumeratorVal": 0, "Unit": "%"}, "0 %"),
        ({"FloatNumeratorVal": 1.25, "FloatDenominatorVal": 4.0}, "1.25 / 4"),
        ({"StringVal": "P0"}, "P0"),
        ({"BoolVal": False}, "false"),
        ({}, "<none>"),
        (None, "<none>"),
    ],
)
def test_figures_are_shown_with_their_most_and_unit(value: Any, text: str) -> None:
    assert figure(value) == text
