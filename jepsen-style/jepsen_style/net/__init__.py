"""The network in the hands of the kit: every packet between hosts passes through one process."""
