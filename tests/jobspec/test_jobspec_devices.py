"""What a job may say about devices: shares of one, and where they are to be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from job_recordings import complete, small_job

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.jobspec.faults import format_errors
from nomadpy.jobspec.parse import parse
from nomadpy.jobspec.validate import validate
from nomadpy.models.job import Job
from nomadpy.models.resources import RequestedDevice


def job(*devices: dict[str, Any], **resources: Any) -> Job:
    return complete(small_job(task={"Resources": {"Devices": list(devices), **resources}}))


def faults_of(*devices: dict[str, Any], **resources: Any) -> str:
    return format_errors(validate(job(*devices, **resources)))


def device_of(made: Job) -> RequestedDevice:
    (group,) = made.task_groups or []
    (task,) = group.tasks or []
    assert task.resources is not None
    (device,) = task.resources.devices or []
    return device


@pytest.mark.parametrize("share", [1, 250, 999, 1000])
def test_a_share_is_thousandths_of_one_device(share: int) -> None:
    assert validate(job({"Name": "gpu", "Share": share})) == []
    assert validate(job({"Name": "gpu", "Share": share, "Count": 1})) == []


@pytest.mark.parametrize("share", [0, -1, -500, 1001, 2**40])
def test_a_share_that_is_none_or_more_than_the_device_is_refused(share: int) -> None:
    fault = "device share must be 1 to 1000 thousandths of a device"
    assert fault in faults_of({"Name": "gpu", "Share": share})


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_share_is_of_one_device(count: int) -> None:
    fault = "device count must be 1 when a share of a device is asked for"
    assert fault in faults_of({"Name": "gpu", "Share": 1000, "Count": count})


@pytest.mark.parametrize("share", ["500", 0.5, True, [500]])
def test_a_share_is_a_whole_number(share: Any) -> None:
    body = {"Name": "gpu", "Share": share}
    raw = small_job(task={"Resources": {"Devices": [body]}})
    with pytest.raises(InvalidRequestError):
        parse(msgspec.json.encode({"Job": raw}).decode(), name="job.json")


def test_a_job_file_says_a_share_as_the_api_does() -> None:
    text = """
ID: train
Type: batch
TaskGroups:
  - Name: train
    Tasks:
      - Name: train
        Driver: raw_exec
        Config: {command: /bin/true}
        Resources:
          Devices:
            - {Name: nvidia/gpu, Share: 500}
"""
    made = canonicalize(parse(text, name="job.yaml"), region="global")
    assert validate(made) == []
    assert device_of(made) == RequestedDevice(name="nvidia/gpu", count=1, share=500)


def test_a_share_is_on_the_wire_only_where_it_was_asked_for() -> None:
    shared, whole = job({"Name": "gpu", "Share": 500}), job({"Name": "gpu"})
    wire = msgspec.to_builtins(device_of(shared))
    assert wire["Share"] == 500
    assert msgspec.convert(wire, RequestedDevice) == device_of(shared)
    assert "Share" not in msgspec.to_builtins(device_of(whole))
    for made in (shared, whole):
        assert msgspec.json.decode(msgspec.json.encode(made), type=Job) == made


@pytest.mark.parametrize("affinity", ["prefer", "require"])
def test_devices_may_be_wanted_beside_the_cores(affinity: str) -> None:
    made = job(
        {"Name": "nvidia/gpu"},
        {"Name": "fpga"},
        Cores=2,
        NUMA={"Affinity": affinity, "Devices": ["nvidia/gpu"]},
    )
    assert validate(made) == []


@pytest.mark.parametrize(
    ("numa", "fault"),
    [
        ({"Affinity": "always"}, "numa affinity must be one of none, prefer, or require"),
        (
            {"Devices": ["gpu"]},
            "numa affinity must be prefer or require when numa devices are named",
        ),
        (
            {"Affinity": "none", "Devices": ["gpu"]},
            "numa affinity must be prefer or require when numa devices are named",
        ),
        (
            {"Affinity": "require", "Devices": ["nvidia/gpu"]},
            'numa device "nvidia/gpu" is not one of the devices that the task asks for',
        ),
        (
            {"Affinity": "prefer", "Devices": ["gpu", "fpga"]},
            'numa device "fpga" is not one of the devices that the task asks for',
        ),
    ],
)
def test_what_cannot_be_meant_about_numa_devices_is_refused(
    numa: dict[str, Any], fault: str
) -> None:
    assert fault in faults_of({"Name": "gpu"}, Cores=1, NUMA=numa)
