from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from node.config import JsonlTasks, NodeConfig, NoExchange, P2PExchange, ReasoningGymTasks, RpcConfig
from node.settings import FILE_KEYS, check_rpc, doubts, load_config, task_specs
from swarm.errors import ConfigError
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec
from swarm.types import SamplingParams

ROOT = Path(__file__).parents[1]
TASK = '[[tasks]]\ntype = "reasoning_gym"\nname = "spell_backward"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(f'name = "a"\n[learner]\nlr = 1e-3\n[exchange]\ntype = "none"\n{TASK}')
    return path


def sentence(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# What is loaded -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_its_sources_exist(path: Path) -> None:
    config = load_config(path)
    sources = [make_source(spec) for spec in task_specs(config)]
    assert len(sources) == len(config.tasks) >= 1


def test_the_shipped_configs_are_what_they_are_called() -> None:
    assert isinstance(load_config(ROOT / "configs/solo.toml").exchange, NoExchange)
    assert isinstance(load_config(ROOT / "configs/local.toml").exchange, P2PExchange)
    assert load_config(ROOT / "configs/gpu.toml").policy.device == "cuda"


def test_solo_and_local_learn_the_same_tasks() -> None:
    solo, local = (load_config(ROOT / f"configs/{name}.toml") for name in ("solo", "local"))
    assert task_specs(solo) == task_specs(local)


def test_a_file_and_defaults(file: Path) -> None:
    config = load_config(file)
    assert (config.name, config.learner.lr, config.sampler.group_size) == ("a", 1e-3, 2)
    assert config.tasks == (ReasoningGymTasks(name="spell_backward"),)


def test_flags_alone_make_a_config() -> None:
    config = load_config(None, ["tasks.0.type=reasoning_gym", "tasks.0.name=sudoku", "tasks.0.config.max_empty=3"])
    assert config.tasks == (ReasoningGymTasks(name="sudoku", config={"max_empty": 3}),)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=b", "name", "b"),
        ('name="b=c"', "name", "b=c"),
        ("name=b=c", "name", "b=c"),
        ("name = b ", "name", "b"),
        ("learner.lr=2e-4", "learner.lr", 2e-4),
        ("learner.betas=[0.8, 0.9]", "learner.betas", (0.8, 0.9)),
        ("max_steps=3", "max_steps", 3),
        ('sampler.stop=["\\n\\n", "é"]', "sampler.stop", ("\n\n", "é")),
        ("policy.model=Qwen/Qwen3-0.6B", "policy.model", "Qwen/Qwen3-0.6B"),
        ('exchange={type="p2p", relay=false}', "exchange", P2PExchange(relay=False)),
        ("tasks.0.weight=2", "tasks.0.weight", 2.0),
        ('tasks.1={type="reasoning_gym", name="sudoku"}', "tasks.1", ReasoningGymTasks(name="sudoku")),
    ],
)
def test_overrides(file: Path, override: str, key: str, value: object) -> None:
    found: Any = load_config(file, [override])
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == value


def test_what_is_sampled_with(file: Path) -> None:
    settings = ["sampler.temperature=0.5", "sampler.top_p=0.9", "sampler.max_new_tokens=7", 'sampler.stop=["x"]']
    expected = SamplingParams(temperature=0.5, top_p=0.9, max_new_tokens=7, stop=("x",))
    assert load_config(file, settings).sampler.params == expected


def test_the_last_override_counts(file: Path) -> None:
    assert load_config(file, ["name=b", "name=c"]).name == "c"


def test_task_specs_are_canonical(tmp_path: Path) -> None:
    config = load_config(
        written(
            tmp_path / "node.toml",
            f"{TASK}config = {{ min_word_len = 3, max_word_len = 6 }}\n"
            '[[tasks]]\ntype = "jsonl"\nname = "algebra"\npath = "a.jsonl"\nverifier = "exact"\n'
            '[[tasks]]\ntype = "arithmetic"\nmax_terms = 3\nweight = 2\n',
        )
    )
    assert task_specs(config) == [
        SourceSpec(type="reasoning_gym", name="spell_backward", config='{"max_word_len":6,"min_word_len":3}'),
        SourceSpec(type="jsonl", name="algebra", config='{"verifier":"exact"}', path=str(tmp_path / "a.jsonl")),
        SourceSpec(
            type="arithmetic",
            name="arithmetic",
            config='{"max_terms":3,"max_value":99,"min_terms":2,"modulus":997,"operations":"+-*"}',
        ),
    ]
    assert make_source(task_specs(config)[2]).name == "arithmetic/arithmetic"


# Paths ----------------------------------------------------------------------------------------------------------------


def test_paths_in_a_file_are_relative_to_it_and_those_in_flags_are_not(tmp_path: Path) -> None:
    path = written(
        tmp_path / "node.toml",
        'data_dir = "runs/x"\n[rpc]\ntoken_file = "secrets/token"\ntls_cert = "/etc/cert.pem"\n'
        '[[tasks]]\ntype = "jsonl"\nname = "a"\npath = "a.jsonl"\n',
    )
    config = load_config(path, ["rpc.tls_key=key.pem"])
    assert config.data_dir == Path("runs/x")
    assert config.rpc.token_file == tmp_path / "secrets/token"
    assert config.rpc.tls_cert == Path("/etc/cert.pem")
    assert config.rpc.tls_key == Path("key.pem")
    assert isinstance(config.tasks[0], JsonlTasks)
    assert config.tasks[0].path == tmp_path / "a.jsonl"


