"""The unified model as a model of lm-eval, under the name "vqrae".

With lm-eval's own command line, which knows models of other packages only once they are imported:

    python -m vqrae.eval.lm_eval_model --model vqrae --model_args pretrained=DIR --tasks mmmu_val

Legend: B rows, L longest of them, T text width, V text vocabulary, N image tokens, D encoder width.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from torch import Tensor
from tqdm import tqdm
from vqrae.eval._lm_eval_pictures import Visuals, without_pictures
from vqrae.eval._ranks import join_ranks
from vqrae.generation import features_of, generate_text, load_unified
from vqrae.generation._prompts import evaluating
from vqrae.generation.text import writable_logits
from vqrae.mllm.processing_unified import IMAGE_PLACE
from vqrae.training._process import gather_objects, pick_device

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from vqrae.mllm import UnifiedModel, UnifiedProcessor

logger = logging.getLogger(__name__)

_DEFAULT_TOKENS = 128
_IGNORED = ("do_sample", "num_beams", "use_cache")


@register_model("vqrae")
class VQRAELM(LM):
    """Every request is one turn of the user in the model's own turn format, `<image>` where its
    pictures stand; where it has none, they come first. Answers depend neither on the batch size nor
    on the number of ranks.

    Args:
        pretrained: folder of a unified model, or (model, processor).
        batch_size: requests at once.
        device: auto, cpu or cuda.
        seed: of sampled answers; each request has a seed of its own.

    Raises:
        ValueError: for a folder that is no unified model, or a batch size that is no number.
    """

    MULTIMODAL = True

    def __init__(
        self,
        pretrained: str | Path | tuple[UnifiedModel, UnifiedProcessor],
        batch_size: int | str = 16,
        device: str | None = None,
        seed: int = 0,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self._rank, self._world_size = join_ranks()
        if isinstance(pretrained, tuple):
            self.model, self.processor = pretrained
        else:
            # lm-eval's command line says cuda:0 where nothing was said
            device = "auto" if device in (None, "cuda:0") else device
            self.model, self.processor = load_unified(pretrained, device=pick_device(device))
        self._device = self.model.device
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; give the model vqrae a number")
        self.batch_size = int(batch_size)
        self.seed = int(seed)
        self.too_long: set[str] = set()
        """Questions of this rank that had no room for an answer."""
        self.pictures: dict[tuple[str, int], list[str]] = {}
        """(task, number of the question) to the sha256 of each of its pictures, on this rank."""

    # -- answers -----------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each request, cut before the first of its `until`.

        Of `gen_kwargs` count until, max_gen_toks (128), temperature (0), do_sample, top_k, top_p.
        A prompt that leaves no room gets an empty answer, and the log says how many did.
        """
        seeds = self._seeds(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        answers: dict[int, str] = {}
        prompts = [self._prompt(request) for request in requests]
        with self._bar(len(requests), disable_tqdm) as bar:
            for indices in groups.values():
                until, options = generation_options(requests[indices[0]].args[1])
                for batch in self._batches(indices, prompts):
                    answers |= dict.fromkeys(batch, "")
                    for fitting in self._with_room(batch, prompts, options["max_new_tokens"]):
                        texts = generate_text(
                            self.model,
                            self.processor,
                            [prompts[i] for i in fitting],
                            self._features([requests[i] for i in fitting]),
                            seeds=[seeds[i] for i in fitting],
                            **options,
                        )
                        cuts = (cut(text, until) for text in texts)
                        answers |= zip(fitting, cuts, strict=True)
                    for i in batch:
                        self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                    bar.update(len(batch))
        self._tell_too_long(requests, prompts, 1)
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats of the continuation as the answer's beginning, whether greedy
        decoding would write it), by the logits over text and marks, as trained.

        The space that lm-eval puts before a continuation is left out: an answer follows the mark of
        its turn. A request that does not fit has -inf.
        """
        prompts = [self._prompt(request) for request in requests]
        follow = [self.processor.untrusted(r.args[1].removeprefix(" ")) for r in requests]
        whole = [[*prompt, *ids] for prompt, ids in zip(prompts, follow, strict=True)]
        found: dict[int, tuple[float, bool]] = {}
        with self._bar(len(requests), disable_tqdm) as bar, evaluating(self.model):
            for batch in self._batches(range(len(requests)), whole):
                fits = [i for i in batch if len(whole[i]) <= self.processor.max_length]
                found |= dict.fromkeys(batch, (-torch.inf, False))
                if fits:
                    found |= zip(
                        fits,
                        self._score(
                            [whole[i] for i in fits],
                            [len(follow[i]) for i in fits],
                            self._features([requests[i] for i in fits]),
                        ),
                        strict=True,
                    )
                for i in batch:
                    self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
                bar.update(len(batch))
        self._tell_too_long(requests, whole, 0)
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False):
        raise ValueError(
            "the model vqrae answers questions and does not score whole texts; choose tasks of "
            "output_type generate_until, multiple_choice or loglikelihood"
        )

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True):
        raise ValueError(
            "the model vqrae always writes its own turns; leave --apply_chat_template out"
        )

    # -- inside ------------------------------------------------------------------------------

    def _prompt(self, request: Instance) -> list[int]:
        """Ids of the request's turn, however long; its pictures are noted."""
        text, visuals = request.args[0], _visuals(request)
        places = text.count(IMAGE_PLACE)
        if not places:
            text = f"{IMAGE_PLACE}\n" * len(visuals) + text
        elif places != len(visuals):
            raise ValueError(
                f"question {request.doc_id} of {request.task_name} has {places} times "
                f"{IMAGE_PLACE!r} for {len(visuals)} pictures; mend its data"
            )
        self.pictures[request.task_name, request.doc_id] = visuals.digests()
        processor = self.processor
        return [
            *processor.trusted(processor.conversation_prefix),
            *processor.user_turn(text, len(visuals)),
            *processor.trusted(processor.assistant_prefix),
        ]

    def _features(self, requests: Sequence[Instance]) -> list[Tensor | None]:
        """(M, N, D) of each request's pictures, or None; the same picture is encoded once."""
        keys = [self.pictures[r.task_name, r.doc_id] for r in requests]
        distinct: dict[str, Any] = {}
        for request, own in zip(requests, keys, strict=True):
            new = [place for place, key in enumerate(own) if key not in distinct]
            opened = _visuals(request).opened(new) if new else []
            distinct |= {own[place]: image for place, image in zip(new, opened, strict=True)}
        if not distinct:
            return [None] * len(requests)
        encoded = features_of(
            self.model, self.processor, list(distinct.values()), batch_size=self.batch_size
        )
        number = {key: index for index, key in enumerate(distinct)}
        return [encoded[[number[key] for key in own]] if own else None for own in keys]

    def _score(
        self, rows: Sequence[list[int]], scored: Sequence[int], features: Sequence[Tensor | None]
    ) -> list[tuple[float, bool]]:
        """Of the last `scored` tokens of each row. Padding stands at the right, where no earlier
        position looks, so that it needs no mask."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        present = [each for each in features if each is not None]
        embeddings = self.model.embed(
            ids.to(self.model.device), features=torch.cat(present) if present else None
        )
        hidden = self.model.decode(embeddings)
        found = []
        for row, tokens, count in zip(hidden, rows, scored, strict=True):
            target = torch.tensor(tokens[len(tokens) - count :], device=row.device)
            before = row[len(tokens) - count - 1 : len(tokens) - 1]
            chances = self.model.text_logits(before).float().log_softmax(-1)
            total = chances.gather(1, target[:, None]).sum()
            greedy = writable_logits(self.model, before, [False] * count).argmax(-1)
            found.append((float(total), bool((greedy == target).all())))
        return found

    def _batches(self, indices: Sequence[int], prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Those of like length together, the longest first: memory gives out at once or never."""
        order = sorted(indices, key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _with_room(
        self, batch: Sequence[int], prompts: Sequence[list[int]], tokens: int
    ) -> Iterator[list[int]]:
        """Those of a batch that may write `tokens` more; then each that may write less by itself,
        for a batch stops where its longest has to."""
        limit = self.processor.max_length
        roomy = [i for i in batch if len(prompts[i]) + tokens <= limit]
        if roomy:
            yield roomy
        yield from ([i] for i in batch if limit - tokens < len(prompts[i]) < limit)

    def _seeds(self, requests: Sequence[Instance]) -> list[int]:
        """Of each request, by its task, its question and how often that came before."""
        before: Counter = Counter()
        seeds = []
        for request in requests:
            key = (request.task_name, request.doc_id, request.idx)
            seeds.append(zlib.crc32(repr((self.seed, *key, before[key])).encode()))
            before[key] += 1
        return seeds

    def _bar(self, total: int, disable: bool) -> tqdm:
        return tqdm(total=total, desc="questions", disable=disable or self.rank != 0)

    def _tell_too_long(
        self, requests: Sequence[Instance], rows: Sequence[list[int]], room: int
    ) -> None:
        limit = self.processor.max_length
        found = {
            f"{request.task_name}:{request.doc_id}"
            for request, row in zip(requests, rows, strict=True)
            if len(row) + room > limit
        }
        self.too_long |= found
        if found:
            logger.warning(
                "%d questions do not fit into %d tokens with an answer", len(found), limit
            )

    # -- ranks -------------------------------------------------------------------------------

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(gather_objects(tensor.cpu()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """What other ranks measured; pictures stay where they are."""
        gathered = gather_objects(without_pictures(obj))
        return gathered if self.rank == dst else None

    def barrier(self) -> None:
        if dist.is_initialized():
            dist.barrier()


def _visuals(request: Instance) -> Visuals:
    extra = request.args[2] if len(request.args) > 2 else {}
    name = f"question {request.doc_id} of {request.task_name}"
    return Visuals(extra.get("visual") or (), name)


def generation_options(given: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """lm-eval's `gen_kwargs` as (until, options of vqrae.generation).

    Raises ValueError for one that this model does not have.
    """
    given = dict(given)
    until = given.pop("until", None) or []
    tokens = given.pop("max_gen_toks", _DEFAULT_TOKENS)
    sampled = given.get("do_sample")
    temperature = float(given.pop("temperature", 1.0 if sampled else 0.0))
    options = {
        "max_new_tokens": int(tokens),
        "temperature": 0.0 if sampled is False else temperature,
    }
    for name, kind in (("top_k", int), ("top_p", float)):
        if given.get(name) is not None:
            options[name] = kind(given[name])
        given.pop(name, None)
    unknown = set(given) - set(_IGNORED)
    if unknown or given.get("num_beams", 1) != 1:
        raise ValueError(
            f"the model vqrae has no generation option {min(unknown, default='num_beams')!r}; it "
            "has until, max_gen_toks, temperature, do_sample, top_k and top_p"
        )
    return ([until] if isinstance(until, str) else list(until)), options


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of `until` in it."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
