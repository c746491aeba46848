"""A rank's share of a batch, and what it makes of it, on their way through a pipe: numbers and names in JSON, tokens in
safetensors. Nothing in it is ever executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors.numpy import load, save

from node.algorithms import ForeignConfig, ForeignGateConfig, LearnerConfig, ObjectiveConfig
from node.engine.ranks.messages import Message
from node.engine.updates import Rules, Share, Updated
from node.rl.lessons import Lesson
from node.rl.objective import Denominators
from node.rl.samples import PeerTokens, TokenRow
from swarm.types import PeerId

#: Arrays of a row that some rows do not have, and their dtypes.
OPTIONAL = ("behaviour", "guidance", "peer_logprobs", "peer_byte_lengths")


def rules_head(rules: Rules) -> dict[str, Any]:
    return {
        "objective": rules.objective.model_dump(mode="json"),
        "foreign": rules.foreign.model_dump(mode="json"),
        "foreign_gate": rules.foreign_gate.model_dump(mode="json"),
        "learner": rules.learner.model_dump(mode="json"),
        "temperature": rules.temperature,
        "autocast": rules.autocast,
    }


def rules_of(head: Mapping[str, Any]) -> Rules:
    return Rules(
        objective=TypeAdapter[ObjectiveConfig](ObjectiveConfig).validate_python(head["objective"]),
        foreign=TypeAdapter[ForeignConfig](ForeignConfig).validate_python(head["foreign"]),
        foreign_gate=TypeAdapter[ForeignGateConfig](ForeignGateConfig).validate_python(head["foreign_gate"]),
        learner=LearnerConfig.model_validate(head["learner"]),
        temperature=head["temperature"],
        autocast=head["autocast"],
    )


def share_message(share: Share, head: Mapping[str, Any]) -> Message:
    """`head`: what else to say."""
    rows = share.rows
    prompts = list({row.prompt_ids.tobytes(): row.prompt_ids for row in rows}.values())
    numbers = {prompt.tobytes(): number for number, prompt in enumerate(prompts)}
    origins = list(dict.fromkeys(row.origin for row in rows))
    arrays = {
        "prompt": np.array([numbers[row.prompt_ids.tobytes()] for row in rows], dtype=np.int64),
        "origin": np.array([origins.index(row.origin) for row in rows], dtype=np.int64),
        "advantage": np.array([row.advantage for row in rows], dtype=np.float64),
        "reward": np.array([row.reward for row in rows], dtype=np.float64),
        "staleness": np.array([row.staleness for row in rows], dtype=np.int64),
        "own": np.array([row.own for row in rows], dtype=np.uint8),
        "truncated": np.array([row.truncated for row in rows], dtype=np.uint8),
        **_ragged("prompt_ids", prompts, np.int32),
        **_ragged("response_ids", [row.response_ids for row in rows], np.int32),
        **_ragged("byte_lengths", [row.byte_lengths for row in rows], np.int32),
        **_ragged("behaviour", [row.behaviour for row in rows], np.float32),
        **_ragged("guidance", [row.guidance for row in rows], np.float32),
        **_ragged("peer_logprobs", [row.peer and row.peer.logprobs for row in rows], np.float32),
        **_ragged("peer_byte_lengths", [row.peer and row.peer.byte_lengths for row in rows], np.int32),
    }
    known = {
        "origins": origins,
        "denominators": asdict(share.denominators),
        "staleness": share.staleness,
        "scale": share.scale,
        "lr_scale": share.lr_scale,
    }
    return Message(head={**head, "share": known}, body=save(arrays))


def share_of(message: Message) -> Share:
    arrays, known = load(message.body), message.head["share"]
    prompts = _separate(arrays, "prompt_ids")
    responses, byte_lengths = (_separate(arrays, name) for name in ("response_ids", "byte_lengths"))
    behaviour, guidance, logprobs, peer_bytes = (_separate(arrays, name) for name in OPTIONAL)
    rows = []
    for i, (prompt, response, lengths) in enumerate(
        zip(arrays["prompt"].tolist(), responses, byte_lengths, strict=True)
    ):
        assert response is not None
        assert lengths is not None
        ids, theirs, their_bytes = prompts[prompt], logprobs[i], peer_bytes[i]
        assert ids is not None
        row = TokenRow(
            prompt_ids=ids,
            response_ids=response,
            byte_lengths=lengths,
            behaviour=behaviour[i],
            peer=None
            if theirs is None or their_bytes is None
            else PeerTokens(logprobs=theirs, byte_lengths=their_bytes),
            advantage=float(arrays["advantage"][i]),
            reward=float(arrays["reward"][i]),
            own=bool(arrays["own"][i]),
            origin=PeerId(known["origins"][arrays["origin"][i]]),
            staleness=int(arrays["staleness"][i]),
            truncated=bool(arrays["truncated"][i]),
            guidance=guidance[i],
        )
        rows.append(row)
    return Share(
        rows=tuple(rows),
        denominators=Denominators(**known["denominators"]),
        staleness=known["staleness"],
        scale=known["scale"],
        lr_scale=known["lr_scale"],
    )


def updated_head(updated: Updated) -> dict[str, Any]:
    return {
        "changed": updated.changed,
        "metrics": {name: shown(value) for name, value in updated.metrics.items()},
        "lessons": {origin: [shown(x.learned), shown(x.refused), x.gated] for origin, x in updated.lessons.items()},
        "surprises": list(updated.surprises),
    }


def updated_of(head: Mapping[str, Any]) -> Updated:
    return Updated(
        changed=head["changed"],
        metrics={name: float(value) for name, value in head["metrics"].items()},
        lessons={
            PeerId(origin): Lesson(learned=float(learned), refused=float(refused), gated=gated)
            for origin, (learned, refused, gated) in head["lessons"].items()
        },
        surprises=tuple(head["surprises"]),
    )


def shown(value: float) -> float | str:
    """For JSON, which has no number that is not finite; `float` reads it."""
    return value if np.isfinite(value) else str(value)


def _ragged(name: str, arrays: Sequence[np.ndarray | None], dtype: type[np.generic]) -> dict[str, np.ndarray]:
    """All in one, and where each ends; those that are None have length -1."""
    there = [array for array in arrays if array is not None]
    return {
        name: np.concatenate([np.zeros(0, dtype=dtype), *(array.astype(dtype, copy=False) for array in there)]),
        f"{name}/lengths": np.array([-1 if array is None else len(array) for array in arrays], dtype=np.int64),
    }


def _separate(arrays: Mapping[str, np.ndarray], name: str) -> list[np.ndarray | None]:
    parts, start = list[np.ndarray | None](), 0
    for length in arrays[f"{name}/lengths"].tolist():
        parts.append(None if length < 0 else arrays[name][start : start + length])
        start += max(length, 0)
    return parts
