"""How reads are answered: at once or when something changed, by whom, and in pages."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_world import SECOND, FakeNode, World, body, job, running

from nomadpy.errors import InvalidRequestError, NoLeaderError, NotFoundError
from nomadpy.models.calls import ClientAllocsRequest, JobDeregister, Read
from nomadpy.models.envelope import QueryOptions
from nomadpy.server.query import check_uuid, check_uuid_prefix, page

# -- blocking -----------------------------------------------------------------------------------------


async def purge(world: World, job_id: str) -> Any:
    return body(await world.call("Job.Deregister", JobDeregister(job_id=job_id, purge=True)))


async def timed(work: Any) -> tuple[float, Any]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    result = await work
    return loop.time() - start, result


async def test_a_read_without_an_index_answers_at_once() -> None:
    async with running() as world:
        await world.register(job("web"))
        await world.settled()
        took, answer = await timed(world.read("Job.Get", "web"))
        assert took < 0.1
        assert answer.index == world.state.job("default", "web").modify_index  # type: ignore[union-attr]
        assert (answer.known_leader, answer.last_contact_ms) == (True, 0)


async def test_a_blocking_read_returns_when_its_index_grows() -> None:
    async with running() as world:
        await world.register(job("web", Meta={"a": "1"}))
        await world.settled()
        first = await world.read("Job.Get", "web")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(
                timed(world.read("Job.Get", "web", min_index=first.index, wait_ns=60 * SECOND))
            )
            await asyncio.sleep(5.0)
            assert not waiting.done()
            await world.register(job("web", Meta={"a": "2"}))
        took, answer = waiting.result()
        assert 5.0 <= took < 6.0
        assert answer.index > first.index
        assert body(answer)["Meta"] == {"a": "2"}


async def test_a_change_of_another_row_keeps_a_read_waiting() -> None:
    async with running() as world:
        await world.register(job("web"))
        await world.settled()
        first = await world.read("Job.Get", "web")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(
                timed(world.read("Job.Get", "web", min_index=first.index, wait_ns=10 * SECOND))
            )
            for number in range(3):
                await asyncio.sleep(1.0)
                await world.register(job(f"other-{number}"))
        took, answer = waiting.result()
        assert took >= 10.0
        assert answer.index == first.index


async def test_time_up_answers_with_the_present_data_within_a_sixteenth_more() -> None:
    async with running() as world:
        await world.register(job("web"))
        await world.settled()
        first = await world.read("Job.List")
        times = []
        for _ in range(8):
            took, answer = await timed(
                world.read("Job.List", min_index=first.index, wait_ns=2 * SECOND)
            )
            assert answer.index == first.index
            assert [row["ID"] for row in body(answer)] == ["web"]
            times.append(took)
        assert all(2.0 <= took <= 2.0 * 17 / 16 + 0.05 for took in times)
        assert len(set(times)) == len(times), "readers that started together come back together"


@pytest.mark.parametrize("wait_ns", [0, -5, 3_600 * SECOND])
async def test_a_wait_that_is_not_given_or_too_long_is_five_minutes(wait_ns: int) -> None:
    async with running() as world:
        took, _ = await timed(world.read("Job.List", min_index=10**6, wait_ns=wait_ns))
        assert 300.0 <= took <= 300.0 * 17 / 16 + 0.05


async def test_an_object_that_is_missing_is_not_found_with_an_index_to_wait_on() -> None:
    async with running() as world:
        await world.register(job("other"))
        await world.settled()
        with pytest.raises(NotFoundError) as caught:
            await world.read("Job.Get", "web")
        assert caught.value.message == "job not found"
        assert caught.value.details["index"] == world.state.table_index("jobs") > 0
        assert caught.value.details["known_leader"] is True

        async with asyncio.TaskGroup() as group:
            index = caught.value.details["index"]
            waiting = group.create_task(
                timed(world.read("Job.Get", "web", min_index=index, wait_ns=60 * SECOND))
            )
            await asyncio.sleep(2.0)
            await world.register(job("web"))
        took, answer = waiting.result()
        assert 2.0 <= took < 3.0
        assert body(answer)["ID"] == "web"


async def test_deleting_moves_the_index_of_the_list_and_wakes_who_waits_for_the_object() -> None:
    async with running() as world:
        await world.register(job("web"))
        await world.settled()
        listed = await world.read("Job.List")
        shown = await world.read("Job.Get", "web")
        async with asyncio.TaskGroup() as group:
            rows = group.create_task(
                world.read("Job.List", min_index=listed.index, wait_ns=60 * SECOND)
            )

            async def gone() -> int:
                with pytest.raises(NotFoundError) as caught:
                    await world.read("Job.Get", "web", min_index=shown.index, wait_ns=60 * SECOND)
                return int(caught.value.details["index"])

            waiting = group.create_task(gone())
            await asyncio.sleep(1.0)
            answer = await purge(world, "web")
        assert body(rows.result()) == []
        assert rows.result().index >= answer["JobModifyIndex"]
        assert waiting.result() > shown.index


async def test_an_empty_list_of_a_new_cluster_has_index_0() -> None:
    async with running() as world:
        for method in ("Job.List", "Alloc.List"):
            answer = await world.read(method)
            assert (answer.index, answer.body) == (0, b"[]")


async def test_a_read_that_is_given_up_leaves_no_watch_behind() -> None:
    async with running() as world:
        watch = world.leader.store.watch
        before = len(watch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await world.read("Job.List", min_index=10**6)
        assert len(watch) == before


async def test_the_node_wakes_for_its_own_allocations_only() -> None:
    async with running() as world:
        one, two = await world.node("n0"), await world.node("n1")
        await world.register(
            job(
                "pinned",
                Constraints=[{"LTarget": "${node.unique.id}", "RTarget": one.id, "Operand": "="}],
            )
        )
        await world.settled()
        shown = await world.read("Node.Allocations", one.id)
        assert len(body(shown)) == 1
        asleep = await asyncio.gather(
            timed(_client_allocs(world, two, 10**6, 3)), timed(_client_allocs(world, one, 1, 3))
        )
        assert asleep[0][0] >= 3.0
        assert asleep[1][0] < 0.1
        assert list(asleep[1][1].allocs) == [one.allocs()[0].id]


async def _client_allocs(world: World, node: FakeNode, index: int, wait_s: int) -> Any:
    options = QueryOptions(min_index=index, wait_ns=wait_s * SECOND, allow_stale=True)
    return await world.call(
        "Node.ClientAllocs",
        ClientAllocsRequest(node_id=node.id, secret_id=node.node.secret_id, options=options),
    )


# -- who answers ----------------------------------------------------------------------------------------


async def test_a_default_read_on_any_server_sees_every_acknowledged_write() -> None:
    async with running(3) as world:
        leader, slow = world.leading, world.followers[0]
        world.cluster.network.slow(leader.name, slow.server.settings.name, (0.05, 0.2))
        for number in range(10):
            await world.register(job("web", Meta={"n": str(number)}))
            shown = await world.get("Job.Get", "web", at=slow)
            assert shown["Meta"] == {"n": str(number)}


async def test_a_stale_read_is_answered_by_what_is_here() -> None:
    async with running(3) as world:
        await world.register(job("web", Meta={"n": "1"}))
        await world.caught_up()
        slow = world.followers[0]
        world.cluster.network.block(world.leading.name, slow.server.settings.name)
        await world.register(job("web", Meta={"n": "2"}))
        took, answer = await timed(world.read("Job.Get", "web", at=slow, allow_stale=True))
        assert took < 0.01
        assert body(answer)["Meta"] == {"n": "1"}
        await asyncio.sleep(0.5)
        answer = await world.read("Job.Get", "web", at=slow, allow_stale=True)
        assert answer.last_contact_ms >= 400


async def test_without_a_leader_a_default_read_says_so_in_time_and_a_stale_one_is_answered() -> (
    None
):
    async with running(3) as world:
        await world.register(job("web"))
        await world.caught_up()
        last = world.followers[0]
        for server in world.servers:
            if server.process is not last:
                await server.crash(power=False)
        took, error = await timed(_failure(world.read("Job.Get", "web", at=last)))
        assert isinstance(error, NoLeaderError)
        assert error.message == "No cluster leader"
        assert took <= 5.5
        await asyncio.sleep(5.0)
        stale = await world.read("Job.Get", "web", at=last, allow_stale=True)
        assert body(stale)["ID"] == "web"
        assert stale.known_leader is False
        assert stale.last_contact_ms > 5000


async def test_a_server_that_never_heard_a_leader_answers_stale_reads() -> None:
    async with running(3, form=False) as world:
        only = world.servers[0]
        await only.start()
        assert only.process is not None
        await asyncio.sleep(3.0)
        answer = await world.read("Job.List", at=only.process, allow_stale=True)
        assert body(answer) == []
        assert answer.known_leader is False
        assert answer.last_contact_ms >= 2900


async def test_a_leader_that_was_cut_off_does_not_answer_a_default_read() -> None:
    async with running(3) as world:
        await world.register(job("web", Meta={"n": "1"}))
        old = world.leading
        assert old.process is not None
        others = [s.name for s in world.servers if s is not old]
        world.cluster.network.partition([old.name], others)
        # Asked at once, while it still believes that it leads.
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(_failure(world.read("Job.Get", "web", at=old.process)))
            await asyncio.sleep(0)
        assert isinstance(asked.result(), NoLeaderError)


async def test_a_default_read_lives_through_the_death_of_the_leader() -> None:
    async with running(3) as world:
        await world.register(job("web"))
        follower = world.followers[0]
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(world.get("Job.Get", "web", at=follower))
            await world.leading.crash(power=False)
        assert asked.result()["ID"] == "web"


async def test_a_default_read_lives_through_a_leader_that_falls_silent() -> None:
    async with running(3) as world:
        await world.register(job("web"))
        follower = world.followers[0]
        async with asyncio.TaskGroup() as group:
            await world.leading.crash(power=True)
            asked = group.create_task(world.get("Job.Get", "web", at=follower))
        assert asked.result()["ID"] == "web"


async def _failure(work: Any) -> BaseException | None:
    try:
        await work
    except Exception as error:
        return error
    return None


# -- pages ------------------------------------------------------------------------------------------------


class Row(msgspec.Struct, frozen=True):
    number: int
    id: str


async def pages(world: World, method: str, **options: Any) -> list[str]:
    """The ids of a list, read page by page."""
    found: list[str] = []
    token = ""
    for _ in range(50):
        answer = await world.read(method, next_token=token, **options)
        rows = body(answer)
        assert len(rows) <= options["per_page"]
        found += [row["ID"] for row in rows]
        token = answer.next_token
        if not token:
            return found
    raise AssertionError(f"{method} has no last page")


@pytest.mark.parametrize(
    "method",
    ["Job.List", "Job.Statuses", "Alloc.List", "Eval.List", "Node.List", "Deployment.List"],
)
@pytest.mark.parametrize("reverse", [False, True])
async def test_pages_are_the_list_cut_in_pieces(method: str, reverse: bool) -> None:
    async with running() as world:
        for number in range(5):
            await world.node(f"n{number}")
        for number in range(11):
            await world.register(job(f"p{number}", Update={"MaxParallel": 1}))
        await world.settled()
        whole = [row["ID"] for row in await world.get(method, reverse=reverse)]
        assert len(whole) >= 5
        opposite = [row["ID"] for row in await world.get(method, reverse=not reverse)]
        assert whole == opposite[::-1]
        for per_page in (1, 2, 3):
            assert await pages(world, method, per_page=per_page, reverse=reverse) == whole


async def test_a_token_names_the_first_of_the_next_page() -> None:
    async with running() as world:
        for number in range(3):
            await world.register(job(f"p{number}"))
        first = await world.read("Job.List", per_page=1)
        assert (first.next_token, [r["ID"] for r in body(first)]) == ("default.p1", ["p0"])
        last = await world.read("Job.List", per_page=2, next_token="default.p1")
        assert (last.next_token, [r["ID"] for r in body(last)]) == ("", ["p1", "p2"])
        # The row it names may be gone: the page begins at the next one.
        await purge(world, "p1")
        answer = await world.get("Job.List", per_page=1, next_token="default.p1")
        assert [row["ID"] for row in answer] == ["p2"]


async def test_the_filter_comes_before_the_cut() -> None:
    async with running() as world:
        for number in range(6):
            await world.register(job(f"p{number}", Meta={"even": str(number % 2 == 0)}))
        where = 'Meta.even == "True"'
        first = await world.read("Job.List", per_page=2, filter=where)
        assert [r["ID"] for r in body(first)] == ["p0", "p2"]
        assert first.next_token == "default.p4"
        assert await pages(world, "Job.List", per_page=2, filter=where) == ["p0", "p2", "p4"]


@given(
    numbers=st.lists(st.integers(0, 10**12), unique=True, max_size=30),
    per_page=st.integers(1, 7),
    reverse=st.booleans(),
    keep=st.integers(1, 3),
)
def test_pages_by_number_cover_every_row_once(
    numbers: list[int], per_page: int, reverse: bool, keep: int
) -> None:
    rows = [Row(n, f"id-{n}") for n in sorted(numbers)]
    found: list[int] = []
    token = ""
    while True:
        options = QueryOptions(per_page=per_page, next_token=token, reverse=reverse)
        cut = page(
            (r for r in rows if r.number % keep == 0), options, token=lambda r: (r.number, r.id)
        )
        found += [r.number for r in cut.items]
        token = cut.next_token
        if not token:
            break
    assert found == sorted((n for n in numbers if n % keep == 0), reverse=reverse)


@pytest.mark.parametrize("token", ["nonsense", "x.id", ".", "\N{SUPERSCRIPT TWO}.a", "-1.x"])
def test_a_token_of_another_list_is_refused(token: str) -> None:
    rows = [Row(1, "a"), Row(2, "b")]
    with pytest.raises(InvalidRequestError):
        page(rows, QueryOptions(per_page=1, next_token=token), token=lambda r: (r.number, r.id))


def test_a_negative_page_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="per_page"):
        page([Row(1, "a")], QueryOptions(per_page=-1), token=lambda r: r.id)


# -- ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("abc", "alloc lookup failed: index error: Input (without hyphens) must be even length"),
        ("zz", "Invalid UUID"),
        ("ab-c", "must be even length"),
        ("ab" * 20, "Invalid UUID length"),
    ],
)
async def test_a_prefix_that_cannot_begin_a_uuid_is_told_as_the_wire_does(
    prefix: str, text: str
) -> None:
    async with running() as world:
        with pytest.raises(InvalidRequestError) as caught:
            await world.read("Alloc.List", prefix=prefix)
        assert text in caught.value.message
        assert caught.value.status == 500


@pytest.mark.parametrize("prefix", ["", "ab", "AB", "abcd-ef"])
def test_hexadecimal_prefixes_of_even_length_pass(prefix: str) -> None:
    check_uuid_prefix(prefix, "node")


async def test_an_id_of_another_length_is_an_error_not_a_missing_object() -> None:
    with pytest.raises(InvalidRequestError, match="UUID must be 36 characters") as caught:
        check_uuid("abc", "eval")
    assert caught.value.status == 500
    async with running() as world:
        with pytest.raises(InvalidRequestError, match="node lookup failed"):
            await world.read("Node.Get", "abc")
        with pytest.raises(NotFoundError, match="node not found"):
            await world.read("Node.Get", "0" * 36)


async def test_a_prefix_lists_what_begins_with_it() -> None:
    async with running() as world:
        nodes = [await world.node(f"n{number}") for number in range(4)]
        for node in nodes:
            rows = await world.get("Node.List", prefix=node.id[:8])
            assert [row["ID"] for row in rows] == [node.id]
        request = Read(options=QueryOptions(prefix=nodes[0].id[:8], per_page=1))
        assert body(await world.call("Node.List", request))[0]["ID"] == nodes[0].id
