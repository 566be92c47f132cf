"""The recipes on any causal language model, at a toy size, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_mllm_parts import noise_image, tiny_language_model, tiny_text_tokenizer, tiny_vqrae
from vqrae.data.jsonl_pairs import JsonlPairs
from vqrae.data.llava import LlavaDataset
from vqrae.generation import draw, load_unified
from vqrae.scripts.main import main

SMALL = [
    "--train.steps", "3", "--train.batch-size", "4", "--train.warmup", "1", "--train.engine",
    "torch", "--train.deepspeed", "None", "--train.precision", "fp32", "--train.num-workers", "0",
    "--train.log-every", "1", "--train.device", "cpu", "--max-length", "512",
]  # fmt: skip
FRESH = ["--llm", "llm", "--tokenizer", "vqrae"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_language_model("llama").save_pretrained("llm")
    tiny_text_tokenizer().save_pretrained("llm")
    tiny_vqrae().save_pretrained("vqrae")
    Path("pictures").mkdir()
    for number in range(4):
        noise_image(number).save(f"pictures/{number}.png")
    told = [("human", "<image>\nwhat?"), ("gpt", "a circle"), ("human", "draw it"), ("gpt", "ok")]
    talk = [{"from": who, "value": text} for who, text in told]
    drawn = [*talk[:3], {"from": "gpt", "value": "here<image>"}]
    records = [
        {"image": "0.png", "text": "a red circle"},
        {"image": "1.png", "text": "a blue square"},
        {"id": "t", "image": "2.png", "conversations": talk},
        {"id": "d", "image": ["2.png", "3.png"], "conversations": drawn},
    ]
    lines = "\n".join(json.dumps(record) for record in records)
    Path("pictures/own.jsonl").write_text(lines)
    Path("words.json").write_text(json.dumps([{"conversations": told_only(talk)}]))
    return tmp_path


def told_only(talk: list[dict]) -> list[dict]:
    return [turn | {"value": turn["value"].removeprefix("<image>\n")} for turn in talk]


def state(folder: str) -> dict[str, torch.Tensor]:
    return load_unified(folder, device="cpu")[0].state_dict()


def changed(before: dict, after: dict) -> set[str]:
    """Names of the parts in which two models differ, rows of text apart from those of codes."""
    parts = set()
    for name, value in after.items():
        if torch.equal(value, before[name]):
            continue
        if "embed_tokens" in name or "lm_head" in name:
            text = len(tiny_text_tokenizer())
            parts |= {"text rows"} if not torch.equal(value[:text], before[name][:text]) else set()
            parts |= {"code rows"} if not torch.equal(value[text:], before[name][text:]) else set()
        else:
            parts.add(name.split(".")[0])
    return parts


def test_one_file_of_records_holds_both_kinds(home):
    pairs = list(JsonlPairs("pictures/own.jsonl", epochs=1, shuffle=0))
    talks = list(LlavaDataset("pictures/own.jsonl", epochs=1, shuffle=0))
    assert [sample["text"] for sample in pairs] == ["a red circle", "a blue square"]
    assert [sample["key"] for sample in talks] == ["t", "d"] and len(talks[1]["images"]) == 2
    with pytest.raises(ValueError, match=r"'words.json' has no record with an image and a text"):
        JsonlPairs("words.json")


def test_llavas_two_stages(home):
    data = ["--chat", "pictures/own.jsonl"]
    assert main(["train", "llava-pretrain", "--run", "one", *FRESH, *data, *SMALL]) == 0
    assert main(["train", "llava-sft", "--run", "two", "--model", "one/final", *data, *SMALL]) == 0
    first, second = state("one/final"), state("two/final")
    llm = tiny_language_model("llama").state_dict()
    text = len(tiny_text_tokenizer())
    for name, value in llm.items():
        kept = first[f"language_model.{name}"]
        assert torch.equal(kept[:text] if "embed" in name or "head" in name else kept, value)
    assert changed(first, second) == {"language_model", "projector", "text rows", "code rows"}


def test_drawing_leaves_the_projector(home):
    run = ["train", "draw", "--run", "one", *FRESH, "--draw", "pictures/own.jsonl", *SMALL]
    assert main(run) == 0
    assert main([*run[:2], "--run", "two", "--model", "one/final", *run[8:]]) == 0
    assert "projector" not in changed(state("one/final"), state("two/final"))
    assert draw(*load_unified("two/final", device="cpu"), "a circle")[0][0].size == (32, 32)


def test_stages_train_what_they_are_named_for(home):
    data = ["--chat", "pictures/own.jsonl", "--draw", "pictures/own.jsonl", "--text", "words.json"]
    run = ["train", "unified-staged", "--run", "r", *FRESH, *data, *SMALL]
    run += ["--projector-steps", "2", "--rows-steps", "2"]
    assert main(run) == 0
    one, two, three = (state(f"r/{name}/final") for name in ("1-projector", "2-rows", "3-all"))
    assert changed(one, two) == {"code rows"}
    assert changed(two, three) == {"language_model", "projector", "text rows", "code rows"}
    rows = [json.loads(line) for line in Path("r/3-all/metrics.jsonl").read_text().splitlines()]
    assert {"loss_t2i", "loss_vqa"} <= set().union(*rows)
    assert main(run) == 0  # finished: nothing is trained again
    assert changed(three, state("r/3-all/final")) == set()


@pytest.mark.parametrize("bits", ["no-four-bit", "four-bit"])
def test_adapters_on_ones_own_file(home, bits):
    first = ["train", "draw", "--run", "one", *FRESH, "--draw", "pictures/own.jsonl", *SMALL]
    assert main(first) == 0
    run = ["train", "lora", "--run", "two", "--model", "one/final"]
    run += ["--data", "pictures/own.jsonl", *SMALL, f"--loss.{bits}"]
    assert main(run) == 0
    after = changed(state("one/final"), state("two/final"))
    assert after == {"language_model", "projector", "code rows"}


def test_what_is_missing_is_one_line(home, capsys):
    cases = [
        (["--llm", "llm", "--chat", "pictures/own.jsonl"], "give --llm and --tokenizer, or --m"),
        ([*FRESH, "--model", "x", "--chat", "pictures/own.jsonl"], "--model stands for --llm"),
        (FRESH, "give --chat, --draw or --text"),
        (["--llm", "no/such", "--tokenizer", "vqrae", "--text", "words.json"], "'no/such'"),
        (["--llm", "./no", "--tokenizer", "vqrae", "--text", "words.json"], "no folder './no'"),
    ]
    for arguments, message in cases:
        assert main(["train", "unified", "--run", "r", *arguments, *SMALL]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
