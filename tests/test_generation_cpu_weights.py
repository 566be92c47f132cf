"""Weights laid out for drawing on a CPU: the same numbers, or nearly, from less memory."""

from __future__ import annotations

import pytest
import torch
from test_mllm_parts import FAMILIES, tiny_model
from vqrae.generation import cpu_weights, lay_out_weights, sample_codes
from vqrae.generation.cpu_weights import _BFloat16, _Int8, _Packed
from vqrae.tokenizer._cpu import has_bf16


@pytest.mark.parametrize("rows", [(3,), (1, 1), (2, 7)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_home", [False, True])
def test_layers_equal_the_plain_one(rows, bias, at_home, monkeypatch):
    monkeypatch.setattr(cpu_weights, "mkl_is_at_home", lambda: at_home)
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 160, bias=bias)
    inputs = torch.randn(*rows, 96)
    with torch.no_grad():
        expected = plain(inputs)
        torch.testing.assert_close(_Packed(plain.weight, plain.bias)(inputs), expected)
        if has_bf16():
            half = _BFloat16(plain.weight, plain.bias)(inputs)
            assert half.dtype == inputs.dtype
            assert 0 < (half - expected).norm() / expected.norm() < 0.005
        small = _Int8(plain.weight, plain.bias)
        error = (small(inputs) - expected).norm() / expected.norm()
    assert error < 0.02
    stored = sum(b.numel() * b.element_size() for b in small.buffers())
    assert stored < plain.weight.numel() * 4 * 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_draw_the_same(family):
    model, processor = tiny_model(family)
    prompts = [processor.encode_draw(text) for text in ("a", "a red circle above a blue square")]
    unconditional = processor.encode_draw(unconditional=True)
    plain = sample_codes(model, prompts, unconditional, seeds=4)
    assert torch.equal(sample_codes(lay_out_weights(model), prompts, unconditional, seeds=4), plain)


def test_int8_logits_are_near():
    models = [tiny_model()[0] for _ in range(2)]
    lay_out_weights(models[1], "int8")
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        plain, small = (m.code_logits(m.decode(m.embed(ids))).log_softmax(-1) for m in models)
    assert (plain - small).abs().max() < 0.1 * plain.std() + 0.02
    assert not torch.equal(plain, small)


def test_what_cannot_be_laid_out(monkeypatch):
    model, _ = tiny_model()
    with pytest.raises(ValueError, match="weights must be one of packed, bf16, int8, not 'int4'"):
        lay_out_weights(model, "int4")
    monkeypatch.setattr(cpu_weights, "has_bf16", lambda: False)
    with pytest.raises(ValueError, match="no instructions for bf16; use packed or int8"):
        lay_out_weights(model, "bf16")
    with pytest.raises(ValueError, match="model is in torch.bfloat16"):
        lay_out_weights(model.bfloat16())
