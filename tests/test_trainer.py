"""The learner on a real (tiny) model: what a step changes, what it leaves alone, and that pieces add up."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from node.algorithms import (
    AbsoluteGate,
    AdvantageConfig,
    Cispo,
    DecoupledPpo,
    DppoTv,
    DrGrpoAdvantage,
    ForeignConfig,
    ForeignGateConfig,
    GrpoAdvantage,
    Gspo,
    IcePop,
    LearnerConfig,
    M2po,
    NoGate,
    NoGuidance,
    ObjectiveConfig,
    PpoClip,
    ReceiverBaseline,
    RecOneside,
    Reinforce,
    RelativeGate,
    Remix,
    RlooAdvantage,
    SapoPlain,
    SeqTis,
    SpoAdvantage,
    Vespo,
)
from node.config import Lora, PolicyConfig
from node.engine.budget import CPU_ALLOCATOR
from node.engine.policy import Policy, load_policy
from node.engine.sampling import sample
from node.engine.trainer import OneDevice, PolicyTrainer
from node.engine.updates import Rules, Updates
from node.experience import Experience
from swarm.types import GroupId, PeerId, PolicyVersion, Role, Rollout, SampledTokens, SamplingParams, Turn, VersionSpan
from tests.builders import group, task, task_ref, turn
from tests.policies import save_tiny_policy


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(directory: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(directory), device="cpu"))


@pytest.fixture
def with_adapter(directory: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(directory), adapter=Lora(rank=4), device="cpu"))


def experience(policy: Policy, rewards: Sequence[float], *, own: bool = True, value: float = 0.5) -> Experience:
    """What `policy` itself sampled, with rewards of our choice."""
    prompt = policy.codec.prompt(task())
    rng = torch.Generator().manual_seed(len(rewards))
    (rows,) = sample(policy.model, [prompt], [len(rewards)], SamplingParams(max_new_tokens=8), policy.codec.eos_id, rng)
    rollouts = []
    for row in rows:
        text, byte_lengths = policy.codec.decode(row.ids)
        spans = (VersionSpan(version=PolicyVersion(0), length=len(row.ids)),)
        tokens = SampledTokens(logprobs=row.logprobs, byte_lengths=byte_lengths, versions=spans, ids=row.ids)
        rollouts.append(Rollout(turns=(Turn(role=Role.ASSISTANT, text=text, finish=row.finish, sampled=tokens),)))
    shared = group(*rollouts, ref=task_ref(), origin=PeerId("me" if own else "peer"))
    return Experience(
        id=GroupId("g"),
        group=replace(shared, tokenizer=policy.codec.fingerprint),
        task=task(),
        rewards=np.array(rewards, dtype=np.float32),
        scored=np.ones(len(rewards), dtype=bool),
        own=own,
        value=value,
        version=PolicyVersion(0),
        arrived_at=time.monotonic(),
    )


@asynccontextmanager
async def trainer_of(
    policy: Policy,
    learner: LearnerConfig | None = None,
    objective: ObjectiveConfig | None = None,
    advantage: AdvantageConfig | None = None,
    foreign: ForeignConfig | None = None,
    foreign_gate: ForeignGateConfig | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    probe: np.ndarray | None = None,
    version: int = 0,
) -> AsyncIterator[PolicyTrainer]:
    rules = Rules(
        objective=objective or DppoTv(),
        foreign=foreign or ReceiverBaseline(),
        foreign_gate=foreign_gate or NoGate(),
        learner=learner or LearnerConfig(lr=1e-2, warmup_steps=0),
        temperature=temperature,
        autocast=dtype is torch.bfloat16,
    )
    async with PolicyTrainer(
        OneDevice(Updates(policy.model, rules)),
        policy.codec,
        rules,
        advantage=advantage or SpoAdvantage(),
        guidance=NoGuidance(),
        max_length=policy.model.config.max_position_embeddings,
        sampling_dtype=dtype,
        probe=probe,
        version=PolicyVersion(version),
    ) as trainer:
        yield trainer


def logprob(policy: Policy, rollout: Rollout) -> float:
    """Of the whole rollout under the policy's present weights."""
    prompt, tokens = policy.codec.prompt(task()), rollout.turns[0].sampled
    assert tokens is not None
    assert tokens.ids is not None
    ids = torch.from_numpy(np.concatenate([prompt, tokens.ids]).astype(np.int64))
    with torch.no_grad():
        logits = policy.model(ids[None]).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits, -1).gather(-1, ids[len(prompt) :, None]).sum())


