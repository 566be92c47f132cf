"""Weights laid out for drawing on a CPU, where a step has a few rows and reads all weights.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from vqrae.generation._kernels import have_kernels, linear, panels_of
from vqrae.mllm import UnifiedModel
from vqrae.tokenizer._cpu import has_bf16, mkl_is_at_home

CPUWeights = Literal["packed", "bf16", "int8"]
# MKL's product of so many rows is nearer to the memory's speed than oneDNN's.
_FEW_ROWS = 3


def lay_out_weights(
    model: UnifiedModel, kind: CPUWeights = "packed", *, kernels: bool | None = None
) -> UnifiedModel:
    """Lay the language model's matrices and the codes' rows of its head out anew, in place.

    torch's own product for 2 to 8 rows reads weights at a fraction of the memory's speed; our
    kernels come near it, and the next best are oneDNN's. "packed" computes what the plain layers
    do, in fp32 to rounding. "bf16" takes half the memory and rounds weights to bf16; those that
    were published so are not changed. "int8" keeps each output's weights as whole numbers of 8 bits
    with one scale, a quarter of the memory. With either, codes differ from the plain model's where
    two are nearly as likely.

    The model only draws and answers from then on: it can neither be trained nor saved.

    Args:
        kernels: whether our kernels multiply, which a C++ compiler ($CXX or c++) builds the first
            time, in some seconds; None uses them where that goes. Without them bf16 needs a CPU
            that has instructions for it, and inputs are rounded to bf16 for bf16 and int8.

    Raises:
        ValueError: for an unknown kind, a model that is not in fp32 on a CPU, kernels asked for
            that cannot be built, or, without them, a torch without oneDNN or bf16 on a CPU without
            instructions for it.
    """
    if kind not in get_args(CPUWeights):
        raise ValueError(f"weights must be one of {', '.join(get_args(CPUWeights))}, not {kind!r}")
    head = model.language_model.get_output_embeddings()
    if head.weight.device.type != "cpu" or head.weight.dtype != torch.float32:
        raise ValueError(
            f"{kind} weights are made of fp32 on a CPU, but the model is in {head.weight.dtype} on "
            f"{head.weight.device}; load it with device='cpu' in fp32"
        )
    if kernels and not have_kernels():
        raise ValueError("the kernels need a C++ compiler; install g++ or name yours as $CXX")
    if kernels is None:
        kernels = have_kernels()
    layer_of = partial(_Paneled, kind) if kernels else _library_layer(kind)
    first = model.config.code_offset
    last = first + model.config.codebook_size
    bias = getattr(head, "bias", None)
    with torch.no_grad():
        rows = head.weight[first:last], None if bias is None else bias[first:last]
        model.code_head = layer_of(*rows)
        decoder = model.language_model.get_decoder()
        for parent in list(decoder.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, layer_of(layer.weight, layer.bias))
    return model.eval()


def laid_out_for_kernels(model: UnifiedModel) -> bool:
    """Whether our kernels multiply in it."""
    return isinstance(model.code_head, _Paneled)


def _library_layer(kind: CPUWeights) -> type[nn.Module]:
    if kind != "int8" and not torch.backends.mkldnn.is_available():
        raise ValueError("this torch has no oneDNN to pack weights for; use plain weights")
    if kind == "bf16" and not has_bf16():
        raise ValueError("this CPU has no instructions for bf16; use packed or int8 weights")
    return {"packed": _Packed, "bf16": _BFloat16, "int8": _Int8}[kind]


class _Paneled(nn.Module):
    """A linear layer (M, I) -> (M, O) whose weights lie as our kernels read them."""

    def __init__(self, kind: CPUWeights, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self._outputs = len(weight)
        scale = None
        if kind == "bf16":
            weight = weight.bfloat16()
        elif kind == "int8":
            weight, scale = _whole_numbers(weight)
        self.register_buffer("_panels", panels_of(weight.detach()))
        self.register_buffer("_scale", scale)
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        product = linear(inputs, self._panels, self._scale, self._outputs)
        return product if self._bias is None else product + self._bias


class _Packed(nn.Module):
    """A linear layer (M, I) -> (M, O) in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        # As inductor does it where it freezes weights; the layout suits few rows and serves many.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 2)
        self._bias = None if bias is None else bias.detach().clone()
        self._plain = weight.detach() if mkl_is_at_home() else None

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        if self._plain is not None and len(rows) <= _FEW_ROWS:
            return nn.functional.linear(inputs, self._plain, self._bias)
        # oneDNN takes longer for two or three rows than for four: too few sums at a time.
        missing = 4 - len(rows) if 1 < len(rows) < 4 else 0
        if missing:
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
        product = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return product[: len(rows) - missing].view(*inputs.shape[:-1], -1)


class _BFloat16(_Packed):
    """The same of weights in bf16; sums are kept in fp32 within the product."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight.bfloat16(), None if bias is None else bias.bfloat16())
        self._plain = None

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.bfloat16()).to(inputs.dtype)


class _Int8(nn.Module):
    """A linear layer with weights of 8 bits, each output's scaled to its largest."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        numbers, scale = _whole_numbers(weight)
        self.register_buffer("_weight", numbers)
        self.register_buffer("_scale", scale.bfloat16())
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).bfloat16()
        product = torch.ops.aten._weight_int8pack_mm(rows, self._weight, self._scale)
        product = product.view(*inputs.shape[:-1], -1).to(inputs.dtype)
        return product if self._bias is None else product + self._bias


def _whole_numbers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(O, I) as int8, and the scale (O,) of each output."""
    scale = weight.detach().abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale
