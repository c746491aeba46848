"""Parts of a node that may fail alone, and what happens then: learner, engine and network.

    up -> failed -> a pause that grows -> up ...          the other parts go on meanwhile
             └──── too often in too short a time: CrashLoop, which ends the node with an exit code of its own

What a part is put back to is the part's own business: the learner to the weights before the step or to the newest
checkpoint (`Learning.recover`), the engine to the newest weights, the network to a new daemon. It does not matter what
failed: an exception, memory, a killed process. A failure of no part is not caught here: a bug in a loop ends the node,
and whoever started it (systemd, a container) starts it again from its checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from node.logs import ids
from node.table import Table
from swarm.errors import ConfigError, CrashLoop

T = TypeVar("T")
State = Literal["up", "restarting", "given up"]

MAX_ERROR = 300
"""Characters kept of an error's text."""

log = logging.getLogger(__name__)


class SupervisionConfig(Table):
    """When a part of the node (learner, engine, network) is started again, and when the node gives up."""

    max_restarts: NonNegativeInt = 10
    """Of one part within window_s; one failure more ends the node (exit code 69)."""
    window_s: PositiveFloat = 900.0
    """Failures that are older are forgotten."""
    first_pause_s: NonNegativeFloat = 1.0
    """Before the first restart; doubled with every failure in the window, and shortened by up to half at random."""
    longest_pause_s: NonNegativeFloat = 60.0
    stall_s: NonNegativeFloat = 1800.0
    """A learner's step, or a batch of the transformers engine, that takes longer is stuck, and ends the node (exit code
    69): a thread cannot be killed alone. 0 never. vLLM has engine.stall_timeout_s."""


class Part:
    """One part: how often it failed lately, and how long to wait now. For the event loop that it is used in."""

    def __init__(
        self,
        name: str,
        config: SupervisionConfig,
        *,
        counters: Counter[str] | None = None,
        warn: Callable[[str], None] = lambda text: None,
        outages: tuple[type[Exception], ...] = (),
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`counters["<name>_restarts"]` is incremented. `outages` are the world's doing: after them the part is started
        again for as long as it takes. `clock`: monotonic seconds."""
        self.name = name
        self.state: State = "up"
        self.restarts = 0
        """Since the node was started."""
        self.last_error = ""
        self.last_at = 0.0
        """By `clock`."""
        self._config = config
        self._counters = Counter[str]() if counters is None else counters
        self._warn = warn
        self._outages = outages
        self._rng = random.Random() if rng is None else rng
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=max(config.max_restarts + 1, 64))  # when, within the window

    @property
    def recent(self) -> int:
        """Failures within the window, as far as they count."""
        while self._failures and self._clock() - self._failures[0] > self._config.window_s:
            self._failures.popleft()
        return len(self._failures)

    @property
    def allowed(self) -> int:
        return self._config.max_restarts

    @property
    def last_error_s(self) -> float:
        """Seconds since the last failure; 0 without one."""
        return self._clock() - self.last_at if self.last_error else 0.0

    def up(self) -> None:
        """It does its work again."""
        self.state = "up"

    def failed(self, error: Exception) -> float:
        """Counts a failure and returns how long to wait before the part is started again, in seconds.

        Raises CrashLoop when it was one too many, and `error` itself when no restart can help (ConfigError) or when
        another part's crash loop is what it is.
        """
        if isinstance(error, ConfigError | CrashLoop):
            raise error
        self.last_error, self.last_at = _said(error), self._clock()
        self._failures.append(self.last_at)
        outage = isinstance(error, self._outages) if self._outages else False
        if self.recent > self._config.max_restarts and not outage:
            self.state = "given up"
            raise CrashLoop(
                f"the {self.name} failed {self.recent} times within {self._config.window_s:g} s"
                f" (supervision.max_restarts = {self._config.max_restarts}): {self.last_error}"
            ) from error
        self.state = "restarting"
        self.restarts += 1
        self._counters[f"{self.name}_restarts"] += 1
        pause_s = self._pause_s()
        text = f"the {self.name} is started again: {self.last_error}"
        self._warn(text)
        about = ids(part=self.name, failures=self.recent, pause_s=round(pause_s, 2))
        log.warning("%s", text, extra=about, exc_info=None if outage else error)
        return pause_s

    async def keep(self, live: Callable[[], Awaitable[T]]) -> T:
        """What `live()` returns in the end; as long as it raises, it is called again after a pause. Raises as `failed`
        does."""
        while True:
            try:
                return await live()
            except Exception as error:  # noqa: BLE001 - whatever ended a part, the others go on
                pause_s = self.failed(error)
            await asyncio.sleep(pause_s)
            self.up()

    def _pause_s(self) -> float:
        doublings = min(len(self._failures) - 1, 30)
        whole = min(self._config.first_pause_s * 2**doublings, self._config.longest_pause_s)
        return whole * self._rng.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Those of one node."""

    learner: Part
    engine: Part
    network: Part
    """What the network does to us is no reason to give up: alone, a node keeps learning."""

    @classmethod
    def of(cls, config: SupervisionConfig, counters: Counter[str], warn: Callable[[str], None]) -> Parts:
        return cls(
            learner=Part("learner", config, counters=counters, warn=warn),
            engine=Part("engine", config, counters=counters, warn=warn),
            network=Part("network", config, counters=counters, warn=warn, outages=(OSError,)),
        )

    def __iter__(self) -> Iterator[Part]:
        return iter((self.learner, self.engine, self.network))


def unsupervised(name: str) -> Part:
    """A part whose first failure is the last."""
    return Part(name, SupervisionConfig(max_restarts=0))


def _said(error: Exception) -> str:
    """In one line; of errors that are not our own sentences, with their kind."""
    text, kind = " ".join(str(error).split()), type(error).__name__
    ours = type(error).__module__.partition(".")[0] in ("node", "swarm")
    return (text if ours and text else f"{kind}: {text}" if text else kind)[:MAX_ERROR]
