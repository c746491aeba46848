"""How a node goes back to an earlier checkpoint: weights, optimiser and tracker together, as a version of their own.

What goes on as it was: steps and versions, which only grow; counters, the sampler, the drawing of tokens, which would
otherwise repeat themselves; the journal, whose log-probabilities are as true as they were. What was sampled by the
versions that are given up is stale (`Progress.line_began`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from node.checkpoint import Checkpoint, CheckpointStore
from node.engine.policy import Policy
from node.engine.trainer import PolicyTrainer
from node.progress import Progress, moments_of

#: Reads the policy in a checkpoint's model directory, on the CPU; of None, the one that training started from.
Reload = Callable[[Path | None], Policy]


async def go_back(
    to: int | None, store: CheckpointStore, trainer: PolicyTrainer, progress: Progress, reload: Reload
) -> int | None:
    """To the checkpoint of step `to`, None for birth. No step may be under way. Returns the step of that which it went
    to. Raises PolicyError, CheckpointError."""
    checkpoint = await asyncio.to_thread(_find, store, to)
    policy = await asyncio.to_thread(reload, checkpoint.model_dir if checkpoint else None)
    moments = await asyncio.to_thread(moments_of, checkpoint) if checkpoint else {}
    await trainer.replace({name: p.detach() for name, p in policy.model.named_parameters()}, moments)
    progress.go_back(checkpoint.state if checkpoint else {}, trainer.version)
    return checkpoint.step if checkpoint else None


def _find(store: CheckpointStore, step: int | None) -> Checkpoint | None:
    """That of `step`; should it be damaged, the newest that is not."""
    return None if step is None else store.at(step) or store.latest()
