"""Pictures to the pixels that the tokenizer reads."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from vqrae.tokenizer.configuration_vqrae import VQRAEConfig


class VQRAEImageProcessor(BaseImageProcessor):
    """Resize the shorter side, crop the centre, scale to [0, 1].

    The encoder's mean and deviation are not applied here: pixels in [0, 1] are also what the
    decoder is trained on, so the model normalises for its encoder itself.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 256, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size

    def preprocess(self, images, **_) -> BatchFeature:
        """One PIL picture or a list of them -> {"pixel_values": (B, 3, H, W) float32 in [0, 1]}.

        Raises:
            ValueError: for anything that is not a PIL picture.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        pixels = torch.stack([self._pixels(image) for image in images])
        return BatchFeature({"pixel_values": pixels})

    def _pixels(self, image: Image.Image) -> Tensor:
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"expected a PIL picture, not {type(image).__name__}; open files with "
                "vqrae.data.open_image"
            )
        size = self.image_size
        if image.size != (size, size):
            scale = size / min(image.size)
            shape = [max(size, round(side * scale)) for side in image.size]
            image = image.resize(shape, Image.Resampling.BICUBIC)
            left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
            image = image.crop((left, top, left + size, top + size))
        array = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()

    @staticmethod
    def to_images(pixels: Tensor) -> list[Image.Image]:
        """(B, 3, H, W) in [0, 1] -> B PIL pictures."""
        arrays = (pixels.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        return [Image.fromarray(array) for array in arrays.cpu().numpy()]


AutoImageProcessor.register(
    VQRAEConfig,
    image_processor_classes=dict.fromkeys(("pil", "torchvision"), VQRAEImageProcessor),
    exist_ok=True,
)
