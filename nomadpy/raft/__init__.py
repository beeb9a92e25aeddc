"""Replicates the log: PySyncObj's consensus core with our own journal, snapshots, transport and safety rules."""

from nomadpy.raft.config import PeerSpec, RaftConfig, StateMachine
from nomadpy.raft.files import Files, RealFiles
from nomadpy.raft.node import RaftNode

__all__ = ["Files", "PeerSpec", "RaftConfig", "RaftNode", "RealFiles", "StateMachine"]
