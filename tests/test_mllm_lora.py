"""Adapters, weights in four bits, and training that keeps the rows of text."""

from __future__ import annotations

import pytest
import torch
from test_mllm_objective import SAMPLES, Repeated, objective
from vqrae.generation import load_unified
from vqrae.mllm import UnifiedObjectiveConfig
from vqrae.training import TrainConfig, fit
from vqrae.training._weights import read

TRAIN = {"batch_size": 4, "log_every": 1, "schedule": "constant", "device": "cpu", "lr": 1e-2}
WAYS = {
    "lora": {"lora_rank": 4, "train_code_rows": True, "lora_dropout": 0.1},
    "qlora": {"lora_rank": 4, "four_bit": True},
    "rows": {"train_llm": False, "train_code_rows": True, "train_projector": False},
}


def run(config, path, steps):
    ours = objective(cond_dropout=0.5, lr=1e-2, weight_decay=0.1, **config)
    result = fit(ours, Repeated(), TrainConfig(steps=steps, **TRAIN), path, recipe="unified")
    return ours, result


@pytest.mark.parametrize("way", WAYS)
def test_what_is_trained_is_exported_and_the_rest_is_kept(way, tmp_path):
    config = WAYS[way]
    plain = objective().model
    base = {name: value.clone() for name, value in plain.state_dict().items()}
    ours, result = run(config, tmp_path / "run", 3)
    model, _ = load_unified(tmp_path / "run" / "final")
    assert type(model.language_model) is type(plain.language_model)
    final = model.state_dict()
    assert final.keys() == base.keys()

    first = plain.config.image_start_id
    for table in ("embed_tokens.weight", "lm_head.weight"):
        [name] = [n for n in base if n.endswith(table)]
        assert torch.equal(final[name][:first], base[name][:first])
        same = torch.equal(final[name][first:], base[name][first:])
        assert same != config.get("train_code_rows", False)
    layers = [n for n in base if n.startswith("language_model.model.layers") and "proj" in n]
    changed = {n for n in layers if not torch.equal(final[n], base[n])}
    assert changed == (set() if way == "rows" else set(layers))

    ours.eval(), model.eval()
    batch = ours.collate(SAMPLES)
    with torch.no_grad():
        hidden, _ = ours.read(batch)
        ours.model = model
        again, _ = ours.read(batch)
    torch.testing.assert_close(again, hidden, rtol=1e-4, atol=1e-4)
    assert result.step == 3


@pytest.mark.parametrize("way", WAYS)
def test_resumed_equals_uninterrupted(way, tmp_path):
    whole, _ = run(WAYS[way], tmp_path / "whole", 4)
    run(WAYS[way], tmp_path / "parted", 2)
    _, parted = run(WAYS[way], tmp_path / "parted", 4)
    assert parted.resumed_from == 2
    one, two = (
        read(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parted")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    checkpoint = tmp_path / "parted" / "checkpoints" / "step-00000004" / "model.safetensors"
    assert not any("base_layer" in name for name in read(checkpoint))


def test_four_bits_take_little_room():
    def size(config):
        layers = objective(**config).model.language_model.get_decoder().layers
        weights = [w for n, w in layers.named_parameters() if "lora" not in n and w.ndim > 1]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    assert size(WAYS["qlora"]) < 0.15 * size({})


def test_wrong_settings_are_named():
    for bad in (
        {"four_bit": True},
        {"lora_rank": -1},
        {"lora_rank": 4, "lora_alpha": 0},
        {"lora_rank": 4, "lora_dropout": 1},
        {"lora_rank": 4, "train_llm": False},
        {"lora_rank": 4, "code_rows": "shared"},
        {"train_code_rows": True, "code_rows": "shared"},
    ):
        with pytest.raises(ValueError, match=list(bad)[-1]):
            UnifiedObjectiveConfig(**bad)
