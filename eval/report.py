"""report.html: one self-contained file with the table, the pictures and the protocol."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqrae.data._files import write_whole
from vqrae.eval._report_template import BAR, PAGE, STYLE
from vqrae.eval.plots import code_histogram_plot, loss_curves
from vqrae.eval.table import Row, build_table, criteria_met

if TYPE_CHECKING:
    from PIL.Image import Image


_NAMES = {
    "color_attr": "color attribution",
    "yesno": "yes or no",
    "left": "which is left",
    "background": "tone of the background",
}


def _name(tag: str) -> str:
    return _NAMES.get(tag, tag.replace("_", " "))


def data_uri(content: bytes, mime: str) -> str:
    """`content` as a data: address, so that the page needs no second file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(image: Image) -> str:
    """A picture as an embedded PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def _tiles(rows: list[Row]) -> list[dict[str, str]]:
    met, judged = criteria_met(rows)
    tiles = [{"value": f"{met} of {judged}", "name": "targets met"}]
    shown = {
        "codebook utilisation": "of the codebook used",
        "PSNR": "reconstruction PSNR",
        "VQA accuracy": "questions answered right",
        "GenEval overall": "GenEval overall",
    }
    for row in rows:
        if row.metric in shown and row.value is not None:
            tiles.append({"value": row.value_text, "name": shown[row.metric]})
    return tiles


def _pairs(results: dict[str, Any]) -> tuple[list[dict], str]:
    found = results.get("reconstruction") or {}
    first = (results.get("stage1_reconstruction") or {}).get("examples", [])
    pairs = []
    for index, example in enumerate(found.get("examples", [])):
        images = [
            {"src": image_uri(example["original"]), "alt": "original"},
            {"src": image_uri(example["reconstruction"]), "alt": "reconstruction"},
        ]
        caption = f"{example['psnr']:.1f} dB"
        if index < len(first):
            images.append({"src": image_uri(first[index]["reconstruction"]), "alt": "stage 1"})
            caption += f", stage 1 {first[index]['psnr']:.1f} dB"
        pairs.append({"images": images, "caption": caption})
    order = "From the top: the original, its reconstruction from the codes"
    order += ", and stage 1's reconstruction." if first else "."
    return pairs, f"{order} The first pictures of the split, not chosen ones."


def _drawings(results: dict[str, Any]) -> tuple[list[dict], str]:
    parts = [results.get(key) for key in ("text_to_image", "more_drawing")]
    pairs = [(found, tag) for found in parts if found for tag in found["categories"]]
    if not pairs:
        return [], ""
    categories = []
    for found, tag in pairs:
        ceiling = (found.get("ceiling") or {}).get("categories", {})
        prompts = [
            {
                "text": example["prompt"],
                "pictures": [
                    {
                        "src": image_uri(picture["image"]),
                        "mark": "right" if picture["right"] else "wrong",
                        "reason": picture["reason"],
                    }
                    for picture in example["pictures"]
                ],
            }
            for example in found["examples"]
            if example["tag"] == tag
        ]
        categories.append(
            {
                "name": _name(tag),
                "score": found["categories"][tag],
                "baseline": found["baseline"]["categories"].get(tag),
                "ceiling": ceiling.get(tag),
                "prompts": prompts,
            }
        )
    legend = (
        "Share of pictures that the detector finds right. Dark tick: a random other scene; green "
        "tick: a true scene for the prompt after its way through the codes. Shown are the first "
        "prompts of each category, not chosen ones."
    )
    return categories, legend


def _questions(results: dict[str, Any]) -> tuple[list[dict], list[dict], str]:
    found = results.get("vqa")
    if not found:
        return [], [], ""
    blind = found["baseline"]["stronger"]
    kinds = [
        {
            "name": _name(kind),
            "score": score,
            "baseline": blind["types"].get(kind),
            "ceiling": None,
        }
        for kind, score in found["types"].items()
    ]
    questions = [
        {
            "src": image_uri(example["image"]),
            "question": example["question"],
            "answer": example["answer"],
            "expected": example["expected"],
            "mark": "right" if example["right"] else "wrong",
        }
        for example in found["examples"]
    ]
    legend = (
        f"Exact match on {found['questions']} questions. Dark tick: always giving the commonest "
        f"answer of that type in the {found['baseline']['source']} split."
    )
    return questions, kinds, legend


def _protocol(results: dict[str, Any]) -> list[dict]:
    groups: dict[str, dict[str, Any]] = {}
    for card in ("protocol", "environment", "model"):
        for name, value in (results.get(card) or {}).items():
            if isinstance(value, dict):
                groups[name] = value
            else:
                groups.setdefault(card, {})[name] = value
    return [
        {
            "name": name,
            "facts": [(f.replace("_", " "), v) for f, v in facts.items() if v is not None],
            "wide": any(len(str(value)) > 60 for value in facts.values()),
        }
        for name, facts in groups.items()
        if facts
    ]


def render_report(results: dict[str, Any], *, title: str = "VQRAE evaluation") -> str:
    """The page as HTML text. results: see run.evaluate; absent parts leave their section out."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    rows = build_table(results)
    pairs, pairs_legend = _pairs(results)
    drawings, drawings_legend = _drawings(results)
    questions, kinds, questions_legend = _questions(results)
    curves = loss_curves(results.get("curves") or {})
    found = results.get("reconstruction") or {}
    first = results.get("stage1_reconstruction") or {}
    histogram, histogram_legend = None, ""
    if found.get("histogram"):
        plot = code_histogram_plot(found["histogram"], first.get("histogram"))
        histogram = data_uri(plot, "image/svg+xml")
        histogram_legend = (
            f"Window: {found['window']['images']} images, {found['window']['tokens']} tokens. "
            f"Perplexity {found['perplexity']:.0f} of {found['codebook_size']} codes."
        )
    run = results.get("environment") or {}
    name = (results.get("model") or {}).get("name", "")
    facts = (name, run.get("finished", ""), run.get("device", ""))
    subtitle = " · ".join(str(fact) for fact in facts if fact)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.from_string(BAR + PAGE).render(
        title=title,
        subtitle=subtitle,
        style=Markup(STYLE),
        tiles=_tiles(rows),
        rows=rows,
        pairs=pairs,
        pairs_legend=pairs_legend,
        drawings=drawings,
        drawings_legend=drawings_legend,
        questions=questions,
        kinds=kinds,
        questions_legend=questions_legend,
        curves=data_uri(curves, "image/svg+xml") if curves else None,
        histogram=histogram,
        histogram_legend=histogram_legend,
        protocol=_protocol(results),
    )


def write_report(
    out_dir: str | Path, results: dict[str, Any], *, title: str = "VQRAE evaluation"
) -> Path:
    """Write OUT_DIR/report.html, whole or not at all, and return its path."""
    return write_whole(Path(out_dir) / "report.html", render_report(results, title=title))
