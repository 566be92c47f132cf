"""VQA and GenEval bookkeeping on hand-made cases: no model takes part."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from vqrae.eval.text_to_image import (
    category_scores,
    evaluate_text_to_image,
    random_scene_scores,
    read_prompts,
)
from vqrae.eval.vqa import (
    VQAItem,
    accuracy_by_type,
    blind_baselines,
    evaluate_vqa,
    normalise_answer,
    read_questions,
)


def items(*rows: tuple[str, str]) -> list[VQAItem]:
    return [VQAItem("x.png", "?", answer, kind) for kind, answer in rows]


def write_questions(folder, entries: list[tuple[str, list[tuple[str, str, str]]]]):
    folder.mkdir(parents=True, exist_ok=True)
    data = []
    for name, turns in entries:
        Image.new("RGB", (8, 8), "red").save(folder / name)
        conversation = []
        for index, (question, answer, _) in enumerate(turns):
            mark = "<image>\n" if index == 0 else ""
            conversation += [
                {"from": "human", "value": mark + question},
                {"from": "gpt", "value": answer},
            ]
        types = [kind for _, _, kind in turns]
        data.append({"image": name, "conversations": conversation, "question_types": types})
    (folder / "vqa.json").write_text(json.dumps(data))
    return folder / "vqa.json"


def test_normalisation():
    assert normalise_answer("  Top   Left. ") == "top left"
    assert normalise_answer("Yes.") == normalise_answer("yes")
    assert normalise_answer("red circle") != normalise_answer("red")


def test_baselines_by_hand():
    test = items(("color", "red"), ("color", "blue"), ("color", "Blue."), ("yesno", "yes"))
    train = items(("color", "red"), ("color", "red"), ("yesno", "no"), ("yesno", "no"))
    found = blind_baselines(test, train)
    assert found["train"]["answers"] == {"color": "red", "yesno": "no"}
    assert found["train"]["overall"] == 1 / 4
    assert found["test"]["answers"] == {"color": "blue", "yesno": "yes"}
    assert found["test"]["types"] == {"color": 2 / 3, "yesno": 1}
    assert found["source"] == "test" and found["stronger"]["overall"] == 3 / 4
    assert blind_baselines(test, None)["train"] is None


def test_what_a_model_without_eyes_could_reach():
    def item(question, answer, kind):
        return VQAItem("x.png", question, answer, kind)

    train = [item("which hue?", "red", "color"), item("Which hue?", "red", "color")]
    train += [item("which?", "blue", "color")] * 3 + [item("is it?", "yes", "yesno")]
    test = [item("which hue?", "red", "color"), item("a new one?", "blue", "color")]
    test += [item("is it?", "no", "yesno"), item("which?", "red", "color")]
    found = blind_baselines(test, train)
    assert found["words"]["overall"] == 2 / 4  # red by its words, blue by its type
    assert found["guess"]["types"] == {"color": 1 / 2, "yesno": 1}
    assert found["guess"]["overall"] == (3 * 1 / 2 + 1) / 4


def test_accuracy_is_micro_over_all_questions():
    asked = items(("color", "red"), ("color", "blue"), ("color", "pink"), ("count", "two"))
    found = accuracy_by_type(asked, ["Red", "blue.", "red", "three"])
    assert found["overall"] == 2 / 4
    assert found["types"] == {"color": 2 / 3, "count": 0}


def test_answers_go_to_their_questions_whatever_the_batch(tmp_path):
    path = write_questions(
        tmp_path,
        [
            ("a.png", [("what is it?", "star", "what"), ("how many things are there?", "1", "n")]),
            ("b.png", [("colour?", "red", "color")]),
        ],
    )
    answers = {"what is it?": "star", "how many things are there?": "2", "colour?": "Red."}

    def ask(images, questions):
        assert all(image.size == (8, 8) for image in images)
        return [answers[question] for question in questions]

    for batch_size in (1, 2, 64):
        found = evaluate_vqa(None, None, path, ask=ask, batch_size=batch_size, examples=9)
        assert found["types"] == {"color": 1, "n": 0, "what": 1}
        assert found["questions"] == len(found["examples"]) == 3
        assert {e["question"]: e["right"] for e in found["examples"]} == {
            "what is it?": True,
            "how many things are there?": False,
            "colour?": True,
        }
    assert evaluate_vqa(None, None, path, ask=ask, limit=2)["questions"] == 2


def test_bad_question_files_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="not found"):
        read_questions(tmp_path / "no.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ValueError, match="not JSON"):
        read_questions(tmp_path / "text.json")
    (tmp_path / "odd.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(ValueError, match="entry 0"):
        read_questions(tmp_path / "odd.json")


PROMPTS = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a star"},
    {"tag": "counting", "include": [{"class": "star", "count": 2}], "prompt": "two stars"},
]


def test_overall_is_the_mean_of_categories():
    found = category_scores(["counting", "single_object", "single_object"], [0.0, 1.0, 0.5])
    assert list(found["categories"]) == ["single_object", "counting"]
    assert found["categories"] == {"single_object": 0.75, "counting": 0.0}
    assert found["overall"] == 0.375


def test_random_scene_baseline_is_the_mean_over_all_scenes():
    found = random_scene_scores(
        PROMPTS,
        [["circle"], ["star", "star"], ["circle", "star"], []],
        detect=lambda scene: scene,
        score=lambda objects, m: (
            objects.count(m["include"][0]["class"]) >= m["include"][0]["count"],
            "",
        ),
    )
    assert found["categories"] == {"single_object": 0.5, "counting": 0.25}


def test_drawings_are_judged_beside_their_prompts(tmp_path, monkeypatch):
    path = tmp_path / "geneval.jsonl"
    path.write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS))
    scenes = [np.zeros((8, 8, 3), np.uint8)]
    monkeypatch.setattr("vqrae.eval.text_to_image.held_out_scenes", lambda *_, **__: scenes)
    monkeypatch.setattr(
        "vqrae.eval.text_to_image.random_scene_scores",
        lambda prompts, scenes: {"categories": {}, "overall": 0.0, "scenes": len(scenes)},
    )
    levels = {"a circle": [10, 0], "a star": [0, 0], "two stars": [10, 10]}

    def draw(prompts):
        return [[Image.new("RGB", (8, 8), (v, 0, 0)) for v in levels[p]] for p in prompts]

    def judge(image, metadata):
        return bool(image[0, 0, 0] == 10), "the reason"

    found = evaluate_text_to_image(
        None, None, path, images_per_prompt=2, draw=draw, judge=judge, examples_per_category=1
    )
    assert found["categories"] == {"single_object": 0.25, "counting": 1.0}
    assert found["counts"] == {"single_object": 2, "counting": 1}
    assert [example["prompt"] for example in found["examples"]] == ["a circle", "two stars"]
    first = found["examples"][0]["pictures"]
    assert [picture["right"] for picture in first] == [True, False]


def test_prompt_files(tmp_path):
    path = tmp_path / "geneval.jsonl"
    path.write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS))
    assert [m["prompt"] for m in read_prompts(path, per_category=1)] == ["a circle", "two stars"]
    path.write_text('{"prompt": "a circle"}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_prompts(path)
    with pytest.raises(ValueError, match="not found"):
        read_prompts(tmp_path / "no.jsonl")
