"""Each rule on a made-up series that shows its trouble, none on healthy ones, and what a node makes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from node.alarm_rules import RULES, relative
from node.alarms import Alarm, Alarms
from node.appetite import Appetite
from node.assembly import trainer_of
from node.backlog import Nothing
from node.checkpoint import CheckpointStore
from node.commands import status
from node.config import AlarmsConfig, NodeConfig
from node.engine.policy import load_policy
from node.experience import Experience
from node.holds import Holds
from node.learning import Learning
from node.ledger import Ledger
from node.metrics import MetricsLog
from node.progress import Progress
from node.rl.average import Average
from node.settings import task_specs
from swarm.errors import CheckpointError
from swarm.tasks.judge import LocalJudge
from swarm.types import GroupId, PeerId, PolicyVersion, Reason, Rollout, Verdict
from swarm.wire.v1 import node_pb2
from tests.builders import group, task, tokens, turn
from tests.policies import save_tiny_policy

#: metric -> mean and standard deviation over steps while all is well, about what the demo's runs show.
HEALTHY = {
    "log_rho_mean": (0.05, 0.02),
    "log_rho_p99": (0.8, 0.4),
    "masked_share": (0.01, 0.01),
    "opsm_share": (0.003, 0.005),
    "ess_share": (0.95, 0.03),
    "entropy": (0.3, 0.03),
    "own_length": (60.0, 6.0),
    "own_truncated_share": (0.05, 0.03),
    "grad_norm": (0.8, 0.2),
    "skipped_update": (0.0, 0.0),
    "calibration": (0.0, 0.08),
    "zero_advantage_share": (0.2, 0.1),
    "foreign_ratio": (0.7, 0.1),
    "refused_share": (0.1, 0.1),
}
#: rule -> what its metric falls or rises to when that is wrong.
SICK = {
    "log_rho_mean": 0.5,
    "log_rho_p99": 6.0,
    "masked_share": 0.5,
    "opsm_share": 0.4,
    "ess_share": 0.05,
    "entropy_low": 0.005,
    "entropy_high": 1.2,
    "length_low": 8.0,
    "truncated_share": 0.8,
    "grad_norm": 8.0,
    "skipped_updates": 0.5,
    "calibration_low": -0.2,
    "calibration_high": 0.2,
    "zero_advantage": 0.97,
    "foreign_ratio": 0.05,
    "refused_share": 0.9,
}
METRIC = {rule.name: rule.metric for rule in RULES}
PLAIN = AlarmsConfig(window=4, hold=3, start=2)


def steps(count: int, seed: int = 0, **means: float) -> Iterator[dict[str, float]]:
    """Noisy steps, healthy but for the metrics whose `means` are given."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        metrics = {name: rng.normal(means.get(name, mean), sd) for name, (mean, sd) in HEALTHY.items()}
        yield {name: value if name == "calibration" else max(value, 0.0) for name, value in metrics.items()}


def watch(alarms: Alarms, series: Sequence[Mapping[str, float]], first: int = 1) -> dict[str, list[tuple[str, int]]]:
    """What began and ended, and at which step; the series' first step has number `first`."""
    seen: dict[str, list[tuple[str, int]]] = {"began": [], "ended": []}
    for step, metrics in enumerate(series, first):
        began, ended = alarms.observe(step, metrics)
        seen["began"] += [(alarm.name, step) for alarm in began]
        seen["ended"] += [(alarm.name, step) for alarm in ended]
    return seen


# The moving average ---------------------------------------------------------------------------------------------------


def test_without_decay_it_is_the_plain_mean_and_its_standard_error() -> None:
    values, average = [3.0, 1.0, 4.0, 1.0, 5.0], Average()
    for value in values:
        average = average.observe(value, 1.0)
    assert average.mean == pytest.approx(np.mean(values))
    assert average.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))


def test_a_value_that_k_others_followed_weighs_decay_to_the_k() -> None:
    average = Average()
    for value in (8.0, 4.0, 2.0):
        average = average.observe(value, 0.5)
    weights = np.array([0.25, 0.5, 1.0])
    mean = np.average([8.0, 4.0, 2.0], weights=weights)
    spread = weights @ (np.array([8.0, 4.0, 2.0]) - mean) ** 2
    variance = spread / (weights.sum() - (weights**2).sum() / weights.sum())
    assert average.mean == pytest.approx(mean)
    assert average.standard_error == pytest.approx(math.sqrt(variance * (weights**2).sum()) / weights.sum())


