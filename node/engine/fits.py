"""Does the policy of a config fit here? `python -m node.engine.fits`, for those who import no torch: the config's JSON
on standard input, an `Answer`'s on standard output. No weights are read."""

from __future__ import annotations

import sys

from pydantic import BaseModel

from node.config import NodeConfig
from node.engine.devices import learner_devices
from node.engine.opening import foresee
from swarm.errors import SwarmError


class Answer(BaseModel):
    found: str
    """What is needed, or why it will not do."""
    fits: bool


def answer(config: NodeConfig) -> Answer:
    try:
        _, demands = foresee(config, learner_devices(config.policy, config.learner))
    except SwarmError as error:
        return Answer(found=str(error), fits=False)
    return Answer(found="; ".join(map(str, demands)), fits=True)


if __name__ == "__main__":
    print(answer(NodeConfig.model_validate_json(sys.stdin.read())).model_dump_json())
