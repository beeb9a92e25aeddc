from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.config.load import DEV, check_tls, load, load_text, network_interfaces, unused_settings
from nomadpy.config.model import Config, Settings
from nomadpy.errors import ConfigError

SAMPLES = pathlib.Path(__file__).parents[2] / "config"
SERVER = 'data_dir = "/srv/nomadpy"\nbind_addr = "127.0.0.1"\nserver { enabled = true }\n'


def refused(text: str, name: str = "a.hcl", **flags: Any) -> str:
    with pytest.raises(ConfigError) as fault:
        load_text(text, name=name, flags=flags)
    return fault.value.message


@pytest.mark.parametrize("name", ["server.hcl", "client.hcl", "server.json"])
def test_every_sample_loads_and_is_protected(name: str) -> None:
    config = load([str(SAMPLES / name)], {})
    check_tls(config)
    assert unused_settings(config) == []
    assert config.server.enabled == name.startswith("server")
    assert config.client.enabled == (name == "client.hcl")


def test_the_dev_sample_is_laid_over_the_dev_profile() -> None:
    config = load([str(SAMPLES / "dev.hcl")], {}, dev=True)
    assert (config.name, config.bind_addr, config.server.bootstrap_expect) == (
        "dev",
        "127.0.0.1",
        1,
    )
    assert (config.client.enabled, config.server.enabled, config.dev_mode) == (True, True, True)
    assert config.client.meta == {"rack": "r1"}
    assert config.client.gc_disk_usage_threshold == 99
    assert config.plugins["raw_exec"] == {"enabled": True}
    assert pathlib.Path(config.data_dir).is_dir()
    pathlib.Path(config.data_dir).rmdir()
    assert check_tls(config) == []


def test_the_sample_client_is_read_in_full() -> None:
    client = load([str(SAMPLES / "client.hcl")], {}).client
    assert client.meta == {"rack": "r1", "ssd": "true"}
    assert (client.reserved.cpu, client.reserved.reserved_ports) == (500, "22")
    assert (client.gc_max_allocs, client.gc_disk_usage_threshold) == (50, 80)
    assert client.alloc_dir == "/var/lib/nomadpy/alloc"


def test_later_files_are_laid_over_earlier_ones_and_flags_over_files(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "10-base.hcl").write_text(
        SERVER + 'region = "a"\nserver { retry_join = ["x"] heartbeat_grace = "5s" }'
    )
    (tmp_path / "20-more.json").write_text(
        '{"region": "b", "datacenter": "d", "server": [{"retry_join": ["y", "x"]}]}'
    )
    (tmp_path / "ignored.txt").write_text("this is not read")
    (tmp_path / ".hidden.hcl").write_text("nor this {")
    (tmp_path / "old.hcl~").write_text("nor this {")
    (tmp_path / "folder.hcl").mkdir()
    config = load(
        [str(tmp_path)], {"dc": "e", "retry-join": ["z"], "node_class": "big", "region": None}
    )
    assert (config.region, config.datacenter, config.client.node_class) == ("b", "e", "big")
    assert config.server.heartbeat_grace == 5 * 10**9
    assert config.server.server_join.retry_join == ["z", "x", "y"]
    assert config.origins["region"].endswith("20-more.json:1")
    assert config.origins["datacenter"] == "-dc"


@pytest.mark.parametrize(
    "block",
    [
        {"enabled": True, "bootstrap_expect": 3},
        [{"enabled": True, "bootstrap_expect": 3}],
        [{"enabled": True}, {"bootstrap_expect": 3}],
        {"ENABLED": "true", "Bootstrap_Expect": "3"},
    ],
)
def test_a_json_block_may_be_an_object_or_a_list_and_keys_have_any_case(block: Any) -> None:
    config = load_text(json.dumps({"Data_Dir": "/x", "SERVER": block}), name="a.json")
    assert (config.server.enabled, config.server.bootstrap_expect) == (True, 3)


@pytest.mark.parametrize(
    "text",
    [
        'plugin "docker" { config { volumes { enabled = true } } }',
        "plugin = { docker = { config = { volumes = { enabled = true } } } }",
        "plugin = [{ docker = [{ config = [{ volumes = { enabled = true } }] }] }]",
    ],
)
def test_labelled_blocks_have_three_spellings(text: str) -> None:
    assert load_text(SERVER + text).plugins == {"docker": {"volumes": {"enabled": True}}}


