"""The `raw_exec` driver: plain processes on the host, held by the allocation's supervisor, isolated from nothing.

Off unless the operator turns it on. All that must survive the agent lies in `.nomadpy/` of the allocation's
directory: the supervisor's socket and one record per start of a task.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import pwd
import shutil
import signal as signals
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from agent.drivers import cgroups, terminal
from agent.drivers.base import (
    DriverError,
    DriverFingerprint,
    ExecInput,
    ExecOutput,
    ExitResult,
    Started,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
)
from agent.drivers.config_schema import decode, faults
from agent.drivers.supervisor import process
from agent.drivers.supervisor.client import SupervisorClient, SupervisorGoneError
from agent.drivers.volume_links import link_volumes
from agent.stats import ProcessSampler
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.models.stats import ResourceUsage, TaskResourceUsage

log = logs.get(__name__)

STATE_DIR = ".nomadpy"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A task inherits the agent's environment, less what can open doors.
WITHHELD_ENVVARS = (
    "NOMAD_*",
    "NOMADPY_*",
    "CONSUL_*",
    "VAULT_*",
    "AWS_*",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "*TOKEN*",
    "*SECRET*",
    "*PASSWORD*",
    "*_KEY",
)
KILL_GRACE_S = 10.0


class RawExecTaskConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job may say. command: absolute, relative to the task's directory, or a name looked up in PATH."""

    command: str
    args: list[str] = []
    work_dir: str = ""
    cgroup_v2_override: str = ""
    cgroup_v1_override: list[dict[str, str]] | dict[str, str] = {}
    oom_score_adj: int = 0
    denied_envvars: list[str] = []


class RawExecPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator set: `plugin "raw_exec"`. denied_*_ids: "0,10-20"."""

    enabled: bool = False
    denied_envvars: list[str] = []
    denied_host_uids: str = ""
    denied_host_gids: str = ""


class _Task:
    """A task of this driver, whoever started it."""

    def __init__(
        self, client: SupervisorClient, key: str, task: TaskConfig, sampler: ProcessSampler
    ) -> None:
        self.client = client
        self.key = key
        self.config = task
        self.sampler = sampler


class RawExecDriver:
    """Plain processes. core_mhz: speed of one core. cgroup_parent: below which tasks get their groups."""

    def __init__(
        self,
        clock: Clock,
        policy: RawExecPolicy,
        *,
        core_mhz: float = 0.0,
        cgroup_parent: str = cgroups.DEFAULT_PARENT,
        host_env: Mapping[str, str] | None = None,
    ) -> None:
        self._clock = clock
        self._policy = policy
        self._core_mhz = core_mhz
        self._cgroup_parent = cgroup_parent
        self._host_env = dict(os.environ if host_env is None else host_env)
        self._hierarchies = cgroups.detect()
        self._clients: dict[str, SupervisorClient] = {}
        self._tasks: dict[str, _Task] = {}

    @property
    def name(self) -> str:
        """`raw_exec`."""
        return "raw_exec"

    async def fingerprint(self) -> DriverFingerprint:
        """Detected exactly when the operator turned it on."""
        if not self._policy.enabled:
            return DriverFingerprint(detected=False, healthy=False, description="disabled")
        return DriverFingerprint(detected=True, healthy=True, description="Healthy")

    def validate(self, config: dict[str, Any]) -> list[str]:
        """Every fault of a task's config."""
        found = faults(config, RawExecTaskConfig)
        if not found:
            parsed = decode(config, RawExecTaskConfig)
            if not parsed.command:
                found.append("command must not be empty")
            if parsed.work_dir and not os.path.isabs(parsed.work_dir):
                found.append(f"work_dir must be an absolute path, not {parsed.work_dir!r}")
            if not -1000 <= parsed.oom_score_adj <= 1000:
                found.append(
                    f"oom_score_adj must be between -1000 and 1000, not {parsed.oom_score_adj}"
                )
            if parsed.cgroup_v2_override and parsed.cgroup_v1_override:
                found.append("only one of cgroup_v1_override and cgroup_v2_override may be set")
        return found

    async def start(self, task: TaskConfig) -> Started:
        """Start the process under the allocation's supervisor. Raises DriverError."""
        if not self._policy.enabled:
            raise DriverError("raw_exec is disabled on this node")
        if found := self.validate(task.config):
            raise DriverError(f"failed to parse config: {'; '.join(found)}")
        request = await asyncio.to_thread(self._request, task)
        await asyncio.to_thread(link_volumes, task)
        client = self._client(task)
        key = _key(task)
        await self._clear(client, key)
        answer = await self._start(client, request)
        if "error" in answer:
            raise DriverError(f"failed to start task: {answer['error']}", recoverable=False)
        self._tasks[task.id] = _Task(client, key, task, self._sampler())
        state = {"key": key, "pid": answer["pid"], "start_ticks": answer["start_ticks"]}
        return Started(handle=TaskHandle(driver=self.name, task_id=task.id, state=state))

    async def recover(self, handle: TaskHandle, task: TaskConfig) -> None:
        """Find the supervisor or what it wrote. A task whose supervisor died is found, and `wait` tells its loss."""
        client = self._client(task)
        # A start whose outcome no agent saw has no state; the attempt names the record then.
        key = str(handle.state.get("key") or _key(task))
        record = client.record(key)
        if record is None:
            raise TaskNotFoundError(f"task {handle.task_id} left no record")
        if record["exit"] is None and record["boot_id"] != process.boot_id():
            client.forget(key)
            raise TaskNotFoundError(f"task {handle.task_id} ended with a restart of the host")
        self._tasks[handle.task_id] = _Task(client, key, task, self._sampler())

    async def wait(self, task_id: str) -> ExitResult:
        """The end of the task, even when nobody watched it."""
        task = self._find(task_id)
        try:
            answer = await task.client.request("wait", key=task.key)
        except SupervisorGoneError:
            answer = {}
        record = answer.get("exit") or (task.client.record(task.key) or {}).get("exit")
        if record is None:
            return await self._lost(task)
        return ExitResult(
            exit_code=record["exit_code"], signal=record["signal"], oom_killed=record["oom_killed"]
        )

    async def stop(self, task_id: str, *, signal: str, timeout_s: float) -> None:
        """Signal the process group, as a terminal or an init system does; then SIGKILL all of the task."""
        task = self._find(task_id)
        number = signal_number(signal or "SIGINT")
        await self._tell(task, "signal_group", signal=number)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait(task_id)
        except TimeoutError:
            await self._tell(task, "kill")
            async with asyncio.timeout(KILL_GRACE_S):
                await self.wait(task_id)

    async def signal(self, task_id: str, signal: str) -> None:
        """Signal the main process alone. Raises DriverError for an unknown name or an ended task."""
        task = self._find(task_id)
        answer = await self._tell(task, "signal", signal=signal_number(signal))
        if answer.get("ended"):
            raise DriverError(f"task {task_id} has ended")

    async def destroy(self, task_id: str) -> None:
        """Remove the record; the supervisor leaves by itself when it has nothing to do."""
        task = self._tasks.pop(task_id, None)
        if task is not None:
            await self._clear(task.client, task.key)

    async def stats(self, task_id: str) -> ResourceUsage:
        """Use of all live processes together."""
        usage = (await self.usage(task_id)).resource_usage
        assert usage is not None
        return usage

    async def usage(self, task_id: str) -> TaskResourceUsage:
        """As `stats`, with every process apart."""
        task = self._find(task_id)
        try:
            answer = await task.client.request("pids", key=task.key)
        except SupervisorGoneError:
            answer = {}
        return await asyncio.to_thread(task.sampler.sample, answer.get("pids", []))

    def exec(
        self, task_id: str, command: list[str], *, tty: bool, inputs: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecOutput]:
        """Run a program beside the task, with its environment, user and group."""
        task = self._find(task_id)
        if not command:
            raise DriverError("a command to execute is needed")
        # The supervisor adds the task's own environment.
        env = {"TERM": "xterm"} if tty else {}
        path = _lookup(command[0], task.config, self._env(task.config, []))

        async def run(fds: list[int]) -> int:
            answer = await task.client.request(
                "exec", fds, key=task.key, argv=command, path=path, env=env, tty=tty
            )
            if "error" in answer:
                raise DriverError(f"failed to execute command: {answer['error']}")
            return int(answer["exit_code"])

        return terminal.run(run, tty=tty, inputs=inputs)

    async def close(self) -> None:
        """Nothing is held: every request has its own connection."""
        self._tasks.clear()

    async def end_strays(self, alloc_id: str, root: str) -> int:  # noqa: ARG002
        """See EndsStrays: whatever the allocation's supervisor wrote down."""
        client = self._client_of(os.path.join(root, STATE_DIR))
        ended = 0
        for key, running in await asyncio.to_thread(client.records):
            await self._clear(client, key)
            ended += running
        return ended

    # -- inside --------------------------------------------------------------------------------

    def _request(self, task: TaskConfig) -> dict[str, Any]:
        """All that the supervisor needs; looks at users and files, so it blocks a little."""
        config = decode(task.config, RawExecTaskConfig)
        env = self._env(task, config.denied_envvars)
        uid, gid, groups = self._user(task.user)
        name = f"{task.alloc_id}.{task.task}.{task.attempt}.scope"
        v1 = config.cgroup_v1_override
        pairs = [p for m in (v1 if isinstance(v1, list) else [v1]) for p in m.items()]
        join = cgroups.overrides(self._hierarchies, config.cgroup_v2_override, pairs)
        own: list[str] = []
        if not join:
            own = cgroups.task_folders(self._hierarchies, self._cgroup_parent, name)
            cgroups.enable_controllers(self._hierarchies, self._cgroup_parent)
        path = _lookup(config.command, task, env)
        prefix = os.path.join(task.paths.logs, task.task)
        return {
            "key": _key(task),
            "argv": [config.command, *config.args],
            "path": path,
            "env": env,
            "cwd": config.work_dir or task.paths.task,
            "uid": uid,
            "gid": gid,
            "groups": groups,
            "cgroups": own,
            "join": join,
            "mark": f"{task.id}/{task.attempt}",
            "oom_score_adj": config.oom_score_adj,
            "logs": None
            if task.log_disabled
            else {
                "prefix": prefix,
                "max_files": task.log_max_files,
                "max_bytes": task.log_max_file_mb * 1024 * 1024,
            },
        }

    async def _start(self, client: SupervisorClient, request: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(3):
            await client.ensure()
            try:
                return await client.request("start", **request)
            except SupervisorGoneError:
                # An idle one may leave between the two lines; whatever it began is cleared before the next try.
                log.info("supervisor left during a start", key=request["key"], attempt=attempt)
                await self._clear(client, request["key"])
        raise DriverError("the supervisor goes away again and again", recoverable=True)

    async def _clear(self, client: SupervisorClient, key: str) -> None:
        """No task `key` remains, neither in a supervisor nor on disk nor as a process."""
        try:
            answer = await client.request("kill", key=key)
            if not answer.get("missing"):
                await client.request("wait", key=key)
                await client.request("forget", key=key)
                return
        except SupervisorGoneError as error:
            log.debug("no supervisor to ask", key=key, reason=str(error))
        record = client.record(key)
        if record is not None:
            if record["exit"] is None:
                await asyncio.to_thread(client.kill_orphans, record)
            client.forget(key)

    async def _lost(self, task: _Task) -> ExitResult:
        """The supervisor died before its task: end what runs on unwatched, and say so."""
        record = task.client.record(task.key)
        if record is None:
            return ExitResult(exit_code=1, error="the task's record is gone, its end is unknown")
        hit = await asyncio.to_thread(task.client.kill_orphans, record)
        log.warning("supervisor of a task died", task=task.config.id, processes_killed=hit)
        return ExitResult(
            exit_code=1,
            error=f"the task's supervisor died; {hit} processes left behind were killed",
        )

    async def _tell(self, task: _Task, operation: str, **fields: Any) -> dict[str, Any]:
        try:
            answer = await task.client.request(operation, key=task.key, **fields)
        except SupervisorGoneError:
            return {"ended": True}
        if "error" in answer and not answer.get("missing"):
            raise DriverError(f"{operation}: {answer['error']}")
        return answer

    def _find(self, task_id: str) -> _Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskNotFoundError(f"raw_exec has no task {task_id}")
        return task

    def _client(self, task: TaskConfig) -> SupervisorClient:
        return self._client_of(
            os.path.join(os.path.dirname(task.paths.alloc.rstrip("/")), STATE_DIR)
        )

    def _client_of(self, directory: str) -> SupervisorClient:
        client = self._clients.get(directory)
        if client is None:
            folder = cgroups.supervisor_folder(self._hierarchies, self._cgroup_parent)
            client = self._clients[directory] = SupervisorClient(directory, cgroup=folder)
        return client

    def _sampler(self) -> ProcessSampler:
        return ProcessSampler(self._clock, core_mhz=self._core_mhz)

    def _env(self, task: TaskConfig, denied: list[str]) -> dict[str, str]:
        inherited = {k: v for k, v in self._host_env.items() if not _matches(k, WITHHELD_ENVVARS)}
        env = {"PATH": DEFAULT_PATH, **inherited, **task.env}
        unwanted = (*self._policy.denied_envvars, *denied)
        return {k: v for k, v in env.items() if not _matches(k, unwanted)}

    def _user(self, name: str) -> tuple[int, int, list[int]]:
        """uid, gid, groups of a user by name or number; (-1, -1, []) to stay the agent's."""
        if not name:
            self._check_ids(os.getuid(), [os.getgid()])
            return -1, -1, []
        try:
            entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except KeyError as error:
            raise DriverError(f"failed to identify user {name!r}: unknown user") from error
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        self._check_ids(entry.pw_uid, groups)
        if entry.pw_uid == os.getuid():
            return -1, -1, []
        if os.getuid() != 0:
            raise DriverError(f"cannot run as user {name!r}: the agent is not root")
        return entry.pw_uid, entry.pw_gid, groups

    def _check_ids(self, uid: int, gids: list[int]) -> None:
        if _in_ranges(uid, self._policy.denied_host_uids):
            raise DriverError(f"running as user id {uid} is denied on this node")
        for gid in gids:
            if _in_ranges(gid, self._policy.denied_host_gids):
                raise DriverError(f"running with group id {gid} is denied on this node")


def signal_number(name: str) -> int:
    """The number of a signal by name, with or without SIG. Raises DriverError."""
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    number = getattr(signals, full, None)
    if not isinstance(number, signals.Signals):
        raise DriverError(f"invalid signal: {name}")
    return int(number)


def _key(task: TaskConfig) -> str:
    return f"{task.task}.{task.attempt}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _in_ranges(value: int, ranges: str) -> bool:
    for part in filter(None, (p.strip() for p in ranges.split(","))):
        low, _, high = part.partition("-")
        if int(low) <= value <= int(high or low):
            return True
    return False


def _lookup(command: str, task: TaskConfig, env: Mapping[str, str]) -> str:
    """The file of a command. Raises DriverError when there is none that can be run."""
    folder = task.paths.task
    if "/" in command:
        candidates = [os.path.normpath(os.path.join(folder, command))]
    else:
        candidates = [os.path.join(task.paths.local, command), os.path.join(folder, command)]
    for path in candidates:
        if os.path.isfile(path):
            if not os.access(path, os.X_OK):
                raise DriverError(f"failed to launch command: {path} is not executable")
            return path
    found = None if "/" in command else shutil.which(command, path=env.get("PATH", DEFAULT_PATH))
    if found is None:
        raise DriverError(f"failed to launch command: executable file {command!r} not found")
    return found
