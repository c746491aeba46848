"""The demo's live screen. `render` is a pure function of what is known, the moment and the terminal's size."""

from __future__ import annotations

import asyncio
import math
import time

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from node.demo.braille import Line, plot
from node.demo.state import GONE, FleetView, NodeView, mean
from node.demo.style import ACCENT, BAD, GOOD, MUTED, change, clock, colour, percent, plain
from node.demo.table import node_label, node_table, origin_matrix

LEARNING = "the nodes are learning"
REFRESH_S = 0.5
PLAIN_EVERY_S = 10.0
MIN_CHART_HEIGHT, MAX_CHART_HEIGHT = 4, 12
FAMILY_CHART_HEIGHT = 5
Y_LABEL = 7
COMPLETE = colour(0)


async def follow(view: FleetView, console: Console, *, plain_lines: bool) -> None:
    """Shows `view` until cancelled: on the whole screen, or (a pipe, a log) as a line per node every ten seconds."""
    if plain_lines:
        await _follow_plain(view, console)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            width, height = console.size
            live.update(render(view, time.monotonic(), width, height), refresh=True)
            await asyncio.sleep(REFRESH_S)


async def _follow_plain(view: FleetView, console: Console) -> None:
    console.print(Text(view.title, ACCENT), soft_wrap=True)
    activity, due = "", 0.0
    while True:
        now = time.monotonic()
        if (view.activity or LEARNING) != activity:
            activity = view.activity or LEARNING
            console.print(Text(activity), soft_wrap=True)
        if now >= due and view.started_at is not None and view.stopped_at is None:
            for line in plain_lines_of(view, now):
                console.print(Text(line), soft_wrap=True)
            due = now + PLAIN_EVERY_S
        elif now >= due and view.detail:
            console.print(Text(f"  {plain(view.detail)}", MUTED), soft_wrap=True)
            due = now + PLAIN_EVERY_S
        await asyncio.sleep(REFRESH_S)


def plain_lines_of(view: FleetView, now: float) -> list[str]:
    """One line per node."""
    return [_plain_line(view, node, now) for node in view.nodes]


def _plain_line(view: FleetView, node: NodeView, now: float) -> str:
    parts = [f"{clock(view.elapsed_s(now)):>5} {plain(node.name, 12):<9} {node.phase:<8} step {node.status.steps:>4}"]
    parts += [f"{family} {percent(node.now(family))}" for family in view.families]
    if node.status.peer:
        admitted = sum(node.status.admitted.values())
        parts.append(f"from peers {admitted}, peers {node.status.peers}, {node.tokens_per_s:.0f} tok/s")
    if node.phase == "died":
        parts.append(plain(node.last_words))
    return " | ".join(parts)


def render(view: FleetView, now: float, width: int, height: int) -> RenderableType:
    """At most `height` lines of `width` cells."""
    inner = width - 2
    notes = _notes(view)
    rest = height - 5 - (len(view.nodes) + 3) - len(notes) - 3
    blocks: list[RenderableType] = [_header(view, now, width), _indented(node_table(view, inner))]
    families_height = FAMILY_CHART_HEIGHT + 3 if rest >= 12 + FAMILY_CHART_HEIGHT + 3 and len(view.families) > 1 else 0
    if rest - families_height >= len(view.nodes) + 2 or rest >= MIN_CHART_HEIGHT + 2:
        blocks += [Text(), _indented(_lower(view, now, inner, rest - families_height))]
    if families_height:
        blocks += [Text(), _indented(_family_charts(view, now, inner))]
    return Group(*blocks, Text(), *notes, _footer(view))


def _indented(renderable: RenderableType) -> Table:
    table = Table.grid(padding=0)
    table.add_column(width=1)
    table.add_column()
    table.add_row("", renderable)
    return table


