"""Reads of single objects and lists: what they show, and what they say when there is nothing."""

from __future__ import annotations

from typing import Any

import pytest
from server_world import World, job, rolling, running

from nomadpy.errors import NotFoundError
from nomadpy.models.job import JobSubmission


async def test_one_allocation_comes_with_its_job_and_lists_by_prefix() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=3))
        await world.settled()
        alloc = node.wanted()[0]
        shown = await world.get("Alloc.Get", alloc.id)
        assert (shown["ID"], shown["Job"]["ID"]) == (alloc.id, "web")
        rows = await world.get("Alloc.List", prefix=alloc.id[:8])
        assert [row["ID"] for row in rows] == [alloc.id]
        assert await world.get("Alloc.Services", alloc.id) == []
        assert len(await world.get("Alloc.List", namespace="*")) == 3
        assert await world.get("Alloc.List", namespace="zz") == []


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("Alloc.Get", "alloc not found"),
        ("Alloc.Services", "alloc not found"),
        ("Eval.Get", "eval not found"),
        ("Deployment.Get", "deployment not found"),
        ("Node.Get", "node not found"),
        ("Job.Get", "job not found"),
        ("Job.Summary", "job not found"),
        ("Job.ScaleStatus", "job not found"),
        ("Job.Submission", "job source not found"),
        ("NodePool.Get", "node pool not found"),
        ("Namespace.Get", "Namespace not found"),
    ],
)
async def test_what_does_not_exist_is_named_by_its_kind(method: str, text: str) -> None:
    async with running() as world:
        with pytest.raises(NotFoundError) as caught:
            await world.read(method, "0" * 36)
        assert (caught.value.message, caught.value.status) == (text, 404)
        assert "index" in caught.value.details


async def test_the_text_of_each_version_is_kept_as_it_was_submitted() -> None:
    async with running() as world:
        for number in range(2):
            text = JobSubmission(source=f"job v{number}", format="hcl2")
            await world.register(job(Meta={"v": str(number)}), submission=text)
        for number in range(2):
            shown = await world.get("Job.Submission", "web", flags={"version": str(number)})
            assert (shown["Source"], shown["Format"]) == (f"job v{number}", "hcl2")


async def test_deployments_are_listed_oldest_first_and_by_prefix() -> None:
    async with running() as world:
        await world.node()
        for name in ("web", "api"):
            await world.register(job(name, Update=rolling()))
            await world.settled()
        rows = await world.get("Deployment.List")
        assert [row["JobID"] for row in rows] == ["web", "api"]
        shown = await world.get("Deployment.Get", rows[0]["ID"])
        assert shown["Status"] == "running"
        prefix = await world.get("Deployment.List", prefix=rows[1]["ID"][:8])
        assert [row["ID"] for row in prefix] == [rows[1]["ID"]]


async def test_pools_and_namespaces_are_there_from_the_beginning() -> None:
    async with running() as world:
        assert [row["Name"] for row in await world.get("NodePool.List")] == ["all", "default"]
        assert [row["Name"] for row in await world.get("NodePool.List", prefix="d")] == ["default"]
        assert [row["Name"] for row in await world.get("Namespace.List")] == ["default"]
        assert (await world.get("Namespace.Get", "default"))["Name"] == "default"


async def test_actions_of_all_tasks_are_listed_with_their_task() -> None:
    task = {
        "Name": "task",
        "Driver": "mock_driver",
        "Resources": {"CPU": 10, "MemoryMB": 64},
        "Actions": [{"Name": "hello", "Command": "echo", "Args": ["hi"]}],
    }
    async with running() as world:
        await world.register(job(group={"Tasks": [task]}))
        assert await world.get("Job.Actions", "web") == [
            {"Name": "hello", "TaskName": "task", "TaskGroupName": "group"}
        ]
        assert await world.get("Job.Services", "web") == []


async def test_rows_of_nodes_hold_resources_and_system_only_when_asked() -> None:
    async with running() as world:
        await world.node(attributes={"os.name": "debian", "driver.mock_driver": "1"})
        (plain,) = await world.get("Node.List")
        assert not plain.get("NodeResources")
        (full,) = await world.get("Node.List", flags={"resources": "", "os": "true"})
        assert full["NodeResources"]["Cpu"]["CpuShares"] == 2000
        assert full["Attributes"] == {"os.name": "debian"}


async def ids(world: World, **options: Any) -> list[str]:
    return [row["ID"] for row in await world.get("Job.List", **options)]


async def test_jobs_are_listed_by_namespace_and_prefix() -> None:
    async with running() as world:
        for name in ("api", "web-1", "web-2"):
            await world.register(job(name))
        assert await ids(world) == ["api", "web-1", "web-2"]
        assert await ids(world, prefix="web") == ["web-1", "web-2"]
        assert await ids(world, prefix="web", namespace="*") == ["web-1", "web-2"]
        assert await ids(world, namespace="zz") == []
        assert await ids(world, filter='ID matches "1$"') == ["web-1"]
