"""The command line. It talks to an agent over HTTP only; nothing heavy is imported before a command needs it."""
