"""Two tasks on two agents, one in a container, prove to each other who they are with what lies in their own secrets.

Task certificates live twelve seconds in this cluster, so every test also lives with renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from real_cluster import (
    SECOND,
    Json,
    RealCluster,
    contained,
    group,
    job,
    on_node,
    real_cluster,
    shell,
)

from agent.local_state import NodeIdentity
from agent.services.certificates import BUNDLE, CERTIFICATE, KEY
from nomadpy.clock import SystemClock
from nomadpy.demo.client import until
from nomadpy.demo.cluster import HOST, Daemon
from nomadpy.demo.dockerd import Docker
from nomadpy.entropy import SystemEntropy
from nomadpy.errors import NomadError, PermissionDeniedError
from nomadpy.models import calls
from nomadpy.pki.ca import create_workload_ca, sign_task_certificate
from nomadpy.pki.tls import load_material
from nomadpy.rpc.pool import Pool
from nomadpy.rpc.tls_network import TLSNetwork

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

TTL_S = 12
TAG = "nomadpy/openssl:local"
TRUST = "spiffe://global.nomad/ns/default/job"
SHOP = f"{TRUST}/shop/group/till/task/server"
BUYER = f"{TRUST}/buyer/group/bag/task/main"

# The certificate is read for each connection, because it is renewed while the task runs.
SERVER = """
import contextlib, os, socket, ssl
listener = socket.create_server(("127.0.0.1", int(os.environ["NOMAD_PORT_tls"])))
print("ready", os.environ["NOMAD_SPIFFE_ID"], flush=True)
while True:
    connection, _ = listener.accept()
    connection.settimeout(5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["NOMAD_TASK_CERT_FILE"], os.environ["NOMAD_TASK_KEY_FILE"])
    context.load_verify_locations(os.environ["NOMAD_TASK_CA_FILE"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    try:
        with context.wrap_socket(connection, server_side=True) as tls:
            names = [value for kind, value in tls.getpeercert()["subjectAltName"] if kind == "URI"]
            print("accepted", *names, tls.recv(100).decode().strip(), flush=True)
            tls.sendall(b"welcome")
            with contextlib.suppress(OSError):
                tls.unwrap()
    except OSError as error:
        print("refused", getattr(error, "reason", error), flush=True)
"""

# `sleep` holds the connection until the answer is there.
CLIENT = """
(echo "hello from $NOMAD_ALLOC_NAME"; sleep 0.7) | openssl s_client -connect {address} {options} \
    -verify_return_error -showcerts -ign_eof > $NOMAD_TASK_DIR/said 2>&1
echo "exit $?"
cat $NOMAD_TASK_DIR/said
echo
echo "the server's names:"
openssl x509 -in $NOMAD_TASK_DIR/said -noout -ext subjectAltName
"""
OWN = "-cert $NOMAD_TASK_CERT_FILE -key $NOMAD_TASK_KEY_FILE -CAfile $NOMAD_TASK_CA_FILE"


@pytest.fixture(scope="module")
def cluster(docker: Docker) -> Iterator[RealCluster]:
    """One server and two clients over mutual TLS."""
    extra = f'server {{\n  task_certificate_ttl = "{TTL_S}s"\n}}\n'
    with real_cluster(docker, servers=1, clients=2, server_extra=extra) as running:
        yield running


@pytest.fixture(scope="module")
def openssl_image(docker: Docker) -> str:
    """The host's openssl with the libraries it needs, and busybox, as an image."""
    linked = subprocess.run(["ldd", "/usr/bin/openssl"], capture_output=True, text=True, check=True)
    files = ["/usr/bin/openssl", *re.findall(r"(/\S+) \(0x", linked.stdout)]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in files:
            archive.add(os.path.realpath(name), arcname=name.lstrip("/"))
        archive.add("/bin/busybox", arcname="bin/busybox")
        for applet in ("sh", "sleep", "echo", "cat", "ls"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    repository, _, label = TAG.rpartition(":")
    with contextlib.closing(docker.client()) as client:
        client.api.import_image_from_data(packed.getvalue(), repository=repository, tag=label)
    return TAG


@pytest.fixture(scope="module")
def shop(cluster: RealCluster) -> Json:
    """The allocation of a TLS server, a plain process on client-1."""
    task = shell("", name="server")
    task["Config"] = {"command": sys.executable, "args": ["-c", SERVER]}
    network = {"Mode": "host", "DynamicPorts": [{"Label": "tls"}]}
    till = group(task, name="till", Networks=[network], Constraints=[on_node("client-1")])
    (alloc,) = cluster.run(job("shop", till))
    assert cluster.wait_log(alloc, "ready", task="server") == f"ready {SHOP}\n"
    return cluster.alloc(alloc["ID"])


@pytest.fixture(scope="module")
def buyer(cluster: RealCluster, openssl_image: str) -> Json:
    """The allocation of a container on client-2 in which clients run."""
    script = 'echo "$NOMAD_SPIFFE_ID"; for f in $NOMAD_TASK_CERT_FILE $NOMAD_TASK_KEY_FILE $NOMAD_TASK_CA_FILE; do ls -l $f; done; exec sleep 600'
    config = {"network_mode": "host"}
    env = {"OPENSSL_CONF": "/dev/null"}
    task = contained(openssl_image, script, Config=config, Env=env)
    (alloc,) = cluster.run(job("buyer", group(task, name="bag", Constraints=[on_node("client-2")])))
    said = cluster.wait_log(alloc, BUNDLE).splitlines()
    assert said[0] == BUYER
    # In the container the files are at its own paths, and the key is for its user alone.
    assert [line.split()[-1] for line in said[1:]] == [
        f"/{name}" for name in (CERTIFICATE, KEY, BUNDLE)
    ]
    assert next(line for line in said if line.endswith(KEY)).startswith("-rw------- ")
    return alloc


def address(shop: Json) -> str:
    port = shop["AllocatedResources"]["Shared"]["Ports"][0]
    assert port["Label"] == "tls"
    return f"{HOST}:{port['Value']}"


def inside(cluster: RealCluster, alloc: Json, script: str) -> str:
    """What a script prints that runs inside the allocation's container."""
    assert cluster.docker is not None
    with contextlib.closing(cluster.docker.client()) as client:
        container = client.containers.get(cluster.container(alloc)["Id"])
        return str(container.exec_run(["sh", "-c", script]).output.decode())


def top(cluster: RealCluster, alloc: Json, task: str) -> Path:
    """The task's directory, below which its secrets lie."""
    return cluster.shared(alloc).parent / task


def test_a_process_and_a_container_on_two_agents_prove_themselves_to_each_other(
    cluster: RealCluster, shop: Json, buyer: Json
) -> None:
    assert {shop["NodeName"], buyer["NodeName"]} == {"client-1", "client-2"}
    said = inside(cluster, buyer, CLIENT.format(address=address(shop), options=OWN))
    assert said.startswith("exit 0\n"), said
    assert "welcome" in said
    assert "Verify return code: 0 (ok)" in said
    names = said.partition("the server's names:")[2]
    assert f"URI:{SHOP}" in names
    assert "DNS:server.till.shop.default.nomad" in names
    log = cluster.wait_log(shop, "accepted", task="server")
    assert f"accepted {BUYER} hello from buyer.bag[0]\n" in log


def test_who_has_no_certificate_of_the_cluster_is_refused(
    cluster: RealCluster, shop: Json, buyer: Json, tmp_path: Path
) -> None:
    foreign_cert, foreign_key, _ = foreign(tmp_path, BUYER)
    agents = cluster.certificates
    tries = {
        "none": ("-CAfile $NOMAD_TASK_CA_FILE", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        "foreign": (
            f"-cert {foreign_cert} -key {foreign_key} -CAfile $NOMAD_TASK_CA_FILE",
            "CERTIFICATE_VERIFY_FAILED",
        ),
        # What lets an agent speak to servers says nothing about a task.
        "agent": (
            f"-cert {agents}/global-client-nomad.pem -key {agents}/global-client-nomad-key.pem "
            "-CAfile $NOMAD_TASK_CA_FILE",
            "CERTIFICATE_VERIFY_FAILED",
        ),
    }
    for name, (options, reason) in tries.items():
        before = len(cluster.logs(shop, task="server"))
        script = CLIENT.format(address=address(shop), options=options)
        only = {
            "Constraints": [on_node("client-2")],
            "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        }
        cluster.any_api.put(
            "/v1/jobs", {"Job": job(f"try-{name}", group(shell(script), **only), kind="batch")}
        )
        (alloc,) = cluster.wait_allocs(f"try-{name}", "complete", 1)
        said = cluster.logs(alloc)
        assert not said.startswith("exit 0"), name
        assert "welcome" not in said, name
        # The client did check the server: it is the server that refuses.
        assert f"URI:{SHOP}" in said, name
        until(
            lambda b=before: len(cluster.logs(shop, task="server")) > b,
            seconds=5,
            what="the server's word",
        )
        log = cluster.logs(shop, task="server")[before:]
        assert log == f"refused {reason}\n", name


def test_a_task_refuses_a_server_of_a_foreign_authority(
    cluster: RealCluster, buyer: Json, tmp_path: Path
) -> None:
    cert, key, _ = foreign(tmp_path, SHOP)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    heard: list[str] = []
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.settimeout(10)
            try:
                with context.wrap_socket(connection, server_side=True) as tls:
                    heard.append(tls.recv(100).decode())
            except OSError as error:
                heard.append(f"refused {getattr(error, 'reason', error)}")

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        said = inside(cluster, buyer, CLIENT.format(address=f"{HOST}:{port}", options=OWN))
        thread.join()
    assert said.startswith("exit 1\n"), said
    assert "verify error" in said
    assert not heard[0].startswith("hello")


def test_certificates_are_renewed_while_the_tasks_run_and_go_on_to_be_accepted(
    cluster: RealCluster, shop: Json, buyer: Json
) -> None:
    tasks = {"shop": (shop, "server"), "buyer": (buyer, "main")}
    first = {n: certificate(top(cluster, a, t)) for n, (a, t) in tasks.items()}
    container = cluster.container(buyer)["State"]
    for name, (alloc, task) in tasks.items():
        life = first[name].not_valid_after_utc - first[name].not_valid_before_utc
        assert TTL_S <= life.total_seconds() <= TTL_S * 1.5
        end_s = first[name].not_valid_after_utc.timestamp()
        folder = top(cluster, alloc, task)

        def expired_and_renewed(end: float = end_s, place: Path = folder) -> bool:
            until_s = certificate(place).not_valid_after_utc.timestamp()
            assert until_s > time.time(), "a certificate was left to expire"
            return time.time() > end

        until(expired_and_renewed, seconds=TTL_S + 5, what=f"the end of {name}'s first certificate")
        now = certificate(folder)
        assert now.serial_number != first[name].serial_number
        assert now.public_key() != first[name].public_key()
        assert (folder / KEY).stat().st_mode & 0o777 == 0o600
    said = inside(cluster, buyer, CLIENT.format(address=address(shop), options=OWN))
    assert said.startswith("exit 0\n"), said
    assert f"URI:{SHOP}" in said
    assert cluster.container(buyer)["State"] == container
    for alloc, task in tasks.values():
        assert cluster.alloc(alloc["ID"])["TaskStates"][task]["Restarts"] == 0


async def test_a_certificate_is_signed_only_for_the_agent_that_holds_the_allocation(
    cluster: RealCluster, shop: Json, buyer: Json
) -> None:
    home, other = identity_of(cluster.daemon("client-1")), identity_of(cluster.daemon("client-2"))
    assert home.id == shop["NodeID"]
    entropy = SystemEntropy()
    server = f"{HOST}:{cluster.servers[0].rpc_port}"
    key, csr = request_for("whatever")
    wanted = calls.TaskCertificateRequest(
        node_id=home.id, secret_id=home.secret, alloc_id=shop["ID"], task="server", csr_pem=csr
    )
    refused = {
        "another node": {"node_id": other.id, "secret_id": other.secret},
        "another node's secret": {"secret_id": other.secret},
        "no secret": {"secret_id": ""},
        "another node's allocation": {"alloc_id": buyer["ID"], "task": "main"},
        "no such task": {"task": "nobody"},
        "no signing request": {"csr_pem": b"nothing"},
    }
    pool = Pool(network_of(cluster, "client"), None, entropy)
    try:
        reply = await pool.call(server, "Alloc.SignCertificate", wanted, timeout_s=10)
        issued = x509.load_pem_x509_certificate(reply.certificate_pem)
        assert issued.public_key() == key.public_key()
        names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [SHOP]
        for name, change in refused.items():
            with pytest.raises(NomadError) as fault:
                await pool.call(
                    server,
                    "Alloc.SignCertificate",
                    msgspec.structs.replace(wanted, **change),
                    timeout_s=10,
                )
            if "node" in name or "secret" in name:
                assert isinstance(fault.value, PermissionDeniedError), name
    finally:
        await pool.close()
    # An operator's certificate opens the API, and nothing that agents and servers say among themselves.
    pool = Pool(network_of(cluster, "cli"), None, entropy)
    try:
        with pytest.raises(NomadError):
            await pool.call(server, "Alloc.SignCertificate", wanted, timeout_s=10)
    finally:
        await pool.close()


def test_a_stopped_allocation_gets_no_certificate_and_its_secrets_are_gone_with_it(
    cluster: RealCluster,
) -> None:
    (alloc,) = cluster.run(
        job("brief", group(shell("exec sleep 600"), Constraints=[on_node("client-1")]))
    )
    folder = top(cluster, alloc, "main")
    assert (folder / KEY).exists()
    cluster.stop_job("brief")
    home = identity_of(cluster.daemon("client-1"))
    _, csr = request_for("brief")
    wanted = calls.TaskCertificateRequest(
        node_id=home.id, secret_id=home.secret, alloc_id=alloc["ID"], task="main", csr_pem=csr
    )

    async def ask() -> None:
        pool = Pool(network_of(cluster, "client"), None, SystemEntropy())
        try:
            await pool.call(
                f"{HOST}:{cluster.servers[0].rpc_port}", "Alloc.SignCertificate", wanted
            )
        finally:
            await pool.close()

    with pytest.raises(PermissionDeniedError):
        asyncio.run(ask())
    cluster.api(cluster.clients[0]).get(f"/v1/client/allocation/{alloc['ID']}/gc")
    until(lambda: not folder.exists(), seconds=10, what="the directory's removal")
    assert str(folder) not in Path("/proc/self/mounts").read_text()


def test_the_token_of_a_task_verifies_against_the_published_keys(cluster: RealCluster) -> None:
    identity = {
        "Name": "bank",
        "Audience": ["bank.example"],
        "Env": True,
        "File": True,
        "TTL": 3600 * SECOND,
    }
    script = 'echo "$NOMAD_TOKEN_bank"; cat $NOMAD_SECRETS_DIR/nomad_bank.jwt; echo; echo "end of ${NOMAD_TOKEN:-none}"; exec sleep 600'
    (alloc,) = cluster.run(job("payer", group(shell(script, Identities=[identity]))))
    in_env, in_file, end = cluster.wait_log(alloc, "end of").split("\n")[:3]
    assert in_env == in_file
    # Nobody asked for the default token.
    assert end == "end of none"
    for node in (cluster.servers[0], *cluster.clients):
        published = cluster.api(node).get("/.well-known/jwks.json")
        keys = jwt.PyJWKSet.from_dict(published)
        header = jwt.get_unverified_header(in_env)
        claims = jwt.decode(
            in_env, keys[header["kid"]].key, algorithms=[header["alg"]], audience="bank.example"
        )
        assert claims["nomad_allocation_id"] == alloc["ID"]
        assert (claims["nomad_job_id"], claims["nomad_task"]) == ("payer", "main")
        assert claims["exp"] - claims["iat"] == 3600
        with pytest.raises(jwt.InvalidAudienceError):
            jwt.decode(
                in_env, keys[header["kid"]].key, algorithms=[header["alg"]], audience="other"
            )
    cluster.stop_job("payer")


# -- certificates and requests ---------------------------------------------------------------------------------


def certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())


def request_for(name: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return key, csr.public_bytes(serialization.Encoding.PEM)


def foreign(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Files of a certificate with the right name, signed by an authority of the right name that is not the cluster's."""
    now_ns = SystemClock().now_ns()
    ca, ca_key = create_workload_ca("global.nomad", now_ns=now_ns)
    key, csr = request_for("foreign")
    signed = sign_task_certificate(ca, ca_key, csr, name, now_ns=now_ns)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    for path, data in zip(paths, (signed, private, ca), strict=True):
        path.write_bytes(data)
    return paths


def identity_of(daemon: Daemon) -> NodeIdentity:
    """A node's id and secret, out of its own state."""
    (path,) = daemon.folder.glob("data/client/*.db")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as state:
        (value,) = state.execute("SELECT value FROM facts WHERE name = 'node'").fetchone()
    # Four bytes of checksum stand before every value.
    return msgspec.msgpack.decode(value[4:], type=NodeIdentity)


def network_of(cluster: RealCluster, role: str) -> TLSNetwork:
    """The cluster's network with the certificate of a role."""
    folder = cluster.certificates
    material = load_material(
        folder / "nomad-agent-ca.pem",
        folder / f"global-{role}-nomad.pem",
        folder / f"global-{role}-nomad-key.pem",
        now_ns=SystemClock().now_ns(),
    )
    return TLSNetwork(material)
