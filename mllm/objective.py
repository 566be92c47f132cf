"""Mixed training of the one model: captions, questions, text, drawing, talk about drawings.

Shapes: L row length, D encoder width, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from vqrae.mllm.lora import add_lora, frozen_under_lora, merged_lora
from vqrae.mllm.modeling_unified import UnifiedModel, check_agreement, mean_or_zero
from vqrae.mllm.objective_config import UnifiedObjectiveConfig
from vqrae.mllm.packing import IGNORE
from vqrae.mllm.processing_unified import UnifiedProcessor
from vqrae.mllm.sequences import TASKS, Sequences
from vqrae.mllm.training_attention import attention_name
from vqrae.tokenizer._encoder_families import set_trainable
from vqrae.tokenizer._loading import quiet_transformers
from vqrae.tokenizer.fingerprint import fingerprint
from vqrae.training import Objective, decay_groups

# With shared rows: samples in which codes are counted.
_COUNTED_SAMPLES = 4096


class UnifiedObjective(Objective):
    """One mean over codes and one over text, each with its weight.

    Samples carry "task": "t2i", "caption" and "interleaved" with "image", "text" and maybe "json"
    ({"captions": [...], "questions": [{"question", "answer"}, ...]}); a "t2i" may have "codes" of
    data.CodeDataset instead of its image, which must be this model's; "vqa" and "text" with
    "images" and "conversations".
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
        self.sequences = Sequences(processor, self.config, fingerprint(model.vqrae))
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

    def collate(self, samples: list[dict]) -> dict:
        return self.sequences.collate(samples)

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