async def test_a_step_makes_what_was_rewarded_likelier_and_what_was_not_less(policy: Policy):
    batch = [experience(policy, [1.0, 0.0])]
    before = [logprob(policy, rollout) for rollout in batch[0].group.rollouts]
    async with trainer_of(policy) as trainer:
        report = await trainer.step(batch)
    after = [logprob(policy, rollout) for rollout in batch[0].group.rollouts]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert report.version == trainer.version == 1
    assert report.metrics["own_reward"] == 0.5


async def test_fresh_rollouts_of_the_same_weights_have_no_log_ratio(policy: Policy):
    async with trainer_of(policy) as trainer:
        report = await trainer.step([experience(policy, [1.0, 0.0, 0.0])])
    assert report.metrics["log_rho_p99"] < 1e-5
    assert report.metrics["masked_share"] == 0.0
    assert report.metrics["ess_share"] == pytest.approx(1.0, abs=1e-5)


async def test_a_models_dropout_is_off(policy: Policy):
    for module in policy.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5  # pyright: ignore[reportArgumentType]
    async with trainer_of(policy) as trainer:
        report = await trainer.step([experience(policy, [1.0, 0.0, 0.0])])
    assert report.metrics["log_rho_p99"] < 1e-5


async def test_nothing_to_learn_changes_nothing(policy: Policy):
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    solved = [experience(policy, [1.0, 1.0], own=False, value=1.0)]
    async with trainer_of(policy) as trainer:
        report = await trainer.step(solved)
    assert report.version == 0
    assert all(torch.equal(before[name], p) for name, p in policy.model.named_parameters())


async def test_an_experts_all_correct_group_teaches(policy: Policy):
    batch = [experience(policy, [1.0, 1.0], own=False, value=0.1)]
    before = [logprob(policy, rollout) for rollout in batch[0].group.rollouts]
    async with trainer_of(policy) as trainer:
        await trainer.step(batch)
    after = [logprob(policy, rollout) for rollout in batch[0].group.rollouts]
    assert all(b > a for a, b in zip(before, after, strict=True))


async def test_a_peers_rollout_that_the_model_has_no_positions_for_is_skipped(policy: Policy):
    peers = experience(policy, [1.0, 1.0], own=False, value=0.1)
    prompt = policy.codec.prompt(task())
    for spare, used in ((0, 2.0), (1, 1.0)):
        text = "x" * (policy.model.config.max_position_embeddings - len(prompt) - 1 + spare)
        long = Rollout(turns=(turn(text),))
        batch = [replace(peers, group=replace(peers.group, rollouts=(peers.group.rollouts[0], long)))]
        async with trainer_of(policy) as trainer:
            report = await trainer.step(batch)
        assert report.metrics["foreign_rollouts"] == used


async def test_micro_batches_add_up_to_the_whole(directory: Path):
    weights = []
    for budget in (16_384, 1):  # one micro-batch of all rows, and one of each
        policy = load_policy(PolicyConfig(model=str(directory), device="cpu"))
        learner = LearnerConfig(lr=1e-3, warmup_steps=0, tokens_per_micro_batch=budget)
        async with trainer_of(policy, learner) as trainer:
            await trainer.step([experience(policy, [1.0, 0.0, 1.0, 0.0]), experience(policy, [0.0, 1.0])])
            weights.append((await trainer.weights()).tensors)
    for name, whole in weights[0].items():
        torch.testing.assert_close(whole, weights[1][name], atol=2e-5, rtol=1e-3)


async def test_a_step_reports_what_it_learned_from_whom(policy: Policy):
    expert = experience(policy, [1.0, 1.0, 0.0], own=False)
    own = experience(policy, [1.0, 0.0, 0.0])
    async with trainer_of(policy) as trainer:
        (lesson,) = (await trainer.step([own, expert])).lessons.values()
    assert (lesson.refused, lesson.gated) == (0.0, 0)
    assert lesson.learned == pytest.approx(2 * 0.25)  # two successes, half of which we had expected
    async with trainer_of(policy, foreign_gate=AbsoluteGate(max_bits_per_byte=1e-3)) as trainer:
        (lesson,) = (await trainer.step([own, expert])).lessons.values()
    assert (lesson.learned, lesson.gated) == (0.0, 2)
    assert lesson.refused == pytest.approx(2 * 0.25)


