"""nomadpy: a distributed orchestrator that speaks Nomad's wire API."""

__version__ = "0.1.0"
