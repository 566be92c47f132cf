"""Writes the scenes world in the formats of real data: WebDataset shards and LLaVA-style JSON."""

from __future__ import annotations

import json
import logging
import tarfile
from pathlib import Path

import numpy as np
from vqrae.data._scene_facts import fact_conversations
from vqrae.data._writing import add_member, conversation, png_bytes, whole_folder, write_json
from vqrae.data.scene_language import captions, questions
from vqrae.data.scene_prompts import geneval_prompts, more_prompts
from vqrae.data.scenes import (
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    HELD_OUT_SHAPE_PAIRS,
    IMAGE_SIZE,
    render,
    sample_scene,
)

logger = logging.getLogger(__name__)

# Raised whenever the same seed would give other bytes.
VERSION = 7
CAPTIONS_PER_IMAGE = 3
_MANIFEST = "scenes.json"


def write_scenes(
    out: str | Path,
    *,
    train: int,
    test: int,
    seed: int = 0,
    shard_size: int = 1000,
    questions_per_image: int = 4,
    prompts_per_category: int = 32,
) -> Path:
    """Writes both splits to a folder and returns it. The same arguments give the same bytes.

    The folder then holds:

        scenes.json                          what was written: counts, seed, held-out combinations
        train/shard-000000.tar ...           KEY.png, KEY.txt (a caption), KEY.json (its scene)
        train/images/KEY.png                 the same pictures
        train/vqa.json                       LLaVA-style conversations about them
        train/text.json                      conversations without pictures
        test/...                             likewise, without text.json
        test/geneval.jsonl                   prompts in GenEval's metadata form
        test/more.jsonl                      others in that form, see more_prompts

    The folder appears whole or not at all. Where it is there already with the same manifest nothing
    is done.

    Args:
        out: the folder.
        train, test: numbers of pictures.
        seed: of everything.
        shard_size: pictures per tar file.
        questions_per_image: turns per conversation.
        prompts_per_category: prompts of each tag: GenEval's six categories, and ours.

    Raises:
        ValueError: a count below 1, or a folder that holds something else.
    """
    counts = {
        "train": train,
        "test": test,
        "shard_size": shard_size,
        "questions_per_image": questions_per_image,
        "prompts_per_category": prompts_per_category,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    out = Path(out)
    manifest = {
        "version": VERSION,
        "seed": seed,
        "image_size": IMAGE_SIZE,
        **counts,
        "held_out_pairs": sorted(HELD_OUT_PAIRS),
        "held_out_relations": sorted(HELD_OUT_RELATIONS),
        "held_out_shape_pairs": sorted(sorted(pair) for pair in HELD_OUT_SHAPE_PAIRS),
    }
    # Through JSON, to compare it with what a file can hold.
    manifest = json.loads(json.dumps(manifest))
    if _is_written(out, manifest):
        logger.info("scenes are already in '%s'", out)
        return out

    with whole_folder(out) as aside:
        for split, number in (("train", train), ("test", test)):
            _write_split(aside / split, split, number, seed, shard_size, questions_per_image)
        write_json(aside / "train" / "text.json", fact_conversations())
        for name, prompts in (
            ("geneval", geneval_prompts([seed, 2], prompts_per_category, "test")),
            ("more", more_prompts([seed, 3], prompts_per_category)),
        ):
            lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
            (aside / "test" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        write_json(aside / _MANIFEST, manifest)
    logger.info("wrote %d train and %d test scenes to '%s'", train, test, out)
    return out


def _is_written(out: Path, manifest: dict) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"'{out}' holds something other than scenes; choose another folder"
        ) from None
    if found == manifest:
        return True
    keys = [key for key in manifest if found.get(key) != manifest[key]]
    raise ValueError(
        f"'{out}' holds other scenes ({', '.join(keys)} differ); choose another folder or remove it"
    )


def _write_split(
    folder: Path, split: str, number: int, seed: int, shard_size: int, questions_per_image: int
) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng([seed, ("train", "test").index(split)])
    conversations = []
    for start in range(0, number, shard_size):
        path = folder / f"shard-{start // shard_size:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(start, min(start + shard_size, number)):
                key = f"{split}-{index:06d}"
                scene = sample_scene(rng, split=split)
                wordings = [captions(scene, rng) for _ in range(CAPTIONS_PER_IMAGE)]
                png = png_bytes(render(scene))
                facts = {"scene": scene.to_dict(), "captions": wordings}
                add_member(tar, f"{key}.png", png)
                add_member(tar, f"{key}.txt", wordings[0].encode())
                add_member(tar, f"{key}.json", json.dumps(facts).encode())
                (folder / "images" / f"{key}.png").write_bytes(png)
                asked = questions(scene, rng, questions_per_image)
                triples = [(q.question, q.answer, q.type) for q in asked]
                conversations.append(conversation(key, triples))
    write_json(folder / "vqa.json", conversations)
