"""Workload identities and root keys: the claims and key set of the real Nomad, made with our keys."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
import pytest

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import ConfigError, PermissionDeniedError
from nomadpy.models.allocation import Allocation
from nomadpy.models.root_key import RootKey
from nomadpy.models.task_blocks import WorkloadIdentity
from nomadpy.pki.authority import load_ca
from nomadpy.pki.identity import SigningKey, jwks, sign_identity, signing_key, verify_identity
from nomadpy.pki.keys import create_root_key, with_new_id

NOW = 1_800_000_000 * 10**9
SECOND = 10**9
ALLOC = Allocation(id="8c0bc1ac", namespace="prod", job_id="web", task_group="app")
TOKEN_ID = "2f9b7ddf-e53b-dc15-d358-0209961558e3"


class FixedClock:
    def now_ns(self) -> int:
        return NOW

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def key() -> RootKey:
    return create_root_key("global", SeededEntropy(1), FixedClock())


def signed(key: RootKey, **identity: object) -> tuple[str, int]:
    result = sign_identity(
        key,
        region="global",
        alloc=ALLOC,
        task="server",
        identity=WorkloadIdentity(**identity),  # type: ignore[arg-type]
        now_ns=NOW,
        token_id=TOKEN_ID,
    )
    return result.jwt, result.expires_ns


def claims_of(token: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_a_token_has_the_header_and_claims_of_nomad(key: RootKey) -> None:
    token, expires = signed(key)
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": key.key_id, "typ": "JWT"}
    assert claims_of(token) == {
        "aud": "nomadproject.io",
        "iat": NOW // SECOND,
        "jti": TOKEN_ID,
        "nbf": NOW // SECOND,
        "nomad_allocation_id": "8c0bc1ac",
        "nomad_job_id": "web",
        "nomad_namespace": "prod",
        "nomad_task": "server",
        "sub": "global:prod:web:app:server:default",
    }
    assert expires == 0


def test_an_identity_block_decides_name_audience_and_end(key: RootKey) -> None:
    token, expires = signed(key, name="vault", audience=["a", "b"], ttl=90 * SECOND)
    claims = claims_of(token)
    assert claims["aud"] == ["a", "b"]
    assert claims["sub"] == "global:prod:web:app:server:vault"
    assert claims["exp"] == NOW // SECOND + 90
    assert expires == NOW + 90 * SECOND


def test_a_services_identity_names_the_service_and_not_the_task(key: RootKey) -> None:
    claims = claims_of(signed(key, name="consul", service_name="db")[0])
    assert claims["nomad_service"] == "db"
    assert "nomad_task" not in claims


def test_extra_claims_do_not_replace_ours(key: RootKey) -> None:
    token = sign_identity(
        key,
        region="global",
        alloc=ALLOC,
        task="server",
        identity=WorkloadIdentity(),
        now_ns=NOW,
        token_id=TOKEN_ID,
        issuer="https://nomad.example",
        extra={"sub": "forged", "unique_id": "x"},
    ).jwt
    claims = claims_of(token)
    assert claims["sub"] == "global:prod:web:app:server:default"
    assert (claims["unique_id"], claims["iss"]) == ("x", "https://nomad.example")


def test_the_key_set_has_the_members_that_nomad_publishes(key: RootKey) -> None:
    recorded = Path(__file__).parent / "jwks_recorded.json"
    (reference,) = json.loads(recorded.read_text())["keys"]
    (ours,) = jwks([key])["keys"]
    assert set(ours) == set(reference)
    assert {name: ours[name] for name in ("use", "kty", "alg", "e")} == {
        name: reference[name] for name in ("use", "kty", "alg", "e")
    }
    assert len(ours["n"]) == len(reference["n"])
    assert ours["kid"] == key.key_id


def test_a_stranger_can_check_a_token_with_the_key_set_alone(key: RootKey) -> None:
    token, _ = signed(key)
    other = with_new_id(key, SeededEntropy(9))
    keys = jwt.PyJWKSet.from_dict(jwks([other, key]))
    found = keys[jwt.get_unverified_header(token)["kid"]]
    options = {"verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(
        token, found.key, algorithms=["RS256"], audience="nomadproject.io", options=options
    )
    assert claims["nomad_job_id"] == "web"


def test_a_token_holds_from_its_making_to_its_end(key: RootKey) -> None:
    token, _ = signed(key, ttl=600 * SECOND)
    for seconds in (-30, 0, 599, 650):
        assert verify_identity(token, [key], now_ns=NOW + seconds * SECOND)["sub"]
    for seconds in (-120, 661, 10**6):
        with pytest.raises(PermissionDeniedError):
            verify_identity(token, [key], now_ns=NOW + seconds * SECOND)


def test_forged_tokens_are_refused(key: RootKey) -> None:
    token, _ = signed(key)
    header, payload, signature = token.split(".")
    stranger = SigningKey.create(key.key_id)
    public = signing_key(key).public_jwk()
    for forged in (
        "",
        "a.b.c",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload[:-2]}AA.{signature}",
        stranger.sign(claims_of(token)),
        jwt.encode(claims_of(token), "", algorithm="none", headers={"kid": key.key_id}),
        jwt.encode(claims_of(token), public["n"], algorithm="HS256", headers={"kid": key.key_id}),
        SigningKey.create("unknown").sign(claims_of(token)),
        signed(key, audience=["elsewhere"])[0],
    ):
        with pytest.raises(PermissionDeniedError):
            verify_identity(forged, [key], now_ns=NOW)


def test_a_root_key_has_its_own_authority_and_survives_storage(key: RootKey) -> None:
    certificate, _ = load_ca(key.ca_certificate_pem, key.ca_key_pem)
    assert certificate.subject.rfc4514_string() == "CN=Nomad workload CA global.nomad"
    assert SigningKey.load(key.key_id, key.signing_key_pem).pem() == key.signing_key_pem
    assert (key.state, key.create_time) == ("active", NOW)


def test_no_secret_shows_in_a_repr(key: RootKey) -> None:
    shown = f"{key!r} {key} {signing_key(key)!r}"
    assert "PRIVATE" not in shown
    assert "MII" not in shown


def test_the_id_of_a_root_key_follows_the_seed(key: RootKey) -> None:
    assert key.key_id == SeededEntropy(1).uuid()


@pytest.mark.parametrize("pem", [b"", b"junk"])
def test_a_root_key_that_cannot_sign_is_named(pem: bytes) -> None:
    with pytest.raises(ConfigError, match="root key k1"):
        SigningKey.load("k1", pem)


def test_signing_a_token_takes_less_than_ten_milliseconds_of_cpu(key: RootKey) -> None:
    signed(key)
    before = time.process_time()
    for _ in range(200):
        signed(key)
    assert (time.process_time() - before) / 200 < 0.01
