"""Nemeses: faults, each with its undoing."""
