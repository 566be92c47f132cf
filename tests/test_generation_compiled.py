"""Compiled steps draw what plain ones draw, and are compiled once for each shape."""

from __future__ import annotations

import pytest
import torch
from test_mllm_parts import tiny_model
from torch._dynamo.testing import CompileCounter
from vqrae.generation import compile_decoding, lay_out_weights, sample_codes
from vqrae.generation._step_attention import one_position
from vqrae.scripts import text_to_image


# Gemma 3 has layers with a sliding window.
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_compiled_steps_draw_the_same(family):
    torch._dynamo.reset()
    model, processor = tiny_model(family)
    texts = ("a", "a red circle above a blue square")
    prompts = [processor.encode_draw(text) for text in texts]
    unconditional = processor.encode_draw(unconditional=True)

    def draws(**options):
        return [
            sample_codes(model, some, unconditional, seeds=seeds, **options)
            for some, seeds in ((prompts, 4), (prompts[:1], 4), (prompts[::-1], 7))
        ]

    plain = draws()
    half = sample_codes(model, prompts, unconditional, guidance_interval=(0.0, 0.5))
    counter = CompileCounter()
    compile_decoding(model, backend=counter)
    for one, other in zip(draws(), plain, strict=True):
        assert torch.equal(one, other)
    # Four rows and two, whatever the prompts' lengths and the step.
    assert counter.frame_count == 2
    again = sample_codes(model, prompts, unconditional, guidance_interval=(0.0, 0.5))
    assert torch.equal(again, half)
    # From the middle on two rows: compiled already.
    assert counter.frame_count == 2
    torch._dynamo.reset()


def test_our_kernels_are_compiled_too():
    """And one model's graph is not taken for another's."""
    model, processor = tiny_model()
    prompts = [processor.encode_draw("a red circle")] * 2
    unconditional = processor.encode_draw(unconditional=True)
    plain = sample_codes(model, prompts, unconditional, seeds=4)
    drawn = []
    for kind in (None, "packed", "int8"):
        model, _ = tiny_model()
        if kind is not None:
            lay_out_weights(model, kind, kernels=True)
        steps = sample_codes(model, prompts, unconditional, seeds=4)
        compile_decoding(model, backend="eager")
        drawn.append(sample_codes(model, prompts, unconditional, seeds=4))
        assert torch.equal(drawn[-1], steps)
    assert torch.equal(drawn[0], plain) and torch.equal(drawn[1], plain)
    torch._dynamo.reset()


def test_prompts_of_one_token_that_are_alike():
    """Read once, though they look like a step."""
    model, _ = tiny_model()
    plain = sample_codes(model, [[5], [5]], [5], seeds=3)
    compile_decoding(model, backend="eager")
    assert torch.equal(sample_codes(model, [[5], [5]], [5], seeds=3), plain)
    torch._dynamo.reset()


def test_the_librarys_layouts_are_not_compiled():
    model, _ = tiny_model()
    with pytest.raises(ValueError, match="laid out for a CPU can be compiled only where"):
        compile_decoding(lay_out_weights(model, kernels=False))


@pytest.mark.parametrize("kernels", [True, False])
def test_the_command_compiles_large_models_as_their_weights_allow(kernels, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("vqrae.scripts._model._LARGE", 0)
    for where in ("_kernels", "cpu_weights"):
        monkeypatch.setattr(f"vqrae.generation.{where}.have_kernels", lambda: kernels)
    monkeypatch.setattr("vqrae.generation.compile_decoding", lambda m: seen.append(m.code_head))
    out = str(tmp_path / "out.png")
    text_to_image.main(["a red circle", "-o", out])
    assert seen == []
    text_to_image.main(["a red circle", "-o", out, "--compile"])
    assert (seen[0] is not None) == kernels


def test_attention_that_may_do_more_is_left_alone():
    """Such as eager attention, which alone caps its scores where a model wants that."""
    model, _ = tiny_model()
    config = model.language_model.config
    for name, within in (("sdpa", "vqrae_step"), ("eager", "eager")):
        model.language_model.set_attn_implementation(name)
        with one_position(model):
            assert config._attn_implementation == name
        with one_position(model, compiled=True):
            assert config._attn_implementation == within
        assert config._attn_implementation == name
