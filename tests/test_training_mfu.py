"""MFU: FLOPs as the formulas have them, and a training that does not notice being counted."""

from __future__ import annotations

import logging

import pytest
import torch
from _training_toy import ToyDataset, ToyObjective
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from vqrae.training import TrainConfig, fit, read_metrics
from vqrae.training._mfu import FlopCount


@pytest.fixture(autouse=True)
def one_thread():
    """The toy's tensors are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("again", [False, True])
def test_linear_layers_take_6_flops_per_weight_and_token(again):
    """2 forward, 4 backward (PaLM, appendix B); checkpointing's second forward pass counts none."""
    layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    tokens = nn.Embedding(10, 8)(torch.randint(0, 10, (3, 5)))
    with FlopCount() as count:
        out = checkpoint(layers, tokens, use_reentrant=False) if again else layers(tokens)
        out.sum().backward()
    weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    assert count.total == 6 * weights * 15


def test_attention_takes_12_flops_per_width_and_pair_of_tokens():
    query, key, value = torch.randn(3, 2, 4, 6, 8, requires_grad=True)  # 2 x 4 heads, 6 tokens
    with FlopCount() as count:
        F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()
    assert count.total == 12 * (2 * 4) * 6 * 6 * 8


def test_a_run_logs_it_and_does_not_notice(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = {}
    for mfu in (False, True):
        config = TrainConfig(
            steps=4, batch_size=8, accumulation=2, log_every=1, device="cpu", mfu=mfu
        )
        fit(ToyObjective(noise=0.1), ToyDataset(), config, tmp_path / str(mfu), recipe="toy")
        rows[mfu] = read_metrics(tmp_path / str(mfu))
    assert all(0 < row["mfu"] <= 1.5 for row in rows[True])
    for off, on in zip(rows[False], rows[True], strict=True):
        timed = {"seconds", "images_per_s", "mfu"}
        assert {k: v for k, v in off.items() if k not in timed} == {
            k: v for k, v in on.items() if k not in timed
        }
    assert any("matmul peak" in r.message and "measured" in r.message for r in caplog.records)
    assert any("images/s  mfu " in r.message for r in caplog.records)