def test_fewer_than_two_values_have_no_standard_error() -> None:
    assert Average().standard_error == math.inf
    assert Average().observe(1.0, 0.9).standard_error == math.inf
    assert Average().observe(1.0, 0.0).observe(2.0, 0.0) == (1.0, 1.0, 2.0, 0.0)


# The rules ------------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_threshold_and_every_threshold_a_rule() -> None:
    assert {rule.name for rule in RULES} | {"window", "hold", "start", "clearance"} == set(AlarmsConfig.model_fields)
    assert {rule.name for rule in RULES} == SICK.keys()
    assert {rule.metric for rule in RULES} == HEALTHY.keys()
    assert len(METRIC) == len(RULES)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_noisy_run_has_no_alarm(seed: int) -> None:
    assert watch(Alarms(AlarmsConfig()), list(steps(1000, seed))) == {"began": [], "ended": []}


@pytest.mark.parametrize("name", SICK)
def test_each_trouble_is_named_while_it_lasts(name: str) -> None:
    config = AlarmsConfig()
    alarms = Alarms(config)
    sick = list(steps(100, 1, **{METRIC[name]: SICK[name]}))
    series = [*steps(60), *sick, *steps(140, 2)]
    seen = watch(alarms, series)
    ((began, since),), ((ended, until),) = seen["began"], seen["ended"]
    assert began == ended == name
    assert 60 + config.hold <= since <= 60 + config.hold + 3 * config.window
    assert 160 < until <= 160 + 4 * config.window


@pytest.mark.parametrize("name", SICK)
def test_what_is_said_has_the_number_the_threshold_and_a_knob(name: str) -> None:
    alarms, config = Alarms(AlarmsConfig(window=2, hold=1, start=1)), AlarmsConfig().model_dump()
    metric, mean = METRIC[name], SICK[name]
    watch(alarms, [{metric: HEALTHY[metric][0]}] + [{metric: mean}] * 30)
    (alarm,) = alarms.active
    assert alarm.threshold == config[name]
    assert any(f" {number} " in f" {alarm.text}".replace(",", " ") for number in written(mean))
    assert any(f"{number}{end}" in alarm.text for number in written(alarm.threshold) for end in (")", " and 3 "))
    tables = ("pool.", "learner.", "sampler.", "tracker.", "foreign.", "policy.", "add tasks", "status counts")
    assert any(table in alarm.text for table in tables)


def written(number: float) -> list[str]:
    """The ways in which a sentence may have it."""
    return [f"{number:{form}}" for form in (".0%", ".2g", ".0f", "+.2f", "g")]


def test_the_knobs_that_are_named_exist() -> None:
    tables = {name: field.default for name, field in NodeConfig.model_fields.items()}
    for rule in RULES:
        for word in rule.text.replace(",", " ").replace(";", " ").replace(")", " ").replace("(", " ").split():
            table, dot, key = word.partition(".")
            if dot and table in tables and key:
                assert key == "type" or key in type(tables[table]).model_fields, word


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        *((name, 1e6 if name == "grad_norm" else 1.0) for name in HEALTHY if name not in ("entropy", "own_length")),
        *(("entropy", 11.0), ("own_length", 4096.0), ("ess_share", 0.0), ("calibration", -1.0), ("log_rho_p99", 20.0)),
    ],
)
def test_one_step_is_no_alarm(metric: str, value: float) -> None:
    series = [*steps(60), next(steps(1)) | {metric: value}, *steps(60, 1)]
    assert watch(Alarms(AlarmsConfig()), series)["began"] == []


@pytest.mark.parametrize("name", SICK)
def test_a_threshold_of_0_switches_an_alarm_off(name: str) -> None:
    alarms = Alarms(AlarmsConfig.model_validate({name: 0.0}))
    assert watch(alarms, [*steps(60), *steps(100, 1, **{METRIC[name]: SICK[name]})])["began"] == []


