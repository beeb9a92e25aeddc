"""Devices of this node: plugins that find them, hand them to tasks and measure them."""
