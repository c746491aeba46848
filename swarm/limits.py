"""What a peer may send us. Part of no agreement: each node has its own, checked before it parses or allocates."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_group_bytes: PositiveInt = 1_000_000
    max_rollouts: PositiveInt = 64
    max_turns: PositiveInt = 16
    """Per rollout."""
    max_tokens: PositiveInt = 65_536
    """Per rollout."""
    max_text_bytes: PositiveInt = 262_144
    """Per rollout."""
    max_age_s: PositiveFloat = 900.0
    max_clock_skew_s: PositiveFloat = 600.0
    max_probability: PositiveFloat = 1.5
    """Sum over a group's distinct responses of what its author says their probabilities are. Honest ones add up to 1 at
    most; the rest is room for an engine's rounding."""
    max_coincidence: PositiveFloat = 40.0
    """Nats: how unlikely it may be, by the author's own log-probabilities, that responses of a group are alike."""
