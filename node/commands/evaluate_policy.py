"""A model, an engine and a judge for as long as an evaluation takes: what `node.daemon` is to `run`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import torch

from node.assembly import trainer_of
from node.config import NoAdapter, NodeConfig, ReasoningGymTasks, SamplerConfig, VllmEngine
from node.engine.base import Generator
from node.engine.opening import ChosenEngine, choose, open_generator
from node.engine.policy import Policy, load_policy, prepare_process
from node.evaluate import Report, ask, digest, held_out_questions, powers_of_two, summary
from node.evaluation import SEED
from node.seed.demonstrations import DEMO_FAMILIES
from node.settings import task_specs
from node.supervision import Part
from node.time_account import GENERATORS, TimeAccount
from swarm.tasks.judge import ProcessJudge
from swarm.types import PolicyVersion

log = logging.getLogger(__name__)

#: All that a learner needs that only hands its weights over once, and has done so.
IDLE_LEARNER_GIB = 1e-3


def seed_config() -> NodeConfig:
    """The tasks that the built-in model knows of."""
    tasks = tuple(ReasoningGymTasks(name=spec.name, config=json.loads(spec.config)) for spec in DEMO_FAMILIES)
    return NodeConfig(tasks=tasks, sampler=SamplerConfig(max_new_tokens=24))


async def evaluate_policy(
    model: str, config: NodeConfig, tasks: int, samples: int, ks: Collection[int] | None = None
) -> Report:
    """`model` on `tasks` held-out questions of each of the config's families, `samples` answers to each. `ks` are the
    k of pass@k and majority@k, at most `samples`; None for the powers of two."""
    prepare_process(config.threads)
    plain = config.policy.model_copy(update={"model": model, "adapter": NoAdapter()})
    policy = await asyncio.to_thread(load_policy, plain)
    params = config.sampler.params
    with tempfile.TemporaryDirectory() as scratch:  # a node may be running in the config's own directory
        config = config.model_copy(update={"policy": plain, "data_dir": Path(scratch)})
        chosen = _without_learner(choose(config, policy.size, policy.devices))
        async with ProcessJudge(task_specs(config), timeout_s=config.score_timeout_s) as judge:
            questions = await held_out_questions(judge, tasks, SEED)  # before the engine: it may take a minute
            async with _generator(config, chosen, policy) as generator:
                answered = await ask(generator, policy.codec, judge, questions, samples, params)
    ks = powers_of_two(samples) if ks is None else ks
    return Report(
        model=model,
        fingerprint=policy.fingerprint,
        engine=chosen.config.type,
        questions=sum(map(len, questions.values())),
        samples=samples,
        digest=digest(questions),
        system_prompt=plain.system_prompt,
        sampling=params,
        overall=summary(list(answered.values()), ks),
        families={family: summary([asked], ks) for family, asked in answered.items()},
    )


def _without_learner(chosen: ChosenEngine) -> ChosenEngine:
    """With all of the GPU that no learner needs here."""
    if not isinstance(chosen.config, VllmEngine):
        return chosen
    alone = chosen.config.model_copy(update={"learner_gib": IDLE_LEARNER_GIB, "sleep": False})
    return dataclasses.replace(chosen, config=alone)


@asynccontextmanager
async def _generator(config: NodeConfig, chosen: ChosenEngine, policy: Policy) -> AsyncIterator[Generator]:
    """The engine gets its weights as a node's does, from a learner, which makes no step."""
    async with trainer_of(config, policy, chosen.probe(policy.codec), PolicyVersion(0)) as learner:
        weights = await learner.weights()
    rng = torch.Generator(policy.model.device).manual_seed(config.seed)
    times, part = TimeAccount(GENERATORS), Part("engine", config.supervision)
    async with open_generator(config, chosen, policy, weights, rng, Counter(), log.warning, times, part) as generator:
        yield generator
