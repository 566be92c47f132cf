"""One evaluation of a model directory: every part that is there, in files and in report.html."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vqrae.eval._pictures import pair_sheet, preprocess_of, strip
from vqrae.eval._scene_items import (
    DRAWN,
    aggregate,
    scene_items,
    scene_protocol,
    scene_scores,
)
from vqrae.eval.benchmark_result import BenchmarkResult, write_benchmark
from vqrae.eval.metrics import load_lpips
from vqrae.eval.protocol import (
    environment_card,
    file_sha256,
    model_card,
    model_dtype,
    picture_sha256,
    set_sha256,
    weight_hashes,
)
from vqrae.eval.reconstruction import evaluate_reconstruction, mean_image
from vqrae.eval.report import write_report
from vqrae.eval.table import build_table, criteria_met
from vqrae.eval.text_to_image import evaluate_text_to_image
from vqrae.eval.vqa import evaluate_vqa
from vqrae.eval.zero_shot import zero_shot_beside_teacher
from vqrae.training import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vqrae.generation.guidance import Schedule

logger = logging.getLogger(__name__)

__all__ = ["aggregate", "evaluate", "load_models", "plain_results"]

VERSION = 1
NOT_PLAIN = ("examples", "curves", "each")
"""What results.json leaves out: pictures, curves that metrics.jsonl holds already, and what
items.jsonl holds."""


def plain_results(results: Any) -> Any:
    """The results without pictures: only what JSON can hold."""
    if isinstance(results, dict):
        return {k: plain_results(v) for k, v in results.items() if k not in NOT_PLAIN}
    if isinstance(results, (list, tuple)):
        return [plain_results(value) for value in results]
    return results


def _model_type(directory: Path) -> str:
    config = directory / "config.json"
    if not config.is_file():
        raise ValueError(f"no model in '{directory}' (it has no config.json); give a saved model")
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"'{config}' names no model_type; save the model again") from None


def load_models(directory: Path, device: torch.device) -> tuple[Any, Any, Any, Any]:
    """(tokenizer model, its image processor, unified model or None, its processor or None)."""
    kind = _model_type(directory)
    if kind == "vqrae":
        tokenizer, image_processor = _load_tokenizer(directory, device)
        return tokenizer, image_processor, None, None
    if kind != "vqrae_unified":
        raise ValueError(
            f"'{directory}' holds a '{kind}' model; give a vqrae or vqrae_unified directory"
        )
    from vqrae.generation import load_unified

    model, processor = load_unified(directory)
    model = model.to(device).eval()
    return model.vqrae, processor.image_processor, model, processor


def _load_tokenizer(directory: str | Path, device: torch.device) -> tuple[Any, Any]:
    from vqrae.tokenizer import VQRAEImageProcessor, VQRAEModel

    model = VQRAEModel.from_pretrained(directory).to(device).eval()
    return model, VQRAEImageProcessor(model.config.image_size)


def _split(data: Path, name: str) -> Iterator[dict]:
    from vqrae.data import ShardDataset

    return iter(ShardDataset(data / name, seed=0, shuffle=0, epochs=1))


def _manifest_count(data: Path, name: str) -> int | None:
    """Images in a split by its manifest, None where there is none."""
    manifest = data / "scenes.json"
    if not manifest.is_file():
        return None
    counts = json.loads(manifest.read_text(encoding="utf-8"))
    found = counts.get(name, counts.get("counts", {}).get(name))
    return found if isinstance(found, int) else None


def _run_records(runs: Mapping[str, str | Path] | Iterable[str | Path]) -> dict[str, list[dict]]:
    named = dict(runs) if hasattr(runs, "items") else {Path(run).name: run for run in runs}
    return {name: read_metrics(path) for name, path in named.items()}


class _Stopwatch:
    """Says in the log what begins and keeps how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, work: Any) -> Any:
        logger.info("evaluating: %s", part)
        start = time.perf_counter()
        found = work()
        self.seconds[part] = round(time.perf_counter() - start, 2)
        logger.info("evaluated: %s in %.1f s", part, self.seconds[part])
        return found


