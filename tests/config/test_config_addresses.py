from __future__ import annotations

from typing import Any

import pytest

from nomadpy.config.addresses import (
    advertise_address,
    is_loopback,
    join_host_port,
    listen_addresses,
    split_host_port,
)
from nomadpy.config.check import reserved_ports
from nomadpy.config.load import load_text
from nomadpy.config.model import Config
from nomadpy.errors import ConfigError

INTERFACES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["169.254.1.1", "10.1.2.3", "fe80::1%eth0"],
    "eth1": ["8.8.4.4"],
}


def config(text: str = "", **flags: Any) -> Config:
    return load_text('data_dir = "/x"\nserver { enabled = true }\n' + text, flags=flags)


def test_every_service_listens_on_the_bind_address_unless_it_has_its_own() -> None:
    made = config(
        'bind_addr = "10.0.0.1"\naddresses { http = "127.0.0.1 ::1 unix:///run/n.sock" }\nports { http = 80 }'
    )
    assert listen_addresses(made, "rpc") == ["10.0.0.1:4647"]
    assert listen_addresses(made, "http") == ["127.0.0.1:80", "[::1]:80", "unix:///run/n.sock"]


def test_templates_name_addresses_of_the_machine() -> None:
    made = config(
        'bind_addr = "{{ GetPrivateIP }}"\naddresses { rpc = "{{ GetInterfaceIP \\"eth1\\" }}" }'
    )
    assert listen_addresses(made, "http", INTERFACES) == ["10.1.2.3:4646"]
    assert listen_addresses(made, "rpc", INTERFACES) == ["8.8.4.4:4647"]
    with pytest.raises(ConfigError, match="found no address"):
        listen_addresses(made, "http", {})
    with pytest.raises(ConfigError, match="is not known"):
        listen_addresses(config('bind_addr = "{{ GetMoon }}"'), "http", INTERFACES)


@pytest.mark.parametrize("bad", ["300.1.1.1", "a b!", "-x", "1.2.3"])
def test_what_is_no_address_is_refused_with_its_place(bad: str) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.hcl:3: bind_addr: .* is no address or host name"
    ):
        listen_addresses(config(f'bind_addr = "{bad}"'), "http")


def test_what_is_advertised_is_certain() -> None:
    assert advertise_address(config('advertise { rpc = "10.9.9.9" }'), "rpc") == "10.9.9.9:4647"
    assert (
        advertise_address(config('advertise { rpc = "host.example:99" }'), "rpc")
        == "host.example:99"
    )
    assert advertise_address(config('bind_addr = "127.0.0.1"'), "http") == "127.0.0.1:4646"
    assert advertise_address(config('bind_addr = "0.0.0.0"'), "http", INTERFACES) == "10.1.2.3:4646"
    with pytest.raises(ConfigError, match=r"advertise \{ http = "):
        advertise_address(config(), "http", {"lo": ["127.0.0.1"]})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", 0)),
        ("a:1", ("a", 1)),
        ("[::1]:2", ("::1", 2)),
        ("[::1]", ("::1", 0)),
        ("::1", ("::1", 0)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
    ],
)
def test_host_and_port_come_apart_and_together(text: str, parts: tuple[str, int]) -> None:
    assert split_host_port(text) == parts
    if parts[1]:
        assert join_host_port(*parts) == text


@pytest.mark.parametrize("text", ["a:0", "a:x", "a:70000", "a:"])
def test_a_bad_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="has no port between 1 and 65535"):
        split_host_port(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_only_loopback_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_reserved_ports_are_a_list_of_ports_and_ranges() -> None:
    assert reserved_ports("22, 8000-8002,80") == [22, 80, 8000, 8001, 8002]
    assert reserved_ports("") == []
    with pytest.raises(ConfigError, match="is no port"):
        reserved_ports("a-b")
