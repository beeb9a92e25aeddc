"""Task certificates and tokens: before the start, on disk, renewed in time, waited for."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest
from agent_world import SECOND, FakeServers, LoopClock, World, allocation, kinds, task
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.services.certificates import (
    CERTIFICATE,
    CredentialsError,
    NodeProof,
    ServerCredentials,
    spiffe_id,
)
from agent.task_dir import HostDirectories, MemoryDirectories, TaskDirectories
from nomadpy.entropy import SeededEntropy
from nomadpy.errors import DefiniteError, InvalidRequestError, UnsupportedError
from nomadpy.models import calls
from nomadpy.models.task_blocks import WorkloadIdentity

LIFE_S = 3600
URI = "spiffe://global.nomad/ns/default/job/web/group/g/task/task"


class Authority:
    """Signs what a request asks for, at the loop's time."""

    def __init__(self, clock: LoopClock, life_s: int = LIFE_S) -> None:
        self._clock = clock
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._life_s = life_s
        self.requests: list[calls.TaskCertificateRequest] = []

    def __call__(self, request: calls.TaskCertificateRequest) -> calls.TaskCertificateReply:
        self.requests.append(request)
        csr = x509.load_pem_x509_csr(request.csr_pem)
        assert csr.is_signature_valid
        now = datetime.datetime.fromtimestamp(self._clock.now_ns() / SECOND, datetime.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(name)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(seconds=self._life_s))
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)]), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return calls.TaskCertificateReply(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            bundle_pem=b"the roots",
            not_after_ns=self._clock.now_ns() + self._life_s * SECOND,
        )


def credentials(
    servers: FakeServers, directories: TaskDirectories, **more: float | bool
) -> ServerCredentials:
    return ServerCredentials(
        servers,
        lambda: NodeProof(node_id="n", secret_id="s"),
        directories,
        LoopClock(),
        SeededEntropy(4),
        **more,
    )  # type: ignore[arg-type]


async def test_a_task_starts_with_a_certificate_whose_key_never_left_the_node() -> None:
    world = World()
    world.servers.sign = authority = Authority(LoopClock())
    alloc = allocation()
    agent = world.agent(credentials=credentials(world.servers, world.directories))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        env = world.driver.configs[0].env
        top = world.directories.paths(alloc.id, "task").task
        assert env["NOMAD_TASK_CERT_FILE"] == f"{top}/secrets/task-cert.pem"
        assert env["NOMAD_SPIFFE_ID"] == URI
        key_pem = await world.directories.read(alloc.id, "task", "secrets/task-key.pem")
        pem = await world.directories.read(alloc.id, "task", CERTIFICATE)
        assert key_pem is not None
        assert pem is not None
        key = serialization.load_pem_private_key(key_pem, password=None)
        assert key.public_key() == x509.load_pem_x509_certificate(pem).public_key()
        assert key_pem not in authority.requests[0].csr_pem
        running.cancel()


async def test_a_certificate_is_renewed_at_two_thirds_of_its_life_for_as_long_as_the_task_runs() -> (
    None
):
    world = World()
    world.servers.sign = authority = Authority(LoopClock())
    alloc = allocation()
    agent = world.agent(credentials=credentials(world.servers, world.directories))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        world.servers.want(alloc)
        await world.servers.until(lambda: len(authority.requests) == 4, within_s=4 * LIFE_S)
        assert LoopClock().monotonic() == pytest.approx(3 * LIFE_S * 2 / 3, abs=30)
        # Every renewal has a key of its own.
        assert len({r.csr_pem for r in authority.requests}) == 4
        world.servers.change(alloc.id, desired_status="stop")
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
        await asyncio.sleep(2 * LIFE_S)
        assert len(authority.requests) == 4
        running.cancel()


async def test_after_a_restart_a_fresh_certificate_stays_and_an_old_one_is_renewed_at_once() -> (
    None
):
    world = World()
    world.servers.sign = authority = Authority(LoopClock())
    alloc = allocation()

    async def life(seconds: float) -> None:
        agent = world.agent(credentials=credentials(world.servers, world.directories))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(agent.run())
            await world.servers.until(lambda: agent.sync.restored.is_set())
            await asyncio.sleep(seconds)
            running.cancel()

    world.servers.want(alloc)
    await life(10)
    await life(10)
    assert len(authority.requests) == 1
    await asyncio.sleep(LIFE_S)
    await life(5)
    assert len(authority.requests) == 2
    assert world.driver.started == ["task"]


async def test_a_task_waits_for_servers_with_an_event_and_starts_only_with_its_certificate() -> (
    None
):
    world = World()
    alloc = allocation()
    agent = world.agent(credentials=credentials(world.servers, world.directories))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        world.servers.want(alloc)
        await world.servers.until(
            lambda: (
                alloc.id in world.servers.reported
                and "Task hook message" in kinds(world.servers.reported[alloc.id])
            )
        )
        await asyncio.sleep(60)
        assert world.driver.started == []
        assert world.servers.status(alloc.id) == "pending"
        world.servers.sign = Authority(LoopClock())
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        running.cancel()


