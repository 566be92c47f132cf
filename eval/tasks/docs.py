"""Each benchmark's files as questions of one form, for lm-eval's `custom_dataset`.

A question holds "id" (unique), "question", "image" (a list), "answer", and what its scores need:
"category", "group" (questions that count together), "options". Every function takes `data`, the
folder that holds a folder for each benchmark (without it, $VQRAE_VQA_DATA or the hub's cache), and
returns {"test": questions}.
"""

from __future__ import annotations

import base64
import os
from functools import wraps
from itertools import takewhile
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vqrae.eval.tasks.answers import circular_shifts
from vqrae.eval.tasks.catalog import AI2D, GQA, GQA_IMAGES, MMBENCH, MME, POPE, SEEDBENCH, TEXTVQA
from vqrae.eval.tasks.scores import SEED_DIMENSIONS
from vqrae.eval.tasks.sources import Docs, Row, official_files, read_json, read_table, read_tsv


def _dataset(load):
    """The loader with its folder settled; lm-eval hands it all metadata of the task."""

    @wraps(load)
    def custom_dataset(data: str | None = None, **_: Any) -> dict[str, Docs]:
        return {"test": load(data or os.environ.get("VQRAE_VQA_DATA"))}

    return custom_dataset


def _words(text: Any) -> str:
    # `<image>` is the place of a picture, and a benchmark's text may not add one.
    return str(text).replace("<image>", "").strip()


def _given(value: Any) -> bool:
    return value is not None and value == value and str(value).lower() not in ("", "nan", "none")


def _choice(options: list[str], answer: str) -> dict[str, Any]:
    """Options as LLaVA writes them, "A. ..." on a line each."""
    listed = "\n".join(
        f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)
    )
    return {"options": options, "choices": listed, "answer": answer}


# -- the benchmarks --------------------------------------------------------------------------


@_dataset
def pope(data: str | None) -> Docs:
    """9,000 questions whether a thing is in a picture, in three equal parts."""
    rows = [
        {**row, "category": file.stem.split("_")[-1], "question": row["text"],
         "answer": row["label"], "image": file.parent / "val2014" / row["image"]}
        for file in official_files(POPE, data, "coco_pope_*.json")
        for row in read_json(file)
    ]  # fmt: skip
    rows = rows or read_table(POPE, data)
    order = [(number, number) for number in range(len(rows))]
    return Docs(rows, _pope, order)


def _pope(row: Row, number: int) -> dict[str, Any]:
    return {
        "id": f"{row['category']}-{row.get('question_id', number)}",
        "question": _words(row["question"]),
        "image": [row["image"]],
        "answer": row["answer"].strip().lower(),
        "category": row["category"],
    }


@_dataset
def gqa(data: str | None) -> Docs:
    """12,578 questions of the balanced test-development split."""
    found = official_files(GQA, data, "testdev_balanced_questions.json")
    if found:
        rows = [{**row, "id": key} for key, row in read_json(found[0]).items()]
        folder = found[0].parent / "images"
        return Docs(rows, lambda row: _gqa(row, folder / f"{row['imageId']}.jpg"))
    rows, pictures = read_table(GQA, data), read_table(GQA_IMAGES, data)
    place = {key: number for number, key in enumerate(pictures["id"])}
    unknown = set(rows["imageId"]) - set(place)
    if unknown:
        raise ValueError(
            f"gqa has no picture '{min(unknown)}' among its {len(place)}; copy the files again"
        )
    return Docs(rows, lambda row: _gqa(row, pictures[place[row["imageId"]]]["image"]))


def _gqa(row: Row, image: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "question": _words(row["question"]),
        "image": [image],
        "answer": row["answer"],
    }


@_dataset
def textvqa(data: str | None) -> Docs:
    """5,000 questions about text in pictures, each answered by ten people."""
    found = official_files(TEXTVQA, data, "TextVQA_*_val.json")
    if found:
        folder = found[0].parent / "train_images"
        rows = [
            {**row, "image": folder / f"{row['image_id']}.jpg"}
            for row in read_json(found[0])["data"]
        ]
        return Docs(rows, _textvqa)
    return Docs(read_table(TEXTVQA, data), _textvqa)


def _textvqa(row: Row) -> dict[str, Any]:
    return {
        "id": str(row["question_id"]),
        "question": _words(row["question"]),
        "image": [row["image"]],
        "answer": list(row["answers"]),
        "ocr": ", ".join(_words(token) for token in row.get("ocr_tokens") or ()),
    }


@_dataset
def mmbench(data: str | None) -> Docs:
    """The English development split, every question once for each of its options.

    A file that holds the shifted questions already (their index is a million or more higher) is
    asked as it is; of another each question's shifts are made here.
    """
    found = official_files(MMBENCH, data, "*.tsv")
    rows = _mmbench_tsv(found[0]) if found else read_table(MMBENCH, data)
    heads = rows if found else rows.remove_columns("image")  # whose pictures are not read here
    if max((int(row["index"]) for row in heads), default=0) >= _SHIFTED:
        return Docs(rows, _mmbench, [(number, None) for number in range(len(rows))])
    counts = [len(_abcd(row)) for row in heads]
    order = [(number, shift) for number, count in enumerate(counts) for shift in range(count)]
    return Docs(rows, _mmbench, order)


