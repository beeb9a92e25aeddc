"""Alloc.*: reads, stop, and what only the agent that holds an allocation may ask: certificates and identities."""

from __future__ import annotations

from nomadpy.errors import NotFoundError, PermissionDeniedError, UnsupportedError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.allocation import Allocation, DesiredTransition
from nomadpy.models.envelope import ALL_NAMESPACES, Answer
from nomadpy.models.replies import AllocStopResponse
from nomadpy.models.root_key import RootKey
from nomadpy.models.task import Task
from nomadpy.pki.ca import sign_task_certificate, spiffe_id
from nomadpy.pki.identity import sign_identity
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server import new_evaluations
from nomadpy.server.endpoints.base import Services, evaluation_of, written
from nomadpy.server.endpoints.job_reads import truth
from nomadpy.server.endpoints.nodes import known_node
from nomadpy.server.endpoints.stubs import alloc_stub
from nomadpy.server.query import Found, check_uuid, check_uuid_prefix, page
from nomadpy.state.store import Snapshot


class Allocs:
    """Handlers."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        self._keyring = services.keyring
        register = services.router.register
        register("Alloc.List", self.list)
        register("Alloc.Get", self.get)
        register("Alloc.Services", self.services)
        register("Alloc.Stop", self.stop)
        register("Alloc.SignCertificate", self.sign_certificate)
        register("Alloc.SignIdentities", self.sign_identities)

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows of allocations, oldest first; with a prefix by id."""
        options = request.options
        if options.prefix:
            check_uuid_prefix(options.prefix, "alloc")
        resources = truth(request.flags, "resources")
        states = request.flags.get("task_states", "true").lower() not in ("0", "false", "f")

        def read(snapshot: Snapshot) -> Found:
            if options.prefix:
                allocs = list(snapshot.allocs_by_prefix(options.prefix))
            else:
                allocs = sorted(snapshot.allocs(), key=lambda a: (a.create_index, a.id))
            if options.namespace != ALL_NAMESPACES:
                allocs = [a for a in allocs if a.namespace == options.namespace]
            found = page(
                allocs,
                options,
                token=lambda a: a.id if options.prefix else (a.create_index, a.id),
            )
            rows = [alloc_stub(a, resources=resources, task_states=states) for a in found.items]
            return Found(
                index=snapshot.table_index("allocs"), value=rows, next_token=found.next_token
            )

        return await self._queries.answer(options, [("table", "allocs")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One allocation with its job."""
        check_uuid(request.id, "alloc")

        def read(snapshot: Snapshot) -> Found:
            alloc = snapshot.alloc(request.id)
            if alloc is None:
                return Found(index=snapshot.table_index("allocs"), missing="alloc not found")
            return Found(index=alloc.modify_index, value=alloc)

        return await self._queries.answer(request.options, [("table", "allocs", request.id)], read)

    async def services(self, _: CallContext, request: calls.Read) -> Answer:
        """Registrations of the allocation's services; none before service discovery exists."""

        def read(snapshot: Snapshot) -> Found:
            if snapshot.alloc(request.id) is None:
                return Found(index=snapshot.table_index("allocs"), missing="alloc not found")
            return Found(index=snapshot.table_index("services"), value=[])

        return await self._queries.answer(request.options, [("table", "services")], read)

    async def stop(self, _: CallContext, request: calls.Write) -> Answer:
        """Stop an allocation and have its job replace it."""
        core = self._core
        check_uuid(request.id, "alloc")
        snapshot = core.snapshot()
        alloc = snapshot.alloc(request.id)
        if alloc is None:
            raise NotFoundError("alloc not found")
        job = snapshot.job(alloc.namespace, alloc.job_id) or alloc.job
        assert job is not None
        evaluation = new_evaluations.for_job(
            job, "alloc-stop", entropy=core.entropy, now_ns=core.clock.now_ns()
        )
        transition = DesiredTransition(
            migrate=True,
            reschedule=False,
            no_shutdown_delay=truth(request.flags, "no_shutdown_delay"),
        )
        applied = await core.propose(
            commands.AllocTransition(transitions={alloc.id: transition}, evaluations=[evaluation]),
            request_id=request.options.request_id,
        )
        made = evaluation_of(core.snapshot(), evaluation, applied.index)
        return written(AllocStopResponse(eval_id=made, index=applied.index), applied.index)

    # -- for the agent that holds it --------------------------------------------------------------------

    async def sign_certificate(
        self, _: CallContext, request: calls.TaskCertificateRequest
    ) -> calls.TaskCertificateReply:
        """A short-lived certificate for one task's key, signed by the cluster's workload CA."""
        core = self._core
        alloc, task = self._held(request.node_id, request.secret_id, request.alloc_id, request.task)
        key = self._key()
        now_ns = core.clock.now_ns()
        identity = spiffe_id(
            core.settings.region, alloc.namespace, alloc.job_id, alloc.task_group, task.name
        )
        ttl_s = core.settings.task_certificate_ttl_s
        certificate = sign_task_certificate(
            key.ca_certificate_pem,
            key.ca_key_pem,
            request.csr_pem,
            spiffe_id=identity,
            dns_names=[f"{task.name}.{alloc.task_group}.{alloc.job_id}.{alloc.namespace}.nomad"],
            ttl_s=ttl_s,
            now_ns=now_ns,
        )
        roots = [k.ca_certificate_pem for k in core.snapshot().root_keys()]
        return calls.TaskCertificateReply(
            certificate_pem=certificate,
            bundle_pem=b"".join(sorted(roots)),
            not_after_ns=now_ns + int(ttl_s * 1e9),
        )

    async def sign_identities(
        self, _: CallContext, request: calls.SignIdentitiesRequest
    ) -> calls.SignIdentitiesReply:
        """The task's workload identities; signed here, when they are first asked for, never while placing."""
        core = self._core
        alloc, task = self._held(request.node_id, request.secret_id, request.alloc_id, request.task)
        key = self._key()
        now_ns = core.clock.now_ns()
        wanted = [i for i in [task.identity, *(task.identities or [])] if i is not None]
        signed = [
            sign_identity(
                key,
                region=core.settings.region,
                alloc=alloc,
                task=task.name,
                identity=identity,
                now_ns=now_ns,
                token_id=core.entropy.uuid(),
            )
            for identity in wanted
        ]
        return calls.SignIdentitiesReply(identities=signed)

    def _held(
        self, node_id: str, secret_id: str, alloc_id: str, task_name: str
    ) -> tuple[Allocation, Task]:
        snapshot = self._core.snapshot()
        known_node(snapshot, node_id, secret_id)
        alloc = snapshot.alloc(alloc_id)
        if alloc is None or alloc.node_id != node_id:
            raise PermissionDeniedError(f"allocation {alloc_id} is not this node's")
        if alloc.desired_status != "run" or alloc.job is None:
            raise PermissionDeniedError(f"allocation {alloc_id} is to be stopped")
        for group in alloc.job.task_groups or []:
            if group.name == alloc.task_group:
                for task in group.tasks or []:
                    if task.name == task_name:
                        return alloc, task
        raise NotFoundError(f'allocation {alloc_id} has no task "{task_name}"')

    def _key(self) -> RootKey:
        key = self._core.snapshot().active_root_key()
        if key is None:
            raise UnsupportedError("the cluster has no root key yet; try again", status=500)
        return self._keyring.open(key)
