"""The table's verdicts follow the numbers, and the report is one safe file."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from vqrae.eval.plots import loss_curves
from vqrae.eval.protocol import model_card, picture_sha256, set_sha256
from vqrae.eval.report import render_report, write_report
from vqrae.eval.run import plain_results
from vqrae.eval.table import build_table, criteria_met, plain_table, rich_table
from vqrae.training import read_metrics

NASTY = "<script>alert('x')</script> & \"http://example.com/a.png\""


def picture(color: str = "red") -> Image.Image:
    return Image.new("RGB", (64, 64), color)


@pytest.fixture
def results() -> dict:
    """Results that meet every target, each just so."""
    pair = {"original": picture(), "reconstruction": picture("blue"), "psnr": 21.0}
    reconstruction = {
        "psnr": 18.0,
        "ssim": 0.7,
        "lpips": None,
        "baseline_psnr": 15.0,
        "usage": 0.9,
        "perplexity": 3.0,
        "codebook_size": 10,
        "window": {"images": 5, "tokens": 80},
        "whole_split": True,
        "histogram": [8] * 10,
        "examples": [pair],
    }
    blind = {"overall": 0.25, "types": {"color": 0.25}, "answers": {"color": NASTY}}
    drawn = {"image": picture("green"), "right": True, "reason": NASTY}
    return {
        "reconstruction": reconstruction,
        "stage1_reconstruction": copy.deepcopy(reconstruction) | {"psnr": 17.9},
        "zero_shot": {
            "encoder": {"accuracy": 0.78, "chance": 1 / 64, "images": 64, "held_out_pairs": 0.5},
            "teacher": {"accuracy": 0.80, "held_out_pairs": 0.6},
        },
        "vqa": {
            "overall": 0.4,
            "types": {"color": 0.4},
            "counts": {"color": 10},
            "questions": 10,
            "baseline": {"stronger": blind, "source": "test"},
            "examples": [
                {
                    "image": picture(),
                    "question": NASTY,
                    "answer": NASTY,
                    "expected": "red",
                    "type": "color",
                    "right": False,
                }
            ],
        },
        "text_to_image": {
            "categories": {"single_object": 0.6, "counting": 0.1},
            "overall": 0.35,
            "baseline": {"categories": {"single_object": 0.2, "counting": 0.0}, "overall": 0.1},
            "ceiling": {"categories": {"single_object": 0.9, "counting": 0.8}, "overall": 0.85},
            "counts": {"single_object": 2, "counting": 1},
            "images_per_prompt": 1,
            "examples": [{"prompt": NASTY, "tag": "single_object", "pictures": [drawn]}],
        },
        "model": {"name": NASTY, "weights sha256": {NASTY: "ab"}},
        "protocol": {"seed": 0, "sampling": {"guidance_scale": NASTY}},
        "environment": {"device": NASTY},
        "curves": {"stage 1": [{"step": i, "loss": 1.0 / (i + 1)} for i in range(5)]},
    }


def verdicts(results: dict) -> dict[str, bool | None]:
    return {row.metric: row.met for row in build_table(results) if row.criterion}


TARGETS = [
    ("codebook utilisation", ("reconstruction", "usage"), 0.899),
    ("PSNR", ("reconstruction", "baseline_psnr"), 15.01),
    ("PSNR, stage 2 against stage 1", ("stage1_reconstruction", "psnr"), 18.0),
    ("zero-shot accuracy", ("zero_shot", "teacher", "accuracy"), 0.801),
    ("VQA accuracy", ("vqa", "baseline", "stronger", "overall"), 0.251),
    ("GenEval single object", ("text_to_image", "categories", "single_object"), 0.599),
]


def change(results: dict, path: tuple[str, ...], value) -> None:
    for key in path[:-1]:
        results = results[key]
    results[path[-1]] = value


def test_every_target_is_met_at_its_edge(results):
    found = verdicts(results)
    assert set(found) == {metric for metric, _, _ in TARGETS}
    assert all(met is True for met in found.values()), found
    assert criteria_met(build_table(results)) == (6, 6)


@pytest.mark.parametrize(("metric", "path", "value"), TARGETS, ids=[t[0] for t in TARGETS])
def test_a_verdict_flips_with_its_number_and_alone(results, metric, path, value):
    change(results, path, value)
    found = verdicts(results)
    assert found.pop(metric) is False
    assert all(found.values())


def test_utilisation_of_a_part_is_not_judged(results):
    results["reconstruction"]["whole_split"] = False
    assert verdicts(results)["codebook utilisation"] is None
    assert criteria_met(build_table(results)) == (5, 6)


def test_no_right_drawing_is_never_three_times_nothing(results):
    change(results, ("text_to_image", "categories", "single_object"), 0.0)
    change(results, ("text_to_image", "baseline", "categories", "single_object"), 0.0)
    assert verdicts(results)["GenEval single object"] is False


def test_absent_parts_are_not_measured(results):
    absent = ("stage1_reconstruction", "zero_shot", "vqa", "text_to_image")
    results |= dict.fromkeys(absent)
    found = verdicts(results)
    assert found["PSNR"] is True and found["codebook utilisation"] is True
    assert [met for met in found.values() if met is None] == [None] * 4
    text = plain_table(build_table(results))
    assert text.count("not measured") == 5 and text.count("not judged") == 4
    page = render_report(results)
    assert "not measured" in page and 'id="drawings"' not in page and 'id="questions"' not in page


def test_tables_show_the_same_rows(results):
    from rich.console import Console

    rows = build_table(results)
    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(rows))
    drawn, plain = console.export_text(), plain_table(rows)
    for row in rows:
        for cell in (row.metric, row.value_text, row.verdict):
            assert cell in drawn and cell in plain


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def test_report_is_self_contained_and_escapes(results, tmp_path):
    path = write_report(tmp_path / "out", results)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    source = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(source)
    images = [address for address in page.addresses if not address.startswith("#")]
    # two reconstructions and the original, one drawing, one question, curves, histogram
    assert len(images) == page.tags.count("img") == 7
    assert all(address.startswith("data:image/") for address in images)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in source and "@import" not in source
    # the nasty text stands there as text, six times over
    assert page.text.count(NASTY) >= 6
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?http", source)
    assert "5 of" not in page.text and "6 of 6" in page.text


def test_results_are_plain_numbers(results):
    results["table"] = [row.to_dict() for row in build_table(results)]
    found = json.loads(json.dumps(plain_results(results)))
    assert found["vqa"]["overall"] == 0.4 and "examples" not in found["vqa"]
    assert "curves" not in found
    assert found["table"][0]["verdict"] == "met"
    assert plain_results({"examples": [1], "a": ({"examples": 2, "b": 3},)}) == {"a": [{"b": 3}]}


def test_a_failed_write_leaves_the_old_report(results, tmp_path, monkeypatch):
    path = write_report(tmp_path, results)
    old = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, results, title="other")
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_curves_read_what_runs_write(tmp_path):
    rows = [{"step": 1, "loss": 2.0, "usage": 0.5}, {"step": 2, "loss": None, "pixel": 0.1}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "lo']))
    assert read_metrics(tmp_path) == rows
    first = loss_curves({"run": rows})
    assert first.startswith(b"<?xml") and first == loss_curves({"run": rows})
    assert loss_curves({"run": [{"step": 1, "speed": 3.0}]}) is None
    wide = [{"step": i, "loss_$\\frac$": 10.0**-i} for i in range(5)]
    assert loss_curves({"a $\\frac$ b": wide}).startswith(b"<?xml")  # no formula of a name
    with pytest.raises(ValueError, match="no metrics"):
        read_metrics(tmp_path / "elsewhere")


def test_cards_hash_weights_and_data(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    card = model_card({"model": tmp_path})
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    again = model_card({"model": tmp_path})
    assert card["name"] == tmp_path.name and set(card["weights sha256"]) == {
        "model: model.safetensors"
    }
    assert card["weights sha256"] != again["weights sha256"]
    flat, square = Image.new("RGB", (4, 1), "red"), Image.new("RGB", (2, 2), "red")
    assert picture_sha256(flat) != picture_sha256(square)  # the same bytes
    assert set_sha256(["a", "b"]) == set_sha256(["b", "a"]) != set_sha256(["a", "a", "b"])
