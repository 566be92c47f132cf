"""One page of several results: scores with intervals, the paper's, pictures, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqrae.data._files import write_whole
from vqrae.eval._runs_pictures import gallery
from vqrae.eval._runs_template import PAGE, STYLE
from vqrae.eval.benchmark_result import BenchmarkResult, flat, read_benchmark
from vqrae.eval.compare import ScoreRow, check_scores, compare, differences, number
from vqrae.eval.intervals import LEVEL, RESAMPLES, Interval, bootstrap
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.plots import COLORS, loss_curves
from vqrae.eval.report import data_uri
from vqrae.training import read_metrics

_SCALES = {"dpg": 100.0}
"""Benchmarks whose scores are not shares of 1."""
_BY_CATEGORY = ("geneval", "dpg")
"""Benchmarks all of whose scores are categories; of others those with a dot in their name."""


@dataclass(frozen=True)
class Run:
    """One result on the page."""

    letter: str
    color: str
    label: str
    folder: Path
    result: BenchmarkResult

    @property
    def short(self) -> str:
        return self.folder.name or self.label

    @property
    def facts(self) -> str:
        environment = self.result.environment
        facts = (self.result.benchmark, f"model {self.result.model.get('name', '')}")
        return " · ".join(
            str(f) for f in (*facts, environment.get("finished"), environment.get("device")) if f
        )


def write_runs_report(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    runs: Sequence[str | Path] = (),
    title: str = "VQRAE results",
    count: int = RESAMPLES,
) -> Path:
    """Write OUT, an HTML page that needs no second file, and return its path.

    Args:
        paths: folders that `vqrae eval` wrote; those of one benchmark are compared with the first.
        runs: training runs whose loss curves are shown.
        count: resamples of the intervals.

    Raises:
        ValueError: if a result is missing or broken.
    """
    if not paths:
        raise ValueError("no result is named; give folders that `vqrae eval` wrote")
    found = []
    for index, path in enumerate(paths):
        result = read_benchmark(path)
        check_scores(result, path)
        folder = Path(path).parent if Path(path).suffix == ".json" else Path(path)
        color = COLORS[index % len(COLORS)]
        found.append(Run(_letter(index), color, str(path), folder, result))
    names = [_run_name(Path(run)) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    records = {name: read_metrics(run) for name, run in zip(names, runs, strict=True)}
    return write_whole(out, render_runs_report(found, records, title=title, count=count))


def _run_name(path: Path) -> str:
    """Of a run directory or of its metrics, wherever they lie now."""
    if path.suffix != ".jsonl":
        return path.name
    return path.parent.name if path.stem == "metrics" else path.stem


def _letter(index: int) -> str:
    return chr(65 + index) if index < 26 else str(index + 1)


def render_runs_report(
    runs: Sequence[Run],
    records: Mapping[str, list[dict]] | None = None,
    *,
    title: str = "VQRAE results",
    count: int = RESAMPLES,
) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.result.benchmark, []).append(run)
    curves = loss_curves(records) if records else None
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return (
        environment.from_string(PAGE)
        .render(
            title=title,
            subtitle=f"{len(runs)} results of {', '.join(groups)}",
            style=Markup(STYLE),
            runs=runs,
            parts=[_part(name, members, count) for name, members in groups.items()],
            curves=data_uri(curves, "image/svg+xml") if curves else None,
            level=f"{LEVEL:.0%}",
            resamples=count,
        )
        .lstrip()
    )


def _part(benchmark: str, runs: list[Run], count: int) -> dict[str, Any]:
    """One benchmark's section."""
    first = runs[0]
    intervals = [score_intervals(run.result, count) for run in runs]
    names = list(dict.fromkeys(name for run in runs for name in run.result.scores))
    notices, against, gaps = _gaps(runs, count)
    rows = [
        {
            "name": name,
            "lower": first.result.higher_is_better.get(name) is False,
            "cells": [
                {"value": number(run.result.scores.get(name)), "range": _range(found.get(name))}
                for run, found in zip(runs, intervals, strict=True)
            ],
            "gaps": [_gap_cell(found.get(name)) for found in gaps],
        }
        for name in names
    ]
    bars, bar_range, has_paper = _bars(first.result.name, runs, names, intervals)
    pictures, legend = gallery([run.folder for run in runs], runs, first.result.items)
    protocols = _cards([run.result.protocol for run in runs])
    others = [{"model": r.result.model, "environment": r.result.environment} for r in runs]
    return {
        "benchmark": benchmark,
        "runs": runs,
        "against": against,
        "notices": notices,
        "rows": rows,
        "units": len({item.get("unit", item["id"]) for item in first.result.items}),
        "paper": _paper(first.result.name, runs),
        "bars": bars,
        "bar_range": bar_range,
        "bars_have_paper": has_paper,
        "pictures": pictures,
        "pictures_legend": legend,
        "protocol": {
            "differing": [row for row in protocols if row["differs"]],
            "same": [row for row in protocols if not row["differs"]],
        },
        "others": _cards(others),
    }


