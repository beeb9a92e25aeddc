"""Puts this folder on the import path, for `agent_world`."""