async def test_a_step_that_is_not_finite_is_dropped(policy: Policy):
    batch = [experience(policy, [1.0, 0.0])]
    with torch.no_grad():
        next(policy.model.parameters())[0] = torch.inf
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    async with trainer_of(policy) as trainer:
        report = await trainer.step(batch)
    assert report.version == 0
    assert report.metrics["skipped_update"] == 1.0
    assert all(torch.equal(before[name], p) for name, p in policy.model.named_parameters())


async def test_warm_up_is_linear_in_the_policy_version(policy: Policy):
    batch = [experience(policy, [1.0, 0.0])]
    async with trainer_of(policy, LearnerConfig(lr=1e-3, warmup_steps=4)) as trainer:
        rates = [(await trainer.step(batch)).metrics["lr"] for _ in range(5)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def aged(batch: Experience, versions: int) -> Experience:
    """The same group, sampled by a policy of so many versions ago. Ages of a trainer at version 8."""
    rollouts = []
    for rollout in batch.group.rollouts:
        tokens = rollout.turns[0].sampled
        assert tokens is not None
        spans = (VersionSpan(version=PolicyVersion(8 - versions), length=len(tokens)),)
        sampled = replace(tokens, versions=spans)
        rollouts.append(Rollout(turns=(replace(rollout.turns[0], sampled=sampled),)))
    return replace(batch, group=replace(batch.group, rollouts=tuple(rollouts)))


async def test_the_rate_falls_with_the_staleness_of_own_rows(policy: Policy):
    """3 and 1 versions old, two rows each: a mean of 2, and 2 / (1 + 2). Warm-up is at (8 + 1) / 18."""
    batch = [experience(policy, [1.0, 0.0]), experience(policy, [1.0, 0.0]), experience(policy, [1.0], own=False)]
    batch[:2] = aged(batch[0], 3), aged(batch[1], 1)
    rates = {}
    for rule in ("none", "staleness"):
        learner = LearnerConfig(lr=1e-3, warmup_steps=18, lr_rule=rule)
        async with trainer_of(policy, learner, version=8) as trainer:
            rates[rule] = (await trainer.step(batch)).metrics["lr"]
    assert rates == pytest.approx({"none": 5e-4, "staleness": 5e-4 * 2 / 3})


async def test_the_rate_falls_with_the_effective_sample_size(policy: Policy):
    own = experience(policy, [1.0, 0.0])
    first = own.group.rollouts[0].turns[0]
    assert first.sampled is not None
    logprobs = first.sampled.logprobs.copy()
    logprobs[0] -= np.log(3)  # this rollout's weight is 3, the other's 1
    rollouts = (Rollout(turns=(replace(first, sampled=replace(first.sampled, logprobs=logprobs)),)),)
    own = replace(own, group=replace(own.group, rollouts=rollouts + own.group.rollouts[1:]))
    async with trainer_of(policy, LearnerConfig(lr=1e-3, warmup_steps=0, lr_rule="ess")) as trainer:
        metrics = (await trainer.step([own])).metrics
    assert metrics["sequence_ess_share"] == pytest.approx(16 / 20, rel=1e-4)
    assert metrics["lr"] == pytest.approx(1e-3 * (16 / 20) ** 0.5, rel=1e-4)


async def test_a_reincarnated_optimiser_remembers_nothing_of_before_and_warms_up_again(policy: Policy):
    batch = [experience(policy, [1.0, 0.0])]
    learner = LearnerConfig(lr=1e-3, warmup_steps=2, reincarnate_every=3)
    counts, rates = [], []
    async with trainer_of(policy, learner) as trainer:
        for _ in range(7):
            rates.append((await trainer.step(batch)).metrics["lr"])
            moments = (await trainer.snapshot())[1]
            counts.append({int(tensor) for name, tensor in moments.items() if name.endswith("/step")})
    assert counts == [{1}, {2}, {3}, {1}, {2}, {3}, {1}]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3] * 2 + [5e-4])


