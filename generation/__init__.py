"""Drawing, answering and talking with the one model."""

from vqrae.generation.chat import ChatOptions, ChatSession, Reply
from vqrae.generation.compiled import compile_decoding
from vqrae.generation.cpu_weights import lay_out_weights
from vqrae.generation.draw import codes_to_images, draw, partial_images
from vqrae.generation.loading import load_exported, load_unified
from vqrae.generation.remote import RemoteModel
from vqrae.generation.sampler import own_sampling, sample_codes
from vqrae.generation.sampling import filter_logits
from vqrae.generation.text import Written, answer, features_of, generate_ids, generate_text

__all__ = [
    "ChatOptions",
    "ChatSession",
    "RemoteModel",
    "Reply",
    "Written",
    "answer",
    "codes_to_images",
    "compile_decoding",
    "draw",
    "features_of",
    "filter_logits",
    "generate_ids",
    "generate_text",
    "lay_out_weights",
    "load_exported",
    "load_unified",
    "own_sampling",
    "partial_images",
    "sample_codes",
]
