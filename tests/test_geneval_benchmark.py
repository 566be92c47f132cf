"""GenEval from prompts to results.json: resumed, on ranks, from elsewhere, on the scenes world."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from vqrae.eval._answers import Answers
from vqrae.eval.benchmark_result import read_benchmark
from vqrae.eval.geneval import Rules
from vqrae.eval.geneval_benchmark import (
    aggregate,
    draw_geneval,
    judge_pictures,
    read_pictures,
    score_geneval,
)
from vqrae.scripts.main import main

PROMPTS = [
    {"tag": tag, "include": [{"class": "cup", "count": count}], "prompt": f"{count} cups, {tag}"}
    for tag in ("single_object", "counting")
    for count in (1, 2, 3)
]
CARD = {"model": {"name": "m", "weights sha256": {"a": "b"}}, "drawn": {"seed": 0}}


@dataclass
class Cup:
    score: float
    class_: str = "cup"
    color: str = "red"
    box: tuple[float, float, float, float] = (0, 0, 1, 1)


class Pixels:
    """A detector whose pictures say what is in them: red is the number of cups."""

    name, rules = "pixels", Rules()

    def __init__(self) -> None:
        self.card, self.calls = {"name": "pixels"}, 0

    def __call__(self, image: Image.Image) -> list[Cup]:
        self.calls += 1
        return [Cup(0.8)] * image.getpixel((0, 0))[0]


def draw(prompts: list[str]) -> list[list[Image.Image]]:
    """Of "N cups": N in the first picture, N - 1 in the second."""
    numbers = [int(prompt[0]) for prompt in prompts]
    return [[Image.new("RGB", (8, 8), (n - j, 0, 0)) for j in (0, 1)] for n in numbers]


def pictures_of(out: Path, **options) -> Path:
    return draw_geneval(PROMPTS, out, draw, CARD, images_per_prompt=2, **options)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_scores_and_what_is_left_behind(tmp_path):
    root = pictures_of(tmp_path)
    assert (root / "00005" / "samples" / "0001.png").is_file()
    assert json.loads((root / "00005" / "metadata.jsonl").read_text()) == PROMPTS[5]
    result = score_geneval(root, tmp_path, Pixels(), prompts=PROMPTS)
    # cups of confidence 0.8 are too unsure to be counted
    assert result.scores == {"single_object": 0.5, "counting": 0.0, "overall": 0.25}
    again = read_benchmark(tmp_path)
    assert again.aggregate(again.items) == result.scores and len(again.items) == 12
    first = again.items[1]
    assert (first["id"], first["unit"], first["kind"]) == ("00000/0001", "00000", "single_object")
    assert not first["correct"] and first["reason"] == "expected cup>=1, found 0"
    assert again.model["name"] == "m" and again.protocol["drawn"] == {"seed": 0}
    assert again.protocol["rules"]["counting_threshold"] == 0.9
    assert again.protocol["prompts"]["the official 553"] is False


def test_the_mean_is_over_pictures():
    shares = {"a": [1, 1, 1, 0], "b": [0]}
    items = [{"tag": tag, "correct": bool(v)} for tag, vs in shares.items() for v in vs]
    assert aggregate(items) == {"a": 0.75, "b": 0.0, "overall": 0.375}


def test_one_rank_or_two(tmp_path):
    one = pictures_of(tmp_path / "one")
    for rank in (1, 0):
        two = pictures_of(tmp_path / "two", rank=rank, world=2, batch=2)
    assert files(one) == files(two) and len(files(one)) == 6 * 3 + 1
    whole = judge_pictures(read_pictures(one), Pixels())
    halves = [judge_pictures(read_pictures(two), Pixels(), rank=r, world=2) for r in (0, 1)]
    assert sorted(halves[0] + halves[1], key=lambda i: i["id"]) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_geneval_benchmark as t
import vqrae.eval._drawings as drawings
left, save = [5], drawings.save_picture
def save_some(picture, path):
    left[0] -= 1
    if left[0] < 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(".half.png.tmp").write_bytes(b"\\x89PNG")
        os.kill(os.getpid(), signal.SIGKILL)
    save(picture, path)
drawings.save_picture = save_some
t.pictures_of(Path(sys.argv[2]), batch=2)
"""


def test_killed_while_drawing(tmp_path):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(tmp_path / "killed")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    root = tmp_path / "killed" / "pictures"
    assert len(list(root.rglob("samples/*.png"))) == 5
    with pytest.raises(ValueError, match="not all drawn"):
        read_pictures(root)
    half = root / "00002" / "samples" / "0000.png"
    written, drawn = half.stat().st_mtime_ns, []

    def watched(prompts):
        drawn.extend(prompts)
        return draw(prompts)

    draw_geneval(PROMPTS, tmp_path / "killed", watched, CARD, images_per_prompt=2)
    assert drawn == [p["prompt"] for p in PROMPTS[2:]]  # two were whole, the third was half there
    assert half.stat().st_mtime_ns == written  # what is there stays
    half.with_name(".half.png.tmp").unlink()
    assert files(root) == files(pictures_of(tmp_path / "whole"))


