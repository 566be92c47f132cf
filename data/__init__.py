"""Data in: images, WebDataset shards, LLaVA-style JSON, and the built-in scenes world.

Training reads the two file formats only; the scenes world is written to them first.
"""

from vqrae.data.augment import Augment
from vqrae.data.codes import CodeDataset
from vqrae.data.image_folder import ImageFolderDataset
from vqrae.data.images import ImageError, open_image
from vqrae.data.llava import LlavaDataset
from vqrae.data.loader import make_loader
from vqrae.data.mixture import MixtureDataset
from vqrae.data.open_pairs import open_pairs
from vqrae.data.scene_language import QUESTION_TYPES, Question, captions, questions
from vqrae.data.scene_prompts import CATEGORIES, geneval_prompts, more_prompts, scene_for_prompt
from vqrae.data.scenes import (
    COLORS,
    GRID,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    HELD_OUT_SHAPE_PAIRS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Background,
    Scene,
    SceneObject,
    is_held_out,
    render,
    sample_scene,
)
from vqrae.data.shards import ShardDataset
from vqrae.data.tables import ParquetDataset, TableDataset
from vqrae.data.text_tokenizer import scene_corpus, train_text_tokenizer
from vqrae.data.write_scenes import write_scenes

__all__ = [
    "CATEGORIES",
    "COLORS",
    "GRID",
    "HELD_OUT_PAIRS",
    "HELD_OUT_RELATIONS",
    "HELD_OUT_SHAPE_PAIRS",
    "IMAGE_SIZE",
    "QUESTION_TYPES",
    "SHAPES",
    "SIZES",
    "Augment",
    "Background",
    "CodeDataset",
    "ImageError",
    "ImageFolderDataset",
    "LlavaDataset",
    "MixtureDataset",
    "ParquetDataset",
    "Question",
    "Scene",
    "SceneObject",
    "ShardDataset",
    "TableDataset",
    "captions",
    "geneval_prompts",
    "is_held_out",
    "make_loader",
    "more_prompts",
    "open_image",
    "open_pairs",
    "questions",
    "render",
    "sample_scene",
    "scene_corpus",
    "scene_for_prompt",
    "train_text_tokenizer",
    "write_scenes",
]
