"""Tensors in shared memory: what one process writes is what another one finds, and nothing is left of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from node.engine.shared import ALIGNMENT, SharedTensors, mapped

ROOT = Path(__file__).parents[1]
READER = """
import json, sys
from node.engine.shared import mapped
print(json.dumps({name: tensor.double().tolist() for name, tensor in mapped(json.loads(sys.argv[1]))}))
"""


def tensors() -> dict[str, torch.Tensor]:
    return {
        "matrix": torch.randn(3, 5),
        "half": torch.randn(7).to(torch.bfloat16),
        "transposed": torch.randn(2, 4).T,
        "scalar": torch.tensor(2.5),
        "numbers": torch.arange(11),
        "flags": torch.tensor([True, False, True]),
    }


def test_what_is_written_is_found() -> None:
    written = tensors()
    shared = SharedTensors(written)
    shared.write(written)
    found = dict(mapped(shared.layout))
    shared.close()
    assert list(found) == list(written)
    for name, tensor in found.items():
        assert tensor.dtype == written[name].dtype
        assert tensor.shape == written[name].shape
        assert torch.equal(tensor, written[name])


def test_another_process_finds_it_by_a_message() -> None:
    written = tensors()
    shared = SharedTensors(written)
    shared.write(written)
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(shared.layout)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=True,
    )
    shared.close()
    assert json.loads(done.stdout) == {name: tensor.double().tolist() for name, tensor in written.items()}


def test_every_tensor_is_aligned_and_none_overlap() -> None:
    written = tensors()
    shared = SharedTensors(written)
    offsets, sizes = shared.layout["offsets"], [tensor.nbytes for tensor in written.values()]
    assert offsets[0] == 0
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
    assert all(end <= after for end, after in zip(ends, offsets[1:], strict=False))
    shared.close()


def test_the_next_version_is_written_over_the_one_before() -> None:
    first, second = tensors(), tensors()
    shared = SharedTensors(first)
    shared.write(first)
    layout = json.dumps(shared.layout)
    shared.write(second)
    assert json.dumps(shared.layout) == layout
    assert all(torch.equal(tensor, second[name]) for name, tensor in mapped(shared.layout))
    shared.close()


def test_a_reader_that_writes_changes_its_own_copy_only() -> None:
    written = tensors()
    shared = SharedTensors(written)
    shared.write(written)
    for _, tensor in mapped(shared.layout):
        tensor.zero_()
    assert all(torch.equal(tensor, written[name]) for name, tensor in mapped(shared.layout))
    shared.close()


def test_it_goes_with_its_owner() -> None:
    """What was mapped before stays as long as somebody looks at it."""
    written = tensors()
    shared = SharedTensors(written)
    shared.write(written)
    found = dict(mapped(shared.layout))
    shared.close()
    with pytest.raises(OSError):
        next(mapped(shared.layout))
    assert all(torch.equal(tensor, written[name]) for name, tensor in found.items())


def test_a_tensor_of_another_shape_is_refused() -> None:
    shared = SharedTensors({"a": torch.zeros(2)})
    with pytest.raises(RuntimeError, match="size"):
        shared.write({"a": torch.zeros(3)})
    shared.close()