def _mmbench_tsv(path: Path) -> list[Row]:
    """Rows whose picture is base64, or the index of the row that has it."""
    rows = read_tsv(path)
    pictures = {row["index"]: row["image"] for row in rows}
    encoded = (pictures.get(row["image"], row["image"]) for row in rows)
    return [
        {**row, "image": base64.b64decode(text)} for row, text in zip(rows, encoded, strict=True)
    ]


_SHIFTED = 1_000_000


def _abcd(row: Row) -> list[str]:
    """The options, up to the first that is missing."""
    columns = (row.get(name) for name in "ABCD")
    return [_words(text) for text in takewhile(_given, columns)]


def _mmbench(row: Row, shift: int | None) -> dict[str, Any]:
    index = int(row["index"])
    options = _abcd(row)
    answer = str(row["answer"]).strip()
    if answer not in ascii_uppercase[: len(options)] or not answer:
        raise ValueError(
            f"question {index} of mmbench has the answer {answer!r} for {len(options)} options; "
            "take the development split, whose answers are public"
        )
    if shift is not None:
        index += shift * _SHIFTED
        options, answer = circular_shifts(options, answer)[shift]
    hint = f"{_words(row['hint'])}\n" if _given(row.get("hint")) else ""
    return {
        "id": str(index),
        "question": hint + _words(row["question"]),
        "image": [row["image"]],
        "group": str(index % _SHIFTED),
        "plain": index < _SHIFTED,
        "category": str(row.get("L2-category") or row.get("l2-category") or row.get("category")),
        **_choice(options, answer),
    }


@_dataset
def mme(data: str | None) -> Docs:
    """2,374 questions of fourteen subtasks, two for each picture."""
    rows = [
        row for file in official_files(MME, data, "*/**/*.txt") for row in _mme_file(file, data)
    ]
    rows = rows or read_table(MME, data)
    return Docs(rows, _mme, [(number, number) for number in range(len(rows))])


def _mme_file(file: Path, data: str) -> list[Row]:
    """Both questions of a text file, whose picture lies beside it or in ../images."""
    category = file.relative_to(Path(data) / MME.name).parts[0]
    beside = [*file.parent.glob(f"{file.stem}.*"), *file.parent.glob(f"../images/{file.stem}.*")]
    pictures = [path for path in beside if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not pictures:
        raise ValueError(f"'{file}' has no picture beside it or in ../images; copy it again")
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line]
    name = f"{category}/{file.stem}"
    return [
        {"question_id": name, "category": category, "question": question, "answer": answer,
         "image": pictures[0]}
        for question, answer in lines
    ]  # fmt: skip


def _mme(row: Row, number: int) -> dict[str, Any]:
    # LLaVA asks for a single word in place of MME's own sentence.
    question = _words(row["question"]).removesuffix("Please answer yes or no.").strip()
    return {
        "id": f"{row['question_id']}-{number}",
        "question": question,
        "image": [row["image"]],
        "answer": row["answer"].strip().lower(),
        "category": row["category"],
        "group": str(row["question_id"]),
    }


@_dataset
def seedbench(data: str | None) -> Docs:
    """The 14,233 questions about pictures."""
    found = official_files(SEEDBENCH, data, "SEED-Bench*.json")
    if found:
        folder = found[0].parent / "SEED-Bench-image"
        rows = [
            {**row, "image": folder / str(row["data_id"])}
            for row in read_json(found[0])["questions"]
        ]
        kinds = [row["data_type"] for row in rows]
    else:
        rows = read_table(SEEDBENCH, data)
        kinds = rows["data_type"]
    return Docs(rows, _seedbench, [(n,) for n, kind in enumerate(kinds) if kind == "image"])


def _seedbench(row: Row) -> dict[str, Any]:
    image = row["image"]
    options = [_words(row[f"choice_{letter}"]) for letter in "abcd"]
    return {
        "id": str(row["question_id"]),
        "question": _words(row["question"]),
        "image": list(image) if isinstance(image, (list, tuple)) else [image],
        "category": SEED_DIMENSIONS[int(row["question_type_id"]) - 1],
        **_choice(options, str(row["answer"]).strip()),
    }


@_dataset
def ai2d(data: str | None) -> Docs:
    """3,088 questions about diagrams."""
    rows = read_table(AI2D, data)
    return Docs(rows, _ai2d, [(number, number) for number in range(len(rows))])


def _ai2d(row: Row, number: int) -> dict[str, Any]:
    options = [_words(option) for option in row["options"]]
    return {
        "id": str(number),
        "question": _words(row["question"]),
        "image": [row["image"]],
        **_choice(options, ascii_uppercase[int(row["answer"])]),
    }


@_dataset
def scenes_vqa(data: str | None) -> Docs:
    """The scenes world's held-out questions, or any of LLaVA's form: DATA/test/vqa.json."""
    from vqrae.eval.vqa import read_questions

    if data is None:
        raise ValueError("scenes_vqa needs --data, the folder that `vqrae data scenes` wrote")
    items = read_questions(Path(data) / "test" / "vqa.json")
    return Docs(items, _scene, [(number, number) for number in range(len(items))])


def _scene(item: Any, number: int) -> dict[str, Any]:
    return {
        "id": str(number),
        "question": item.question,
        "image": [item.image],
        "answer": item.answer,
        "category": item.type,
    }
