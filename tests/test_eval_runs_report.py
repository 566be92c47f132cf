"""The page of several results: one safe file, with the numbers, the paper's, and what differs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from vqrae.eval.benchmark_result import BenchmarkResult, write_benchmark
from vqrae.eval.compare import number
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.reconstruct import aggregate as means
from vqrae.eval.run import aggregate as scenes
from vqrae.eval.runs_report import write_runs_report
from vqrae.scripts.main import main

NASTY = "<script>alert('x')</script> & \"http://example.com/a.png\" $\\frac$"


class Page(HTMLParser):
    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.cells: list[list[str]] = []
        self.text, self.open = "", False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]
        self.handlers += [k for k, _ in attributes if k.startswith("on")]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.open:
            self.cells[-1][-1] = " ".join(f"{self.cells[-1][-1]} {data}".split())

    def row(self, name: str) -> list[str]:
        return next(row for row in self.cells if row and row[0].startswith(name))


def drawn(folder, right: list[list[bool]], protocol: dict, prompt="a star"):
    items = [
        {
            "id": f"geneval/single_object/{i}",
            "kind": "prompt",
            "set": "geneval",
            "tag": "single_object" if i % 2 else "counting",
            "prompt": prompt,
            "right": some,
        }
        for i, some in enumerate(right)
    ]
    scores = {"lpips": None, **scenes(items)}
    result = BenchmarkResult(
        benchmark="scenes-1",
        scores=scores,
        higher_is_better={name: name != "lpips" for name in scores},
        model={"name": NASTY, "weights sha256": {NASTY: "ab"}},
        protocol=protocol,
        environment={"device": NASTY, "finished": "today"},
        items=items,
    )
    write_benchmark(folder, result)
    (folder / "drawings").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "drawings/geneval-single_object-0.png")
    Image.new("RGB", (900, 600), "red").save(folder / "pairs.png")
    return folder


@pytest.fixture
def results(tmp_path):
    good = [[True, True]] * 9 + [[True, False]]
    poor = [[False, False]] * 8 + [[True, False]] * 2
    protocol = {"data": {"prompts_sha256": "ab"}, "sampling": {"guidance_scale": 3.0}}
    other = {"data": {"prompts_sha256": "ab"}, "sampling": {"guidance_scale": NASTY}}
    return [
        drawn(tmp_path / "good", good, protocol, prompt=NASTY),
        drawn(tmp_path / "poor", poor, protocol),
        drawn(tmp_path / "unlike", good, other),
    ]


def test_page_is_one_safe_file(results, tmp_path):
    (tmp_path / NASTY[:7]).mkdir()
    metrics = tmp_path / "$\\frac$.jsonl"
    metrics.write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(3)))
    out = write_runs_report(results, tmp_path / "page.html", runs=[metrics], title=NASTY, count=20)
    source = out.read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    images = [a for a in page.addresses if not a.startswith("#")]
    # pairs and one drawing of three results, and the curves
    assert len(images) == page.tags.count("img") == 7
    assert all(address.startswith("data:image/") for address in images)
    assert not page.handlers and "url(" not in source and "@import" not in source
    assert "default-src 'none'" in source
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?http", source)
    # title, prompt, name of a model, device, protocol: all of it is text
    assert page.text.count(NASTY) >= 6


def test_numbers_differences_and_the_paper(results, tmp_path):
    page = Page(write_runs_report(results, tmp_path / "page.html", count=200).read_text())
    overall = page.row("geneval")
    assert overall[1].startswith("0.950") and overall[2].startswith("0.100")
    low, high = map(float, re.search(r"([\d.]+) to ([\d.]+)", overall[1]).groups())
    assert low < 0.95 < high == 1
    assert overall[4].startswith("-0.850 worse") and overall[5] == "the same"
    assert page.row("lpips")[1:] == ["–"] * 5
    ours = next(row for row in page.cells if row[:1] == ["VQRAE, 0.6B"])
    names = ("geneval.single_object", "geneval.counting", "geneval")
    theirs = PAPER["scenes"].rows["VQRAE, 0.6B"]
    assert ours[1:] == [number(theirs[name]) for name in names]


def test_what_differs_is_marked(results, tmp_path):
    source = write_runs_report(results, tmp_path / "page.html", count=5).read_text()
    page = Page(source)
    assert "A and B were measured under one protocol" in page.text
    assert re.search(r"protocols of A and C differ.*\s*sampling.guidance_scale", page.text)
    assert page.row("sampling.guidance_scale")[1:3] == ["3.0", "3.0"]
    assert source.count('class="given differs"') >= 3
    assert page.text.count("1 fields that are the same") == 1


def test_benchmarks_stand_apart_and_items_must_be_shared(results, tmp_path):
    fewer = drawn(tmp_path / "fewer", [[True]] * 3, {"data": 1})
    items = [{"id": "a.png", "psnr": 20.0, "ssim": 0.5}, {"id": "b.png", "psnr": 22.0, "ssim": 0.7}]
    scores = {**means(items), "rfid": 2.0}
    other = BenchmarkResult(
        benchmark="reconstruction-1",
        scores=scores,
        higher_is_better={"psnr": True, "ssim": True, "rfid": False},
        model={},
        protocol={},
        items=items,
    )
    write_benchmark(tmp_path / "rec", other)
    (tmp_path / "rec" / "pairs.png").write_bytes(b"broken")
    out = write_runs_report([results[0], fewer, tmp_path / "rec"], tmp_path / "page.html", count=5)
    page = Page(out.read_text())
    assert "3 results of scenes-1, reconstruction-1" in page.text
    assert re.search(r"A and B cannot be compared: the items differ: 7 only in A", page.text)
    assert "LlamaGen" in page.text and "cannot be read" in page.text
    assert page.row("rfid")[0] == "rfid lower is better"


def test_on_the_command_line(results, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    line = ["eval", "report", *map(str, results), "--out", str(out), "--resamples", "5"]
    assert main(line) == 0 and out.is_file()
    assert main(["eval", "report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere/results.json' is missing" in capsys.readouterr().err
    assert main(["eval", "report"]) == 2
    assert "no result is named" in capsys.readouterr().err
