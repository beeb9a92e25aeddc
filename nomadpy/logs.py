"""Logging: a constant message and fields, as text for people or as JSON lines.

`log = logs.get(__name__)`, then `log.info("plan applied", eval_id=..., index=...)`. Secrets are never fields.
The same records fill a bounded ring that `/v1/agent/monitor` reads.
"""

from __future__ import annotations

import collections
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

RING_LINES = 512

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class FieldLogger:
    """A logger whose calls take facts as keyword arguments."""

    def __init__(self, logger: logging.Logger, bound: dict[str, Any] | None = None) -> None:
        self._logger = logger
        self._bound = bound or {}

    def bind(self, **fields: Any) -> FieldLogger:
        """A logger that adds `fields` to every line."""
        return FieldLogger(self._logger, {**self._bound, **fields})

    def debug(self, message: str, **fields: Any) -> None:
        """For those who debug nomadpy itself."""
        self._emit(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """An operator would want to know."""
        self._emit(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """It may need someone."""
        self._emit(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """It needs someone."""
        self._emit(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: Any) -> None:
        """An error with the traceback of the exception being handled."""
        self._emit(logging.ERROR, message, fields, exc_info=True)

    def _emit(
        self, level: int, message: str, fields: dict[str, Any], *, exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(
                level, message, extra={"fields": {**self._bound, **fields}}, exc_info=exc_info
            )


class TextFormatter(logging.Formatter):
    """`2026-11-23T10:00:00.000Z [INFO]  server.worker: plan applied: index=7`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; a traceback follows on lines of its own."""
        fields = getattr(record, "fields", {})
        facts = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        name = record.name.removeprefix("nomadpy.")
        line = f"{_stamp(record)} [{_level(record)}] {name}: {record.getMessage()}"
        if facts:
            line += f": {facts}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JSONFormatter(logging.Formatter):
    """One JSON object a line, with the keys of hclog."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object."""
        entry: dict[str, Any] = {
            "@level": _level(record).strip().lower(),
            "@message": record.getMessage(),
            "@module": record.name,
            "@timestamp": _stamp(record),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["error_trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class RingHandler(logging.Handler):
    """Keeps the last lines and hands new ones to listeners; a slow listener loses lines, not we."""

    def __init__(self, size: int = RING_LINES) -> None:
        super().__init__()
        self.lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=size)
        self.listeners: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Format once, keep, tell the listeners (callables of (levelno, line))."""
        line = self.format(record)
        self.lines.append((record.levelno, line))
        for listener in list(self.listeners):
            listener(record.levelno, line)


ring = RingHandler()


def get(name: str) -> FieldLogger:
    """The logger of a module."""
    return FieldLogger(logging.getLogger(name))


def configure(level: str = "info", *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Set up the root logger once at start; `level` is one of trace, debug, info, warn, error."""
    chosen = _LEVELS.get(level.lower())
    if chosen is None:
        raise ValueError(f"log level {level!r} is unknown; use one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter: logging.Formatter = JSONFormatter() if as_json else TextFormatter()
    handler.setFormatter(formatter)
    ring.setFormatter(TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler, ring]
    root.setLevel(chosen)
    # aiohttp and docker talk about every request at INFO and DEBUG; ours say what matters.
    for noisy in ("aiohttp", "docker", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _level(record: logging.LogRecord) -> str:
    return {"WARNING": "WARN "}.get(record.levelname, f"{record.levelname:<5}")


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(c in text for c in ' "=\n\t'):
        return text
    return json.dumps(text)
