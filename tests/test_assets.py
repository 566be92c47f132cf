"""The model that ships: small, whole, and as good as its card says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vqrae.assets import nano_folder
from vqrae.eval.scenes_detector import detect
from vqrae.eval.vqa import normalise_answer
from vqrae.generation import answer, draw, load_unified
from vqrae.scripts.main import main

CARD = nano_folder().parent / "README.md"


@pytest.fixture(scope="module")
def shipped():
    return load_unified(nano_folder(), device="cpu")


def test_it_is_small_and_whole():
    files = [path for path in nano_folder().parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in files)
    for part in ("unified", "tokenizer", "vfm"):
        assert (nano_folder(part) / "model.safetensors").is_file()
    for stage in ("vfm", "stage1", "stage2", "unified"):
        rows = (CARD.parent / "metrics" / f"{stage}.jsonl").read_text().splitlines()
        assert len(rows) > 10 and "loss" in json.loads(rows[-1])
    results = json.loads((CARD.parent / "results.json").read_text())
    for row in results["table"]:
        if row["metric"] == "VQA accuracy":
            assert f"{row['value']:.1%}" in CARD.read_text()
    with pytest.raises(ValueError, match="no part 'llm'"):
        nano_folder("llm")


def test_it_draws_what_it_is_asked_for(shipped):
    prompts = [f"a {c} {s}" for c in ("red", "blue", "green") for s in ("circle", "cross", "heart")]
    pictures = draw(*shipped, prompts, n=2, seed=1)
    right = [
        any(d.color in prompt and d.class_ in prompt for d in detect(picture))
        for prompt, row in zip(prompts, pictures, strict=True)
        for picture in row
    ]
    assert np.mean(right) > 0.8


def test_it_answers(shipped):
    from vqrae.data.scenes import Scene, SceneObject, render

    scene = Scene((SceneObject("star", "blue", "large", 0, 0),))
    picture = Image.fromarray(render(scene))
    asked = ["What colour is the star?", "what shape is the object?", "where is the star?"]
    answers = answer(*shipped, [picture] * 3, asked)
    assert [normalise_answer(a) for a in answers] == ["blue", "star", "top left"]


def test_commands_use_it_when_no_model_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VQRAE_MODEL", raising=False)
    assert main(["draw", "two red stars above a green circle", "-o", "out.png"]) == 0
    assert Image.open("out.png").size == (64, 64)
    assert main(["chat", "out.png", "how many shapes are there?"]) == 0
    assert re.search(r"\w", capsys.readouterr().out)
    assert not Path("runs").exists()
