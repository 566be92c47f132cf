"""Cards that stand with every number: who was measured, under which protocol, on what machine."""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL.Image import Image

PACKAGES = ("vqrae", "torch", "torchvision", "transformers", "torchmetrics", "numpy", "pillow")


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hashes(directory: str | Path) -> dict[str, str]:
    """sha256 of each safetensors file under a model directory, by its relative name."""
    root = Path(directory)
    return {str(p.relative_to(root)): file_sha256(p) for p in sorted(root.rglob("*.safetensors"))}


def package_versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def model_card(models: Mapping[str, str | Path]) -> dict[str, Any]:
    """Who was measured: role -> model directory gives its name and the hashes of its weights."""
    return {
        "name": next((Path(folder).name for folder in models.values()), ""),
        "weights sha256": {
            f"{role}: {name}": digest
            for role, folder in models.items()
            for name, digest in weight_hashes(folder).items()
        },
    }


def environment_card(device: str = "cpu") -> dict[str, Any]:
    """What should not change a number: device, platform, versions, and when."""
    return {
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "platform": platform.platform(),
        "versions": package_versions(),
    }


def model_dtype(model: Any) -> str:
    """The dtype of a model's first parameter, as "float32"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def picture_sha256(image: Image) -> str:
    """Of a picture's size and pixels, whatever file they came in."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def set_sha256(members: Iterable[str]) -> str:
    """Of a set of texts, whatever their order."""
    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()
