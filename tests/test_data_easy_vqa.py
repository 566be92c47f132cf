"""The easy-vqa package in the formats that training and evaluation read."""

from itertools import islice

import pytest
from vqrae.data import LlavaDataset, ShardDataset
from vqrae.data.easy_vqa import write_easy_vqa
from vqrae.eval.vqa import read_questions


def test_every_question_arrives(tmp_path):
    out = write_easy_vqa(tmp_path / "easy")
    train, test = (read_questions(out / split / "vqa.json") for split in ("train", "test"))
    assert (len(train), len(test)) == (38575, 9673)
    assert {item.type for item in test} == {"yesno", "shape", "color"}
    first = next(item for item in train if item.image.name == "train-000000.png")
    assert (first.question, first.answer) == ("what is the blue shape?", "rectangle")
    [sample] = islice(iter(ShardDataset(out / "train", shuffle=0, epochs=1)), 1)
    assert sample["text"] == "a blue rectangle" and sample["image"].size == (64, 64)
    [talk] = islice(iter(LlavaDataset(out / "test" / "vqa.json", seed=0)), 1)
    assert len(talk["images"]) == 1 and len(talk["conversations"]) % 2 == 0
    assert write_easy_vqa(out) == out
    with pytest.raises(ValueError, match="something other than easy-vqa"):
        write_easy_vqa(tmp_path)
