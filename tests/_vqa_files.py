"""Two or three questions of each benchmark, in the columns and folders of its files on the hub."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

COLOURS = ("red", "green", "blue", "yellow")


def encoded(colour: str) -> bytes:
    buffer = io.BytesIO()
    Pictures.new("RGB", (12, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]], *, plain: bool = False) -> None:
    """A parquet file; `plain`: pictures as mere structs of bytes and path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = None
    if not plain:
        columns = {name: _feature(name, value) for name, value in rows[0].items()}
        features = Features(columns)
    Dataset.from_list(rows, features=features).to_parquet(path)


def _feature(name: str, value: Any) -> Any:
    if name == "image":
        return List(Image()) if isinstance(value, list) else Image()
    if isinstance(value, list):
        return List(Value("string"))
    return Value("int64" if isinstance(value, int) else "string")


def picture(colour: str) -> dict[str, Any]:
    return {"bytes": encoded(colour), "path": f"{colour}.png"}


def write_hub_files(data: Path) -> None:
    """Everything, beside files of other configs and splits that must not be read."""
    pope = [
        {"id": str(n), "question_id": str(n % 2), "question": f"Is there a {c} in the image?",
         "answer": "yes" if n % 2 else "no", "image_source": "x", "image": picture(c),
         "category": part}
        for n, (part, c) in enumerate(
            (part, c) for part in ("adversarial", "popular", "random") for c in COLOURS[:2]
        )
    ]  # fmt: skip
    write(data / "pope/data/test-00000-of-00001.parquet", pope, plain=True)
    write(data / "pope/Full/random-00000-of-00001.parquet", pope[4:])

    gqa = data / "gqa"
    asked = [
        {"id": f"20{n}", "imageId": f"n{n % 2}", "question": f"What colour is it, {n}?",
         "answer": COLOURS[n], "fullAnswer": "It is."}
        for n in range(3)
    ]  # fmt: skip
    write(gqa / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", asked)
    write(gqa / "challenge_all_instructions/challenge-00000-of-00001.parquet", asked[:1])
    shown = [{"id": f"n{n}", "image": picture(COLOURS[n])} for n in (1, 0)]
    write(gqa / "testdev_balanced_images/testdev-00000-of-00001.parquet", shown)

    textvqa = [
        {"image_id": f"i{n}", "question_id": 34602 + n, "question": "what brand is it?",
         "image": picture(COLOURS[n]), "answers": ["nous les gosses"] * 9 + ["dakota"],
         "ocr_tokens": ["DAKOTA", "DIGITAL"]}
        for n in range(2)
    ]  # fmt: skip
    write(data / "textvqa/data/validation-00000-of-00001.parquet", textvqa)
    write(data / "textvqa/data/train-00000-of-00001.parquet", textvqa[:1])

    mmbench = [
        {"index": index, "question": "Which one?", "hint": hint, "A": "red", "B": "green",
         "C": third, "D": "nan", "answer": "B", "category": "color", "image": picture("green"),
         "L2-category": "finegrained_perception (instance-level)", "split": "dev"}
        for index, hint, third in ((241, "nan", "blue"), (252, "Look closely.", "nan"))
    ]  # fmt: skip
    write(data / "mmbench/en/dev-00000-of-00001.parquet", mmbench)
    write(data / "mmbench/en/test-00000-of-00001.parquet", mmbench[:1])
    write(data / "mmbench/cn/dev-00000-of-00001.parquet", mmbench[:1])

    mme = [
        {"question_id": f"{part}/{n // 2}.png", "image": picture(COLOURS[n // 2]),
         "question": f"Is it {COLOURS[n]}? Please answer yes or no.",
         "answer": "No" if n % 2 else "Yes", "category": part}
        for part in ("color", "code_reasoning") for n in range(4)
    ]  # fmt: skip
    write(data / "mme/data/test-00000-of-00004.parquet", mme)

    seed = [
        {"answer": "B", "choice_a": "red", "choice_b": "green", "choice_c": "blue",
         "choice_d": "two", "data_id": str(n), "data_type": kind, "question": "How many?",
         "question_id": f"{n}", "question_type_id": type_id, "image": [picture("red")] * images}
        for n, (kind, type_id, images) in enumerate([("image", 5, 1), ("video", 10, 3),
                                                     ("image", 1, 1)])
    ]  # fmt: skip
    write(data / "seedbench/data/test-00000-of-00001.parquet", seed)

    ai2d = [
        {"question": "which of these define dairy item", "options": ["c", "D", "b", "a"],
         "answer": str(n), "image": picture("blue")} for n in (1, 3)
    ]  # fmt: skip
    write(data / "ai2d/data/test-00000-of-00001.parquet", ai2d)


def write_official_files(data: Path) -> None:
    """The releases' own forms, for those that are read."""
    for folder in ("pope/val2014", "gqa/images", "textvqa/train_images", "mme/color/images",
                   "mme/color/questions_answers_YN", "mme/existence", "mmbench",
                   "seedbench/SEED-Bench-image"):  # fmt: skip
        (data / folder).mkdir(parents=True)
    red = encoded("red")
    lines = [
        {"question_id": n, "image": "COCO_1.jpg", "text": "Is there a dog?", "label": label}
        for n, label in ((1, "yes"), (2, "no"))
    ]
    for part in ("random", "popular"):
        text = "\n".join(json.dumps(line) for line in lines)
        (data / f"pope/coco_pope_{part}.json").write_text(text)
    (data / "pope/val2014/COCO_1.jpg").write_bytes(red)
    asked = {"201": {"imageId": "n1", "question": "Is it red?", "answer": "yes"}}
    (data / "gqa/testdev_balanced_questions.json").write_text(json.dumps(asked))
    (data / "gqa/images/n1.jpg").write_bytes(red)
    row = {"question_id": 34602, "image_id": "i1", "question": "what?", "answers": ["a"] * 10}
    (data / "textvqa/TextVQA_0.5.1_val.json").write_text(json.dumps({"data": [row]}))
    (data / "textvqa/train_images/i1.jpg").write_bytes(red)
    for name in ("color/questions_answers_YN/1", "existence/2"):
        pair = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo"
        (data / f"mme/{name}.txt").write_text(pair)
    (data / "mme/color/images/1.png").write_bytes(red)
    (data / "mme/existence/2.jpg").write_bytes(red)
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tl2-category\tsplit"
    rows = [
        ["7", "Which?", "", "red", "blue", "", "", "A", "color", base64.b64encode(red).decode()],
        # the second shift of the same question; its picture is that of row 7
        ["1000007", "Which?", "", "blue", "red", "", "", "B", "color", "7"],
    ]
    body = ["\t".join([*row, "coarse_perception", "dev"]) for row in rows]
    (data / "mmbench/mmbench_dev_20230712.tsv").write_text("\n".join([head, *body]) + "\n")
    question = {"answer": "A", "data_id": "1_2", "data_type": "image", "question": "How many?",
                "question_id": "101669", "question_type_id": 5}  # fmt: skip
    question |= {f"choice_{letter}": letter for letter in "abcd"}
    text = json.dumps({"questions": [question, {**question, "data_type": "video"}]})
    (data / "seedbench/SEED-Bench.json").write_text(text)
    (data / "seedbench/SEED-Bench-image/1_2").write_bytes(red)
