"""What the node says, on stderr: the standard library's logging, one line an event, for people or for programs.

    log.info("checkpoint %s", path, extra=ids(step=150))

`ids` are what an event is about (peer, group, step, version): human lines end with them, JSON lines have them as keys.
Whatever a stranger wrote cannot forge a line or steer a terminal: control characters are replaced in every text. What
is said again and again is said a few times a minute and then counted. No secret is ever handed to a logger.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, Literal

from node.table import Table

REPEATS, REPEATS_S = 5, 60.0
"""So many records of one kind (the same line of code) within so many seconds."""
MAX_KINDS = 1024
LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
MAX_TEXT = 8192
"""Characters of a line; a traceback may have four times as many."""


class LogConfig(Table):
    """What the node says on stderr."""

    format: Literal["human", "json"] = "human"
    """A line for people, or a JSON object a line for programs."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of this program; its libraries are heard from "warning" on. With debug there is a line for every group and every
    step, with the ids of what was trained on."""


def set_up(config: LogConfig | None = None, stream: IO[str] | None = None) -> None:
    """Once per process. What is there already is replaced."""
    config = config or LogConfig()
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if config.format == "json" else HumanFormatter())
    handler.addFilter(Repeats())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for ours in ("node", "swarm"):
        logging.getLogger(ours).setLevel(config.level.upper())


def ids(**about: object) -> dict[str, Any]:
    """`extra` of a record."""
    return {"ids": about}


def printable(text: str, keep: str = "") -> str:
    """Without what a terminal would obey or what would begin another line."""
    return "".join(char if char.isprintable() or char in keep else "\N{REPLACEMENT CHARACTER}" for char in text)


class HumanFormatter(logging.Formatter):
    """2026-11-27 16:24:01,123 INFO    node.daemon: checkpoint ... (step=150)"""

    def format(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        text = f"{record.getMessage()} ({about})" if about else record.getMessage()
        where = f"{self.formatTime(record)} {_level(record).upper():<7} {record.name}: "
        return where + printable(text[:MAX_TEXT]) + _trace(self, record, "\n")


class JsonFormatter(logging.Formatter):
    """{"time": unix seconds, "level": "info", "logger": ..., "event": ..., and the ids; "error" with a traceback}"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": _level(record),
            "logger": record.name,
            "event": printable(record.getMessage()[:MAX_TEXT]),
        }
        if trace := _trace(self, record, ""):
            line["error"] = trace
        return json.dumps(_ids(record) | line, default=str)  # ASCII: every control character is escaped


class Repeats(logging.Filter):
    """Lets REPEATS records of one kind through in REPEATS_S, and then one that says how many there were.

    One thread's view at a time: logging holds a handler's lock, but not around its filters, so a count may be off by
    the few that came at the same instant. Debugging is not rationed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[tuple[str, int], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or record.levelno >= logging.CRITICAL:
            return True
        place, now = (record.pathname, record.lineno), self._clock()
        kind = self._kinds.setdefault(place, _Kind(now))
        self._kinds.move_to_end(place)
        if len(self._kinds) > MAX_KINDS:
            self._kinds.popitem(last=False)
        if now - kind.since >= REPEATS_S:
            if kind.held_back:
                record.msg = f"{record.getMessage()} [and {kind.held_back} more like this]"
                record.args = ()
            kind.since, kind.said, kind.held_back = now, 0, 0
        kind.said += 1
        kind.held_back += kind.said > REPEATS
        return kind.said <= REPEATS


class _Kind:
    def __init__(self, now: float) -> None:
        self.since, self.said, self.held_back = now, 0, 0


def _level(record: logging.LogRecord) -> str:
    """By its number: a library that renames the levels does so for everybody."""
    return LEVELS.get(record.levelno, str(record.levelno))


def _ids(record: logging.LogRecord) -> dict[str, object]:
    return getattr(record, "ids", {})


def _trace(formatter: logging.Formatter, record: logging.LogRecord, before: str) -> str:
    if not record.exc_info:
        return ""
    return before + printable(formatter.formatException(record.exc_info)[-4 * MAX_TEXT :], keep="\n")
