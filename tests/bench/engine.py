"""What the node costs beside a bare vLLM: tokens per second, the pause of a weight update, agreement with the learner.

    python -m tests.bench.engine                      tiny (0.3 M parameters) and 20 M, float32
    python -m tests.bench.engine --model tiny --dtype bfloat16
    python -m tests.bench.engine --model DIR --dtype bfloat16 --in-flight 256 --new-tokens 512

Bare and node take turns on the same engine in one run, so that a ratio does not depend on what else the machine does.
Untrained weights: what is sampled means nothing, and costs what it costs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
import uvloop
from transformers import Qwen3Config, Qwen3ForCausalLM
from vllm.inputs import tokens_input
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from node.assembly import trainer_of
from node.config import NodeConfig, VllmEngine
from node.engine.base import Completion, Generator
from node.engine.opening import choose
from node.engine.policy import Policy, load_policy, prepare_process
from node.engine.trainer import PolicyTrainer
from node.engine.vllm.environment import set_defaults
from node.engine.vllm.generator import VllmGenerator
from node.engine.vllm.opening import vllm_generator
from node.engine.vllm.process import Engine
from node.evaluate import candidates
from node.holds import Holds
from node.ledger import Ledger
from node.producer import Author, Producer
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from node.seed.tokenizer import make_tokenizer
from node.settings import task_specs
from node.supervision import Part
from swarm.membership import Membership
from swarm.tasks.judge import ProcessJudge
from swarm.types import PolicyVersion
from tests.builders import identity

SIZES = {"tiny": (128, 2, 256), "20m": (512, 6, 1536)}
"""Hidden size, layers, MLP width."""
SWAP_EVERY_S = 2.0
TASKS = 256


def save_model(size: str, directory: Path) -> Path:
    """Untrained, with a byte-level tokenizer."""
    hidden, layers, intermediate = SIZES[size]
    tokenizer = make_tokenizer((), 256)
    vocabulary = tokenizer.get_vocab()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        intermediate_size=intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=vocabulary["<eos>"],
        pad_token_id=vocabulary["<pad>"],
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@dataclass(eq=False)
class Bench:
    """A node's learner and generator without its loops: what runs is what is measured."""

    config: NodeConfig
    policy: Policy
    trainer: PolicyTrainer
    generator: VllmGenerator
    engine: Engine
    producer: Producer
    prompts: list[np.ndarray]
    version: int = 0
    pauses: list[float] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)
    """ms around each update, from a step's tokens to those of the next step that gave any."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def prompt(self) -> np.ndarray:
        """Of a task, changing after as many calls as a group has members."""
        return self.prompts[next(self.numbers) // self.config.sampler.group_size % len(self.prompts)]

    async def bare(self) -> None:
        """One request, as a user of vLLM would make it."""
        params = self.config.sampler.params
        asked = self.engine.parameters(params.temperature, params.top_p, params.max_new_tokens, stream=False)
        async for _ in self.engine.llm.generate(tokens_input(self.prompt().tolist()), asked, f"bare-{uuid4()}"):
            pass

    async def group(self) -> None:
        """One group through the generator."""
        prompt = self.prompts[next(self.numbers) % len(self.prompts)]
        await self.generator.sample(prompt, self.config.sampler.group_size, self.config.sampler.params)

    async def judged(self) -> None:
        """One group as the node makes them: a task chosen, sampled, scored in the judge's process, signed."""
        await self.producer.next_group()

    async def rate(self, work: Callable[[], Awaitable[object]], workers: int, seconds: float) -> float:
        """Tokens per second that the engine gives while so many workers repeat `work`."""

        async def repeat() -> None:
            while True:
                await work()

        tasks = [asyncio.create_task(repeat()) for _ in range(workers)]
        await asyncio.sleep(seconds / 4)  # until as many begin as end
        began, tokens = time.perf_counter(), self.engine.pulse.tokens
        await asyncio.sleep(seconds)
        rate = (self.engine.pulse.tokens - tokens) / (time.perf_counter() - began)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        await asyncio.sleep(1.0)  # until the engine has forgotten them
        return rate

    async def swap(self) -> None:
        """A version a little further, as after a step of the learner; returns when the engine has it."""
        self.version += 1

        def drift() -> None:
            with torch.no_grad():
                for parameter in self.policy.model.parameters():
                    parameter += 1e-3 * torch.randn_like(parameter)

        await self.trainer.call(drift)
        steps = self.watch()
        await self.generator.load(replace(await self.trainer.weights(), version=PolicyVersion(self.version)))
        await self.generator.keeper.reached(PolicyVersion(self.version))
        gauges = self.generator.gauges()
        self.pauses.append(gauges["engine_pause_ms"])
        self.deviations.append(gauges["engine_deviation"])
        self.silences.append(1000 * max((b - a for a, b in itertools.pairwise(steps)), default=0.0))

    def watch(self) -> list[float]:
        """Gets the time of each of the engine's steps from now on, until somebody else watches."""
        times: list[float] = []
        record = type(self.engine.pulse).record

        def timed(
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            mm_cache_stats: object = None,
            engine_idx: int = 0,
        ) -> None:
            record(self.engine.pulse, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)
            if iteration_stats is not None and iteration_stats.num_generation_tokens:
                times.append(time.perf_counter())

        self.engine.pulse.record = timed
        return times

    async def swapping(self) -> None:
        while True:
            await asyncio.sleep(SWAP_EVERY_S)
            await self.swap()

    async def agreement(self) -> float:
        """Mean absolute difference between what the engine recorded of its tokens and what they are to the learner."""
        prompt = self.prompt()
        completions = await self.generator.sample(prompt, 32, self.config.sampler.params)
        return float(np.mean(np.concatenate([await self._errors(prompt, each) for each in completions])))

    async def _errors(self, prompt: np.ndarray, completion: Completion) -> np.ndarray:
        ids = torch.from_numpy(np.concatenate([prompt, completion.ids]).astype(np.int64)).to(self.policy.model.device)

        def logprobs() -> np.ndarray:
            with (
                torch.no_grad(),
                torch.autocast(ids.device.type, torch.bfloat16, enabled=self.config.policy.dtype == "bfloat16"),
            ):
                logits = self.policy.model(ids[None]).logits[0, len(prompt) - 1 : -1].float()
            logits /= self.config.sampler.temperature
            return torch.log_softmax(logits, -1).gather(-1, ids[len(prompt) :, None])[:, 0].cpu().numpy()

        return np.abs(await self.trainer.call(logprobs) - completion.logprobs)


