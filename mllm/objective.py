"""Mixed training of the one model: captions, questions, text, drawing, talk about drawings.

Scored, as in the paper: answers with their end of turn (LLaVA's recipe, section 3.3), and for
drawing the visual tokens only; beside those the `<|image_start|>` that begins a drawing where the
user said "draw", so that the model itself decides to draw.

Shapes: R rows, L row length, M pictures, N image tokens, D encoder width, K codebook size.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from vqrae.data._stream import BadCount
from vqrae.data.augment import Augment
from vqrae.mllm.lora import add_lora, frozen_under_lora, merged_lora
from vqrae.mllm.modeling_unified import UnifiedModel, check_agreement, mean_or_zero
from vqrae.mllm.packing import IGNORE, Piece, pack
from vqrae.mllm.processing_unified import IMAGE_PLACE, UnifiedProcessor
from vqrae.mllm.training_attention import Attention, attention_name
from vqrae.tokenizer._encoder_families import set_trainable
from vqrae.tokenizer._loading import quiet_transformers
from vqrae.tokenizer.fingerprint import fingerprint
from vqrae.training import Objective, decay_groups

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


class _TooLong(BadCount):
    advice = "shorten them, or raise --max-length or --loss.max-too-long"


# With shared rows: samples in which codes are counted.
_COUNTED_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class UnifiedObjectiveConfig:
    """What is trained in the mixed training, how fast, and with which weights."""

    lr: float = 1e-4
    """Peak learning rate of the language model. Paper: 1e-4 to draw, 2e-5 to understand."""
    min_lr: float = 0.0
    """Its rate at the end of the cosine."""
    projector_lr: float = 1e-3
    """Peak learning rate of the projector. Paper: 1e-3 when it is trained alone."""
    projector_min_lr: float = 0.0
    """Its rate at the end of the cosine."""
    weight_decay: float = 0.0
    """On matrices. Paper: 0."""
    train_llm: bool = True
    """False trains the projector alone (LLaVA's first stage)."""
    train_code_rows: bool = False
    """With train_llm False, or with adapters: True trains the rows of the marks and of the codes
    nonetheless. The rows of text keep every bit."""
    lora_rank: int = 0
    """Above 0 the language model is trained through adapters of that rank; its own weights stay.
    RUN/final holds the sum of both. Not in the paper."""
    lora_alpha: float = 32.0
    """The adapters' product is multiplied by this over their rank."""
    lora_dropout: float = 0.0
    """Share of inputs that the adapters do not see."""
    four_bit: bool = False
    """True holds the weights under the adapters in four bits (QLoRA)."""
    train_projector: bool = True
    """False keeps the projector as it is."""
    train_encoder: bool = False
    """True trains the tokenizer's encoder too, for pictures unlike those that it knows. It then
    forgets which features its codebook was made for: reading and drawing go on, but the codes and
    reconstructions of given pictures do not hold, so no data that draw may be in the mixture. The
    paper keeps it frozen."""
    encoder_lr: float = 1e-4
    """Peak learning rate of the encoder where it is trained."""
    encoder_min_lr: float = 0.0
    """Its rate at the end of the cosine."""
    code_rows: Literal["free", "shared"] = "free"
    """free: a row of its own for every code, as in the paper. shared: rows are a linear map of what
    the codes look like, so that codes which training never draws can still be drawn; frequent codes
    have a part of their own besides."""
    cond_dropout: float = 0.1
    """Share of drawings whose text is left out, so that guidance works. Not in the paper."""
    draw_wording: float = 0.5
    """Share of drawings asked for as "Draw ..." rather than by the bare caption."""
    weight_t2i: float = 1.0
    """Weight of the mean cross-entropy over codes."""
    weight_text: float = 1.0
    """Weight of the mean cross-entropy over scored text."""
    chained: float = 0.25
    """Share of interleaved conversations that go on to another drawing."""
    max_too_long: float = 0.05
    """Samples of more tokens than the model's limit are skipped, named and counted; above this
    share of all, training stops."""
    packed: bool = True
    """Short sequences share a row."""
    attention: Attention = "auto"
    """flash: flash-attn's kernels for packed sequences; flex: FlexAttention, which skips what no
    sequence sees; sdpa: torch's own with a mask. auto takes flash where it is installed and the
    precision is half, else the model's own. Losses are the same to rounding."""
    gradient_checkpointing: bool = False
    """True keeps of the language model only what goes into each layer, and runs the layers again in
    the backward pass: the same losses with less memory, in up to a third more time."""
    augment: Augment = Augment()
    """What happens to the pictures of questions, conversations and captions."""
    one_question: bool = False
    """Of each conversation about pictures a single question stays, drawn at random: for data whose
    questions give each other's answers away, so that a model learns to read them, not the
    picture."""

    @property
    def keeps_text_rows(self) -> bool:
        """Whether of the tables only the rows of marks and codes are trained."""
        return self.train_code_rows and (self.lora_rank > 0 or not self.train_llm)

    def __post_init__(self) -> None:
        for name in ("cond_dropout", "draw_wording", "chained", "max_too_long"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        rates = ("lr", "projector_lr", "encoder_lr")
        for name in (*rates, "weight_t2i", "weight_text", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is a share below 1, not {self.lora_dropout}")
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ValueError(
                f"lora_rank {self.lora_rank} must be 0 (no adapters) or more, and lora_alpha "
                f"{self.lora_alpha} above 0"
            )
        if self.four_bit and not self.lora_rank:
            raise ValueError("four_bit rounds weights that adapters train; give lora_rank too")
        if self.lora_rank and not self.train_llm:
            raise ValueError(f"lora_rank is {self.lora_rank} but train_llm False; choose one")
        if self.train_code_rows and self.code_rows == "shared":
            raise ValueError("train_code_rows needs code_rows free: shared ones are no rows yet")
        if self.code_rows == "shared" and self.lora_rank:
            raise ValueError("with lora_rank code_rows must be free")
        trained = (self.train_llm, self.train_code_rows, self.train_projector, self.train_encoder)
        if not any(trained):
            raise ValueError(
                "train_llm, train_code_rows, train_projector and train_encoder are all False: "
                "nothing is trained"
            )


class UnifiedObjective(Objective):
    """One mean over codes and one over text, each with its weight.

    Samples carry "task": "t2i", "caption" and "interleaved" with "image", "text" and maybe "json"
    (a "t2i" may have "codes" of data.CodeDataset instead of its image; they must be this model's)
    ({"captions": [...], "questions": [{"question", "answer"}, ...]}); "vqa" and "text" with
    "images" and "conversations". Wordings, dropped conditions and augmentations are chosen by the
    keys of the batch and their order: loader workers and resumed runs choose the same, other epochs
    others.
    """

    unit = "tokens"

    def __init__(
        self,
        model: UnifiedModel,
        processor: UnifiedProcessor,
        config: UnifiedObjectiveConfig | None = None,
    ):
        super().__init__()
        check_agreement(model, processor)
        self.model, self.processor = model, processor
        self.config = config or UnifiedObjectiveConfig()
        self._train_language_model()
        if self.config.code_rows == "shared" and self.config.train_llm:
            model.share_code_rows()
        model.projector.requires_grad_(self.config.train_projector)
        set_trainable(model.vqrae.encoder, self.config.train_encoder)
        if self.config.gradient_checkpointing:
            _checkpoint_layers(model.language_model)
        self._attention_is_chosen = False
        self._lengths = _TooLong("the mixture", self.config.max_too_long)
        self.fingerprint = fingerprint(model.vqrae)
        # A frozen tokenizer is there again at every start, and so is what adapters stand on.
        self.not_saved = () if self.config.train_encoder else ("model.vqrae.",)
        if self.config.lora_rank:
            under = frozen_under_lora(model.language_model)
            self.not_saved += tuple(f"model.language_model.{prefix}" for prefix in under)

    def _train_language_model(self) -> None:
        """Freeze what the config does not train, and add adapters."""
        model, config = self.model, self.config
        model.language_model.requires_grad_(config.train_llm)
        if config.lora_rank:
            add_lora(
                model.language_model,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                four_bit=config.four_bit,
            )
        for part in model.companions():
            part.requires_grad_(config.train_llm or config.train_code_rows)
        if config.keeps_text_rows:
            model.train_new_rows_only()

    # -- sequences ---------------------------------------------------------------------------

    def collate(self, samples: list[dict]) -> dict:
        """Samples to packed rows; codes are placeholders until `forward` has encoded the pictures.

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

    # -- loss --------------------------------------------------------------------------------

    def count(self, batch: dict) -> int:
        """Tokens in the batch, without padding."""
        return int(batch["tokens"])

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs: loss_t2i over codes, `loss_<task>` over that task's scored text,
        loss_start over the decisions to draw, and too_long, the number of samples that were
        skipped; a log is left out where the batch has none.
        """
        model, config = self.model, self.config
        hidden, labels = self.read(batch)
        text_losses, code_losses = model.losses(hidden, labels)
        loss_codes, loss_text = mean_or_zero(code_losses), mean_or_zero(text_losses)
        loss = config.weight_t2i * loss_codes + config.weight_text * loss_text
        logs = {"loss": loss.detach()}
        if len(code_losses):
            logs["loss_t2i"] = loss_codes.detach()
        if batch["too_long"]:
            logs["too_long"] = torch.tensor(float(batch["too_long"]), device=loss.device)
        logs |= self._text_logs(text_losses.detach(), labels, batch["tasks"])
        return loss, logs

    def read(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Hidden states (B, L, T) of a batch, and its labels (B, L) with its pictures' codes."""
        model = self.model
        if not self._attention_is_chosen:  # device and precision are known from here on
            name = attention_name(self.config.attention, model.language_model)
            model.set_training_attention(name)
            self._attention_is_chosen = True
        input_ids, labels, features = batch["input_ids"], batch["labels"], None
        if "pixel_values" in batch:
            # One pass of the encoder gives the features to look at and the codes to write.
            all_features = model.image_features(batch["pixel_values"])
            features = all_features[batch["looks"]] if len(batch["looks"]) else None
            if len(batch["draws"]):
                used, place = batch["draws"].unique(return_inverse=True)
                codes = model.vqrae.quantize_features(all_features[used])[place]
                ids = codes.flatten() + model.config.code_offset
                input_ids = input_ids.masked_scatter(batch["is_code"], ids)
                labels = labels.masked_scatter(batch["is_code"], ids)
        embeddings = model.embed(input_ids, features=features)
        return model.decode(embeddings, position_ids=batch["position_ids"]), labels

    def _text_logs(self, losses: Tensor, labels: Tensor, tasks: Tensor) -> dict[str, Tensor]:
        vocabulary = self.model.config
        scored = (labels[:, 1:] != IGNORE) & (labels[:, 1:] < vocabulary.code_offset)
        starts = labels[:, 1:][scored] == vocabulary.image_start_id
        tasks = tasks[:, 1:][scored]
        logs = {}
        for index, name in enumerate(TASKS[1:], start=1):
            chosen = (tasks == index) & ~starts
            if chosen.any():
                logs[f"loss_{name}"] = losses[chosen].mean()
        if starts.any():
            logs["loss_start"] = losses[starts].mean()
        return logs

    @torch.no_grad()
    def prepare(self, batches: Iterator[dict]) -> None:
        """Count the codes that training draws; see CodeRows.set_counts."""
        model = self.model
        if model.output_rows is None:
            return
        counts = torch.zeros(model.config.codebook_size, device=model.device)
        seen = 0
        for batch in batches:
            known = batch["input_ids"][~batch["is_code"]] - model.config.code_offset
            codes = [known[known >= 0].to(counts.device)]
            if len(batch["draws"]):
                pixels = batch["pixel_values"][batch["draws"].unique()]
                codes.append(model.vqrae.tokenize(pixels.to(counts.device)).flatten())
            counts += torch.bincount(torch.cat(codes), minlength=len(counts))
            seen += len(batch["keys"])
            if seen >= _COUNTED_SAMPLES:
                break
        for rows in {model.input_rows, model.output_rows}:
            rows.set_counts(counts)

    def param_groups(self) -> list[dict]:
        """What is trained of language model, projector and encoder, each with its own rate."""
        config, groups = self.config, []
        if config.train_llm or config.train_code_rows:
            groups += decay_groups(
                self.model.language_model,
                name="llm",
                lr=config.lr,
                min_lr=config.min_lr,
                # Where rows of text are kept, their table must not decay.
                weight_decay=0.0 if config.keeps_text_rows else config.weight_decay,
            )
            rows = [r for r in (self.model.input_rows, self.model.output_rows) if r is not None]
            groups += decay_groups(
                nn.ModuleList(dict.fromkeys(rows)),
                name="code_rows",
                lr=config.lr,
                min_lr=config.min_lr,
                weight_decay=config.weight_decay,
            )
            groups += decay_groups(
                nn.ModuleList(self.model.companions()),
                name="companions",
                lr=config.lr,
                min_lr=config.min_lr,
                weight_decay=config.weight_decay,
            )
        if config.train_projector:
            groups += decay_groups(
                self.model.projector,
                name="projector",
                lr=config.projector_lr,
                min_lr=config.projector_min_lr,
                weight_decay=config.weight_decay,
            )
        if config.train_encoder:
            groups += decay_groups(
                self.model.vqrae.encoder,
                name="encoder",
                lr=config.encoder_lr,
                min_lr=config.encoder_min_lr,
                weight_decay=config.weight_decay,
            )
        return groups

    def large_parts(self) -> list[nn.Module]:
        return [self.model.language_model.get_decoder(), self.model.vqrae.encoder]

    def export(self, directory: Path) -> None:
        """The whole model with its processor, ready for load_unified."""
        model = self.model
        model.fold_code_rows()
        adapted = model.language_model
        with quiet_transformers():
            if self.config.lora_rank:
                model.language_model = merged_lora(adapted)
            try:
                model.save_pretrained(directory)
            finally:
                model.language_model = adapted
            self.processor.save_pretrained(directory)


def _checkpoint_layers(language_model: PreTrainedModel) -> None:
    # transformers 5.2x renames gradient_checkpointing_enable, and warns where the old name is used.
    renamed = getattr(language_model, "activation_checkpointing_enable", None)
    (renamed or language_model.gradient_checkpointing_enable)({"use_reentrant": False})


def _one_question(turns: list[dict], places: int, rng: random.Random) -> list[dict]:
    """One question of a conversation with its answer, all pictures before it."""
    start = 2 * rng.randrange(len(turns) // 2)
    question, answer = turns[start : start + 2]
    text = question["content"].replace(IMAGE_PLACE, "").strip()
    return [question | {"content": f"{IMAGE_PLACE}\n" * places + text}, answer]


def _caption_of(sample: dict, rng: random.Random) -> str:
    captions = (sample.get("json") or {}).get("captions") or [sample["text"]]
    return rng.choice(captions).strip()
