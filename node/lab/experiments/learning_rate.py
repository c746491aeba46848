"""Are the other experiments' answers answers at one learning rate only? The decisive ones again, with shorter steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.lab.experiment import Arm, Comparison, Experiment
from node.lab.experiments import ablation
from node.lab.experiments.common import COSTS, LEARNED, LEARNER, LOOK, NODES, PASS, SINGLE_STEPS, STEPS, UNIFORM
from node.lab.settings import LR, Tables, arm

FACTORS = (1.0, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    world: str = "same"
    nodes: int = 1
    steps: int = SINGLE_STEPS
    tables: Tables
    lag: int | None = None
    factors: Sequence[float] = FACTORS
    deciding: Sequence[float] = ()
    """Factors with every seed; the others are looked at."""

    def arm(self, factor: float) -> Arm:
        tables = {**self.tables, "learner": {**self.tables.get("learner", {}), "lr": factor * LR}}
        return arm(
            self.at(factor),
            world=self.world,
            nodes=self.nodes,
            steps=self.steps,
            tables=tables,
            lag=self.lag,
            seeds=None if factor in self.deciding else LOOK,
        )

    def at(self, factor: float) -> str:
        return f"{self.name}:x{factor:g}"


def _shared(foreign: int) -> Tables:
    pool = {"own_groups": 8, "foreign_groups": foreign, "own_capacity": 8}
    return {"sampler": UNIFORM, "learner": LEARNER, "pool": pool}


OLD: Tables = {"sampler": UNIFORM, "pool": {"max_lag": 1000}}
TWICE: Tables = {**OLD, "learner": {"updates_per_batch": 2}}
ALONE = Case(name="alone", tables=OLD, lag=0, factors=(2.0, *FACTORS, 0.125))
#: A warm-up is for steps that are too long for an optimiser without moments.
COLD = Case(name="alone,no-warmup", tables={**OLD, "learner": {"warmup_steps": 0}}, lag=0, factors=(2.0, 1.0))
DEFAULT, WITHOUT_PEERS = (
    Case(
        name=name,
        world="skills",
        nodes=NODES,
        steps=ablation.STEPS,
        tables=ablation.tables(change),
        factors=(2.0, *FACTORS),
    )
    for name, change in (("default", {}), ("default-alone", ablation.CHANGES["no-peers"]))
)
SHARING = [
    Case(
        name=f"8+{j}",
        world="skills",
        nodes=NODES,
        steps=STEPS,
        tables=_shared(j),
        deciding=(1.0, 0.5),
    )
    for j in (0, 24)
]
OLDER, TWICE_UPDATED = Case(name="lag-32", tables=OLD, lag=32), Case(name="two-updates", tables=TWICE, lag=0)
CASES = (ALONE, COLD, OLDER, TWICE_UPDATED, DEFAULT, WITHOUT_PEERS, *SHARING)


def _panel(*cases: Case) -> list[str]:
    return [case.at(factor) for case in cases for factor in case.factors]


EXPERIMENT = Experiment(
    name="learning-rate",
    version=1,
    question="Are the other experiments' answers answers at one learning rate only?",
    setting=f"xF: at F times their learning rate of {LR:g}. One node, {SINGLE_STEPS} steps of 8 groups of 8 rollouts:"
    " alone, also without warm-up, from batches that are 32 versions old, with two updates a batch. Four nodes, each"
    f" good at a family of its own: 8+J as in sharing-skills ({STEPS} steps), the default with and without peers as in"
    f" ablation ({ablation.STEPS} steps).",
    arms=[case.arm(factor) for case in CASES for factor in case.factors],
    comparisons=[
        *(Comparison(case.at(f), case.at(1.0)) for case in CASES for f in case.factors if f != 1.0),
        *(Comparison(f"{name}:x{f:g}", ALONE.at(f)) for f in FACTORS for name in ("lag-32", "two-updates")),
        *(Comparison(COLD.at(f), ALONE.at(f)) for f in COLD.factors),
        *(Comparison(DEFAULT.at(f), WITHOUT_PEERS.at(f)) for f in DEFAULT.factors),
        *(Comparison(f"8+24:x{f:g}", f"8+0:x{f:g}") for f in FACTORS),
    ],
    metrics=LEARNED | COSTS,
    plots=[PASS],
    panels=[_panel(ALONE), _panel(OLDER, TWICE_UPDATED), _panel(DEFAULT, WITHOUT_PEERS), _panel(*SHARING)],
)