@pytest.mark.parametrize(("sign", "name"), [(1.0, "calibration_high"), (-1.0, "calibration_low")])
def test_calibration_that_noise_explains_is_no_alarm(sign: float, name: str) -> None:
    noisy, steady = [sign * value for value in (0.5, -0.3)] * 40, [sign * 0.1] * 80
    assert watch(Alarms(AlarmsConfig()), [{"calibration": value} for value in noisy])["began"] == []
    ((began, _),) = watch(Alarms(AlarmsConfig()), [{"calibration": value} for value in steady])["began"]
    assert began == name


# When they begin and end ----------------------------------------------------------------------------------------------


def constant(**values: float) -> dict[str, float]:
    return values


def test_an_alarm_begins_after_hold_steps_in_a_row() -> None:
    config = AlarmsConfig(window=1, hold=3)
    high, low = constant(masked_share=0.3), constant(masked_share=0.2)
    seen = watch(Alarms(config), [high, high, low, high, high, high, high])
    assert seen == {"began": [("masked_share", 6)], "ended": []}


def test_an_alarm_ends_only_at_a_milder_value() -> None:
    alarms = Alarms(AlarmsConfig(window=1, hold=1, clearance=0.2, ess_share=0.3))
    series = [constant(masked_share=value) for value in (0.25, 0.19, 0.17, 0.25, 0.15, 0.19)]
    assert watch(alarms, series) == {"began": [("masked_share", 1)], "ended": [("masked_share", 5)]}
    series = [constant(ess_share=value) for value in (0.25, 0.31, 0.35, 0.37)]
    assert watch(alarms, series) == {"began": [("ess_share", 1)], "ended": [("ess_share", 4)]}


def test_it_is_the_average_that_counts() -> None:
    """Window 2: averages 0, .4 / 1.5, (.4 + .2) / 1.75, ..."""
    alarms = Alarms(AlarmsConfig(window=2, hold=1))
    assert watch(alarms, [constant(masked_share=value) for value in (0.0, 0.3)])["began"] == []  # 0.2
    assert watch(alarms, [constant(masked_share=0.3)], first=3)["began"] == [("masked_share", 3)]
    (alarm,) = alarms.active
    assert alarm.value == pytest.approx((0.3 + 0.5 * 0.3) / 1.75)


def test_an_alarm_that_is_up_keeps_its_beginning_and_says_its_newest_value() -> None:
    alarms = Alarms(AlarmsConfig(window=1, hold=2))
    watch(alarms, [constant(masked_share=value) for value in (0.5, 0.6, 0.7, 0.4)])
    (alarm,) = alarms.active
    assert (alarm.since_step, alarm.value) == (2, 0.4)
    assert alarm.text.startswith("40% of own tokens are masked (alarm above 20%)")


def test_a_step_without_the_metric_or_without_a_number_says_nothing() -> None:
    alarms = Alarms(AlarmsConfig(window=1, hold=2))
    silent = [{}, constant(masked_share=math.nan), constant(masked_share=math.inf)]
    high = constant(masked_share=0.5)
    assert watch(alarms, [high, *silent, high]) == {"began": [("masked_share", 5)], "ended": []}
    assert watch(alarms, silent)["ended"] == []


def test_relative_is_to_the_mean_of_the_first_steps_with_the_metric() -> None:
    alarms = Alarms(AlarmsConfig(window=1, hold=1, start=3))
    entropies = [0.2, 0.4, 0.6, 0.81]
    seen = watch(alarms, [{}, *(constant(entropy=value) for value in entropies)])
    assert seen["began"] == [("entropy_high", 5)]
    (alarm,) = alarms.active
    assert alarm.value == pytest.approx(0.81 / 0.4)
    assert alarms.gauges()["entropy_relative"] == pytest.approx(0.81 / 0.4)


