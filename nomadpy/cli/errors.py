"""Why a command stops: a sentence for the user and an exit code."""

from __future__ import annotations


class CliError(Exception):
    """Ends the command. The message says what, where, why and what to do next."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class UsageError(CliError):
    """The command line itself is wrong."""


class ApiError(CliError):
    """The agent answered with an error. code: its HTTP status; body: its text."""

    def __init__(self, code: int, body: str, doing: str) -> None:
        text = body.strip() or "no explanation"
        hint = ""
        if code == 403:
            hint = "\nSet NOMAD_TOKEN (or -token) to a token that may do this."
        elif body == "No cluster leader":
            hint = "\nThe servers are electing one, or most of them are down: see `nomadpy server members`."
        super().__init__(f"Error {doing}: {text} (HTTP {code}){hint}")
        self.code = code
        self.body = body