async def test_m2po_looks_at_the_whole_batch_however_it_is_cut(directory: Path):
    """Every rollout claims to have been less likely than it is, by another amount: some are within the budget."""
    weights, shares = [], []
    for budget in (16_384, 1):
        policy = load_policy(PolicyConfig(model=str(directory), device="cpu"))
        own = experience(policy, [1.0, 0.0, 1.0, 0.0])
        rollouts = []
        for index, rollout in enumerate(own.group.rollouts):
            tokens = rollout.turns[0].sampled
            assert tokens is not None
            sampled = replace(tokens, logprobs=tokens.logprobs - np.float32(0.2 * index))
            rollouts.append(Rollout(turns=(replace(rollout.turns[0], sampled=sampled),)))
        own = replace(own, group=replace(own.group, rollouts=tuple(rollouts)))
        learner = LearnerConfig(lr=1e-3, warmup_steps=0, tokens_per_micro_batch=budget, updates_per_batch=2)
        async with trainer_of(policy, learner, M2po(budget=0.04)) as trainer:
            shares.append((await trainer.step([own])).metrics["masked_share"])
            weights.append((await trainer.weights()).tensors)
    assert 0 < shares[0] < 1
    assert shares[0] == shares[1]
    for name, whole in weights[0].items():
        torch.testing.assert_close(whole, weights[1][name], atol=2e-5, rtol=1e-3)


async def test_the_weights_that_are_handed_over_do_not_change_afterwards(policy: Policy):
    batch = [experience(policy, [1.0, 0.0])]
    async with trainer_of(policy) as trainer:
        weights = await trainer.weights()
        kept = {name: tensor.clone() for name, tensor in weights.tensors.items()}
        await trainer.step(batch)
    assert weights.version == 0
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.tensors.items())


OBJECTIVES = [
    DppoTv(),
    PpoClip(),
    DecoupledPpo(),
    Cispo(),
    Gspo(),
    Reinforce(),
    IcePop(),
    M2po(),
    Vespo(),
    SeqTis(),
    Remix(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda c: c.type)
async def test_every_objective_learns_over_several_updates(policy: Policy, objective: ObjectiveConfig):
    batch = [experience(policy, [1.0, 0.0])]
    first, second = batch[0].group.rollouts
    margin = logprob(policy, first) - logprob(policy, second)
    learner = LearnerConfig(lr=1e-3, warmup_steps=0, updates_per_batch=3)
    async with trainer_of(policy, learner, objective) as trainer:
        await trainer.step(batch)
    assert trainer.version == 1  # one version per batch, however many updates made it
    assert logprob(policy, first) - logprob(policy, second) > margin


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda c: c.type)
@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("budget", [16_384, 1])
async def test_there_is_one_forward_pass_a_micro_batch_and_update(
    policy: Policy, objective: ObjectiveConfig, updates: int, budget: int
):
    """One more for the objective that sees the whole batch first, where it is not in one micro-batch anyway."""
    batch, passes = [experience(policy, [1.0, 0.0])], []
    policy.model.base_model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    learner = LearnerConfig(lr=1e-3, warmup_steps=0, updates_per_batch=updates, tokens_per_micro_batch=budget)
    async with trainer_of(policy, learner, objective) as trainer:
        passes.clear()
        await trainer.step(batch)
    micro_batches = 2 if budget == 1 else 1
    assert passes.count(True) == updates * micro_batches
    assert passes.count(False) == (updates * micro_batches if budget == 1 and isinstance(objective, M2po) else 0)


