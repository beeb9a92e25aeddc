"""Real daemons on loopback: certificates, configuration files, processes; used by the demo, the tests and the kit.

Nothing here is simulated: every node is its own process with its own data directory, and all speak mutual TLS.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from nomadpy.clock import SystemClock
from nomadpy.demo.client import ApiClient, ApiError, until
from nomadpy.pki.ca import write_ca, write_certificate

HOST = "127.0.0.1"
STOP_TIMEOUT_S = 15.0


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


class Daemon:
    """One node's process. It can be killed and started again on the same data."""

    def __init__(self, name: str, role: str, folder: Path, http: int, rpc: int) -> None:
        self.name = name
        self.role = role
        self.folder = folder
        self.http_port = http
        self.rpc_port = rpc
        self.config_file = folder / "agent.hcl"
        self.log_file = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        """host:port of its API."""
        return f"{HOST}:{self.http_port}"

    @property
    def pid(self) -> int:
        """The daemon's process id. Raises RuntimeError when it does not run."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.name} is not running; see {self.log_file}")
        return self.process.pid

    def start(self, *, env: dict[str, str] | None = None) -> None:
        """Start the process; its log goes on in the same file."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nomadpy", "agent", "-config", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, as a power cut would; returns when the process is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int | None:
        """SIGTERM and wait; SIGKILL when it does not end. Returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def log_text(self) -> str:
        """All it has logged."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")


class LocalCluster:
    """Servers and agents on this machine. A context manager: leaving it stops every process it started."""

    def __init__(
        self,
        folder: Path,
        *,
        servers: int = 3,
        clients: int = 3,
        docker_host: str = "",
        server_extra: str = "",
        client_extra: str = "",
    ) -> None:
        """docker_host: endpoint for the docker driver, "" the default one. *_extra: lines for the configuration."""
        self.folder = folder
        self._extra = {"server": server_extra, "client": client_extra}
        self._docker_host = docker_host
        self.certificates = folder / "certificates"
        ports = free_ports(2 * (servers + clients))
        self.servers: list[Daemon] = []
        self.clients: list[Daemon] = []
        for number in range(servers + clients):
            role = "server" if number < servers else "client"
            mine = self.servers if role == "server" else self.clients
            name = f"{role}-{len(mine) + 1}"
            home = folder / name
            mine.append(Daemon(name, role, home, ports[2 * number], ports[2 * number + 1]))

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- files --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the CA, the certificates of each role, and every node's configuration."""
        now_ns = SystemClock().now_ns()
        self.certificates.mkdir(parents=True, mode=0o700)
        ca, ca_key = write_ca(self.certificates, now_ns=now_ns)
        for role in ("server", "client", "cli"):
            write_certificate(self.certificates, ca, ca_key, role, now_ns=now_ns)
        for daemon in (*self.servers, *self.clients):
            daemon.folder.mkdir(parents=True)
            daemon.config_file.write_text(self.configuration(daemon), encoding="utf-8")

    def configuration(self, daemon: Daemon) -> str:
        """The node's configuration, in HCL as an operator would write it."""
        addresses = ", ".join(f'"{HOST}:{server.rpc_port}"' for server in self.servers)
        certificates = self.certificates
        if daemon.role == "server":
            role = (
                f"server {{\n  enabled          = true\n  bootstrap_expect = {len(self.servers)}\n"
                f"  retry_join       = [{addresses}]\n}}\n"
            )
        else:
            role = f"client {{\n  enabled = true\n  servers = [{addresses}]\n}}\n"
            role += 'plugin "raw_exec" {\n  config {\n    enabled = true\n  }\n}\n'
            endpoint = f'    endpoint = "{self._docker_host}"\n' if self._docker_host else ""
            role += (
                f'plugin "docker" {{\n  config {{\n{endpoint}'
                "    volumes {\n      enabled = true\n    }\n  }\n}\n"
            )
        return (
            f'name      = "{daemon.name}"\nregion    = "global"\ndatacenter = "dc1"\n'
            f'data_dir  = "{daemon.folder / "data"}"\nbind_addr = "{HOST}"\nlog_level = "INFO"\n'
            f"ports {{\n  http = {daemon.http_port}\n  rpc  = {daemon.rpc_port}\n}}\n"
            f'advertise {{\n  http = "{HOST}:{daemon.http_port}"\n'
            f'  rpc  = "{HOST}:{daemon.rpc_port}"\n}}\n'
            f"{role}"
            "tls {\n  http = true\n  rpc  = true\n  verify_https_client = true\n"
            f'  ca_file   = "{certificates / "nomad-agent-ca.pem"}"\n'
            f'  cert_file = "{certificates / f"global-{daemon.role}-nomad.pem"}"\n'
            f'  key_file  = "{certificates / f"global-{daemon.role}-nomad-key.pem"}"\n}}\n'
            f"{self._extra[daemon.role]}"
        )

    # -- processes ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every node."""
        for daemon in (*self.servers, *self.clients):
            daemon.start()

    def stop(self) -> None:
        """Stop every node that this cluster started; agents first, so that they can say goodbye."""
        for daemon in (*self.clients, *self.servers):
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.terminate()
        for daemon in (*self.clients, *self.servers):
            daemon.stop()

    # -- the API --------------------------------------------------------------------------------------------

    def api(self, daemon: Daemon) -> ApiClient:
        """A client of one node's API, with the cli certificate."""
        folder = self.certificates
        return ApiClient.with_certificates(
            daemon.http,
            folder / "nomad-agent-ca.pem",
            folder / "global-cli-nomad.pem",
            folder / "global-cli-nomad-key.pem",
        )

    def environment(self, daemon: Daemon) -> dict[str, str]:
        """What the command line needs to talk to a node."""
        folder = self.certificates
        return {
            "NOMAD_ADDR": f"https://{daemon.http}",
            "NOMAD_CACERT": str(folder / "nomad-agent-ca.pem"),
            "NOMAD_CLIENT_CERT": str(folder / "global-cli-nomad.pem"),
            "NOMAD_CLIENT_KEY": str(folder / "global-cli-nomad-key.pem"),
        }

    def running(self) -> list[Daemon]:
        """Nodes whose process lives."""
        return [
            d
            for d in (*self.servers, *self.clients)
            if d.process is not None and d.process.poll() is None
        ]

    def wait_leader(self, *, seconds: float = 20.0) -> Daemon:
        """The server that leads, as a live server tells."""

        def look() -> Daemon | None:
            for server in self.servers:
                if server not in self.running():
                    self._explain_death(server)
                    continue
                try:
                    address = self.api(server).get("/v1/status/leader")
                except ApiError:
                    continue
                for candidate in self.running():
                    if address == f"{HOST}:{candidate.rpc_port}":
                        return candidate
            return None

        found: Daemon = until(look, seconds=seconds, what="a leader")
        return found

    def _explain_death(self, daemon: Daemon) -> None:
        if daemon.process is not None and daemon.process.returncode not in (None, 0, -9):
            tail = "\n".join(daemon.log_text().splitlines()[-15:])
            raise RuntimeError(f"{daemon.name} ended by itself:\n{tail}")

    def wait_nodes(self, count: int, *, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The ready nodes, when there are `count` of them."""

        def look() -> list[dict[str, Any]] | None:
            for daemon in self.clients:
                self._explain_death(daemon)
            for server in self.running():
                if server.role == "server":
                    nodes = self.api(server).get("/v1/nodes")
                    ready = [n for n in nodes if n["Status"] == "ready"]
                    return ready if len(ready) >= count else None
            return None

        found: list[dict[str, Any]] = until(look, seconds=seconds, what=f"{count} ready nodes")
        return found
