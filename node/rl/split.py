"""Which device computes which rows of a batch: about as many tokens for each, and a prompt's rollouts together."""

from __future__ import annotations

from collections.abc import Sequence

from node.rl.samples import TokenRow


def split(rows: Sequence[TokenRow], devices: int) -> list[tuple[TokenRow, ...]]:
    """Every row once, in the order that it came in; one tuple per device, of which some may be empty. Deterministic.

    Rollouts of a prompt stay together, so that the prompt is encoded once, unless they are more than a device's part of
    all tokens: then they are cut into runs of at most that. The largest run goes first, to whoever has least (longest
    processing time first: at most 4/3 of the best split, Graham 1969).
    """
    total = _tokens(rows)
    runs = [run for group in _by_prompt(rows) for run in _cut(group, rows, total / devices)]
    runs.sort(key=lambda run: -_tokens([rows[i] for i in run]))
    parts, loads = [list[int]() for _ in range(devices)], [0] * devices
    for run in runs:
        least = loads.index(min(loads))
        parts[least] += run
        loads[least] += _tokens([rows[i] for i in run])
    return [tuple(rows[i] for i in sorted(part)) for part in parts]


def _by_prompt(rows: Sequence[TokenRow]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.prompt_ids.tobytes(), []).append(i)
    return list(groups.values())


def _cut(group: Sequence[int], rows: Sequence[TokenRow], most: float) -> list[list[int]]:
    runs = [list[int]()]
    for i in group:
        if runs[-1] and _tokens([rows[j] for j in (*runs[-1], i)]) > most:
            runs.append([])
        runs[-1].append(i)
    return runs


def _tokens(rows: Sequence[TokenRow]) -> int:
    """With the prompt of each row, as if it were alone: an upper bound, whatever is packed with what."""
    return sum(map(len, rows))
