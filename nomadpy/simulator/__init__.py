"""A whole cluster in one thread: virtual time, a network and disks that fail on command, one seed for all chance."""
