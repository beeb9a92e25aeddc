"""Credentials of a task: its certificate and its workload identity tokens, fetched before the start and kept fresh.

The key is made on this node and never leaves it. A certificate is renewed when two thirds of its life are over, a token
likewise. Each file is replaced atomically, `cert.pem` last; a reader that finds it does not fit `key.pem` reads again.
Not here: who may have which identity (the servers decide by the allocation that this node holds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.server_list import Backoff
from agent.task_dir import TaskDirectories
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import (
    DefiniteError,
    NoLeaderError,
    NomadError,
    NotFoundError,
    NotLeaderError,
    PermissionDeniedError,
    UnreachableError,
    UnsupportedError,
)
from nomadpy.models.allocation import Allocation
from nomadpy.models.calls import (
    SignedIdentity,
    SignIdentitiesReply,
    SignIdentitiesRequest,
    TaskCertificateReply,
    TaskCertificateRequest,
)
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import WorkloadIdentity
from nomadpy.rpc.caller import Caller

log = logs.get(__name__)

CERTIFICATE = "secrets/task-cert.pem"
KEY = "secrets/task-key.pem"
BUNDLE = "secrets/task-ca.pem"
DEFAULT_IDENTITY = "default"

_SECOND = 1_000_000_000
_CALL_TIMEOUT_S = 10.0


class CredentialsError(DefiniteError):
    """The task cannot have its credentials; `recoverable` says whether a later try may succeed."""

    code = "credentials"

    def __init__(self, message: str, *, recoverable: bool) -> None:
        super().__init__(message, recoverable=recoverable)
        self.recoverable = recoverable


class NodeProof(msgspec.Struct, frozen=True, kw_only=True):
    """What servers ask of a node that wants something for its tasks."""

    node_id: str
    secret_id: str

    def __repr__(self) -> str:
        """Without the secret."""
        return f"NodeProof(node_id={self.node_id!r})"


Changed = Callable[[WorkloadIdentity], None]
"""Told when a token was renewed whose identity wants a restart or a signal."""


class Credentials(Protocol):
    """Gives tasks their credentials."""

    async def prepare(
        self, alloc: Allocation, task: Task, waiting: Callable[[str], None]
    ) -> dict[str, str]:
        """Put everything in place; returns variables for the task's environment.

        waiting: told once, in words for the user, when servers cannot be reached and it goes on trying.
        Raises CredentialsError.
        """
        ...

    async def keep(self, alloc: Allocation, task: Task, changed: Changed) -> None:
        """Renew for as long as it is not cancelled."""
        ...


class NoCredentials:
    """Gives nothing: for clusters without an authority, and for the simulator."""

    async def prepare(
        self,
        alloc: Allocation,  # noqa: ARG002
        task: Task,  # noqa: ARG002
        waiting: Callable[[str], None],  # noqa: ARG002
    ) -> dict[str, str]:
        """See Credentials."""
        return {}

    async def keep(self, alloc: Allocation, task: Task, changed: Changed) -> None:  # noqa: ARG002
        """See Credentials."""
        await asyncio.get_running_loop().create_future()


class ServerCredentials:
    """Credentials signed by the servers."""

    def __init__(
        self,
        caller: Caller,
        proof: Callable[[], NodeProof],
        directories: TaskDirectories,
        clock: Clock,
        entropy: Entropy,
        *,
        certificates: bool = True,
        wait_s: float = 300.0,
    ) -> None:
        """certificates: False gives tokens only. wait_s: how long a start may wait for servers."""
        self._caller = caller
        self._proof = proof
        self._directories = directories
        self._clock = clock
        self._entropy = entropy
        self._certificates = certificates
        self._wait_s = wait_s

    async def prepare(
        self, alloc: Allocation, task: Task, waiting: Callable[[str], None]
    ) -> dict[str, str]:
        """See Credentials."""
        variables: dict[str, str] = {}
        told = False
        deadline = self._clock.monotonic() + self._wait_s
        backoff = Backoff(self._entropy, first_s=1.0)
        while True:
            try:
                variables.update(await self._tokens(alloc, task, lambda _: None))
                if await self._certificate(alloc, task):
                    variables.update(await self._certificate_variables(alloc, task))
                return variables
            except NomadError as cause:
                if not _may_pass(cause):
                    raise CredentialsError(
                        f"credentials for task {task.name!r}: {cause.message}", recoverable=False
                    ) from cause
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    raise CredentialsError(
                        f"no credentials for task {task.name!r} within {self._wait_s:g}s: {cause.message}",
                        recoverable=True,
                    ) from cause
                if not told:
                    waiting(f"Waiting for servers to sign the task's credentials: {cause.message}")
                    told = True
                await asyncio.sleep(min(backoff.next_s(), left))

    async def keep(self, alloc: Allocation, task: Task, changed: Changed) -> None:
        """See Credentials."""
        async with asyncio.TaskGroup() as group:
            if self._certificates:
                group.create_task(
                    self._keep_certificate(alloc, task), name=f"certificate {alloc.id}/{task.name}"
                )
            group.create_task(
                self._keep_tokens(alloc, task, changed), name=f"tokens {alloc.id}/{task.name}"
            )

    # -- the certificate --------------------------------------------------------------------------

    async def _certificate(self, alloc: Allocation, task: Task) -> bool:
        """Have a certificate that is not due; False when the cluster issues none."""
        if not self._certificates:
            return False
        if await self._due_in_s(alloc, task) > 0:
            return True
        try:
            await self._issue(alloc, task)
        except UnsupportedError as cause:
            log.warning("servers issue no task certificates", task=task.name, error=cause.message)
            return False
        return True

    async def _due_in_s(self, alloc: Allocation, task: Task) -> float:
        """Seconds until two thirds of the present certificate's life are over; 0 or less without a usable one."""
        pem = await self._directories.read(alloc.id, task.name, CERTIFICATE)
        key_pem = await self._directories.read(alloc.id, task.name, KEY)
        if pem is None or key_pem is None:
            return 0.0
        try:
            certificate = x509.load_pem_x509_certificates(pem)[0]
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, IndexError):
            return 0.0
        if key.public_key() != certificate.public_key():
            return 0.0
        begin = certificate.not_valid_before_utc.timestamp()
        end = certificate.not_valid_after_utc.timestamp()
        return begin + (end - begin) * 2 / 3 - self._clock.now_ns() / _SECOND

    async def _issue(self, alloc: Allocation, task: Task) -> None:
        key, csr = _key_and_request(f"{alloc.job_id}/{alloc.task_group}/{task.name}")
        proof = self._proof()
        reply: TaskCertificateReply = await self._caller.call(
            "Alloc.SignCertificate",
            TaskCertificateRequest(
                node_id=proof.node_id,
                secret_id=proof.secret_id,
                alloc_id=alloc.id,
                task=task.name,
                csr_pem=csr,
            ),
            timeout_s=_CALL_TIMEOUT_S,
        )
        # The certificate comes last: whoever sees a new one finds its key and roots beside it.
        for name, data, mode in (
            (BUNDLE, reply.bundle_pem, 0o644),
            (KEY, key, 0o600),
            (CERTIFICATE, reply.certificate_pem, 0o644),
        ):
            await self._directories.write(
                alloc.id, task.name, name, data, mode=mode, user=task.user
            )
        log.debug("task certificate issued", alloc_id=alloc.id, task=task.name)

    async def _keep_certificate(self, alloc: Allocation, task: Task) -> None:
        backoff = Backoff(self._entropy, first_s=1.0)
        while True:
            due = await self._due_in_s(alloc, task)
            if due > 0:
                backoff.reset()
                # An hour at most, so that a clock that jumps does not make us late.
                await asyncio.sleep(min(due, 3600.0))
                continue
            try:
                await self._issue(alloc, task)
            except UnsupportedError:
                return
            except NomadError as cause:
                log.warning(
                    "task certificate not renewed",
                    alloc_id=alloc.id,
                    task=task.name,
                    error=cause.message,
                )
                await asyncio.sleep(backoff.next_s())

    async def _certificate_variables(self, alloc: Allocation, task: Task) -> dict[str, str]:
        top = self._directories.paths(alloc.id, task.name).task
        pem = await self._directories.read(alloc.id, task.name, CERTIFICATE)
        return {
            "NOMAD_TASK_CERT_FILE": f"{top}/{CERTIFICATE}",
            "NOMAD_TASK_KEY_FILE": f"{top}/{KEY}",
            "NOMAD_TASK_CA_FILE": f"{top}/{BUNDLE}",
            "NOMAD_SPIFFE_ID": spiffe_id(pem or b""),
        }

    # -- tokens -----------------------------------------------------------------------------------

    async def _tokens(self, alloc: Allocation, task: Task, each: Changed) -> dict[str, str]:
        """Fetch and put down what the task's identities ask for; returns variables."""
        wanted = {identity.name: identity for identity in _exposed(task)}
        if not wanted:
            return {}
        variables: dict[str, str] = {}
        for signed in await self._sign(alloc, task):
            identity = wanted.get(signed.name)
            if identity is None:
                continue
            if identity.env:
                variables[_token_variable(identity)] = signed.jwt
            if identity.file:
                await self._directories.write(
                    alloc.id,
                    task.name,
                    _token_file(identity),
                    signed.jwt.encode(),
                    mode=0o600,
                    user=task.user,
                )
            each(identity)
        return variables

    async def _sign(self, alloc: Allocation, task: Task) -> list[SignedIdentity]:
        proof = self._proof()
        reply: SignIdentitiesReply = await self._caller.call(
            "Alloc.SignIdentities",
            SignIdentitiesRequest(
                node_id=proof.node_id, secret_id=proof.secret_id, alloc_id=alloc.id, task=task.name
            ),
            timeout_s=_CALL_TIMEOUT_S,
        )
        return reply.identities

    async def _keep_tokens(self, alloc: Allocation, task: Task, changed: Changed) -> None:
        lives = [identity.ttl for identity in _exposed(task) if identity.ttl > 0]
        if not lives:
            return
        life_s = min(lives) / _SECOND
        backoff = Backoff(self._entropy, first_s=1.0)
        wait_s = 0.0
        while True:
            await asyncio.sleep(wait_s or life_s * self._entropy.uniform(0.6, 2 / 3))
            if await self._renewed_tokens(alloc, task, changed):
                backoff.reset()
                wait_s = 0.0
            else:
                wait_s = min(backoff.next_s(), life_s / 10)

    async def _renewed_tokens(self, alloc: Allocation, task: Task, changed: Changed) -> bool:
        try:
            await self._tokens(alloc, task, changed)
        except NomadError as cause:
            log.warning(
                "task tokens not renewed", alloc_id=alloc.id, task=task.name, error=cause.message
            )
            return False
        return True


