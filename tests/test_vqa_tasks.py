"""Benchmarks' files through lm-eval: what is asked, what is scored, what is left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys

os.environ.setdefault("LMEVAL_HASHMM", "0")

import datasets
import pytest
from _vqa_files import encoded, write, write_hub_files, write_official_files
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from vqrae.assets import nano_folder
from vqrae.data import write_scenes
from vqrae.eval import evaluate_vqa
from vqrae.eval.benchmark_result import BenchmarkResult, read_benchmark
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.tasks import TASKS, docs
from vqrae.eval.tasks.pictures import image_bytes
from vqrae.eval.tasks.scores import METRICS, SCORES
from vqrae.eval.vqa_tasks import aggregate, comparison, our_tasks, run
from vqrae.generation import load_unified
from vqrae.scripts.main import main

PUBLIC = [name for name in SCORES if name != "scenes_vqa"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_hub_files(folder)
    return folder


class Parrot(LM):
    """Says the same whatever it is asked."""

    MULTIMODAL = True

    def __init__(self, says):
        super().__init__()
        self.says, self.asked = says, {}

    def generate_until(self, requests, disable_tqdm=False):
        self.asked = {(r.task_name, r.doc_id): r.args for r in requests}
        return [self.says] * len(requests)

    loglikelihood = loglikelihood_rolling = None


Parrot.__abstractmethods__ = frozenset()


def ask(data, says, tasks=PUBLIC):
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"data": str(data)})
    parrot = Parrot(says)
    found = simple_evaluate(model=parrot, tasks=list(tasks), task_manager=manager)
    return found, parrot.asked


@pytest.fixture(scope="module")
def green(data):
    return ask(data, "green")


def test_questions_are_asked_as_llava_asks_them(green):
    _, asked = green
    short = "Answer the question using a single word or phrase."
    letter = "Answer with the option's letter from the given choices directly."
    expected = {
        "pope": f"<image>\nIs there a red in the image?\n{short}",
        "gqa": f"<image>\nWhat colour is it, 0?\n{short}",
        "textvqa": f"<image>\nwhat brand is it?\n{short}",
        "textvqa_ocr": f"<image>\nwhat brand is it?\nReference OCR token: DAKOTA, DIGITAL\n{short}",
        "mmbench": f"<image>\nWhich one?\nA. red\nB. green\nC. blue\n{letter}",
        "mme": f"<image>\nIs it red?\n{short}",
        "seedbench": f"<image>\nHow many?\nA. red\nB. green\nC. blue\nD. two\n{letter}",
        "ai2d": f"<image>\nwhich of these define dairy item\nA. c\nB. D\nC. b\nD. a\n{letter}",
    }
    assert {name: asked[name, 0][0] for name in PUBLIC} == expected
    # five questions, of which three are shifts of one with three options
    shifted = [asked["mmbench", n][0].split("\n")[2:5] for n in range(3)]
    assert shifted[1] == ["A. green", "B. blue", "C. red"]
    assert asked["mmbench", 3][0].startswith(
        "<image>\nLook closely.\nWhich one?\nA. red\nB. green\n"
    )
    assert sum(task == "mmbench" for task, _ in asked) == 5
    options = asked["gqa", 0][1]
    assert options == {
        "until": [], "temperature": 0.0, "do_sample": False, "max_gen_toks": 128
    }  # fmt: skip


def test_each_question_has_its_own_picture(green, data):
    _, asked = green
    # gqa's pictures are another table, in another order
    for number, colour in enumerate(("red", "green", "red")):
        [image] = asked["gqa", number][2]["visual"]
        assert image.fp.getvalue() == encoded(colour)
    assert all(len(args[2]["visual"]) == 1 for args in asked.values())


def test_lm_evals_numbers_are_those_of_our_rules(green):
    found, _ = green
    for name in PUBLIC:
        metrics = METRICS[name.removesuffix("_ocr")]
        records = [next(iter(s[m] for m in metrics)) for s in found["samples"][name]]
        ours = SCORES[name](records)
        for metric in metrics:
            value = found["results"][name][f"{metric},none"]
            # NaN where it was not asked
            assert value == pytest.approx(ours.get(metric, math.nan), abs=0, nan_ok=True)
            assert found["higher_is_better"][name][metric] is ("yes_rate" not in metric)
        assert found["versions"][name] == 1
    assert found["results"]["gqa"]["accuracy,none"] == 1 / 3
    assert found["results"]["pope"]["yes_rate,none"] == 1  # "green" holds no "no"
    assert found["results"]["mmbench"]["circular,none"] == 1  # by the text of the option
    assert found["results"]["seedbench"]["accuracy,none"] == 1


def test_a_letter_is_not_right_under_every_shift(data):
    found, _ = ask(data, "B", ["mmbench", "seedbench", "ai2d"])
    # as written both are B; shifted by one it is another letter
    assert found["results"]["mmbench"]["plain,none"] == 1
    assert found["results"]["mmbench"]["circular,none"] == 0
    assert found["results"]["ai2d"]["accuracy,none"] == 1 / 2


def test_releases_in_their_own_form(tmp_path):
    write_official_files(tmp_path)
    counts = {"pope": 4, "gqa": 1, "textvqa": 1, "mme": 4, "mmbench": 2, "seedbench": 1}
    for name, count in counts.items():
        found = getattr(docs, name)(data=str(tmp_path))["test"]
        assert len(found) == count, name
        ids = [doc["id"] for doc in found]
        assert len(set(ids)) == count, ids
        for doc in found:
            assert [image_bytes(image) for image in doc["image"]] == [encoded("red")]
    shifts = list(docs.mmbench(data=str(tmp_path))["test"])
    assert [(doc["group"], doc["plain"], doc["answer"]) for doc in shifts] == [
        ("7", True, "A"),
        ("7", False, "B"),
    ]
    assert {doc["category"] for doc in docs.mme(data=str(tmp_path))["test"]} == {
        "color", "existence"
    }  # fmt: skip


def test_what_a_run_leaves_behind(data, tmp_path, monkeypatch):
    short = ([], {"max_new_tokens": 4, "temperature": 0.0})
    monkeypatch.setattr("vqrae.eval.lm_eval_model.generation_options", lambda _: short)
    batched = run(nano_folder(), ["pope", "mme"], data=data, out=tmp_path / "a", device="cpu")
    other = run(
        nano_folder(), ["pope", "mme"], data=data, out=tmp_path / "b", device="cpu", batch_size=5
    )
    assert other.items == batched.items and other.protocol == batched.protocol
    read = read_benchmark(tmp_path / "a")
    assert read.scores == batched.scores == read.aggregate(read.items) == aggregate(read.items)
    assert set(read.higher_is_better) == set(read.scores)
    card = read.protocol["tasks"]["pope"]
    assert card["version"] == 1 and card["questions"] == 6 and card["split"] == "data/test"
    assert "{{question}}" in card["prompt"] and len(card["yaml sha256"]) == 64
    units = {item["unit"] for item in read.items if item["task"] == "mme"}
    assert len(units) == 4  # a pair of questions is one
    assert {item["stratum"] for item in read.items} == {"pope", "mme:color", "mme:code_reasoning"}
    limited = run(
        nano_folder(), ["pope"], data=data, out=tmp_path / "c", device="cpu", limit=2
    ).protocol["tasks"]["pope"]
    assert limited["questions"] == 2 and limited["data sha256"] != card["data sha256"]


def test_scenes_through_lm_eval_score_as_our_own_loop(tmp_path):
    """Asked by one process or by two."""
    scenes = write_scenes(tmp_path / "scenes", train=2, test=8)
    model, processor = load_unified(nano_folder(), device="cpu")
    own = evaluate_vqa(model, processor, scenes / "test/vqa.json", limit=None)
    argv = ["--tasks", "scenes_vqa", "--data", str(scenes), "--out", str(tmp_path / "out")]
    assert main(["eval", "vqa", *argv, "--device", "cpu"]) == 0
    scores = read_benchmark(tmp_path / "out").scores
    assert scores["scenes_vqa.accuracy"] == own["overall"]
    for kind, share in own["types"].items():
        assert scores[f"scenes_vqa.accuracy_{kind}"] == share
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "vqrae.scripts.main", "eval", "vqa", *argv[:-1], str(tmp_path / "two")]
    done = subprocess.run(
        [*torchrun, *command, "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = read_benchmark(tmp_path / "out"), read_benchmark(tmp_path / "two")
    assert (one.items, one.scores, one.protocol) == (two.items, two.scores, two.protocol)


def test_the_papers_numbers_stand_beside():
    scores = {"ai2d.accuracy": 0.5, "mme.perception": 1234.56, "pope.recall": 0.25}
    result = BenchmarkResult(
        benchmark="vqa-1", scores=scores, higher_is_better={}, model={}, protocol={}
    )
    assert comparison(result) == [
        ("ai2d.accuracy", "50.0", "59.8", "84.8"),
        ("mme.perception", "1234.6", "1543.3", "1746.8"),
        ("pope.recall", "25.0", "", ""),
    ]
    known = {f"{task}.{m}" for task in SCORES for m in METRICS[task.removesuffix("_ocr")]}
    for row in PAPER["vqa"].rows.values():
        assert set(row) <= known | {"mmmu_val.acc"}


def test_files_of_other_configs_and_splits_are_not_taken(data, tmp_path):
    copy = tmp_path / "mmbench"
    shutil.copytree(data / "mmbench/cn", copy / "cn")
    with pytest.raises(ValueError, match=r"en/dev-\*.parquet"):
        docs.mmbench(data=tmp_path)
    shutil.copytree(data / "mmbench/en", copy / "en")
    (copy / "en/dev-00000-of-00001.parquet").unlink()  # what is left is the test split
    with pytest.raises(ValueError, match=r"en/dev-\*.parquet"):
        docs.mmbench(data=tmp_path)
    shutil.rmtree(copy / "en")
    shutil.copy(data / "mmbench/en/dev-00000-of-00001.parquet", copy / "mine.parquet")
    assert len(docs.mmbench(data=tmp_path)["test"]) == 5


def test_without_a_folder_the_hubs_cache_is_asked(data, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("VQRAE_VQA_DATA", raising=False)
    home, commit = tmp_path / "datasets--lmms-lab--ai2d", "a" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    shutil.copytree(data / "ai2d", home / "snapshots" / commit)
    assert [doc["answer"] for doc in docs.ai2d()["test"]] == ["B", "D"]
    with pytest.raises(ValueError, match="no data of gqa in the hub's cache; or give --data"):
        docs.gqa()


def test_mistakes_are_one_line(tmp_path, data, capsys):
    def failing(*argv):
        assert main(["eval", "vqa", "--out", str(tmp_path / "out"), *argv]) == 2
        return capsys.readouterr().err

    error = failing("--tasks", "gqa", "--data", str(tmp_path))
    for part in (f"{tmp_path}/gqa", "lmms-lab/GQA", "testdev_balanced_instructions", "images/"):
        assert part in error
    assert error.count("\n") == 1
    assert "lmms-lab/POPE" in failing("--tasks", "pope")  # nothing in the hub's cache
    assert "limit must be" in failing("--tasks", "pope", "--limit", "0")
    assert "scenes_vqa needs --data" in failing("--tasks", "scenes_vqa")
    write(tmp_path / "ai2d/data/test-0.parquet", [{"question": "?", "answer": "0"}], plain=True)
    assert "has no column 'options'" in failing("--tasks", "ai2d", "--data", str(tmp_path))
    (tmp_path / "mme/data").mkdir(parents=True)
    (tmp_path / "mme/data/test-0.parquet").write_text("hello")
    assert "test-0.parquet" in failing("--tasks", "mme", "--data", str(tmp_path))


def test_without_tasks_they_are_listed(capsys):
    assert main(["eval", "vqa"]) == 0
    listed = capsys.readouterr().out
    for name, task in our_tasks().items():
        assert name in listed and task["about"] in listed


def test_yaml_and_rules_agree():
    manager = TaskManager(include_path=TASKS, include_defaults=False)
    assert set(manager.task_index) == set(SCORES)
    for name, entry in manager.task_index.items():
        listed = [metric["metric"] for metric in entry.cfg["metric_list"]]
        assert tuple(listed) == METRICS[name.removesuffix("_ocr")]
        assert json.dumps(entry.cfg["metadata"]["version"])
