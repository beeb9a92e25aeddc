"""What only the agent that holds an allocation gets: certificates of its tasks and their signed identities; and the root
keys behind both."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from server_world import FakeNode, World, body, job, running

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from nomadpy.models import calls
from nomadpy.models.root_key import RootKey
from nomadpy.pki.identity import verify_identity
from nomadpy.pki.keyring import Keyring
from nomadpy.rpc.pool import Pool


def signing_request(*, name: str = "", uri: str = "") -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A signing request, which may ask for names that it should not get."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    request = builder.sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM), key


async def holder(world: World, **fields: Any) -> tuple[FakeNode, str]:
    """A node and the allocation that it holds."""
    node = await world.node()
    await world.register(job(**fields))
    await world.settled()
    return node, node.wanted()[0].id


def asking(
    node: FakeNode, alloc_id: str, csr: bytes, **changes: Any
) -> calls.TaskCertificateRequest:
    request = calls.TaskCertificateRequest(
        node_id=node.id, secret_id=node.node.secret_id, alloc_id=alloc_id, task="task", csr_pem=csr
    )
    return msgspec.structs.replace(request, **changes)


async def test_a_certificate_names_its_task_for_the_key_that_asked_and_chains_to_the_bundle() -> (
    None
):
    async with running(3, task_certificate_ttl_s=3600.0) as world:
        node, alloc_id = await holder(world)
        csr, key = signing_request(name="root", uri="spiffe://global.nomad/ns/other/job/x")
        reply = await world.call(
            "Alloc.SignCertificate", asking(node, alloc_id, csr), at=world.followers[0]
        )
        leaf = x509.load_pem_x509_certificate(reply.certificate_pem)
        (authority,) = x509.load_pem_x509_certificates(reply.bundle_pem)
        leaf.verify_directly_issued_by(authority)
        assert leaf.public_key() == key.public_key()
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            "spiffe://global.nomad/ns/default/job/web/group/group/task/task"
        ]
        assert names.get_values_for_type(x509.DNSName) == ["task.group.web.default.nomad"]
        assert list(leaf.subject) == []
        now_ns = world.leader.server.core.clock.now_ns()
        assert 0 <= now_ns + 3600 * 10**9 - reply.not_after_ns < 10**9
        ends = leaf.not_valid_after_utc.replace(tzinfo=datetime.UTC).timestamp()
        assert abs(ends - reply.not_after_ns / 1e9) <= 1.0


async def test_nobody_but_the_holder_gets_a_certificate() -> None:
    async with running() as world:
        node, alloc_id = await holder(world)
        other = await world.node("n1")
        csr, _ = signing_request()
        denied = [
            asking(node, alloc_id, csr, secret_id="wrong"),
            asking(node, alloc_id, csr, secret_id=""),
            asking(other, alloc_id, csr),
            asking(other, alloc_id, csr, node_id=node.id),
            asking(node, "0" * 36, csr),
        ]
        for request in denied:
            with pytest.raises(PermissionDeniedError):
                await world.call("Alloc.SignCertificate", request)
        with pytest.raises(NotFoundError, match='has no task "zz"'):
            await world.call("Alloc.SignCertificate", asking(node, alloc_id, csr, task="zz"))
        with pytest.raises(NotFoundError, match="node not found"):
            await world.call("Alloc.SignCertificate", asking(node, alloc_id, csr, node_id="0" * 36))
        for nonsense in (b"", b"nonsense", csr[:-40]):
            with pytest.raises(InvalidRequestError):
                await world.call("Alloc.SignCertificate", asking(node, alloc_id, nonsense))


async def test_an_allocation_that_is_to_stop_gets_no_new_certificate_or_identity() -> None:
    async with running() as world:
        node, alloc_id = await holder(world)
        await world.call("Job.Deregister", calls.JobDeregister(job_id="web"))
        await world.settled()
        csr, _ = signing_request()
        with pytest.raises(PermissionDeniedError, match="is to be stopped"):
            await world.call("Alloc.SignCertificate", asking(node, alloc_id, csr))
        with pytest.raises(PermissionDeniedError, match="is to be stopped"):
            await world.call("Alloc.SignIdentities", identities(node, alloc_id))


async def test_a_certificate_is_not_signed_for_an_operator() -> None:
    async with running() as world:
        node, alloc_id = await holder(world)
        csr, _ = signing_request()
        network = world.cluster.network.host("laptop", role="cli")
        pool = Pool(network, None, SeededEntropy("laptop"))
        for method, request in (
            ("Alloc.SignCertificate", asking(node, alloc_id, csr)),
            ("Alloc.SignIdentities", identities(node, alloc_id)),
            ("Raft.ReadIndex", calls.IndexRequest()),
        ):
            with pytest.raises(PermissionDeniedError):
                await pool.call(world.leading.address, method, request, timeout_s=5)
        await pool.close()


# -- identities -------------------------------------------------------------------------------------------------


def identities(node: FakeNode, alloc_id: str, task: str = "task") -> calls.SignIdentitiesRequest:
    return calls.SignIdentitiesRequest(
        node_id=node.id, secret_id=node.node.secret_id, alloc_id=alloc_id, task=task
    )


def opened(world: World) -> list[RootKey]:
    return [Keyring().open(key) for key in world.state.root_keys()]


async def test_a_task_gets_each_of_its_identities_signed_by_a_published_key() -> None:
    task = {
        "Name": "task",
        "Driver": "mock_driver",
        "Resources": {"CPU": 100, "MemoryMB": 64},
        "Identities": [{"Name": "vault", "Audience": ["vault.io"], "TTL": 3600 * 10**9}],
    }
    async with running() as world:
        node, alloc_id = await holder(world, group={"Tasks": [task]})
        reply = await world.call("Alloc.SignIdentities", identities(node, alloc_id))
        signed = {one.name: one for one in reply.identities}
        assert set(signed) == {"default", "vault"}
        now_ns = world.leader.server.core.clock.now_ns()
        claims = verify_identity(signed["default"].jwt, opened(world), now_ns=now_ns)
        assert claims["sub"] == "global:default:web:group:task:default"
        assert claims["nomad_allocation_id"] == alloc_id
        assert signed["default"].expires_ns == 0
        claims = verify_identity(
            signed["vault"].jwt, opened(world), now_ns=now_ns, audience="vault.io"
        )
        assert claims["exp"] * 10**9 == signed["vault"].expires_ns
        with pytest.raises(PermissionDeniedError):
            verify_identity(signed["vault"].jwt, opened(world), now_ns=now_ns)
        with pytest.raises(PermissionDeniedError):
            verify_identity(
                signed["vault"].jwt,
                opened(world),
                now_ns=now_ns + 2 * 3600 * 10**9,
                audience="vault.io",
            )
        published = await world.get("Keyring.JWKS")
        assert [k["kid"] for k in published["keys"]] == [k.key_id for k in opened(world)]


async def test_only_the_holder_gets_identities() -> None:
    async with running() as world:
        node, alloc_id = await holder(world)
        other = await world.node("n1")
        with pytest.raises(PermissionDeniedError, match="is not this node's"):
            await world.call("Alloc.SignIdentities", identities(other, alloc_id))
        with pytest.raises(NotFoundError, match="has no task"):
            await world.call("Alloc.SignIdentities", identities(node, alloc_id, "zz"))


# -- root keys --------------------------------------------------------------------------------------------------


async def test_what_an_old_key_signed_holds_after_a_rotation() -> None:
    async with running(3) as world:
        node, alloc_id = await holder(world)
        before = (await world.call("Alloc.SignIdentities", identities(node, alloc_id))).identities
        old = world.state.active_root_key()
        answer = body(await world.call("Keyring.Rotate", calls.Write(), at=world.followers[0]))
        new = world.state.active_root_key()
        assert old is not None
        assert new is not None
        assert answer["Key"]["KeyID"] == new.key_id != old.key_id
        rows = await world.get("Keyring.List")
        assert {r["KeyID"]: r["State"] for r in rows} == {
            old.key_id: "inactive",
            new.key_id: "active",
        }
        after = (await world.call("Alloc.SignIdentities", identities(node, alloc_id))).identities
        now_ns = world.leader.server.core.clock.now_ns()
        for one in (*before, *after):
            assert verify_identity(one.jwt, opened(world), now_ns=now_ns)
        # The next key alone does not vouch for what the old one signed.
        newest = [k for k in opened(world) if k.key_id == new.key_id]
        with pytest.raises(PermissionDeniedError):
            verify_identity(before[0].jwt, newest, now_ns=now_ns)


async def test_no_answer_holds_a_secret_of_a_root_key() -> None:
    async with running() as world:
        key = opened(world)[0]
        shown = [
            await world.read("Keyring.List"),
            await world.read("Keyring.JWKS"),
            await world.call("Keyring.Rotate", calls.Write()),
        ]
        private = key.signing_key_pem.splitlines()[1]
        for answer in shown:
            assert private not in answer.body
            assert b"PRIVATE" not in answer.body
