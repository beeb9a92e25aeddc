"""`simulate nodes`: register nodes that run nothing, to try or measure servers."""

from __future__ import annotations

from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, many, number, text

FLAGS: tuple[Flag, ...] = (
    number("count", "How many; 100 without the flag, or every row of a trace.", "num"),
    text("shape", "uniform, big, hetero, or openb:FILE for the nodes of a trace.", "shape"),
    text("mode", "static: heartbeats only. live: also report allocations running.", "mode"),
    many("address", "host:port of a server's rpc port; may be given several times.", "addr"),
    text("dc", "The nodes' datacenter; dc1 without the flag.", "datacenter"),
    text("ca", "File with the cluster's CA.", "path"),
    text("cert", "File with a client certificate.", "path"),
    text("key", "File with its key.", "path"),
)


@command(
    "simulate nodes [options]",
    "Register simulated nodes with a server and keep them alive until interrupted.\n\n"
    "They take allocations and run nothing. Without -ca, -cert and -key they dial without TLS,\n"
    "which servers allow on loopback only.",
    flags=FLAGS,
    general=False,
)
def nodes(call: Call) -> int:
    """Run until interrupted."""
    options = call.options
    mode = options.text("mode", "static")
    if mode not in ("static", "live"):
        raise UsageError(f'invalid value "{mode}" for flag -mode: use static or live')
    wanted = options.number("count")
    if wanted is not None and wanted < 1:
        raise UsageError("flag -count must be at least 1")
    files = [options.text(name) for name in ("ca", "cert", "key")]
    if any(files) and not all(files):
        raise UsageError("flags -ca, -cert and -key go together")

    import asyncio
    from pathlib import Path

    from nomadpy.clock import SystemClock
    from nomadpy.entropy import SystemEntropy
    from nomadpy.errors import NomadError
    from nomadpy.pki.tls import load_material
    from nomadpy.rpc.tls_network import TLSNetwork
    from nomadpy.simulator.nodes import SimulatedNodes, simulated

    clock, entropy = SystemClock(), SystemEntropy()
    try:
        material = load_material(*map(Path, files)) if all(files) else None
        crowd = SimulatedNodes(
            simulated(
                options.text("shape", "uniform"),
                wanted,
                datacenter=options.text("dc", "dc1"),
                entropy=entropy,
            ),
            options.many("address") or ["127.0.0.1:4647"],
            live=mode == "live",
            network=TLSNetwork(material, role="client"),
            clock=clock,
            entropy=entropy,
        )
        asyncio.run(crowd.run(_tell))
    except KeyboardInterrupt:
        return 0
    except NomadError as error:
        raise CliError(f"Error simulating nodes: {error.message}") from error
    except ExceptionGroup as group:
        raise CliError(f"Error simulating nodes: {_first(group)}") from group
    return 0


def _tell(count: int, seconds: float) -> None:
    print(f"{count} nodes registered in {seconds:.2f} s; interrupt to end", flush=True)


def _first(group: ExceptionGroup[Exception]) -> str:
    """The text of the first fault in a group of them."""
    fault: Exception = group
    while isinstance(fault, ExceptionGroup):
        fault = fault.exceptions[0]
    return str(fault)
