"""Disks that fail, forget and lie: a file system of the kit's own, and damage to files that lie still."""
