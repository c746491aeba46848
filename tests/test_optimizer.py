"""The optimiser's weights and moments: where they are, how large, and that updates are what plain AdamW makes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from node.algorithms import LearnerConfig
from node.engine.optimizer import make_optimizer, masters_of, set_learning_rate
from node.engine.optimizer_state import optimizer_tensors, restore_optimizer
from swarm.errors import PolicyError
from tests.policies import hide


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(64, 128, generator=rng))
        self.second = torch.nn.Parameter(torch.randn(8, generator=rng))


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())


def after(learner: LearnerConfig, steps: int = 5) -> tuple[Small, Mapping[str, torch.nn.Parameter]]:
    """A model and what its optimiser works on, after some steps with gradients of the model's dtype."""
    model = Small()
    masters = masters_of(model, trained(model), learner)
    worked_on = trained(model) if masters is None else masters.parameters
    optimizer = make_optimizer(worked_on.values(), learner)
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng).to(parameter.dtype)
        if masters is not None:
            masters.take_gradients()
            assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.step()
        if masters is not None:
            masters.give_weights()
    return model, worked_on


PLAIN = LearnerConfig(lr=1e-2, weight_decay=0.1)


def test_updates_of_masters_are_those_of_the_weights_themselves() -> None:
    plain, _ = after(PLAIN)
    offloaded, masters = after(PLAIN.model_copy(update={"offload_optimizer": True}))
    for name, parameter in trained(plain).items():
        assert torch.equal(parameter, trained(offloaded)[name])
        assert masters[name] is not trained(offloaded)[name]


def test_small_updates_add_up_beside_weights_in_16_bit() -> None:
    """1e-5 is nothing to a bfloat16 of about 1."""
    learner = LearnerConfig(lr=1e-5, weights="bfloat16")
    start = Small()
    model, masters = after(learner)
    exact, _ = after(LearnerConfig(lr=1e-5))
    for name, parameter in trained(model).items():
        assert parameter.dtype == torch.bfloat16
        assert masters[name].dtype == torch.float32
        assert torch.equal(parameter, masters[name].to(torch.bfloat16))
        moved = (masters[name] - trained(start)[name]).abs().mean()
        assert moved > 1e-6
        torch.testing.assert_close(masters[name], trained(exact)[name], atol=5e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_moments_of_a_byte() -> None:
    pytest.importorskip("torchao")
    learner = PLAIN.model_copy(update={"optimizer": "adamw_8bit"})
    model, exact = Small(), Small()
    optimizer, plain = make_optimizer(model.parameters(), learner), make_optimizer(exact.parameters(), PLAIN)
    rng = torch.Generator().manual_seed(1)
    for step in range(5):
        for a, b in zip(model.parameters(), exact.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=rng)
            b.grad = a.grad.clone()
        for each in (optimizer, plain):
            set_learning_rate(each, 1e-2 if step else 5e-3)
            each.step()
    moved = (model.first - Small().first).detach()
    assert float((model.first - exact.first).abs().mean()) < 0.1 * float(moved.abs().mean())
    sizes = [
        state.nbytes if not hasattr(state, "codes") else state.codes.nbytes + state.scale.nbytes
        for name, state in optimizer.state[model.first].items()
        if name != "step"
    ]
    assert sum(sizes) < 2 * 1.1 * model.first.numel()

    kept = optimizer_tensors(optimizer, list(trained(model)))
    assert all(type(tensor) is torch.Tensor for tensor in kept.values())
    other = Small()
    other.load_state_dict(model.state_dict())
    again = make_optimizer(other.parameters(), learner)
    restore_optimizer(again, list(trained(other)), kept)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        a.grad = torch.ones_like(a)
        b.grad = torch.ones_like(b)
    optimizer.step()
    again.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)  # of an update of 1e-2: to a moment's precision


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torchao")
    with pytest.raises(PolicyError, match=r'learner\.optimizer = "adamw_8bit" needs torchao'):
        make_optimizer(Small().parameters(), LearnerConfig(optimizer="adamw_8bit"))
