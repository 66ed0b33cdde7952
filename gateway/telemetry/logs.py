"""Log lines as JSON: one event, one line, whatever its values hold.

Text is cut at a limit, and what looks like a secret is left out. Knows nothing about what it tells.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

import structlog

MAX_TEXT_CHARS = 512
MAX_TRACEBACK_CHARS = 8192
MAX_ELEMENTS = 64

Event = MutableMapping[str, Any]

_SECRET_KEY = re.compile(r"authorization|cookie|token|passw|secret|credential|jwt|api_?key", re.IGNORECASE)
_SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]{1,256}@"), "[hidden]@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 [hidden]"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "[hidden]"),
)


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Log lines as JSON objects on standard error, one event a line: `timestamp` (UTC), `level`, `event`, and
    what belongs to it. What libraries log through `logging` comes in the same form. Raises ValueError for an
    unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level: use debug, info, warning or error.")
    out = stream if stream is not None else sys.stderr
    steps: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _bounded,
    ]
    structlog.configure(
        processors=[*steps, _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*steps[:-1], structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _bounded, _as_json],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


def _as_json(logger: Any, method: str, event: Event) -> str:
    """Everything outside ASCII is escaped too, since some viewers end a line at U+0085 or U+2028; and DEL, which JSON
    allows."""
    return json.dumps(event, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def _bounded(logger: Any, method: str, event: Event) -> Event:
    """No secrets, and no text longer than a reader needs. Of a traceback its end is kept, where the error
    stands."""
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = "[hidden]"
        elif key in ("exception", "stack"):
            event[key] = without_secrets(str(value)[-MAX_TRACEBACK_CHARS:])
        elif value is not None and type(value) not in (int, float, bool):
            event[key] = _short(value)
    return event


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key)[:MAX_TEXT_CHARS]: "[hidden]" if _SECRET_KEY.search(str(key)) else _text(item)
            for key, item in list(value.items())[:MAX_ELEMENTS]
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_text(item) for item in list(value)[:MAX_ELEMENTS]]
    return _text(value)


def _text(value: Any) -> Any:
    if value is None or type(value) in (int, float, bool):
        return value
    text = without_secrets((value if isinstance(value, str) else str(value))[: 2 * MAX_TEXT_CHARS])
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."


def without_secrets(text: str) -> str:
    """The text without credentials in URLs, Authorization values and tokens."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Seldom:
    """Whether it is time to say something again: what happens by the thousand must not fill the log. `clock`: monotonic
    seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._again_at = 0.0

    def now(self) -> bool:
        now = self._clock()
        if now < self._again_at:
            return False
        self._again_at = now + self._seconds
        return True
