"""How good the policy is on questions that nobody trains on, tried every so many steps beside the running node."""

from __future__ import annotations

import logging

from node.config import EvalConfig
from node.engine.base import Generator
from node.evaluate import evaluate, held_out_from
from node.learning import Learning
from node.ledger import Ledger
from node.logs import ids
from node.text_codec import TextCodec
from swarm.errors import TaskError
from swarm.tasks.base import Judge
from swarm.types import SamplingParams, Task, family_of

log = logging.getLogger(__name__)

#: Everybody's periodic questions start here: the same ones every time, so that the curve is of the policy alone.
SEED = 20_000_003


class Evaluation:
    def __init__(
        self,
        *,
        config: EvalConfig,
        judge: Judge,
        generator: Generator,
        codec: TextCodec,
        params: SamplingParams,
        learning: Learning,
        ledger: Ledger,
    ) -> None:
        self._config = config
        self._judge = judge
        self._generator = generator
        self._codec = codec
        self._params = params
        self._learning = learning
        self._ledger = ledger
        self._tasks: dict[str, list[Task]] = {}

    async def prepare(self) -> None:
        """Picks the questions. A source with too few of them is left out, with a warning."""
        for source in self._judge.sources:
            family = family_of(source.name)
            try:
                self._tasks[family] = await held_out_from(self._judge, source, self._config.tasks_per_family, SEED)
            except TaskError as error:
                self._ledger.warn(f"no evaluation on {family}: {error}")

    async def once(self) -> None:
        """Tries every question once, with the policy as it is now."""
        step = self._learning.steps
        results = await evaluate(self._generator, self._codec, self._judge, self._tasks, 1, self._params)
        shares = {family: result.pass_at_1 for family, result in results.items()}
        self._ledger.evaluated(step, shares)
        said = ", ".join(f"{family} {share:.1%}" for family, share in shares.items())
        log.info("held out: %s", said, extra=ids(step=step))
