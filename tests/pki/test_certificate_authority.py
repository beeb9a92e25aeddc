"""The CA, the certificates it issues, and the files of `tls ca create` and `tls cert create`."""

from __future__ import annotations

import os
import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import ConfigError, ConflictError, InvalidRequestError, PermissionDeniedError
from nomadpy.pki.authority import moment
from nomadpy.pki.ca import (
    create_ca,
    create_workload_ca,
    issue_certificate,
    sign_task_certificate,
    spiffe_id,
    write_ca,
    write_certificate,
)
from nomadpy.pki.roles import ROLES, common_name, parse_common_name
from nomadpy.pki.tls import (
    https_server_context,
    identity_of,
    load_material,
    minimum_version,
    rpc_client_context,
    rpc_server_context,
)

NOW = 1_800_000_000 * 10**9
DAY = 86_400 * 10**9
SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.fixture(scope="module")
def ca() -> tuple[bytes, bytes]:
    return create_ca(now_ns=NOW)


def names_of(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def uses_of(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_common_name_says_role_and_region_and_is_read_back(role: str) -> None:
    identity = parse_common_name(common_name(role, "eu-west_1"))
    assert (identity.role, identity.region) == (role, "eu-west_1")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "server",
        "server.global",
        "server.global.consul",
        "root.global.nomad",
        "Server.global.nomad",
        "server..nomad",
        "server.a.b.nomad",
        "server.global.nomad.evil.com",
        "server.global.nomad\n",
        "x.server.global.nomad",
        "server.global.nomad\x00.evil",
        "*.global.nomad",
    ],
)
def test_any_other_name_is_nobody(name: str) -> None:
    with pytest.raises(PermissionDeniedError):
        parse_common_name(name)


@pytest.mark.parametrize("region", ["", "a.b", "é", "x" * 52, "-a", "a b", "a/b", "*"])
def test_a_region_that_cannot_stand_in_a_name_is_refused(region: str) -> None:
    with pytest.raises(ConfigError, match="region"):
        common_name("server", region)


@given(st.text(max_size=40))
def test_no_text_is_read_as_another_name_than_it_is(text: str) -> None:
    try:
        identity = parse_common_name(text)
    except PermissionDeniedError:
        return
    assert common_name(identity.role, identity.region) == text


def test_two_common_names_in_a_certificate_are_ambiguous_and_refused() -> None:
    subject = ((("commonName", "client.global.nomad"),), (("commonName", "server.global.nomad"),))
    with pytest.raises(PermissionDeniedError, match="2 common names"):
        identity_of({"subject": subject})
    with pytest.raises(PermissionDeniedError):
        identity_of({"subject": ()})
    with pytest.raises(PermissionDeniedError):
        identity_of(b"not der")


# -- the authority and what it issues ------------------------------------------------------------------------------


def test_the_authority_is_an_authority_and_nothing_else(ca: tuple[bytes, bytes]) -> None:
    certificate = x509.load_pem_x509_certificate(ca[0])
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert basic.critical
    assert basic.value.ca
    assert usage.key_cert_sign
    assert usage.crl_sign
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize(
    ("role", "uses"),
    [
        ("server", {SERVER_AUTH, CLIENT_AUTH}),
        ("client", {SERVER_AUTH, CLIENT_AUTH}),
        ("cli", {CLIENT_AUTH}),
    ],
)
def test_a_certificate_has_the_names_and_uses_of_its_role(
    ca: tuple[bytes, bytes], role: str, uses: set[x509.ObjectIdentifier]
) -> None:
    pem, key_pem = issue_certificate(
        *ca, role, "global", names=["db.example"], ips=["10.1.2.3", "::1"], days=30, now_ns=NOW
    )
    certificate = x509.load_pem_x509_certificate(pem)
    key = serialization.load_pem_private_key(key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca[0]))
    identity = identity_of(certificate.public_bytes(serialization.Encoding.DER))
    assert (identity.role, identity.region) == (role, "global")
    assert len(identity.fingerprint) == 64
    names = names_of(certificate)
    assert names.get_values_for_type(x509.DNSName) == [
        f"{role}.global.nomad",
        "localhost",
        "db.example",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "10.1.2.3",
        "::1",
    ]
    assert uses_of(certificate) == uses
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert certificate.not_valid_after_utc == moment(NOW + 30 * DAY)
    assert certificate.not_valid_before_utc < moment(NOW)


def test_serial_numbers_differ(ca: tuple[bytes, bytes]) -> None:
    serials = {
        x509.load_pem_x509_certificate(
            issue_certificate(*ca, "cli", "global", now_ns=NOW)[0]
        ).serial_number
        for _ in range(5)
    }
    assert len(serials) == 5


@pytest.mark.parametrize(
    ("role", "region", "options"),
    [
        ("root", "global", {}),
        ("server", "a.b", {}),
        ("server", "global", {"ips": ["not an ip"]}),
        ("server", "global", {"names": ["bücher.example"]}),
    ],
)
def test_what_cannot_be_issued_is_a_configuration_error(
    ca: tuple[bytes, bytes], role: str, region: str, options: dict[str, list[str]]
) -> None:
    with pytest.raises(ConfigError):
        issue_certificate(*ca, role, region, now_ns=NOW, **options)  # type: ignore[arg-type]


