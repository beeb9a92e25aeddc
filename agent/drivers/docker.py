"""The `docker` driver: one container for a task, which outlives the agent and the daemon's restarts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from agent.drivers import docker_config, docker_stats
from agent.drivers.base import (
    DriverError,
    DriverFingerprint,
    DriverNetwork,
    ExecInput,
    ExecOutput,
    ExitResult,
    Started,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
)
from agent.drivers.config_schema import decode, seconds
from agent.drivers.docker_auth import registry_header
from agent.drivers.docker_engine import (
    DockerEngine,
    EngineError,
    EngineUnreachableError,
    read_frame,
)
from agent.drivers.docker_logs import LogFollower
from agent.drivers.docker_policy import DockerPolicy, DockerTaskConfig
from agent.drivers.raw_exec import STATE_DIR
from agent.drivers.session import Put, merge, pump_inputs
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.models.stats import ResourceUsage

log = logs.get(__name__)

FINGERPRINT_TIMEOUT_S = 3.0
LOG_DRAIN_S = 5.0
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 5.0
KILL_GRACE_S = 30.0
PROGRESS_S = 10.0


class _Task:
    """A container of ours and who follows its log."""

    def __init__(self, container: str, config: TaskConfig, meter: docker_stats.Meter) -> None:
        self.container = container
        self.config = config
        self.meter = meter
        self.follower: asyncio.Task[None] | None = None


class DockerDriver:
    """Containers of one daemon. core_mhz: speed of one core."""

    def __init__(
        self,
        clock: Clock,
        policy: DockerPolicy | None = None,
        *,
        core_mhz: float = 0.0,
    ) -> None:
        self._clock = clock
        self._policy = policy or DockerPolicy()
        self._core_mhz = core_mhz
        self._engine = DockerEngine(self._policy.endpoint, self._policy.tls)
        self._tasks: dict[str, _Task] = {}
        self._pulls: dict[str, asyncio.Lock] = {}

    @property
    def name(self) -> str:
        """`docker`."""
        return "docker"

    async def fingerprint(self) -> DriverFingerprint:
        """Ask the daemon, for at most FINGERPRINT_TIMEOUT_S."""
        try:
            async with asyncio.timeout(FINGERPRINT_TIMEOUT_S):
                version, info = await asyncio.gather(self._engine.version(), self._engine.info())
                bridge = await self._bridge_ip()
        except TimeoutError:
            return DriverFingerprint(
                detected=True, healthy=False, description="Docker does not answer"
            )
        except DriverError as error:
            return DriverFingerprint(
                detected=False, healthy=False, description=f"Failed to connect to docker: {error}"
            )
        attributes = {
            "driver.docker.version": str(version.get("Version", "")),
            "driver.docker.os_type": str(info.get("OSType", version.get("Os", ""))),
            "driver.docker.runtimes": ",".join(sorted(info.get("Runtimes") or {})),
        }
        if bridge:
            attributes["driver.docker.bridge_ip"] = bridge
        if self._policy.allow_privileged:
            attributes["driver.docker.privileged.enabled"] = "true"
        if self._policy.volumes.enabled:
            attributes["driver.docker.volumes.enabled"] = "true"
        return DriverFingerprint(
            detected=True, healthy=True, description="Healthy", attributes=attributes
        )

    def validate(self, config: dict[str, Any]) -> list[str]:
        """Every fault of a task's config that needs no knowledge of the node."""
        return docker_config.config_faults(config)

    async def start(self, task: TaskConfig) -> Started:
        """Have the image, make the container, start it. Raises DriverError; then no container is left."""
        if found := self.validate(task.config):
            raise DriverError(f"failed to parse config: {'; '.join(found)}")
        config = decode(task.config, DockerTaskConfig)
        # Refuse what is not allowed before anything is pulled.
        docker_config.container_spec(
            task, self._policy, image="", core_mhz=self._core_mhz, resolve=os.path.realpath
        )
        image = await self._have_image(task, config)
        spec = docker_config.container_spec(
            task, self._policy, image=image, core_mhz=self._core_mhz, resolve=os.path.realpath
        )
        container = await self._create(task, config, spec.body)
        try:
            if self._collects(task, spec.logs_readable):
                await asyncio.to_thread(LogFollower.begin, _prefix(task), _position_path(task))
            await self._engine.start(container)
            facts = await self._engine.inspect(container)
        except BaseException as error:
            await self._remove_quietly(container)
            if isinstance(error, EngineError | OSError):
                raise DriverError(
                    f"Failed to start container {container[:12]}: {error}",
                    recoverable=getattr(error, "recoverable", True),
                ) from error
            raise
        follows = self._collects(task, spec.logs_readable)
        self._adopt(task, container, tty=spec.tty, follows=follows)
        log.info("container started", task=task.id, container=container[:12])
        state = {"container_id": container, "tty": spec.tty, "follows": follows}
        return Started(
            handle=TaskHandle(driver=self.name, task_id=task.id, state=state),
            network=_network(facts, spec.ports),
        )

    async def recover(self, handle: TaskHandle, task: TaskConfig) -> None:
        """Find the container by id, or by name and labels when no id was kept.

        A daemon that does not answer now is waited for by `wait`. Raises TaskNotFoundError.
        """
        container = str(handle.state.get("container_id", ""))
        try:
            facts = await self._engine.inspect(container or docker_config.container_name(task))
        except EngineUnreachableError as error:
            if not container:
                raise
            log.warning("docker does not answer yet", task=handle.task_id, reason=error.message)
            facts = {"Id": container, "Config": {"Labels": None}}
        except EngineError as error:
            if error.answer_status != 404:
                raise
            raise TaskNotFoundError(f"no container of task {handle.task_id}") from error
        if not container and not docker_config.is_ours(facts["Config"]["Labels"], task):
            raise TaskNotFoundError(f"the container named like task {handle.task_id} is not ours")
        self._adopt(
            task,
            str(facts["Id"]),
            tty=bool(handle.state.get("tty", facts["Config"].get("Tty", False))),
            follows=bool(handle.state.get("follows", True)) and self._collects(task, True),
        )

    async def wait(self, task_id: str) -> ExitResult:
        """The end of the container, through restarts of the daemon; its log is complete then."""
        task = self._find(task_id)
        result = await self._ended(task)
        if task.follower is not None:
            await asyncio.wait([task.follower], timeout=LOG_DRAIN_S)
        return result

    async def stop(self, task_id: str, *, signal: str, timeout_s: float) -> None:
        """Signal the first process of the container, then SIGKILL all of it."""
        task = self._find(task_id)
        if not await self._kill(task, signal or "SIGTERM"):
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait(task_id)
        except TimeoutError:
            await self._kill(task, "SIGKILL")
            async with asyncio.timeout(KILL_GRACE_S):
                await self.wait(task_id)

    async def signal(self, task_id: str, signal: str) -> None:
        """Signal the first process. Raises DriverError with the daemon's reason."""
        task = self._find(task_id)
        if not await self._kill(task, signal):
            raise DriverError(f"task {task_id} has ended")

    async def destroy(self, task_id: str) -> None:
        """Remove the container and our notes of its log."""
        task = self._tasks.pop(task_id, None)
        if task is None:
            return
        await _cancel(task.follower)
        if self._policy.gc.container:
            await self._engine.remove(task.container)
        position = _position_path(task.config)
        if await asyncio.to_thread(os.path.exists, position):
            await asyncio.to_thread(os.unlink, position)

    async def stats(self, task_id: str) -> ResourceUsage:
        """Use of the whole container."""
        task = self._find(task_id)
        raw = await self._engine.stats(task.container)
        return task.meter.read(raw)

    def exec(
        self, task_id: str, command: list[str], *, tty: bool, inputs: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecOutput]:
        """Run a program inside the container."""
        task = self._find(task_id)
        if not command:
            raise DriverError("a command to execute is needed")

        async def produce(put: Put) -> None:
            await self._exec(task, command, tty, inputs, put)

        return merge(produce)

    async def close(self) -> None:
        """Stop following; containers go on."""
        for task in self._tasks.values():
            await _cancel(task.follower)
        self._tasks.clear()
        await self._engine.close()

    # -- images --------------------------------------------------------------------------------

    async def _have_image(self, task: TaskConfig, config: DockerTaskConfig) -> str:
        """The id of the image, loaded or pulled when it is not here."""
        name = _image_name(config.image)
        if config.load:
            path = os.path.join(task.paths.local, config.load)
            root = os.path.dirname(task.paths.alloc)
            if not f"{await asyncio.to_thread(os.path.realpath, path)}/".startswith(f"{root}/"):
                raise DriverError(f"load {config.load!r} leaves the allocation's directory")
            try:
                await self._engine.load(path)
            except (OSError, EngineError) as error:
                raise DriverError(f"Failed to load image {config.load!r}: {error}") from error
        # Tasks that want the same image wait for one pull.
        async with self._pulls.setdefault(name, asyncio.Lock()):
            found = await self._engine.image(name)
            if found is None or config.force_pull:
                await self._pull(name, config)
                found = await self._engine.image(name)
        if found is None:
            raise DriverError(f"Failed to pull `{config.image}`: it is not there after the pull")
        return str(found["Id"])

    async def _pull(self, name: str, config: DockerTaskConfig) -> None:
        limit_s = seconds(config.image_pull_timeout or self._policy.image_pull_timeout, "timeout")
        idle_s = seconds(self._policy.pull_activity_timeout, "pull_activity_timeout")
        header = await self._auth(name, config)
        loop = asyncio.get_running_loop()
        said_at = loop.time()
        log.info("pulling image", image=name)
        try:
            async with asyncio.timeout(limit_s), asyncio.timeout(idle_s) as activity:
                async for message in self._engine.pull(name, header):
                    activity.reschedule(loop.time() + idle_s)
                    if loop.time() - said_at >= PROGRESS_S:
                        said_at = loop.time()
                        log.info("pulling image", image=name, progress=str(message.get("status")))
        except TimeoutError as error:
            raise DriverError(
                f"Failed to pull `{config.image}`: not done in time "
                f"(image_pull_timeout {limit_s:.0f} s, pull_activity_timeout {idle_s:.0f} s)",
                recoverable=True,
            ) from error
        except EngineError as error:
            raise DriverError(
                f"Failed to pull `{config.image}`: {error.message}", recoverable=True
            ) from error

    async def _auth(self, name: str, config: DockerTaskConfig) -> str:
        try:
            return await asyncio.to_thread(registry_header, name, config.auth, self._policy.auth)
        except DriverError as error:
            if not config.auth_soft_fail:
                raise
            log.warning("pulling without credentials", image=name, reason=error.message)
            return ""

    async def end_strays(self, alloc_id: str, root: str) -> int:
        """See EndsStrays: containers named after the allocation and the directories of its tasks."""
        if self._engine.is_absent():
            return 0
        ended = 0
        for task in await asyncio.to_thread(_directories_in, root):
            try:
                facts = await self._engine.inspect(f"{task}-{alloc_id}")
            except EngineError as error:
                if error.answer_status == 404:
                    continue
                raise
            if not docker_config.is_of(facts["Config"]["Labels"], alloc_id):
                continue
            await self._engine.remove(str(facts["Id"]))
            ended += bool(facts["State"].get("Running"))
        return ended

    # -- containers ----------------------------------------------------------------------------

    async def _create(
        self, task: TaskConfig, config: DockerTaskConfig, body: dict[str, Any]
    ) -> str:
        """Create it; a container that holds the name is removed when it was this task's own."""
        name = docker_config.container_name(task)
        attempts = config.container_exists_attempts or self._policy.container_exists_attempts
        for attempt in range(max(1, attempts)):
            try:
                return await self._engine.create(name, body)
            except EngineError as error:
                if error.answer_status != 409:
                    raise DriverError(
                        f"Failed to create container: {error.message}",
                        recoverable=error.recoverable,
                    ) from error
                log.info("container name is taken", name=name, attempt=attempt)
                await self._free_name(name, task)
        raise DriverError(f"container name {name} stays taken", recoverable=True)

    async def _free_name(self, name: str, task: TaskConfig) -> None:
        try:
            facts = await self._engine.inspect(name)
        except EngineError as error:
            if error.answer_status == 404:
                return
            raise
        if not docker_config.is_ours(facts["Config"]["Labels"], task):
            raise DriverError(f"container name {name} is used by a container that is not ours")
        await self._engine.remove(str(facts["Id"]))

    async def _remove_quietly(self, container: str) -> None:
        """After a failed start; what cannot be removed now is removed when its name is needed."""
        try:
            async with asyncio.timeout(KILL_GRACE_S):
                await self._engine.remove(container)
        except (DriverError, TimeoutError) as error:
            log.warning("container not removed", container=container[:12], reason=str(error))

    async def _ended(self, task: _Task) -> ExitResult:
        delay_s = RETRY_FIRST_S
        while True:
            try:
                code = await self._engine.wait(task.container)
                state = (await self._engine.inspect(task.container))["State"]
                if not state.get("Running") and not state.get("Restarting"):
                    return _exit_result(code, state)
                delay_s = RETRY_FIRST_S
            except EngineUnreachableError as error:
                log.info("waiting for docker", task=task.config.id, reason=error.message)
            except EngineError as error:
                if error.answer_status == 404:
                    return ExitResult(exit_code=1, error="the container was removed by another")
                log.warning("waiting for a container", task=task.config.id, reason=error.message)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MOST_S)

    async def _kill(self, task: _Task, signal: str) -> bool:
        """Send a signal; False when the container does not run."""
        try:
            await self._engine.kill(task.container, signal)
        except EngineError as error:
            if error.answer_status in (404, 409) or "is not running" in error.message:
                return False
            raise DriverError(error.message, recoverable=error.recoverable) from error
        return True

    def _adopt(self, task: TaskConfig, container: str, *, tty: bool, follows: bool) -> None:
        entry = _Task(container, task, docker_stats.Meter(self._clock, self._core_mhz))
        if follows:
            follower = LogFollower(
                self._engine,
                self._clock,
                container=container,
                tty=tty,
                prefix=_prefix(task),
                max_files=task.log_max_files,
                max_bytes=task.log_max_file_mb * 1024 * 1024,
                position_path=_position_path(task),
            )
            # It lives as long as the driver, which no task group of a call does; close() and destroy() end it.
            entry.follower = asyncio.get_running_loop().create_task(
                _guarded(follower, task.id), name=f"docker-logs-{task.id}"
            )
        self._tasks[task.id] = entry

    def _collects(self, task: TaskConfig, readable: bool) -> bool:
        if task.log_disabled or self._policy.disable_log_collection:
            return False
        if not readable:
            log.warning("the container's log driver cannot be read back", task=task.id)
        return readable

    def _find(self, task_id: str) -> _Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskNotFoundError(f"docker has no task {task_id}")
        return task

    async def _bridge_ip(self) -> str:
        try:
            network = await self._engine.network("bridge")
        except EngineError:
            return ""
        configs = (network.get("IPAM") or {}).get("Config") or [{}]
        return str(configs[0].get("Gateway", ""))

    # -- exec ----------------------------------------------------------------------------------

    async def _exec(
        self,
        task: _Task,
        command: list[str],
        tty: bool,
        inputs: AsyncIterator[ExecInput],
        put: Put,
    ) -> None:
        body = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": tty,
            "Cmd": command,
        }
        exec_id = await self._engine.exec_create(task.container, body)
        reader, writer = await self._engine.exec_attach(exec_id, tty=tty)

        async def write(data: bytes) -> None:
            try:
                writer.write(data)
                await writer.drain()
            except ConnectionError:
                log.debug("input after the end of an exec session", task=task.config.id)

        async def close() -> None:
            if tty:
                await write(b"\x04")
            elif writer.can_write_eof():
                writer.write_eof()

        async def resize(height: int, width: int) -> None:
            try:
                await self._engine.exec_resize(exec_id, height, width)
            except EngineError as error:
                log.debug("terminal not resized", task=task.config.id, reason=error.message)

        try:
            async with asyncio.TaskGroup() as group:
                typing = group.create_task(
                    pump_inputs(inputs, write=write, close=close, resize=resize), name="exec-input"
                )
                if tty:
                    while data := await reader.read(32768):
                        await put(ExecOutput(channel="stdout", data=data))
                else:
                    while (frame := await read_frame(reader)) is not None:
                        await put(ExecOutput(channel=frame[0], data=frame[1]))
                typing.cancel()
        finally:
            writer.close()
        facts = await self._engine.exec_inspect(exec_id)
        await put(ExecOutput(channel="exit", exit_code=int(facts.get("ExitCode") or 0)))


