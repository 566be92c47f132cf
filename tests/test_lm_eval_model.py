"""The model behind lm-eval's interface, and lm-eval's own MMMU on a stand-in for its data."""

from __future__ import annotations

import os

os.environ.setdefault("LMEVAL_HASHMM", "0")

import datasets
import pytest
import torch
from _vqa_files import picture
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from PIL import Image
from vqrae.assets import nano_folder
from vqrae.eval.benchmark_result import read_benchmark
from vqrae.eval.lm_eval_model import VQRAELM, cut, generation_options
from vqrae.eval.vqa_tasks import run
from vqrae.generation import answer, load_unified
from vqrae.scripts.main import main

GREEDY = {"until": [], "max_gen_toks": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def parts():
    return load_unified(nano_folder(), device="cpu")


def pictures(*colours):
    return [Image.new("RGB", (64, 64), colour) for colour in colours]


def requests(kind, *rows):
    """Of (text, second argument, pictures or None)."""
    return [
        Instance(kind, {}, (text, more) if shown is None else (text, more, {"visual": shown}), 0,
                 ("task", number, 1))
        for number, (text, more, shown) in enumerate(rows)
    ]  # fmt: skip


def test_lm_eval_knows_it_by_name():
    lm = get_model("vqrae").create_from_arg_string(
        f"pretrained={nano_folder()}", {"batch_size": "4", "device": "cpu"}
    )
    assert isinstance(lm, VQRAELM) and lm.MULTIMODAL and lm.batch_size == 4
    with pytest.raises(ValueError, match="batch_size is 'auto'"):
        VQRAELM(nano_folder(), batch_size="auto", device="cpu")


def test_answers_are_those_of_generation(parts):
    """Also of several pictures, of none, and whatever else is in the batch."""
    red, blue = pictures("red", "blue")
    question = "what color is the background?"
    rows = [
        (f"<image>\n{question}", GREEDY, [red]),
        (question, GREEDY, [blue]),  # no place named: in front
        (f"<image> and <image>: {question}", GREEDY, [blue, red]),
        (f"<image> and <image>: {question}", GREEDY, [red, blue]),
        ("how are you?", GREEDY, None),
    ]
    answers = [
        VQRAELM(parts, batch_size=size).generate_until(requests("generate_until", *rows))
        for size in (1, 3, 16)
    ]
    assert answers[0] == answers[1] == answers[2]
    expected = answer(*parts, [red, blue], [question] * 2, max_new_tokens=8)
    assert answers[0][:2] == expected
    # the order of pictures reaches the model
    lm = VQRAELM(parts)
    asked = requests("loglikelihood", *((text, "red", shown) for text, _, shown in rows[2:4]))
    assert len({value for value, _ in lm.loglikelihood(asked)}) == 2
    assert lm.pictures["task", 0] == lm.pictures["task", 1][::-1]


def test_likelihoods_are_those_of_a_plain_forward_loop(parts):
    model, processor = parts
    red, blue = pictures("red", "blue")
    rows = [
        ("<image>\nwhat color is the background?", " red", [red]),
        ("<image>\nwhat color is the background?", " bottom left", [red]),
        ("<image><image>\nhow many shapes are there?", "two", [blue, red]),
        ("what is it?", "yes", None),
    ]
    found = VQRAELM(parts, batch_size=3).loglikelihood(requests("loglikelihood", *rows))
    for (text, follow, shown), (value, greedy) in zip(rows, found, strict=True):
        ids = processor.encode_chat([{"role": "user", "content": text}], len(shown or ()))
        pixels = processor.pixels(shown) if shown else None
        total, best = 0.0, True
        for token in processor.untrusted(follow.strip()):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
            logits = logits[: model.config.code_offset]
            total += float(logits.log_softmax(-1)[token])
            best &= int(logits.argmax()) == token
            ids = [*ids, token]
        assert value == pytest.approx(total, abs=1e-4)
        assert greedy == best


def test_what_is_written_is_judged_greedy(parts):
    [red] = pictures("red")
    text = "<image>\nwhat color is the background?"
    lm = VQRAELM(parts)
    [said] = lm.generate_until(requests("generate_until", (text, GREEDY, [red])))
    found = lm.loglikelihood(
        requests("loglikelihood", (text, f" {said}", [red]), (text, " bottom left", [red]))
    )
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_an_answer_ends_before_the_first_stop(parts):
    assert cut("a b. c", ["c", "."]) == "a b"
    assert cut("a", [""]) == "a"
    [red] = pictures("red")
    text = "<image>\nwhat color is the background?"
    ask = [(text, {**GREEDY, "until": stop}, [red]) for stop in ([], "e", ["zz"])]
    whole, stopped, same = VQRAELM(parts).generate_until(requests("generate_until", *ask))
    assert whole == same and stopped == whole.split("e")[0] != whole


def test_generation_options():
    assert generation_options({"until": "\n", "max_gen_toks": 3}) == (
        ["\n"],
        {"max_new_tokens": 3, "temperature": 0.0},
    )
    _, sampled = generation_options({"do_sample": True, "top_p": 0.9})
    assert sampled == {"max_new_tokens": 128, "temperature": 1.0, "top_p": 0.9}
    _, greedy = generation_options({"do_sample": False, "temperature": 0.7})
    assert greedy["temperature"] == 0
    for wrong in ({"num_beams": 4}, {"repetition_penalty": 2}):
        with pytest.raises(ValueError, match="has no generation option"):
            generation_options(wrong)


def test_questions_that_do_not_fit(parts, caplog):
    lm = VQRAELM(parts)
    long = "what is it? " * lm.processor.max_length
    rows = [(long, GREEDY, None), ("what is it?", GREEDY, None)]
    answers = lm.generate_until(requests("generate_until", *rows))
    assert answers[0] == "" and lm.too_long == {"task:0"}
    assert "1 questions do not fit" in caplog.text
    [(value, greedy)] = lm.loglikelihood(requests("loglikelihood", (long, "a", None)))
    assert value == -torch.inf and not greedy


def test_mistakes_name_the_question(parts):
    lm = VQRAELM(parts)
    with pytest.raises(ValueError, match="question 0 of task has 2 times '<image>' for 1 pictures"):
        ask = ("<image><image> what?", GREEDY, pictures("red"))
        lm.generate_until(requests("generate_until", ask))
    with pytest.raises(ValueError, match="cannot read image 'picture of question 0 of task'"):
        broken = ("what?", GREEDY, [{"bytes": b"\x89PNG no", "path": None}])
        lm.generate_until(requests("generate_until", broken))
    for method in (lm.loglikelihood_rolling, lm.apply_chat_template):
        with pytest.raises(ValueError, match="the model vqrae"):
            method([])


@pytest.fixture
def mmmu(tmp_path, monkeypatch):
    """Three questions in MMMU's columns: of two pictures, of an open answer, of one picture."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    empty = {f"image_{n}": None for n in range(1, 8)}
    rows = [
        {"question": "Is <image 1> or <image 2> red?", "options": "['<image 1>', 'the other']",
         "answer": "A", "question_type": "multiple-choice",
         **empty, "image_1": picture("red"), "image_2": picture("blue")},
        {"question": "How many dollars? <image 1>", "options": "[]", "answer": "8.37",
         "question_type": "open", **empty, "image_1": picture("green")},
        {"question": "<image 1> Which?", "options": "['red', 'green', 'blue']", "answer": "B",
         "question_type": "multiple-choice", **empty, "image_1": picture("green")},
    ]  # fmt: skip
    for subject in ("Accounting", "Economics", "Finance", "Manage", "Marketing"):
        features = datasets.Features(
            {name: datasets.Image() if name in empty else datasets.Value("string")
             for name in rows[0]}
        )  # fmt: skip
        path = tmp_path / f"data/MMMU/MMMU/{subject}/validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return tmp_path


def test_lm_evals_mmmu_runs_on_local_files(mmmu, monkeypatch):
    says = iter(["B", "The answer is 8.37", "I cannot say"] * 5)
    monkeypatch.setattr(
        VQRAELM,
        "generate_until",
        lambda self, asked: [self._prompt(r) and next(says) for r in asked],
    )
    tasks = ["mmmu_val_business"]
    result = run(nano_folder(), tasks, data=mmmu / "data", out=mmmu / "out", device="cpu")
    marks = [item["metrics"]["acc"] for item in result.items]
    # The third is a guess, which hangs on the question alone.
    assert marks[:2] == marks[3:5] == [0, 1]
    assert result.scores["mmmu_val_accounting.acc"] == sum(marks[:3]) / 3
    assert len(marks) == 15 and result.scores["mmmu_val_business.acc"] == sum(marks) / 15
    assert [len(item["images"]) for item in result.items[:3]] == [3, 1, 1]
    card = result.protocol["tasks"]["mmmu_val_accounting"]
    assert card["split"] == "validation" and card["prompt"].endswith("utils.doc_to_text")
    assert len(card["yaml sha256"]) == 64 and "lm-eval" in card
    read = read_benchmark(mmmu / "out")
    assert read.aggregate(read.items) == result.scores


def test_lm_evals_mmmu_is_answered_by_the_model(mmmu, monkeypatch):
    short = ([], {"max_new_tokens": 4, "temperature": 0.0})
    monkeypatch.setattr("vqrae.eval.lm_eval_model.generation_options", lambda _: short)
    argv = ["--tasks", "mmmu_val_accounting", "--data", str(mmmu / "data"), "--limit", "1"]
    assert main(["eval", "vqa", *argv, "--out", str(mmmu / "out"), "--device", "cpu"]) == 0
    [item] = read_benchmark(mmmu / "out").items
    # as LLaVA-1.5 asks, by lm-eval's own words, its second picture twice
    assert item["question"].startswith("Is <image> or <image> red?\n\n(A) <image>\n(B) the other")
    assert len(item["images"]) == 3 and item["images"][0] == item["images"][2]


def test_unknown_tasks_and_absent_data(mmmu, capsys):
    (mmmu / "none/MMMU/MMMU").mkdir(parents=True)
    argv = ["eval", "vqa", "--out", str(mmmu / "out"), "--tasks", "mmmu_val_accounting"]
    assert main([*argv, "--data", str(mmmu / "none")]) == 2
    assert "has no parquet files for mmmu_val_accounting" in capsys.readouterr().err
    assert main([*argv, "--data", str(mmmu)]) == 2  # not there, and not in the hub's cache
    error = capsys.readouterr().err
    assert "no data for mmmu_val_accounting" in error and error.count("\n") == 1
