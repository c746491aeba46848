"""Where experiments take place: which models the nodes of a run start from. Everything follows from the run's seed.

All worlds have the four families of the built-in model, by default with its difficulties. Models are made on demand and
found in the cache afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from node.seed.cache import seed_model
from node.seed.demonstrations import DEMO_FAMILIES, reasoning_gym_spec
from node.seed.training import EVEN, Goal, Recipe
from swarm.tasks.base import SourceSpec

#: Widths of the models in "sizes": 0.12, 0.26, 0.46 and 0.72 million parameters.
SIZES = (
    Recipe(hidden_size=64, head_dim=16, mlp_size=192),
    Recipe(hidden_size=96, head_dim=24, mlp_size=288),
    Recipe(),
    Recipe(hidden_size=160, head_dim=40, mlp_size=480),
)
#: What apprentices are taught.
TAUGHT = "spell_backward"
#: What nodes are asked: what their models were shown, or also what is longer, much of which they can hardly do.
FAMILIES: Mapping[str, Sequence[SourceSpec]] = {
    "shown": DEMO_FAMILIES,
    "uneven": (
        reasoning_gym_spec("spell_backward", min_word_len=3, max_word_len=10),
        reasoning_gym_spec("rotate_matrix", min_n=2, max_n=3),
        reasoning_gym_spec(
            "number_sorting", min_numbers=2, max_numbers=5, min_value=0, max_value=9, min_decimals=0, max_decimals=0
        ),
        reasoning_gym_spec("palindrome_generation", min_length=3, max_length=9),
    ),
}
#: Of letters in the second tokenizer of "tokenizers".
PAIRS = 16


World = Callable[[int, int], Sequence[Path]]


def families(which: str) -> list[dict[str, object]]:
    """Of `FAMILIES`, as a config's `tasks`."""
    return [{"type": f.type, "name": f.name, "config": json.loads(f.config)} for f in FAMILIES[which]]


def same(nodes: int, seed: int) -> list[Path]:
    """Everybody starts from the same middling model."""
    return [seed_model(seed=seed)] * nodes


def skills(nodes: int, seed: int) -> list[Path]:
    """Node i is good at family i and poor at the others; no two were taught with the same data."""
    names = [family.name for family in DEMO_FAMILIES]
    return [seed_model(strong=names[i % len(names)], seed=_model_seed(seed, i)) for i in range(nodes)]


def sizes(nodes: int, seed: int) -> list[Path]:
    """Middling models of four sizes."""
    return [seed_model(seed=_model_seed(seed, i), recipe=SIZES[i % len(SIZES)]) for i in range(nodes)]


def tokenizers(nodes: int, seed: int) -> list[Path]:
    """Middling models; every second one has a tokenizer that merges frequent pairs of letters."""
    recipes = (Recipe(), Recipe(pairs=PAIRS))
    return [seed_model(seed=_model_seed(seed, i), recipe=recipes[i % 2]) for i in range(nodes)]


def apprentices(rate: float) -> World:
    """Node 1 is an expert of `TAUGHT`; the others begin at about `rate` there, and are middling elsewhere."""

    def models(nodes: int, seed: int) -> list[Path]:
        goal = Goal(floor=0.8 * rate, target=rate, weight=0.5) if rate else Goal(floor=0.0, target=1.0, weight=0.0)
        goals = {family.name: goal if family.name == TAUGHT else EVEN for family in DEMO_FAMILIES}
        expert = seed_model(strong=TAUGHT, seed=_model_seed(seed, 0))
        return [expert, *(seed_model(goals=goals, seed=_model_seed(seed, i)) for i in range(1, nodes))]

    return models


def _model_seed(seed: int, number: int) -> int:
    return 100 * seed + number


#: (nodes, seed) -> each node's model.
WORLDS: Mapping[str, World] = {
    "same": same,
    "skills": skills,
    "sizes": sizes,
    "tokenizers": tokenizers,
    "apprentices-0": apprentices(0.0),
    "apprentices-0.05": apprentices(0.05),
    "apprentices-0.2": apprentices(0.2),
}