async def _guarded(follower: LogFollower, task_id: str) -> None:
    try:
        await follower.run()
    except Exception:
        # A log that breaks must not take the container with it.
        log.exception("log of a container is not followed any more", task=task_id)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


def _exit_result(code: int, state: dict[str, Any]) -> ExitResult:
    code = int(state.get("ExitCode", code))
    # The daemon has no field for it; a shell's convention is all there is.
    signal = code - 128 if 128 < code <= 128 + 64 else 0
    return ExitResult(
        exit_code=code,
        signal=signal,
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
    )


def _network(facts: dict[str, Any], ports: dict[str, int]) -> DriverNetwork | None:
    networks = (facts.get("NetworkSettings") or {}).get("Networks") or {}
    for network in networks.values():
        if network.get("IPAddress"):
            return DriverNetwork(ip=str(network["IPAddress"]), ports=ports)
    return None


def _image_name(image: str) -> str:
    """The reference without a scheme; without tag and digest it means `latest`, never every tag."""
    for scheme in ("docker://", "https://", "http://"):
        image = image.removeprefix(scheme)
    if "@" in image or ":" in image.rsplit("/", 1)[-1]:
        return image
    return f"{image}:latest"


def _prefix(task: TaskConfig) -> str:
    return os.path.join(task.paths.logs, task.task)


def _position_path(task: TaskConfig) -> str:
    root = os.path.dirname(task.paths.alloc.rstrip("/"))
    return os.path.join(root, STATE_DIR, f"{task.task}.docker-log")


def _directories_in(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
