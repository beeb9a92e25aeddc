"""The client agent: what a node does for the cluster."""
