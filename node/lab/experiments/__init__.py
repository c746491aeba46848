"""Which experiments there are, each a module with an `EXPERIMENT`, imported when it is wanted."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping

from node.lab.experiment import Experiment
from swarm.errors import ConfigError

#: Name -> module. The name is the experiment's own.
EXPERIMENTS: Mapping[str, str] = {
    "sharing-same": "node.lab.experiments.sharing_same",
    "sharing-skills": "node.lab.experiments.sharing_skills",
    "sharing-sizes": "node.lab.experiments.sharing_sizes",
    "sharing-tokenizers": "node.lab.experiments.sharing_tokenizers",
    "swarm-size": "node.lab.experiments.swarm_size",
    "single-stream": "node.lab.experiments.single_stream",
    "group-size": "node.lab.experiments.group_size",
    "tracker": "node.lab.experiments.tracker",
    "task-choice": "node.lab.experiments.task_choice",
    "peers-in-tracker": "node.lab.experiments.peers_in_tracker",
    "staleness": "node.lab.experiments.staleness",
    "learning-rate": "node.lab.experiments.learning_rate",
    "cross-tokenizer": "node.lab.experiments.cross_tokenizer",
    "mix": "node.lab.experiments.mix",
    "novelty": "node.lab.experiments.novelty",
    "poison": "node.lab.experiments.poison",
    "hostile": "node.lab.experiments.hostile",
    "reuse": "node.lab.experiments.reuse",
    "comparative-advantage": "node.lab.experiments.comparative_advantage",
    "ablation": "node.lab.experiments.ablation",
    "peer-scoring": "node.lab.experiments.peer_scoring",
}


def load(reference: str) -> Experiment:
    """The experiment of a registered name, or of a module of yours: "my.module", which has an `EXPERIMENT`.

    Raises ConfigError for a name that is not there, with the nearest, and for a module that has no experiment.
    """
    module = EXPERIMENTS.get(reference, reference if "." in reference else "")
    if not module:
        near = difflib.get_close_matches(reference, EXPERIMENTS, n=3, cutoff=0.4)
        known = f"nearest are {', '.join(near)}" if near else f"there are {', '.join(sorted(EXPERIMENTS)) or 'none'}"
        raise ConfigError(f"there is no experiment {reference!r}; {known}")
    try:
        found = importlib.import_module(module).EXPERIMENT
    except ModuleNotFoundError as error:
        raise ConfigError(f"experiment {reference!r}: {module} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"experiment {reference!r}: {error}") from error
    if not isinstance(found, Experiment):
        raise ConfigError(f"experiment {reference!r}: {module}.EXPERIMENT is a {type(found).__name__}")
    return found