@pytest.mark.parametrize("when", [0.0, 0.25, 0.75], ids=["first pass", "first pass, later", "second update"])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out"), RuntimeError(f"{CPU_ALLOCATOR}: you tried to allocate")],
    ids=["gpu", "cpu"],
)
async def test_a_step_that_runs_out_of_memory_is_made_again_in_smaller_pieces(
    directory: Path, when: float, error: RuntimeError
):
    """Two updates; `when` is the share of the backward passes before the one that fails."""
    learner = LearnerConfig(lr=1e-3, warmup_steps=0, tokens_per_micro_batch=130, updates_per_batch=2)
    results, total = [], 0
    for fails in (False, True):
        policy = load_policy(PolicyConfig(model=str(directory), device="cpu"))
        own = experience(policy, [1.0, 0.0] * 10)
        batch = [own, experience(policy, [1.0, 1.0], own=False, value=0.1)]
        calls = itertools.count()

        def fail(*_: object, calls: Iterator[int] = calls, at: int = int(when * total) if fails else -1) -> None:
            if next(calls) == at:
                raise error

        async with trainer_of(policy, learner, DecoupledPpo(), foreign_gate=RelativeGate(quantile=0.5)) as trainer:
            policy.model.get_submodule("model.layers.0").register_full_backward_hook(fail)  # pyright: ignore
            report = await trainer.step(batch)
            results.append((report.metrics, (await trainer.weights()).tensors, report.lessons))
            if fails:
                assert (await trainer.step(batch)).metrics["tokens_per_micro_batch"] == 65
        total = next(calls)
        assert total >= 4
    (metrics, weights, taught), (again, same, taught_again) = results
    assert (metrics["tokens_per_micro_batch"], again["tokens_per_micro_batch"]) == (130, 65)
    for name in metrics.keys() - {"step_s", "prepare_s", "learner_tokens_per_s", "tokens_per_micro_batch"}:
        assert again[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
    assert taught_again == taught
    for name, whole in weights.items():
        torch.testing.assert_close(whole, same[name], atol=2e-5, rtol=1e-3)


async def test_a_rollout_that_does_not_fit_alone_is_an_error(policy: Policy):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    async with trainer_of(policy) as trainer:
        policy.model.base_model.register_forward_hook(fail)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            await trainer.step([experience(policy, [1.0, 0.0])])


async def test_other_errors_are_not_taken_for_a_lack_of_memory(policy: Policy):
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with trainer_of(policy) as trainer:
        batch = [experience(policy, [1.0, 0.0])]
        policy.model.base_model.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="a bug"):
            await trainer.step(batch)


@pytest.mark.parametrize(
    "advantage", [SpoAdvantage(), GrpoAdvantage(), DrGrpoAdvantage(), RlooAdvantage()], ids=lambda c: c.type
)
@pytest.mark.parametrize("foreign", [ReceiverBaseline(), RecOneside(floor=0.0), SapoPlain()], ids=lambda c: c.type)
async def test_every_combination_learns_from_own_and_foreign(
    policy: Policy, advantage: AdvantageConfig, foreign: ForeignConfig
):
    own, peers = experience(policy, [1.0, 0.0]), experience(policy, [0.0, 1.0, 0.0], own=False, value=0.1)
    before = logprob(policy, own.group.rollouts[0]), logprob(policy, peers.group.rollouts[1])
    async with trainer_of(policy, LearnerConfig(lr=1e-3, warmup_steps=0), None, advantage, foreign) as trainer:
        report = await trainer.step([own, peers])
    after = logprob(policy, own.group.rollouts[0]), logprob(policy, peers.group.rollouts[1])
    assert report.metrics["foreign_tokens"] > 0
    assert after[0] + after[1] > before[0] + before[1]


@pytest.mark.parametrize("gated", [False, True])
async def test_what_is_gated_moves_nothing_in_any_update_of_the_step(policy: Policy, gated: bool):
    peers = experience(policy, [1.0, 1.0], own=False, value=0.1)
    before = [logprob(policy, rollout) for rollout in peers.group.rollouts]
    sizes = [len(rollout.response.encode()) for rollout in peers.group.rollouts]
    bits = [-nats / (size * np.log(2)) for nats, size in zip(before, sizes, strict=True)]
    gate = AbsoluteGate(max_bits_per_byte=min(bits) - 1e-3 if gated else max(bits) + 1e-3)
    learner = LearnerConfig(lr=1e-2, warmup_steps=0, updates_per_batch=3)
    async with trainer_of(policy, learner, foreign_gate=gate) as trainer:
        metrics = (await trainer.step([peers])).metrics
    after = [logprob(policy, rollout) for rollout in peers.group.rollouts]
    assert (after == before) is gated
    assert metrics["foreign_gated_share"] == float(gated)
    assert metrics["foreign_bits_per_byte"] == pytest.approx(np.mean(bits), rel=1e-5)


