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
            # Losses span less than a decade: 1.8 says more than 1.8 x 10^0.
            place.yaxis.set_major_formatter("{x:g}")
            place.yaxis.set_minor_formatter("{x:g}")
        tidy(place)
        # Below, where it covers no line.
        place.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4
        )
    return svg_bytes(figure)


def bars_plot(panels: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]]) -> bytes:
    """One panel beside the other: groups of bars, each group by the name below it, and in a group
    one bar a series with its value above; a group may lack a series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, groups) in zip(axes, panels, strict=True):
        series = list(dict.fromkeys(name for group in groups.values() for name in group))
        width = 0.8 / len(series)
        for index, name in enumerate(series):
            here = [(at, g[name]) for at, g in enumerate(groups.values()) if name in g]
            left = (index - (len(series) - 1) / 2) * width
            bars = place.bar(
                [at + left for at, _ in here], [value for _, value in here], width, label=name
            )
            place.bar_label(bars, fmt="%.3g", fontsize=5, padding=1)
        place.set_xticks(range(len(groups)), groups)
        place.set_title(title, loc="left", fontsize=9)
        tidy(place)
        place.tick_params("x", labelsize=6)
        place.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3
        )
    return svg_bytes(figure)
