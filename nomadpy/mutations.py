"""Deliberate faults of a node, so that the fault-injection kit can prove that it would find them.

Set by the environment variable NOMADPY_MUTATION, which nothing but the kit sets, and refused unless the node's CA is one
that the kit made for its own cluster: no node that anybody relies on can have one. Not here: any part of the product
that knows of this module; the daemon calls `apply` on a server that is built and `apply_to_agent` on an agent's drivers, and
that is all.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.drivers.base import Driver, Started, TaskConfig, TaskHandle, TaskNotFoundError
from agent.task_dir import HostDirectories
from nomadpy import logs
from nomadpy.errors import ConfigError
from nomadpy.fsm import commands
from nomadpy.fsm.commands import Applied, Command
from nomadpy.models.allocation import Allocation
from nomadpy.models.plan import Plan
from nomadpy.models.variable import Written
from nomadpy.server.query import Found
from nomadpy.server.server import Server

VARIABLE = "NOMADPY_MUTATION"
KIT_CA = "nomadpy fault-injection kit CA"

SERVER_MUTATIONS = {
    "stale-reads": "answer every read from what is here, without asking the leader",
    "drop-acknowledged-write": "acknowledge every 40th write of a variable without making it",
    "ignore-check-and-set": "write variables whatever index was demanded",
    "double-lock": "give the lock of a variable to who asks, though another holds it",
    "no-fence": "write variables whatever lock is shown",
    "lose-job": "forget every 10th job a moment after it was acknowledged",
    "lost-wake": "let every 4th blocking query sleep through the change that it waits for",
    "index-goes-back": "answer every 10th blocking query with an index that is too small",
    "place-twice": "place every allocation on a second node as well",
    "overcommit": "put every allocation on the first node, whether it fits or not",
    "skip-fsync": "make nothing durable before it is acknowledged; a power cut shows it",
    "bless-deployment": "call every failed deployment successful",
}
AGENT_MUTATIONS = {
    "forget-task": "find no task again after a restart of the agent",
    "leak-process": "leave a process behind with every task",
    "leak-dir": "leave the directories of allocations behind",
    "print-secret": "log the environment of every task",
}
MUTATIONS = SERVER_MUTATIONS | AGENT_MUTATIONS

_DROP_EVERY = 40
_FORGET_EVERY = 10
_SLEEP_EVERY = 4
_BACK_EVERY = 10

Propose = Callable[..., Awaitable[Applied]]

log = logs.get(__name__)


def apply(server: Server, environment: Mapping[str, str], ca_pem: str | None) -> None:
    """Put the fault that the environment names into a server. Raises ConfigError when that must not be."""
    name = _named(environment, ca_pem)
    if name not in SERVER_MUTATIONS:
        return
    log.error("THIS SERVER IS BROKEN ON PURPOSE", mutation=name, effect=MUTATIONS[name])
    if name == "stale-reads":
        _replace(server.queries, "consistent", _nothing)
    elif name == "skip-fsync":
        # What the start made durable stays; from here on nothing waits for the disk.
        for part in ("journal", "snapshots"):
            _replace(getattr(server.raft, part), "_fsync", False)
    elif name == "lost-wake":
        _lose_wakes(server)
    elif name == "index-goes-back":
        _go_back(server)
    else:
        propose = {
            "drop-acknowledged-write": _drop_writes,
            "ignore-check-and-set": _ignore_check,
            "double-lock": _lock_twice,
            "no-fence": _open_locks,
            "lose-job": _lose_jobs,
            "place-twice": _place_twice,
            "overcommit": _overcommit,
            "bless-deployment": _bless,
        }[name](server, server.core.propose)
        _replace(server.core, "propose", propose)


def apply_to_agent(
    drivers: Mapping[str, Driver], environment: Mapping[str, str], ca_pem: str | None
) -> None:
    """Put the fault that the environment names into an agent with these drivers. Raises ConfigError as `apply`."""
    name = _named(environment, ca_pem)
    if name not in AGENT_MUTATIONS:
        return
    log.error("THIS AGENT IS BROKEN ON PURPOSE", mutation=name, effect=MUTATIONS[name])
    if name == "leak-dir":
        _replace(HostDirectories, "remove", _keep)
        return
    for driver in drivers.values():
        if name == "forget-task":
            _replace(driver, "recover", _find_nothing)
        else:
            beside = {"leak-process": _leave_behind, "print-secret": _print}[name]
            _replace(driver, "start", _start_and(driver.start, beside))


def _named(environment: Mapping[str, str], ca_pem: str | None) -> str:
    name = environment.get(VARIABLE, "")
    if not name:
        return ""
    if name not in MUTATIONS:
        raise ConfigError(f"{VARIABLE}: there is no {name!r}, only {', '.join(MUTATIONS)}")
    if not _is_kits(ca_pem):
        raise ConfigError(
            f"{VARIABLE} is set, which breaks a node on purpose, and this node's CA is not the fault-injection "
            "kit's: unset it"
        )
    return name


# -- reads ------------------------------------------------------------------------------------------------------


def _lose_wakes(server: Server) -> None:
    find, count = server.queries.find, itertools.count(1)

    async def broken(options: Any, watched: Any, read: Any) -> Found:
        if options.min_index and next(count) % _SLEEP_EVERY == 0:
            watched = []
        return await find(options, watched, read)

    _replace(server.queries, "find", broken)


def _go_back(server: Server) -> None:
    find, count = server.queries.find, itertools.count(1)

    async def broken(options: Any, watched: Any, read: Any) -> Found:
        found = await find(options, watched, read)
        if options.min_index and next(count) % _BACK_EVERY == 0:
            return msgspec.structs.replace(found, index=max(1, options.min_index - 5))
        return found

    _replace(server.queries, "find", broken)


# -- writes -----------------------------------------------------------------------------------------------------


def _drop_writes(server: Server, propose: Propose) -> Propose:
    count = itertools.count(1)

    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, commands.VariableSet) and next(count) % _DROP_EVERY == 0:
            index = server.raft.last_index + 1
            now_ns = server.core.clock.now_ns()
            value = Written(
                create_index=index, modify_index=index, create_time=now_ns, modify_time=now_ns
            )
            return Applied(index=index, value=msgspec.to_builtins(value))
        return await propose(command, **options)

    return broken


def _ignore_check(_: Server, propose: Propose) -> Propose:
    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, commands.VariableSet):
            command = msgspec.structs.replace(command, cas=None)
        return await propose(command, **options)

    return broken


def _lock_twice(server: Server, propose: Propose) -> Propose:
    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, commands.VariableLock):
            before = server.core.snapshot().variable(command.namespace, command.path)
            if before is not None and before.lock is not None and not before.lock.expired:
                await propose(
                    commands.VariableUnlock(
                        namespace=command.namespace,
                        path=command.path,
                        lock_id=before.lock.id,
                        reason="released",
                    )
                )
        return await propose(command, **options)

    return broken


def _open_locks(server: Server, propose: Propose) -> Propose:
    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, commands.VariableSet):
            before = server.core.snapshot().variable(command.namespace, command.path)
            held = None if before is None else before.lock
            command = msgspec.structs.replace(command, lock_id="" if held is None else held.id)
        return await propose(command, **options)

    return broken


def _lose_jobs(_: Server, propose: Propose) -> Propose:
    count = itertools.count(1)

    async def broken(command: Command, **options: Any) -> Applied:
        applied = await propose(command, **options)
        if isinstance(command, commands.JobRegister) and next(count) % _FORGET_EVERY == 0:
            job = command.job
            await propose(
                commands.JobDeregister(namespace=job.namespace, job_id=job.id, purge=True)
            )
        return applied

    return broken


def _place_twice(server: Server, propose: Propose) -> Propose:
    def doubled(plan: Plan) -> Plan:
        snapshot = server.core.snapshot()
        copies: list[Allocation] = []
        for alloc in plan.placements:
            others = [n for n in snapshot.nodes() if n.id != alloc.node_id and n.status == "ready"]
            if others and snapshot.alloc(alloc.id) is None:
                copies.append(
                    msgspec.structs.replace(
                        alloc,
                        id=server.core.entropy.uuid(),
                        node_id=others[0].id,
                        node_name=others[0].name,
                    )
                )
        return msgspec.structs.replace(plan, placements=[*plan.placements, *copies])

    return _with_plans(propose, doubled)


def _overcommit(server: Server, propose: Propose) -> Propose:
    def crowded(plan: Plan) -> Plan:
        snapshot = server.core.snapshot()
        first = next(node for node in snapshot.nodes() if node.status == "ready")
        moved = [
            msgspec.structs.replace(alloc, node_id=first.id, node_name=first.name)
            if snapshot.alloc(alloc.id) is None
            else alloc
            for alloc in plan.placements
        ]
        return msgspec.structs.replace(plan, placements=moved)

    return _with_plans(propose, crowded)


def _with_plans(propose: Propose, change: Callable[[Plan], Plan]) -> Propose:
    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, commands.PlanResults):
            plans = [change(plan) for plan in command.plans]
            command = msgspec.structs.replace(command, plans=plans)
        return await propose(command, **options)

    return broken


def _bless(_: Server, propose: Propose) -> Propose:
    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, commands.DeploymentUpdate) and command.status == "failed":
            command = msgspec.structs.replace(command, status="successful")
        return await propose(command, **options)

    return broken


# -- agents -----------------------------------------------------------------------------------------------------


async def _find_nothing(handle: TaskHandle, _: TaskConfig) -> None:
    raise TaskNotFoundError(f"task {handle.task_id} is forgotten on purpose")


async def _keep(_self: HostDirectories, _alloc_id: str) -> None:
    return


def _start_and(
    start: Callable[[TaskConfig], Awaitable[Started]], beside: Callable[[TaskConfig], None]
) -> Callable[[TaskConfig], Awaitable[Started]]:
    async def broken(task: TaskConfig) -> Started:
        beside(task)
        return await start(task)

    return broken


def _leave_behind(task: TaskConfig) -> None:
    subprocess.Popen(
        ["/bin/sleep", "3600"],
        cwd=task.paths.alloc,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={"PATH": os.defpath},
    )


def _print(task: TaskConfig) -> None:
    log.info("task starts", task=task.id, env=dict(task.env))


# -- the guard --------------------------------------------------------------------------------------------------


def _replace(owner: object, method: str, by: object) -> None:
    setattr(owner, method, by)


async def _nothing() -> None:
    return


def _is_kits(ca_pem: str | None) -> bool:
    if ca_pem is None:
        return False
    authorities = x509.load_pem_x509_certificates(ca_pem.encode())
    names = [
        attribute.value
        for authority in authorities
        for attribute in authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    return names == [KIT_CA]
