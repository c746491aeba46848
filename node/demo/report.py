"""What a run of the demo came to: a summary for programs, a table and a sentence for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from node.demo.models import Scores
from node.demo.state import FleetView, NodeView, mean
from node.demo.style import ACCENT, MUTED, change, duration, percent
from node.demo.table import node_label

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One fleet's run."""

    view: FleetView
    before: Mapping[str, Scores]
    """Node name -> scores of its seed model."""
    after: Mapping[str, Scores] = field(default_factory=dict)
    """Node name -> scores of its newest checkpoint; without the nodes that wrote none."""

    @property
    def wall_s(self) -> float:
        """From the fleet's start until it was told to stop."""
        return self.view.elapsed_s(0.0) if self.view.stopped_at is not None else 0.0

    @property
    def judged(self) -> list[NodeView]:
        """The nodes that can be compared with their own beginning."""
        return [node for node in self.view.nodes if self.after.get(node.name) and self.before.get(node.name)]

    @property
    def mean_before(self) -> float:
        """Over families and judged nodes, as `mean_after`."""
        return mean([mean_pass(self.before[node.name]) for node in self.judged])

    @property
    def mean_after(self) -> float:
        return mean([mean_pass(self.after[node.name]) for node in self.judged])

    @property
    def taught(self) -> list[tuple[str, str]]:
        """(learner, origin) pairs of the fleet between which groups were admitted."""
        names = [node.name for node in self.view.nodes]
        return [
            (node.name, origin)
            for node in self.view.nodes
            for origin in names
            if origin != node.name and self.view.admitted(node).get(origin, 0)
        ]


def mean_pass(scores: Scores) -> float:
    return mean([score.pass_at_1 for score in scores.values()])


def summary(outcome: Outcome, compare: Outcome | None = None) -> Json:
    """JSON of a run; "compare" holds the same of the isolated nodes. pass@1 in [0, 1]."""
    document: Json = {
        "nodes": [_node_summary(node, outcome) for node in outcome.view.nodes],
        "wall_s": round(outcome.wall_s, 3),
        "mean_before": outcome.mean_before,
        "mean_after": outcome.mean_after,
        "gain": outcome.mean_after - outcome.mean_before,
        "families": list(outcome.view.families),
        "died": [node.name for node in outcome.view.nodes if node.phase == "died"],
        "strong": {node.name: node.strong for node in outcome.view.nodes},
        "questions": {name: sum(s.tasks for s in scores.values()) for name, scores in outcome.before.items()},
        "intervals": {"before": _intervals(outcome.before), "after": _intervals(outcome.after)},
        "curves": {node.name: _curve(node) for node in outcome.view.nodes},
    }
    if compare is not None:
        document["compare"] = summary(compare) | {"difference": outcome.mean_after - compare.mean_after}
    return document


def _node_summary(node: NodeView, outcome: Outcome) -> Json:
    return {
        "name": node.name,
        "before": {family: score.pass_at_1 for family, score in outcome.before.get(node.name, {}).items()},
        "after": {family: score.pass_at_1 for family, score in outcome.after.get(node.name, {}).items()},
        "admitted": outcome.view.admitted(node),
        "refused": dict(node.status.refused),
        "steps": node.status.steps,
        "target_steps": node.target_steps,
        "own_tokens": node.status.counters.get("own_tokens", 0),
        "foreign_tokens": node.status.counters.get("foreign_tokens", 0),
    }


def _intervals(scores: Mapping[str, Scores]) -> Json:
    return {name: {family: [s.low, s.high] for family, s in of.items()} for name, of in scores.items()}


def _curve(node: NodeView) -> list[Json]:
    return [{"at_s": round(r.at_s, 3), "step": r.step, "pass_at_1": dict(r.pass_at_1)} for r in node.readings]


def table(outcome: Outcome, title: str) -> Table:
    """Before and after, per node and family."""
    families = outcome.view.families
    grid = Table(title=title, title_style=ACCENT, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("node", header_style=MUTED, vertical="bottom")
    for heading in [*(family.replace("_", "\n") for family in families), "mean"]:
        grid.add_column(heading, header_style=MUTED, justify="right", vertical="bottom")
    grid.add_column("steps", header_style=MUTED, justify="right", vertical="bottom")
    for i, node in enumerate(outcome.view.nodes):
        before, after = outcome.before.get(node.name, {}), outcome.after.get(node.name, {})
        cells = [
            _transition(
                before[f].pass_at_1 if f in before else None,
                after[f].pass_at_1 if f in after else None,
                underline=f == node.strong,
            )
            for f in families
        ]
        total = _transition(mean_pass(before) if before else None, mean_pass(after) if after else None)
        grid.add_row(node_label(i, node), *cells, total, str(node.status.steps))
    if outcome.judged:
        grid.add_row(Text("all", ACCENT), *_family_means(outcome), _transition(outcome.mean_before, outcome.mean_after))
    return grid


def _family_means(outcome: Outcome) -> list[Text]:
    cells = []
    for family in outcome.view.families:
        pairs = [
            (outcome.before[n.name][family].pass_at_1, outcome.after[n.name][family].pass_at_1)
            for n in outcome.judged
            if family in outcome.before[n.name] and family in outcome.after[n.name]
        ]
        cells.append(_transition(mean([b for b, _ in pairs]), mean([a for _, a in pairs])) if pairs else Text("·"))
    return cells


def _transition(before: float | None, after: float | None, *, underline: bool = False) -> Text:
    """ "31→62 ↑31": with four families and the mean, a row has its place in 80 columns."""
    first = Text(percent(before), "underline" if underline else "")
    return Text.assemble(first, ("→", MUTED), change(after, before))


def closing(outcome: Outcome, compare: Outcome | None = None) -> str:
    """One sentence: how far it came, in how long, and who learned from whom."""
    nodes = len(outcome.view.nodes)
    parts = [f"{nodes} {'node' if nodes == 1 else 'nodes'}"]
    if outcome.judged:
        parts.append(f"mean pass@1 {percent(outcome.mean_before)} % → {percent(outcome.mean_after)} %")
    sentence = ", ".join(parts) + f" in {duration(outcome.wall_s)}"
    pairs = nodes * (nodes - 1)
    taught = len(outcome.taught)
    if pairs:
        everyone = "every node learned from every other"
        sentence += "; " + (everyone if taught == pairs else f"{taught} of the {pairs} ways between them were taken")
    if compare is not None and compare.judged:
        points = 100 * (outcome.mean_after - compare.mean_after)
        sentence += f". The same nodes alone: {percent(compare.mean_after)} % ({points:+.1f} points for the swarm)"
    return sentence + "."


def deaths(nodes: Sequence[NodeView]) -> list[str]:
    """A line for each node that did not end well."""
    return [f"{n.name} died (exit code {n.exit_code}): {n.last_words}" for n in nodes if n.phase == "died"]