def spiffe_id(certificate_pem: bytes) -> str:
    """The SPIFFE id in a certificate's alternative names, "" when there is none."""
    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem)[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, IndexError, x509.ExtensionNotFound):
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return next((uri for uri in uris if uri.startswith("spiffe://")), "")


def _may_pass(error: NomadError) -> bool:
    """Whether a later call may succeed where this one failed."""
    if isinstance(error, NoLeaderError | NotLeaderError | UnreachableError):
        return True
    # A server that has not applied our allocation yet does not know it.
    if isinstance(error, NotFoundError | PermissionDeniedError):
        return True
    return not isinstance(error, DefiniteError)


def _exposed(task: Task) -> list[WorkloadIdentity]:
    """The identities that the task sees as a file or a variable."""
    known = [task.identity] if task.identity is not None else []
    return [i for i in [*known, *(task.identities or [])] if i.env or i.file]


def _token_variable(identity: WorkloadIdentity) -> str:
    if identity.name in ("", DEFAULT_IDENTITY):
        return "NOMAD_TOKEN"
    return f"NOMAD_TOKEN_{identity.name}"


def _token_file(identity: WorkloadIdentity) -> str:
    if identity.filepath:
        return identity.filepath
    if identity.name in ("", DEFAULT_IDENTITY):
        return "secrets/nomad_token"
    return f"secrets/nomad_{identity.name}.jwt"


def _key_and_request(name: str) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[-64:])])
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return key_pem, request.public_bytes(serialization.Encoding.PEM)
