"""The replicated data, in memory, at one index."""