def test_verdicts_are_kept_and_belong_to_their_pictures(tmp_path):
    root = pictures_of(tmp_path)
    detector = Pixels()
    with Answers(tmp_path / "verdicts") as answers:
        first = judge_pictures(read_pictures(root)[:4], detector, answers)
    assert detector.calls == 8
    path = tmp_path / "verdicts" / "0000.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # torn in the last line
    whole = score_geneval(root, tmp_path, detector)
    assert detector.calls == 8 + 5 and whole.items[:8] == first
    Image.new("RGB", (8, 8), (9, 0, 0)).save(root / "00000" / "samples" / "0001.png")
    detector.card = {"name": "pixels"}
    assert score_geneval(root, tmp_path, detector).scores["single_object"] == pytest.approx(4 / 6)
    assert detector.calls == 14
    detector.card = {"name": "others"}
    score_geneval(root, tmp_path, detector)
    assert detector.calls == 14 + 12


def test_pictures_of_another_model_are_not_mixed(tmp_path):
    pictures_of(tmp_path)
    other = {"model": CARD["model"], "drawn": {"seed": 1}}
    with pytest.raises(ValueError, match=r"were drawn with drawn.seed 0, not 1; choose another"):
        draw_geneval(PROMPTS, tmp_path, draw, other, images_per_prompt=2)
    with pytest.raises(ValueError, match="were drawn with images per prompt 2, not 4"):
        draw_geneval(PROMPTS, tmp_path, draw, CARD, images_per_prompt=4)


def test_pictures_made_elsewhere(tmp_path):
    root = pictures_of(tmp_path)
    (root / "drawings.json").unlink()
    (root / "00001" / "grid.png").write_bytes(b"is not read")
    result = score_geneval(root, tmp_path / "out", Pixels())
    assert result.model == {"name": "pictures", "weights sha256": {}}
    assert "elsewhere" in result.protocol["drawn"] and result.scores["overall"] == 0.25
    for wrong, message in (
        (PROMPTS + PROMPTS[:1], "has no folder 00006"),
        (PROMPTS[1:], "folder 00000 of .* is of '1 cups, single_object', not of '2 cups"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pictures(root, wrong)
    assert len(read_pictures(root, PROMPTS[:2])) == 2
    (root / "00001" / "metadata.jsonl").write_text("hello")
    with pytest.raises(ValueError, match="00001/metadata.jsonl' is not one line of"):
        read_pictures(root)
    with pytest.raises(ValueError, match="no folder of pictures"):
        read_pictures(tmp_path / "nowhere")


def test_the_scenes_score_is_that_of_the_scenes_evaluation(tmp_path, capsys):
    from vqrae.assets import nano_folder
    from vqrae.data import geneval_prompts
    from vqrae.eval import evaluate_text_to_image
    from vqrae.generation import load_unified

    prompts = tmp_path / "geneval.jsonl"
    lines = [json.dumps(p) for p in geneval_prompts(3, 2, "test")]
    prompts.write_text("\n".join(lines))
    line = ["eval", "geneval", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    options = ["--images-per-prompt", "2", "--device", "cpu", "--seed", "5"]
    assert main([*line, *options, "--detector", "scenes", "--batch-size", "5"]) == 0
    assert "GenEval by scenes, 24 pictures" in capsys.readouterr().out
    model, processor = load_unified(nano_folder(), device="cpu")
    found = evaluate_text_to_image(
        model, processor, prompts, images_per_prompt=2, seed=5, random_scenes=1
    )
    scores = read_benchmark(tmp_path / "out").scores
    assert scores == {**found["categories"], "overall": found["overall"]}
    assert 0.5 < scores["overall"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --detector and --clip"),
        (["--detector", "scenes"], "give --prompts of scenes"),
        (["--detector", "/no/where", "--clip", "/no"], "no model in '/no' (it has no config.json)"),
        (["--prompts", "/no/file"], "prompts '/no/file' not found"),
        (["--draw-only", "--pictures", "x"], "give one of them"),
        (["--images-per-prompt", "0"], "at least 1, not 0"),
        (["--prompts-per-category", "0"], "at least 1, not 0"),
    ],
)
def test_a_mistake_is_one_line(capsys, options, message):
    assert main(["eval", "geneval", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
