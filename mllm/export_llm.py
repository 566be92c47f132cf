"""The language model of a unified model as a checkpoint of its own class.

What is Qwen3 or Llama inside becomes a Qwen3 or Llama folder with a larger vocabulary, which
transformers and engines that know the class can load without this package.

Shapes: B batch, L sequence, T text width, V text vocabulary, K codebook size, N image tokens.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from vqrae.data._writing import new_folder, write_json
from vqrae.mllm.modeling_unified import UnifiedModel, check_agreement
from vqrae.mllm.processing_unified import UnifiedProcessor, turn_format_for
from vqrae.tokenizer._loading import quiet_transformers
from vqrae.tokenizer.fingerprint import fingerprint

logger = logging.getLogger(__name__)

VOCABULARY = "vocabulary.json"


def export_language_model(
    model: UnifiedModel, processor: UnifiedProcessor, out: str | Path
) -> Path:
    """Write the language model to a folder that AutoModelForCausalLM and AutoTokenizer open.

    ::

        config.json, model.safetensors, generation_config.json   the language model, K codes and all
        tokenizer.json, tokenizer_config.json                    its text tokenizer, extended
        vocabulary.json                                          which ids are what; see vocabulary
        vqrae/                                                   the tokenizer of pictures

    The weights are the same bits, and so are its hidden states (B, L, T). Its logits (B, L, rows)
    begin with UnifiedModel's (B, L, V+3+K), scored by one product instead of two: where a processor
    sums the two in another order, the last bit may differ. Rows behind the codes, which round the
    vocabulary up, mean nothing. Text and codes were never scored against each other. Whoever
    samples must therefore allow the codes alone for the N tokens of a picture, and text alone for
    an answer.

    What a plain checkpoint has no place for:

    - code_positions, code_mixture: refused. Codes would be embedded, or scored, wrongly.
    - code_bias: added to the head's own bias where it has one (Phi). Heads of Qwen3, Llama and most
      others have none, and transformers ignores one in the file: refused, unless it is all zeros.
    - the projector: left out. The checkpoint reads text and codes, not pictures; embeddings of a
      prompt with pictures come from `UnifiedModel.embed`, to be given as `inputs_embeds`.
    - the tokenizer of pictures: beside it, in vqrae/, for `VQRAEModel.detokenize`.
    - guidance: two passes, left to whoever samples. config.guidance_scale is in vocabulary.json.

    An engine such as vLLM or SGLang serves the folder as any model of the class, with token ids in
    and out: `vqrae.generation.RemoteModel` draws through one, and docs/engines.md says what of it
    was run.

    Raises:
        ValueError: for a model of the kinds above, a processor of another model, or a folder that
            holds something already.
    """
    check_agreement(model, processor)
    _refuse_what_would_be_lost(model)
    language_model = model.language_model
    with new_folder(out) as aside, quiet_transformers():
        language_model.save_pretrained(aside, state_dict=_with_folded_bias(model))
        processor.tokenizer.save_pretrained(aside)
        # An answer ends where our own sampler ends it, whatever the language model came with.
        ends = GenerationConfig(
            eos_token_id=processor.end_of_turn_id,
            pad_token_id=processor.pad_id,
            bos_token_id=getattr(language_model.config, "bos_token_id", None),
        )
        ends.save_pretrained(aside)
        model.vqrae.save_pretrained(aside / "vqrae")
        processor.image_processor.save_pretrained(aside / "vqrae")
        write_json(aside / VOCABULARY, vocabulary(model, processor))
    logger.info(
        "%s: a %s of %d text tokens and %d codes; what reads pictures is not in it",
        out,
        type(language_model).__name__,
        model.config.text_size,
        model.config.codebook_size,
    )
    return Path(out)


def vocabulary(model: UnifiedModel, processor: UnifiedProcessor) -> dict[str, Any]:
    """What a client without this package must know, as JSON can hold it.

    text_size V, image_start_id, image_end_id, image_pad_id, code_offset, codebook_size K,
    num_image_tokens N, end_of_turn_id, max_length in tokens, guidance_scale and min_p (how the
    model draws best), turn_format (what stands around turns, see UnifiedProcessor), and
    `tokenizer`, the fingerprint of the tokenizer whose codes they are.
    """
    config = model.config
    names = ("text_size", "image_start_id", "image_end_id", "image_pad_id", "code_offset")
    names += ("codebook_size", "num_image_tokens", "guidance_scale", "min_p")
    return {
        **{name: getattr(config, name) for name in names},
        "end_of_turn_id": processor.end_of_turn_id,
        "max_length": processor.max_length,
        "turn_format": {
            name: getattr(processor, name) for name in turn_format_for(processor.tokenizer)
        },
        "tokenizer": fingerprint(model.vqrae),
    }


def _refuse_what_would_be_lost(model: UnifiedModel) -> None:
    if model.input_rows is not None:
        raise ValueError("rows of codes are still shared; call fold_code_rows before the export")
    config, kind = model.config, type(model.language_model).__name__
    lost = []
    if model.code_positions is not None:
        lost.append("code_positions=True (a vector for each place, added to embeddings of codes)")
    if model.code_mixture is not None:
        lost.append(f"code_mixture={config.code_mixture} (softmaxes that the head mixes)")
    if _has_code_bias(model) and _head_bias(model) is None:
        lost.append("code_bias=True (offsets of the codes' logits; this head has no bias)")
    if lost:
        raise ValueError(
            f"a plain {kind} checkpoint has no place for {', '.join(lost)}: it would draw other "
            "pictures; draw with vqrae.generation, or export a model trained with "
            "code_positions=False, code_mixture=1 and loss.code_rows='free'"
        )


def _has_code_bias(model: UnifiedModel) -> bool:
    # Zeros, where training drew all codes, change nothing.
    return model.code_bias is not None and bool(model.code_bias.any())


def _head_bias(model: UnifiedModel) -> nn.Parameter | None:
    return getattr(model.get_output_embeddings(), "bias", None)


@torch.no_grad()
def _with_folded_bias(model: UnifiedModel) -> dict[str, Tensor]:
    """The language model's weights, with code_bias in the head's bias; the model keeps its own."""
    weights = model.language_model.state_dict()
    if _has_code_bias(model):
        bias, first = _head_bias(model), model.config.code_offset
        (name,) = (n for n, p in model.language_model.named_parameters() if p is bias)
        weights[name] = weights[name].clone()
        weights[name][first : first + model.config.codebook_size] += model.code_bias.to(bias)
    return weights
