"""One demo from start to end: models, evaluation, the swarm, evaluation, the same nodes alone if asked, the report."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from node.demo import report, screen
from node.demo.fleet import Fleet
from node.demo.meeting import meetings
from node.demo.models import Programs, Scores, evaluate, evaluation_size, make_seed_models, trained_model
from node.demo.plan import DemoOptions, Family, Meeting, NodePlan, node_settings, plan_nodes, to_toml
from node.demo.processes import Children
from node.demo.report import Outcome
from node.demo.state import FleetView, NodeView
from node.demo.style import BAD
from node.engine.available import engines
from node.settings import load_config
from swarm.errors import ConfigError

ALONE = "alone"
PICTURE, SUMMARY = "learning-curve.png", "summary.json"


@dataclass(kw_only=True)
class Demo:
    """`check()`, then `run()` once."""

    options: DemoOptions
    families: Sequence[Family]
    root: Path
    summary_file: Path | None = None
    compare: bool = False
    keep: bool = False
    plain: bool = False
    console: Console
    programs: Programs = field(default_factory=Programs)
    interrupted_by: signal.Signals | None = field(default=None, init=False)
    _swarm: str = field(default_factory=lambda: f"demo-{secrets.token_hex(4)}", init=False)
    _models: Mapping[str, Path] = field(default_factory=dict, init=False)
    _steps: Mapping[str, int] = field(default_factory=dict, init=False)
    """That the swarm's nodes made: a lone one makes as many, because on a machine of its own it would not have more."""
    _view: FleetView | None = field(default=None, init=False)
    """On the screen now."""

    def check(self) -> None:
        """Makes the directory. Raises ConfigError for what is wrong with it or with a setting."""
        if any(self.root.glob("node-*")) or (self.root / ALONE).exists():
            raise ConfigError(f"--dir {self.root}: an earlier demo is there; name a new directory, or remove that one")
        if not (status := engines()[self.options.engine]).usable:
            raise ConfigError(f"--engine {self.options.engine}: {status.reason}")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--dir {self.root}: cannot be made: {error.strerror}") from error
        example = self.root / ".check.toml"
        try:
            for alone in {False, self.compare}:
                example.write_text(
                    to_toml(self._settings(self._plans(alone)[0], None if alone else Meeting())), "utf-8"
                )
                load_config(example, self._overrides(alone))
        finally:
            example.unlink(missing_ok=True)

    async def run(self) -> int:
        """0, or 1 when a node died. Raises SwarmError when a model cannot be made or judged; CancelledError after a
        signal, with `interrupted_by` set. Whatever happens, no process is left."""
        async with Children() as children:
            with self._interruptible(children):
                swarm = await self._round(children, alone=False)
                alone = await self._round(children, alone=True, before=swarm.before) if self.compare else None
        await asyncio.to_thread(self._report, swarm, alone)
        return 1 if any(report.deaths(run.view.nodes) for run in (swarm, alone) if run is not None) else 0

    async def _round(self, children: Children, *, alone: bool, before: Mapping[str, Scores] | None = None) -> Outcome:
        """One fleet: from the seed models to the scores of what became of them."""
        plans = self._plans(alone)
        view = self._new_view(plans, alone)
        size = evaluation_size(len(self.families))

        def progress(share: float) -> None:
            view.activity_done, view.detail = share, ""

        def heard(line: str) -> None:
            view.detail = line

        async with self._shown(view):
            if before is None:
                view.activity = "making the seed models (kept for the next time)"
                self._models = await make_seed_models(plans, children, self.programs, progress, heard)
                view.activity = f"judging the seed models on {size.tasks * len(self.families)} questions each"
                before = await evaluate(self._models, size, children, self.programs, progress)
            for node in view.nodes:
                node.before = {family: score.pass_at_1 for family, score in before[node.name].items()}
            await self._run_fleet(plans, view, children, alone)
            view.activity = "judging what the nodes have learned"
            trained = {plan.name: model for plan in plans if (model := trained_model(plan)) is not None}
            if not alone:
                self._steps = {node.name: node.status.steps for node in view.nodes if node.status.steps}
            after = await evaluate(trained, size, children, self.programs, progress) if trained else {}
            for node in view.nodes:
                node.after = {family: score.pass_at_1 for family, score in after.get(node.name, {}).items()}
        return Outcome(view=view, before=before, after=after)

    async def _run_fleet(self, plans: Sequence[NodePlan], view: FleetView, children: Children, alone: bool) -> None:
        view.activity, view.activity_done = "", None
        meeting = {} if alone else meetings(plans)
        fleet = Fleet(
            plans,
            view,
            children,
            settings=lambda plan: self._settings(plan, meeting.get(plan.name)),
            command=lambda config: self._run_command(config, alone),
        )
        async with fleet.running():
            await fleet.until_done(view.budget_s)
            view.activity = "stopping the nodes; each writes a checkpoint"

    def _plans(self, alone: bool) -> list[NodePlan]:
        if alone:
            return plan_nodes(self.options, self.families, self.root / ALONE, self._steps)
        return plan_nodes(self.options, self.families, self.root)

    def _new_view(self, plans: Sequence[NodePlan], alone: bool) -> FleetView:
        count = f"{len(plans)} {'node' if len(plans) == 1 else 'nodes'}"
        return FleetView(
            title=f"{count}, each alone" if alone else f"{count} learning from each other; none waits for another",
            families=[family.name for family in self.families],
            nodes=[NodeView(name=plan.name, strong=plan.strong, target_steps=plan.steps) for plan in plans],
            budget_s=self.options.minutes * 60,
        )

    def _settings(self, plan: NodePlan, meeting: Meeting | None) -> dict[str, object]:
        return node_settings(
            plan,
            self.options,
            self.families,
            model=self._models.get(plan.name, self.root),
            swarm=self._swarm,
            meeting=meeting,
        )

    def _overrides(self, alone: bool) -> list[str]:
        """A lone node has no exchange to set anything of."""
        return [o for o in self.options.overrides if not (alone and o.lstrip().startswith("exchange."))]

    def _run_command(self, config: Path, alone: bool) -> list[str]:
        overrides = [part for override in self._overrides(alone) for part in ("--set", override)]
        return [*self.programs.swarm_node, "run", str(config), *overrides]

    @asynccontextmanager
    async def _shown(self, view: FleetView) -> AsyncIterator[None]:
        self._view = view
        showing = asyncio.create_task(screen.follow(view, self.console, plain_lines=self.plain))
        try:
            yield
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing

    @contextmanager
    def _interruptible(self, children: Children) -> Iterator[None]:
        """The first signal stops everything in order, the second one at once."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def interrupt(number: signal.Signals) -> None:
            if self.interrupted_by is not None:
                children.kill()
                return
            self.interrupted_by = number
            task.cancel()
            if self._view is not None:
                self._view.activity = "stopping everything (Ctrl-C again: at once)"

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, interrupt, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _report(self, swarm: Outcome, alone: Outcome | None) -> None:
        """Writes the summary and the picture, and prints the tables."""
        from node.demo.plot import save_learning_curves  # matplotlib: nobody should wait for it at the start

        summary_file = self.summary_file or self.root / SUMMARY
        summary_file.parent.mkdir(parents=True, exist_ok=True)
        summary_file.write_text(json.dumps(report.summary(swarm, alone), indent=2) + "\n", encoding="utf-8")
        save_learning_curves(self.root / PICTURE, swarm, alone)
        self.console.print()
        for outcome, title in ((swarm, "pass@1 in % before and after"), (alone, "the same nodes, each alone")):
            if outcome is not None:
                self.console.print(report.table(outcome, title), "")
                for line in report.deaths(outcome.view.nodes):
                    self.console.print(Text(line, f"bold {BAD}"), soft_wrap=True)
        self.console.print(Text(report.closing(swarm, alone), "bold"))
        for what, path in (("picture", self.root / PICTURE), ("summary", summary_file), ("models, logs", self.root)):
            self.console.print(Text(f"{what:>12}  {path}"), soft_wrap=True)
        if not self.keep:
            for plan in self._plans(False) + self._plans(True):
                _remove_bulk(plan)


def _remove_bulk(plan: NodePlan) -> None:
    """What only a node that goes on would need: its journal, and all checkpoints but the newest."""
    newest = trained_model(plan)
    for path in plan.directory.glob("journal.db*"):
        path.unlink(missing_ok=True)
    for path in plan.directory.glob("checkpoints/*"):
        if newest is not None and path != newest.parent:
            shutil.rmtree(path, ignore_errors=True)
