"""The packaging list matches the tree, and imports point one way."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LISTED = {name.split(".", 1)[1] for name in PROJECT["tool"]["setuptools"]["packages"]}

ORDER = ["scripts", "recipes", "eval", "generation", "mllm", "tokenizer"]
MAY_IMPORT = {name: set(ORDER[i:]) | {"training", "data"} for i, name in enumerate(ORDER)}
MAY_IMPORT |= {"training": {"training", "deepspeed_configs"}, "data": {"data"}}
MAY_IMPORT |= {"deepspeed_configs": set(), "assets": set()}
for name in ORDER:
    MAY_IMPORT[name] |= {"assets"}
MAY_IMPORT["eval"] |= {"deepspeed_configs"}  # the doctor examines them


def test_every_package_folder_is_in_the_wheel():
    assert {name.split(".")[0] for name in LISTED} == set(MAY_IMPORT)
    tops = (p for p in ROOT.glob("[a-z]*") if p.name != "build")  # what `make wheel` may leave
    found = (p.parent.relative_to(ROOT) for top in tops for p in top.rglob("__init__.py"))
    assert {".".join(folder.parts) for folder in found} == LISTED


def test_what_is_compiled_on_the_spot_is_in_the_wheel():
    folders = {path.parent.name for path in ROOT.glob("[a-z]*/*.cpp")}
    data = PROJECT["tool"]["setuptools"]["package-data"]
    assert folders == {name.split(".", 1)[1] for name, files in data.items() if "*.cpp" in files}


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("vqrae.")}
    return parts


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_imports_point_one_way(folder):
    for path in (ROOT / folder).rglob("*.py"):
        wrong = imported_parts(path) - MAY_IMPORT[folder] - {folder}
        assert not wrong, f"{path.relative_to(ROOT)} must not import vqrae.{', vqrae.'.join(wrong)}"


@pytest.mark.parametrize("folder", ["tokenizer", "mllm"])
def test_only_objectives_import_training(folder):
    for path in (ROOT / folder).glob("*.py"):
        if "objective" not in path.name and path.name != "__init__.py":
            assert "training" not in imported_parts(path), path.name


def test_library_code_does_not_print():
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls)
