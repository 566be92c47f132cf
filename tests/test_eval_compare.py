"""Comparisons: intervals as scipy has them, units drawn together, refusals that name the field."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from vqrae.eval.benchmark_result import BenchmarkResult, distinct, read_benchmark, write_benchmark
from vqrae.eval.compare import compare
from vqrae.eval.intervals import bootstrap, resamples, units_of
from vqrae.eval.reconstruct import aggregate
from vqrae.scripts.main import main


def result(psnr, *, units=None, **changes) -> BenchmarkResult:
    items = [
        {"id": f"{i:04d}", "psnr": float(p), "ssim": 0.5}
        | ({"unit": units[i]} if units is not None else {})
        for i, p in enumerate(psnr)
    ]
    fields = {
        "benchmark": "reconstruction-1",
        "scores": {**aggregate(items), "rfid": 2.0},
        "higher_is_better": {"psnr": True, "ssim": True, "rfid": False},
        "model": {"name": "m"},
        "protocol": {"images": "ab", "sampling": {"guidance_scale": 3.0, "seed": 0}},
        "environment": {"finished": "today", "versions": {"torch": "1"}},
        "items": items,
    }
    return BenchmarkResult(**fields | changes)


def pair(n=200, shift=0.3, **changes):
    rng = np.random.default_rng(5)
    first = rng.normal(20, 5, n)
    return result(first, **changes), result(first + rng.normal(shift, 1, n), **changes)


def rows(found) -> dict:
    return {row.score: row for row in found.rows}


def test_interval_is_that_of_scipy_and_of_the_closed_form():
    a, b = pair(400)
    found = rows(compare(a, b, count=4000))["psnr"]
    gaps = np.array([y["psnr"] - x["psnr"] for x, y in zip(a.items, b.items, strict=True)])
    theirs = scipy.stats.bootstrap(
        (gaps,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    error = gaps.std() / len(gaps) ** 0.5
    assert found.difference == pytest.approx(gaps.mean())
    assert found.interval == pytest.approx(tuple(theirs), abs=0.15 * error)
    closed = (gaps.mean() - 1.96 * error, gaps.mean() + 1.96 * error)
    assert found.interval == pytest.approx(closed, abs=0.15 * error)
    # Unpaired, pictures of such different difficulty would hide it.
    assert found.excludes_zero and found.verdict == "B better"
    narrow = rows(compare(a, b, level=0.5))["psnr"].interval
    assert np.diff(narrow) == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_it_is_the_same_in_any_order_and_turns_with_its_sides():
    a, b = pair(50)
    found = rows(compare(a, b))
    back = rows(compare(b, a))["psnr"]
    low, high = found["psnr"].interval
    assert back.interval == pytest.approx((-high, -low), rel=1e-12)
    shuffled = replace(b, items=b.items[::-1])
    assert rows(compare(a, shuffled)) == found
    same = rows(compare(a, a))["psnr"]
    assert same.interval == (0, 0) and same.verdict == "the same"


def test_verdicts_know_which_way_is_better():
    a, b = pair(50, shift=3)
    lower = {"higher_is_better": {"psnr": False, "ssim": True}}
    found = rows(compare(replace(a, **lower), replace(b, **lower)))
    assert found["psnr"].verdict == "A better" and found["ssim"].verdict == "the same"
    assert found["rfid"].interval is None and found["rfid"].verdict == ""
    assert found["rfid"].difference == 0


def test_a_difference_that_chance_explains_is_unclear():
    a, b = pair(30, shift=0)
    found = rows(compare(a, b))["psnr"]
    assert found.difference and not found.excludes_zero and found.verdict == "unclear"


def test_units_are_drawn_together():
    """Ten questions about each of 30 pictures, all right or all wrong: 30 facts, not 300."""
    rng = np.random.default_rng(0)
    by_picture = rng.normal(0, 1, 30)
    units = [f"picture {i // 10}" for i in range(300)]
    a = result(np.zeros(300), units=units)
    b = result(np.repeat(by_picture, 10), units=units)
    low, high = rows(compare(a, b, count=2000))["psnr"].interval
    error = by_picture.std() / 30**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    with pytest.raises(ValueError, match="A belong to other units than those of B"):
        compare(a, result(np.repeat(by_picture, 10), units=units[::-1]))


def test_strata_keep_their_sizes():
    items = [{"id": str(i), "stratum": "counts" if i < 3 else "colors"} for i in range(10)]
    units = units_of(items)
    for places in resamples(units, count=20, seed=1):
        assert len(places) == 10 and (places < 3).sum() == 3
    assert bootstrap(items, lambda places: {"n": float(len(places))}, count=5) == {"n": (10, 10)}
    # what else was measured changes nothing
    more = [*items, *({"id": f"x{i}", "stratum": "more"} for i in range(7))]
    for few, many in zip(
        resamples(units, count=3), resamples(units_of(more), count=3), strict=True
    ):
        assert sorted(few) == sorted(place for place in many if place < 10)
    # without them the number of each kind would be left to chance, too
    loose = units_of([{"id": str(i)} for i in range(10)])
    assert len({(places < 3).sum() for places in resamples(loose, count=20, seed=1)}) > 1


def test_unlike_things_are_refused_by_name():
    a, b = pair(5)
    protocol = {"images": "cd", "sampling": {"guidance_scale": 1.0, "seed": 0}}
    other = replace(b, protocol=protocol)
    with pytest.raises(ValueError, match="images is 'ab' in A, 'cd' in B") as error:
        compare(a, other)
    assert "sampling.guidance_scale is 3.0 in A, 1.0 in B" in str(error.value)
    assert "seed" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="images is") as error:
        compare(a, other, allow=["sampling"])
    assert "guidance" not in str(error.value)
    found = compare(a, other, allow=["images", "sampling.guidance_scale"])
    assert found.allowed == {"images": ("ab", "cd"), "sampling.guidance_scale": (3.0, 1.0)}
    with pytest.raises(ValueError, match="no field 'guidance' to allow; it has images, sampling."):
        compare(a, b, allow=["guidance"])
    with pytest.raises(ValueError, match="dtype is 'nothing' in A, 'bfloat16' in B"):
        compare(a, replace(b, protocol={**a.protocol, "dtype": "bfloat16"}))
    with pytest.raises(ValueError, match="is of reconstruction-1, 'B' of reconstruction-2"):
        compare(a, replace(b, benchmark="reconstruction-2"))
    with pytest.raises(ValueError, match=r"items differ: 1 only in A \('0004' first\);"):
        compare(a, result([p["psnr"] for p in b.items[:4]]))
    with pytest.raises(ValueError, match="have one id twice"):
        compare(a, replace(b, items=[*b.items, b.items[0]]))
    with pytest.raises(ValueError, match="psnr .* are of two measurements"):
        compare(a, replace(b, items=[item | {"psnr": 1.0} for item in b.items]))


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = pair(30)
    environment = {"finished": "later", "versions": {"torch": "2"}}
    write_benchmark("a", a)
    write_benchmark("b", replace(b, environment=environment))
    write_benchmark("c", replace(b, protocol={"images": "ab", "sampling": {"seed": 1}}))
    assert main(["eval", "compare", "a", "b", "--json", "out.json"]) == 0
    shown = capsys.readouterr().out
    assert "note: versions.torch was 1 for A, 2 for B" in shown and "finished" not in shown
    assert "rfid ↓" in shown
    found = json.loads((tmp_path / "out.json").read_text())
    assert {row["score"]: row["interval"] is None for row in found["rows"]} == {
        "psnr": False, "ssim": False, "rfid": True,
    }  # fmt: skip
    assert main(["eval", "compare", "a", "c"]) == 2
    assert "sampling.seed is 0 in A, 1 in B" in capsys.readouterr().err
    assert main(["eval", "compare", "a", "c", "--allow", "sampling"]) == 0
    assert "allowed to differ: sampling.seed is 0 in A, 1 in B" in capsys.readouterr().out
    assert main(["eval", "compare", "a", "nowhere"]) == 2
    assert "nowhere/results.json' is missing" in capsys.readouterr().err
    (tmp_path / "b" / "items.jsonl").write_text('{"id": ')
    assert main(["eval", "compare", "a", "b"]) == 2
    assert "results in 'b' are broken" in capsys.readouterr().err


def test_the_quick_rule_is_the_rule():
    (a, _) = pair(40)
    places = np.random.default_rng(0).integers(40, size=60)
    slow = a.aggregate([a.items[place] for place in places])
    assert a.over(a.items)(places) == pytest.approx(slow, rel=1e-12)


def test_a_result_survives_its_files(tmp_path):
    (a, _) = pair(3, environment={"device": "cpu"}, details={"window": 3})
    write_benchmark(tmp_path, a)
    assert read_benchmark(tmp_path) == read_benchmark(tmp_path / "results.json") == a
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
