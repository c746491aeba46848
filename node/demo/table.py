"""The demo's tables: the nodes, with as many columns as there is room for, and who learned from whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from node.demo.braille import sparkline
from node.demo.state import FleetView, NodeView, mean
from node.demo.style import ACCENT, BAD, GOOD, MUTED, change, colour, count, plain

PHASE_STYLE = {"learning": GOOD, "done": GOOD, "died": f"bold {BAD}", "waiting": MUTED, "stopped": MUTED}
SPARK_CELLS = 8
ALWAYS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    header: str
    width: int
    importance: int
    """The least important one is left out first."""
    cell: Callable[[int, NodeView], Text]
    justify_right: bool = True


def node_table(view: FleetView, width: int) -> Table:
    """One row per node."""
    columns = _fitting(_columns(view, spark_cells=0), width)
    if width - _total(columns) >= (SPARK_CELLS + 1) * len(view.families):
        columns = _fitting(_columns(view, spark_cells=SPARK_CELLS), width)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=MUTED)
    for column in columns:
        table.add_column(
            column.header,
            width=column.width,
            justify="right" if column.justify_right else "left",
            vertical="bottom",
            overflow="ellipsis",
        )
    for i, node in enumerate(view.nodes):
        table.add_row(*(column.cell(i, node) for column in columns))
    return table


def node_label(index: int, node: NodeView) -> Text:
    return Text.assemble(("● ", colour(index)), (plain(node.name, 12), ACCENT), no_wrap=True)


def _columns(view: FleetView, *, spark_cells: int) -> list[Column]:
    label_width = 2 + max((len(plain(node.name, 12)) for node in view.nodes), default=0)
    families = [
        Column(
            header=family.replace("_", "\n"),
            width=max(spark_cells + 7, *(len(word) for word in family.split("_"))),
            importance=ALWAYS,
            cell=_family_cell(family, spark_cells),
        )
        for family in view.families
    ]
    return [
        Column(header="node", width=label_width, importance=ALWAYS, cell=node_label, justify_right=False),
        Column(header="state", width=8, importance=90, cell=_phase, justify_right=False),
        Column(header="step", width=5, importance=95, cell=_number(lambda n: n.status.steps)),
        Column(header="own\nreward", width=6, importance=60, cell=_reward),
        *families,
        Column(header="mean", width=7, importance=98, cell=lambda i, n: _mean(view, n)),
        Column(header="own\ngroups", width=6, importance=50, cell=_counter("own_groups")),
        Column(header="from\npeers", width=6, importance=80, cell=_number(lambda n: sum(n.status.admitted.values()))),
        Column(header="of it\ntrained", width=7, importance=45, cell=_counter("foreign_groups_trained")),
        Column(header="peers", width=5, importance=75, cell=_number(lambda n: n.status.peers)),
        Column(header="lag", width=4, importance=40, cell=_lag),
        Column(header="tok/s", width=5, importance=70, cell=_number(lambda n: n.tokens_per_s)),
    ]


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width + 1 for column in columns)


def _fitting(columns: list[Column], width: int) -> list[Column]:
    while _total(columns) > width and any(column.importance < ALWAYS for column in columns):
        columns.remove(min(columns, key=lambda column: column.importance))
    return columns


def _number(read: Callable[[NodeView], float]) -> Callable[[int, NodeView], Text]:
    return lambda _, node: Text(count(read(node)) if node.status.peer else "·", "" if node.status.peer else MUTED)


def _counter(name: str) -> Callable[[int, NodeView], Text]:
    return _number(lambda node: node.status.counters.get(name, 0))


def _family_cell(family: str, spark_cells: int) -> Callable[[int, NodeView], Text]:
    def cell(_: int, node: NodeView) -> Text:
        text = change(node.now(family), node.start(family))
        if family == node.strong:
            text.stylize("underline", 0, len(text.plain.split(" ")[0]))
        if spark_cells:
            bars = sparkline([value for _, value in node.curve(family)], spark_cells)
            text = Text.assemble((bars.ljust(spark_cells), MUTED), " ", text)
        return text

    return cell


def _mean(view: FleetView, node: NodeView) -> Text:
    now = [value for family in view.families if (value := node.now(family)) is not None]
    start = [value for family in view.families if (value := node.start(family)) is not None]
    text = change(mean(now) if now else None, mean(start) if start else None)
    text.stylize(ACCENT)
    return text


def _phase(_: int, node: NodeView) -> Text:
    return Text(node.phase, PHASE_STYLE.get(node.phase, ""))


def _reward(_: int, node: NodeView) -> Text:
    reward = node.status.metrics.get("own_reward")
    return Text("·", MUTED) if reward is None else Text(f"{reward:.2f}")


def _lag(_: int, node: NodeView) -> Text:
    staleness = node.status.metrics.get("own_staleness")
    return Text("·", MUTED) if staleness is None else Text(f"{staleness:.1f}")


def origin_matrix(view: FleetView, width: int) -> Table:
    """Rows: who learns. Columns: whose groups it admitted; on the diagonal, muted, its own."""
    cell = max(4, min(8, (width - 11) // max(1, len(view.nodes)) - 1))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=MUTED)
    table.add_column("learner", no_wrap=True, width=9, overflow="ellipsis")
    for i, origin in enumerate(view.nodes):
        table.add_column(
            Text(plain(origin.name, 12), colour(i)), justify="right", width=cell, no_wrap=True, overflow="crop"
        )
    rows = [(node, view.admitted(node)) for node in view.nodes]
    names = {node.name for node in view.nodes}
    strangers = any(set(admitted) - names for _, admitted in rows)
    if strangers:
        table.add_column("others", justify="right", width=6, no_wrap=True)
    for i, (node, admitted) in enumerate(rows):
        cells = [_origin_cell(node, origin, admitted) for origin in view.nodes]
        others = [Text(count(sum(n for origin, n in admitted.items() if origin not in names)))] if strangers else []
        table.add_row(node_label(i, node), *cells, *others)
    return table


def _origin_cell(node: NodeView, origin: NodeView, admitted: dict[str, int]) -> Text:
    if node is origin:
        return Text(count(node.status.counters.get("own_groups", 0)), f"{MUTED} italic")
    groups = admitted.get(origin.name, 0)
    return Text(count(groups)) if groups else Text("·", MUTED)
