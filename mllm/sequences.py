"""Samples as training sequences: what is said, seen, drawn and scored, packed into rows.

Scored, as in the paper: answers with their end of turn (LLaVA's recipe, section 3.3), and for
drawing the visual tokens only; beside those the `<|image_start|>` that begins a drawing where the
user said "draw", so that the model itself decides to draw.

Shapes: R rows, L row length, M pictures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from PIL import Image
from vqrae.data._stream import BadCount
from vqrae.mllm.objective_config import UnifiedObjectiveConfig
from vqrae.mllm.packing import Piece, pack
from vqrae.mllm.processing_unified import IMAGE_PLACE, UnifiedProcessor

TASKS = ("t2i", "caption", "vqa", "text", "interleaved")

DRAW_REQUESTS = (
    "Draw {}.",
    "Draw {}",
    "draw {}",
    "Please draw {}.",
    "Can you draw {}?",
    "Draw a picture of {}.",
    "Paint {}.",
)
CAPTION_REQUESTS = (
    "Describe the picture.",
    "Describe the image.",
    "What is in the picture?",
    "What do you see?",
    "Give a caption.",
)
OWN_DRAWING_REQUESTS = (
    "What did you draw?",
    "Describe what you drew.",
    "What is in your picture?",
)


class Sequences:
    """Batches of samples as packed rows of ids, labels and pictures; see UnifiedObjective.

    Codes that samples bring must be of the tokenizer `fingerprint`. Wordings, dropped conditions
    and augmentations are chosen by the keys of the batch and their order: loader workers and
    resumed runs choose the same, other epochs others.
    """

    def __init__(
        self, processor: UnifiedProcessor, config: UnifiedObjectiveConfig, fingerprint: str
    ):
        self.processor, self.config, self.fingerprint = processor, config, fingerprint
        advice = "shorten them, or raise --max-length or --loss.max-too-long"
        self._lengths = BadCount("the mixture", config.max_too_long, advice)

    def collate(self, samples: list[dict]) -> dict:
        """Samples to packed rows; codes are placeholders until the pictures are encoded.

        Samples that are too long are left out, and named in the log.

        Raises:
            ValueError: for a sample of an unknown task or one that cannot be, naming its key, and
                if more than `max_too_long` of the samples so far were too long.
        """
        images: list = []
        pieces = []
        keys = [str(sample["key"]) for sample in samples]
        rng = random.Random("\0".join(f"{s['task']}\0{s['key']}" for s in samples))
        talks = [sample for sample in samples if sample["task"] == "interleaved"]
        for sample in samples:
            task = sample["task"]
            if task not in TASKS:
                raise ValueError(
                    f"sample {sample['key']!r} has task {task!r}; valid tasks: {', '.join(TASKS)}"
                )
            piece = Piece(task=TASKS.index(task))
            piece.add(self.processor.trusted(self.processor.conversation_prefix))
            before = len(images)
            try:
                if task == "t2i":
                    self._drawing(piece, sample, images, rng, may_drop=True)
                elif task == "caption":
                    self._caption(piece, sample, images, rng)
                elif task == "interleaved":
                    self._talk(piece, sample, images, talks, rng)
                else:
                    self._conversation(piece, sample, images, rng)
            except ValueError as error:
                if repr(sample["key"]) in str(error):
                    raise
                raise ValueError(f"sample {sample['key']!r}: {error}") from None
            try:
                self.processor.check_length(len(piece), "it")
            except ValueError as error:
                del images[before:]
                self._lengths.skip(str(sample["key"]), str(error))
            else:
                self._lengths.good()
                pieces.append(piece)
        too_long = len(samples) - len(pieces)
        if not pieces:  # other ranks wait for this one: a step in which nothing is scored
            pieces.append(Piece())
            pieces[0].add([self.processor.pad_id])
        batch: dict = pack(pieces, self.processor.pad_id, together=self.config.packed)
        if images:
            batch["pixel_values"] = self.processor.pixels(images)
        batch["keys"], batch["too_long"] = keys, too_long
        batch["tokens"] = sum(len(piece) for piece in pieces)
        return batch

    def _user(self, piece: Piece, text: str, images: int = 0) -> None:
        piece.add(self.processor.user_turn(text, images))

    def _answer(self, piece: Piece, text: str) -> None:
        processor = self.processor
        suffix = processor.trusted(processor.assistant_suffix)
        piece.add(processor.trusted(processor.assistant_prefix))
        piece.add(processor.untrusted(text), scored=True)
        piece.add(suffix[:1], scored=True)
        piece.add(suffix[1:])

    def _codes(self, piece: Piece, sample: dict, images: list, *, decides: bool) -> None:
        processor = self.processor
        piece.add(processor.trusted(processor.assistant_prefix))
        self._picture(piece, sample, images, decides=decides)
        piece.add(processor.trusted(processor.assistant_suffix))

    def _picture(self, piece: Piece, sample: dict, images: list, *, decides: bool) -> None:
        """The codes of the last of `images`, or the sample's own, between their marks."""
        processor = self.processor
        piece.add([processor.image_start_id], scored=decides)
        if "codes" in sample:
            self._check_codes(sample)
            codes = sample["codes"] + processor.code_offset
            piece.add(codes.tolist(), scored=True)
        else:
            codes = [processor.code_offset] * processor.num_image_tokens
            piece.add(codes, scored=True, code=True)
            piece.draws.append(len(images) - 1)
        piece.add([processor.image_end_id])

    def _check_codes(self, sample: dict) -> None:
        if sample["tokenizer"] != self.fingerprint:
            raise ValueError(
                f"its codes are of tokenizer {sample['tokenizer']}, not of this model's, "
                f"{self.fingerprint}; encode the pictures again with this one"
            )

    def _drawing(
        self,
        piece: Piece,
        sample: dict,
        images: list,
        rng: random.Random,
        *,
        may_drop: bool,
    ) -> None:
        self._check_may_draw(sample)
        if "codes" not in sample:
            images.append(sample["image"])
        caption = _caption_of(sample, rng)
        if may_drop and rng.random() < self.config.cond_dropout:
            self._user(piece, "")
            self._codes(piece, sample, images, decides=False)
        elif may_drop and rng.random() >= self.config.draw_wording:
            self._user(piece, caption)
            self._codes(piece, sample, images, decides=False)
        else:
            self._user(piece, rng.choice(DRAW_REQUESTS).format(caption))
            self._codes(piece, sample, images, decides=True)

    def _check_may_draw(self, sample: dict) -> None:
        if self.config.train_encoder:
            raise ValueError(
                f"it is drawn (task {sample['task']!r}), but with train_encoder the codes of "
                "pictures would move; leave drawing out of the mixture or the encoder frozen"
            )

    def _caption(self, piece: Piece, sample: dict, images: list, rng: random.Random) -> None:
        images.append(self._augmented(sample["image"], rng))
        piece.looks.append(len(images) - 1)
        self._user(piece, f"{IMAGE_PLACE}\n{rng.choice(CAPTION_REQUESTS)}", 1)
        self._answer(piece, _caption_of(sample, rng))

    def _talk(
        self,
        piece: Piece,
        sample: dict,
        images: list,
        others: list[dict],
        rng: random.Random,
    ) -> None:
        self._draw_and_ask(piece, sample, images, rng)
        if len(others) > 1 and rng.random() < self.config.chained:
            other = rng.choice([s for s in others if s is not sample] or others)
            self._draw_and_ask(piece, other, images, rng)

    def _draw_and_ask(self, piece: Piece, sample: dict, images: list, rng: random.Random) -> None:
        self._drawing(piece, sample, images, rng, may_drop=False)
        piece.looks.append(len(images) - 1)
        questions = [
            (question["question"], question["answer"])
            for question in (sample.get("json") or {}).get("questions", ())
        ]
        if not questions:
            questions = [(rng.choice(OWN_DRAWING_REQUESTS), _caption_of(sample, rng))]
        for turn, (question, answer) in enumerate(questions):
            place = f"{IMAGE_PLACE}\n" if turn == 0 else ""
            self._user(piece, place + question, images=1 - min(turn, 1))
            self._answer(piece, answer)

    def _augmented(self, image: Image.Image, rng: random.Random) -> Image.Image:
        augment = self.config.augment
        return augment(image, rng) if augment.changes else image

    def _conversation(self, piece: Piece, sample: dict, images: list, rng: random.Random) -> None:
        """Pictures in the user's turns are seen, those in answers are drawn."""
        turns, pictures = sample["conversations"], list(sample.get("images") or ())
        places = [turn["content"].count(IMAGE_PLACE) for turn in turns]
        drawn = any(n for n, turn in zip(places, turns, strict=True) if turn["role"] != "user")
        if sum(places) != len(pictures):
            raise ValueError(
                f"it has {len(pictures)} pictures but {sum(places)} places {IMAGE_PLACE!r}; mend it"
            )
        if pictures and not drawn and self.config.one_question:
            turns = _one_question(turns, len(pictures), rng)
        given = iter(pictures)
        for turn in turns:
            content = turn["content"]
            if turn["role"] == "user":
                for _ in range(content.count(IMAGE_PLACE)):
                    images.append(self._augmented(next(given), rng))
                    piece.looks.append(len(images) - 1)
                self._user(piece, content, content.count(IMAGE_PLACE))
            elif IMAGE_PLACE in content:
                self._check_may_draw(sample)
                self._illustrated(piece, content, given, images)
            else:
                self._answer(piece, content)

    def _illustrated(
        self, piece: Piece, content: str, given: Iterator[Image.Image], images: list
    ) -> None:
        """An answer with drawings in it. As everywhere, one that ends with a drawing ends there by
        itself: its end is not scored."""
        processor = self.processor
        suffix = processor.trusted(processor.assistant_suffix)
        piece.add(processor.trusted(processor.assistant_prefix))
        first, *rest = content.split(IMAGE_PLACE)
        piece.add(processor.untrusted(first), scored=True)
        for text in rest:
            images.append(next(given))
            self._picture(piece, {}, images, decides=True)
            piece.add(processor.untrusted(text), scored=True)
        piece.add(suffix[:1], scored=bool(rest[-1].strip()))
        piece.add(suffix[1:])


def _one_question(turns: list[dict], places: int, rng: random.Random) -> list[dict]:
    """One question of a conversation with its answer, all pictures before it."""
    start = 2 * rng.randrange(len(turns) // 2)
    question, answer = turns[start : start + 2]
    text = question["content"].replace(IMAGE_PLACE, "").strip()
    return [question | {"content": f"{IMAGE_PLACE}\n" * places + text}, answer]


def _caption_of(sample: dict, rng: random.Random) -> str:
    captions = (sample.get("json") or {}).get("captions") or [sample["text"]]
    return rng.choice(captions).strip()