def test_only_a_matching_pair_of_a_ca_can_issue(ca: tuple[bytes, bytes]) -> None:
    other = create_ca(now_ns=NOW)
    leaf = issue_certificate(*ca, "server", "global", now_ns=NOW)
    for certificate, key, reason in (
        (ca[0], other[1], "does not belong"),
        (leaf[0], leaf[1], "not a CA"),
        (b"junk", ca[1], "not a PEM certificate"),
        (ca[0], b"junk", "private key"),
    ):
        with pytest.raises(ConfigError, match=reason):
            issue_certificate(certificate, key, "server", "global", now_ns=NOW)


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_files_are_named_as_nomads_and_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ca_file, ca_key = write_ca(tmp_path, now_ns=NOW)
        for role in ROLES:
            write_certificate(tmp_path, ca_file, ca_key, role, "global", now_ns=NOW)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {
        "nomad-agent-ca.pem": 0o644,
        "nomad-agent-ca-key.pem": 0o600,
        **{f"global-{role}-nomad.pem": 0o644 for role in ROLES},
        **{f"global-{role}-nomad-key.pem": 0o600 for role in ROLES},
    }


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    ca_file, ca_key = write_ca(tmp_path, now_ns=NOW)
    certificate, key = write_certificate(tmp_path, ca_file, ca_key, "server", now_ns=NOW)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConflictError):
        write_ca(tmp_path, now_ns=NOW)
    key.unlink()
    with pytest.raises(ConflictError, match=str(certificate)):
        write_certificate(tmp_path, ca_file, ca_key, "server", now_ns=NOW)
    assert not key.exists()
    assert all(path.read_bytes() == content for path, content in before.items() if path != key)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-ca\.pem: cannot be read"):
        write_certificate(tmp_path, tmp_path / "no-ca.pem", tmp_path / "key", "server", now_ns=NOW)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_ca(tmp_path / "no" / "folder", now_ns=NOW)


# -- loading ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    ca_file, ca_key = write_ca(tmp_path, now_ns=NOW)
    return ca_file, *write_certificate(tmp_path, ca_file, ca_key, "server", now_ns=NOW)


def test_material_knows_who_we_are_and_until_when(files: tuple[Path, Path, Path]) -> None:
    material = load_material(*files, now_ns=NOW)
    assert material.identity.name == "server.global.nomad"
    assert material.not_after_ns == NOW + 365 * DAY
    assert material.read_again() == material


