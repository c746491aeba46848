"""A rank of a learner on several devices, `python -m node.engine.ranks.worker`: does what all of them are told at once.

    > {"op": "begin", ...}             a model without weights, cut over the ranks; the rules of a step
    > {"op": "load", "layout"}         weights, from the node's shared memory
    > {"op": "step", "version", ...}   this rank's share of a batch; all ranks make the same updates of their parts
    > {"op": "weights", "dtype"}       all parts together, into rank 0's shared memory; so "moments", the optimiser's
    > {"op": "restore", "layout"}      the optimiser's state back
    > {"op": "probe", "ids"}

Each answer is a JSON object. {"error", "out_of_memory"} is the last one: a rank that failed leaves the others in the
middle of something. It ends at the end of its standard input, and dies with the thread of the node that started it.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import init_device_mesh
from transformers.utils.logging import disable_progress_bar

from node.config import Lora
from node.engine.budget import out_of_memory
from node.engine.optimizer_state import optimizer_tensors, restore_optimizer
from node.engine.policy import torch_dtype
from node.engine.ranks.messages import Message, read
from node.engine.ranks.sharded import Ranks, fill, part_of, sharded, whole_of
from node.engine.ranks.transit import rules_of, share_of, updated_head
from node.engine.shared import Layout, SharedTensors, mapped
from node.engine.updates import Updates
from swarm.errors import CheckpointError
from swarm.tasks.worker import die_with_parent, take_standard_streams
from swarm.types import PolicyVersion


class Rank:
    """Made by "begin"."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        device = torch.device(settings["device"])
        torch.set_num_threads(settings["threads"])
        timeout = timedelta(seconds=settings["timeout_s"])
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store = FileStore(settings["store"], settings["world"])
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=settings["rank"],
            world_size=settings["world"],
            timeout=timeout,
        )
        mesh = init_device_mesh(device.type, (settings["world"],))
        adapter = Lora.model_validate(settings["adapter"]) if settings["adapter"] else None
        self._first = settings["rank"] == 0
        self._rules = rules_of(settings["rules"])
        weights = torch_dtype(self._rules.learner.weights)
        self._module = sharded(settings["config"], settings["attention"], adapter, weights, device, mesh)
        self._updates: Updates | None = None
        self._given: SharedTensors | None = None  # until the node has mapped it
        self._operations: Mapping[str, Callable[[Message], dict[str, Any]]] = {
            "load": self._load,
            "step": self._step,
            "weights": self._weights,
            "moments": self._moments,
            "restore": self._restore,
            "probe": self._probe,
        }

    def answer(self, message: Message) -> dict[str, Any]:
        self._forget()
        return self._operations[message.head["op"]](message)

    def close(self) -> None:
        self._forget()
        dist.destroy_process_group()

    def _forget(self) -> None:
        if self._given is not None:
            self._given.close()
            self._given = None

    @property
    def _learner(self) -> Updates:
        """Once there are weights: it tries the model out."""
        if self._updates is None:
            self._updates = Updates(self._module.model, self._rules, Ranks(), self._module)
        return self._updates

    def _load(self, message: Message) -> dict[str, Any]:
        fill(self._module.model, mapped(_layout(message)))
        return {"tokens": self._learner.rules.learner.tokens_per_micro_batch}

    def _step(self, message: Message) -> dict[str, Any]:
        learner, share = self._learner, share_of(message)
        version, gate = PolicyVersion(message.head["version"]), float(message.head["gate"])
        return updated_head(learner.update(share, learner.packed(share), version, gate))

    def _weights(self, message: Message) -> dict[str, Any]:
        return self._together(self._learner.trained, torch_dtype(message.head["dtype"]))

    def _moments(self, message: Message) -> dict[str, Any]:
        learner = self._learner
        return self._together(optimizer_tensors(learner.optimizer, list(learner.trained)), None)

    def _restore(self, message: Message) -> dict[str, Any]:
        learner = self._learner
        parts = {
            name: whole if name.endswith("/step") else part_of(whole, learner.trained[name.rpartition("/")[0]])
            for name, whole in mapped(_layout(message))
        }
        try:
            restore_optimizer(learner.optimizer, list(learner.trained), parts)
        except CheckpointError as error:
            return {"refused": str(error)}
        return {}

    def _probe(self, message: Message) -> dict[str, Any]:
        return {"logprobs": self._learner.probed(np.array(message.head["ids"], dtype=np.int32)).tolist()}

    def _together(self, parts: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, Any]:
        """Whole tensors in this rank's shared memory, if it is the first one; one after the other."""
        if self._first:
            like = {
                name: torch.empty(part.shape, dtype=dtype or part.dtype, device="meta") for name, part in parts.items()
            }
            self._given = SharedTensors(like)
        for name, part in parts.items():
            whole = whole_of(part.detach())
            if self._given is not None:
                self._given.put(name, whole)
        return {"layout": self._given.layout} if self._given is not None else {}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; ending this one is the node's affair
    die_with_parent()
    warnings.simplefilter("ignore")  # of libraries that are not ours
    disable_progress_bar()
    requests, replies = take_standard_streams()
    rank: Rank | None = None
    while (message := read(requests)) is not None:
        try:
            if rank is None:
                rank, head = Rank(message.head), dict[str, Any]()
            else:
                head = rank.answer(message)
        except Exception as error:  # noqa: BLE001 - whatever it is, the node is told
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
            _write(replies, {"error": said, "out_of_memory": out_of_memory(error)})
            return
        _write(replies, head)
    if rank is not None:
        rank.close()


def _layout(message: Message) -> Layout:
    return message.head["layout"]


def _write(replies: BinaryIO, head: dict[str, Any]) -> None:
    replies.write(Message(head=head).frame())
    replies.flush()


if __name__ == "__main__":
    main()
