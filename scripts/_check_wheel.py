"""Unpack a wheel into an empty folder and import every subpackage there, outside the checkout.

python scripts/_check_wheel.py dist/vqrae-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path


def main(wheel: str) -> None:
    root = Path(__file__).resolve().parent.parent
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        # -S -E would also hide torch: keep site-packages, but drop the editable install's finder.
        code = (
            "import sys, importlib\n"
            "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n"
            f"sys.path[:] = [{folder!r}] + [p for p in sys.path if p != {str(root)!r}]\n"
            f"for name in {packages!r}:\n"
            "    module = importlib.import_module(name)\n"
            f"    assert module.__file__.startswith({folder!r}), module.__file__\n"
            "from importlib.resources import files\n"
            "assert files('vqrae.deepspeed_configs').joinpath('zero2.json').is_file()\n"
            "assert files('vqrae.eval.tasks').joinpath('pope.yaml').is_file()\n"
            "from vqrae.assets import nano_folder\n"
            "assert (nano_folder() / 'model.safetensors').is_file(), nano_folder()\n"
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)
    sys.stdout.write(f"{Path(wheel).name}: {len(packages)} subpackages import\n")


if __name__ == "__main__":
    main(sys.argv[1])
