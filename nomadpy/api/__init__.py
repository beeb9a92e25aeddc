"""The HTTP API, the same on every node; it reaches the cluster through a Caller only."""

from nomadpy.api.app import create_app
from nomadpy.api.context import ApiConfig
from nomadpy.api.local import LocalNode
from nomadpy.api.server import ApiServer

__all__ = ["ApiConfig", "ApiServer", "LocalNode", "create_app"]
