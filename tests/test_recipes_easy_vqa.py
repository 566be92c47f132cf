"""easy-vqa's two phases: the language model reads what the encoder learnt from captions."""

from dataclasses import replace

import pytest
import torch
from transformers import SiglipModel
from vqrae.assets import nano_folder
from vqrae.data.easy_vqa import write_easy_vqa
from vqrae.generation import load_unified
from vqrae.recipes.easy_vqa import EasyVQA, easy_vqa


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy")
    default = EasyVQA(
        run=str(folder / "run"),
        data=str(write_easy_vqa(folder / "data")),
        model=str(nano_folder("unified")),
    )
    return replace(
        default,
        encoder_steps=2,
        loss=replace(default.loss, train_encoder=False),
        train=replace(default.train, steps=2, batch_size=4, warmup=1, device="cpu"),
    )


def encoder(folder):
    return load_unified(folder, device="cpu")[0].vqrae.encoder.state_dict()


def test_the_encoder_that_read_captions_is_the_one_that_answers(recipe):
    easy_vqa(recipe)
    found, before = encoder(f"{recipe.run}/final"), encoder(recipe.model)
    learnt = SiglipModel.from_pretrained(f"{recipe.run}-encoder/final").vision_model.state_dict()
    assert all(torch.equal(value, learnt[name]) for name, value in found.items())
    moved = [name for name, value in found.items() if not torch.equal(value, before[name])]
    assert len(moved) > len(found) / 2


def test_only_a_siglip_encoder_reads_captions(recipe, monkeypatch):
    real = load_unified

    def other(*args, **options):
        model, processor = real(*args, **options)
        model.vqrae.encoder.config.model_type = "dinov2"
        return model, processor

    monkeypatch.setattr("vqrae.recipes.easy_vqa.load_unified", other)
    with pytest.raises(ValueError, match="is a dinov2; only a SigLIP .*--encoder-steps 0"):
        easy_vqa(replace(recipe, run=recipe.run + "2"))
