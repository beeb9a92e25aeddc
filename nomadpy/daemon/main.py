"""`nomadpy agent`: from flags to a running node."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from nomadpy import __version__, logs
from nomadpy.clock import SystemClock
from nomadpy.config.load import load, unused_settings
from nomadpy.config.model import Config
from nomadpy.daemon.cycles import collect_what_is_new
from nomadpy.daemon.process import Node, describe, discard_temporary, serve
from nomadpy.errors import DefiniteError

log = logs.get(__name__)


def main(flags: Mapping[str, Any]) -> int:
    """Run an agent until it is stopped; returns the exit code.

    flags: by flag name with `_` for `-`: config (list of paths), dev (bool), and the settings of config/flags.py.
    Raises ConfigError before anything is started.
    """
    config = load(list(flags.get("config") or []), flags, bool(flags.get("dev")))
    logs.configure(
        "error" if config.log_level.upper() == "OFF" else config.log_level, as_json=config.log_json
    )
    for setting in unused_settings(config):
        log.warning("this setting has no effect", setting=setting)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_run(config))
    finally:
        discard_temporary(config)


async def _run(config: Config) -> int:
    try:
        node = Node(config)
    except OSError as cause:
        raise DefiniteError(f"a file or directory of the node cannot be used: {cause}") from cause
    _say("==> nomadpy agent configuration:\n")
    width = max(len(name) for name, _ in describe(node))
    for name, value in describe(node):
        _say(f"  {name:>{width}}: {value}")
    _say(f"  {'Version':>{width}}: {__version__}\n")

    def started() -> None:
        _say("==> nomadpy agent started! Log data will stream in below:\n")
        collect_what_is_new(SystemClock())

    return await serve(node, started)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
