"""What the log looks like, what cannot be done with it, and how often the same is said."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from node import logs
from node.logs import HumanFormatter, JsonFormatter, LogConfig, Repeats, ids

EVIL = 'x\x1b[2J\r\nERROR   node.daemon: forged "\u202e\x00\x9b31m'


@pytest.fixture
def heard() -> Iterator[io.StringIO]:
    """Whatever the root logger and its levels were is there again afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    ours = {name: logging.getLogger(name).level for name in ("node", "swarm")}
    root.handlers[:] = []
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)
    for name, was in ours.items():
        logging.getLogger(name).setLevel(was)


def test_a_line_for_people_ends_with_what_it_is_about(heard: io.StringIO) -> None:
    logs.set_up(LogConfig(), heard)
    logging.getLogger("node.x").info("checkpoint %s", "here", extra=ids(step=7, peer="12D3"))
    (line,) = heard.getvalue().splitlines()
    assert line.split(maxsplit=2)[2] == "INFO    node.x: checkpoint here (step=7 peer=12D3)"


def test_a_line_for_programs_is_an_object(heard: io.StringIO) -> None:
    logs.set_up(LogConfig(format="json"), heard)
    logging.getLogger("swarm.x").warning("odd: %d", 3, extra=ids(step=7, groups=["a", "b"]))
    record = json.loads(heard.getvalue())
    assert record.pop("time") > 1.7e9
    assert record == {"level": "warning", "logger": "swarm.x", "event": "odd: 3", "step": 7, "groups": ["a", "b"]}


@pytest.mark.parametrize(("level", "said"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels_are_ours_and_libraries_are_heard_from_warning_on(heard: io.StringIO, level: str, said: int) -> None:
    logs.set_up(LogConfig.model_validate({"level": level}), heard)
    for word in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("node.x"), word)("ours")
        getattr(logging.getLogger("library"), word)("theirs")
    words = [line.rsplit(maxsplit=1)[1] for line in heard.getvalue().splitlines()]
    assert words.count("ours") == said
    assert words.count("theirs") == 2


@pytest.mark.parametrize("format", ["human", "json"])
def test_what_a_stranger_wrote_is_one_harmless_line(heard: io.StringIO, format: str) -> None:
    logs.set_up(LogConfig.model_validate({"format": format}), heard)
    logging.getLogger("node.x").warning("peer says %s", EVIL, extra=ids(name=EVIL))
    (line,) = heard.getvalue().splitlines()
    assert line.isprintable()
    assert "forged" in line


@pytest.mark.parametrize("format", ["human", "json"])
def test_neither_does_an_error_that_quotes_a_stranger_steer_a_terminal(heard: io.StringIO, format: str) -> None:
    logs.set_up(LogConfig.model_validate({"format": format}), heard)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("node.x").exception("failed")
    said = heard.getvalue()
    assert "Traceback (most recent call last)" in said
    assert all(char.isprintable() or char == "\n" for char in said)
    assert format == "human" or len(said.splitlines()) == 1


def test_lines_are_bounded() -> None:
    record = logging.LogRecord("node.x", logging.WARNING, "f.py", 1, "%s", ("long" * 100_000,), None)
    assert len(HumanFormatter().format(record)) < 2 * logs.MAX_TEXT
    assert len(JsonFormatter().format(record)) < 2 * logs.MAX_TEXT


def test_the_same_again_and_again_is_counted_instead() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)

    def said(line: int = 1, level: int = logging.WARNING) -> str:
        record = logging.LogRecord("node.x", level, "f.py", line, "refused %s", ("this",), None)
        return record.getMessage() if repeats.filter(record) else ""

    assert [said() for _ in range(8)] == ["refused this"] * logs.REPEATS + [""] * (8 - logs.REPEATS)
    assert said(line=2) == "refused this", "another kind"
    assert all(said(level=logging.DEBUG) for _ in range(20)), "who wants to see everything does"
    now = logs.REPEATS_S
    assert [said(), said()] == ["refused this [and 3 more like this]", "refused this"]


def test_kinds_are_bounded() -> None:
    repeats = Repeats(lambda: 0.0)
    for line in range(3 * logs.MAX_KINDS):
        assert repeats.filter(logging.LogRecord("x", logging.INFO, "f.py", line, "m", (), None))
    assert len(repeats._kinds) == logs.MAX_KINDS
