"""Writing the scenes world: the formats, the same bytes for a seed, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vqrae.data import (
    HELD_OUT_PAIRS,
    Scene,
    is_held_out,
    render,
    scene_corpus,
    train_text_tokenizer,
    write_scenes,
)
from vqrae.data.text_tokenizer import END_OF_TEXT, TURN_END, TURN_START

SIZES = {"train": 60, "test": 25, "shard_size": 20, "prompts_per_category": 4}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "out", **SIZES)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        infos = tar.getmembers()
        assert all(info.mtime == 0 and info.uid == 0 and not info.uname for info in infos)
        return {info.name: tar.extractfile(info).read() for info in infos}


def test_layout(written):
    assert sorted(p.name for p in written.iterdir()) == ["scenes.json", "test", "train"]
    for split, shards in (("train", 3), ("test", 2)):
        assert len(list((written / split).glob("shard-*.tar"))) == shards
        assert len(list((written / split / "images").iterdir())) == SIZES[split]
    manifest = json.loads((written / "scenes.json").read_text())
    assert manifest["train"] == 60 and len(manifest["held_out_pairs"]) == 8


@pytest.mark.parametrize("split", ["train", "test"])
def test_shards_hold_what_they_describe(written, split):
    keys = []
    for shard in sorted((written / split).glob("*.tar")):
        files = members(shard)
        for key in sorted({name.split(".")[0] for name in files}):
            facts = json.loads(files[f"{key}.json"])
            scene = Scene.from_dict(facts["scene"])
            assert is_held_out(scene) == (split == "test")
            assert len(facts["captions"]) == 3
            assert files[f"{key}.txt"].decode() == facts["captions"][0]
            path = written / split / "images" / f"{key}.png"
            assert path.read_bytes() == files[f"{key}.png"]
            assert np.array_equal(Image.open(path), render(scene))
            keys.append(key)
    assert len(keys) == len(set(keys)) == SIZES[split]
    records = json.loads((written / split / "vqa.json").read_text())
    assert [record["id"] for record in records] == keys
    for record in records:
        turns = record["conversations"]
        assert (written / split / record["image"]).is_file()
        assert len(turns) == 2 * len(record["question_types"]) >= 4
        assert turns[0]["value"].startswith("<image>\n")
        assert sum(turn["value"].count("<image>") for turn in turns) == 1


def test_no_train_text_names_a_held_out_pair(written):
    pattern = re.compile("|".join(rf"\b{color} {shape}" for color, shape in HELD_OUT_PAIRS))
    texts = list(scene_corpus(written))
    assert len(texts) > 60 * 3 + 60 * 4
    assert not [text for text in texts if pattern.search(text)]
    assert "<image>" not in " ".join(texts)


@pytest.mark.parametrize(("name", "tags"), [("geneval", 6), ("more", 3)])
def test_prompt_files(written, name, tags):
    lines = (written / "test" / f"{name}.jsonl").read_text().splitlines()
    assert len(lines) == tags * 4
    assert all(json.loads(line)["prompt"] for line in lines)


def test_same_seed_same_bytes_and_another_seed_others(written, tmp_path):
    again = write_scenes(tmp_path / "again", **SIZES)
    assert digest(again) == digest(written)
    other = digest(write_scenes(tmp_path / "other", **SIZES, seed=1))
    same = [name for name, value in digest(written).items() if other[name] == value]
    assert same == ["train/text.json"]


def test_written_once(written):
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    assert write_scenes(written, **SIZES) == written
    assert before == {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    with pytest.raises(ValueError, match=r"holds other scenes \(seed differ\)"):
        write_scenes(written, **SIZES, seed=5)


def test_foreign_folders_and_bad_counts(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="something other than scenes"):
        write_scenes(tmp_path / "mine", **SIZES)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(ValueError, match="train must be at least 1"):
        write_scenes(tmp_path / "x", train=0, test=1)
    (tmp_path / "empty").mkdir()
    assert (write_scenes(tmp_path / "empty", train=2, test=2) / "scenes.json").is_file()


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    import sys

    module = sys.modules["vqrae.data.write_scenes"]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "geneval_prompts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", **SIZES)
    assert list(tmp_path.iterdir()) == []


# The text tokenizer, trained on what was written


@pytest.fixture(scope="module")
def tokenizer(written):
    return train_text_tokenizer(scene_corpus(written), 512)


def test_any_text_survives(tokenizer):
    for text in ("a photo of a red circle", "Zürich, 猫 and 🦊\n\tx  y", "", " leading"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < len(tokenizer) <= 512


def test_scene_words_are_single_tokens(tokenizer):
    assert len(tokenizer("a photo of a red circle")["input_ids"]) == 6


def test_specials(tokenizer):
    ids = tokenizer.convert_tokens_to_ids([END_OF_TEXT, TURN_START, TURN_END])
    assert len(set(ids)) == 3
    assert (tokenizer.pad_token, tokenizer.eos_token) == (END_OF_TEXT, TURN_END)
    assert tokenizer(TURN_START)["input_ids"] == [ids[1]]
    typed = tokenizer(TURN_START, split_special_tokens=True)["input_ids"]
    assert not set(typed) & set(ids) and tokenizer.decode(typed) == TURN_START


def test_same_corpus_same_bytes_and_auto_loading(tokenizer, written, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "a")
    train_text_tokenizer(scene_corpus(written), 512).save_pretrained(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    text = f"{TURN_START}user\nwhat color is the star?{TURN_END}\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.eos_token == TURN_END and loaded.pad_token == END_OF_TEXT
    assert len(loaded) == len(tokenizer)


def test_folding_reads_capitals_and_both_spellings_but_lets_no_mark_in(written, tokenizer):
    folded = train_text_tokenizer(scene_corpus(written), 512, fold=True)
    plain = tokenizer("what color is the star?")["input_ids"]
    assert folded("What Colour is the STAR?")["input_ids"] == plain
    assert tokenizer("What Colour is the STAR?")["input_ids"] != plain
    for typed in (TURN_START, TURN_START.upper()):
        ids = folded(typed, split_special_tokens=True)["input_ids"]
        assert folded.convert_tokens_to_ids(TURN_START) not in ids
    assert folded.convert_tokens_to_ids(TURN_START) not in folded(TURN_START.upper())["input_ids"]


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="use at least 259"):
        train_text_tokenizer(["a"], 100)
