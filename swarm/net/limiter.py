"""Who may open streams to us, how fast, and how many there are of all together. Pure; `swarm.net.stack` asks.

Every stream that a peer opens costs us a socket and a task before anybody reads a byte of it, and the daemon has no
limits of its own. What is over the limit is closed unread; a peer that goes on is hung up on: it has to prove again who
it is before the next one, which costs it more than us.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from swarm.net.rates import TokenBucket
from swarm.types import PeerId

STREAMS_PER_S = 16.0
"""Of one peer, and as many at once. An honest one opens two a minute."""
MAX_SERVED = 256
"""At a time, of all protocols."""
PATIENCE = 64
"""Streams of a peer that are refused before it is hung up on."""
FORGIVEN_S = 10.0
"""Without a refusal, and they are forgotten."""
MAX_PEERS = 1024
"""That are remembered; the one longest silent is forgotten first."""


class Answer(Enum):
    SERVE = auto()
    REFUSE = auto()
    HANG_UP = auto()
    """Refuse, and close the connection with all that is on it."""


@dataclass(slots=True)
class _Caller:
    bucket: TokenBucket
    refused: int = 0
    refused_at: float = 0.0


class StreamLimiter:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._callers: OrderedDict[PeerId, _Caller] = OrderedDict()

    def ask(self, peer: PeerId, served: int) -> Answer:
        """About a stream that `peer` has just opened, while `served` others are being served."""
        now = self._clock()
        caller = self._caller(peer, now)
        if served < MAX_SERVED and caller.bucket.wait_s(1, now) == 0:
            caller.bucket.take(1, now)
            return Answer.SERVE
        caller.refused = 1 + (caller.refused if now - caller.refused_at < FORGIVEN_S else 0)
        caller.refused_at = now
        if caller.refused < PATIENCE:
            return Answer.REFUSE
        caller.refused = 0
        return Answer.HANG_UP

    def _caller(self, peer: PeerId, now: float) -> _Caller:
        if peer not in self._callers:
            self._callers[peer] = _Caller(TokenBucket(STREAMS_PER_S, now))
        self._callers.move_to_end(peer)
        if len(self._callers) > MAX_PEERS:
            self._callers.popitem(last=False)
        return self._callers[peer]
