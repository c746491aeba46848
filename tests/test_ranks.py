"""A learner on two devices: the same updates as on one, and what becomes of it when a rank dies.

The devices are two processes on the CPU (gloo). Equal means: up to the order in which float32 numbers are added. A
gradient is a sum of 2 x 2 partial sums here and of another grouping there, which differ by some 1e-7 of their size;
Adam divides it by its own size, so that a weight whose gradient is nearly nothing may move by a visible part of the
learning rate (1e-3 here) in another direction. Hence at most 2e-5, a fiftieth of what a weight moves in one update.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from node.algorithms import (
    DppoTv,
    ForeignGateConfig,
    LearnerConfig,
    M2po,
    NoGate,
    NoGuidance,
    ObjectiveConfig,
    ReceiverBaseline,
    RelativeGate,
    SpoAdvantage,
)
from node.config import Lora, NoAdapter, PolicyConfig
from node.engine.policy import Policy, load_policy
from node.engine.ranks.messages import Message
from node.engine.ranks.processes import LearnerLost, Processes, environment
from node.engine.ranks.several import SeveralDevices
from node.engine.sampling import sample
from node.engine.trainer import Learner, OneDevice, PolicyTrainer
from node.engine.updates import Rules, Updates
from node.experience import Experience
from swarm.errors import CheckpointError
from swarm.types import (
    GroupId,
    PeerId,
    PolicyVersion,
    Role,
    Rollout,
    SampledTokens,
    SamplingParams,
    Turn,
    VersionSpan,
)
from tests.builders import group, task, task_ref
from tests.policies import save_tiny_policy

TOLERANCE = 2e-5
PROBE = np.arange(5, 45, 3, dtype=np.int32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def loaded(directory: Path, adapter: Lora | None = None) -> Policy:
    return load_policy(PolicyConfig(model=str(directory), device="cpu", adapter=adapter or NoAdapter()))


def experience(policy: Policy, index: int, rewards: Sequence[float], *, own: bool = True) -> Experience:
    """What `policy` itself sampled for task `index`; peers' with log-probabilities that are not quite right."""
    question = task(task_ref(index))
    rng = torch.Generator().manual_seed(index)
    params = SamplingParams(max_new_tokens=4 + 3 * index)
    (rows,) = sample(policy.model, [policy.codec.prompt(question)], [len(rewards)], params, policy.codec.eos_id, rng)
    rollouts = []
    for number, row in enumerate(rows):
        text, byte_lengths = policy.codec.decode(row.ids)
        spans = (VersionSpan(version=PolicyVersion(0), length=len(row.ids)),)
        logprobs = row.logprobs - np.float32(0.05 * number)
        tokens = SampledTokens(logprobs=logprobs, byte_lengths=byte_lengths, versions=spans, ids=row.ids)
        rollouts.append(Rollout(turns=(Turn(role=Role.ASSISTANT, text=text, finish=row.finish, sampled=tokens),)))
    shared = group(*rollouts, ref=question.ref, origin=PeerId("me" if own else f"peer-{index}"))
    return Experience(
        id=GroupId(f"g{index}"),
        group=replace(shared, tokenizer=policy.codec.fingerprint),
        task=question,
        rewards=np.array(rewards, dtype=np.float32),
        scored=np.ones(len(rewards), dtype=bool),
        own=own,
        value=0.4,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


def batch_of(policy: Policy) -> list[Experience]:
    """Own groups of several lengths, and two peers' that we have something to learn from."""
    own = [experience(policy, index, [1.0, 0.0, 1.0]) for index in range(1, 4)]
    peers = [experience(policy, index, [1.0, 0.0], own=False) for index in (4, 5)]
    return own + peers


def rules_of(objective: ObjectiveConfig, gate: ForeignGateConfig, **settings: object) -> Rules:
    learner = {"lr": 1e-3, "warmup_steps": 0, "updates_per_batch": 2, "step_timeout_s": 120.0} | settings
    return Rules(
        objective=objective,
        foreign=ReceiverBaseline(),
        foreign_gate=gate,
        learner=LearnerConfig.model_validate(learner),
        temperature=1.0,
        autocast=False,
    )


@asynccontextmanager
async def trainer_of(policy: Policy, learner: Learner, rules: Rules) -> AsyncIterator[PolicyTrainer]:
    async with PolicyTrainer(
        learner,
        policy.codec,
        rules,
        advantage=SpoAdvantage(),
        guidance=NoGuidance(),
        probe=PROBE,
        version=PolicyVersion(0),
    ) as trainer:
        yield trainer


def one(policy: Policy, rules: Rules) -> OneDevice:
    return OneDevice(Updates(policy.model, rules))


def two(policy: Policy, rules: Rules) -> SeveralDevices:
    return SeveralDevices(policy, rules, [torch.device("cpu")] * 2, threads=1)


def assert_same(found: tuple[dict[str, torch.Tensor], ...], expected: tuple[dict[str, torch.Tensor], ...]) -> None:
    """Bit for bit."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.timeout(600)
async def test_two_devices_make_the_updates_of_one_and_begin_again_when_one_is_lost(directory: Path):
    rules = rules_of(DppoTv(), NoGate())
    policy = loaded(directory)
    batch = batch_of(policy)
    async with trainer_of(policy, one(policy, rules), rules) as trainer:
        expected = [await trainer.step(batch) for _ in range(3)]
        half_way, moments_half_way = await trainer.snapshot()
        expected.append(await trainer.step(batch))
        weights, (_, moments) = await trainer.weights(), await trainer.snapshot()

    policy = loaded(directory)
    learner = two(policy, rules)
    async with trainer_of(policy, learner, rules) as trainer:
        found = [await trainer.step(batch) for _ in range(4)]
        assert [report.version for report in found] == [1, 2, 3, 4]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.lessons.keys() == theirs.lessons.keys() == {"peer-4", "peer-5"}
            for name in theirs.metrics.keys() - {"step_s", "prepare_s", "learner_tokens_per_s"}:
                assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-3, abs=1e-5), name
        handed, (kept, kept_moments) = await trainer.weights(), await trainer.snapshot()
        assert_close(dict(handed.tensors), dict(weights.tensors))
        assert_close(kept, dict(weights.tensors))
        assert_close(kept_moments, moments)
        assert handed.probe is not None
        assert weights.probe is not None
        np.testing.assert_allclose(handed.probe, weights.probe, atol=1e-4)

        # A rank dies in a step: it ends, and says which; what one device had saved goes on on two.
        os.kill(learner.pids[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(LearnerLost, match="rank 1 of the learner: was killed by SIGKILL") as lost:
            await trainer.step(batch)
        assert (lost.value.rank, learner.pids) == (1, [])
        assert time.monotonic() - began < 60.0  # and not step_timeout_s
        await trainer.call(lambda: learner.replace(half_way))
        with pytest.raises(CheckpointError, match="'other/step' belongs to no parameter"):
            await trainer.restore({"other/step": torch.tensor(1.0)})
        with pytest.raises(CheckpointError, match="has shape"):
            await trainer.restore({name: tensor.flatten()[:4] for name, tensor in moments_half_way.items()})
        await trainer.restore(moments_half_way)
        assert_same(await trainer.snapshot(), (half_way, moments_half_way))
        await trainer.step(batch)
        assert_close((await trainer.snapshot())[0], dict(weights.tensors))
    assert learner.pids == []

    # And what two had saved goes on on one.
    policy = loaded(directory)
    async with trainer_of(policy, one(policy, rules), rules) as trainer:
        await trainer.replace(kept, kept_moments)
        assert_same(await trainer.snapshot(), (kept, kept_moments))
        await trainer.step(batch)


#: Makes rank 1 a device with memory for micro-batches of 66 tokens: a module that Python imports when it starts.
SMALL_DEVICE = """
import torch
from node.engine import updates

loss_of = updates.micro_batch_loss


def limited(micro, *rest):
    if torch.distributed.get_rank() == 1 and micro.input_ids.numel() > 66:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return loss_of(micro, *rest)


updates.micro_batch_loss = limited
"""


@pytest.mark.timeout(600)
async def test_ranks_that_ran_out_of_memory_begin_again_with_smaller_micro_batches(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    rules = rules_of(DppoTv(), NoGate(), tokens_per_micro_batch=130)
    policy = loaded(directory)
    batch = batch_of(policy)
    async with trainer_of(policy, one(policy, rules), rules) as trainer:
        begun = await trainer.snapshot()
        await trainer.step(batch)
        expected = await trainer.snapshot()

    (tmp_path / "sitecustomize.py").write_text(SMALL_DEVICE)
    monkeypatch.syspath_prepend(tmp_path)
    policy = loaded(directory)
    learner = two(policy, rules)
    async with trainer_of(policy, learner, rules) as trainer:
        with pytest.raises(LearnerLost, match="rank 1 of the learner: OutOfMemoryError: CUDA out of memory") as lost:
            await trainer.step(batch)
        assert lost.value.out_of_memory
        assert "micro-batches have half of the tokens, 65" in caplog.text
        assert not await trainer.settle()
        await trainer.replace(*begun)
        report = await trainer.step(batch)
        assert report.metrics["tokens_per_micro_batch"] == 65
        for found, wanted in zip(await trainer.snapshot(), expected, strict=True):
            assert_close(found, wanted)


@pytest.mark.timeout(600)
async def test_an_adapter_and_an_objective_that_sees_the_whole_batch_however_unevenly_it_is_cut(directory: Path):
    """A micro-batch a rollout: one rank has more of them than the other, which idles through the rest."""
    rules = rules_of(M2po(budget=0.002), RelativeGate(quantile=0.5), tokens_per_micro_batch=16)
    adapted = Lora(rank=4)
    policy = loaded(directory, adapted)
    batch = batch_of(policy)[2:4]
    results = []
    for make in (one, two):
        policy = loaded(directory, adapted)
        async with trainer_of(policy, make(policy, rules), rules) as trainer:
            reports = [await trainer.step(batch) for _ in range(3)]
            results.append((reports[-1].metrics["masked_share"], *await trainer.snapshot()))
    (masked, weights, moments), (masked_by_two, weights_of_two, moments_of_two) = results
    assert 0 < masked < 1
    assert masked_by_two == pytest.approx(masked, abs=0.05)
    assert all(".lora_" in name for name in weights)
    assert_close(weights_of_two, weights)
    assert_close(moments_of_two, moments)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("adapter", [None, Lora(rank=4)], ids=["all weights", "an adapter"])
async def test_weights_in_16_bit_have_float32_ones_behind_them_on_several_devices_too(
    directory: Path, adapter: Lora | None
):
    """A gradient is rounded to bfloat16 once for each device, or for each micro-batch of one: to 2^-8 of its size."""
    rules, results = rules_of(DppoTv(), NoGate(), weights="bfloat16", updates_per_batch=1), []
    batch = batch_of(loaded(directory, adapter))
    for make in (one, two):
        policy = loaded(directory, adapter)
        async with trainer_of(policy, make(policy, rules), rules) as trainer:
            probe = (await trainer.weights()).probe
            report = await trainer.step(batch)
            results.append((probe, report.metrics, *await trainer.snapshot()))
    (probe, metrics, weights, moments), (probe_of_two, metrics_of_two, weights_of_two, moments_of_two) = results
    assert probe is not None
    assert probe_of_two is not None
    np.testing.assert_allclose(probe_of_two, probe, atol=1e-5)
    in_float32 = Updates(loaded(directory, adapter).model, rules_of(DppoTv(), NoGate())).probed(PROBE)
    assert np.abs(probe - in_float32).max() > 1e-4
    assert metrics_of_two["loss"] == pytest.approx(metrics["loss"], abs=1e-3)
    assert metrics_of_two["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-2)
    assert moments_of_two.keys() == moments.keys()
    for name, moment in moments.items():
        if name.endswith("/exp_avg"):
            torch.testing.assert_close(moments_of_two[name], moment, atol=float(moment.abs().max()) / 64, rtol=0.0)
    for name, weight in weights.items():
        assert weights_of_two[name].dtype == torch.float32
        assert float((weights_of_two[name] - weight).abs().max()) <= 2.001 * 1e-3  # Adam's first update is one rate


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.timeout(600)
def test_no_rank_outlives_its_node_even_while_it_waits_for_another(tmp_path: Path):
    head = {"op": "begin", "rank": 0, "world": 2, "store": str(tmp_path / "store"), "device": "cpu", "threads": 1}
    program = f"""
from node.engine.ranks.messages import Message
from node.engine.ranks.processes import Processes, environment
processes = Processes(1, environment(1))
print(processes.pids[0], flush=True)
processes.ask([Message(head={head | {"timeout_s": 600.0}!r})], 600.0)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        while alive(pid) and not (tmp_path / "store").exists():
            time.sleep(0.05)
        assert alive(pid)
        node.kill()
    deadline = time.monotonic() + 30.0
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_rank_that_fails_says_why():
    processes = Processes(1, environment(1))
    with pytest.raises(LearnerLost, match="rank 0 of the learner: KeyError: 'device'"):
        processes.ask([Message(head={"op": "begin"})], 250.0)
    assert not any(alive(pid) for pid in processes.pids)


def test_a_rank_that_does_not_answer_is_ended():
    processes = Processes(1, environment(1))
    with pytest.raises(LearnerLost, match=r"rank 0 of the learner: did not answer within 0\.1 s"):
        processes.ask([Message(head={"op": "begin"})], 0.1)
    assert not any(alive(pid) for pid in processes.pids)
