"""The mixture of softmaxes over codes: against a plain loop, one softmax, and in a model."""

from __future__ import annotations

import pytest
import torch
from test_mllm_parts import tiny_model
from vqrae.generation import load_unified
from vqrae.mllm.code_mixture import CodeMixture


def test_equals_a_plain_loop():
    torch.manual_seed(0)
    mixture, head = CodeMixture(8, 3), torch.randn(11, 8)
    mixture.share.weight.data.normal_()
    hidden = torch.randn(2, 5, 8)
    found = mixture.mix(hidden, mixture.guesses(hidden) @ head.T)
    shares = (hidden @ mixture.share.weight.T + mixture.share.bias).softmax(-1)
    moves = mixture.move.weight.view(3, 8, 8)
    biases = mixture.move.bias.view(3, 8)
    expected = sum(
        shares[..., g, None] * ((hidden + hidden @ moves[g].T + biases[g]) @ head.T).softmax(-1)
        for g in range(3)
    )
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 5))


def test_says_either_of_two_pairs_where_one_softmax_cannot():
    """Rows that add up, two colours by two shapes: wanted is half the one pair, half the other."""
    color, shape = torch.eye(4)[:2], torch.eye(4)[2:]
    rows = torch.stack([c + s for c in color for s in shape])
    wanted = torch.tensor([0.5, 0.0, 0.0, 0.5])

    def distance(components: int) -> float:
        torch.manual_seed(0)
        mixture = CodeMixture(4, components)
        hidden = torch.zeros(4, requires_grad=True)
        adam = torch.optim.Adam([hidden, *mixture.parameters()], lr=0.1)
        for _ in range(300):
            logs = mixture.mix(hidden, mixture.guesses(hidden) @ rows.T)
            loss = -(wanted * logs).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return float((logs.detach().exp() - wanted).abs().max())

    assert distance(1) == pytest.approx(0.25, abs=0.02)
    assert distance(2) < 0.02


def test_a_model_with_a_mixture_is_saved_loaded_and_draws_alike(tmp_path):
    model, processor = tiny_model(code_mixture=3)
    ids = torch.tensor([[5, 6, model.config.image_start_id]])
    out = model.eval()(ids)
    logs = out.logits[..., model.config.code_offset :]
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(1, 3))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_unified(tmp_path)
    assert torch.equal(loaded(ids).logits, out.logits)
    with pytest.raises(ValueError, match="code_mixture is 0"):
        type(model.config)(code_mixture=0)
