"""A whole cluster on one machine: certificates, servers and agents as real processes, and a tour of what it does."""
