"""What this machine is: attributes, resources and drivers of the node. `run.HostFingerprint` is the way in."""
