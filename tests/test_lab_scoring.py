"""In a simulated swarm: who is asked for its view of our rollouts, what it answers, and that the answer arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from node.config import NodeConfig, PolicyConfig
from node.engine.policy import Policy, load_policy
from node.experience import Experience, PeerScores
from node.lab.experiments.peer_scoring import EXPERIMENT
from node.lab.member import Member, NodeRecord
from node.lab.pace import Pace
from node.lab.scoring import Guide, Scoring, honest, lying
from node.lab.settings import run
from node.lab.simulation import Setup, simulate
from node.lab.worlds import WORLDS
from swarm.net import virtual_time
from swarm.types import FinishReason, GroupId, PeerId, PolicyVersion, SamplingParams
from tests.builders import group, rollout, task, task_ref
from tests.policies import save_tiny_policy

NOBODY = (None,)


def experience(*texts: str, origin: str = "peer", source: str = "test/echo", mean: float = 0.0) -> Experience:
    """Texts that are all worth `mean`; the last is cut off where there are several."""
    finishes = [FinishReason.STOP] * (len(texts) - 1) + [FinishReason.LENGTH if len(texts) > 1 else FinishReason.STOP]
    rollouts = [rollout(text, finish) for text, finish in zip(texts, finishes, strict=True)]
    ref = task_ref(source=source)
    return Experience(
        id=GroupId("g"),
        group=group(*rollouts, ref=ref, origin=PeerId(origin), sampling=SamplingParams(temperature=0.5)),
        task=task(ref),
        rewards=np.full(len(texts), mean, np.float32),
        scored=np.ones(len(texts), bool),
        own=False,
        value=0.25,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Its tokenizer has a token for "plain"."""
    path = save_tiny_policy(tmp_path_factory.mktemp("policy"), seed=3, phrases=("plain",))
    return load_policy(PolicyConfig(model=str(path), device="cpu"))


# Who is asked ---------------------------------------------------------------------------------------------------------


def guide_of(*peers: str, latency_s: float = 1.0) -> Guide:
    return Guide({PeerId(peer): lambda _: NOBODY for peer in peers}, latency_s)


def test_the_peer_with_the_best_rewards_is_asked_if_it_does_better_than_we():
    guide = guide_of("a", "b", "c")
    for origin, mean in (("a", 0.5), ("b", 0.75), ("a", 1.0), ("c", 0.0)):
        guide.observe(experience("x", origin=origin, mean=mean))
    # a: (.95 * .5 + 1) / 1.95 = .756
    assert guide.best("test/echo", 0.25) == "a"
    assert guide.best("test/echo", 0.7564) == "a"
    assert guide.best("test/echo", 0.7565) is None


def test_rewards_of_another_source_say_nothing():
    guide = guide_of("a", "b")
    guide.observe(experience("x", origin="a", mean=0.5))
    guide.observe(experience("x", origin="b", source="test/other", mean=1.0))
    assert guide.best("test/echo", 0.0) == "a"
    assert guide.best("test/other", 0.0) == "b"
    assert guide.best("test/third", 0.0) is None


def test_who_cannot_be_asked_is_not():
    guide = guide_of("a")
    for origin, mean in (("a", 0.5), ("stranger", 1.0)):
        guide.observe(experience("x", origin=origin, mean=mean))
    assert guide.best("test/echo", 0.0) == "a"


def test_a_group_waits_for_its_scores_and_not_where_there_are_none():
    async def main() -> list[tuple[float, tuple[PeerScores | None, ...] | None]]:
        guide, seen = guide_of("a", latency_s=3.0), []
        for mean in (0.25, 1.0):  # our own value is .25
            guide.observe(experience("x", origin="a", mean=mean))
            guided = await guide.guided(experience("x"))
            seen.append((asyncio.get_running_loop().time(), guided.guidance))
        return seen

    assert virtual_time.run(main()) == [(0.0, None), (3.0, NOBODY)]


# What is answered -----------------------------------------------------------------------------------------------------


