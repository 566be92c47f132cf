"""A folder loads whole, or one line says what is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_mllm_parts import tiny_model
from vqrae.generation import draw, load_unified


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model, processor = tiny_model()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "model")


def test_loads_and_draws_the_same(saved):
    folder, model, processor = saved
    loaded, again = load_unified(folder, device="cpu")
    assert not loaded.training
    ours = draw(model, processor, "a <|image_start|> circle", seed=3)[0][0]
    assert ours.tobytes() == draw(loaded, again, "a <|image_start|> circle", seed=3)[0][0].tobytes()


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_unified(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, f"model' has no {name}")


def test_missing_folder_and_weights(folder, tmp_path):
    refused(tmp_path / "nothing", "no model folder .*nothing")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")


def test_missing_and_misshapen_keys(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    whole = dict(weights)
    del weights["projector.inner.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    refused(folder, "model' lacks 1 weights, 'projector.inner.weight' first")
    whole["projector.inner.weight"] = torch.zeros(3, 3)
    save_file(whole, path, metadata={"format": "pt"})
    refused(folder, "other shapes for 1 weights, 'projector.inner.weight' first")


def test_damaged_files(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(folder, "cannot read .*model.safetensors")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json' is not a config in JSON")


def test_other_kind_of_model(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen3"}))
    refused(folder, "model_type 'qwen3', not 'vqrae_unified'")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("codebook_size", 99, "codebook_size is 99, but .* 24"),
        ("code_offset", 7, "is 7, but .* 297"),
    ],
)
def test_config_that_disagrees(folder, field, value, match):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(folder, match)


def test_tokenizer_of_another_model(folder):
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_image_tokens": 9}))
    refused(folder, "num_image_tokens is 4 in the model but 9 in its processor")
