"""Judges of the real classes, tiny and random, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

# As older COCO lists spell some of the classes.
OLD_WORDS = {3: "motorbike", 4: "aeroplane", 57: "sofa", 58: "pottedplant", 60: "diningtable"}


def save_mask2former(folder: Path, names: list[str], *, sure_of: int | None = None) -> Path:
    """sure_of: the class that every query gives."""
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_queries=6, id2label=dict(enumerate(names)),
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    if sure_of is not None:
        torch.nn.init.zeros_(model.class_predictor.weight)
        torch.nn.init.zeros_(model.class_predictor.bias)
        model.class_predictor.bias.data[sure_of] = 12.0
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    Mask2FormerImageProcessor(size=size, size_divisor=32).save_pretrained(folder)
    return folder


def save_words(folder: Path, texts: list[str], **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    words = sorted({word for text in texts for word in text.lower().replace("-", " - ").split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: number for number, word in enumerate([*names, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", eos_token="[SEP]", bos_token="[CLS]", **special,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def save_clip(folder: Path, texts: list[str]) -> Path:
    tokenizer = save_words(folder, texts)
    torch.manual_seed(1)
    size = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = CLIPConfig(
        text_config=size | {
            "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder


def save_blip(folder: Path, texts: list[str]) -> Path:
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForQuestionAnswering,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir()
    tokenizer = _bert(folder, texts, BertTokenizerFast)
    torch.manual_seed(2)
    size = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = BlipConfig(
        text_config=size | {
            "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "bos_token_id": 2,
            "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "projection_dim": 16,
        },
        vision_config=size | {"image_size": 32, "patch_size": 16},
        image_text_hidden_size=16,
    )  # fmt: skip
    BlipForQuestionAnswering(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=side), tokenizer).save_pretrained(folder)
    return folder


def save_vilt(folder: Path, texts: list[str], *, answer: str) -> Path:
    """answer: what it says to everything."""
    from transformers import (
        BertTokenizerFast,
        ViltConfig,
        ViltForQuestionAnswering,
        ViltImageProcessor,
        ViltProcessor,
    )

    folder.mkdir()
    tokenizer = _bert(folder, texts, BertTokenizerFast)
    labels = ["no", "yes", "a dog"]
    config = ViltConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, image_size=32, patch_size=16, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    model = ViltForQuestionAnswering(config)
    model.classifier[-1].bias.data[labels.index(answer)] = 50.0
    model.save_pretrained(folder)
    processor = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def _bert(folder: Path, texts: list[str], class_: type):
    words = sorted({word.strip("?.") for text in texts for word in text.lower().split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", "yes", "no"]
    lines = [*names, *(w for w in words if w not in names)]
    (folder / "vocab.txt").write_text("\n".join(lines))
    return class_(vocab={word: number for number, word in enumerate(lines)})


def save_llava(folder: Path, texts: list[str]) -> Path:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = save_words(folder, [*texts, "user assistant yes no"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    place = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(3)
    size = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=32, patch_size=16),
        text_config=LlamaConfig(
            **size, vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=3, pad_token_id=0
        ),
        image_token_index=place,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    template = (
        "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
        "{% endfor %}assistant"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side), tokenizer, patch_size=16,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    return folder
