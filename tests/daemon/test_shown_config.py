"""What /v1/agent/self shows of the configuration, and that no secret is part of it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nomadpy.config.load import load_text
from nomadpy.daemon.shown import REDACTED, shown_config, without_secrets

SECRETS = """
name = "one"
data_dir = "/var/lib/here"
bind_addr = "127.0.0.1"
server {
  enabled = true
  bootstrap_expect = 1
  encrypt = "SECRET-gossip"
}
client {
  enabled = true
  servers = ["10.0.0.2"]
  options {
    "docker.auth.password" = "SECRET-option"
    "driver.raw_exec.enable" = "1"
  }
  meta {
    rack = "r1"
    api_token = "SECRET-meta"
  }
}
acl {
  replication_token = "SECRET-replication"
  token_max_expiration_ttl = "2h"
}
tls {
  ca_file = "/etc/ca.pem"
  cert_file = "/etc/cert.pem"
  key_file = "/etc/SECRET-key.pem"
}
telemetry {
  circonus_api_token = "SECRET-circonus"
}
consul "default" {
  token = "SECRET-consul"
}
vault "default" {
  token = "SECRET-vault"
}
http_api_response_headers {
  X-Frame-Options = "DENY"
  X-Api-Key = "SECRET-header"
}
plugin "docker" {
  args = ["--password=SECRET-argument"]
  config {
    endpoint = "tcp://user:SECRET-url@10.0.0.9:2375"
    auth {
      config = "/etc/SECRET-auth.json"
      helper = "SECRET-helper"
    }
    tls {
      key = "/etc/SECRET-plugin-key.pem"
    }
    volumes {
      enabled = true
    }
  }
}
"""


def shown(text: str, *, dev: bool = False) -> dict[str, Any]:
    return shown_config(load_text(text, dev=dev), "127.0.0.1:4646", "127.0.0.1:4647")


def test_no_secret_of_any_kind_is_shown() -> None:
    text = json.dumps(shown(SECRETS))
    assert "SECRET" not in text
    assert REDACTED in text


def test_what_is_no_secret_is_shown() -> None:
    found = shown(SECRETS)
    assert found["Client"]["Options"]["driver.raw_exec.enable"] == "1"
    assert found["Client"]["Meta"]["rack"] == "r1"
    assert found["HTTPAPIResponseHeaders"]["X-Frame-Options"] == "DENY"
    assert found["TLSConfig"]["CAFile"] == "/etc/ca.pem"
    docker = next(p for p in found["Plugins"] if p["Name"] == "docker")
    assert docker["Config"]["volumes"] == {"enabled": True}
    assert docker["Config"]["endpoint"] == f"tcp://{REDACTED}@10.0.0.9:2375"
    assert found["ConfigPaths"] == ["config.hcl"]


def test_the_first_key_is_acl_and_its_unset_limits_are_zero() -> None:
    plain = shown('data_dir = "/tmp/x"\n', dev=True)
    assert next(iter(plain)) == "ACL"
    assert plain["ACL"]["TokenMinExpirationTTL"] == 0
    assert plain["ACL"]["TokenMaxExpirationTTL"] == 0
    assert plain["ACL"]["TokenTTL"] == 30_000_000_000
    assert shown(SECRETS)["ACL"]["TokenMaxExpirationTTL"] == 7_200_000_000_000


def test_names_and_kinds_are_those_of_nomad() -> None:
    found = shown('data_dir = "/tmp/x"\n', dev=True)
    assert found["Client"]["GCInterval"] == 600_000_000_000
    assert found["Client"]["CNIPath"] == "/opt/cni/bin:/usr/libexec/cni"
    assert found["Client"]["MaxKillTimeout"] == "30s"
    assert found["Server"]["EvalGCThreshold"] == "1h0m0s"
    assert found["Limits"]["HTTPSHandshakeTimeout"] == "5s"
    assert found["Telemetry"]["PrometheusMetrics"] is True
    assert found["AdvertiseAddrs"] == {
        "HTTP": "127.0.0.1:4646",
        "RPC": "127.0.0.1:4647",
        "Serf": "127.0.0.1:4648",
    }
    json.dumps(found)


_WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=5)


@given(
    _WORD,
    st.sampled_from(["token", "password", "Secret", "api_key", "AccessKey", "auth", "encrypt"]),
    st.recursive(
        st.just("SECRET"),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_WORD, inner, max_size=2),
        max_leaves=4,
    ),
)
def test_nothing_under_a_secret_name_is_shown_however_deep(
    prefix: str, name: str, value: Any
) -> None:
    tree = {"outer": [{f"{prefix}_{name}": value}], "enabled": True, "count": 3}
    found = without_secrets(tree)
    assert "SECRET" not in json.dumps(found)
    assert found["enabled"] is True
    assert found["count"] == 3
