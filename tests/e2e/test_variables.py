"""Variables on three real servers whose key-encryption key is a file: through a killed leader, on disk, without the file."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nomadpy.demo.client import ApiError, until
from nomadpy.demo.cluster import Daemon, LocalCluster

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

SECRET = "correct-horse-battery-staple"
KEK = bytes(range(1, 33))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three servers, no agent; every server has the same file."""
    folder = tmp_path_factory.mktemp("cluster")
    key = folder / "root.key"
    key.write_bytes(base64.b64encode(KEK) + b"\n")
    key.chmod(0o600)
    extra = f'keyring "file" {{\n  active = true\n  path = "{key}"\n}}\n'
    with LocalCluster(folder / "nodes", servers=3, clients=0, server_extra=extra) as made:
        made.prepare()
        made.start()
        until(lambda: written(made, "ready", "yes"), seconds=30, what="the first write")
        yield made


def written(cluster: LocalCluster, path: str, value: str) -> bool:
    """Whether the leader took a write."""
    try:
        api = cluster.api(cluster.wait_leader())
        return api.send("PUT", f"/v1/var/{path}", {"Items": {"value": value}}).status == 200
    except ApiError:
        return False


def command(cluster: LocalCluster, server: Daemon, *line: str) -> subprocess.Popen[str]:
    """Start `nomadpy LINE` against a server."""
    return subprocess.Popen(
        [sys.executable, "-m", "nomadpy", *line],
        env={**os.environ, **cluster.environment(server)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_lock_and_all_variables_outlive_the_leader(cluster: LocalCluster, tmp_path: Path) -> None:
    leader = cluster.wait_leader()
    (other, *_) = [s for s in cluster.servers if s is not leader]
    assert written(cluster, "app/config", SECRET)
    # The command ends when the test says so, well after a new leader is there.
    script = (
        f"echo held > {tmp_path}/held; until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo over"
    )
    holder = command(cluster, other, "var", "lock", "-ttl=10s", "-delay=1s", "locks/one", script)
    until(lambda: (tmp_path / "held").exists(), seconds=20, what="the lock")
    leader.kill()
    new = cluster.wait_leader(seconds=30)
    api = cluster.api(new)
    assert api.get("/v1/var/app/config")["Items"] == {"value": SECRET}
    assert api.send("PUT", "/v1/var/locks/one", {"Items": {"a": "b"}}).status == 409
    (tmp_path / "end").touch()
    output, _ = holder.communicate(timeout=30)
    assert (holder.returncode, output) == (0, "over\n")
    assert api.send("PUT", "/v1/var/locks/one", {"Items": {"a": "b"}}).status == 200
    leader.start()
    back = cluster.api(leader)
    until(
        lambda: _reads(back.get, "/v1/var/app/config?stale") == {"value": SECRET},
        seconds=30,
        what="the old leader to catch up",
    )


def test_no_disk_holds_a_secret_or_a_key(cluster: LocalCluster) -> None:
    assert written(cluster, "app/config", SECRET)
    for server in cluster.servers:
        files = [f for f in (server.folder / "data").rglob("*") if f.is_file()]
        held = b"".join(f.read_bytes() for f in files) + server.log_text().encode()
        assert b"app/config" in held  # the right files were read
        for secret in (SECRET.encode(), b"PRIVATE KEY", KEK, base64.b64encode(KEK)):
            assert secret not in held


def test_a_server_that_lost_the_file_does_not_start(cluster: LocalCluster) -> None:
    key = cluster.folder.parent / "root.key"
    (victim, *_) = [s for s in cluster.servers if s is not cluster.wait_leader()]
    victim.stop()
    key.rename(key.with_suffix(".away"))
    try:
        victim.start()
        assert victim.process is not None
        assert victim.process.wait(20) != 0
        assert f"the key-encryption key {key} does not exist" in victim.log_text()
    finally:
        key.with_suffix(".away").rename(key)
    victim.start()
    api = cluster.api(victim)
    until(
        lambda: _reads(api.get, "/v1/var/app/config") == {"value": SECRET},
        seconds=30,
        what="the server to be back",
    )


def _reads(get: object, path: str) -> object:
    try:
        return get(path)["Items"]  # type: ignore[operator]
    except (ApiError, TypeError):
        return None
