"""Comparative advantage: what a swarm wants of us, what we say of ourselves, and what comes of it in a swarm of two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.algorithms import TrackerConfig
from node.config import NodeConfig, SamplerConfig
from node.lab.member import Member, NodeRecord
from node.lab.pace import Pace
from node.lab.simulation import Setup, simulate
from node.rl.demand import Demand, announced_values
from node.rl.sampler import MAX_MEMBERS, TaskSampler
from node.rl.tracker import ValueTracker
from swarm.net.base import PeerInfo
from swarm.types import CellValue, PeerId, PolicyVersion, Task, TaskRef
from tests.builders import cell_value
from tests.policies import save_tiny_policy

V0 = PolicyVersion(0)


# The swarm's ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_wanted_where_we_are_strong_and_the_members_mean_is_weak():
    demand = Demand([[cell_value("a", 0.2, mass=100.0)], [cell_value("a", 0.6, mass=1e-6)]])
    assert demand.for_cell("a", "{}", own=0.7) == pytest.approx(0.7 * (1 - (0.7 + 0.2 + 0.6) / 3))
    assert demand.for_cell("a", "{}", own=0.1) == pytest.approx(0.1 * (1 - (0.1 + 0.2 + 0.6) / 3))


def test_a_source_is_the_mean_of_a_members_cells_by_mass():
    demand = Demand([[cell_value("a", 0.9, mass=3.0, difficulty="1"), cell_value("a", 0.1, mass=1.0, difficulty="2")]])
    assert demand.for_source("a", own=0.5) == pytest.approx(0.5 * (1 - (0.5 + 0.7) / 2))


def test_of_a_cell_that_it_does_not_name_a_member_says_what_it_says_of_the_source():
    demand = Demand([[cell_value("a", 0.9, mass=3.0, difficulty="1"), cell_value("a", 0.1, mass=1.0, difficulty="2")]])
    assert demand.for_cell("a", "2", own=0.5) == pytest.approx(0.5 * (1 - (0.5 + 0.1) / 2))
    assert demand.for_cell("a", "3", own=0.5) == pytest.approx(0.5 * (1 - (0.5 + 0.7) / 2))


def test_where_nobody_says_anything_we_are_the_swarm():
    demand = Demand([[cell_value("a", 0.9), cell_value("b", 0.9, mass=0.0)]])
    assert demand.for_source("b", own=0.5) == demand.for_cell("b", "{}", own=0.5) == 0.25


members = st.lists(
    st.lists(st.builds(cell_value, st.sampled_from("ab"), st.floats(0, 1), st.floats(0, 1e12)), max_size=4), max_size=5
)


@settings(deadline=None)
@given(members, st.lists(st.builds(cell_value, st.just("a"), st.floats(0, 1), st.floats(0, 1e12)), max_size=4))
def test_a_liar_moves_the_mean_by_no_more_than_its_share(honest: list[list[CellValue]], lies: list[CellValue]):
    speaking = sum(any(cell.source == "a" and cell.mass > 0 for cell in values) for values in honest)
    for wanted in (
        lambda demand: demand.for_source("a", own=1.0),
        lambda demand: demand.for_cell("a", "{}", own=1.0),
    ):
        without, with_it = wanted(Demand(honest)), wanted(Demand([*honest, lies]))
        assert 0 <= with_it <= 1
        assert abs(with_it - without) <= 1 / (speaking + 2) + 1e-9


# Ours -----------------------------------------------------------------------------------------------------------------


def make_task(source: str, difficulty: str = "{}", prompt: str = "q") -> Task:
    ref = TaskRef(source=source, version="1", config="{}", seed=0, index=0)
    return Task(ref=ref, prompt=prompt, answer="", difficulty=difficulty)


def observed(*cells: tuple[str, str, float, int]) -> ValueTracker:
    """Of (source, difficulty, reward, how often)."""
    tracker = ValueTracker(TrackerConfig())
    for source, difficulty, reward, times in cells:
        for _ in range(times):
            tracker.observe(make_task(source, difficulty), reward, V0)
    return tracker


def test_we_announce_every_sources_best_known_cell_first():
    tracker = observed(
        ("a", "1", 1.0, 5), ("a", "2", 0.0, 4), ("a", "3", 1.0, 3), ("b", "1", 0.0, 1), ("b", "2", 1.0, 2)
    )
    values = announced_values(tracker, V0)
    assert [(cell.source, cell.difficulty) for cell in values] == [
        ("a", "1"), ("b", "2"), ("a", "2"), ("b", "1"), ("a", "3"),
    ]  # fmt: skip
    assert sorted(values, key=lambda cell: -cell.mass) == tracker.cell_values(V0, 5)


def test_we_announce_no_more_than_peers_read():
    tracker = observed(*[("a", str(n), 1.0, 1) for n in range(70)], ("a", "\n", 1.0, 2), ("a", "x" * 201, 1.0, 2))
    values = announced_values(tracker, V0)
    assert len(values) == 62  # the 64 that we know best without the two that nobody would read
    assert all(cell.difficulty.isdigit() for cell in values)


# The sampler ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    name: str
    size: int | None = None
    version: str = "1"
    config: str = "{}"


def make_sampler(
    *sources: Source, for_swarm: float, tracker: ValueTracker | None = None, candidates: int = 1
) -> TaskSampler:
    config = SamplerConfig(candidates=candidates, for_swarm=for_swarm)
    return TaskSampler(sources, [1.0] * len(sources), tracker or ValueTracker(TrackerConfig()), config, seed=7)


def peers(*values: Sequence[CellValue]) -> Callable[[], list[PeerInfo]]:
    def info(number: int, worth: Sequence[CellValue]) -> PeerInfo:
        name = f"peer {number}"
        return PeerInfo(
            peer=PeerId(name), name=name, addresses=(), last_seen=0.0, head=0, cursor=0, values=tuple(worth)
        )

    return lambda: [info(number, worth) for number, worth in enumerate(values)]


def nobody_is_asked() -> list[PeerInfo]:
    raise AssertionError("somebody was asked")


def test_without_a_share_for_the_swarm_the_draws_are_what_they_always_were():
    sampler = make_sampler(Source("a"), Source("b", size=50), for_swarm=0.0, candidates=2)
    drawn = []
    for _ in range(3):
        demand = sampler.demand(nobody_is_asked)
        refs = sampler.propose(V0, demand)
        chosen = sampler.choose([make_task("a", prompt=str(n)) for n in range(8)], V0, demand)
        drawn.append(([(ref.source, ref.seed, ref.index) for ref in refs], chosen.prompt))
    assert drawn == [
        ([("b", 0, 33), ("b", 0, 44)], "1"),
        ([("a", 3331544671, 915987), ("a", 1224353588, 956954)], "6"),
        ([("b", 0, 5), ("b", 0, 0)], "2"),
    ]


def test_a_share_of_the_picks_is_the_swarms():
    sampler = make_sampler(Source("a"), for_swarm=0.25)
    demands = [sampler.demand(peers([cell_value("a", 0.5)])) for _ in range(4000)]
    assert sum(demand is not None for demand in demands) / 4000 == pytest.approx(0.25, abs=0.02)


def test_a_pick_is_our_own_where_no_peer_says_what_it_is_worth():
    sampler = make_sampler(Source("a"), for_swarm=1.0)
    assert sampler.demand(peers()) is None
    assert sampler.demand(peers([], [])) is None
    assert sampler.demand(peers([], [cell_value("b", 0.5)])) is not None


def test_for_the_swarm_sources_are_picked_by_weight_and_demand():
    tracker = observed(("a", "{}", 1.0, 100), ("b", "{}", 1.0, 3))
    config = SamplerConfig(candidates=1, for_swarm=1.0)
    sampler = TaskSampler([Source("a"), Source("b")], [3.0, 1.0], tracker, config, seed=7)
    demand = sampler.demand(peers([cell_value("a", 0.9), cell_value("b", 0.1)], [cell_value("b", 0.0)]))
    picks = Counter(sampler.propose(V0, demand)[0].source for _ in range(4000))
    a, b = 100.5 / 101, 3.5 / 4
    for_a, for_b = 3 * a * (1 - (a + 0.9) / 2), b * (1 - (b + 0.1 + 0.0) / 3)
    assert picks["a"] / 4000 == pytest.approx(for_a / (for_a + for_b), abs=0.03)


def test_for_the_swarm_candidates_are_chosen_by_cells():
    """And not by what we know of their prompts."""
    tracker = observed(("a", "1", 1.0, 50), ("a", "2", 0.0, 50))
    sampler = make_sampler(Source("a"), for_swarm=1.0, tracker=tracker)
    demand = sampler.demand(
        peers([cell_value("a", 0.25, difficulty="1"), cell_value("a", 0.75, difficulty="2")]),
    )
    tasks = [make_task("a", "1", "new"), make_task("a", "2", "new"), make_task("a", "2", "q")]
    picks = Counter((task.difficulty, task.prompt) for task in (sampler.choose(tasks, V0, demand) for _ in range(4000)))
    easy, hard = (8 * 0.5 + 50) / 58, 8 * 0.5 / 58
    for_easy, for_hard = easy * (1 - (easy + 0.25) / 2), hard * (1 - (hard + 0.75) / 2)
    total = for_easy + 2 * for_hard
    assert picks["1", "new"] / 4000 == pytest.approx(for_easy / total, abs=0.02)
    assert picks["2", "new"] / 4000 == pytest.approx(for_hard / total, abs=0.02)
    assert picks["2", "q"] / 4000 == pytest.approx(for_hard / total, abs=0.02)


def test_of_more_peers_than_are_heard_others_are_heard_each_time():
    sampler = make_sampler(Source("a"), for_swarm=1.0)
    crowd = peers(*[[cell_value(str(number), 0.0)] for number in range(4 * MAX_MEMBERS)])
    heard = []
    for _ in range(2):
        demand = sampler.demand(crowd)
        assert demand is not None
        heard.append({n for n in range(4 * MAX_MEMBERS) if demand.for_source(str(n), own=1.0) == 0.5})
    assert [len(each) for each in heard] == [MAX_MEMBERS] * 2
    assert heard[0] != heard[1]
    few = sampler.demand(peers(*[[cell_value("a", 0.0)]] * MAX_MEMBERS))
    assert few is not None
    assert few.for_source("a", own=1.0) == pytest.approx(MAX_MEMBERS / (MAX_MEMBERS + 1))


def test_a_sampler_for_the_swarm_goes_on_where_it_was():
    def picks(sampler: TaskSampler) -> list[TaskRef]:
        worth = peers([cell_value("a", 0.9), cell_value("b", 0.1)])
        return [ref for _ in range(20) for ref in sampler.propose(V0, sampler.demand(worth))]

    first, second = (make_sampler(Source("a"), Source("b"), for_swarm=0.5) for _ in range(2))
    picks(first)
    second.restore(json.loads(json.dumps(first.state())))
    assert picks(second) == picks(first)


# A swarm of two -------------------------------------------------------------------------------------------------------


class Noted(TaskSampler):
    """Whose demand came with each call."""

    proposed: ClassVar[list[Demand | None]] = []
    chosen: ClassVar[list[Demand | None]] = []

    def propose(self, now: PolicyVersion, demand: Demand | None = None) -> list[TaskRef]:
        self.proposed.append(demand)
        return super().propose(now, demand)

    def choose(self, tasks: Sequence[Task], now: PolicyVersion, demand: Demand | None = None) -> Task:
        self.chosen.append(demand)
        return super().choose(tasks, now, demand)


def test_the_strong_node_samples_what_the_weak_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One has room for a single byte, so that "long" is beyond it."""
    monkeypatch.setattr("node.progress.TaskSampler", Noted)
    model = save_tiny_policy(tmp_path / "model")

    def run(for_swarm: float) -> list[NodeRecord]:
        members = [
            Member(
                config=NodeConfig.model_validate(
                    {
                        "name": name,
                        "max_steps": 40,
                        "policy": {"model": str(model)},
                        "tasks": [
                            {"type": "plugin", "factory": f"tests.plain_tasks:{kind}", "name": "two"}
                            for kind in ("Plain", "Long")
                        ],
                        "sampler": {
                            "group_size": 4,
                            "max_new_tokens": room,
                            "concurrency": 2,
                            "for_swarm": for_swarm,
                        },
                        "learner": {"lr": 1e-9, "truncated": "scored"},
                        "pool": {"own_groups": 2, "foreign_groups": 0, "own_capacity": 2},
                    }
                ),
                pace=Pace(rollout_s=30.0),
            )
            for name, room in (("strong", 6), ("weak", 1))
        ]
        return simulate(Setup(members=members, exam_every=40, exam_tasks=1, exam_samples=1), 0).nodes

    def sure(record: NodeRecord) -> float:
        """Of its groups, once it knows the two sources apart, those that it expected to solve: "long" ones."""
        values = [value for value, _ in record.predictions[16:]]
        return sum(value > 0.8 for value in values) / len(values)

    (without, _), (helped, weak) = run(0.0), run(1.0)
    # By promise: 0.55 for what is solved by half, 0.17 to 0.2 for "long". By demand: about 0.25 and 0.48.
    assert sure(without) < 0.35
    assert sure(helped) > 0.55
    assert sure(weak) == 0
    assert set() < {demand for demand in Noted.chosen if demand} <= {demand for demand in Noted.proposed if demand}
