"""Public image question benchmarks through lm-eval: run, scores, and the paper's beside them."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqrae.eval.benchmark_result import BenchmarkResult, Item, write_benchmark
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.protocol import environment_card, model_card, model_dtype
from vqrae.eval.tasks import TASKS
from vqrae.eval.tasks.catalog import SOURCES
from vqrae.eval.tasks.scores import SCORES

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

VERSION = 1


def our_tasks() -> dict[str, dict[str, str]]:
    """Each task of ours: "about", and "data", what it expects in the data folder."""
    homes = {source.name: f"{source.name}/ ({source.hub})" for source in SOURCES}
    found = {}
    for name in SCORES:
        first = (TASKS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        home = homes.get(name.removesuffix("_ocr"), "test/vqa.json (vqrae data scenes)")
        found[name] = {"about": first.removeprefix("# "), "data": home}
    return found


def run(
    model_dir: str | Path,
    tasks: Sequence[str],
    *,
    data: str | Path | None = None,
    out: str | Path,
    limit: int | None = None,
    batch_size: int = 16,
    device: str = "auto",
    seed: int = 0,
) -> BenchmarkResult | None:
    """Ask a unified model the questions of tasks, greedily; write results.json and items.jsonl.

    Args:
        tasks: ours, or multimodal tasks and groups of lm-eval's own, such as mmmu_val.
        data: folder of the benchmarks' files; without it the hub's cache. Nothing is downloaded
            where HF_HUB_OFFLINE is set.
        limit: the first so many questions of each task.
        batch_size: questions at once; no number depends on it.
        seed: of the guesses that MMMU's rule makes for answers that it cannot read.

    Returns the result; None on ranks other than the first.

    Raises:
        ValueError: for an unknown task, missing data, or a model that is not whole.
    """
    if not tasks:
        raise ValueError(f"no task is named; choose some of {', '.join(SCORES)}, or of lm-eval's")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    # Read when lm-eval is first imported: it would make a PNG of every picture to log its hash.
    os.environ.setdefault("LMEVAL_HASHMM", "0")
    from lm_eval import simple_evaluate
    from vqrae.eval._vqa_items import gathered, item_of, task_card
    from vqrae.eval.lm_eval_model import VQRAELM

    with tempfile.TemporaryDirectory() as folder:
        manager, yaml_of = _manager(list(dict.fromkeys(tasks)), data, Path(folder))
        loaded = _loaded(manager, list(dict.fromkeys(tasks)), data)
        lm = VQRAELM(model_dir, batch_size=batch_size, device=device, seed=seed)
        found = simple_evaluate(
            model=lm,
            tasks=list(loaded["tasks"].values()),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            random_seed=seed,
        )
    pictures, too_long = gathered(lm)
    if found is None:
        return None
    items: list[Item] = []
    cards: dict[str, Any] = {}
    for name, task in loaded["tasks"].items():
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        groups = _groups_above(name, loaded.get("group_map") or {})
        items += [item_of(task, sample, pictures, groups, seed) for sample in samples]
        cards[name] = task_card(task, samples, pictures, yaml_of(name))
    scores = aggregate(items)
    environment = environment_card(str(lm.device))
    environment["versions"]["lm-eval"] = version("lm-eval")
    result = BenchmarkResult(
        benchmark=f"vqa-{VERSION}",
        scores=scores,
        # a model that says yes too often is what POPE looks for
        higher_is_better={name: ".yes_rate" not in name for name in scores},
        model=model_card({"model": model_dir}),
        protocol={
            "tasks": cards,
            "limit": limit,
            "seed": seed,
            "dtype": model_dtype(lm.model),
        },
        environment=environment,
        items=items,
        details={"questions without room for an answer": sorted(too_long)},
    )
    write_benchmark(out, result)
    return result


def aggregate(items: list[Item]) -> dict[str, float]:
    """The scores of items as "task.metric".

    Of lm-eval's own tasks each metric is the mean over questions, also over those of a group: what
    lm-eval has for groups weighted by size.
    """
    ours: dict[str, list[Item]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if "metrics" not in item:
            ours[item["task"]].append(item)
            continue
        for name, value in item["metrics"].items():
            for place in (item["task"], *item["groups"]):
                theirs[f"{place}.{name}"].append(value)
    scores = {
        f"{task}.{name}": value
        for task, members in ours.items()
        for name, value in SCORES[task](members).items()
    }
    return scores | {name: sum(values) / len(values) for name, values in theirs.items()}


def comparison(result: BenchmarkResult) -> list[tuple[str, str, str, str]]:
    """Rows (score, ours, the paper's two), in percent but for MME's points; "" for none."""
    rows = []
    for name, value in result.scores.items():
        points = name.startswith("mme.")
        ours = _shown(value, points)
        paper = (row.get(name) for row in PAPER["vqa"].rows.values())
        rows.append((name, ours, *(_shown(each, points) for each in paper)))
    return rows


def _shown(value: float | None, points: bool) -> str:
    return "" if value is None else f"{value if points else 100 * value:.1f}"


def _manager(tasks: list[str], data: str | Path | None, folder: Path):
    """A TaskManager of these tasks, and a function of a task's name to its YAML file; `folder`
    takes what must be written for lm-eval's own tasks to find local data."""
    from lm_eval.tasks import TaskManager
    from vqrae.eval._lm_eval_local import find_manager, leaves, write_local

    metadata = {"data": None if data is None else str(data)}
    theirs = [name for name in tasks if name not in SCORES]
    if not theirs:
        manager = TaskManager(include_path=TASKS, include_defaults=False, metadata=metadata)
        return manager, lambda name: manager.task_index[name].yaml_path
    original, homes = find_manager(theirs, metadata, [TASKS])
    manager = original
    if data is not None:
        wanted = dict.fromkeys(leaf for name in theirs for leaf in leaves(original, name))
        if write_local(original, wanted, Path(data), folder):
            paths = [*homes, TASKS, folder]
            manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    return manager, lambda name: original.task_index[name].yaml_path


def _loaded(manager: TaskManager, tasks: list[str], data: str | Path | None) -> dict[str, Any]:
    """Tasks with their data. ValueError where the data of one of lm-eval's own is not there."""
    try:
        return manager.load(tasks)
    except ValueError:
        raise
    except (OSError, ConnectionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        where = "DATA" if data is None else data
        raise ValueError(
            f"no data for {', '.join(t for t in tasks if t not in SCORES)}: {first}; put the hub "
            f"dataset's parquet files under {where}/OWNER/NAME/CONFIG/"
        ) from None


def _groups_above(name: str, children: dict[str, list[str]]) -> list[str]:
    """The groups that hold a task, directly or not."""
    above = [group for group, members in children.items() if name in members]
    return above + [higher for group in above for higher in _groups_above(group, children)]
