"""The built-in model's text tokenizer, trained here: byte-level BPE, so that any text survives."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vqrae.data.llava import IMAGE_MARK, read_records
from vqrae.data.shards import expand_shards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int = 512, *, fold: bool = False
) -> PreTrainedTokenizerFast:
    """Learns byte-level BPE merges from texts; the same texts give the same tokenizer.

    Every text, of any language, encodes and decodes to itself (folded, where asked for). Special
    tokens: `<|endoftext|>` (padding and end), `<|im_start|>` and `<|im_end|>` (turns).

    Args:
        texts: the corpus.
        vocab_size: tokens at most, specials and the 256 bytes included. A small corpus gives fewer.
        fold: read capitals as small letters and "colour" as "color", for a corpus that has neither:
            a model that never met "How" would take "How many" for any question at all.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [END_OF_TEXT, TURN_START, TURN_END]
    if vocab_size < 256 + len(specials):
        raise ValueError(
            f"a vocabulary of {vocab_size} cannot hold 256 bytes and {len(specials)} special "
            f"tokens; use at least {256 + len(specials)}"
        )
    tokenizer = Tokenizer(models.BPE())
    if fold:
        spelling = normalizers.Replace("colour", "color")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), spelling])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
    )


def scene_corpus(data_dir: str | Path) -> Iterator[str]:
    """Captions, questions, answers and plain text of the train split that `write_scenes` wrote.

    Texts come as a model sees them: a caption alone, a turn alone. Reads the shards and the
    LLaVA-style JSON, not the pictures.
    """
    train = Path(data_dir) / "train"
    for shard in expand_shards(train):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    yield from json.load(tar.extractfile(member))["captions"]
    for name in ("vqa.json", "text.json"):
        for record in read_records(train / name):
            for turn in record["conversations"]:
                yield turn["value"].replace(IMAGE_MARK, "").strip()
