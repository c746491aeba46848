import json
import math
from collections import Counter
from dataclasses import dataclass

import pytest

from node.algorithms import TrackerConfig
from node.config import SamplerConfig
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from swarm.errors import CheckpointError, ConfigError
from swarm.types import PolicyVersion, Task, TaskRef

V0 = PolicyVersion(0)


@dataclass(frozen=True)
class Source:
    name: str
    size: int | None = None
    version: str = "1"
    config: str = "{}"


def make_task(prompt: str, source: str = "a") -> Task:
    ref = TaskRef(source=source, version="1", config="{}", seed=0, index=0)
    return Task(ref=ref, prompt=prompt, answer="", difficulty="{}")


def make_sampler(
    *sources: Source, weights: tuple[float, ...] = (), tracker: ValueTracker | None = None, candidates: int = 4
) -> TaskSampler:
    config = SamplerConfig(candidates=candidates)
    tracker = tracker or ValueTracker(TrackerConfig())
    return TaskSampler(sources, weights or (1.0,) * len(sources), tracker, config, seed=7)


def solved(*sources: str) -> ValueTracker:
    """A tracker that is certain of the sources' success."""
    tracker = ValueTracker(TrackerConfig())
    for source in sources:
        for _ in range(10_000):
            tracker.observe(make_task("q", source), 1.0, V0)
    return tracker


def test_procedural_candidates_are_references_of_one_source():
    refs = make_sampler(Source("a"), Source("b", version="2", config='{"n":1}')).propose(V0)
    assert len(refs) == 4
    assert len({ref.source for ref in refs}) == 1
    assert len({(ref.seed, ref.index) for ref in refs}) == 4
    assert all(0 <= ref.seed < 2**32 and 0 <= ref.index < 2**20 for ref in refs)


def test_finite_candidates_are_different_indices_of_seed_zero():
    sampler = make_sampler(Source("a", size=10))
    for _ in range(20):
        refs = sampler.propose(V0)
        assert {ref.seed for ref in refs} == {0}
        assert len({ref.index for ref in refs}) == 4
        assert all(0 <= ref.index < 10 for ref in refs)


def test_a_small_source_proposes_all_that_it_has():
    assert sorted(ref.index for ref in make_sampler(Source("a", size=2)).propose(V0)) == [0, 1]


def test_sources_are_picked_by_weight_and_by_what_there_is_to_learn():
    tracker = solved("a")
    sampler = make_sampler(Source("a"), Source("b"), weights=(3.0, 1.0), tracker=tracker, candidates=1)
    picks = Counter(sampler.propose(V0)[0].source for _ in range(4000))
    value = tracker.source_value("a", V0)
    easy, even = 3 * (math.sqrt(value * (1 - value)) + 0.05), 0.5 + 0.05
    assert picks["a"] / 4000 == pytest.approx(easy / (easy + even), abs=0.03)


def test_choose_prefers_what_is_half_solved_and_gives_nothing_up():
    tracker = ValueTracker(TrackerConfig(prior_mass=1e-3))
    for _ in range(2000):
        tracker.observe(make_task("easy"), 1.0, V0)
        tracker.observe(make_task("even"), 1.0, V0)
        tracker.observe(make_task("even"), 0.0, V0)
    sampler = make_sampler(Source("a"), tracker=tracker)
    picks = Counter(sampler.choose([make_task("easy"), make_task("even")], V0).prompt for _ in range(4000))
    assert picks["easy"] / 4000 == pytest.approx(0.05 / 0.60, abs=0.02)


def test_choose_needs_a_task():
    with pytest.raises(ValueError, match="no task"):
        make_sampler(Source("a")).choose([], V0)


def test_the_same_seed_gives_the_same_tasks():
    first, second = (make_sampler(Source("a"), Source("b")) for _ in range(2))
    assert [first.propose(V0) for _ in range(5)] == [second.propose(V0) for _ in range(5)]


def test_restored_from_json_it_goes_on_where_it_was():
    sampler = make_sampler(Source("a"), Source("b", size=50))
    sampler.propose(V0)
    state = json.loads(json.dumps(sampler.state()))
    expected = [sampler.propose(V0) for _ in range(5)]
    other = make_sampler(Source("a"), Source("b", size=50))
    other.restore(state)
    assert [other.propose(V0) for _ in range(5)] == expected


@pytest.mark.parametrize("state", [{}, {"bit_generator": "MT19937"}, {"bit_generator": "PCG64", "state": 1}])
def test_anything_else_than_a_state_is_refused(state: dict):
    with pytest.raises(CheckpointError, match="sampler state"):
        make_sampler(Source("a")).restore(state)


def test_an_empty_source_and_a_weight_of_zero_are_config_errors():
    with pytest.raises(ConfigError, match="b is empty"):
        make_sampler(Source("a"), Source("b", size=0))
    with pytest.raises(ConfigError, match="weight of a is 0"):
        make_sampler(Source("a"), weights=(0.0,))


def test_every_source_needs_a_weight():
    with pytest.raises(ValueError, match="2 sources and 1 weights"):
        make_sampler(Source("a"), Source("b"), weights=(1.0,))
