"""lm-eval's own tasks from a local folder: the same tasks, read from other files.

lm-eval lets a task be replaced by one of the same name in a folder of one's own. So for each task
whose dataset lies in the data folder a YAML file is written that includes lm-eval's and names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqrae.eval.tasks.sources import parquet_files

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def find_manager(names: Sequence[str], metadata: dict[str, Any], include: Iterable[Path]):
    """A TaskManager that knows these tasks, and the folders of lm-eval's that it read for it.

    lm-eval takes many seconds to read all its thousands of tasks; most names begin with their
    folder's.

    Raises:
        ValueError: for a name that lm-eval does not know either.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    home = Path(lm_eval.__file__).parent / "tasks"
    folders = {folder for name in names if (folder := _folder(home, name))}
    paths = [*sorted(folders), *include]
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        folders, paths = {home}, [home, *include]
        manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
        unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise ValueError(
            f"there is no task {unknown[0]!r}, here or in lm-eval; without --tasks ours are listed"
        )
    return manager, sorted(folders)


def _folder(home: Path, name: str) -> Path | None:
    parts = name.split("_")
    for length in range(len(parts), 0, -1):
        folder = home / "_".join(parts[:length])
        if folder.is_dir():
            return folder
    return None


def leaves(manager: TaskManager, name: str) -> list[str]:
    """The tasks that a task, group or tag stands for."""
    entry = manager.task_index[name]
    if entry.tags and entry.yaml_path is None:
        return [leaf for tag in sorted(entry.tags) for leaf in leaves(manager, tag)]
    children = (entry.cfg or {}).get("task")
    if not isinstance(children, list):
        return [name]
    named = (c if isinstance(c, str) else c.get("task") or c.get("group") for c in children)
    return [leaf for child in named for leaf in leaves(manager, child)]


def write_local(manager: TaskManager, names: Iterable[str], data: Path, folder: Path) -> list[str]:
    """Write a YAML file into `folder` for each task whose dataset is in `data`, laid out as on the
    hub: DATA/OWNER/NAME/CONFIG/SPLIT-*.parquet. Returns the names of those tasks.

    Raises:
        ValueError: where a dataset's folder is there but has no files for a task.
    """
    import yaml

    written = []
    for name in names:
        entry = manager.task_index[name]
        config = entry.cfg or {}
        path = config.get("dataset_path")
        home = data / str(path)
        if not path or not home.is_dir():
            continue
        files: dict[str, list[str]] = {}
        subset = config.get("dataset_name") or "data"
        for kind in ("training_split", "validation_split", "test_split", "fewshot_split"):
            split = config.get(kind)
            if split and (found := parquet_files(home, subset, split)):
                files[split] = found
        if not files:
            raise ValueError(
                f"'{home}' has no parquet files for {name}: expected are "
                f"{subset}/{config.get('validation_split') or config.get('test_split')}-*.parquet"
            )
        override = {
            "task": name,
            "include": str(entry.yaml_path),
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(override))
        written.append(name)
    return written
