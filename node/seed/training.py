"""Supervised warm start of the seed model: until every family is above its floor, and little further.

Reinforcement learning cannot start a family that never succeeds, and has nothing to do where everything does. How fast
a family is picked up varies widely with the initial weights, so the run is steered by measurement: every
`check_every` steps pass@1 is sampled on validation questions, and the mix goes to the families below their target.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from node.engine.sampling import sample
from node.engine.text import HfTextCodec
from node.seed.demonstrations import demonstrations, distinct, stream_seed
from swarm.errors import PolicyError
from swarm.tasks.base import TaskSource
from swarm.types import FinishReason, SamplingParams, Task

Report = Callable[[str], None]
Pair = tuple[np.ndarray, np.ndarray]
"""Prompt and response ids."""

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Of one family's pass@1 at temperature 1."""

    floor: float
    """Training goes on until it is reached."""
    target: float
    """The family's share of the mix shrinks as it gets there."""
    weight: float = 1.0
    """Of the family in the mix while it is at zero."""


#: A node that is to be good at one family: that one is STRONG, the others WEAK. One without a favourite: EVEN.
WEAK = Goal(floor=0.10, target=0.20)
STRONG = Goal(floor=0.45, target=0.60, weight=2.0)
EVEN = Goal(floor=0.20, target=0.40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every number of the warm start. A change of any makes another model, and another place in the cache."""

    version: int = 1
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    head_dim: int = 32
    mlp_size: int = 384
    max_positions: int = 2048
    pairs: int = 0
    """Of letters that the tokenizer merges; 0 for bytes only."""
    init_std: float = 0.05
    """The usual 0.02 is small for tied embeddings of this width: rotations came later with it (one seed each)."""
    rope_theta: float = 100.0
    """Prompts are a dozen tokens, so short wavelengths matter: rotations were picked up at step 320, with the usual 1e4
    at 420 (one seed each)."""
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 30
    grad_clip: float = 1.0
    batch_size: int = 32
    check_every: int = 25
    first_check: int = 50
    probe_tasks: int = 56
    """Per family, for a check."""
    validation_tasks: int = 160
    """Per family, to confirm what a check found."""
    idle_share: float = 0.06
    """Least share of its weight that a family keeps, so that it is not forgotten."""
    max_steps: int = 700
    attempts: int = 3
    """Initial weights tried before giving up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    model: Qwen3ForCausalLM
    steps: int
    seconds: float
    pass_rates: dict[str, float] = field(default_factory=dict)
    """By family, on the validation questions."""


def train(
    recipe: Recipe,
    codec: HfTextCodec,
    sources: Mapping[str, TaskSource],
    goals: Mapping[str, Goal],
    seed: int,
    report: Report,
) -> Trained:
    """A model that is at or above every family's floor. Raises PolicyError after `recipe.attempts` failures."""
    wanted = ""
    for attempt in range(recipe.attempts):
        run = _Run(recipe, codec, sources, goals, seed * recipe.attempts + attempt, report)
        trained = run.until_floors()
        missed = {name: rate for name, rate in trained.pass_rates.items() if rate < goals[name].floor}
        if not missed:
            return trained
        wanted = ", ".join(f"{name} {rate:.2f} (floor {goals[name].floor:.2f})" for name, rate in missed.items())
        report(f"attempt {attempt + 1} of {recipe.attempts} stopped after {trained.steps} steps: {wanted}")
    raise PolicyError(f"the seed model did not learn its families in {recipe.max_steps} steps: {wanted}")


def new_model(recipe: Recipe, codec: HfTextCodec, pad_id: int, seed: int) -> Qwen3ForCausalLM:
    """Untrained; leaves torch's global generator as it was."""
    config = Qwen3Config(
        vocab_size=codec.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_dim,
        intermediate_size=recipe.mlp_size,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.init_std,
        eos_token_id=codec.eos_id,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def pass_rates(
    model: Qwen3ForCausalLM,
    codec: HfTextCodec,
    sources: Mapping[str, TaskSource],
    tasks: Mapping[str, Sequence[Task]],
    rng: torch.Generator,
) -> dict[str, float]:
    """By family: share of the tasks whose one sampled answer is entirely right (pass@1, temperature 1).

    An answer may be as long as the longest right one.
    """
    prompts = [codec.prompt(task) for family in tasks.values() for task in family]
    longest = max(len(_pair(codec, task)[1]) for family in tasks.values() for task in family)
    params = SamplingParams(max_new_tokens=longest)
    model.eval()
    rows = iter(sample(model, prompts, [1] * len(prompts), params, codec.eos_id, rng))
    rates = {}
    for name, family in tasks.items():
        rewards = [sources[name].score(task, codec.decode(next(rows)[0].ids)[0]) for task in family]
        rates[name] = float(np.mean(np.asarray(rewards) >= 1.0))
    return rates


class _Run:
    """One attempt."""

    def __init__(
        self,
        recipe: Recipe,
        codec: HfTextCodec,
        sources: Mapping[str, TaskSource],
        goals: Mapping[str, Goal],
        seed: int,
        report: Report,
    ) -> None:
        self._recipe, self._codec, self._sources, self._goals, self._report = recipe, codec, sources, goals, report
        self._families = list(sources)
        self._rng = random.Random(seed)
        self._sampling = torch.Generator().manual_seed(seed)
        self._validation = {
            name: distinct(demonstrations(source, stream_seed(seed, "validation")), recipe.validation_tasks)
            for name, source in sources.items()
        }
        self._streams = {
            name: demonstrations(
                source, stream_seed(seed, "training"), frozenset(task.prompt for task in self._validation[name])
            )
            for name, source in sources.items()
        }
        self._model = new_model(recipe, codec, pad_id=0, seed=seed)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )

    def until_floors(self) -> Trained:
        """... or until `max_steps`: the caller looks at the rates."""
        started = time.monotonic()
        rates = dict.fromkeys(self._families, 0.0)
        step = 0
        while step < self._recipe.max_steps:
            self._train_step(step, self._mix(rates))
            step += 1
            if step < self._recipe.first_check or step % self._recipe.check_every:
                continue
            rates = self._measure(self._recipe.probe_tasks)
            if self._reached(rates):  # few tasks, many looks: one of them is lucky
                rates = self._measure(self._recipe.validation_tasks)
            shown = "  ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
            self._report(f"step {step}, {time.monotonic() - started:.1f} s: {shown}")
            if self._reached(rates):
                break
        return Trained(model=self._model.eval(), steps=step, seconds=time.monotonic() - started, pass_rates=rates)

    def _measure(self, n: int) -> dict[str, float]:
        tasks = {name: family[:n] for name, family in self._validation.items()}
        return pass_rates(self._model, self._codec, self._sources, tasks, self._sampling)

    def _reached(self, rates: Mapping[str, float]) -> bool:
        return all(rates[name] >= self._goals[name].floor for name in self._families)

    def _mix(self, rates: Mapping[str, float]) -> list[float]:
        """What a family is still short of, relative to its target. Hardly anything goes to those that are there: a node
        that is good at everything has nothing to learn from its peers."""
        goals = [(self._goals[name], rates[name]) for name in self._families]
        return [goal.weight * max(1 - rate / goal.target, self._recipe.idle_share) for goal, rate in goals]

    def _train_step(self, step: int, mix: Sequence[float]) -> None:
        picked = self._rng.choices(self._families, mix, k=self._recipe.batch_size)
        ids, labels = collate([_pair(self._codec, next(self._streams[name])) for name in picked])
        self._model.train()
        # right-padded and causal: no real token sees a pad, so no mask is needed
        logits = self._model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * min(1.0, (step + 1) / self._recipe.warmup_steps)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.grad_clip)
        self._optimizer.step()


def _pair(codec: HfTextCodec, task: Task) -> Pair:
    return codec.prompt(task), codec.encode(f"<answer>{task.answer}</answer>", FinishReason.STOP)


def collate(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T], right-padded with 0, and labels [B, T]: the response's ids, `IGNORED` elsewhere."""
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.zeros((len(pairs), longest), dtype=torch.long)
    labels = torch.full((len(pairs), longest), IGNORED, dtype=torch.long)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.from_numpy(np.concatenate([prompt, response]))
        labels[row, len(prompt) : end] = torch.from_numpy(response)
    return ids, labels