def by_hand(policy: Policy, asked: Experience, text: str, finish: FinishReason) -> np.ndarray:
    prompt, ids = policy.codec.prompt(asked.task), policy.codec.encode(text, finish)
    row = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))
    with torch.no_grad():
        logits = policy.model(row[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / 0.5, -1).gather(-1, row[len(prompt) :, None])[:, 0].numpy()


def test_an_honest_peer_says_what_its_model_thinks_of_each_text(policy: Policy):
    texts = ("plainly", "is", "a longer answer, é")
    asked = experience(*texts)
    answers = honest(policy)(asked)
    assert len(answers) == 3
    for text, turn, answer in zip(texts, (r.turns[0] for r in asked.group.rollouts), answers, strict=True):
        assert answer is not None
        assert turn.finish is not None
        expected = by_hand(policy, asked, text, turn.finish)
        np.testing.assert_allclose(answer.logprobs, expected, atol=1e-5)
        assert answer.byte_lengths.sum() == len(text.encode())
        assert answer.logprobs.dtype == np.float32
    assert answers[0] is not None
    assert len(answers[0].logprobs) < len(b"plainly") + 1  # in its own tokens


def test_what_a_peer_has_no_tokens_or_no_room_for_it_does_not_score(policy: Policy):
    answers = honest(policy)(experience("yes", "x" * 300, ""))
    assert [answer is None for answer in answers] == [False, True, True]
    assert honest(policy)(experience("x" * 300)) == (None,)


def test_a_liar_says_anything_and_something_else_each_time(policy: Policy):
    liar, asked = lying(policy, np.random.default_rng(0)), experience("plainly", "x" * 300, "is not plain")
    (first, none, third), (again, *_) = liar(asked), liar(asked)
    (true, *_) = honest(policy)(asked)
    assert first is not None
    assert third is not None
    assert again is not None
    assert true is not None
    assert none is None
    assert first.byte_lengths.tolist() == true.byte_lengths.tolist()
    assert (first.logprobs != again.logprobs).all()
    said = np.concatenate([first.logprobs, third.logprobs, again.logprobs])
    assert said.dtype == np.float32
    assert -20 <= said.min() < -10 < -5 < said.max() <= 0


# In a swarm -----------------------------------------------------------------------------------------------------------


def swarm(directory: Path, guidance: Mapping[str, object], scoring: Scoring) -> Setup:
    """The second has another tokenizer, and joins when the first has made about ten steps."""
    members = []
    for i, phrases in enumerate([(), ("Be plain.",)]):
        config = NodeConfig.model_validate(
            {
                "name": f"node-{i}",
                "max_steps": 12 - 6 * i,
                "policy": {"model": str(save_tiny_policy(directory / f"model-{i}", seed=i, phrases=phrases))},
                "tasks": [{"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}],
                "sampler": {"group_size": 4, "max_new_tokens": 4, "concurrency": 2},
                "learner": {"lr": 2e-2, "warmup_steps": 1, "truncated": "scored"},
                "pool": {"own_groups": 2, "foreign_groups": 0, "own_capacity": 2},
                "guidance": guidance,
            }
        )
        members.append(Member(config=config, pace=Pace(start_s=12.0 * i)))
    return Setup(members=members, exam_every=100, exam_tasks=2, exam_samples=1, scoring=scoring)


def learned(record: NodeRecord) -> list[dict[str, float]]:
    clocked = ("step_s", "prepare_s", "learner_tokens_per_s")
    return [{name: value for name, value in step.items() if name not in clocked} for step in record.steps]


def shares(record: NodeRecord) -> list[float]:
    return [step["guided_share"] for step in record.steps]


def test_scores_of_a_stronger_peer_arrive_and_change_what_is_learned(tmp_path: Path):
    on = {"type": "peer_scores"}
    (strong, weak), (alone, unguided) = (
        simulate(swarm(tmp_path, guidance, Scoring()), 0).nodes for guidance in (on, {"type": "none"})
    )
    assert shares(strong) == [0.0] * 12  # the other one is never better
    unasked = [{name: value for name, value in step.items() if name != "guided_share"} for step in learned(strong)]
    assert unasked == learned(alone)
    assert shares(weak)[0] == 1.0
    assert all(step["guidance"] > 0 for step in weak.steps if step["guided_share"])
    assert weak.steps[0]["time"] - unguided.steps[0]["time"] == pytest.approx(1.0, abs=0.05)
    assert weak.steps[0]["loss"] != unguided.steps[0]["loss"]
    assert not any("guided_share" in step for step in unguided.steps)
    _, again = simulate(swarm(tmp_path, on, Scoring()), 0).nodes
    assert learned(again) == learned(weak)


@pytest.mark.parametrize(("liars", "believed"), [(1, False), (2, True)])
def test_the_last_members_are_the_liars(tmp_path: Path, liars: int, believed: bool):
    """It is the first whom the other one asks."""
    on = {"type": "peer_scores"}
    (_, honestly), (_, lied_to) = (
        simulate(swarm(tmp_path, on, Scoring(liars=number)), 0).nodes for number in (0, liars)
    )
    first, changed = honestly.steps[0], lied_to.steps[0]
    assert first["own_reward"] == changed["own_reward"]
    assert (first["loss"] != changed["loss"]) is believed


@pytest.mark.slow
def test_an_arm_of_the_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three steps of untrained models, half of them liars."""
    models = [save_tiny_policy(tmp_path / str(i), seed=i, phrases=("the",) * (i % 2)) for i in range(4)]
    monkeypatch.setitem(WORLDS, "skills", lambda nodes, seed: models[:nodes])  # pyright: ignore[reportArgumentType]
    settings = {**EXPERIMENT.arm("skills:8+8:liars").settings, "steps": 3}
    outcome = run(settings, seed=1)
    EXPERIMENT.check(outcome)
    assert outcome.summary["guided_share"] >= 0.0  # nan where nobody asks


def test_arms_without_scoring_have_the_settings_that_they_always_had():
    plain, scored = (EXPERIMENT.arm(f"skills:8+8{how}").settings for how in ("", ":scored"))
    liars = EXPERIMENT.arm("skills:8+8:liars").settings
    assert "scoring" not in plain
    assert "guidance" not in plain["tables"]  # pyright: ignore[reportOperatorIssue]
    assert scored["scoring"] == {"latency_s": 1.0, "liars": 0}
    assert liars["scoring"] == {"latency_s": 1.0, "liars": 2}
    assert {k: v for k, v in scored.items() if k != "scoring"} == {k: v for k, v in liars.items() if k != "scoring"}
