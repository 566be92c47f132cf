"""Corpora to codes: the codes themselves, a kill in the middle, and training on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_data_loaders import make_folder, make_parquet, make_shards, png, write_shard
from test_mllm_objective import shard
from test_mllm_parts import tiny_model
from vqrae.data import CodeDataset, open_pairs
from vqrae.mllm import UnifiedObjective, UnifiedObjectiveConfig
from vqrae.scripts.main import main
from vqrae.tokenizer import VQRAEImageProcessor
from vqrae.tokenizer.encode_corpus import encode_corpus, units_of
from vqrae.tokenizer.fingerprint import fingerprint


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model()[0].vqrae


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("make", [make_shards, make_folder, make_parquet])
def test_codes_are_the_tokenizer_s(tokenizer, tmp_path, make):
    source = make(tmp_path / "source")
    manifest = encode_corpus(tokenizer, str(source), tmp_path / "codes", batch_size=7, run=12)
    assert manifest["samples"] == 30 and manifest["finished"]
    assert len(manifest["units"]) == {make_shards: 3, make_folder: 3, make_parquet: 2}[make]
    pictures = {sample["text"]: sample for sample in open_pairs(source, epochs=1)}
    processor = VQRAEImageProcessor(tokenizer.config.image_size)
    found = list(CodeDataset(tmp_path / "codes", epochs=1))
    assert sorted(sample["text"] for sample in found) == sorted(pictures)
    for sample in found:
        original = pictures[sample["text"]]
        codes = tokenizer.tokenize(processor(original["image"])["pixel_values"])[0]
        assert sample["codes"].tolist() == codes.tolist()
        assert sample["json"] == original["json"]
        assert sample["key"] == original["key"].replace(".", "_")


CHILD = """
import sys, time
from test_mllm_parts import tiny_model
from vqrae.tokenizer.encode_corpus import encode_corpus
model = tiny_model()[0].vqrae
plain = model.tokenize
def slow(pixels):
    time.sleep(0.02)
    return plain(pixels)
model.tokenize = slow
encode_corpus(model, sys.argv[1], sys.argv[2], batch_size=1)
"""


def test_killed_and_resumed_by_more_ranks_nothing_is_lost_or_doubled(tokenizer, tmp_path):
    source = make_shards(tmp_path / "source", shards=6)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    encode_corpus(tokenizer, str(source), whole)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(parted)], cwd=Path(__file__).parent
    )
    deadline = time.monotonic() + 60
    while not (parted / "s-001.tar").is_file():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = {path.name for path in parted.glob("s-*.tar")}
    assert 2 <= len(done) < 6
    with pytest.raises(ValueError, match="is not finished; run the same vqrae encode again"):
        CodeDataset(parted)
    (parted / ".s-004.tar.1.tmp").write_bytes(b"left")
    times = {name: os.stat(parted / name).st_mtime_ns for name in done}
    for rank in (1, 2, 0):  # as three ranks would; the last one marks the end
        encode_corpus(tokenizer, str(source), parted, rank=rank, world_size=3)
    assert all(os.stat(parted / name).st_mtime_ns == when for name, when in times.items())
    assert files(parted) == files(whole)


def test_another_tokenizer_is_refused(tokenizer, tmp_path):
    source = str(make_folder(tmp_path / "source"))
    encode_corpus(tokenizer, source, tmp_path / "codes")
    model, processor = tiny_model()
    with torch.no_grad():
        model.vqrae.decoder.position.add_(1)
    assert fingerprint(model.vqrae) == fingerprint(tokenizer)
    with torch.no_grad():
        model.vqrae.quantizer.transform.add_(0.01)
    assert fingerprint(model.vqrae) != fingerprint(tokenizer)
    with pytest.raises(ValueError, match="was encoded with tokenizer '.*choose another --out"):
        encode_corpus(model.vqrae, source, tmp_path / "codes")
    sample = next(iter(CodeDataset(tmp_path / "codes"))) | {"task": "t2i"}
    objective = UnifiedObjective(model, processor, UnifiedObjectiveConfig())
    with pytest.raises(ValueError, match="sample 'part.*: its codes are of tokenizer"):
        objective.collate([sample])


def test_training_on_codes_is_training_on_pictures():
    model, processor = tiny_model()
    for rows in ("free", "shared"):
        objective = UnifiedObjective(model, processor, UnifiedObjectiveConfig(code_rows=rows))
        pictures = [shard("t2i", "a", 1), shard("t2i", "b", 2, "a blue star")]
        images = [sample["image"] for sample in pictures]
        codes = model.vqrae.tokenize(processor.image_processor(images)["pixel_values"])
        known = []
        for sample, own in zip(pictures, codes, strict=True):
            rest = {key: value for key, value in sample.items() if key != "image"}
            known.append(
                rest | {"codes": own.numpy(), "tokenizer": objective.sequences.fingerprint}
            )
        losses = []
        for samples in (pictures, known, [pictures[0], known[1]]):
            batch = objective.collate(samples)
            if rows == "shared":
                objective.prepare(iter([batch]))
            losses.append(objective(batch, 0)[0])
        assert losses[0] == losses[1] == losses[2]


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model()[0].vqrae.save_pretrained("tokenizer")
    line = ["encode", "--model", "tokenizer", "--device", "cpu", "--data"]
    make_shards(Path("source"))
    assert main([*line, "source", "--out", "codes"]) == 0
    assert "codes: 30 pictures of" in capsys.readouterr().out
    assert json.loads(Path("codes/codes.json").read_text())["counts"]["s-002"] == 10
    Path("other").mkdir()
    write_shard(Path("other/s-000.tar"), {"k": {"png": png(1)}})
    Path("both.txt").write_text("source/s-000.tar\nother/s-000.tar\n")
    for source, message in (
        ("nowhere", "is no data that can be read"),
        ("other", "was encoded with source 'source', not 'other'"),
        ("both.txt", "two files of 'both.txt' are named 's-000'"),
    ):
        assert main([*line, source, "--out", "codes"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main([*line, "other", "--out", "more"]) == 2
    assert "1 of 1 samples of 'other" in capsys.readouterr().err
    assert units_of("source", texts=True, max_bad_share=0)[1].name == "s-001"
