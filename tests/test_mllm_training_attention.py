"""Packed rows are trained with other attentions, to the same losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_mllm_objective import SAMPLES, objective
from test_mllm_parts import tiny_model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from vqrae.generation import sample_codes
from vqrae.mllm import UnifiedObjectiveConfig, training_attention

FLASH = "flash_attention_2"


def plain_flash(module, query, key, value, attention_mask, scaling=None, **told):
    """What the package's kernel for sequences of any length computes, one after the other.
    (1, H, L, D) -> (1, L, H, D). Outside of training only what it is told would do."""
    assert module.training and len(query) == 1 and attention_mask is None
    edges = told["cu_seq_lens_q"]
    assert edges.dtype == torch.int32 and torch.equal(edges, told["cu_seq_lens_k"])
    assert int(edges.diff().max()) == told["max_length_q"] == told["max_length_k"]
    assert (edges[0], edges[-1]) == (0, query.shape[2])
    parts = [
        F.scaled_dot_product_attention(
            *(x[:, :, start:stop] for x in (query, key, value)),
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def losses_and_gradients(ours):
    loss, logs = ours(ours.collate(SAMPLES), 0)
    loss.backward()
    return loss, logs, [p.grad for p in ours.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_flash_is_told_where_sequences_end(family, checkpointed, monkeypatch):
    expected = losses_and_gradients(objective(family))
    # There is no such kernel on a CPU: everything but it.
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, plain_flash)
    ours = objective(family, gradient_checkpointing=checkpointed)
    monkeypatch.setattr(
        PreTrainedModel, "_check_and_adjust_attn_implementation", lambda _, name, *__, **___: name
    )
    monkeypatch.setattr("vqrae.mllm.objective.attention_name", lambda *_: FLASH)
    found = losses_and_gradients(ours.train())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # It draws by its own: a kernel for training would refuse.
    draw = [ours.processor.encode_draw("a red circle")]
    ours.model.eval()
    sample_codes(ours.model, draw, ours.processor.encode_draw(unconditional=True))
    assert ours.model.language_model.config._attn_implementation == "sdpa"
    ours.model.train()
    assert ours.model.language_model.config._attn_implementation == FLASH


@torch.no_grad()
def test_flex_keeps_packed_sequences_apart():
    """Its backward pass is for GPUs only."""
    ours = objective()
    batch = ours.collate(SAMPLES)
    expected, _ = ours.read(batch)
    ours.model.set_training_attention("flex_attention")
    found, _ = ours.train().read(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be():
    model, _ = tiny_model()
    with pytest.raises(ValueError, match="'flash' needs a GPU, the package flash-attn and"):
        training_attention.attention_name("flash", model.language_model)
    with pytest.raises(ValueError, match="'flex' cannot be trained on a CPU"):
        objective(attention="flex").read({})
    with pytest.raises(ValueError, match="no training with attention 'flash_attention_2'"):
        model.set_training_attention(FLASH)
    assert training_attention.attention_name("auto", model.language_model) == "sdpa"
    assert UnifiedObjectiveConfig().attention == "auto"