@pytest.mark.parametrize("which", [0, 1, 2], ids=["ca", "certificate", "key"])
@pytest.mark.parametrize("content", [None, b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_cannot_be_used_is_named(
    files: tuple[Path, Path, Path], which: int, content: bytes | None
) -> None:
    if content is None:
        files[which].unlink()
    else:
        files[which].write_bytes(content)
    with pytest.raises(ConfigError, match=str(files[which])):
        load_material(*files, now_ns=NOW)


def test_a_key_of_another_certificate_is_found_out(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    ca_key = tmp_path / "nomad-agent-ca-key.pem"
    _, other = write_certificate(tmp_path, files[0], ca_key, "client", now_ns=NOW)
    with pytest.raises(ConfigError, match="not the key of"):
        load_material(files[0], files[1], other, now_ns=NOW)


def test_a_certificate_of_another_ca_is_found_out(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other, _ = write_ca(tmp_path / "other", now_ns=NOW)
    with pytest.raises(ConfigError, match="not issued by the CA"):
        load_material(other, files[1], files[2], now_ns=NOW)


def test_a_certificate_out_of_its_time_is_found_out(files: tuple[Path, Path, Path]) -> None:
    with pytest.raises(ConfigError, match="expired at 20"):
        load_material(*files, now_ns=NOW + 366 * DAY)
    with pytest.raises(ConfigError, match="not valid before"):
        load_material(*files, now_ns=NOW - DAY)


def test_a_certificate_that_names_no_role_is_found_out(tmp_path: Path) -> None:
    ca_file, ca_key_file = write_ca(tmp_path, now_ns=NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.example.com")])
    ca_certificate = x509.load_pem_x509_certificate(ca_file.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca_certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(moment(NOW) - timedelta(days=1))
        .not_valid_after(moment(NOW) + timedelta(days=1))
        .sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]
    )
    leaf, leaf_key = tmp_path / "leaf.pem", tmp_path / "leaf-key.pem"
    leaf.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    leaf_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(ConfigError, match=rf"{leaf}.*www\.example\.com"):
        load_material(ca_file, leaf, leaf_key, now_ns=NOW)


def test_contexts_demand_certificates_and_modern_tls(files: tuple[Path, Path, Path]) -> None:
    material = load_material(*files, now_ns=NOW)
    server, client = rpc_server_context(material), rpc_client_context(material)
    assert server.verify_mode is client.verify_mode is ssl.CERT_REQUIRED
    assert server.minimum_version is client.minimum_version is ssl.TLSVersion.TLSv1_3
    assert client.check_hostname
    assert server.num_tickets == 0
    assert rpc_server_context(material, "tls12").minimum_version is ssl.TLSVersion.TLSv1_2
    api = https_server_context(material, verify_client=False)
    assert (api.verify_mode, api.minimum_version) == (ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2)
    assert https_server_context(material, verify_client=True).verify_mode is ssl.CERT_REQUIRED
    for old in ("tls10", "tls11", "ssl3", ""):
        with pytest.raises(ConfigError, match="tls_min_version"):
            minimum_version(old)


# -- tasks --------------------------------------------------------------------------------------------------------------

TASK = spiffe_id("global", "default", "web", "app", "server")


@pytest.fixture(scope="module")
def workload_ca() -> tuple[bytes, bytes]:
    return create_workload_ca("global.nomad", now_ns=NOW)


def csr(key: object, *, name: str = "server.global.nomad") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    wanted = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("spiffe://global.nomad/ns/default/job/bank/group/g/task/t")]
    )
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(wanted, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["ec", "ed25519", "rsa"],
)
def test_of_a_signing_request_only_the_key_is_used(
    workload_ca: tuple[bytes, bytes], key: ec.EllipticCurvePrivateKey
) -> None:
    pem = sign_task_certificate(
        *workload_ca, csr(key), TASK, ["server.app.web.default.nomad"], now_ns=NOW
    )
    certificate = x509.load_pem_x509_certificate(pem)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(workload_ca[0]))
    names = names_of(certificate)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [TASK]
    assert names.get_values_for_type(x509.DNSName) == ["server.app.web.default.nomad"]
    assert len(certificate.subject) == 0
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()
    assert uses_of(certificate) == {SERVER_AUTH, CLIENT_AUTH}
    assert certificate.not_valid_after_utc == moment(NOW + DAY)


def test_a_task_certificate_ends_with_its_authority_at_the_latest() -> None:
    authority = create_workload_ca("global.nomad", now_ns=NOW, days=2)
    request = csr(ec.generate_private_key(ec.SECP256R1()))
    pem = sign_task_certificate(*authority, request, TASK, ttl_s=10 * 86_400, now_ns=NOW)
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == moment(NOW + 2 * DAY)
    with pytest.raises(ConfigError, match="expired"):
        sign_task_certificate(*authority, request, TASK, now_ns=NOW + 3 * DAY)


def test_a_name_that_is_no_host_name_is_left_out(workload_ca: tuple[bytes, bytes]) -> None:
    request = csr(ec.generate_private_key(ec.SECP256R1()))
    names = ["*.app.web.default.nomad", "jöb.nomad", "a/b.nomad", "ok.nomad", "x..y", "a" * 64]
    pem = sign_task_certificate(*workload_ca, request, TASK, names, now_ns=NOW)
    found = names_of(x509.load_pem_x509_certificate(pem))
    assert found.get_values_for_type(x509.DNSName) == ["ok.nomad"]


@pytest.mark.parametrize(
    "request_pem",
    [
        b"",
        b"junk",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * 100_000,
        csr(ec.generate_private_key(ec.SECP192R1())),
        csr(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        csr(dsa.generate_private_key(2048)),
    ],
    ids=["empty", "junk", "bad der", "long", "weak curve", "weak rsa", "dsa"],
)
def test_a_signing_request_that_cannot_be_used_is_refused(
    workload_ca: tuple[bytes, bytes], request_pem: bytes
) -> None:
    with pytest.raises(InvalidRequestError):
        sign_task_certificate(*workload_ca, request_pem, TASK, now_ns=NOW)


def test_a_request_signed_by_another_key_is_refused(workload_ca: tuple[bytes, bytes]) -> None:
    good = x509.load_pem_x509_csr(csr(ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[der.index(b"server.global")] = ord("x")
    broken = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InvalidRequestError, match="own key"):
        sign_task_certificate(*workload_ca, broken, TASK, now_ns=NOW)


def test_the_uri_of_a_task() -> None:
    assert TASK == "spiffe://global.nomad/ns/default/job/web/group/app/task/server"
    assert spiffe_id("EU", "n", "a/b c", "..", "ü%") == (
        "spiffe://eu.nomad/ns/n/job/a%2Fb%20c/group/%2E%2E/task/%C3%BC%25"
    )


@given(
    one=st.tuples(*[st.text(min_size=1, max_size=8)] * 4),
    two=st.tuples(*[st.text(min_size=1, max_size=8)] * 4),
)
def test_two_tasks_never_have_one_uri(
    one: tuple[str, str, str, str], two: tuple[str, str, str, str]
) -> None:
    first, second = spiffe_id("global", *one), spiffe_id("global", *two)
    assert (first == second) == (one == two)
    assert first.count("/") == second.count("/") == 10
    assert first.isascii()
