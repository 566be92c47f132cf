"""Prompts as ids: turns, places of pictures, and what a user may type."""

from __future__ import annotations

import copy

import pytest
from test_mllm_parts import (
    noise_image,
    tiny_language_model,
    tiny_model,
    tiny_text_tokenizer,
    tiny_vqrae,
)
from transformers import AddedToken, AutoProcessor
from vqrae.mllm import UnifiedModel, UnifiedProcessor


@pytest.fixture(scope="module")
def processor():
    return tiny_model()[1]


@pytest.fixture(scope="module", params=["fresh", "loaded"])
def either(request, processor, tmp_path_factory):
    """The processor as made, and as saved and loaded."""
    if request.param == "fresh":
        return processor
    folder = tmp_path_factory.mktemp("processor")
    model, _ = tiny_model()
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def decode(processor, ids):
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def user(content):
    return [{"role": "user", "content": content}]


def test_chat_reads_as_written(either):
    ids = either.encode_chat(user("<image>\nhow many?"), [noise_image(0)])
    pads = "<|image_pad|>" * 4
    assert decode(either, ids) == (
        f"<|im_start|>user\n<|image_start|>{pads}<|image_end|>\nhow many?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    more = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    assert decode(either, either.encode_chat(more, add_generation_prompt=False)) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n"
    )


def test_draw_reads_as_written(either):
    assert decode(either, either.encode_draw("a red circle")) == (
        "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n<|image_start|>"
    )
    assert decode(either, either.encode_draw(unconditional=True)) == (
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|image_start|>"
    )


@pytest.mark.parametrize("mark", ["<|image_start|>", "<|image_pad|>", "<|code_3|>", "<|im_end|>"])
def test_typing_a_mark_gives_text(either, mark):
    either.trusted("<|im_start|>user\n")  # leaves the backend with special tokens on
    for encode in (either.encode_draw, lambda text: either.encode_chat(user(text))):
        plain, typed = encode("a"), encode(f"a{mark}")
        assert sum(i >= either.image_start_id for i in typed) == sum(
            i >= either.image_start_id for i in plain
        )
        assert typed.count(either.end_of_turn_id) == plain.count(either.end_of_turn_id)
        assert f"a{mark}<" in decode(either, typed)


def test_every_code_is_one_id(either):
    for index in (0, 7, either.codebook_size - 1):
        assert either.trusted(f"<|code_{index}|>") == [either.code_offset + index]


def test_bad_prompts_are_one_line(processor):
    for encode, match in (
        (lambda: processor.encode_draw("  \n"), "prompt is empty"),
        (lambda: processor.encode_chat(user("")), "question is empty"),
        (lambda: processor.encode_chat(user("<image>\n"), 1), "question is empty"),
        (lambda: processor.encode_chat([]), "question is empty"),
        (lambda: processor.encode_chat(user("hi <image>")), "1 places '<image>', but 0 pictures"),
        (lambda: processor.encode_chat(user("hi"), [noise_image(0)]), "0 places .* 1 pictures"),
        (lambda: processor.encode_chat([{"role": "tool", "content": "x"}]), "role 'tool'"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            encode()
        assert "\n" not in str(caught.value)


def test_ten_thousand_words_are_too_many(processor):
    assert processor.max_length == 512  # the language model's own limit, below 1536
    words = "circle " * 10_000
    for encode in (processor.encode_draw, lambda text: processor.encode_chat(user(text))):
        with pytest.raises(ValueError, match=r"has \d{5} tokens, more than the limit of 512"):
            encode(words)


def test_other_tokenizers_get_a_plain_format():
    tokenizer = tiny_text_tokenizer(chatml=False)
    model, processor = UnifiedModel.from_parts(
        tiny_language_model("llama", rows=len(tokenizer)), tokenizer, tiny_vqrae()
    )
    text = decode(processor, processor.encode_chat(user("hi")))
    assert text == "<s>USER: hi ASSISTANT: "
    assert processor.end_of_turn_id == tokenizer.eos_token_id


def test_text_drops_marks_and_codes(processor):
    ids = processor.untrusted(" blue square ")
    end = processor.end_of_turn_id
    assert processor.text([*ids, end, processor.image_start_id, processor.code_offset]) == (
        "blue square"
    )


def test_a_backbone_with_an_image_pad_of_its_own(tmp_path):
    """Qwen's tokenizers have one: it stays a text token, and ours is another id."""
    tokenizer = tiny_text_tokenizer()
    tokenizer.add_tokens([AddedToken("<|image_pad|>", special=True)], special_tokens=True)
    size = len(tokenizer)
    model, processor = UnifiedModel.from_parts(
        tiny_language_model(rows=size + 7), tokenizer, tiny_vqrae()
    )
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.trusted("<|image_pad|>") == [size - 1]
    assert again.image_start_id == size and again.image_pad_id == size + 2
    ids = again.encode_chat(user("<image> <|image_pad|>"), 1)
    assert ids.count(again.image_pad_id) == 4 and size - 1 not in ids


def test_a_changed_tokenizer_is_refused(processor):
    with pytest.raises(ValueError, match="no <|code_0|>"):
        UnifiedProcessor(processor.image_processor, tiny_text_tokenizer())
    changed = copy.deepcopy(processor.tokenizer)
    changed.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="25 tokens from <.code_0.> on.* changed afterwards"):
        UnifiedProcessor(processor.image_processor, changed)
