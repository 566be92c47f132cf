"""The Inception network behind FID, from a local file whose hash is checked.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from vqrae.eval.protocol import file_sha256
from vqrae.tokenizer._loading import read_weights

INCEPTION_SHA256 = "6726825d"
"""How the sha256 of the weights of 2015-12-05 begins, ported from TensorFlow; the published files
of pytorch-fid and torch-fidelity carry it in their names."""
FEATURES = 2048


def load_inception(
    weights: str | Path, *, device: torch.device | str = "cpu", check: bool = True
) -> Callable[[Tensor], Tensor]:
    """A function from pixels (B, 3, H, W) in [0, 1] to pooled features (B, 2048) in float64.

    torch-fidelity's network, which resizes as TensorFlow 1 did. Pixels are rounded to 8 bit.

    Args:
        weights: pt_inception-2015-12-05-6726825d.pth, or the same as .safetensors.
        check: whether the file must be that one, by its hash (a .safetensors cannot be checked).

    Raises:
        ValueError: if the file is not there or not that one, or torch-fidelity is not installed.
    """
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f"there is no file of Inception weights '{path}'; download "
            f"pt_inception-2015-12-05-{INCEPTION_SHA256}.pth"
        )
    if check and path.suffix != ".safetensors":
        digest = file_sha256(path)
        if not digest.startswith(INCEPTION_SHA256):
            raise ValueError(
                f"'{path}' is not the Inception of FID: its sha256 begins with {digest[:8]}, not "
                f"{INCEPTION_SHA256}; numbers of another network cannot be compared"
            )
    state = read_weights(path)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError(
            "FID needs the package torch-fidelity: pip install 'vqrae[eval]'"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        # It unpickles what it is given, so it is given what was read safely.
        safe = str(Path(folder) / "inception.pth")
        torch.save(state, safe)
        try:
            network = FeatureExtractorInceptionV3(
                "inception", [str(FEATURES)], feature_extractor_weights_path=safe
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"'{path}' does not fit Inception: {reason}") from None
    network.to(device)

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        shown = pixels.to(device).float().clamp(0, 1).mul(255).round().byte()
        return network(shown)[0].double()

    return features