async def test_the_wait_for_servers_has_an_end_and_a_kill_ends_it_sooner() -> None:
    world = World()
    never, stopped = allocation(number=1), allocation(number=2)
    agent = world.agent(credentials=credentials(world.servers, world.directories, wait_s=60.0))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        world.servers.want(never)
        world.servers.want(stopped)
        await world.servers.until(lambda: stopped.id in world.servers.reported)
        world.servers.change(stopped.id, desired_status="stop")
        await world.servers.until(
            lambda: world.servers.status(stopped.id) == "complete", within_s=30
        )
        await world.servers.until(lambda: world.servers.status(never.id) == "failed", within_s=60)
        running.cancel()
    assert world.driver.started == []


async def test_a_cluster_without_an_authority_starts_tasks_without_certificates() -> None:
    servers, directories = FakeServers(), MemoryDirectories()

    def refuse(_request: calls.TaskCertificateRequest) -> calls.TaskCertificateReply:
        raise UnsupportedError("no certificate authority")

    servers.sign = refuse
    it = credentials(servers, directories)
    assert await it.prepare(allocation(), task(), lambda _: None) == {}


async def test_a_refusal_that_cannot_change_fails_at_once() -> None:
    servers = FakeServers()

    def refuse(_request: calls.TaskCertificateRequest) -> calls.TaskCertificateReply:
        raise InvalidRequestError("csr has a weak key")

    servers.sign = refuse
    with pytest.raises(CredentialsError, match="weak key") as caught:
        await credentials(servers, MemoryDirectories()).prepare(
            allocation(), task(), lambda _: None
        )
    assert not caught.value.recoverable
    assert isinstance(caught.value, DefiniteError)


async def test_tokens_go_where_the_identity_says_and_nowhere_else() -> None:
    servers, directories = FakeServers(), MemoryDirectories()
    servers.identities = [
        calls.SignedIdentity(name="default", jwt="d"),
        calls.SignedIdentity(name="vault", jwt="v"),
        calls.SignedIdentity(name="aws", jwt="a"),
        calls.SignedIdentity(name="unasked", jwt="u"),
    ]
    it = credentials(servers, directories, certificates=False)
    alloc = allocation()
    quiet = task(identity=WorkloadIdentity(name="default"))
    assert await it.prepare(alloc, quiet, lambda _: None) == {}
    assert await directories.known() == []
    loud = task(
        identity=WorkloadIdentity(name="default", env=True, file=True),
        identities=[
            WorkloadIdentity(name="vault", file=True),
            WorkloadIdentity(name="aws", env=True, file=True, filepath="local/aws.jwt"),
        ],
    )
    env = await it.prepare(alloc, loud, lambda _: None)
    assert env == {"NOMAD_TOKEN": "d", "NOMAD_TOKEN_aws": "a"}
    files = {
        name: await directories.read(alloc.id, "task", name)
        for name in ("secrets/nomad_token", "secrets/nomad_vault.jwt", "local/aws.jwt")
    }
    assert list(files.values()) == [b"d", b"v", b"a"]


async def test_a_renewed_token_restarts_the_task_when_its_identity_says_so() -> None:
    world = World()
    world.servers.identities = [calls.SignedIdentity(name="aws", jwt="a")]
    identity = WorkloadIdentity(name="aws", file=True, change_mode="restart", ttl=600 * SECOND)
    alloc = allocation(task(identities=[identity]))
    agent = world.agent(
        credentials=credentials(world.servers, world.directories, certificates=False)
    )
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        world.servers.want(alloc)
        await world.servers.until(lambda: len(world.driver.started) == 2, within_s=600)
        assert 360 <= LoopClock().monotonic() <= 410
        running.cancel()


@pytest.mark.real_time
async def test_files_on_disk_are_for_the_task_alone(tmp_path: Path) -> None:
    directories = HostDirectories(tmp_path, mount_secrets=False)
    servers = FakeServers()
    servers.sign = Authority(LoopClock())
    alloc = allocation()
    await directories.build(alloc.id, "task", "")
    await credentials(servers, directories).prepare(alloc, task(), lambda _: None)
    folder = Path(directories.paths(alloc.id, "task").secrets)
    assert {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()} == {
        "task-ca.pem": 0o644,
        "task-cert.pem": 0o644,
        "task-key.pem": 0o600,
    }
    assert folder.stat().st_mode & 0o077 == 0
    assert spiffe_id((folder / "task-cert.pem").read_bytes()) == URI
    assert spiffe_id(b"nothing") == ""


def test_the_secret_of_a_proof_does_not_show() -> None:
    assert "hush" not in repr(NodeProof(node_id="n", secret_id="hush"))
