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
    """Resize until the picture just covers the size wanted, crop the centre, scale to [0, 1].

    The encoder's mean and deviation are not applied here: pixels in [0, 1] are also what the
    decoder is trained on, so the model normalises for its encoder itself.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 256, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size

    def preprocess(self, images, *, size: tuple[int, int] | None = None, **_) -> BatchFeature:
        """One PIL picture or a list of them -> {"pixel_values": (B, 3, H, W) float32 in [0, 1]}.

        Args:
            size: (height, width) in pixels, where it is not the square of `image_size`; the
                encoder's patches must divide both.

        Raises:
            ValueError: for anything that is not a PIL picture.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        size = size or (self.image_size, self.image_size)
        pixels = torch.stack([self._pixels(image, *size) for image in images])
        return BatchFeature({"pixel_values": pixels})

    def _pixels(self, image: Image.Image, height: int, width: int) -> Tensor:
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"expected a PIL picture, not {type(image).__name__}; open files with "
                "vqrae.data.open_image"
            )
        if image.size != (width, height):
            scale = max(width / image.width, height / image.height)
            shape = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            image = image.resize(shape, Image.Resampling.BICUBIC)
            left, top = (shape[0] - width) // 2, (shape[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
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