def test_a_model_is_a_path_only_if_it_is_there(tmp_path: Path) -> None:
    path = written(tmp_path / "node.toml", f'policy.model = "models/mine"\n{TASK}')
    assert load_config(path).policy.model == "models/mine"
    (tmp_path / "models/mine").mkdir(parents=True)
    assert load_config(path).policy.model == str(tmp_path / "models/mine")


def test_seed_is_never_a_path(tmp_path: Path) -> None:
    (tmp_path / "seed").mkdir()
    assert load_config(written(tmp_path / "node.toml", f'policy.model = "seed"\n{TASK}')).policy.model == "seed"


def path_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        for inner in members(field.annotation):
            if inner is Path:
                yield (*prefix, name)
            elif isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from path_keys(inner, (*prefix, name))


def members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple):
        for argument in get_args(annotation):
            yield from members(argument)
    else:
        yield annotation


def test_every_path_in_the_config_is_anchored() -> None:
    assert set(path_keys(NodeConfig)) == {*FILE_KEYS, ("data_dir",)}


# Sentences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.lrr=1", "learner.lrr is not a key; did you mean learner.lr?"),
        ("lr=1", "lr is not a key; did you mean learner.lr?"),
        ("sampel.group_size=1", "sampel is not a key; did you mean sampler?"),
        ("tasks.0.nam=x", "tasks.0.nam is not a key; did you mean tasks.0.name?"),
        ("swarm.zzz=1", "swarm.zzz is not a key; swarm has name, file, key_file, files, trust_plugins"),
        ("exchange.relay=true", 'exchange.relay is not a key; exchange of type "none" has type'),
        ("learner.lr=-1", "learner.lr = -1 is not allowed; it must be greater than 0"),
        ("learner.lr=nan", "learner.lr = nan is not allowed; it must be a finite number"),
        ("learner.lr=fast", 'learner.lr = "fast" is not allowed; it must be a number'),
        ("learner.betas=[0.5, 3]", "learner.betas.1 = 3 is not allowed; it must be at most 1"),
        ("learner.betas=[0.5]", "learner.betas.1 is missing"),
        ("sampler.group_size=0", "sampler.group_size = 0 is not allowed; it must be greater than 0"),
        ("sampler.group_size=1.5", "sampler.group_size = 1.5 is not allowed; it must be a whole number"),
        ("seed=-1", "seed = -1 is not allowed; it must be at least 0"),
        ("name=7", "name = 7 is not allowed; it must be a string"),
        ("learner=3", "learner = 3 is not allowed; it must be a table"),
        ("tasks=[]", "tasks = [] is not allowed; it must be a list of 1 or more"),
        ("tasks=3", "tasks = 3 is not allowed; it must be a list"),
        ('sampler.stop=["a", ""]', 'sampler.stop.1 = "" is not allowed; it must be a string of 1 to 64 bytes'),
        (
            f"sampler.stop={['a'] * 9}",
            f"sampler.stop = {json.dumps(['a'] * 9)} is not allowed; it must be a list of 8 or fewer",
        ),
        (
            f'sampler.stop=["{"é" * 33}"]',
            f'sampler.stop.0 = "{"é" * 33}" is not allowed; it must be a string of 1 to 64 bytes',
        ),
        ("policy.dtype=int8", 'policy.dtype = "int8" is not allowed; it must be "float32" or "bfloat16"'),
        ("exchange.type=udp", 'exchange.type = "udp" is not allowed; it must be "p2p" or "none"'),
        ("exchange={}", 'exchange.type is missing; it must be "p2p" or "none"'),
        (
            'tasks.0={name="x"}',
            'tasks.0.type is missing; it must be "reasoning_gym" or "arithmetic" or "jsonl" or "plugin"',
        ),
        (
            'tasks.0={type="arithmetic", operations="+/"}',
            'tasks.0.operations = "+/" is not allowed; it must be "+", "-", "*", "+-", "+*", "-*" or "+-*"',
        ),
        ('tasks.0={type="arithmetic", min_terms=1}', "tasks.0.min_terms = 1 is not allowed; it must be at least 2"),
        ('tasks.0={type="arithmetic", modulo=7}', "tasks.0.modulo is not a key; did you mean tasks.0.modulus?"),
        ('tasks.0={type="jsonl", name="a"}', "tasks.0.path is missing"),
        (
            "engine.type=vlm",
            'engine.type = "vlm" is not allowed; it must be "transformers" or "vllm" or "auto"',
        ),
        ("engine.batch_size=4", 'engine.type is missing; it must be "transformers" or "vllm" or "auto"'),
        ('engine={type="auto", batch_size=4}', 'engine.batch_size is not a key; engine of type "auto" has type'),
        (
            'engine={type="transformers", max_in_flight=4}',
            'engine.max_in_flight is not a key; engine of type "transformers" has type, batch_size, linger_ms',
        ),
        (
            'engine={type="vllm", max_inflight=4}',
            "engine.max_inflight is not a key; did you mean engine.max_in_flight?",
        ),
        ("max_in_flight=4", "max_in_flight is not a key; did you mean engine.max_in_flight?"),
        ('engine={type="vllm", devices=[-1]}', "engine.devices.0 = -1 is not allowed; it must be at least 0"),
        (
            'engine={type="vllm", transfer="nccl"}',
            'engine.transfer = "nccl" is not allowed; it must be "auto", "cuda_ipc" or "memory"',
        ),
        ("policy.adapter.type=dora", 'policy.adapter.type = "dora" is not allowed; it must be "none" or "lora"'),
        (
            'policy.adapter={type="lora", base="int4"}',
            'policy.adapter.base = "int4" is not allowed; it must be "full" or "nf4"',
        ),
        ("policy.adapter.rank=4", 'policy.adapter.type is missing; it must be "none" or "lora"'),
        (
            "tasks.0.config.day=2026-01-01",
            "tasks.0.config.day = 2026-01-01 is not allowed; it must be a string, a number or true or false",
        ),
    ],
)
def test_what_is_wrong_with_a_key(file: Path, override: str, expected: str) -> None:
    assert sentence(file, override) == f"--set: {expected}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.lr", "it must be KEY=VALUE, such as learner.lr=1e-4"),
        ("a..b=1", "it must be KEY=VALUE, such as learner.lr=1e-4"),
        ("tasks.5.name=x", "5 is not an index; it must be 0 to 1"),
        ("tasks.one=x", "one is not an index; it must be 0 to 1"),
        ("learner.lr.x=1", "x is not a key; it would be inside of 0.001"),
    ],
)
def test_what_is_wrong_with_an_override(file: Path, override: str, expected: str) -> None:
    assert sentence(file, override) == f"--set {override}: {expected}"


