"""The daemon's own configuration: what it may say, and how files and flags become one value."""
