"""Handlers of the rpc methods that servers answer, one module per resource."""