def _header(view: FleetView, now: float, width: int) -> Panel:
    start, mean_now = view.mean_start(), view.mean_now()
    score = Text.assemble(("pass@1 ", MUTED), (f"{percent(start)} % → ", ""), (f"{percent(mean_now)} %", ACCENT))
    if start is not None and mean_now is not None:
        score.append("  ")
        score.append_text(Text(change(mean_now, start).plain.split(" ", 1)[1].strip(), f"bold {GOOD}"))
    title = Table.grid(expand=True)
    title.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    title.add_column(justify="right", no_wrap=True)
    title.add_row(Text(view.title, ACCENT), score)
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    done = view.progress(now)
    bar.add_row(
        Text(_activity(view, width // 2)),
        ProgressBar(total=1.0, completed=done, complete_style=COMPLETE, finished_style=COMPLETE),
        Text(_progress_text(view, now), MUTED),
    )
    return Panel(Group(title, bar), box=box.ROUNDED, border_style=MUTED, padding=(0, 1))


def _activity(view: FleetView, limit: int) -> str:
    if view.activity or view.started_at is None:
        return plain(view.activity, limit)
    alive = [node for node in view.nodes if node.phase not in GONE]
    if not alive:
        return ""
    slowest = min(alive, key=lambda node: node.status.steps - node.target_steps)
    return f"step {min(slowest.status.steps, slowest.target_steps)} of {slowest.target_steps}"


def _progress_text(view: FleetView, now: float) -> str:
    if view.started_at is None or view.activity_done is not None:
        return f"{100 * view.progress(now):.0f} %"
    return f"{clock(view.elapsed_s(now))} of at most {clock(view.budget_s)}"


def _lower(view: FleetView, now: float, width: int, height: int) -> Table:
    """Who learned from whom, and the curve beside it where there is room."""
    matrix_width = 11 + 9 * len(view.nodes)
    chart_width = width - matrix_width - 3
    while chart_width < 30 and matrix_width > 11 + 5 * len(view.nodes):
        matrix_width -= len(view.nodes)
        chart_width = width - matrix_width - 3
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(width=matrix_width)
    caption = Text.assemble(("who learns from whom", ACCENT), (" (groups taken in)", MUTED), no_wrap=True)
    left = Group(caption, origin_matrix(view, matrix_width))
    if chart_width < 20:
        grid.add_row(left)
        return grid
    grid.add_column(width=chart_width)
    rows = max(MIN_CHART_HEIGHT, min(MAX_CHART_HEIGHT, height - 2))
    grid.add_row(left, _mean_chart(view, now, chart_width, rows))
    return grid


def _mean_chart(view: FleetView, now: float, width: int, height: int) -> Group:
    lines = [Line(points=node.curve(), style=colour(i)) for i, node in enumerate(view.nodes)]
    lines.append(Line(points=_mean_curve(view), style="bold"))
    title = Text.assemble(
        ("pass@1 on held-out questions", ACCENT), (" per node, ", MUTED), ("mean", "bold"), no_wrap=True
    )
    shown = [value for line in lines for _, value in line.points]
    low, high = math.floor(10 * min(shown, default=0.0)) / 10, math.ceil(10 * max(shown, default=1.0)) / 10
    return _chart(title, lines, view, now, (width, height), (low, max(high, low + 0.1)))


def _mean_curve(view: FleetView) -> list[tuple[float, float]]:
    """Over nodes, at the times when any of them was evaluated; from when all of them have been."""
    curves = [node.curve() for node in view.nodes]
    if not all(curves):
        return []
    times = sorted({at for curve in curves for at, _ in curve})
    return [
        (at, mean([max((p for p in curve if p[0] <= at), default=curve[0])[1] for curve in curves])) for at in times
    ]


def _family_charts(view: FleetView, now: float, width: int) -> Table:
    share = width // len(view.families) - 2
    grid = Table.grid(padding=(0, 2, 0, 0))
    cells = []
    for family in view.families:
        grid.add_column(width=share)
        lines = [Line(points=node.curve(family), style=colour(i)) for i, node in enumerate(view.nodes)]
        title = Text(family.replace("_", " "), ACCENT, no_wrap=True)
        cells.append(_chart(title, lines, view, now, (share, FAMILY_CHART_HEIGHT), (0.0, 1.0)))
    grid.add_row(*cells)
    return grid


def _chart(
    title: Text,
    lines: list[Line],
    view: FleetView,
    now: float,
    size: tuple[int, int],
    y_range: tuple[float, float],
) -> Group:
    """`size`: cells, labels included, and lines of the drawing itself."""
    width, height = size
    x_max = max([30.0, view.elapsed_s(now), *(point[0] for line in lines for point in line.points)])
    rows = []
    for i, row in enumerate(plot(lines, width=width - Y_LABEL, height=height, x_max=x_max, y_range=y_range)):
        label = {0: f"{100 * y_range[1]:.0f} %", height - 1: f"{100 * y_range[0]:.0f} %"}.get(i, "")
        rows.append(
            Text.assemble((f"{label:>{Y_LABEL - 2}} ", MUTED), ("┤" if label else "│", MUTED), row, no_wrap=True)
        )
    axis = " " * (Y_LABEL - 1) + "└" + "─" * (width - Y_LABEL)
    end = f" {clock(x_max)}"
    return Group(title, *rows, Text(axis[: width - len(end)] + end, MUTED, no_wrap=True))


def _notes(view: FleetView) -> list[Text]:
    """What went wrong or was refused, a line each."""
    notes = []
    if view.detail:
        notes.append(Text(f" {plain(view.detail)}", MUTED, no_wrap=True, overflow="ellipsis"))
    refused: dict[str, int] = {}
    for node in view.nodes:
        for reason, groups in node.status.refused.items():
            refused[reason] = refused.get(reason, 0) + groups
    if refused:
        reasons = ", ".join(f"{plain(reason, 40)} {groups}" for reason, groups in sorted(refused.items()))
        notes.append(Text.assemble((" refused: ", MUTED), reasons, no_wrap=True, overflow="ellipsis"))
    for i, node in enumerate(view.nodes):
        if node.phase == "died":
            words = f" died (exit code {node.exit_code}): {plain(node.last_words)}"
            notes.append(Text.assemble(" ", node_label(i, node), (words, BAD), no_wrap=True, overflow="ellipsis"))
    return notes


def _footer(view: FleetView) -> Text:
    text = "pass@1 in %, ↑ points since the start; underlined: its own subject. Ctrl-C stops everything."
    return Text(f" {text}", MUTED, no_wrap=True, overflow="ellipsis")
