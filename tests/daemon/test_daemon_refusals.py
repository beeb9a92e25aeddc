"""What a node refuses to start with, before it has opened or written anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomadpy.config.load import load_text
from nomadpy.daemon.process import Node
from nomadpy.errors import ConfigError

SERVER = 'server {\n  enabled = true\n  bootstrap_expect = 1\n}\nbind_addr = "127.0.0.1"\n'


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Node(load_text(text))
    return caught.value.message


@pytest.mark.real_time
async def test_acl_enabled_is_refused_where_it_was_said(tmp_path: Path) -> None:
    home = tmp_path / "home"
    text = refusal(f'{SERVER}data_dir = "{home}"\nacl {{\n  enabled = true\n}}\n')
    assert text.startswith("config.hcl:8:")
    assert "acl.enabled" in text
    assert not home.exists()


@pytest.mark.real_time
@pytest.mark.parametrize("setting", ['bind_addr = "0.0.0.0"', 'addresses {\n  rpc = "10.0.0.5"\n}'])
async def test_an_open_address_without_tls_names_the_two_commands(
    tmp_path: Path, setting: str
) -> None:
    home = tmp_path / "home"
    server = SERVER if "bind_addr" not in setting else SERVER.rpartition("bind_addr")[0]
    text = refusal(f'{server}data_dir = "{home}"\n{setting}\n')
    assert "nomadpy tls ca create" in text
    assert "nomadpy tls cert create -server -region global" in text
    assert "tls {" in text
    assert not home.exists()


@pytest.mark.real_time
async def test_a_data_dir_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal(f'{SERVER}data_dir = "{tmp_path}/file/home"\n')
    assert f"{tmp_path}/file/home" in text
    assert "Not a directory" in text


@pytest.mark.parametrize(
    ("data_dir", "reason"), [("", 'Must specify "data_dir"'), ("relative/home", "absolute path")]
)
def test_a_data_dir_that_is_missing_or_relative_is_refused(data_dir: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_text(f'{SERVER}data_dir = "{data_dir}"\n')


@pytest.mark.real_time
async def test_a_client_without_servers_is_refused(tmp_path: Path) -> None:
    text = refusal(
        f'bind_addr = "127.0.0.1"\ndata_dir = "{tmp_path}"\nclient {{\n  enabled = true\n}}\n'
    )
    assert "client { servers = [...] }" in text


@pytest.mark.real_time
async def test_tls_without_its_files_is_refused(tmp_path: Path) -> None:
    text = refusal(
        f'{SERVER}data_dir = "{tmp_path}"\ntls {{\n  rpc = true\n  ca_file = "/nowhere/ca.pem"\n}}\n'
    )
    assert "tls.cert_file is missing" in text
    assert "tls.key_file is missing" in text
