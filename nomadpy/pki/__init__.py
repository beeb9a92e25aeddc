"""Certificates, identities and keys: who a peer is, and what proves a task's name."""
