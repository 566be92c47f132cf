"""vqrae doctor: fine where all is well, a line for everything that is broken, never a traceback."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from vqrae.assets import nano_folder
from vqrae.eval import _doctor_machine as machine
from vqrae.eval._doctor_deepspeed import check_deepspeed
from vqrae.eval._doctor_model import check_model
from vqrae.eval._finding import guarded
from vqrae.eval.doctor import examine
from vqrae.scripts.main import main


def problems(folder) -> str:
    found = guarded("model", partial(check_model, folder), "the mend")
    assert all(f.text and "\n" not in f.text for f in found)
    wrong = [f for f in found if f.status == "problem"]
    assert all(f.mend for f in wrong)
    return " | ".join(f.text for f in wrong)


@pytest.fixture
def model(tmp_path):
    """A copy of the model that ships, to break."""
    return shutil.copytree(nano_folder(), tmp_path / "model")


def test_the_model_that_ships_is_well(capsys, tmp_path):
    assert main(["doctor", "--json", "--run", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {f["check"] for f in found} == {
        "installation", "device", "model", "deepspeed", "compiler", "disk", "hub",
    }  # fmt: skip
    texts = " | ".join(f["text"] for f in found)
    assert "each of 1024 codes is one id" in texts and "that it was measured with" not in texts
    assert "results.json' measured: model.safetensors" in texts
    assert "zero0, zero1, zero2, zero3, zero3_offload" in texts
    assert not (tmp_path / "run").exists()


def test_truncated_weights(model, capsys):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors' is not whole" in problems(model)
    assert main(["doctor", "--model", str(model)]) == 1
    shown = capsys.readouterr().out
    assert "problem" in shown and "is not whole" in shown and "-> save or copy" in shown


def test_files_that_lack_or_are_not_what_they_say(model, tmp_path):
    (model / "processor_config.json").unlink()
    assert "has no processor_config.json" in problems(model)
    (model / "config.json").write_text("{")
    assert "names no model_type" in problems(model)
    (model / "config.json").write_text('{"model_type": "bert"}')
    assert "holds a 'bert' model" in problems(model)
    assert "no config.json" in problems(tmp_path)
    assert "nowhere" in problems(tmp_path / "nowhere")


def test_the_tokenizer_of_another_model(model):
    shutil.copy(nano_folder("vfm") / "tokenizer.json", model)
    shutil.copy(nano_folder("vfm") / "tokenizer_config.json", model)
    assert "no <|code_0|>" in problems(model)


def test_a_tokenizer_with_two_codes_exchanged(model):
    """Layout and size are right, so that loading finds nothing."""
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    added = {token["content"]: token for token in content["added_tokens"]}
    for token, other in (("<|code_3|>", "<|code_4|>"), ("<|code_4|>", "<|code_3|>")):
        added[token]["content"] = other
    file.write_text(json.dumps(content))
    assert "2 of 1024 codes are not one id in their place: <|code_3|> is" in problems(model)


def test_weights_that_are_not_numbers_and_of_another_measurement(model):
    weights = load_file(model / "model.safetensors")
    assert not problems(model)
    name = next(name for name in weights if name.endswith("decoder.norm.weight"))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    shutil.copy(nano_folder().parent / "results.json", model.parent)
    found = problems(model)
    assert f"weights are not finite, {name} first" in found and "not all finite" in found
    everything = guarded("model", partial(check_model, model))
    assert any("not among those that" in f.text for f in everything)


SETTINGS = [
    ('{"zero_optimization": {"stage": 2, "overlap_com": true}}', "overlap_com"),
    ('{"zero_optimization": {"stage": 2}, "train_batch_size": 8}', "sets train_batch_size"),
    ('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}', "sets optimizer"),
    ('{"zero_optimisation": {"stage": 2}}', "did you mean 'zero_optimization'"),
    ('{"zero_optimization": {"stage": 7}}', "stage is 7"),
    ('{"zero_optimization": 2}', "zero_optimization is 2, not an object"),
    ('{"fp16": {"enabled": true}}', "enables fp16"),
    ("[]", "not a JSON object but a list"),
    ("{", "not JSON"),
]


@pytest.mark.parametrize(("text", "message"), SETTINGS, ids=[m for _, m in SETTINGS])
def test_settings_of_deepspeed_that_a_run_would_refuse_or_ignore(tmp_path, text, message):
    file = tmp_path / "mine.json"
    file.write_text(text)
    wrong = [f.text for f in check_deepspeed(str(file)) if f.status == "problem"]
    assert len(wrong) == 1 and message in wrong[0] and str(file) in wrong[0]


def test_a_missing_file_of_settings_and_good_ones(tmp_path):
    wrong = [f.text for f in check_deepspeed("zero9") if f.status == "problem"]
    assert len(wrong) == 1 and "'zero9', which is no file" in wrong[0]
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 1}}')
    found = list(check_deepspeed(str(tmp_path / "mine.json")))
    assert all(f.status == "ok" for f in found) and "mine.json" in found[-1].text


def test_old_and_missing_packages(monkeypatch):
    lines = ["torch>=999", "numpy>=1", "no-such-package>=1; extra == 'train'"]
    monkeypatch.setattr(machine, "requires", lambda _: lines)
    found = {f.status: f for f in machine.check_installation()}
    assert "torch is" in found["problem"].text and ">=999" in found["problem"].text
    assert "no-such-package is not installed" in found["warning"].text
    assert "vqrae[train]" in found["warning"].mend


def test_places_that_cannot_be_written_or_are_full(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (found,) = machine.check_disk(tmp_path / "file", None)
    assert found.status == "problem" and "is a file" in found.text

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", refuse)
        (found,) = machine.check_disk(tmp_path / "new" / "run", None)
        assert found.status == "problem" and f"'{tmp_path}' cannot be written" in found.text
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    found = list(machine.check_disk(tmp_path, 10**9))
    assert [f.status for f in found[:2]] == ["warning", "warning"]
    assert "up to 9.0 GB of checkpoints" in found[1].text


def test_a_check_that_breaks_is_a_problem(tmp_path, monkeypatch):
    def broken():
        yield from ()
        raise RuntimeError("first line\nsecond line")

    (found,) = guarded("device", broken, "mend it")
    assert found.text == "RuntimeError: first line" and found.mend == "mend it"
    monkeypatch.setitem(sys.modules, "vqrae.eval._doctor_deepspeed", None)
    monkeypatch.setattr("vqrae.eval.doctor.check_installation", lambda: iter(()))
    found = examine(tmp_path / "nowhere", run=tmp_path)
    assert {f.check for f in found if f.status == "problem"} == {"model", "deepspeed"}
