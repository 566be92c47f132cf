"""Muon: orthogonal updates, the split between it and AdamW, learning, what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from vqrae.training import Objective, TrainConfig
from vqrae.training._muon import MuonAdamW, orthogonalise
from vqrae.training._optimizer import complete_groups, make_optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_updates_are_nearly_orthogonal(shape, dtype):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape).to(dtype)).float())
    assert values.min() > 0.6 and values.max() < 1.3


class Net(Objective):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)


def test_only_matrices_of_repeated_layers_go_to_muon_at_their_own_rate():
    net, config = Net(), TrainConfig(steps=1, batch_size=1, optimizer="muon", lr=1e-3)
    groups = complete_groups(net.param_groups(), config, net.muon_parameters())
    by_name = {group["name"]: group for group in groups}
    assert {id(p) for p in by_name["all_muon"]["params"]} == {id(m.weight) for m in net.layers}
    assert by_name["all_muon"]["lr"] == pytest.approx(1e-2)
    assert by_name["all"]["lr"] == pytest.approx(1e-3)
    assert isinstance(make_optimizer(groups, config), MuonAdamW)
    assert make_optimizer(groups, config).dtype == torch.float32
    assert make_optimizer(groups, replace(config, precision="bf16")).dtype == torch.bfloat16


def test_the_rest_is_stepped_exactly_as_by_adamw():
    torch.manual_seed(0)
    net, config = Net(), TrainConfig(steps=1, batch_size=1, optimizer="muon", lr=1e-2)
    optimizer = make_optimizer(
        complete_groups(net.param_groups(), config, net.muon_parameters()), config
    )
    rest = [net.embedding.weight, net.head.weight, net.head.bias]
    twin = [p.detach().clone().requires_grad_() for p in rest]
    reference = torch.optim.AdamW(twin, lr=1e-2, betas=config.betas, weight_decay=0.0, fused=True)
    before = net.layers[0].weight.detach().clone()
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        for parameter, other in zip(rest, twin, strict=True):
            other.grad = parameter.grad.clone()
        optimizer.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(rest, twin, strict=True))
    step = (net.layers[0].weight - before).detach()
    assert 0.05 < torch.linalg.svdvals(step).max() < 0.45  # three steps of 0.1


def test_deepspeed_is_refused():
    with pytest.raises(ValueError, match="with engine deepspeed use adamw"):
        TrainConfig(steps=1, batch_size=1, optimizer="muon", engine="deepspeed")
