"""Who has earned what with us: strikes for what no honest peer does, trust for what we have learned.

An identity costs nothing, so nobody begins with either. Nothing that a peer says of itself counts: a strike is a check
that failed, trust is what the learner trained on. Everything fades and everything is bounded. What others think of a
peer is not asked for, so that nobody can be talked well of, or ill.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swarm.types import PeerId

MAX_PEERS = 4096
MAX_FILE_BYTES = 4 << 20
SAVE_S = 60.0
"""A crash loses at most so much of what was earned."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Offences:
    strikes: float
    at: float
    """When the strikes were counted; they fade from here."""
    banned_until: float = 0.0
    rests_until: float = 0.0


@dataclass(slots=True)
class _Earned:
    trust: float
    at: float


class Standing:
    """What peers have earned, by our own clock (monotonic seconds).

    Enough strikes ban a peer: for a minute, then longer each time, up to an hour. Each one halves its trust, and a ban
    takes all of it. Trust is the sum of what its groups taught us, each at most 1, and fades over hours, so that who
    has been away for a day begins again; it is capped, so that no past is good for more than a few strikes.

    With a `path` it is kept over a restart: a small JSON file, replaced whole; one that is missing or damaged is an
    empty one.
    """

    LIMIT = 4.5
    """The fifth in a minute and a half is one too many."""
    HALF_LIFE_S = 600.0
    SHORTEST_S = 60.0
    LONGEST_S = 3600.0
    TRUSTED = 5.0
    """From here a peer is no newcomer: after some tens of groups that taught us something."""
    MOST_TRUST = 20.0
    TRUST_HALF_LIFE_S = 6 * 3600.0

    def __init__(
        self,
        clock: Callable[[], float],
        path: Path | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`wall_clock`: unix seconds, for what has faded while we were down."""
        self._clock, self._path, self._wall_clock = clock, path, wall_clock
        self._offences: OrderedDict[PeerId, _Offences] = OrderedDict()
        self._earned: dict[PeerId, _Earned] = {}
        self._lineages: OrderedDict[PeerId, str] = OrderedDict()
        self._saved_at = clock()
        self._load()

    # Strikes ----------------------------------------------------------------------------------------------------------

    def strike(self, peer: PeerId, weight: float = 1.0) -> None:
        """It did what no honest peer does."""
        now = self._clock()
        offences = self._offences.pop(peer, None) or _Offences(0.0, now)
        offences.strikes = self._strikes(offences, now) + weight
        offences.at = now
        trust = self.trust(peer) * 0.5**weight
        if offences.strikes >= self.LIMIT:
            ban = self.SHORTEST_S * 2.0 ** min(offences.strikes - self.LIMIT, 10)
            offences.banned_until = now + min(ban, self.LONGEST_S)
            trust = 0.0
        self._offences[peer] = offences
        self._bound_offences()
        self._set_trust(peer, trust, now)

    def rest(self, peer: PeerId, seconds: float) -> None:
        """Excludes a peer that is no offender, only useless at the moment."""
        now = self._clock()
        offences = self._offences.setdefault(peer, _Offences(0.0, now))
        offences.rests_until = max(offences.rests_until, now + seconds)
        self._bound_offences()

    def banned(self, peer: PeerId) -> bool:
        return self.ban_s(peer) > 0

    def ban_s(self, peer: PeerId) -> float:
        """Seconds until its ban is over; 0 without one."""
        offences = self._offences.get(peer)
        return 0.0 if offences is None else max(offences.banned_until - self._clock(), 0.0)

    def excluded(self, peer: PeerId) -> bool:
        """Banned or resting: not to be asked for anything."""
        offences = self._offences.get(peer)
        return offences is not None and self._clock() < max(offences.banned_until, offences.rests_until)

    def _strikes(self, offences: _Offences, now: float) -> float:
        return offences.strikes * 0.5 ** ((now - offences.at) / self.HALF_LIFE_S)

    def _bound_offences(self) -> None:
        """The oldest offenders are forgotten first."""
        while len(self._offences) > MAX_PEERS:
            self._offences.popitem(last=False)

    # Trust ------------------------------------------------------------------------------------------------------------

    def credit(self, peer: PeerId, use: float) -> None:
        """What a step learned from its groups (`node.rl.lessons`); negative for what our own likelihood refused. Who
        has no trust left to lose is struck for it."""
        now = self._clock()
        trust = self.trust(peer) + use
        if trust < 0:
            self.strike(peer, min(-trust, 1.0))
        self._set_trust(peer, min(max(trust, 0.0), self.MOST_TRUST), now)
        if now - self._saved_at >= SAVE_S:
            self.save()

    def trust(self, peer: PeerId) -> float:
        """In [0, MOST_TRUST]; 0 of a peer that is not known."""
        earned = self._earned.get(peer)
        return 0.0 if earned is None else self._faded(earned, self._clock())

    def trusted(self, peer: PeerId) -> bool:
        return self.trust(peer) >= self.TRUSTED

    def _faded(self, earned: _Earned, now: float) -> float:
        return earned.trust * 0.5 ** ((now - earned.at) / self.TRUST_HALF_LIFE_S)

    def _set_trust(self, peer: PeerId, trust: float, now: float) -> None:
        if trust <= 0:
            self._earned.pop(peer, None)
            return
        self._earned[peer] = _Earned(trust, now)
        if len(self._earned) > MAX_PEERS:  # whoever has least goes: a crowd of newcomers makes nobody else forgotten
            del self._earned[min(self._earned, key=lambda peer: self._faded(self._earned[peer], now))]

    # Lineage ----------------------------------------------------------------------------------------------------------

    def reached(self, peer: PeerId, address: str) -> None:
        """We have a connection to it there (a multiaddr). Not for addresses that are only announced."""
        lineage = lineage_of(address)
        if lineage is None:
            return
        self._lineages[peer] = lineage
        self._lineages.move_to_end(peer)
        if len(self._lineages) > MAX_PEERS:
            self._lineages.popitem(last=False)

    def lineage(self, peer: PeerId) -> str | None:
        """The network that we reached it in last; None if we never did, or in one of our own."""
        return self._lineages.get(peer)

    # The file ---------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Never raises: a full disk costs the memory, not the node."""
        self._saved_at = now = self._clock()
        if self._path is None:
            return
        content = {
            "saved_at": self._wall_clock(),
            "trust": {peer: self._faded(earned, now) for peer, earned in self._earned.items()},
            "strikes": {
                peer: [self._strikes(offences, now), max(offences.banned_until - now, 0.0)]
                for peer, offences in self._offences.items()
            },
        }
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            aside.write_text(json.dumps(content) + "\n")
            aside.replace(self._path)
        except OSError as error:
            logger.warning("%s: standing was not saved: %s", self._path, error)

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large")
            content = json.loads(self._path.read_text())
            down_s = max(self._wall_clock() - _number(content["saved_at"]), 0.0)
            saved = self._clock() - down_s
            earned = {PeerId(str(peer)): _Earned(_number(trust), saved) for peer, trust in content["trust"].items()}
            offences = {
                PeerId(str(peer)): _Offences(_number(strikes), saved, saved + _number(ban))
                for peer, (strikes, ban) in content["strikes"].items()
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s: not read: %s", self._path, error)
            return
        for peer, one in earned.items():
            self._earned[peer] = _Earned(min(one.trust, self.MOST_TRUST), one.at)
        self._offences.update(offences)
        self._earned = dict(list(self._earned.items())[:MAX_PEERS])
        self._bound_offences()


def lineage_of(address: str) -> str | None:
    """The /24 (IPv4) or /48 (IPv6) that a multiaddr is in: what one operator gets cheaply. None for a relayed address,
    which is the relay's, for a name, and for loopback and private networks, where nobody is a stranger."""
    parts = address.split("/")
    if "p2p-circuit" in parts or len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    if not ip.is_global:
        return None
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


def _number(value: object) -> float:
    """Finite and not negative. Raises ValueError."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a number that we write")
    return float(value)