def test_what_is_left_out_has_nomads_defaults() -> None:
    config = load_text(SERVER)
    assert (config.region, config.datacenter, config.ports.http, config.log_level) == (
        "global",
        "dc1",
        4646,
        "INFO",
    )
    assert config.server.heartbeat_grace == 10 * 10**9
    assert config.server.num_schedulers >= 1
    assert config.server.authoritative_region == "global"
    assert config.name
    assert config.client.state_dir == "/srv/nomadpy/client"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (SERVER + "\nprot { }", ["a.hcl:5,1", "unknown setting 'prot'", 'Did you mean "ports"?']),
        (SERVER + "server { bootstrap_expct = 1 }", ["a.hcl:4,10", "in server", 'Did you mean "bootstrap_expect"?']),
        (SERVER + 'ports { http = "many" }', ["a.hcl:4,16", "ports.http must be a whole number"]),
        (SERVER + "ports { http = 1.5 }", ["ports.http must be a whole number"]),
        (SERVER + "leave_on_interrupt = yes", ["leave_on_interrupt must be true or false"]),
        (SERVER + "datacenter = dc2", ["the name 'dc2' has no meaning here", '"dc2"']),
        (SERVER + 'server { heartbeat_grace = "10" }', ['time: missing unit in duration "10"']),
        (SERVER + "server { heartbeat_grace = 10 }", ["a unit is missing"]),
        (SERVER + 'server { task_certificate_ttl = "1s" }', ["must be at least 10s"]),
        (SERVER + "acl = true", ["'acl' is a block, not a setting"]),
        (SERVER + "region { }", ["region is a setting, not a block"]),
        (SERVER + "plugin { config { } }", ["the block 'plugin' needs a label"]),
        (SERVER + 'server "x" { }', ["the block 'server' takes no label"]),
        (SERVER + 'client { meta { a = ["x", "y"] } }', ["client.meta.a must be text"]),
        ('data_dir = "/x"', ["Must specify either server, client or dev mode for the agent"]),
        ("server { enabled = true }", ['Must specify "data_dir"']),
        ('data_dir = "x"\nserver { enabled = true }', ["a.hcl:1: data_dir must be given as an absolute path"]),
        ('data_dir = "/x"\nclient { enabled = true }\nserver { bootstrap_expect = 3 }', ["a.hcl:3: bootstrap_expect requires server mode"]),
        (SERVER + 'region = "a/b"', ["region must be a name without slashes"]),
        (SERVER + 'datacenter = "*"', ["datacenter must be a name"]),
        (SERVER + 'log_level = "LOUD"', ["a.hcl:4: log_level 'LOUD' is not one of"]),
        (SERVER + "ports { http = 5 rpc = 5 }", ["ports.http and ports.rpc are both 5"]),
        (SERVER + "ports { http = 70000 }", ["between 0 and 65535, not 70000"]),
        (SERVER + 'client { reserved { reserved_ports = "22,90-80,x" } }', ["'90-80' is not within", "'x' is no port"]),
        (SERVER + 'client { host_volume "v" { path = "x" } }', ["client.host_volume.v needs an absolute path"]),
        (SERVER + "server { raft_multiplier = 11 }", ["server.raft_multiplier must be between 1 and 10"]),
        (SERVER + 'server { enabled_schedulers = ["cron"] }', ["names 'cron'"]),
        (SERVER + "server { job_default_priority = 101 }", ["must be between 1 and job_max_priority (100)"]),
    ],
)  # fmt: skip
def test_a_bad_setting_says_where_it_stands_and_what_to_do(text: str, parts: list[str]) -> None:
    message = refused(text)
    for part in parts:
        assert part in message


def test_all_faults_are_reported_at_once() -> None:
    message = refused('log_level = "LOUD"\nserver { raft_multiplier = 0 }')
    assert message.count("\n  - ") == 4


def test_json_faults_have_a_place_too() -> None:
    message = refused('{\n  "server": {"enabled": true,\n   "nope": 1}}', name="a.json")
    assert message.startswith("a.json:3,4: unknown setting 'nope' in server")


def test_flags_are_checked_like_files() -> None:
    assert refused(SERVER, bootstrap_expect="three").startswith(
        "-bootstrap-expect must be a whole number"
    )
    assert refused(SERVER, meta=["rack"]).startswith("-meta must be key=value")
    assert 'Did you mean "region"?' in refused(SERVER, regionn="x")
    config = load_text(
        SERVER, flags={"meta": ("a=1", "b=c=d"), "servers": "x,y", "server.event_buffer_size": 7}
    )
    assert config.client.meta == {"a": "1", "b": "c=d"}
    assert config.client.servers == ["x", "y"]
    assert config.server.event_buffer_size == 7
    assert "there is no such setting" in refused(SERVER, **{"server.nope": 1})


