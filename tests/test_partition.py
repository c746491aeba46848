"""A swarm of real nodes that is cut in two and healed (tests/bench/partition.py; 2 minutes long there)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.partition import split, unavailable

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

SPLIT_S = 15.0
EVERY_S = 0.5
HALVES = ((0, 2), (1, 3))


async def test_both_halves_go_on_and_nothing_is_lost_or_comes_twice(tmp_path: Path) -> None:
    if why := unavailable():
        pytest.skip(why)
    healed = await split(tmp_path, SPLIT_S, each=2, every_s=EVERY_S)
    for before, apart in zip(healed.before, healed.apart, strict=True):
        assert len(before.peers) == 3, "they had met"
        assert apart.steps - before.steps >= 0.5 * SPLIT_S / EVERY_S / 4, "no step waits for another machine"
    for here, there in (HALVES, HALVES[::-1]):
        heard = [
            sum(map(len, healed.apart[node].got.values())) - sum(map(len, healed.before[node].got.values()))
            for node in here
        ]
        made_here = [healed.apart[node].made - healed.before[node].made for node in here]
        made_there = sum(healed.apart[node].made - healed.before[node].made for node in there)
        assert all(more < made_other + made_there / 2 for more, made_other in zip(heard, made_here[::-1], strict=True))
    assert healed.complete, f"after {healed.merged_s:.0f} s not everybody has everything"
    assert healed.merged_s < 60
    for report in healed.merged:
        assert report.pulled_again == 0
        for indices in report.got.values():
            assert len(set(indices)) == len(indices)
            assert set(indices) == set(range(min(indices), max(indices) + 1)), "no gap"
