"""Into a swarm with its file: what a config becomes, what is refused, the commands, and who meets whom over libp2p."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from node import cli
from node.config import ArithmeticTasks, JsonlTasks, NodeConfig, P2PExchange, PluginTasks, ReasoningGymTasks
from node.daemon import open_node
from node.home import default_directory, make_home, write_new
from node.joining import check_policy, joining, stricter
from node.settings import load_config, task_specs
from swarm.errors import ConfigError
from swarm.file import SwarmFile, SwarmSource, parse_swarm_file, read_swarm_file, sign_swarm_file
from swarm.limits import Limits
from swarm.manifest import AgreedSource, Manifest
from swarm.membership import Membership
from swarm.net.memory import Hub
from swarm.net.streams import PULL, write_frame
from swarm.tasks import make_source
from swarm.types import PeerId
from swarm.wire.codec import Pull, encode_pull
from swarm.wire.identity import Identity
from tests.builders import identity
from tests.policies import save_tiny_policy
from tests.test_exchange import DEADLINE_S, Node, indices, node
from tests.test_node import config_of, running, until

ROOT = Path(__file__).parents[1]
SOLO = ROOT / "configs/solo.toml"
KEY = b"correct horse battery staple"
SEED = f"/ip4/203.0.113.7/tcp/4001/p2p/{identity(2).peer_id}"
PLAIN = SwarmSource(
    type="tests.plain_tasks:Plain", agreed=AgreedSource(name="plain/plain", version="1", config="{}"), weight=1.5
)
SUMS = SwarmSource(
    type="arithmetic",
    agreed=AgreedSource(
        name="arithmetic/sums",
        version="1",
        config='{"max_terms":3,"max_value":9,"min_terms":2,"modulus":0,"operations":"+"}',
    ),
    weight=3.0,
)


def made(
    path: Path,
    *sources: SwarmSource,
    name: str = "small",
    limits: Limits | None = None,
    bootstrap: Sequence[str] = (),
    models: Sequence[str] = (),
    key: bytes | None = None,
    allow: Sequence[PeerId] = (),
) -> Path:
    text = sign_swarm_file(
        identity(1),
        name=name,
        created="2026-11-22",
        sources=sources or (SUMS,),
        limits=limits or Limits(),
        bootstrap=bootstrap,
        models=models,
        key=key,
        allow=allow,
    )
    path.write_text(text)
    return path


def config_in(file: Path, *overrides: str) -> NodeConfig:
    return load_config(None, [f"swarm.file={file}", *overrides])


def join(config: NodeConfig) -> tuple[Manifest, Membership]:
    swarm = joining(config)
    return swarm.agreed([make_source(spec) for spec in task_specs(swarm.config)])


def complaint(config: NodeConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        join(config)
    return str(caught.value)


# What the config says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "--set: tasks is missing"),
        (["swarm.file=x", "tasks.0.type=arithmetic"], "--set: tasks and swarm.file exclude each other; a swarm file's"),
        (["tasks.0.type=arithmetic", "swarm.key_file=k"], "--set: swarm.key_file needs swarm.file"),
        (["tasks.0.type=arithmetic", "swarm.files.a=a.jsonl"], "--set: swarm.files needs swarm.file"),
        (["tasks.0.type=arithmetic", 'swarm.trust_plugins=["a:b"]'], "--set: swarm.trust_plugins needs swarm.file"),
    ],
)
def test_tasks_or_a_swarm_file(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert str(caught.value).startswith(sentence)


def test_paths_are_relative_to_the_config(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[swarm]\nfile = "a.toml"\nkey_file = "k"\n[swarm.files]\nalgebra = "a.jsonl"\n')
    swarm = load_config(path).swarm
    assert (swarm.file, swarm.key_file) == (tmp_path / "a.toml", tmp_path / "k")
    assert swarm.files == {"algebra": tmp_path / "a.jsonl"}


def test_a_config_without_a_file_stays_as_it_is() -> None:
    config = load_config(SOLO)
    swarm = joining(config)
    assert swarm.config is config
    sources = [make_source(spec) for spec in task_specs(config)]
    manifest = Manifest.of(config.swarm.name, sources)
    assert swarm.agreed(sources) == (manifest, Membership(swarm=manifest.id))


# What the file makes of it --------------------------------------------------------------------------------------------


def test_tasks_weights_and_peers_are_the_files(tmp_path: Path) -> None:
    spell = AgreedSource(name="reasoning_gym/spell_backward", version="0.1.25", config='{"max_word_len":6}')
    file = made(
        tmp_path / "f",
        SwarmSource(type="reasoning_gym", agreed=spell, weight=2.0),
        SUMS,
        SwarmSource(type="jsonl", agreed=AgreedSource(name="jsonl/a", version="0" * 64, config='{"verifier":"exact"}')),
        PLAIN,
        bootstrap=[SEED],
    )
    own = f"/ip4/203.0.113.8/tcp/1/p2p/{identity(3).peer_id}"
    settings = ["swarm.files.a=a.jsonl", f'swarm.trust_plugins=["{PLAIN.type}"]', f'exchange.initial_peers=["{own}"]']
    config = joining(config_in(file, 'exchange.type="p2p"', *settings)).config
    assert config.swarm.name == "small"
    assert config.tasks == (
        ReasoningGymTasks(name="spell_backward", config={"max_word_len": 6}, weight=2.0),
        ArithmeticTasks(name="sums", max_terms=3, max_value=9, modulus=0, operations="+", weight=3.0),
        JsonlTasks(name="a", path=Path("a.jsonl"), verifier="exact"),
        PluginTasks(name="plain", factory="tests.plain_tasks:Plain", weight=1.5),
    )
    assert isinstance(config.exchange, P2PExchange)
    assert config.exchange.initial_peers == (own, SEED)


def test_own_limits_may_only_be_stricter(tmp_path: Path) -> None:
    agreed = Limits(max_rollouts=16, max_turns=32, max_age_s=600.0)
    assert stricter(Limits(), agreed) == agreed
    assert stricter(Limits(max_rollouts=8, max_turns=64), agreed) == agreed.model_copy(update={"max_rollouts": 8})
    config = joining(config_in(made(tmp_path / "f", limits=agreed), "limits.max_age_s=60")).config
    assert config.limits == agreed.model_copy(update={"max_age_s": 60.0})


def test_what_is_agreed_on_is_the_files(tmp_path: Path) -> None:
    path = made(tmp_path / "f", models=["m"], key=KEY, allow=[identity(3).peer_id])
    (tmp_path / "key").write_bytes(KEY)
    file = read_swarm_file(path)
    assert join(config_in(path, f"swarm.key_file={tmp_path / 'key'}")) == (file.manifest, file.membership(KEY))


def test_the_key_is_asked_for_before_anything_starts(tmp_path: Path) -> None:
    path = made(tmp_path / "f", key=KEY)
    assert complaint(config_in(path)).startswith("swarm small is closed by a key: ")
    (tmp_path / "key").write_bytes(KEY + b"!")
    assert complaint(config_in(path, f"swarm.key_file={tmp_path / 'key'}")).startswith("the key is not that of")


def test_no_file_makes_a_node_import_anything(tmp_path: Path) -> None:
    plugin = replace(PLAIN, type="this:that")  # the module prints a poem when it is imported
    path = made(tmp_path / "f", plugin)
    sys.modules.pop("this", None)
    assert complaint(config_in(path, 'swarm.trust_plugins=["tests.plain_tasks:Plain"]')) == (
        f"{path}: source plain/plain is the plug-in this:that, code that this node would import and run; if you know"
        ' and trust it, install it and add "this:that" to swarm.trust_plugins'
    )
    assert cli.main(["swarm", "show", str(path)]) == cli.main(["swarm", "verify", str(path)]) == cli.OK
    assert "this" not in sys.modules


def test_a_file_of_tasks_is_never_fetched(tmp_path: Path) -> None:
    tasks = tmp_path / "a.jsonl"
    tasks.write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    digest = hashlib.sha256(tasks.read_bytes()).hexdigest()
    agreed = AgreedSource(name="jsonl/algebra", version=digest, config='{"verifier":"math"}')
    path = made(tmp_path / "f", SwarmSource(type="jsonl", agreed=agreed))
    assert complaint(config_in(path)) == (
        f"{path}: source jsonl/algebra is a file that is not fetched: get it from whoever runs the swarm (SHA-256"
        f" {digest}) and set swarm.files.algebra to its path"
    )
    config = config_in(path, f"swarm.files.algebra={tasks}")
    assert join(config)[0].sources == (agreed,)
    tasks.write_text('{"prompt": "1 + 1", "answer": "3"}\n')
    other = hashlib.sha256(tasks.read_bytes()).hexdigest()
    assert complaint(config) == (
        f"source jsonl/algebra: the swarm needs version {digest}, here is {other} (the SHA-256 of the file):"
        " swarm.files must name the swarm's own"
    )


@pytest.mark.parametrize("kind", ["jsonl", "arithmetic", "reasoning_gym"])
def test_settings_of_a_source_are_settings_only(kind: str, tmp_path: Path) -> None:
    """They do not turn one kind of source into another, or choose a path."""
    smuggled = '{"factory":"this:that","path":"/etc/passwd","type":"plugin"}'
    agreed = AgreedSource(name=f"{kind}/a", version="1", config=smuggled)
    config = config_in(made(tmp_path / "f", SwarmSource(type=kind, agreed=agreed)), "swarm.files.a=mine.jsonl")
    sys.modules.pop("this", None)
    said = complaint(config)
    assert ("has no dataset 'a'" if kind == "reasoning_gym" else "do not fit: factory: Extra") in said
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            SwarmSource(
                type="reasoning_gym",
                agreed=AgreedSource(name="reasoning_gym/spell_backward", version="0.0.1", config="{}"),
            ),
            "source reasoning_gym/spell_backward: the swarm needs version 0.0.1, here is 0.1.25; install it"
            " (pip install reasoning-gym==0.0.1)",
        ),
        (
            replace(SUMS, agreed=replace(SUMS.agreed, version="2")),
            "source arithmetic/sums: the swarm needs version 2, here is 1; install that one",
        ),
        (
            replace(SUMS, agreed=replace(SUMS.agreed, config='{"max_terms":3}')),
            'source arithmetic/sums: the swarm has it with config {"max_terms":3}, here it is {',
        ),
        (
            replace(SUMS, agreed=replace(SUMS.agreed, config='{"modulo":3}')),
            "source arithmetic/sums has settings that do not fit: modulo: Extra inputs are not permitted",
        ),
        (
            replace(PLAIN, agreed=replace(PLAIN.agreed, name="other/plain")),
            "source other/plain of the swarm file calls itself plain/plain here",
        ),
    ],
)
def test_sources_that_come_out_differently_are_refused(source: SwarmSource, sentence: str, tmp_path: Path) -> None:
    config = config_in(made(tmp_path / "f", source), f'swarm.trust_plugins=["{PLAIN.type}"]')
    assert sentence in complaint(config)


def test_a_policy_that_the_swarm_does_not_take() -> None:
    manifest = Manifest(name="s", sources=(), models=frozenset({"b", "a"}))
    check_policy(manifest, "a", "any")
    with pytest.raises(ConfigError) as caught:
        check_policy(manifest, "c", "any")
    assert str(caught.value) == "policy.model: model c is not among the 2 that this swarm allows (a, b)"


# Whole nodes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def member(policy: Path, data_dir: Path, file: Path) -> NodeConfig:
    swarm = {"file": file, "trust_plugins": [PLAIN.type]}
    return config_of(policy, data_dir, tasks=[PluginTasks(name="x", factory=PLAIN.type)]).model_copy(
        update={"tasks": (), "swarm": NodeConfig.model_validate({"swarm": swarm}).swarm}
    )


@pytest.mark.slow
async def test_nodes_of_one_file_learn_from_each_other(policy: Path, tmp_path: Path) -> None:
    file, hub = made(tmp_path / "f", PLAIN), Hub()
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(running(member(policy, tmp_path / name, file), hub)) for name in ("a", "b")
        ]
        await until(lambda: a.ledger.admitted[b.author.identity.peer_id] > 0, a)
        assert a.status().swarm == b.status().swarm == read_swarm_file(file).id
        assert a.ledger.refused.total() == 0


async def test_a_node_with_the_wrong_model_does_not_start(policy: Path, tmp_path: Path) -> None:
    file = made(tmp_path / "f", PLAIN, models=["ffffffffffffffff"])
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match=r"policy.model: model [0-9a-f]{16} is not among the 1"):
            await open_node(member(policy, tmp_path / "a", file), stack, asyncio.Event())


# Over libp2p ----------------------------------------------------------------------------------------------------------


async def not_served(outsider: Node, member: Node, membership: Membership) -> bool:
    """Whether a pull by `outsider` is answered with nothing."""
    stack = outsider.exchange._stack
    assert stack is not None
    await stack.connect(member.peer, member.exchange.addresses)
    reader, writer = await stack.open_stream(member.peer, PULL)
    pull = Pull(
        swarm=membership.swarm,
        epoch=b"",
        cursor=0,
        max_groups=1,
        membership=membership.proof(outsider.peer),
    )
    async with asyncio.timeout(DEADLINE_S):
        await write_frame(writer, encode_pull(pull))
        answer = await reader.read()
    writer.close()
    return answer == b""


def signed_by(directory: Path, **settings: object) -> SwarmFile:
    return read_swarm_file(made(directory / "f", **settings))  # type: ignore[arg-type]


def identity_of(directory: Path) -> PeerId:
    directory.mkdir()
    return Identity.load_or_create(directory / "identity.key").peer_id


@pytest.mark.network
async def test_two_nodes_of_one_file_meet(tmp_path: Path) -> None:
    peers = [identity_of(tmp_path / name) for name in ("a", "b")]
    membership = signed_by(tmp_path, key=KEY, allow=peers).membership(KEY)
    async with (
        node(tmp_path / "a", membership=membership) as a,
        node(tmp_path / "b", *a.exchange.addresses, membership=membership) as b,
    ):
        a.publish(1)
        assert indices(await b.receive(1)) == [1]
        await a.see(b)


@pytest.mark.network
@pytest.mark.parametrize("case", ["another file", "no key", "another key", "not on the list"])
async def test_others_do_not(case: str, tmp_path: Path) -> None:
    """`c` is a member that starts last: when `a` and `c` have met, the outsider has had its time."""
    peers = [identity_of(tmp_path / name) for name in ("a", "c")]
    file = signed_by(tmp_path, key=KEY, allow=peers if case == "not on the list" else ())
    inside = file.membership(KEY)
    outside = {
        "another file": signed_by(tmp_path, name="other", key=KEY).membership(KEY),
        "no key": replace(inside, key=None),
        "another key": replace(inside, key=KEY + b"!"),
        "not on the list": inside,
    }[case]
    async with (
        node(tmp_path / "a", membership=inside) as a,
        node(tmp_path / "b", *a.exchange.addresses, membership=outside) as b,
    ):
        a.publish(1)
        assert await not_served(b, a, outside)
        async with node(tmp_path / "c", *a.exchange.addresses, membership=inside) as c:
            assert indices(await c.receive(1)) == [1]
            await a.see(c)
            assert [peer.peer for peer in a.exchange.peers()] == [c.peer]
            assert b.peer not in {peer.peer for peer in c.exchange.peers()}


# The commands ---------------------------------------------------------------------------------------------------------


def swarm_node(directory: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from node.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


def test_from_a_config_to_a_swarm_in_real_processes(tmp_path: Path) -> None:
    done = swarm_node(tmp_path, "init", "first")
    assert done.returncode == cli.OK, done.stderr
    config, file = tmp_path / "first/config.toml", tmp_path / "s.swarm.toml"
    assert done.stdout.splitlines()[-2:] == [
        "next: look through first/config.toml, then swarm-node run first/config.toml",
        "or make a swarm of it: swarm-node swarm create first/config.toml --name N --out N.swarm.toml",
    ]
    create = ("swarm", "create", config, "--name", "my swarm", "--out", file, "--bootstrap", SEED)
    done = swarm_node(tmp_path, *create, "--key-file", "k", "--allow", identity(3).peer_id, "--tokenizer", "bytes")
    assert done.returncode == cli.OK, done.stderr
    swarm = read_swarm_file(file)
    assert done.stdout.splitlines() == [
        f"{file}: swarm my swarm, id {swarm.id}, signed by {swarm.organiser}",
        "k: the members' key, which is not in the file: hand it over where nobody listens",
    ]
    key = (tmp_path / "k").read_bytes()
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert key.strip() not in file.read_bytes()
    assert swarm.organiser == Identity.load_or_create(tmp_path / "organiser.key").peer_id
    assert [source.agreed.name for source in swarm.sources] == [
        "reasoning_gym/spell_backward",
        "reasoning_gym/number_sorting",
    ]
    assert (swarm.bootstrap, swarm.allow) == ((SEED,), {identity(3).peer_id})
    assert swarm.manifest.tokenizers == {"bytes"}

    shown = swarm_node(tmp_path, "swarm", "show", file)
    assert shown.returncode == cli.OK
    for part in (swarm.id, swarm.organiser, SEED, "spell_backward", "key", "No weights", "another swarm", "bytes"):
        assert part in shown.stdout
    verified = swarm_node(tmp_path, "swarm", "verify", file)
    assert (verified.returncode, verified.stderr) == (cli.OK, "")
    assert verified.stdout == f"valid: {file} is swarm my swarm, id {swarm.id}, signed by {swarm.organiser}\n"

    again = swarm_node(tmp_path, *create)
    assert again.returncode == cli.USAGE
    assert again.stderr == (
        f"swarm-node: --out {file}: is there already; a swarm file is not changed, a new one is another swarm\n"
    )
    assert read_swarm_file(file) == swarm

    joined = swarm_node(tmp_path, "init", "second", "--swarm", file, "--key-file", "k", "--name", "me")
    assert joined.returncode == cli.OK, joined.stderr
    made = joining(load_config(tmp_path / "second/config.toml"))
    assert (made.config.name, made.config.data_dir) == ("me", tmp_path / "second")
    assert made.file == swarm
    assert made.key == key.strip()
    assert made.config.tasks == load_config(config).tasks

    file.write_text(file.read_text().replace("max_rollouts = 64", "max_rollouts = 65"))
    forged = swarm_node(tmp_path, "swarm", "verify", file)
    assert (forged.returncode, forged.stderr) == (cli.FAILED, "")
    assert forged.stdout.startswith(f"not valid: {file}: signed.signature is not by organiser {swarm.organiser}")
    for refused in (("join", file, "--data-dir", "third"), ("init", "third", "--swarm", file), ("swarm", "show", file)):
        assert swarm_node(tmp_path, *refused).returncode == cli.USAGE
    assert not (tmp_path / "third").exists()


def test_the_printed_config_of_a_member_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(make_home(tmp_path / "n", name="n", swarm=made(tmp_path / "f")))
    assert cli.main(["config", str(tmp_path / "n/config.toml")]) == cli.OK
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out)
    printed, original = load_config(tmp_path / "printed.toml"), load_config(tmp_path / "n/config.toml")
    assert printed.model_copy(update={"swarm": original.swarm}) == original
    assert joining(printed).file == joining(original).file


def test_join_says_what_is_wrong_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    file = made(tmp_path / "f", replace(PLAIN, type="no.such:Source"))
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from node import cli\n"
        f"lines = ('init a', 'init b --swarm f', 'swarm show f', 'swarm verify f', 'join f --data-dir b',"
        f" 'swarm create {ROOT}/configs/solo.toml --name n --out g')\n"
        "codes = [cli.main(line.split()) for line in lines]\n"
        "heavy = {'torch', 'transformers', 'hivemind', 'grpc'} & sys.modules.keys()\n"
        "print(codes, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2, 0] set()", done.stderr
    assert done.stderr.startswith(f"swarm-node: {Path('b') / 'swarm.toml'}: source plain/plain is the plug-in")
    assert file.exists()


def test_create_refuses_what_nobody_could_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    create = ["swarm", "create", str(SOLO), "--name", "n", "--out", str(out)]
    assert cli.main([*create, "--bootstrap", "/ip4/1.2.3.4/tcp/1"]) == cli.USAGE
    assert 'bootstrap.0 = "/ip4/1.2.3.4/tcp/1" is not allowed' in capsys.readouterr().err
    assert cli.main([*create, "--allow", "somebody"]) == cli.USAGE
    assert 'access.allow.0 = "somebody" is not allowed' in capsys.readouterr().err
    own = 'tasks=[{type="plugin", factory="tests.test_join:Renaming", name="a"}]'
    assert cli.main([*create, "--set", own]) == cli.USAGE
    assert "task a: made from its own name and config, x/b is x/bb with {}" in capsys.readouterr().err
    member = made(tmp_path / "f")
    list(make_home(tmp_path / "n", name="n", swarm=member))
    assert cli.main(["swarm", "create", str(tmp_path / "n/config.toml"), "--name", "n", "--out", str(out)]) == cli.USAGE
    assert "a new swarm is made from a config with [[tasks]]" in capsys.readouterr().err
    assert not out.exists()


class Renaming:
    """A source that nobody can make from what it says of itself."""

    version, config, size = "1", "{}", None

    def __init__(self, spec: object) -> None:
        name = getattr(spec, "name", "")
        self.name = "x/b" if name == "a" else f"x/{name}b"


def test_init_never_writes_anything_over(tmp_path: Path) -> None:
    home = tmp_path / "n"
    list(make_home(home, name="first"))
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    assert before.keys() == {"identity.key", "config.toml"}
    lines = list(make_home(home, name="second"))
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    assert lines[0].endswith(", is there already")
    assert lines[1] == f"{home / 'config.toml'}: is there already, and stays as it is"
    with pytest.raises(ConfigError, match="is there already, and is not written over"):
        write_new(home / "config.toml", b"")


def test_a_directory_is_of_one_swarm(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other", name="other")
    home = tmp_path / "n"
    assert len(list(make_home(home, name="n", swarm=one))) == 3
    assert len(list(make_home(home, name="n", swarm=one))) == 3
    with pytest.raises(ConfigError) as caught:
        make_home(home, name="n", swarm=other)
    ids = [read_swarm_file(path).id for path in (one, other)]
    assert str(caught.value) == (
        f"{home / 'config.toml'}: is of swarm small, id {ids[0]}; give swarm other, id {ids[1]}, a directory of its own"
    )
    (home / "config.toml").unlink()
    with pytest.raises(ConfigError, match="is another swarm; give other"):
        make_home(home, name="n", swarm=other)
    list(make_home(tmp_path / "alone", name="n"))
    with pytest.raises(ConfigError, match="is of a swarm without a file; give swarm small"):
        make_home(tmp_path / "alone", name="n", swarm=one)


def test_nothing_is_made_without_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is closed by a key"):
        make_home(tmp_path / "n", name="n", swarm=made(tmp_path / "f", key=KEY))
    assert not (tmp_path / "n").exists()


def test_a_strangers_name_makes_no_path(tmp_path: Path) -> None:
    file = read_swarm_file(made(tmp_path / "f", name="../../etc/My Swarm!"))
    assert default_directory(file) == Path(f"runs/etc-my-swarm-{file.id[:8]}")
    unnamed = read_swarm_file(made(tmp_path / "f", name="..."))
    assert default_directory(unnamed) == Path(f"runs/swarm-{unnamed.id[:8]}")


def test_a_config_of_init_is_right_and_json_says_the_same(tmp_path: Path) -> None:
    name = 'a "quoted" name'
    list(make_home(tmp_path / "n", name=name, swarm=made(tmp_path / "f")))
    config = load_config(tmp_path / "n/config.toml")
    assert config.name == name
    assert isinstance(config.exchange, P2PExchange)
    assert json.loads(config.model_dump_json())["swarm"]["file"] == str(tmp_path / "n/swarm.toml")
    assert parse_swarm_file((tmp_path / "n/swarm.toml").read_bytes()) == read_swarm_file(tmp_path / "f")