async def test_the_threshold_of_a_step_comes_from_the_steps_before(policy: Policy):
    peers = experience(policy, [1.0, 1.0], own=False, value=0.1)
    learner = LearnerConfig(lr=1e-9, warmup_steps=0, tokens_per_micro_batch=30)  # a micro-batch a row
    async with trainer_of(policy, learner, foreign_gate=RelativeGate(quantile=0.5)) as trainer:
        shares = [(await trainer.step([peers])).metrics["foreign_gated_share"] for _ in range(3)]
    assert shares == [0.0, 0.5, 0.5]


async def test_with_an_adapter_nothing_else_is_trained_or_handed_over(with_adapter: Policy):
    batch = [experience(with_adapter, [1.0, 0.0])]
    likelihoods = [logprob(with_adapter, rollout) for rollout in batch[0].group.rollouts]
    before = {name: p.detach().clone() for name, p in with_adapter.model.named_parameters()}
    async with trainer_of(with_adapter) as trainer:
        await trainer.step(batch)
        await trainer.step(batch)  # B begins at zero, and as long as it is zero, A has no gradient
        handed = (await trainer.weights()).tensors
        kept, _ = await trainer.snapshot()
    after = dict(with_adapter.model.named_parameters())
    changed = {name for name, old in before.items() if not torch.equal(old, after[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert handed.keys() == kept.keys() == changed
    assert all(torch.equal(handed[name], after[name]) for name in changed)
    assert logprob(with_adapter, batch[0].group.rollouts[0]) > likelihoods[0]
    assert logprob(with_adapter, batch[0].group.rollouts[1]) < likelihoods[1]


async def test_weights_are_handed_over_as_they_are_sampled_with_and_kept_as_they_are(policy: Policy):
    async with trainer_of(policy, dtype=torch.bfloat16) as trainer:
        await trainer.step([experience(policy, [1.0, 0.0])])
        handed, kept = (await trainer.weights()).tensors, (await trainer.snapshot())[0]
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(kept[name], parameter)
        assert kept[name].dtype == torch.float32
        assert torch.equal(handed[name], parameter.to(torch.bfloat16))
        assert handed[name].dtype == torch.bfloat16
    assert any(not torch.equal(handed[name].float(), kept[name]) for name in kept)


def probed(policy: Policy, probe: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Log-probabilities from the model's own logits, under autocast for another dtype than float32."""
    ids = torch.from_numpy(probe.astype(np.int64))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        logits = policy.model(ids[None]).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[1:, None]).squeeze(-1)


@pytest.mark.parametrize("chunk", [4, 4096])
async def test_the_probe_is_what_the_handed_over_weights_say_of_a_text(policy: Policy, chunk: int):
    probe = np.arange(5, 45, 3, dtype=np.int32)
    learner = LearnerConfig(lr=1e-2, warmup_steps=0, logit_chunk=chunk)
    async with trainer_of(policy, learner, temperature=0.7, probe=probe) as trainer:
        first = (await trainer.weights()).probe
        torch.testing.assert_close(torch.from_numpy(first), probed(policy, probe), atol=1e-6, rtol=0)
        await trainer.step([experience(policy, [1.0, 0.0])])
        second = (await trainer.weights()).probe
        torch.testing.assert_close(torch.from_numpy(second), probed(policy, probe), atol=1e-6, rtol=0)
    assert first is not None
    assert second is not None
    assert first.dtype == np.float32
    assert first.shape == (len(probe) - 1,)
    assert np.abs(first - second).max() > 1e-3


async def test_the_probe_is_computed_as_training_is(policy: Policy):
    probe = np.arange(5, 45, 3, dtype=np.int32)
    async with trainer_of(policy, dtype=torch.bfloat16, probe=probe) as trainer:
        got = (await trainer.weights()).probe
    assert got is not None
    torch.testing.assert_close(torch.from_numpy(got), probed(policy, probe, torch.bfloat16), atol=1e-6, rtol=0)
    assert float((torch.from_numpy(got) - probed(policy, probe)).abs().max()) > 1e-5
    assert all(parameter.grad is None for parameter in policy.model.parameters())


async def test_without_a_probe_there_is_none(policy: Policy):
    async with trainer_of(policy) as trainer:
        assert (await trainer.weights()).probe is None