def score_intervals(result: BenchmarkResult, count: int = RESAMPLES) -> dict[str, Interval]:
    """Score to its interval, for those that items decide."""
    if not result.items:
        return {}
    items = sorted(result.items, key=lambda item: str(item["id"]))
    return bootstrap(items, result.over(items), count=count)


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def _gaps(
    runs: list[Run], count: int
) -> tuple[list[dict[str, Any]], list[Run], list[dict[str, ScoreRow]]]:
    """Notices, the runs that can be compared with the first, and their differences from it."""
    first, notices, against, gaps = runs[0], [], [], []
    for run in runs[1:]:
        pair = f"{first.letter} and {run.letter}"
        differing = list(differences(first.result.protocol, run.result.protocol))
        try:
            found = compare(
                first.result,
                run.result,
                allow=differing,
                count=count,
                sides=(first.letter, run.letter),
            )
        except ValueError as error:
            text = f"{pair} cannot be compared: {error}."
            notices.append({"text": text, "fields": [], "good": False})
            continue
        against.append(run)
        gaps.append({row.score: row for row in found.rows})
        if differing:
            text = f"The protocols of {pair} differ, and so may their scores for that reason alone:"
            notices.append({"text": text, "fields": differing, "good": False})
        else:
            text = f"{pair} were measured under one protocol, on the same items."
            notices.append({"text": text, "fields": [], "good": True})
    return notices, against, gaps


def _gap_cell(row: ScoreRow | None) -> dict[str, str]:
    if row is None or row.difference is None:
        return {"value": "–", "range": "", "mark": "", "style": ""}
    if row.verdict == "the same":
        return {"value": "the same", "range": "", "mark": "", "style": ""}
    mark = {"B better": "better", "A better": "worse", "they differ": "differs"}
    style = {"B better": "met", "A better": "not-met", "they differ": "not-judged"}
    ends = "" if row.interval is None else " to ".join(number(e, "+") for e in row.interval)
    return {
        "value": number(row.difference, "+"),
        "range": ends,
        "mark": mark.get(row.verdict, ""),
        "style": style.get(row.verdict, ""),
    }


def _paper(benchmark: str, runs: list[Run]) -> dict[str, Any] | None:
    """Ours and the paper's rows, of the scores that we have, too."""
    table = PAPER.get(benchmark)
    if table is None:
        return None
    theirs = list(dict.fromkeys(name for row in table.rows.values() for name in row))
    names = [n for n in theirs if any(run.result.scores.get(n) is not None for run in runs)]
    if not names:
        return None
    ours = [
        {"run": run, "found": [number(run.result.scores.get(name)) for name in names]}
        for run in runs
    ]
    rows = [
        {"name": system, "found": [number(row.get(name)) for name in names]}
        for system, row in table.rows.items()
    ]
    return {"about": table.about, "note": table.note, "names": names, "ours": ours, "theirs": rows}


def _bars(
    benchmark: str, runs: list[Run], names: list[str], intervals: list[dict[str, Interval]]
) -> tuple[list[dict[str, Any]], tuple[str, str], str]:
    scale = _SCALES.get(benchmark, 1.0)
    table = PAPER.get(benchmark)
    system, theirs = next(iter(table.rows.items())) if table else ("", {})
    bars, has_paper = [], ""
    for name in names:
        values = [run.result.scores.get(name) for run in runs]
        known = [value for value in values if value is not None]
        category = benchmark in _BY_CATEGORY or "." in name or name in theirs
        # more than the scale: points, decibels
        if not category or not known or not 0 <= min(known) <= max(known) <= scale:
            continue
        lines = []
        for run, value, found in zip(runs, values, intervals, strict=True):
            ends = found.get(name)
            span = None
            if ends is not None and ends[1] > ends[0]:
                span = (_percent(ends[0] / scale), _percent((ends[1] - ends[0]) / scale))
            lines.append(
                {
                    "width": _percent((value or 0) / scale),
                    "color": run.color,
                    "range": span,
                    "text": number(value),
                }
            )
        paper = theirs.get(name)
        has_paper = has_paper or (system if paper is not None else "")
        tick = None if paper is None else _percent(paper / scale)
        bars.append({"name": name, "lines": lines, "paper": tick})
    return bars if len(bars) > 1 else [], ("0", f"{scale:g}"), has_paper


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _cards(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each field of the cards with its value in every one."""
    every = [flat(card) for card in cards]
    return [
        {
            "field": name,
            "found": ["nothing" if name not in card else str(card[name]) for card in every],
            "differs": any(name not in card or card[name] != every[0].get(name) for card in every),
        }
        for name in dict.fromkeys(name for card in every for name in card)
    ]
