"""The worker's own log: one line an event, for people or as JSON, on standard error.

What processors print does not get here (imece_worker/capture.py).
"""

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from imece import names

if TYPE_CHECKING:
    from imece.settings import Settings

logger = logging.getLogger("imece.worker")


def set_up(settings: "Settings") -> None:
    """Points the root logger to standard error in the chosen form. RQ logs warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else HumanLines())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logger.setLevel(settings.log_level.upper())
    logging.getLogger("rq.worker").setLevel(logging.WARNING)


def event(what: str, level: int = logging.INFO, **details: Any) -> None:
    """Logs one event with its details, in the order given."""
    logger.log(level, "%s", what, extra={"details": details})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class HumanLines(logging.Formatter):
    """`time LEVEL event key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        details = getattr(record, "details", {})
        text = " ".join(f"{key}={self._value(value)}" for key, value in details.items())
        what = names.printable(record.getMessage())
        line = f"{_time(record)} {record.levelname:<7} {what} {text}".rstrip()
        if record.exc_info:
            line += "\n" + names.printable_lines(self.formatException(record.exc_info))
        return line

    @staticmethod
    def _value(value: Any) -> str:
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        plain = text.isprintable() and not any(mark in text for mark in ' "')
        return text if plain else names.json_line(text)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, then the details."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "details", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return names.json_line(entry)
