"""An arm's settings, as JSON can write them, and the run that they are.

Everything that decides what is learned is spelled out in `BASE`, and nothing is left to the node's defaults: those are
what the experiments choose, and a changed default must not change what an old result means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from node.config import NodeConfig
from node.lab.adversary import Attack
from node.lab.experiment import Arm
from node.lab.member import Member
from node.lab.pace import Pace
from node.lab.results import Outcome
from node.lab.scoring import Scoring
from node.lab.simulation import Setup, simulate
from node.lab.summary import outcome_of
from node.lab.trackers import TRACKERS
from node.lab.worlds import WORLDS, families

Tables = Mapping[str, Mapping[str, object]]

LR = 5e-4
"""Of every experiment that does not say another: right for many small groups (the default's 32 of 2), two to four times
too large for a lone node with 8 groups of 8 (docs/experiments/learning-rate.md)."""
#: The tables of a node's config. Own rollouts only, unless an arm says otherwise.
BASE: Tables = {
    "sampler": {"group_size": 8, "max_new_tokens": 24, "exploration": 0.05, "candidates": 4},
    "tracker": {"prompt_decay": 0.96, "cell_decay": 0.875, "prior_mass": 8.0, "peers": "ignore", "peer_weight": 0.25},
    "advantage": {"type": "spo", "clamp": 5.0},
    "objective": {"type": "dppo_tv", "delta": 0.2, "cap": 2.0, "squared_log_ratio": 1e-3},
    "foreign": {"type": "receiver_baseline", "low": 0.2, "high": 0.28, "demand": 2.0, "negatives": 0.0},
    "foreign_gate": {"type": "none"},
    "learner": {
        "lr": LR,
        "betas": [0.9, 0.95],
        "weight_decay": 0.0,
        "grad_clip": 1.0,
        "warmup_steps": 10,
        "updates_per_batch": 1,
        "tokens_per_micro_batch": 2048,
        "min_advantage": 0.02,
        "opsm_delta": 0.5,
        "lr_rule": "none",
        "reincarnate_every": 0,
    },
    "pool": {
        "own_groups": 8,
        "foreign_groups": 0,
        "own_capacity": 8,
        "foreign_capacity": 256,
        "max_lag": 8,
        "foreign_max_lag": 32,
        "foreign_max_age_s": 900.0,
        "peer_share": 0.25,
        "share": {"type": "fixed"},
    },
}
#: Knobs that came after results were kept, as they were before. Not among an arm's settings: old results still count.
#: What a stranger is held against is off: the laboratory's texts are short, and its nodes are not strangers.
IMPLIED: Tables = {
    "learner": {"truncated": "scored", "packing": True},
    "sampler": {"for_swarm": 0.0},
    "guidance": {"type": "none"},
    "pool": {"newcomer_share": 1.0, "lineage_share": 1.0, "distinct": False, "max_length_ratio": 1e9},
    "limits": {"max_probability": 1e9, "max_coincidence": 1e9},
}
#: How fast node i is, relative to the first; two more than four are as fast as the first two.
SPEEDS = (1.0, 1.3, 0.8, 1.6)
#: Virtual seconds between the nodes' starts.
START_S = 3.0


def arm(
    name: str,
    *,
    world: str,
    nodes: int,
    steps: int,
    tables: Tables | None = None,
    lag: int | None = None,
    spread: float = 0.0,
    exam_every: int = 20,
    attacks: Sequence[Attack] = (),
    scoring: Scoring | None = None,
    tracker: str = "",
    tasks: str = "shown",
    seeds: Sequence[int] | None = None,
) -> Arm:
    """`tables` are laid over `BASE`; one that names a `type` replaces the base's. `spread`: of response times.
    `scoring`: how peers answer where they are asked (table `guidance`). `tracker`: of `TRACKERS`, another one than the
    node's. `tasks`: of `FAMILIES`. `seeds`: as in `Arm`. What came later has no key in the settings of an arm that does
    without, so that old results still count."""
    settings: dict[str, Any] = {
        "world": world,
        "nodes": nodes,
        "steps": steps,
        "lag": lag,
        "spread": spread,
        "exam_every": exam_every,
        "attacks": [asdict(attack) for attack in attacks],
        "tables": merged(BASE, tables or {}),
    }
    if scoring:
        settings["scoring"] = asdict(scoring)
    if tracker:
        settings["tracker"] = tracker
    if tasks != "shown":
        settings["tasks"] = tasks
    return Arm(name, settings, lambda seed: run(settings, seed), seeds)


def merged(base: Tables, changes: Tables) -> dict[str, dict[str, object]]:
    result = {name: dict(table) for name, table in base.items()}
    for name, table in changes.items():
        result[name] = dict(table) if "type" in table else result.get(name, {}) | dict(table)
    return result


def run(settings: Mapping[str, Any], seed: int) -> Outcome:
    return outcome_of(simulate(setup_of(settings, seed), seed))


def setup_of(settings: Mapping[str, Any], seed: int) -> Setup:
    """Raises KeyError for an unknown world, pydantic's ValidationError for tables that no config has."""
    models = WORLDS[settings["world"]](settings["nodes"], seed)
    members = []
    for number, model in enumerate(models):
        config = NodeConfig.model_validate(
            {
                "name": f"node-{number + 1}",
                "max_steps": settings["steps"],
                "policy": {"model": str(model)},
                "tasks": families(settings.get("tasks", "shown")),
                **merged(IMPLIED, settings["tables"]),
            }
        )
        speed = SPEEDS[number % len(SPEEDS)]
        pace = Pace(rollout_s=1.0 / speed, spread=settings["spread"], step_s=0.5 / speed, start_s=START_S * number)
        tracker = TRACKERS[settings.get("tracker", "ours")]
        members.append(Member(config=config, pace=pace, lag=settings["lag"], tracker=tracker))
    attacks = [Attack(**attack) for attack in settings["attacks"]]
    scoring = Scoring(**settings.get("scoring", {}))
    return Setup(members=members, attacks=attacks, scoring=scoring, exam_every=settings["exam_every"])
