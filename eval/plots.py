"""Loss curves and the code histogram as SVG bytes, to be embedded in the report."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure

_INK, _MUTED = "#1f2430", "#8a90a0"
COLORS = ("#3457d5", "#d9663c", "#2e9e6b", "#9a4fc4", "#c9971c", "#3aa6c2", "#c23b6b", "#767d8f")

LOSS_PARTS = frozenset(
    ("pixel", "perceptual", "quantization", "distillation", "adversarial", "critic")
)
"""Logged parts of a loss that do not say so in their name."""


def metric_series(
    records: Sequence[Mapping[str, Any]], wanted: Callable[[str], bool]
) -> dict[str, tuple[list, list]]:
    """name -> (steps, values) of every finite number whose name is wanted."""
    series: dict[str, tuple[list, list]] = {}
    for record in records:
        for name, value in record.items():
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if number and wanted(name):
                steps, values = series.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return series


def _is_loss(name: str) -> bool:
    return "loss" in name.lower() or name in LOSS_PARTS


def svg_bytes(figure: Figure) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # no date and a fixed salt: the same numbers give the same bytes
    with mpl.rc_context({"svg.hashsalt": "vqrae", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()


def plain(name: str) -> str:
    """A name that is shown as it is: its "$" begins no formula."""
    return name.replace("$", "\\$")


def tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=8)
    axes.grid(axis="y", color="#e6e8ee", linewidth=0.8)
    axes.set_axisbelow(True)


def _panel(axes: Any, title: str, found: Mapping[str, tuple[list, list]]) -> None:
    ordered = sorted(found, key=lambda key: (key != "loss", key))
    for index, key in enumerate(ordered):
        steps, values = found[key]
        main = index == 0
        axes.plot(
            steps,
            values,
            color=COLORS[index % len(COLORS)],
            linewidth=2.0 if main else 1.1,
            label=plain(key.removeprefix("loss_")),
            zorder=3 if main else 2,
        )
    numbers = [value for _, values in found.values() for value in values]
    if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        axes.set_yscale("log")
    axes.set_title(plain(title), loc="left", fontsize=10, color=_INK, fontweight="bold")
    axes.set_xlabel("step", fontsize=8, color=_MUTED)
    tidy(axes)
    if len(ordered) > 1:
        axes.legend(fontsize=7, frameon=False, ncols=2, labelcolor=_INK)


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes | None:
    """One panel a run: its loss in bold, its parts thinner; and one for codebook utilisation.

    runs: name -> records (see read_metrics). Returns SVG, None where no run logged a loss.
    """
    panels = {}
    for name, records in runs.items():
        found = metric_series(records, _is_loss)
        if found:
            panels[f"{name}: loss"] = found
    usage = {
        name: series["usage"]
        for name, records in runs.items()
        if (series := metric_series(records, "usage".__eq__))
    }
    if not panels:
        return None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    count = len(panels) + bool(usage)
    columns = min(2, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * lines), layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, found) in zip(grid, panels.items(), strict=False):
        _panel(axes, title, found)
    if usage:
        axes = grid[len(panels)]
        _panel(axes, "codebook utilisation in training", usage)
        axes.set_yscale("linear")
        axes.set_ylim(0, 1.02)
        if len(usage) == 1:
            axes.legend(fontsize=7, frameon=False, labelcolor=_INK)
    for axes in grid[count:]:
        axes.set_visible(False)
    return svg_bytes(figure)


def code_histogram_plot(histogram: Sequence[int], other: Sequence[int] | None = None) -> bytes:
    """How often each code occurs, the commonest first. other: the same of stage 1, for contrast.

    Codes that never occur fall off the line's end: its length is the utilisation. Returns SVG.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    shown = [("this tokenizer", histogram, COLORS[0])]
    if other is not None:
        shown.append(("stage 1", other, COLORS[1]))
    for name, counts, color in shown:
        used = sorted((count for count in counts if count > 0), reverse=True)
        label = f"{name}: {len(used)} of {len(counts)} codes used"
        ranks = range(1, len(used) + 1)
        if name == "this tokenizer":
            axes.fill_between(ranks, used, 0.5, color=color, alpha=0.15, linewidth=0)
        axes.plot(ranks, used, color=color, linewidth=1.6, label=label)
    even = sum(histogram) / len(histogram)
    axes.axhline(even, color=_MUTED, linewidth=1, linestyle=":", label="all equally often")
    axes.set_yscale("log")
    axes.set_xlim(0, len(histogram))
    axes.set_ylim(bottom=0.5)
    axes.set_xlabel("codes, the commonest first", fontsize=8, color=_MUTED)
    axes.set_ylabel("occurrences", fontsize=8, color=_MUTED)
    tidy(axes)
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK)
    return svg_bytes(figure)
