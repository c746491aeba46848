"""The built-in model: its tokenizer, its demonstrations, its training and its place in the cache."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from node.engine.text import HfTextCodec, load_codec
from node.seed import demonstrations as demonstrations_module
from node.seed.cache import SEAL, family_tokenizer, seed_model
from node.seed.demonstrations import DEMO_FAMILIES, demonstrations, distinct, make_sources, stream_seed
from node.seed.tokenizer import EOS, PAD, TAGS, common_phrases, make_tokenizer
from node.seed.training import IGNORED, STRONG, WEAK, Recipe, collate, pass_rates
from swarm.errors import PolicyError
from swarm.tasks.base import SourceSpec, TaskSource, held_out
from swarm.types import FinishReason, Task, TaskRef

QUICK = Recipe(
    hidden_size=32, mlp_size=64, heads=2, head_dim=16, first_check=10, check_every=10, probe_tasks=16,
    validation_tasks=16, warmup_steps=5, lr=1e-2,
)  # fmt: skip


@dataclass
class FlipSource:
    """ "Flip heads 12." -> "tails"; learned in a few steps."""

    spec: SourceSpec
    version: str = "1"
    size: int | None = None

    @property
    def name(self) -> str:
        return f"test/{self.spec.name}"

    @property
    def config(self) -> str:
        return self.spec.config

    def task(self, seed: int, index: int) -> Task:
        side, answer = (("heads", "tails"), ("tails", "heads"))[index % 2]
        ref = TaskRef(source=self.name, version="1", config=self.config, seed=seed, index=index)
        number = (seed + index) % 1000
        return Task(ref=ref, prompt=f"Flip {side} {number}.", answer=answer, difficulty="{}")

    def score(self, task: Task, response: str) -> float:
        return float(response == f"<answer>{task.answer}</answer>")


class HashSource(FlipSource):
    """Nothing that could be learned."""

    def task(self, seed: int, index: int) -> Task:
        task = super().task(seed, index)
        return replace(task, answer=hashlib.sha256(task.prompt.encode()).hexdigest()[:8])


FLIP = SourceSpec(type="test_seed:FlipSource", name="flip")
HASH = SourceSpec(type="test_seed:HashSource", name="hash")


@pytest.fixture(scope="module")
def gym() -> dict[str, TaskSource]:
    return make_sources(DEMO_FAMILIES)


@pytest.fixture(scope="module")
def codec(gym: dict[str, TaskSource]) -> HfTextCodec:
    return HfTextCodec(family_tokenizer(list(gym.values()), 2048))


# Tokenizer ------------------------------------------------------------------------------------------------------------


def test_common_phrases_are_prefix_infix_and_suffix_in_reading_order() -> None:
    texts = ["Sort these: 5, 7 upwards, 3 of them. Thanks!", "Sort these: 19, 2 upwards, 14 of them. Thanks!"]
    assert common_phrases(texts) == ["Sort these: ", " upwards, ", " of them. Thanks!"]


def test_there_may_be_nothing_in_common() -> None:
    assert common_phrases(["abc", "xyz"]) == []
    assert common_phrases(["abcx", "abcy"]) == []  # too short to be worth a token
    assert common_phrases(["", "same"]) == []


def test_vocabulary_is_bytes_tags_and_phrases() -> None:
    tokenizer = make_tokenizer(["Spell this: "], max_length=128)
    assert len(tokenizer) == 256 + 4 + 4 + 1
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, EOS)
    codec = HfTextCodec(tokenizer)
    prompt = codec.prompt(
        Task(ref=FlipSource(FLIP).task(0, 0).ref, prompt="Spell this: ab", answer="", difficulty="{}")
    )
    assert tokenizer.convert_ids_to_tokens(prompt.tolist()) == ["<user>", "Spell this: ", "a", "b", "<assistant>"]
    ids = codec.encode("<answer>é</answer>", FinishReason.STOP)
    assert len(ids) == 5
    assert codec.decode(ids)[0] == "<answer>é</answer>"


def test_tags_survive_decoding() -> None:
    tokenizer = make_tokenizer([], max_length=128)
    text = "".join(TAGS)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_prompts_are_short_and_come_back(gym: dict[str, TaskSource], codec: HfTextCodec) -> None:
    tasks = [task for source in gym.values() for task in distinct(demonstrations(source, 7), 50)]
    prompts = [codec.prompt(task) for task in tasks]
    assert np.mean([len(prompt) for prompt in prompts]) < 13
    for task, prompt in zip(tasks, prompts, strict=True):
        assert codec.decode(prompt)[0] == f"<user>{task.prompt}<assistant>"


def test_every_node_has_the_same_tokenizer(codec: HfTextCodec) -> None:
    again = HfTextCodec(family_tokenizer(list(make_sources(DEMO_FAMILIES).values()), 2048))
    assert again.fingerprint == codec.fingerprint
    fewer = HfTextCodec(family_tokenizer(list(make_sources(DEMO_FAMILIES[:2]).values()), 2048))
    assert fewer.fingerprint != codec.fingerprint


# Demonstrations -------------------------------------------------------------------------------------------------------


def test_nothing_held_out_or_excluded_is_shown(gym: dict[str, TaskSource]) -> None:
    for source in gym.values():
        excluded = frozenset(task.prompt for task in distinct(demonstrations(source, 3), 20))
        shown = list(itertools.islice(demonstrations(source, 3, excluded), 200))
        assert not any(held_out(task.prompt) or task.prompt in excluded for task in shown)


def test_a_finite_source_is_repeated_with_its_one_seed() -> None:
    source = FlipSource(FLIP, size=40)
    shown = list(itertools.islice(demonstrations(source, 5), 100))
    assert {task.ref.seed for task in shown} == {0}
    assert max(task.ref.index for task in shown) < 40


def test_streams_that_have_nothing_to_show_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrations_module, "MAX_MISSES", 100)
    source = FlipSource(FLIP, size=20)
    everything = frozenset(source.task(0, index).prompt for index in range(20))
    with pytest.raises(PolicyError, match="100 tasks in a row"):
        next(demonstrations(source, 0, everything))
    assert len(distinct(demonstrations(source, 0), 50)) <= 20


def test_streams_are_far_apart() -> None:
    seeds = [stream_seed(seed, stream) for seed in range(20) for stream in ("training", "validation")]
    assert min(abs(a - b) for a, b in itertools.combinations(seeds, 2)) > 10_000
    assert max(seeds) < 2**32


# Training -------------------------------------------------------------------------------------------------------------


def test_only_the_response_is_learned() -> None:
    pairs = [(np.array([1, 2, 3]), np.array([4, 5])), (np.array([6]), np.array([7]))]
    ids, labels = collate(pairs)
    assert ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert labels.tolist() == [[IGNORED] * 3 + [4, 5], [IGNORED, 7, *[IGNORED] * 3]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seed_model([FLIP], cache_dir=tmp_path_factory.mktemp("seed"), recipe=QUICK)


def test_model_learns_and_loads_from_its_directory(made: Path) -> None:
    codec = load_codec(made)
    model = AutoModelForCausalLM.from_pretrained(made, local_files_only=True)
    assert isinstance(model, Qwen3ForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    assert (model.config.vocab_size, model.config.eos_token_id) == (codec.vocab_size, codec.eos_id)
    assert tokenizer.chat_template
    source = FlipSource(FLIP)
    rates = pass_rates(
        model,
        codec,
        {"flip": source},
        {"flip": distinct(demonstrations(source, 1), 64)},
        torch.Generator().manual_seed(0),
    )
    assert rates["flip"] > 0.1


def test_made_once(made: Path) -> None:
    lines: list[str] = []
    assert seed_model([FLIP], cache_dir=made.parent, recipe=QUICK, report=lines.append) == made
    assert lines == []


def test_damaged_one_is_made_again_and_is_the_same(made: Path) -> None:
    weights = made / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1])
    lines: list[str] = []
    assert seed_model([FLIP], cache_dir=made.parent, recipe=QUICK, report=lines.append) == made
    assert lines
    assert weights.read_bytes() == before
    (made / SEAL).unlink()
    lines.clear()
    seed_model([FLIP], cache_dir=made.parent, recipe=QUICK, report=lines.append)
    assert lines
    assert sorted(path.suffix for path in made.parent.iterdir()) == ["", ".lock"]


def test_another_seed_is_another_model_with_the_same_tokenizer(made: Path) -> None:
    other = seed_model([FLIP], seed=1, cache_dir=made.parent, recipe=QUICK)
    assert other != made
    assert (other / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    assert not torch.equal(*(load_file(path / "model.safetensors")["model.norm.weight"] for path in (other, made)))


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    seed_model([FLIP], cache_dir=tmp_path, recipe=QUICK)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)


def test_floors_that_are_not_reached_are_an_error(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = replace(QUICK, max_steps=20, attempts=2)
    with pytest.raises(PolicyError, match=r"in 20 steps: hash 0\.\d\d \(floor 0.20\)"):
        seed_model([HASH], cache_dir=tmp_path, recipe=recipe, report=lines.append)
    assert sum("attempt" in line for line in lines) == 2
    assert not list(tmp_path.glob("*/model.safetensors"))


def test_strong_family_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="strong = 'juggling': expected one of the families flip"):
        seed_model([FLIP], strong="juggling", cache_dir=tmp_path)


@pytest.mark.slow
def test_two_processes_make_one_model(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_seed import FLIP, QUICK, seed_model\n"
        "print(seed_model([FLIP], cache_dir=Path(sys.argv[2]), recipe=QUICK, report=lambda line: print('*', line)))\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sorted(len(output) > 1 for output in outputs) == [False, True]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_real_one_is_strong_where_it_should_be_and_weak_elsewhere(
    tmp_path: Path, gym: dict[str, TaskSource]
) -> None:
    command = [
        sys.executable,
        "-m",
        "node.seed",
        "--strong",
        "rotate_matrix",
        "--seed",
        "1",
        "--cache-dir",
        str(tmp_path),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    path = Path(made.stdout.splitlines()[-1])
    codec, model = load_codec(path), Qwen3ForCausalLM.from_pretrained(path)
    tasks = {}
    for name, source in gym.items():
        candidates = (source.task(1, index) for index in range(2000))
        tasks[name] = list({task.prompt: task for task in candidates if held_out(task.prompt)}.values())[:120]
    rates = pass_rates(model, codec, gym, tasks, torch.Generator().manual_seed(0))
    # held-out questions were never validated on: some room below the floors
    assert rates.pop("rotate_matrix") > STRONG.floor - 0.12
    assert min(rates.values()) > WEAK.floor - 0.07
