"""DPG-Bench: its file, its rules by hand, resumed, on ranks, on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image
from vqrae.eval._answers import Answers
from vqrae.eval._drawings import cut_grid, grid_of
from vqrae.eval.benchmark_result import read_benchmark
from vqrae.eval.dpg import (
    COLUMNS,
    Question,
    aggregate,
    draw_dpg,
    holding,
    judge_pictures,
    picture_files,
    read_dpg,
    score_dpg,
)
from vqrae.scripts.main import main

HEAD = [
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
    "category_detailed", "tuple", "question_natural_language",
]  # fmt: skip
# (item, proposition, dependency, tuple, question)
ROWS = [
    ("a1", 1, "0", "entity - whole (circle)", "Is there a circle?"),
    ("a1", 2, "1", "attribute - color (circle, red)", "Is the circle red?"),
    ("a1", 3, "1, 4", "relation - spatial (circle, star, above)", "Is the circle above the star?"),
    ("a1", 4, "0", "entity - whole (star)", "Is there a star?"),
    ("b2", 1, "0", "global - (drawing)", "Is it a drawing?"),
    ("b2", 2, "0", "other - count (stars, ==2)", "Are there two stars?"),
]


def write_csv(path: Path, rows: Sequence[tuple] = ROWS, head: Sequence[str] = HEAD) -> Path:
    texts = {"a1": "a red circle above a star", "b2": "two stars"}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for item, number, dependency, proposition, question in rows:
            broad, _, detailed = proposition.partition(" - ")
            text = texts.get(item, "")
            writer.writerow(
                [item, text, "", number, dependency, broad, detailed, proposition, question]
            )
    return path


def test_reading_the_official_form(tmp_path):
    prompts = read_dpg(write_csv(tmp_path / "dpg.csv"))
    assert [(p.id, p.text, len(p.questions)) for p in prompts] == [
        ("a1", "a red circle above a star", 4),
        ("b2", "two stars", 2),
    ]
    third = prompts[0].questions[2]
    assert third.parents == (1, 4) and third.category == "relation - spatial"
    assert third.broad == "relation" and prompts[1].questions[0].broad == "global"
    described = [("the id", "its number", "0", "entity - whole (x)", "a question"), *ROWS]
    assert read_dpg(write_csv(tmp_path / "described.csv", described)) == prompts
    assert read_dpg(tmp_path / "dpg.csv", limit=1) == prompts[:1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("b2", "x", "0", "other - (y)", "z?")], r"line 8: proposition_id 'x' or depend"),
        ([*ROWS, ("b2", 3, "", "other - (y)", "z?")], r"line 8: .*dependency '' is not made of"),
        ([*ROWS, ("b2", 3, "9", "other - (y)", "z?")], "3 of 'b2' depends on 9, which is not"),
        ([*ROWS, ("b2", 2, "0", "other - (y)", "z?")], "proposition 2 of 'b2' comes twice"),
        ([*ROWS, ("b2", 3, "0", "", "z?")], "names no category"),
        ([*ROWS, ("b2", 3, "0", "other - (y)", " ")], "line 8: a row without item_id or question"),
        ([*ROWS, ("../c", 1, "0", "other - (y)", "z?")], "cannot name a picture"),
        ([*ROWS, ("c3", 1, "0", "other - (y)", "z?")], "'c3' has no text"),
        ([], "holds no question"),
    ],
)
def test_bad_rows_are_one_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        read_dpg(write_csv(tmp_path / "dpg.csv", rows))
    assert "\n" not in str(error.value)


def test_missing_files_and_columns(tmp_path):
    with pytest.raises(ValueError, match="not found; give a file like dpg_bench.csv"):
        read_dpg(tmp_path / "no.csv")
    head = ["x" if name == "dependency" else name for name in HEAD]
    with pytest.raises(ValueError, match="has no column dependency"):
        read_dpg(write_csv(tmp_path / "dpg.csv", head=head))
    assert set(COLUMNS) < set(HEAD)


def asked(*parents: tuple[int, ...]) -> list[Question]:
    return [Question(n, f"{n}?", p, "entity - whole") for n, p in enumerate(parents, 1)]


@pytest.mark.parametrize(
    ("parents", "yes", "held"),
    [
        ([(), (1,)], "YY", "YY"),
        ([(), (1,)], "NY", "NN"),  # a child without its parent
        ([(), (1,)], "YN", "YN"),
        ([(), (), (1, 2)], "YNY", "YNN"),  # of two parents both
        ([(), (1,), (2,)], "NYY", "NNN"),  # grandchildren, too
        ([(2,), (3,), ()], "YYN", "YNN"),  # but not where they stand before: as the official one
        ([(), (), (1,)], "YNY", "YNY"),
    ],
)
def test_the_dependency_rule(parents, yes, held):
    found = holding(asked(*parents), {n: letter == "Y" for n, letter in enumerate(yes, 1)})
    assert "".join("NY"[found[n]] for n in sorted(found)) == held


class Pixels:
    """A judge whose pictures say the answers: red is a number, its bits are those of the questions;
    a set eighth bit makes all of them unclear."""

    name = "pixels"

    def __init__(self, card: str = "1") -> None:
        self.card, self.calls = {"name": card}, 0

    def answers(self, picture: Image.Image, questions: Sequence[str]) -> Iterator[tuple[int, str]]:
        bits = picture.getpixel((1, 1))[0]
        for place, question in reversed(list(enumerate(questions))):
            self.calls += 1
            number = int(next(str(r[1]) for r in ROWS if r[4] == question))
            yes = "Yes." if bits >> (number - 1) & 1 else "no"
            yield place, "perhaps" if bits & 128 else yes


# Of each prompt's pictures, the answers as bits.
DRAWN = {"a red circle above a star": [0b1111, 0b1110], "two stars": [0b11, 128 | 0b11]}


def draw(prompts: list[str]) -> list[list[Image.Image]]:
    return [[Image.new("RGB", (6, 4), (v, 0, 0)) for v in DRAWN[p]] for p in prompts]


CARD = {"model": {"name": "m", "weights sha256": {}}, "drawn": {"seed": 0}}


def test_scores_by_hand(tmp_path):
    prompts = read_dpg(write_csv(tmp_path / "dpg.csv"))
    root = draw_dpg(prompts, tmp_path, draw, CARD, images_per_prompt=2)
    result = score_dpg(root, tmp_path, prompts, Pixels(), images_per_prompt=2)
    # a1: all four; then without the circle only the star: 4/4, 1/4. b2: 2/2, then unclear: 0/2.
    assert [item["score"] for item in result.items] == [1, 0.25, 1, 0]
    # The last pictures alone, whatever the parents: star but no circle; red; above; two unclear.
    assert result.scores == {
        "global": 0, "entity": 50, "attribute": 100, "relation": 100, "other": 0, "overall": 56.25,
    }  # fmt: skip
    assert list(result.scores)[-1] == "overall"
    assert result.details["unclear answers"] == 2 and result.details["answers"] == 12
    assert result.details["categories over all pictures"]["entity"] == 75
    assert result.details["detailed categories"]["entity - whole"] == 50
    again = read_benchmark(tmp_path)
    assert again.aggregate(again.items) == result.scores
    # A prompt that is drawn twice by the bootstrap weighs twice.
    assert aggregate(again.items[:2] * 3 + again.items[2:])["overall"] == pytest.approx(
        100 * (3 * 0.625 + 0.5) / 4
    )
    assert again.protocol["prompts"]["questions"] == 6 and again.protocol["images per prompt"] == 2


def test_grids_are_the_official_ones():
    colors = ["red", "green", "blue", "white"]
    four = [Image.new("RGB", (5, 3), color) for color in colors]
    sheet = grid_of(four)
    assert sheet.size == (10, 6) and sheet.getpixel((9, 0)) == (0, 128, 0)
    for count in (2, 3, 4):
        cut = cut_grid(grid_of(four[:count]), count)
        assert [p.tobytes() for p in cut] == [p.tobytes() for p in four[:count]]
    assert cut_grid(four[0], 1)[0] is four[0]
    assert [p.size for p in cut_grid(Image.new("RGB", (8, 8)), 4, 4)] == [(4, 4)] * 4


def test_resumed_and_on_two_ranks(tmp_path):
    prompts = read_dpg(write_csv(tmp_path / "dpg.csv"))
    root = draw_dpg(prompts, tmp_path, draw, CARD, images_per_prompt=2)
    for rank in (1, 0):
        other = draw_dpg(
            prompts, tmp_path / "two", draw, CARD, images_per_prompt=2, rank=rank, world=2
        )
    for prompt in prompts:
        name = f"{prompt.id}.png"
        assert (root / name).read_bytes() == (other / name).read_bytes()
    files = picture_files(root, prompts)
    whole = judge_pictures(prompts, files, Pixels(), images_per_prompt=2)
    halves = [
        judge_pictures(prompts, files, Pixels(), images_per_prompt=2, rank=r, world=2)
        for r in (0, 1)
    ]
    assert halves[0] + halves[1] == whole

    class Dying(Pixels):
        def answers(self, picture, questions):
            for found in super().answers(picture, questions):
                if self.calls > 7:
                    raise ValueError("the judge cannot be reached")
                yield found

    dying, judge = Dying(), Pixels()
    with pytest.raises(ValueError, match="cannot be reached"):
        score_dpg(root, tmp_path, prompts, dying, images_per_prompt=2)
    result = score_dpg(root, tmp_path, prompts, judge, images_per_prompt=2)
    assert result.items == whole and judge.calls == 12 - 7
    kept = [json.loads(line) for line in (tmp_path / "answers" / "0000.jsonl").open()]
    assert len({entry["key"] for entry in kept}) == len(kept) == 12
    other_judge = Pixels("2")
    score_dpg(root, tmp_path, prompts, other_judge, images_per_prompt=2)
    assert other_judge.calls == 12


def test_answers_of_other_ranks_are_read(tmp_path):
    with Answers(tmp_path, 1) as answers:
        answers.put("k", "ja, ü")
    (tmp_path / "0001.jsonl").open("a").write('{"key": "torn", "val')
    with Answers(tmp_path, 1) as answers:
        assert answers.get("k") == "ja, ü" and answers.get("torn") is None
        answers.put("next", "no")
    with Answers(tmp_path, 0) as answers:
        assert answers.get("next") == "no"


def test_pictures_that_do_not_fit(tmp_path):
    prompts = read_dpg(write_csv(tmp_path / "dpg.csv"))
    with pytest.raises(ValueError, match="no folder of pictures"):
        picture_files(tmp_path / "nowhere", prompts)
    Image.new("RGB", (8, 8)).save(tmp_path / "a1.jpg")
    with pytest.raises(ValueError, match="lacks the pictures of 1 of 2 prompts, as of 'b2'"):
        picture_files(tmp_path, prompts)
    Image.new("RGB", (7, 8)).save(tmp_path / "b2.png")
    files = picture_files(tmp_path, prompts)
    with pytest.raises(ValueError, match="is 7 x 8, no grid of 4 pictures"):
        judge_pictures(prompts[1:], files[1:], Pixels())
    with pytest.raises(ValueError, match="is 8 x 8, no grid of 4 pictures of 5"):
        judge_pictures(prompts[:1], files[:1], Pixels(), resolution=5)


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "dpg.csv")
    line = ["eval", "dpg", "--csv", "dpg.csv", "--device", "cpu", "--images-per-prompt", "2"]
    from vqrae.assets import nano_folder

    assert main([*line, "--out", "out", "--draw-only", "--limit", "1"]) == 0
    first = Path("out/pictures/a1.png").read_bytes()
    assert main([*line, "--out", "out", "--judge", str(nano_folder())]) == 0
    shown = capsys.readouterr().out
    assert "DPG-Bench by unified, 2 prompts" in shown and "86.67" in shown
    assert Path("out/pictures/a1.png").read_bytes() == first
    scores = read_benchmark("out").scores
    given = ["--pictures", "out/pictures", "--out", "again", "--judge", str(nano_folder())]
    assert main([*line, *given]) == 0
    assert read_benchmark("again").scores == scores
    assert read_benchmark("again").model["name"] == "unified"
    capsys.readouterr()
    for options, message in (
        ([], "give one judge"),
        (["--judge", "x", "--judge-url", "http://x"], "give one judge"),
        (["--judge-url", "http://x"], "needs --judge-model"),
        (["--judge", "/no/where"], "no judge in '/no/where'"),
        (["--draw-only", "--pictures", "x"], "give one of them"),
        (["--judge", str(nano_folder()), "--judge-template", "x"], "has no {question}"),
        (["--images-per-prompt", "5"], "must be 1 to 4"),
        (["--judge", str(nano_folder()), "--csv", "no.csv"], "prompts 'no.csv' not found"),
        (["--out", "out", "--judge", str(nano_folder()), "--seed", "3"], "drawn.seed 0, not 3"),
    ):
        assert main([*line, *options]) == 2, options
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