def test_a_metric_that_starts_at_0_is_compared_with_nothing() -> None:
    alarms = Alarms(AlarmsConfig(window=1, hold=1, start=2))
    assert watch(alarms, [constant(entropy=value) for value in (0.0, 0.0, 0.0, 5.0)])["began"] == []


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "log_rho_mean": st.floats(0, 0.2),
            "log_rho_p99": st.floats(0, 3),
            "masked_share": st.floats(0, 0.2),
            "opsm_share": st.floats(0, 0.1),
            "ess_share": st.floats(0.3, 1),
            "entropy": st.floats(0, 12),
            "own_length": st.floats(1, 1e5),
            "own_truncated_share": st.floats(0, 0.3),
            "grad_norm": st.floats(0, 1e6),
            "skipped_update": st.floats(0, 0.1),
            "calibration": st.floats(-0.05, 0.05),
            "zero_advantage_share": st.floats(0, 0.8),
            "foreign_ratio": st.floats(0.2, 10),
            "refused_share": st.floats(0, 0.5),
        }
    )
)
def test_a_constant_healthy_series_never_alarms(metrics: dict[str, float]) -> None:
    assert metrics.keys() == HEALTHY.keys()
    assert watch(Alarms(PLAIN), [metrics] * 12) == {"began": [], "ended": []}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(HEALTHY), st.floats(0, 4))), max_size=40))
def test_alarms_begin_and_end_in_turn_and_what_is_up_has_begun(series: list[dict[str, float]]) -> None:
    alarms, up = Alarms(PLAIN), set[str]()
    for step, metrics in enumerate(series, 1):
        began, ended = alarms.observe(step, metrics)
        assert step >= PLAIN.hold or not began
        assert up.isdisjoint(alarm.name for alarm in began)
        up |= {alarm.name for alarm in began}
        assert up.issuperset(alarm.name for alarm in ended)
        up -= {alarm.name for alarm in ended}
        assert up == {alarm.name for alarm in alarms.active}
        assert alarms.gauges()["alarms_active"] == len(up)


# What a checkpoint keeps ----------------------------------------------------------------------------------------------


def test_a_restarted_node_still_knows_its_start_and_finds_the_alarm_again() -> None:
    config = AlarmsConfig(window=4, hold=3, start=5)
    before = Alarms(config)
    watch(before, [constant(entropy=0.4)] * 5 + [constant(entropy=0.02)] * 40)
    assert [alarm.name for alarm in before.active] == ["entropy_low"]
    after = Alarms(config, json.loads(json.dumps(before.state())))
    assert after.active == []
    assert watch(after, [constant(entropy=0.02)] * 3, first=46)["began"] == [("entropy_low", 48)]


def test_a_start_that_was_not_complete_is_completed() -> None:
    config = AlarmsConfig(window=1, hold=1, start=4)
    before = Alarms(config)
    watch(before, [constant(entropy=0.2)] * 3)
    after = Alarms(config, before.state())
    watch(after, [constant(entropy=0.6), constant(entropy=0.9)])
    assert after.gauges()["entropy_relative"] == pytest.approx(0.9 / 0.3)


def test_of_an_older_checkpoint_what_is_unknown_is_left_out() -> None:
    assert Alarms(AlarmsConfig(), {"gone": [1.0, 2.0]}).state() == {}


@pytest.mark.parametrize("start", [None, [], [1.0], ["a", 1], [math.nan, 1.0], [1.0, -1.0]])
def test_a_start_that_is_none_is_refused(start: object) -> None:
    with pytest.raises(CheckpointError, match="alarms: the start of entropy is"):
        Alarms(AlarmsConfig(), {"entropy": start})  # pyright: ignore[reportArgumentType]


# What a node makes of them --------------------------------------------------------------------------------------------


