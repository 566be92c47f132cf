"""The table of an evaluation: each number beside its baseline, its criterion and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

USAGE_TARGET = 0.90
PSNR_MARGIN_DB = 3.0
VQA_MARGIN = 0.15
SINGLE_OBJECT_FACTOR = 3.0
ZERO_SHOT_MARGIN = 0.02

_SLACK = 1e-9
"""Numbers that equal the target in decimals must not fail by binary rounding."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    metric: str
    value: float | None
    """None where it was not measured."""
    baseline: float | None = None
    baseline_name: str = ""
    criterion: str = ""
    """Empty for a number that is reported without a target."""
    met: bool | None = None
    """None without a criterion, or where it could not be judged; `note` says why."""
    note: str = ""
    form: str = ".2f"
    """Format of value and baseline."""
    unit: str = ""

    def _text(self, number: float | None, absent: str) -> str:
        return absent if number is None else f"{number:{self.form}}{self.unit}"

    @property
    def value_text(self) -> str:
        return self._text(self.value, "not measured")

    @property
    def baseline_text(self) -> str:
        if self.baseline is None:
            return ""
        return f"{self._text(self.baseline, '')} {self.baseline_name}".strip()

    @property
    def verdict(self) -> str:
        if not self.criterion:
            return ""
        return {True: "met", False: "not met", None: "not judged"}[self.met]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def _judge(value: float | None, baseline: float | None, test: Any) -> bool | None:
    return None if value is None or baseline is None else bool(test(value, baseline))


def _reconstruction_rows(results: dict[str, Any]) -> list[Row]:
    part = "reconstruction"
    found = results.get("reconstruction") or {}
    first = results.get("stage1_reconstruction") or {}
    window = found.get("window", {})
    whole = bool(found.get("whole_split"))
    usage = found.get("usage")
    note = f"{window.get('images')} images, {window.get('tokens')} tokens" if window else ""
    psnr, mean_psnr = found.get("psnr"), found.get("baseline_psnr")
    rows = [
        Row(
            part,
            "codebook utilisation",
            usage,
            first.get("usage"),
            "stage 1" if first else "",
            f"≥ {USAGE_TARGET:.0%} over the whole held-out split",
            (usage >= USAGE_TARGET - _SLACK) if usage is not None and whole else None,
            note if whole or not found else f"{note}: not the whole split",
            ".1%",
        ),
        Row(
            part,
            "codebook perplexity",
            found.get("perplexity"),
            first.get("perplexity"),
            "stage 1" if first else "",
            note=f"of {found['codebook_size']} codes" if found else "",
            form=".0f",
        ),
        Row(
            part,
            "PSNR",
            psnr,
            mean_psnr,
            "mean training image",
            f"≥ {PSNR_MARGIN_DB:g} dB above",
            _judge(psnr, mean_psnr, lambda v, b: v - b >= PSNR_MARGIN_DB - _SLACK),
            "mean over images",
            unit=" dB",
        ),
        Row(
            part,
            "PSNR, stage 2 against stage 1",
            psnr if first else None,
            first.get("psnr"),
            "stage 1",
            "above stage 1",
            _judge(psnr, first.get("psnr"), lambda v, b: v > b),
            "" if first else "no stage-1 tokenizer given",
            unit=" dB",
        ),
        Row(
            part,
            "SSIM",
            found.get("ssim"),
            first.get("ssim"),
            "stage 1" if first else "",
            form=".3f",
        ),
        Row(
            part,
            "LPIPS (lower is better)",
            found.get("lpips"),
            note="" if found.get("lpips") is not None else "not available: no weight file given",
            form=".3f",
        ),
    ]
    return rows


def _zero_shot_rows(results: dict[str, Any]) -> list[Row]:
    found = results.get("zero_shot") or {}
    encoder, teacher = found.get("encoder") or {}, found.get("teacher") or {}
    value, baseline = encoder.get("accuracy"), teacher.get("accuracy")
    note = "" if found else "no teacher given"
    rows = [
        Row(
            "encoder",
            "zero-shot accuracy",
            value,
            baseline,
            "teacher",
            f"within {ZERO_SHOT_MARGIN * 100:g} points of the teacher",
            _judge(value, baseline, lambda v, b: v >= b - ZERO_SHOT_MARGIN - _SLACK),
            f"chance {encoder['chance']:.1%}, {encoder['images']} scenes" if encoder else note,
            ".1%",
        )
    ]
    for key, name in (("trained_pairs", "trained pairs"), ("held_out_pairs", "held-out pairs")):
        if encoder.get(key) is not None:
            rows.append(
                Row(
                    "encoder",
                    f"zero-shot, {name}",
                    encoder[key],
                    teacher.get(key),
                    "teacher",
                    form=".1%",
                )
            )
    return rows


