from dataclasses import replace

import pytest

from swarm.manifest import AgreedSource, Manifest
from tests.builders import task_ref

A = AgreedSource(name="reasoning_gym/spell_backward", version="0.1.25", config='{"max_word_len":5}')
B = AgreedSource(name="jsonl/algebra", version="0" * 64, config="{}")
SWARM = Manifest(name="local", sources=(A, B))


def test_the_id_is_pinned() -> None:
    """A change of it is a change of the protocol: nodes of before and after cannot see each other."""
    assert SWARM.id == "b80b55c71406d9bcbbd1e039451301b3"


def test_the_order_of_sources_means_nothing() -> None:
    assert Manifest(name="local", sources=(B, A)).id == SWARM.id


@pytest.mark.parametrize(
    "other",
    [
        Manifest(name="Local", sources=(A, B)),
        Manifest(name="local", sources=(A,)),
        Manifest(name="local", sources=(A, replace(B, name="jsonl/algebra2"))),
        Manifest(name="local", sources=(A, replace(B, version="1" * 64))),
        Manifest(name="local", sources=(A, replace(B, config='{"x":1}'))),
    ],
)
def test_whoever_agrees_on_something_else_is_elsewhere(other: Manifest) -> None:
    assert other.id != SWARM.id


def test_a_task_is_admitted_by_name_version_and_config() -> None:
    ref = replace(task_ref(source=A.name, index=3), version=A.version, config=A.config)
    assert SWARM.admits(ref)
    assert SWARM.admits(replace(ref, seed=9))
    assert not SWARM.admits(replace(ref, source=B.name))
    assert not SWARM.admits(replace(ref, version="0.1.26"))
    assert not SWARM.admits(replace(ref, config="{}"))