def experience(*, own: bool = True, logprob: float = -5.5) -> Experience:
    """One right and one wrong answer, sampled with that log-probability a token."""
    rollouts = [Rollout(turns=(turn(text, sampled=tokens(text, logprob=logprob)),)) for text in ("0", "1")]
    return Experience(
        id=GroupId("g"),
        group=group(*rollouts, origin=PeerId("me" if own else "peer")),
        task=task(),
        rewards=np.array([1.0, 0.0], dtype=np.float32),
        scored=np.ones(2, dtype=bool),
        own=own,
        value=0.5,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


@asynccontextmanager
async def learner(directory: Path, **alarms: float) -> AsyncIterator[tuple[Learning, Progress]]:
    plain = {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}
    model = {"model": str(save_tiny_policy(directory / "policy")), "device": "cpu"}
    config = NodeConfig.model_validate({"tasks": [plain], "policy": model, "alarms": alarms})
    policy = load_policy(config.policy)
    store = CheckpointStore(directory / "checkpoints")
    progress = Progress(config, policy, LocalJudge(task_specs(config)).sources, store.latest())
    metrics_log = MetricsLog(directory / "metrics.jsonl")
    async with AsyncExitStack() as stack:
        trainer = await stack.enter_async_context(trainer_of(config, policy, None, progress.version, progress.gate))
        writing = asyncio.create_task(metrics_log.run())
        await asyncio.sleep(0)  # until it waits for lines
        yield (
            Learning(
                policy=policy,
                trainer=trainer,
                progress=progress,
                foreign=config.foreign,
                store=store,
                config=config.checkpoint,
                running=Holds(),
                metrics_log=metrics_log,
                credit=lambda peer, use: None,
                appetite=Appetite(config.pool.foreign_groups),
                outstanding=Nothing(),
            ),
            progress,
        )
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing


async def test_a_step_has_every_metric_that_a_rule_wants(tmp_path: Path) -> None:
    async with learner(tmp_path) as (learning, progress):
        progress.ledger.verdict(PeerId("p"), None, Verdict(reason=Reason.STALE))
        await learning.step([experience(), experience(own=False)])
        assert {rule.metric for rule in RULES} <= progress.ledger.metrics.keys()
        assert progress.ledger.metrics["refused_share"] == 1.0
        await learning.step([experience()])
        assert "refused_share" not in progress.ledger.metrics


async def test_an_alarm_is_counted_shown_written_down_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny policy gives every token about exp(-5.5): a log-probability of -0.1 is far off, one of -5.5 is not."""
    caplog.set_level(logging.INFO, logger="node.learning")
    shown = node_pb2.NodeStatus()
    async with learner(tmp_path, window=1, hold=1, masked_share=0, opsm_share=0) as (learning, progress):
        for logprob in (-0.1, -0.1, -5.5, -5.5):
            await learning.step([experience(logprob=logprob)])
            if not shown.alarms:
                progress.ledger.fill(shown)
        assert progress.ledger.counters["alarms"] == 2
        assert progress.ledger.alarms == []
    assert [(alarm.name, alarm.since_step, alarm.threshold) for alarm in shown.alarms] == [
        ("log_rho_mean", 1, 0.2),
        ("log_rho_p99", 1, 3.0),
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["alarms"], line["alarms_active"]) for line in lines] == [
        *[("log_rho_mean log_rho_p99", 2.0)] * 2,
        *[("", 0.0)] * 2,
    ]
    said = [(record.levelno, record.getMessage()) for record in caplog.records if "log_rho_mean" in record.getMessage()]
    assert said == [
        (logging.WARNING, f"alarm log_rho_mean: {shown.alarms[0].text}"),
        (logging.INFO, "alarm log_rho_mean is over; it began at step 1"),
    ]


async def test_starts_are_in_a_checkpoint(tmp_path: Path) -> None:
    async with learner(tmp_path) as (learning, progress):
        await learning.step([experience()])
        starts = progress.alarms.state()
        await learning.checkpoint()
    assert starts.keys() == {rule.metric for rule in RULES if rule.signal is relative}
    async with learner(tmp_path) as (_, progress):
        assert progress.alarms.state() == starts


ALARM = Alarm(name="ess_share", text="own tokens [red]are[/red]", value=0.2, threshold=0.3, since_step=120)


def test_status_shows_alarms_second() -> None:
    ledger, shown = Ledger(), node_pb2.NodeStatus(name="alder")
    ledger.alarms = [ALARM, replace(ALARM, name="masked_share", since_step=130)]
    ledger.fill(shown)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status.render(shown))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines[1:3] == [
        "alarms ess_share since step 120: own tokens [red]are[/red]",
        "masked_share since step 130: own tokens [red]are[/red]",
    ]
    assert json.loads(status.to_json(shown))["alarms"][0] == {
        "name": "ess_share",
        "text": "own tokens [red]are[/red]",
        "value": 0.2,
        "threshold": 0.3,
        "since_step": "120",
    }
