"""The node's end of a learner on several devices: `Learner`, whose device is a rank of processes.

The node's process keeps the model's shape, and the weights that it began with, on the CPU; it computes nothing.
Weights, and the optimiser's state for a checkpoint, come whole, through shared memory, in the format of one device: a
node can go on with another number of devices than its checkpoint was made with.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from node.engine.budget import TokenBudget
from node.engine.policy import Policy
from node.engine.ranks.messages import Message
from node.engine.ranks.processes import LearnerLost, Processes, environment
from node.engine.ranks.transit import rules_head, share_message, shown, updated_of
from node.engine.shared import SharedTensors, mapped
from node.engine.trainer import Step
from node.engine.updates import Rules, Share, Updated
from node.rl.lessons import together
from node.rl.split import split
from swarm.errors import CheckpointError
from swarm.types import PolicyVersion

START_TIMEOUT_S = 300.0
"""For a rank to import what it needs, meet the others and make its part of a model."""


class SeveralDevices:
    """Nothing runs until `open`. After a LearnerLost there are no processes any more: `replace` and `restore`, with
    what a checkpoint has, start others; after one for want of memory, with half of the tokens in a micro-batch."""

    def __init__(self, policy: Policy, rules: Rules, devices: Sequence[torch.device], threads: int) -> None:
        """`policy`, on the CPU, is what is trained from. `threads`: CPU threads of each rank."""
        self._policy = policy
        self._rules = rules
        self._devices = devices
        self._threads = threads
        self._budget = TokenBudget(rules.learner.tokens_per_micro_batch)
        self._processes: Processes | None = None

    @property
    def pids(self) -> list[int]:
        """By rank; none when they are not up."""
        return self._processes.pids if self._processes is not None else []

    def open(self) -> None:
        self.close()
        self._processes = Processes(len(self._devices), environment(self._threads))
        model = self._policy.model
        with tempfile.TemporaryDirectory(prefix="swarm-node-ranks-") as directory:
            self._ask([self._beginning(rank, Path(directory) / "store") for rank in range(len(self._devices))])
        self._load({**dict(model.named_parameters()), **dict(model.named_buffers())})

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts `tensors`, by parameter name, in place of what is trained; starts the ranks where they are lost."""
        self._begin_anew_if_lost()
        self._load(tensors)

    def settle(self) -> bool:
        """What the ranks hold after a failure, if there are any left, is not known."""
        return False

    def close(self) -> None:
        if self._processes is not None:
            processes, self._processes = self._processes, None
            processes.close()

    def prepare(self, share: Share) -> Step:
        shares = [replace(share, rows=rows) for rows in split(share.rows, len(self._devices))]
        frames = [share_message(each, {"op": "step"}) for each in shares]
        longest = max(map(len, share.rows))
        return lambda version, gate: self._step(frames, version, gate, longest)

    def probed(self, probe: np.ndarray) -> np.ndarray:
        answer = self._ask_all({"op": "probe", "ids": probe.tolist()})
        return np.array(answer["logprobs"], dtype=np.float32)

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return dict(mapped(self._ask_all({"op": "weights", "dtype": str(dtype).removeprefix("torch.")})["layout"]))

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return self.tensors(torch.float32), dict(mapped(self._ask_all({"op": "moments"})["layout"]))

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        names = {name for name, parameter in self._policy.model.named_parameters() if parameter.requires_grad}
        for name in tensors:
            if name.rpartition("/")[0] not in names:
                raise CheckpointError(f"optimizer state {name!r} belongs to no parameter of this policy")
        self._begin_anew_if_lost()
        answer = self._ask_all({"op": "restore"}, tensors)
        if "refused" in answer:
            raise CheckpointError(answer["refused"])

    def _begin_anew_if_lost(self) -> None:
        if self._processes is None:
            self.open()

    def _step(self, frames: Sequence[Message], version: PolicyVersion, gate: float, longest: int) -> Updated:
        """`longest`: tokens of the longest row."""
        now = {"version": version, "gate": shown(gate)}
        told = [Message(head=frame.head | now, body=frame.body) for frame in frames]
        try:
            answers = self._ask(told)
        except LearnerLost as lost:
            if lost.out_of_memory:
                self._budget.halve(longest)
            raise
        parts = [updated_of(answer.head) for answer in answers]
        taught = together([part.lessons for part in parts])
        first = parts[0]
        return Updated(changed=first.changed, metrics=first.metrics, lessons=taught, surprises=first.surprises)

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._ask_all({"op": "load"}, tensors)

    def _ask_all(self, head: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """The same of every rank; the first one's answer. `tensors` go along in shared memory."""
        given = None
        if tensors is not None:
            given = SharedTensors(tensors)
            given.write(tensors)
            head = {**head, "layout": given.layout}
        try:
            return self._ask([Message(head=head)] * len(self._devices))[0].head
        finally:
            if given is not None:
                given.close()

    def _ask(self, messages: Sequence[Message]) -> list[Message]:
        if self._processes is None:
            raise LearnerLost(None, "they are not up")
        beginning = messages[0].head["op"] == "begin"
        try:
            return self._processes.ask(messages, START_TIMEOUT_S if beginning else self._rules.learner.step_timeout_s)
        except LearnerLost:
            self._processes = None
            raise

    def _beginning(self, rank: int, store: Path) -> Message:
        model, adapter = self._policy.model, self._policy.adapter
        learner = self._rules.learner.model_copy(update={"tokens_per_micro_batch": self._budget.tokens})
        head = {
            "op": "begin",
            "rank": rank,
            "world": len(self._devices),
            "store": str(store),
            "device": str(self._devices[rank]),
            "threads": self._threads,
            "timeout_s": self._rules.learner.step_timeout_s,
            "config": json.loads(model.config.to_json_string(use_diff=False)),
            "attention": model.config._attn_implementation,
            "adapter": adapter.lora.model_dump(mode="json") if adapter is not None else None,
            "rules": rules_head(replace(self._rules, learner=learner)),
        }
        return Message(head=head)