def test_files_that_cannot_be_read_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="there is no file or folder"):
        load([str(tmp_path / "none.hcl")], {})
    (tmp_path / "a.hcl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load([str(tmp_path / "a.hcl")], {})


@pytest.mark.parametrize(
    "text",
    [
        'consul { address = "x" }',
        'consul "default" { address = "x" }',
        "acl { enabled = true }",
        'audit { enabled = true\n sink "a" { type = "file" } }',
        'server { encrypt = "k" }',
        'keyring "aead" { active = true }',
        'keyring "file" {\n active = true\n path = "/etc/nomadpy/root.key"\n}',
        'telemetry { statsd_address = "x" }',
        'plugin_dir = "/p"',
    ],
)
def test_settings_without_effect_are_accepted(text: str) -> None:
    load_text(SERVER + text)


def test_settings_without_effect_are_listed_with_place_and_reason() -> None:
    config = load_text(
        SERVER + 'acl { enabled = true }\nenable_syslog = true\nserver { redundancy_zone = "a" }'
    )
    assert [line.split(" has no effect")[0] for line in unused_settings(config)] == [
        "config.hcl:4: acl.enabled",
        "config.hcl:5: enable_syslog",
        "config.hcl:6: server.redundancy_zone",
    ]


def tls(text: str, **flags: Any) -> list[str]:
    return check_tls(load_text(text, flags=flags))


CERTIFICATES = (
    'tls { rpc = true\n http = true\n ca_file = "/c"\n cert_file = "/d"\n key_file = "/e" }\n'
)


@pytest.mark.parametrize(
    "text",
    [
        SERVER,
        SERVER + 'addresses { http = "localhost unix:///run/nomadpy.sock" rpc = "::1" }',
        SERVER + 'bind_addr = "0.0.0.0"\n' + CERTIFICATES,
        SERVER
        + 'addresses { rpc = "10.0.0.1" }\n'
        + CERTIFICATES.replace("http = true", "http = false"),
    ],
)
def test_what_only_this_machine_reaches_needs_no_certificates(text: str) -> None:
    tls(text)


@pytest.mark.parametrize(
    "text",
    [
        SERVER + 'bind_addr = "0.0.0.0"',
        SERVER + 'addresses { http = "10.0.0.1" }',
        SERVER + 'addresses { rpc = "::" }',
        SERVER + 'bind_addr = "{{ GetPrivateIP }}"',
        SERVER + 'bind_addr = "0.0.0.0"\n' + CERTIFICATES.replace("rpc = true", "rpc = false"),
        'data_dir = "/x"\nserver { enabled = true }',
    ],
)
def test_what_others_reach_is_refused_without_certificates_and_says_how_to_make_them(
    text: str,
) -> None:
    with pytest.raises(ConfigError) as fault:
        tls(text)
    assert "nomadpy tls ca create" in fault.value.message
    assert "nomadpy tls cert create -server -region global" in fault.value.message


def test_tls_without_its_files_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tls\.key_file is missing"):
        tls(SERVER + 'tls { rpc = true\n ca_file = "/c"\n cert_file = "/d" }')


def test_the_dev_profile_knows_only_settings_that_exist() -> None:
    def walk(settings: dict[str, Any], kind: Any) -> None:
        for name, value in settings.items():
            assert name in kind.__struct_fields__
            inner = getattr(kind(), name)
            if isinstance(value, dict) and hasattr(inner, "__struct_fields__"):
                walk(value, type(inner))

    walk(DEV, Settings)


def test_the_machine_has_a_loopback_address() -> None:
    assert any("127.0.0.1" in addresses for addresses in network_interfaces().values())


@given(st.text(alphabet='abcserv{}[]="1.\n, :$', max_size=60))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        config = load_text(text)
    except ConfigError:
        return
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "says not where"),
        (['local_storage { path = "here" }'], "not an absolute path"),
        (['interval = "1ms"', 'local_storage { path = "/a" }'], "less than a second"),
        (["retain = 0", 'local_storage { path = "/a" }'], "at least 1"),
        (['prefix = "a/b"', 'local_storage { path = "/a" }'], "cannot begin"),
    ],
)
def test_a_snapshot_agent_that_could_not_work_is_refused_at_the_start(
    lines: list[str], fault: str
) -> None:
    block = "\n".join(["snapshot_agent {", *lines, "}"])
    assert fault in refused(f"{SERVER}{block}\n")