def _vqa_rows(results: dict[str, Any]) -> list[Row]:
    found = results.get("vqa") or {}
    baseline = (found.get("baseline") or {}).get("stronger") or {}
    value, blind = found.get("overall"), baseline.get("overall")
    source = (found.get("baseline") or {}).get("source", "")
    rows = [
        Row(
            "understanding",
            "VQA accuracy",
            value,
            blind,
            "commonest answer per type",
            f"≥ {VQA_MARGIN * 100:g} points above",
            _judge(value, blind, lambda v, b: v - b >= VQA_MARGIN - _SLACK),
            f"{found['questions']} questions; commonest in the {source} split" if found else "",
            ".1%",
        )
    ]
    blinds = found.get("baseline") or {}
    for name, note in (
        ("words", "commonest training answer to the same words"),
        ("guess", "among the answers of the type"),
    ):
        if blinds.get(name):
            title = {"words": "VQA, text only", "guess": "VQA, random guess"}[name]
            share = blinds[name]["overall"]
            rows.append(Row("understanding", title, share, note=note, form=".1%"))
    for kind, share in found.get("types", {}).items():
        rows.append(
            Row(
                "understanding",
                f"VQA, {kind}",
                share,
                baseline.get("types", {}).get(kind),
                f"“{baseline.get('answers', {}).get(kind, '')}”",
                note=f"{found['counts'][kind]} questions",
                form=".1%",
            )
        )
    return rows


def _drawing_rows(results: dict[str, Any]) -> list[Row]:
    found = results.get("text_to_image") or {}
    scores = found.get("categories", {})
    baseline = (found.get("baseline") or {}).get("categories", {})
    ceiling = (found.get("ceiling") or {}).get("categories", {})
    value, random = scores.get("single_object"), baseline.get("single_object")

    def note(tag: str) -> str:
        if tag not in scores:
            return ""
        count = f"{found['counts'][tag]} prompts × {found['images_per_prompt']}"
        return f"ceiling {ceiling[tag]:.1%}, {count}" if tag in ceiling else count

    rows = [
        Row(
            "drawing",
            "GenEval single object",
            value,
            random,
            "random other scene",
            f"≥ {SINGLE_OBJECT_FACTOR:g} times",
            _judge(
                value,
                random,
                lambda v, b: v > 0 and v >= SINGLE_OBJECT_FACTOR * b - _SLACK,
            ),
            note("single_object"),
            ".1%",
        )
    ]
    for tag in scores:
        if tag != "single_object":
            rows.append(
                Row(
                    "drawing",
                    f"GenEval {tag.replace('_', ' ')}",
                    scores[tag],
                    baseline.get(tag),
                    "random other scene",
                    note=note(tag),
                    form=".1%",
                )
            )
    if found:
        top = found.get("ceiling")
        rows.append(
            Row(
                "drawing",
                "GenEval overall",
                found["overall"],
                found["baseline"]["overall"],
                "random other scene",
                note="mean of categories" + (f", ceiling {top['overall']:.1%}" if top else ""),
                form=".1%",
            )
        )
    return rows


_MORE = {
    "trained_combinations": "GenEval, trained combinations",
    "two_beside_one": "two beside one",
    "two_beside_one_held_out": "two beside one, one pair held out",
}


def _more_drawing_rows(results: dict[str, Any]) -> list[Row]:
    found = results.get("more_drawing") or {}
    return [
        Row(
            "drawing",
            _MORE.get(tag, tag.replace("_", " ")),
            score,
            found["baseline"]["categories"].get(tag),
            "random other scene",
            note=f"{found['counts'][tag]} prompts × {found['images_per_prompt']}",
            form=".1%",
        )
        for tag, score in found.get("categories", {}).items()
    ]


def build_table(results: dict[str, Any]) -> list[Row]:
    """Rows from the results of run.evaluate; a part that is absent or None is 'not measured'.

    Every verdict is computed here from the numbers, and None where one of them is missing.
    """
    return [
        *_reconstruction_rows(results),
        *_zero_shot_rows(results),
        *_vqa_rows(results),
        *_drawing_rows(results),
        *_more_drawing_rows(results),
    ]


def criteria_met(rows: list[Row]) -> tuple[int, int]:
    """(met, all) over the rows that have a criterion; one that could not be judged is not met."""
    judged = [row for row in rows if row.criterion]
    return sum(row.met is True for row in judged), len(judged)


_HEAD = ("metric", "value", "baseline", "criterion", "verdict", "note")


def _cells(row: Row) -> tuple[str, ...]:
    return (row.metric, row.value_text, row.baseline_text, row.criterion, row.verdict, row.note)


def rich_table(rows: list[Row], *, title: str = "evaluation") -> Table:
    """The table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, header_style="bold", row_styles=())
    for name in _HEAD:
        table.add_column(name, justify="right" if name == "value" else "left")
    styles = {"met": "bold green", "not met": "bold red", "not judged": "yellow"}
    for index, row in enumerate(rows):
        cells: list[Any] = [Text(cell) for cell in _cells(row)]
        cells[1].stylize("dim" if row.value is None else "bold")
        cells[4].stylize(styles.get(row.verdict, ""))
        last = index + 1 == len(rows) or rows[index + 1].part != row.part
        table.add_row(*cells, end_section=last)
    return table


def plain_table(rows: list[Row]) -> str:
    """The table as aligned plain text, for logs and files."""
    lines = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (lines[0], rule, *lines[1:])
    )
