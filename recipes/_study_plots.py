"""Plots of studies, as SVG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vqrae.eval.plots import svg_bytes, tidy

Line = tuple[Sequence[float], Sequence[float]]


def lines_plot(
    panels: Sequence[tuple[str, Mapping[str, Line]]],
    *,
    y: str,
    x: str = "",
    log: bool = False,
) -> bytes:
    """One panel beside the other, each with named lines (xs, ys); `log` makes both axes so."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, lines) in zip(axes, panels, strict=True):
        for name, (xs, ys) in lines.items():
            place.plot(xs, ys, marker="o", markersize=4, linewidth=1.6, label=name)
        place.set_title(title, loc="left", fontsize=9)
        place.set_xlabel(x, fontsize=8)
        place.set_ylabel(y, fontsize=8)
        if log:
            place.set_xscale("log")
            place.set_yscale("log")
        tidy(place)
        # Below, where it covers no line.
        place.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4
        )
    return svg_bytes(figure)
