"""The vocabulary, the config and the model as a whole; also tiny parts that other tests use."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from vqrae.mllm import UnifiedConfig, UnifiedModel, UnifiedProcessor, check_agreement
from vqrae.mllm.packing import arrange
from vqrae.tokenizer import VQRAEConfig, VQRAEModel

CODES = 24
FAMILIES = {
    "qwen3": (Qwen3Config, True),
    "llama": (LlamaConfig, False),
    "qwen2": (Qwen2Config, False),
    "gemma": (GemmaConfig, True),
    "gemma3": (Gemma3TextConfig, True),
}


def tiny_text_tokenizer(chatml: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if chatml else ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["a red circle above a blue square user assistant"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if chatml else marks[0],
        eos_token=marks[-1],
        pad_token=marks[0] if chatml else None,
    )


def tiny_vqrae(seed: int = 0) -> VQRAEModel:
    torch.manual_seed(seed)
    encoder = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return VQRAEModel(VQRAEConfig(encoder_config=encoder, codebook_size=CODES, code_dim=20))


def tiny_language_model(family: str = "qwen3", rows: int | None = None, seed: int = 0):
    config_class, tied = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=rows or len(tiny_text_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=bool(tied),
        initializer_range=0.3,  # far from uniform predictions, so that a wrong id shows
        **({} if family in ("llama", "qwen2") else {"head_dim": 16}),
    )
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_model(family: str = "qwen3", **options) -> tuple[UnifiedModel, UnifiedProcessor]:
    return UnifiedModel.from_parts(
        tiny_language_model(family), tiny_text_tokenizer(), tiny_vqrae(), **options
    )


def noise_image(seed: int) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(array)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_untouched_by_the_codes(family):
    before = tiny_language_model(family)
    text = before.config.vocab_size
    language_model = copy.deepcopy(before)
    model, _ = UnifiedModel.from_parts(language_model, tiny_text_tokenizer(), tiny_vqrae())
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(embeddings) == text + 3 + CODES == model.config.text_config.vocab_size
    assert torch.equal(embeddings[:text], before.get_input_embeddings().weight)
    assert torch.equal(head[:text], before.get_output_embeddings().weight)
    assert (embeddings is head) == FAMILIES[family][1]
    ids = torch.randint(0, text, (3, 7))
    with torch.no_grad():
        expected = before(input_ids=ids).logits
        out = model(ids)
        torch.testing.assert_close(out.logits[..., :text], expected)
        assert torch.equal(out.logits[..., : text + 3], model.text_logits(out.hidden_states))
        assert torch.equal(out.logits[..., text + 3 :], model.code_logits(out.hidden_states))


def test_new_rows_follow_the_text_rows():
    rows = 4000
    language_model = tiny_language_model("llama", rows=rows)
    with torch.no_grad():
        language_model.get_input_embeddings().weight.mul_(torch.linspace(0.1, 2, 32)).add_(0.5)
    model, _ = UnifiedModel.from_parts(
        language_model, tiny_text_tokenizer(), tiny_vqrae(), codes_like_codebook=False
    )
    text, new = model.get_input_embeddings().weight.split([len(tiny_text_tokenizer()), 3 + CODES])
    assert len(model.get_input_embeddings().weight) < rows  # padding rows are not kept
    assert (new.mean(0) - text.mean(0)).abs().max() < 3 * text.std(0).max() / len(new) ** 0.5
    assert torch.corrcoef(torch.stack([new.std(0), text.std(0)]))[0, 1] > 0.9


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_rows_are_rounded_up_and_the_surplus_is_never_scored(family, tmp_path):
    plain, _ = tiny_model(family)
    model, processor = tiny_model(family, rows_multiple=64)
    layout = plain.config.code_offset + CODES
    rows = -(-layout // 64) * 64
    assert layout < rows == len(model.get_output_embeddings().weight)
    assert rows == model.config.text_config.vocab_size
    text = plain.config.image_start_id
    for table in ("get_input_embeddings", "get_output_embeddings"):
        one, two = getattr(plain, table)().weight, getattr(model, table)().weight
        assert torch.equal(one[:text], two[:text])
    ids = torch.tensor([[1, 2, processor.image_start_id, processor.code_offset]])
    assert model(ids).logits.shape[-1] == layout
    model.save_pretrained(tmp_path)
    again = UnifiedModel.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("like", [True, False])
def test_similar_codes_start_nearer(like):
    vqrae = tiny_vqrae()
    with torch.no_grad():
        vqrae.quantizer.codebook[1::2] = vqrae.quantizer.codebook[::2] + 1e-3
    model, _ = UnifiedModel.from_parts(
        tiny_language_model(), tiny_text_tokenizer(), vqrae, codes_like_codebook=like
    )
    codes = model.get_input_embeddings().weight[model.config.code_offset :]
    twins = (codes[1::2] - codes[::2]).norm(dim=1).mean()
    others = torch.nn.functional.pdist(codes).mean()
    assert (twins < 0.8 * others) == like


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_bit_for_bit(family, tmp_path):
    model, processor = tiny_model(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, again = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, UnifiedModel) and isinstance(again, UnifiedProcessor)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), UnifiedConfig)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == FAMILIES[family][1]
    assert not any(p.requires_grad for p in loaded.vqrae.parameters())
    assert all(p.requires_grad for p in loaded.language_model.parameters())
    check_agreement(loaded, again)
    batch = again("what is it?", noise_image(0))
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_tokenizer_stays_frozen_and_in_eval_mode():
    model, _ = tiny_model()
    model.train()
    assert model.training and model.language_model.training and not model.vqrae.training
    assert not any(p.requires_grad for p in model.vqrae.parameters())


def test_losses_equal_a_plain_reference():
    model, processor = tiny_model("llama")
    config = model.config
    torch.manual_seed(0)
    ids = torch.randint(0, config.text_size, (2, 12))
    ids[:, 5:9] = config.code_offset + torch.randint(0, CODES, (2, 4))
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels, return_logits=True)
    text, codes = [], []
    for row in range(2):
        for place in range(1, 12):
            label, logits = int(labels[row, place]), out.logits[row, place - 1]
            if label >= config.code_offset:
                codes.append(
                    -logits[config.code_offset :].log_softmax(0)[label - config.code_offset]
                )
            elif label >= 0:
                text.append(-logits[: config.code_offset].log_softmax(0)[label])
    torch.testing.assert_close(out.text_losses, torch.stack(text))
    torch.testing.assert_close(out.code_losses, torch.stack(codes))
    torch.testing.assert_close(out.loss, torch.stack(text).mean() + torch.stack(codes).mean())


def test_pictures_stand_at_their_pads():
    model, processor = tiny_model()
    batch = processor("<image> and <image>?", [noise_image(0), noise_image(1)])
    embeddings = model.embed(**batch)
    pads = batch["input_ids"] == model.config.image_pad_id
    expected = model.projector(model.vqrae.encode(batch["pixel_values"])).flatten(0, 1)
    assert torch.equal(embeddings[pads], expected)
    plain = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(embeddings[~pads], plain[~pads])
    with pytest.raises(ValueError, match="places for 8 image tokens, but the pictures give 4"):
        model.embed(batch["input_ids"], batch["pixel_values"][:1])
    with pytest.raises(ValueError, match="give 0"):
        model.embed(batch["input_ids"])


def test_config_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no field 'image_strat_id'.*image_start_id"):
        UnifiedConfig(image_strat_id=3)
    model, _ = tiny_model()
    fields = model.config.to_diff_dict()
    with pytest.raises(ValueError, match="code_offset is 7, but .* 297"):
        UnifiedConfig.from_dict(fields | {"code_offset": 7})
    with pytest.raises(ValueError, match=f"codebook_size is 99, but .* {CODES}"):
        UnifiedConfig.from_dict(fields | {"codebook_size": 99})


def test_disagreement_names_both_values():
    model, processor = tiny_model()
    processor.code_offset += 1
    with pytest.raises(ValueError, match="code_offset is 297 in the model but 298"):
        check_agreement(model, processor)


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="294 tokens, but the language model only 100 rows"):
        UnifiedModel.from_parts(tiny_language_model(rows=100), tiny_text_tokenizer(), tiny_vqrae())
    _, processor = tiny_model()
    with pytest.raises(ValueError, match="code_0.* already"):
        UnifiedModel.from_parts(tiny_language_model(), processor.tokenizer, tiny_vqrae())
    gemma = Gemma2Config(
        vocab_size=294,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.01,
        pad_token_id=None,
    )
    capped = AutoModelForCausalLM.from_config(gemma)
    with pytest.raises(ValueError, match="alters its logits"):
        UnifiedModel.from_parts(capped, tiny_text_tokenizer(), tiny_vqrae())


def test_arrange_fills_rows():
    lengths = [3, 9, 2, 4, 5, 1]
    rows = arrange(lengths, 9)
    assert sorted(index for row in rows for index in row) == list(range(6))
    assert all(sum(lengths[index] for index in row) <= 9 for row in rows)
    assert len(rows) == 3
