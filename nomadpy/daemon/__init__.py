"""Wiring: builds the server, the agent and the API out of the configuration; nothing else does."""

from nomadpy.daemon.main import main

__all__ = ["main"]
