"""`agent`: read the flags and hand them to the daemon."""

from __future__ import annotations

import gc

from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import CliError
from nomadpy.cli.flags import Flag, many, number, text
from nomadpy.errors import NomadError

FLAGS = (
    Flag("acl-enabled", "Accepted as the setting acl.enabled."),
    text("encrypt", "Accepted and unused: servers speak mutual TLS instead of gossip.", "key"),
    text("preferred-address-family", "ipv4 or ipv6.", "family"),
    Flag("rejoin", "Join again after having left."),
    text("alloc-dir", "Where allocations live; DATA/alloc without the flag.", "path"),
    text("bind", "The address of all services.", "addr"),
    number("bootstrap-expect", "How many servers form the cluster at its first start.", "num"),
    Flag("client", "Run a client."),
    many(
        "config",
        "A configuration file, or a folder of them; later ones win, flags win over all.",
        "path",
    ),
    text("data-dir", "Where the agent keeps what must survive it; absolute.", "path"),
    text("dc", "The datacenter; dc1 without the flag.", "datacenter"),
    Flag("dev", "Server and client in one, on loopback, nothing kept: to try things out."),
    many("join", "A server to join at start.", "address"),
    Flag("log-json", "Log lines of JSON."),
    text("log-level", "trace, debug, info, warn or error.", "level"),
    many("meta", "key=value of the client.", "key=value"),
    text("network-interface", "The interface whose address the client tells.", "name"),
    number("network-speed", "Its speed in MBit/s.", "mbits"),
    text("node", "The node's name; the host's without the flag.", "name"),
    text("node-class", "The client's class.", "class"),
    text("node-pool", "The client's node pool.", "pool"),
    text("plugin-dir", "Accepted and unused: drivers are built in.", "path"),
    text("region", "The region; global without the flag.", "region"),
    text("retry-interval", "Pause between two attempts to join.", "duration"),
    many("retry-join", "A server to join, tried until it answers.", "address"),
    number("retry-max", "How many attempts to join; 0 is for ever.", "num"),
    Flag("server", "Run a server."),
    many("servers", "A server (or several, with commas) the client talks to.", "address"),
    text("state-dir", "Where the client keeps its state; DATA/client without the flag.", "path"),
)


@command(
    "agent [options]",
    "Run an agent until it is stopped. To try things out: nomadpy agent -dev",
    flags=FLAGS,
    general=False,
)
def agent(call: Call) -> int:
    """Run the daemon with the flags that were given: a dict by flag name with `_` for `-`.

    Switches are bool, numbers int, repeatable flags lists of str (servers split at commas), the rest str.
    """
    given = {name.replace("-", "_"): value for name, value in call.options.given.items()}
    if "servers" in given:
        given["servers"] = [a for word in given["servers"] for a in word.split(",") if a]
    # Everything is imported there, and all of it stays: looking for garbage meanwhile is a fifth of the start.
    gc.disable()
    try:
        from nomadpy.daemon import main
    finally:
        gc.enable()

    try:
        return int(main(given))
    except NomadError as error:
        raise CliError(f"Error starting the agent: {error.message}") from error
