"""What an experiment is: a question, the arms that might answer it, and what is measured in each.

An arm is a way to learn: settings, and a function that makes one run of it from a seed. All arms get the same seeds, so
that two of them can be compared seed by seed. Every finished run is one file (node/lab/results.py), which stays valid
until the arm's settings or the experiment's version change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from node.lab.results import Outcome, RunKey, digest, file_name


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a run's summary."""

    label: str
    """Heads its column; unit included."""
    format: str = ".3g"
    """As in format(value, ...), without sign: ".1f", ".1%", ",.0f"."""
    higher_is_better: bool = True
    decides: bool = False
    """Its differences are drawn (node/lab/forest.py)."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One of a run's curves, drawn for all arms."""

    curve: str
    """Its name in `Outcome.curves`."""
    x_label: str
    """Unit included, like `y_label`."""
    y_label: str
    percent: bool = False
    """y in [0, 1] is written as 0 to 100 %."""
    diagonal: bool = False
    """x foretells y, in the same unit: the line is drawn where the two agree."""


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    settings: Mapping[str, object]
    """All that distinguishes its runs, as JSON can write it: a result made with other settings is not used."""
    run: Callable[[int], Outcome]
    """Seed -> what came of it. Called in a process of its own, with one thread."""
    seeds: Sequence[int] | None = None
    """Of the experiment's, those that settle what is asked of this arm; None: all of them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `arm` does better than `against`, seed by seed."""

    arm: str
    against: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Raises ValueError when its parts do not fit together."""

    name: str
    version: int
    """Counted up whenever old results no longer count, though the settings are the same."""
    question: str
    setting: str
    """What all arms have in common, for the reader of the table."""
    arms: Sequence[Arm]
    metrics: Mapping[str, Metric]
    """Name in `Outcome.summary` -> how it is shown, in this order."""
    comparisons: Sequence[Comparison] = ()
    plots: Sequence[Plot] = ()
    panels: Sequence[Sequence[str]] = ()
    """Arms that are drawn together, where the picture is not of all of them in their order."""
    seeds: Sequence[int] = field(default=range(1, 6))
    """That decide the question."""
    screening_seeds: Sequence[int] = field(default=range(101, 103))
    """For a first look. Best not among `seeds`: what was chosen on a seed looks good on it."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        _expect(
            bool(self.name) and file_name(self.name) == self.name, f"name = {self.name!r}: expected a plain file name"
        )
        _expect(bool(names) and all(names), "arms: expected at least one, each with a name")
        _expect(bool(self.metrics), "metrics: expected at least one")
        for key, listed in (("arms", names), ("seeds", self.seeds), ("screening_seeds", self.screening_seeds)):
            twice = [name for name, count in Counter[object](listed).items() if count > 1]
            _expect(not twice, f"{self.name}: {key} has {_listed(twice)} more than once")
        for arm in self.arms:
            strange = [seed for seed in arm.seeds or () if seed not in self.seeds]
            _expect(not strange, f"{self.name}: {arm.name} has seeds {_listed(strange)}, beside {_listed(self.seeds)}")
        compared = {name for comparison in self.comparisons for name in (comparison.arm, comparison.against)}
        drawn = {name for panel in self.panels for name in panel}
        for key, named in (("comparisons", compared), ("panels", drawn)):
            unknown = sorted(named - set(names))
            _expect(not unknown, f"{self.name}: {key} name {_listed(unknown)}; arms are {_listed(names)}")
        for arm in self.arms:
            try:
                self.digest(arm)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.name}: settings of {arm.name}: {error}") from error
        for name, metric in self.metrics.items():
            _expect(
                _formats(metric.format), f"{self.name}: metrics.{name}.format = {metric.format!r} formats no number"
            )

    def arm(self, name: str) -> Arm:
        """Raises KeyError."""
        return {arm.name: arm for arm in self.arms}[name]

    def seeds_of(self, arm: Arm, asked: Sequence[int]) -> Sequence[int]:
        """Of the seeds that are asked for, those that the arm is made with."""
        spared = set() if arm.seeds is None else set(self.seeds) - set(arm.seeds)
        return [seed for seed in asked if seed not in spared]

    def key(self, arm: Arm, seed: int) -> RunKey:
        return RunKey(experiment=self.name, arm=arm.name, seed=seed)

    def digest(self, arm: Arm) -> str:
        """Of all that decides whether an old result of that arm still counts."""
        return digest({"experiment": self.name, "version": self.version, "settings": arm.settings})

    def check(self, outcome: Outcome) -> None:
        """Raises ValueError when the tables or the plots would miss something in it."""
        for key, wanted, given in (
            ("summary", self.metrics, outcome.summary),
            ("curves", [plot.curve for plot in self.plots], outcome.curves),
        ):
            missing = [name for name in wanted if name not in given]
            _expect(not missing, f"{self.name}: {key} of a run lacks {_listed(missing)}; it has {_listed(given)}")


def _formats(spec: str) -> bool:
    try:
        return bool(format(0.5, f"+z{spec}"))
    except ValueError:
        return False


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names) or "nothing"