@asynccontextmanager
async def opened(config: NodeConfig) -> AsyncIterator[Bench]:
    policy = load_policy(config.policy)
    chosen = choose(config, policy.size, policy.devices)
    assert isinstance(chosen.config, VllmEngine)
    probe = chosen.probe(policy.codec)
    assert probe is not None
    trainer = trainer_of(config, policy, probe, PolicyVersion(0))
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(trainer)
        judge = await stack.enter_async_context(ProcessJudge(task_specs(config), timeout_s=config.score_timeout_s))
        weights = await trainer.weights()
        part = Part("engine", config.supervision)
        generator = vllm_generator(
            config, chosen.config, chosen.max_length, probe, policy, weights, ledger.counters, ledger.warn, part
        )
        await stack.enter_async_context(generator)
        made = producer(config, policy, judge, generator, ledger)
        engine = await generator.keeper.engine()
        refs = itertools.islice(candidates(judge.sources[0], TASKS, seed=0), TASKS)
        prompts = [policy.codec.prompt(await judge.task(ref)) for ref in refs]
        yield Bench(config, policy, trainer, generator, engine, made, prompts)
        print("\n".join(ledger.warnings))


def producer(config: NodeConfig, policy: Policy, judge: ProcessJudge, generator: Generator, ledger: Ledger) -> Producer:
    tracker = ValueTracker(config.tracker)
    author = Author(
        identity=identity(1),
        membership=Membership(swarm="bench"),
        model=policy.fingerprint,
        codec=policy.codec,
        sampling=config.sampler.params,
    )
    running = Holds()
    return Producer(
        config=config.sampler,
        truncated=config.learner.truncated,
        sampler=TaskSampler(judge.sources, [1.0 for _ in judge.sources], tracker, config.sampler, config.seed),
        tracker=tracker,
        judge=judge,
        generator=generator,
        author=author,
        version=lambda: PolicyVersion(0),
        running=running,
        ledger=ledger,
    )


async def measure(config: NodeConfig, seconds: float, rounds: int) -> None:
    async with opened(config) as bench:
        in_flight = bench.generator.in_flight
        group_size = config.sampler.group_size
        engine_slots = config.engine.max_in_flight if isinstance(config.engine, VllmEngine) else in_flight
        rates: dict[str, list[float]] = {"bare": [], "generator": [], "node": []}
        for _ in range(rounds):
            rates["bare"].append(await bench.rate(bench.bare, engine_slots, seconds))
            for name, work in (("generator", bench.group), ("node", bench.judged)):
                swapping = asyncio.create_task(bench.swapping())
                rates[name].append(await bench.rate(work, -(-in_flight // group_size), seconds))
                swapping.cancel()
                await asyncio.gather(swapping, return_exceptions=True)
        bare = statistics.mean(rates["bare"])
        print(f"  {'tokens/s':38} {'mean':>9} {'ratio':>6}   rounds")
        labels = {
            "bare": f"vLLM alone, {engine_slots} requests in flight",
            "generator": "our generator, a swap every 2 s",
            "node": "and tasks, scores, signatures",
        }
        for name, label in labels.items():
            mean = statistics.mean(rates[name])
            each = " ".join(f"{rate:.0f}" for rate in rates[name])
            print(f"  {label:38} {mean:9.0f} {mean / bare:6.3f}   {each}")
        _print_times("no token at an update under that load", bench.silences)
        _print_times("of which from pause to resumed", bench.pauses)
        bench.pauses = []
        while bench.version < 100:
            await bench.swap()
        _print_times("from pause to resumed, idle", bench.pauses)
        print(f"  largest difference on the probe: {max(bench.deviations):.1e} nats")
        print(f"  after {bench.version} swaps learner and engine differ by {await bench.agreement():.1e} nats a token")


def _print_times(label: str, times: list[float]) -> None:
    ordered = sorted(times)
    print(
        f"  {label}: median {statistics.median(ordered):.0f} ms, 90 % {ordered[int(0.9 * len(ordered))]:.0f} ms,"
        f" of {len(ordered)} updates"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="tiny, 20m, a directory or a hub id; may be repeated")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    set_defaults()
    prepare_process(arguments.threads)
    for model in arguments.model or ["tiny", "20m"]:
        with tempfile.TemporaryDirectory() as directory:
            path = str(save_model(model, Path(directory) / "model")) if model in SIZES else model
            config = NodeConfig.model_validate(
                {
                    "data_dir": Path(directory) / "data",
                    "threads": arguments.threads,
                    "policy": {"model": path, "dtype": arguments.dtype, "device": arguments.device},
                    "tasks": [{"type": "reasoning_gym", "name": "spell_backward"}],
                    "sampler": {"max_new_tokens": arguments.new_tokens, "max_prompt_tokens": 256},
                    "engine": {"type": "vllm", "max_in_flight": arguments.in_flight},
                }
            )
            print(f"{model}, {arguments.dtype}")
            uvloop.run(measure(config, arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
