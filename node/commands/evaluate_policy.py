"""A model, an engine and a judge for as long as an evaluation takes: what `node.daemon` is to `run`."""

from __future__ import annotations

import asyncio
import json

import torch

from node.config import NoAdapter, NodeConfig, ReasoningGymTasks, SamplerConfig, TransformersEngine
from node.engine.policy import load_policy, prepare_process
from node.engine.transformers import TransformersGenerator
from node.evaluate import FamilyResult, evaluate, held_out_from
from node.evaluation import SEED
from node.seed.demonstrations import DEMO_FAMILIES
from node.settings import task_specs
from swarm.tasks.judge import ProcessJudge
from swarm.types import PolicyVersion, family_of


def seed_config() -> NodeConfig:
    """The tasks that the built-in model knows of."""
    tasks = tuple(ReasoningGymTasks(name=spec.name, config=json.loads(spec.config)) for spec in DEMO_FAMILIES)
    return NodeConfig(tasks=tasks, sampler=SamplerConfig(max_new_tokens=24))


async def evaluate_policy(model: str, config: NodeConfig, tasks: int, samples: int) -> dict[str, FamilyResult]:
    """`model` on `tasks` held-out questions of each of the config's families, `samples` answers to each."""
    prepare_process(config.threads)
    plain = config.policy.model_copy(update={"model": model, "adapter": NoAdapter()})
    policy = await asyncio.to_thread(load_policy, plain)
    copy = policy.sampling_copy(config.policy.dtype)
    rng = torch.Generator(policy.model.device).manual_seed(config.seed)
    generator = TransformersGenerator(copy, policy.codec, TransformersEngine(), PolicyVersion(0), rng)
    async with ProcessJudge(task_specs(config), timeout_s=config.score_timeout_s) as judge, generator:
        questions = {
            family_of(source.name): await held_out_from(judge, source, tasks, SEED) for source in judge.sources
        }
        return await evaluate(generator, policy.codec, judge, questions, samples, config.sampler.params)
