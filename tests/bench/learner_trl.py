"""TRL's side of `tests.bench.learner`, in an environment of its own: run as a script that has nothing of this
project but `tests.bench.measuring`.

    python learner_trl.py SPECIFICATION.json

GRPOTrainer's own `training_step` (forward and backward) on a batch that is given to it; generation is left out. Answers
each line on standard input with one of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tests.bench.measuring import measured


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=getattr(torch, spec["weights"]))
    trainer = trainer_of(spec, model.to(spec["device"]))
    micro_batches = batches(spec, trainer)
    step(trainer, micro_batches)  # whatever is made once
    trainer.model.zero_grad(set_to_none=True)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured(lambda: step(trainer, micro_batches), spec["device"])), flush=True)
        trainer.model.zero_grad(set_to_none=True)


def trainer_of(spec: dict, model: torch.nn.Module) -> GRPOTrainer:
    rollouts = len(spec["completions"])
    arguments = GRPOConfig(
        output_dir=spec["scratch"],
        per_device_train_batch_size=spec["rows"],
        gradient_accumulation_steps=rollouts // spec["rows"],
        num_generations=rollouts,
        max_completion_length=max(map(len, spec["completions"])),
        beta=0.0,
        loss_type="dapo",
        gradient_checkpointing=spec["recompute"],
        bf16=spec["dtype"] == "bfloat16",
        use_cpu=spec["device"] == "cpu",
        use_liger_kernel=spec["liger"],
        torch_compile=spec["compile"],
        report_to=[],
        save_strategy="no",
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(spec["model"])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = arguments.gradient_accumulation_steps
    trainer.model_wrapped = trainer.model = trainer.accelerator.prepare(trainer.model)
    trainer._prepare_inputs = lambda inputs: inputs
    return trainer


def batches(spec: dict, trainer: GRPOTrainer) -> list[dict[str, torch.Tensor]]:
    """Padded to the longest of all, as GRPOTrainer does it before it cuts a batch into micro-batches."""
    completions, prompt = spec["completions"], spec["prompt"]
    longest = max(map(len, completions))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in completions])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in completions])
    advantages = torch.tensor(spec["advantages"])
    prompts = torch.tensor([prompt] * len(completions))
    whole = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": advantages,
    }
    moved = {name: tensor.to(spec["device"]) for name, tensor in whole.items()}
    count = mask.sum().to(spec["device"])
    return [
        {name: tensor[start : start + spec["rows"]] for name, tensor in moved.items()} | {"num_items_in_batch": count}
        for start in range(0, len(completions), spec["rows"])
    ]


def step(trainer: GRPOTrainer, micro_batches: list[dict[str, torch.Tensor]]) -> float:
    return sum(float(trainer.training_step(trainer.model_wrapped, micro, None)) for micro in micro_batches)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
