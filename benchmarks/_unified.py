"""A unified model of Qwen3's vocabulary and the paper's codebook, with hardly a tokenizer in it."""

from __future__ import annotations

TEXT, CODES = 151_936, 16_384


def text_config(**sizes):
    """A Qwen3 with the marks and the codes, embeddings tied; `sizes` are its own fields."""
    from transformers import Qwen3Config

    ends = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return Qwen3Config(vocab_size=TEXT + 3 + CODES, tie_word_embeddings=True, **(ends | sizes))


def unified_model(text, image_size: int):
    """Random weights; a picture has (image_size / 16)^2 codes."""
    from transformers import SiglipVisionConfig
    from vqrae.mllm import UnifiedConfig, UnifiedModel
    from vqrae.tokenizer import VQRAEConfig

    encoder = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=image_size,
        patch_size=16,
    )
    vqrae = VQRAEConfig(encoder_config=encoder, codebook_size=CODES, code_dim=8)
    return UnifiedModel(UnifiedConfig(text_config=text, vqrae_config=vqrae))
