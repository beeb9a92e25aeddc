"""`operator raft remove-peer`, `operator raft transfer-leadership`, `operator autopilot set-config`."""

from __future__ import annotations

from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import number, text
from nomadpy.cli.output import say

_SERVER = (
    text("peer-id", "The server's id, as `operator raft list-peers` shows it.", "id"),
    text("peer-address", "Its address instead.", "IP:port"),
)
_SWITCHES = {
    "cleanup-dead-servers": "CleanupDeadServers",
    "disable-upgrade-migration": "DisableUpgradeMigration",
}
_DURATIONS = {
    "last-contact-threshold": "LastContactThreshold",
    "server-stabilization-time": "ServerStabilizationTime",
}
_NUMBERS = {"max-trailing-logs": "MaxTrailingLogs", "min-quorum": "MinQuorum"}


@command(
    "operator raft remove-peer [options]",
    "Take a server out of the raft configuration, for good: it may join again only as a new one, with an empty raft "
    "directory. What it runs is not stopped.",
    flags=_SERVER,
)
def remove_peer(call: Call) -> int:
    """Remove."""
    query, shown = _server(call)
    call.client.delete("/v1/operator/raft/peer", query, doing="removing peer")
    say(f"Removed peer with {shown}")
    return 0


@command(
    "operator raft transfer-leadership [options]",
    "Hand leadership to another voting server.",
    flags=_SERVER,
)
def transfer(call: Call) -> int:
    """Transfer."""
    query, shown = _server(call)
    call.client.put(
        "/v1/operator/raft/transfer-leadership", None, query, doing="transferring leadership"
    )
    say(f"Leadership transferred to the server with {shown}")
    return 0


@command(
    "operator autopilot set-config [options]",
    "Change autopilot's settings; what is not named stays.",
    flags=(
        *(text(name, "true or false.", "true|false") for name in _SWITCHES),
        *(text(name, "A duration, such as 10s.", "duration") for name in _DURATIONS),
        number("max-trailing-logs", "A server further behind is not healthy.", "entries"),
        number("min-quorum", "No dead server is cleaned up when fewer would be left.", "servers"),
    ),
)
def set_autopilot(call: Call) -> int:
    """Read, change, write back if nobody else did meanwhile."""
    path = "/v1/operator/autopilot/configuration"
    config = call.client.get(path, doing="querying autopilot configuration")
    options = call.options
    for flag, key in _SWITCHES.items():
        if flag in options.given:
            word = options.text(flag).lower()
            if word not in ("true", "false"):
                raise UsageError(f'-{flag} "{word}" is neither true nor false')
            config[key] = word == "true"
    for flag, key in _DURATIONS.items():
        if flag in options.given:
            config[key] = options.text(flag)
    for flag, key in _NUMBERS.items():
        if (value := options.number(flag)) is not None:
            config[key] = value
    query = {"cas": config["ModifyIndex"]}
    if not call.client.put(path, config, query, doing="updating autopilot configuration"):
        raise CliError(
            "The configuration was changed by someone else meanwhile; nothing was done. Try again."
        )
    say("Configuration updated!")
    return 0


def _server(call: Call) -> tuple[dict[str, object], str]:
    server_id, address = call.options.text("peer-id"), call.options.text("peer-address")
    if bool(server_id) == bool(address):
        raise UsageError("Name one server, by -peer-id or by -peer-address")
    if server_id:
        return {"id": server_id}, f"id {server_id}"
    return {"address": address}, f"address {address}"
