"""When learning has come apart, where it goes back to, and that a real policy recovers. And that healthy runs, those
whose results are kept in docs/experiments, would never have been stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import pytest

from node.config import DivergenceConfig
from node.divergence import ASTRAY, RULES, Divergence, GoBack, RewardFall
from node.lab.adversary import BODIES
from swarm.errors import CheckpointError

ROOT = Path(__file__).parents[1]
CONFIG = DivergenceConfig(window=4, hold=3, start=2, recovery_steps=20, rollbacks=2)
HEALTHY = {
    "own_reward": 0.5,
    "log_rho_mean": 0.05,
    "entropy": 0.4,
    "grad_norm": 1.0,
    "skipped_update": 0.0,
}
CONFIRMED = CONFIG.window + CONFIG.hold


def fed(divergence: Divergence, steps: Iterable[int], change: Mapping[str, float] | None = None) -> list[GoBack]:
    orders = [divergence.observe(step, HEALTHY | dict(change or {})) for step in steps]
    return [order for order in orders if order is not None]


def healthy(upto: int = 20, *, saved: Sequence[int] = (5,)) -> Divergence:
    divergence = Divergence(CONFIG)
    for step in range(1, upto + 1):
        assert divergence.observe(step, HEALTHY) is None
        if step in saved:
            divergence.saved(step)
    return divergence


# The rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"log_rho_mean": 5.0}, "nats a token away"),
        ({"entropy": 8.0}, "entropy has exploded"),
        ({"entropy": 1e-4, "own_reward": 0.3}, "entropy has collapsed"),
        ({"own_reward": 0.0}, "own rewards have fallen by"),
        ({"grad_norm": 1e6}, "the gradient's norm has exploded"),
        ({"skipped_update": 1.0, "grad_norm": math.nan}, "not finite in 5 steps in a row"),
    ],
)
def test_what_ends_in_going_back(change: dict[str, float], words: str) -> None:
    divergence = healthy()
    (order, *_) = fed(divergence, range(21, 61), change)
    assert words in order.why
    assert (order.to, order.lr_scale, order.stop) == (5, 0.5, False)


@pytest.mark.parametrize("rule", [rule.name for rule in RULES] + ["skipped_steps"])
def test_a_rule_whose_threshold_is_0_is_off(rule: str) -> None:
    divergence = Divergence(CONFIG.model_copy(update={rule.name: 0 for rule in RULES} | {"skipped_steps": 0}))
    assert rule in DivergenceConfig.model_fields
    assert fed(divergence, range(1, 20)) == []
    worst = {"log_rho_mean": 9.0, "entropy": 9.0, "own_reward": 0.0, "grad_norm": 1e9, "skipped_update": 1.0}
    assert fed(divergence, range(20, 90), worst) == []


def test_nothing_happens_before_it_has_held() -> None:
    divergence = healthy()
    assert fed(divergence, range(21, 23), {"log_rho_mean": 20.0}) == []
    assert fed(divergence, range(23, 24), {"log_rho_mean": 20.0}) != []


def test_single_steps_that_come_to_nothing_are_no_reason() -> None:
    divergence = healthy()
    for start in range(21, 60, 5):
        assert fed(divergence, range(start, start + 4), {"skipped_update": 1.0, "grad_norm": math.nan}) == []
        assert fed(divergence, range(start + 4, start + 5)) == []


def test_steps_without_anything_to_learn_do_not_end_a_row_of_skipped_ones() -> None:
    divergence = healthy()
    broken = HEALTHY | {"skipped_update": 1.0, "grad_norm": math.nan}
    assert [divergence.observe(step, broken) for step in range(21, 25)] == [None] * 4
    assert divergence.observe(25, {"own_rollouts": 8.0}) is None
    assert divergence.observe(26, broken) is not None


def test_who_has_solved_his_tasks_may_be_sure_of_himself() -> None:
    divergence = healthy()
    assert fed(divergence, range(21, 200), {"entropy": 1e-5, "own_reward": 1.0}) == []
    assert fed(divergence, range(200, 210), {"entropy": 1e-5, "own_reward": 1.0 - 0.9 * ASTRAY}) == []
    orders = fed(divergence, range(210, 240), {"entropy": 1e-5, "own_reward": 0.7})
    assert orders[0].why.startswith("entropy has collapsed to 1e-05 nats a token, 0.0% of its start (limit 1.0%)")


# Which checkpoint -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_good_when_all_went_well_for_long_enough_after_it() -> None:
    divergence = healthy(20, saved=(5, 15))
    assert divergence.kept == {5, 15}, "5 is good, 15 may become so"
    fed(divergence, range(21, 15 + CONFIRMED + 1))
    assert divergence.kept == {15}
    divergence.saved(25)
    divergence.saved(30)
    assert divergence.kept == {15, 25}, "one candidate at a time: two checkpoints are spared at most"


def test_what_was_saved_while_something_was_wrong_is_no_candidate() -> None:
    divergence = healthy(20, saved=(5,))
    assert fed(divergence, range(21, 23), {"log_rho_mean": 20.0}) == []
    divergence.saved(22)
    assert divergence.kept == {5}
    (order,) = fed(divergence, range(23, 24), {"log_rho_mean": 20.0})
    assert order.to == 5


def test_trouble_after_a_checkpoint_starts_its_time_again() -> None:
    divergence = healthy(6, saved=(5,))
    fed(divergence, range(7, 8), {"skipped_update": 1.0})
    fed(divergence, range(8, 7 + CONFIRMED))
    assert divergence._good is None
    fed(divergence, range(7 + CONFIRMED, 8 + CONFIRMED))
    assert divergence._good == 5


def test_one_that_is_not_known_to_be_good_is_better_than_birth() -> None:
    divergence = healthy(6, saved=(5,))
    broken = {"skipped_update": 1.0, "grad_norm": math.nan}
    assert [order.to for order in fed(divergence, range(7, 12), broken)] == [5]
    assert [order.to for order in fed(Divergence(CONFIG), range(1, 6), broken)] == [None]
    resumed = Divergence(CONFIG, {}, resumed=40)
    assert [order.to for order in fed(resumed, range(41, 46), broken)] == [40]


# How it goes on -------------------------------------------------------------------------------------------------------


def fall(divergence: Divergence, step: int) -> tuple[GoBack, int]:
    """Five steps that come to nothing. The order, and the next step."""
    (order,) = fed(divergence, range(step, step + 5), {"skipped_update": 1.0, "grad_norm": math.nan})
    return order, step + 5


def test_the_rate_is_lowered_to_a_floor_and_in_the_end_learning_stops() -> None:
    config = CONFIG.model_copy(update={"lr_floor": 0.2, "rollbacks": 3})
    divergence, step, orders = Divergence(config), 1, []
    divergence.saved(0)
    for _ in range(5):
        order, step = fall(divergence, step)
        orders.append(order)
    assert [order.lr_scale for order in orders] == [0.5, 0.25, 0.2, 0.2, 0.2]
    assert [order.stop for order in orders] == [False, False, False, True, True]
    assert [order.rollbacks for order in orders] == [0, 1, 2, 3, 3]
    assert {order.to for order in orders} == {0}
    divergence.forgive()
    order, _ = fall(divergence, step)
    assert (order.stop, order.lr_scale) == (False, 0.2)


def test_without_roll_backs_it_stops_at_once() -> None:
    divergence = Divergence(CONFIG.model_copy(update={"rollbacks": 0}))
    order, _ = fall(divergence, 1)
    assert order.stop


def test_the_rate_recovers_and_what_was_is_forgotten_only_when_it_has() -> None:
    divergence = Divergence(CONFIG)
    _, step = fall(divergence, 1)
    _, step = fall(divergence, step)
    seen = []
    for number in range(4 * CONFIG.recovery_steps):
        assert divergence.observe(step + number, HEALTHY) is None
        seen.append((divergence.lr_scale, divergence.gauges()["rollbacks_in_a_row"]))
    n = CONFIG.recovery_steps
    assert seen[0] == seen[n - 2] == (0.25, 2.0)
    assert seen[n - 1] == (0.5, 2.0)
    assert seen[2 * n - 1] == seen[3 * n - 2] == (1.0, 2.0)
    assert seen[3 * n - 1] == (1.0, 0.0)


def test_a_run_that_keeps_falling_between_recoveries_ends() -> None:
    divergence, step, orders = Divergence(CONFIG), 1, []
    while not orders or not orders[-1].stop:
        order, step = fall(divergence, step)
        orders.append(order)
        fed(divergence, range(step, step + CONFIG.recovery_steps + 3))  # the rate recovers, and it falls again
        step += CONFIG.recovery_steps + 3
        assert len(orders) < 10
    assert len(orders) == CONFIG.rollbacks + 1


def test_averages_begin_anew_after_going_back() -> None:
    divergence = healthy()
    assert len(fed(divergence, range(21, 24), {"log_rho_mean": 20.0})) == 1
    assert fed(divergence, range(24, 60)) == []


def test_state_survives_a_restart() -> None:
    divergence = healthy(20, saved=(5, 15))
    fall(divergence, 21)
    state = json.loads(json.dumps(divergence.state()))
    other = Divergence(CONFIG, state)
    assert other.state() == divergence.state()
    assert (other.lr_scale, other.kept) == (0.5, {5})
    assert Divergence(CONFIG, state, resumed=26).kept == {5, 26}
    assert fall(other, 27) == fall(divergence, 27)


@pytest.mark.parametrize(
    "state",
    [
        {"best": "high"},
        {"best": [math.nan, 0.0]},
        {"best": [0.5]},
        {"starts": {"entropy": "much"}},
        {"lr_scale": "half"},
        {"rollbacks": None},
    ],
)
def test_a_state_that_is_none_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Divergence(CONFIG, state)


# The reward's fall ----------------------------------------------------------------------------------------------------


def falls(rewards: Iterable[float], window: int = 4, start: int = 2) -> list[float]:
    measure = RewardFall(window, start)
    return [measure.observe(reward).get("reward_fall", math.nan) for reward in rewards]


def test_a_fall_is_measured_from_the_best_average() -> None:
    seen = falls([0.8] * 10 + [0.0] * 60)
    assert math.isnan(seen[0])
    assert seen[1:10] == [0.0] * 9
    assert seen[10:] == sorted(seen[10:])
    assert seen[-1] == pytest.approx(1.0, abs=1e-3)


def test_noise_is_no_fall() -> None:
    assert max(falls([0.9, 0.1] * 50)[2:]) < 0.2
    assert falls([0.0] * 20) == pytest.approx([math.nan] * 20, nan_ok=True), "there is nothing to fall from"
    assert max(falls([n / 100 for n in range(100)])[2:]) == 0.0


def test_steps_without_own_rollouts_say_nothing() -> None:
    plain, gaps = RewardFall(4, 2), RewardFall(4, 2)
    for reward in (0.5, 0.6, 0.1, 0.1):
        gaps.observe(math.nan)
        assert plain.observe(reward) == gaps.observe(reward)


# Runs that are over ---------------------------------------------------------------------------------------------------

RESULTS = sorted((ROOT / "docs/experiments/results").rglob("*.json"))


#: Experiment and arm: whose nodes were to be ruined, and were.
RUINED = {
    ("hostile", "hostile"),
    ("hostile", "hostile, no guards"),
    ("poison", "30%:poisoned:open"),
    ("poison", "30%:poisoned:relative-0.9"),
    *(("poison", f"50%:{body}:open") for body in BODIES),
    *(("poison", f"50%:{body}:unlikely:sequence") for body in BODIES),
    *(("reuse", f"{objective}-x4") for objective in ("DPPO-TV", "PPO", "ReMix")),
    ("reuse", "ReMix-x4,reincarnated"),
    ("reuse", "ReMix-x2"),
    *(("learning-rate", f"alone{cold}:x2") for cold in ("", ",no-warmup")),
}


def test_no_experiment_would_have_been_stopped() -> None:
    """Their curves have the mean own reward of every ten steps: fed as those ten steps, without their noise, which only
    makes a fall harder to excuse. Their summaries have means over all of a run's steps."""
    config = DivergenceConfig()
    assert len(RESULTS) > 100
    for path in RESULTS:
        experiment, folder = path.relative_to(ROOT / "docs/experiments/results").parts[:2]
        arm = unquote(folder)
        aged = experiment == "staleness" and not arm.endswith(",lag=0")  # until corrections fail
        if aged or (experiment, arm) in RUINED:
            continue
        result = json.loads(path.read_text())
        measure = RewardFall(config.window, config.start)
        points = [reward for _, reward in result["curves"].get("reward", ())]
        fallen = [measure.observe(reward).get("reward_fall", 0.0) for reward in points for _ in range(10)]
        assert max(fallen, default=0.0) < 0.75 * config.reward_fall, path
        assert (result["summary"].get("log_rho_mean") or 0.0) < 0.5 * config.log_rho_mean, path
