"""One step of drawing as a compiled graph of fixed shapes: on a GPU a CUDA graph.

Shapes: B rows, R positions that the cache has room for, T text width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer
from vqrae.generation._step_attention import one_position
from vqrae.mllm import UnifiedModel

# Rooms are rounded up to it: prompts of like length share one graph.
_ROOM = 64
# One graph for each number of rows and each room.
_GRAPHS = 64
# Caches whose memory is kept; a graph is recorded anew where its cache is another.
_CACHES = 4


def compile_decoding(model: UnifiedModel, backend: str = "inductor") -> UnifiedModel:
    """Have the steps of `draw` and `sample_codes` compiled, in place.

    Small models on a GPU spend most of a step on starting kernels; a CUDA graph starts them all at
    once. The first picture of each batch size and prompt length (in steps of 64 positions) takes
    the time of compiling. What is drawn is the same up to rounding. Prompts are read, and texts are
    written, as before. On CPUs it is the fastest for one picture at a time, `lay_out_weights` for
    several.

    Args:
        backend: of torch.compile.

    Raises:
        ValueError: for a model whose weights are laid out for a CPU already.
    """
    if model.code_head is not None:
        raise ValueError(
            "the model's weights are laid out for a CPU, which cannot be compiled; load it with "
            "plain weights (--weights plain)"
        )
    model.compiled_decoding = CompiledDecoding(model, backend)
    return model


class CompiledDecoding:
    """The compiled step, and caches of fixed places in memory that it works on."""

    def __init__(self, model: UnifiedModel, backend: str):
        graphs = backend == "inductor" and model.device.type == "cuda"
        self._step = torch.compile(
            _step,
            backend=backend,
            dynamic=False,
            fullgraph=True,
            mode="reduce-overhead" if graphs else None,
        )
        self._caches: dict[tuple[int, int], StaticCache] = {}

    @staticmethod
    def room(length: int) -> int:
        """Positions to make room for where `length` are needed."""
        return -(-length // _ROOM) * _ROOM

    def cache(self, model: UnifiedModel, rows: int, room: int) -> StaticCache:
        """An empty cache for B = `rows` and R = `room`; the last one for these is emptied."""
        cache = self._caches.pop((rows, room), None)
        if cache is None:
            cache = StaticCache(config=model.config.text_config, max_cache_len=room)
            # Whole rooms for sliding windows too, whose own layers count in numbers that a graph
            # cannot hold; the mask hides what is out of the window.
            cache.layers = [StaticLayer(room) for _ in cache.layers]
        else:
            cache.reset()
        self._caches[rows, room] = cache
        while len(self._caches) > _CACHES:
            del self._caches[next(iter(self._caches))]
        return cache

    def first_rows(self, model: UnifiedModel, cache: StaticCache, rows: int) -> StaticCache:
        """A cache that holds the first `rows` rows of another."""
        smaller = self.cache(model, rows, cache.layers[0].max_cache_len)
        for source, target in zip(cache.layers, smaller.layers, strict=True):
            if not target.is_initialized:
                target.lazy_initialization(source.keys[:rows], source.values[:rows])
            target.keys.copy_(source.keys[:rows])
            target.values.copy_(source.values[:rows])
            target.cumulative_length.copy_(source.cumulative_length)
        return smaller

    def __call__(
        self,
        model: UnifiedModel,
        embeddings: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: StaticCache,
    ) -> Tensor:
        """(B, 1, T) of one new position each, mask (B, R), positions (B, 1) -> hidden (B, 1, T)."""
        torch.compiler.cudagraph_mark_step_begin()
        patience = torch._dynamo.config.patch(recompile_limit=_GRAPHS)
        with patience, one_position(model.language_model):
            return self._step(model, embeddings, mask, positions, cache).clone()


def _step(
    model: UnifiedModel, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: StaticCache
) -> Tensor:
    return model.decode(embeddings, attention_mask=mask, position_ids=positions, cache=cache)