@torch.no_grad()
def evaluate(
    model_dir: str | Path,
    data_dir: str | Path,
    out_dir: str | Path,
    *,
    stage1_tokenizer: str | Path | None = None,
    teacher: str | Path | None = None,
    runs: Mapping[str, str | Path] | Sequence[str | Path] = (),
    images: int | None = None,
    mean_images: int = 2000,
    questions: int | None = 1000,
    prompts_per_category: int | None = 25,
    images_per_prompt: int = 4,
    zero_shot_images: int = 1024,
    guidance_scale: float | None = None,
    guidance_schedule: Schedule = "constant",
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    batch_size: int = 64,
    lpips_weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model on the held-out split.

    Writes OUT_DIR/results.json and items.jsonl (see vqrae.eval.benchmark_result), report.html, and
    the first pictures of each kind: pairs.png and drawings/.

    Args:
        model_dir: a unified model, or a tokenizer alone (then VQA and drawing are not measured).
        data_dir: what write_scenes wrote, or a folder of the same layout.
        out_dir: made where it is missing; each file appears whole or not at all.
        stage1_tokenizer: directory of the stage-1 VQRAEModel, to stand beside stage 2.
        teacher: directory of the whole SiglipModel with its text tokenizer, for zero-shot.
        runs: training run directories whose loss curves the report shows; a mapping names them.
        images: test images to reconstruct (None: the whole split, which utilisation needs).
        mean_images: training images in the mean picture of the PSNR baseline.
        questions: at most so many (None: all). prompts_per_category, images_per_prompt: GenEval.
        zero_shot_images: single-object scenes, all colour-shape pairs in turn.
        guidance_scale to min_p: see vqrae.generation.sample_codes.
        lpips_weights: see metrics.load_lpips; without it LPIPS is stated as not available.
        device: "auto" takes a GPU where there is one.

    Returns the results with pictures; results.json holds them without. Keys: benchmark, scores,
    higher_is_better, model, protocol, environment, reconstruction, stage1_reconstruction,
    zero_shot {"encoder", "teacher"}, vqa, text_to_image, more_drawing (each None where it was not
    measured), table (list of rows), criteria {"met", "of"}, data, seconds, curves, report (path).
    Raises ValueError where a directory is missing or holds something else.
    """
    model_dir, data = Path(model_dir), Path(data_dir)
    if not (data / "test").is_dir():
        raise ValueError(f"no test split in '{data}'; write it with vqrae data scenes")
    # what can be wrong is found before the work begins
    if stage1_tokenizer is not None and _model_type(Path(stage1_tokenizer)) != "vqrae":
        raise ValueError(f"'{stage1_tokenizer}' is no VQRAE tokenizer; give a directory of one")
    if teacher is not None and _model_type(Path(teacher)) != "siglip":
        raise ValueError(f"the teacher '{teacher}' is not a whole SiglipModel; give one")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = torch.device(device)
    curves = _run_records(runs)
    lpips = load_lpips(lpips_weights) if lpips_weights else None
    tokenizer, image_processor, model, processor = load_models(model_dir, target)
    models: dict[str, str | Path] = {"model": model_dir}
    timed, preprocess = _Stopwatch(), preprocess_of(image_processor)
    seen: list[tuple[str, str]] = []

    def pictures() -> Iterator[Any]:
        seen.clear()
        for sample in islice(_split(data, "test"), images):
            seen.append((sample["key"], picture_sha256(sample["image"])))
            yield sample["image"]

    def reconstruct(which: Any, mean: torch.Tensor | None) -> dict[str, Any]:
        found = evaluate_reconstruction(
            which,
            pictures(),
            mean=mean,
            preprocess=preprocess,
            lpips=lpips,
            batch_size=batch_size,
        )
        whole = _manifest_count(data, "test")
        counted = found["window"]["images"]
        return found | {"whole_split": images is None or counted == whole}

    has_train = (data / "train").is_dir()
    mean = None
    if has_train:
        train = _split(data, "train")
        mean = timed(
            "mean image", lambda: mean_image(train, limit=mean_images, preprocess=preprocess)
        )
    results: dict[str, Any] = {"zero_shot": None}
    results["reconstruction"] = timed("reconstruction", lambda: reconstruct(tokenizer, mean))
    results["stage1_reconstruction"] = None
    if stage1_tokenizer is not None:
        first, _ = _load_tokenizer(stage1_tokenizer, target)
        models["stage 1"] = stage1_tokenizer
        results["stage1_reconstruction"] = timed(
            "stage 1 reconstruction", lambda: reconstruct(first, None)
        )
    if teacher is not None:
        models["teacher"] = teacher
        results["zero_shot"] = timed(
            "zero-shot",
            lambda: zero_shot_beside_teacher(
                tokenizer, teacher, count=zero_shot_images, seed=seed, preprocess=preprocess
            ),
        )
    results["vqa"] = results["text_to_image"] = results["more_drawing"] = None
    asked = data / "test" / "vqa.json"
    if model is not None and asked.is_file():
        train_json = data / "train" / "vqa.json"
        results["vqa"] = timed(
            "questions",
            lambda: evaluate_vqa(
                model,
                processor,
                asked,
                train_json=train_json if train_json.is_file() else None,
                limit=questions,
                batch_size=batch_size,
                seed=seed,
            ),
        )

    def drawn(path: Path) -> dict[str, Any]:
        return evaluate_text_to_image(
            model,
            processor,
            path,
            images_per_prompt=images_per_prompt,
            prompts_per_category=prompts_per_category,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            batch_size=batch_size,
            tokenizer=tokenizer,
        )

    for part, key, name in (
        ("drawing", "text_to_image", "geneval.jsonl"),
        ("more drawing", "more_drawing", "more.jsonl"),
    ):
        prompts = data / "test" / name
        if model is not None and prompts.is_file():
            results[key] = timed(part, partial(drawn, prompts))
    rows = build_table(results)
    met, judged = criteria_met(rows)
    results |= {
        "table": [row.to_dict() for row in rows],
        "criteria": {"met": met, "of": judged},
        "data": {
            "manifest sha256": _manifest_hash(data),
            "training images in the mean image (at most)": mean_images if has_train else None,
        },
        "seconds": timed.seconds,
        "curves": curves,
    }
    items = scene_items(results, [key for key, _ in seen])
    scores = scene_scores(results, items)
    result = BenchmarkResult(
        benchmark=f"scenes-{VERSION}",
        scores=scores,
        higher_is_better={name: name != "lpips" for name in scores},
        model=model_card(models),
        protocol=scene_protocol(
            results,
            pictures_sha256=set_sha256(digest for _, digest in seen),
            seed=seed,
            dtype=model_dtype(tokenizer),
            image_size=tokenizer.config.image_size,
            lpips_sha256=file_sha256(lpips_weights) if lpips_weights else None,
            teacher_sha256=sorted(weight_hashes(teacher).values()) if teacher else None,
        ),
        environment=environment_card(str(target)),
        items=items,
        details=plain_results(results),
    )
    results |= {
        name: getattr(result, name)
        for name in (
            "benchmark",
            "scores",
            "higher_is_better",
            "model",
            "protocol",
            "environment",
        )
    }
    results["report"] = str(write_report(out_dir, results))
    _write_pictures(Path(out_dir), results)
    write_benchmark(out_dir, result)
    return results


def _manifest_hash(data: Path) -> str | None:
    manifest = data / "scenes.json"
    return file_sha256(manifest) if manifest.is_file() else None


def _write_pictures(out: Path, results: dict[str, Any]) -> None:
    """The report's pictures as files that `vqrae eval report` lays beside those of other runs."""
    pair_sheet(results["reconstruction"]["examples"]).save(out / "pairs.png")
    for part, name in DRAWN.items():
        for example in (results[part] or {}).get("examples", ()):
            path = out / "drawings" / f"{name}/{example['id']}.png".replace("/", "-")
            path.parent.mkdir(exist_ok=True)
            strip([picture["image"] for picture in example["pictures"]], gap=2).save(path)