def test_a_key_of_the_file_is_blamed_on_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "node.toml", f"[learner]\nlrr = 1\n{TASK}")
    assert sentence(path, "name=b") == f"{path}: learner.lrr is not a key; did you mean learner.lr?"


def test_a_table_without_a_type_is_blamed_on_who_made_it(tmp_path: Path) -> None:
    path = written(tmp_path / "node.toml", f"[engine]\nbatch_size = 1\n{TASK}")
    assert sentence(path).startswith(f"{path}: engine.type is missing")


def test_a_key_of_another_engine(file: Path) -> None:
    said = sentence(file, "engine.type=vllm", "engine.batch_size=4")
    assert said.startswith(
        '--set: engine.batch_size is not a key; engine of type "vllm" has type, max_in_flight, max_length, '
    )


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "node.toml", f"seed = -1\n{TASK}")
    assert sentence(path, "learner.lr=0") == (
        f"{path}: seed = -1 is not allowed; it must be at least 0; "
        "--set: learner.lr = 0 is not allowed; it must be greater than 0"
    )


def test_no_tasks() -> None:
    assert sentence(None) == "--set: tasks is missing"


def test_files_that_are_none(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert sentence(missing) == f"{missing}: there is no such file"
    assert sentence(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    broken = written(tmp_path / "broken.toml", "name = \n")
    assert sentence(broken) == f"{broken}: is not TOML: Invalid value (at line 1, column 8)"


def test_a_pool_that_can_never_fill_a_step(file: Path) -> None:
    assert sentence(file, "pool.own_capacity=3") == (
        "--set: pool.own_capacity = 3 is not allowed; it must be at least pool.own_groups (32), or no step is ever made"
    )


def test_the_same_task_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "node.toml", TASK + TASK)
    assert sentence(path) == f'{path}: tasks.1 has the name of tasks.0: "spell_backward"'


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    check_rpc(RpcConfig(host=host))


def test_an_open_service_is_refused_before_anything_starts(file: Path) -> None:
    assert sentence(file, "rpc.host=0.0.0.0") == (
        '--set: rpc.token_file is missing; rpc.host = "0.0.0.0" can be reached from other machines, '
        "and only a loopback address (127.0.0.1) may go without a token"
    )
    assert load_config(file, ["rpc.host=0.0.0.0", "rpc.token_file=token"]).rpc.host == "0.0.0.0"


def test_half_a_tls_pair(file: Path) -> None:
    assert sentence(file, "rpc.tls_cert=c") == "--set: rpc.tls_key is missing; rpc.tls_cert needs it"
    assert sentence(file, "rpc.tls_key=k") == "--set: rpc.tls_cert is missing; rpc.tls_key needs it"


def test_a_truncated_distribution_is_allowed_and_doubted(file: Path) -> None:
    assert doubts(load_config(file)) == []
    (doubt,) = doubts(load_config(file, ["sampler.top_p=0.9"]))
    assert doubt.startswith("sampler.top_p = 0.9: ")
