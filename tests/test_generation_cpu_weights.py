"""Weights laid out for drawing on a CPU: the same numbers, or nearly, from less memory."""

from __future__ import annotations

import pytest
import torch
from test_mllm_parts import FAMILIES, tiny_model
from vqrae.generation import cpu_weights, lay_out_weights, sample_codes
from vqrae.generation.cpu_weights import _BFloat16, _Int8, _Packed, _Paneled
from vqrae.tokenizer._cpu import has_bf16

# Ours, and the library's where no compiler is.
KERNELS = [True, False]


@pytest.mark.parametrize("rows", [(3,), (1, 1), (2, 7)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_home", [False, True])
def test_library_layers_equal_the_plain_one(rows, bias, at_home, monkeypatch):
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
    for layer in (small, _Paneled("int8", plain.weight, plain.bias)):
        stored = sum(b.numel() * b.element_size() for b in layer.buffers())
        assert stored < plain.weight.numel() * 4 * 0.3


# Widths that are and are not whole panels and vectors; rows below, at and above a tile.
@pytest.mark.parametrize("inputs, outputs", [(96, 160), (33, 70), (1, 1)])
@pytest.mark.parametrize("rows", [(1, 1), (3,), (2, 8), (0,)])
def test_our_layers_equal_the_plain_one(inputs, outputs, rows):
    torch.manual_seed(0)
    x = torch.randn(*rows, inputs)
    plain = torch.nn.Linear(inputs, outputs)
    rounded = {"packed": plain.weight, "bf16": plain.weight.bfloat16().float()}
    scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
    rounded["int8"] = (plain.weight / scale).round() * scale
    with torch.no_grad():
        for kind, weight in rounded.items():
            layer = _Paneled(kind, plain.weight, plain.bias)
            torch.testing.assert_close(layer(x), x @ weight.T + plain.bias)
            # As a view whose numbers do not lie together.
            torch.testing.assert_close(layer(x[..., None].expand(*x.shape, 2)[..., 1]), layer(x))


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    x = torch.randn(21, 300)
    layer = _Paneled("packed", torch.randn(130, 300), None)
    together = layer(x)
    for rows in range(1, 21):
        assert torch.equal(layer(x[:rows]), together[:rows])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_draw_the_same(family, kernels):
    model, processor = tiny_model(family)
    prompts = [processor.encode_draw(text) for text in ("a", "a red circle above a blue square")]
    unconditional = processor.encode_draw(unconditional=True)
    plain = sample_codes(model, prompts, unconditional, seeds=4)
    lay_out_weights(model, kernels=kernels)
    assert torch.equal(sample_codes(model, prompts, unconditional, seeds=4), plain)


@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_logits_are_near(kernels):
    models = [tiny_model()[0] for _ in range(2)]
    lay_out_weights(models[1], "int8", kernels=kernels)
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
        lay_out_weights(model, "bf16", kernels=False)
    monkeypatch.setattr(cpu_weights, "have_kernels", lambda: False)
    with pytest.raises(ValueError, match=r"need a C\+\+ compiler; install g\+\+ or name yours"):
        lay_out_weights(model, kernels=True)
    with pytest.raises(ValueError, match="model is in torch.bfloat16"):
        lay_out_weights(model.bfloat16())
