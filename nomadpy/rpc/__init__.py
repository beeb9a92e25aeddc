"""The corridor between api, server and agent: framing, mutual TLS, calls and streams."""
