"""The one model: a causal language model that reads continuous features and writes codes.

Shapes: B batch, L sequence, N image tokens, D encoder width, T text width, V text vocabulary,
K codebook size, H W pixels, M pictures, S supervised positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput
from vqrae.mllm._linear_loss import linear_losses
from vqrae.mllm.code_mixture import CodeMixture
from vqrae.mllm.code_rows import CodeRows, code_meanings
from vqrae.mllm.configuration_unified import UnifiedConfig
from vqrae.mllm.packing import IGNORE
from vqrae.mllm.processing_unified import UnifiedProcessor
from vqrae.mllm.training_attention import packed_lengths
from vqrae.mllm.vocabulary import extend_language_model, extend_tokenizer
from vqrae.tokenizer import VQRAEImageProcessor, VQRAEModel
from vqrae.tokenizer._loading import StrictLoadingMixin

# What codes that training never draws may have of the probability, together.
_UNSEEN = 0.01
_EXCESS_EVERY = 4  # places of which one is looked at: enough to hold them, and cheap
_NO_CHANCE = -1e4  # as a logit; -inf would make gradients of mixtures NaN


class FeatureProjector(nn.Module):
    """Two layers with a GELU between, as in LLaVA-1.5: (M, N, D) -> (M, N, T).

    Args:
        positions: N, to add a learnt vector for each place in the picture, or None. LLaVA has none:
            large encoders say in their features where each of them stands, small ones may not.
    """

    def __init__(self, feature_dim: int, text_width: int, positions: int | None = None):
        super().__init__()
        self.inner = nn.Linear(feature_dim, text_width)
        self.outer = nn.Linear(text_width, text_width)
        self.positions = None if positions is None else nn.Embedding(positions, text_width)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.outer(F.gelu(self.inner(features)))
        return projected if self.positions is None else projected + self.positions.weight

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew, from torch's random state."""
        for layer in (self.inner, self.outer):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
            nn.init.zeros_(layer.bias)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)


@dataclass
class UnifiedOutput(ModelOutput):
    """What one pass gives; the losses only where labels were given."""

    loss: Tensor | None = None
    """Scalar: mean over scored text positions plus mean over scored code positions."""
    text_losses: Tensor | None = None
    """(S_text,), cross-entropy in nats at each scored text position, in row-major order."""
    code_losses: Tensor | None = None
    """(S_code,), the same for codes."""
    logits: Tensor | None = None
    """(B, L, V + 3 + K), only on request; text and codes are never scored against each other."""
    hidden_states: Tensor | None = None
    """(B, L, T), of the last layer, after its norm."""


class UnifiedModel(StrictLoadingMixin, PreTrainedModel):
    """Understanding: `<|image_pad|>` positions take projected features of the encoder. Generation:
    the codes are ordinary tokens, and where a code stands the head scores only the codes.

    The VQRAE tokenizer inside is always in eval mode, and frozen unless an objective trains its
    encoder.
    """

    config_class = UnifiedConfig
    main_input_name = "input_ids"
    _what = "the model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.vqrae = VQRAEModel(config.vqrae_config).requires_grad_(False).eval()
        self._add_own_parts()
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        # Only while training shares them; see share_code_rows.
        self.input_rows: CodeRows | None = None
        self.output_rows: CodeRows | None = None
        # In place of the codes' rows of the head; see generation/cpu_weights.py.
        self.code_head: nn.Module | None = None
        # transformers' names of the attention to train with, and of the model's own.
        self._training_attention: str | None = None
        self._own_attention: str | None = None
        # See generation/compiled.py.
        self.compiled_decoding: Callable | None = None
        self.post_init()

    def _add_own_parts(self) -> None:
        """What is neither the language model's nor the tokenizer's, from torch's random state."""
        config = self.config
        places, width = config.num_image_tokens, config.text_config.hidden_size
        self.projector = FeatureProjector(
            config.feature_dim, width, places if config.feature_positions else None
        )
        self.projector.reset()
        self.code_positions: nn.Embedding | None = None
        if config.code_positions:
            self.code_positions = nn.Embedding(places, width)
            nn.init.normal_(self.code_positions.weight, std=0.02)
        self.code_mixture: CodeMixture | None = None
        if config.code_mixture > 1:
            self.code_mixture = CodeMixture(width, config.code_mixture)
            self.code_mixture.reset()
        bias = torch.zeros(config.codebook_size) if config.code_bias else None
        self.register_buffer("code_bias", bias)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The two models inside bring their own; ours are the projector and the mixture.
        if isinstance(module, (FeatureProjector, CodeMixture)):
            module.reset()

    @classmethod
    def from_parts(
        cls,
        language_model: PreTrainedModel,
        text_tokenizer: PreTrainedTokenizerBase,
        vqrae: VQRAEModel,
        *,
        codes_like_codebook: bool = True,
        feature_positions: bool = False,
        code_positions: bool = False,
        code_mixture: int = 1,
        max_length: int = 1536,
        rows_multiple: int = 1,
        seed: int = 0,
        **turn_format: str,
    ) -> tuple[UnifiedModel, UnifiedProcessor]:
        """Join a causal language model and a tokenizer of pictures; the projector starts untrained.

        Both models are taken over, not copied: the language model's vocabulary is extended in
        place, and `vqrae` is frozen.

        Args:
            codes_like_codebook: similar codes start with more similar embeddings (not stated in the
                paper); otherwise all new rows are drawn independently.
            feature_positions: add a learnt vector for each place to the projected features.
            code_positions: add a learnt vector for each place to the embeddings of codes, so that
                the language model need not count to know where it is drawing.
            code_mixture: softmaxes that the head over codes mixes; see CodeMixture.
            max_length: longest sequence that the processor lets pass; the language model's own
                limit where that is lower. Paper: 1536.
            rows_multiple: the vocabulary's rows are rounded up to a multiple of this: GPUs are fast
                at multiples of 64.
            seed: of the new rows.
            turn_format: fields of UnifiedProcessor, such as user_prefix, where the one chosen for
                the tokenizer does not fit.

        Raises:
            ValueError: for a tokenizer that does not fit the language model, or a language model
                that alters its logits after its head.
        """
        _check_plain_head(language_model)
        tokenizer, layout = extend_tokenizer(text_tokenizer, vqrae.config.codebook_size)
        likeness = None
        if codes_like_codebook:
            # As features, in which the encoder has put like meanings near each other.
            with torch.no_grad():
                likeness = vqrae.project_out(vqrae.quantizer.effective_codebook())
        generator = torch.Generator().manual_seed(seed)
        extend_language_model(language_model, layout, likeness, generator, rows_multiple)
        config = UnifiedConfig(
            text_config=language_model.config,
            vqrae_config=vqrae.config,
            num_image_tokens=vqrae.config.num_image_tokens,
            feature_positions=feature_positions,
            code_positions=code_positions,
            code_mixture=code_mixture,
            **layout._asdict(),
        )
        # The parts exist already: build the frame without memory, then put them in.
        with torch.device("meta"):
            model = cls(config)
        weight = language_model.get_input_embeddings().weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model._add_own_parts()
        for part in (model.projector, model.code_positions, model.code_mixture):
            if part is not None:
                part.to(weight)
        model.language_model = language_model
        model.vqrae = vqrae.requires_grad_(False).eval()
        if config.max_positions is not None:
            max_length = min(max_length, config.max_positions)
        processor = UnifiedProcessor(
            VQRAEImageProcessor(image_size=vqrae.config.image_size),
            tokenizer,
            num_image_tokens=config.num_image_tokens,
            max_length=max_length,
            **turn_format,
        )
        check_agreement(model, processor)
        return model.train(language_model.training), processor

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        """As in transformers; missing or misshapen weights are a ValueError of one line."""
        loaded = super().from_pretrained(path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading puts new parameters in place of those that __init__ froze.
        model.vqrae.requires_grad_(False).eval()
        return loaded

    def train(self, mode: bool = True) -> UnifiedModel:
        super().train(mode)
        self.vqrae.eval()
        if self._training_attention is not None:
            name = self._training_attention if mode else self._own_attention
            self.language_model.config._attn_implementation = name
        return self

    def set_training_attention(self, name: str) -> None:
        """Attend by transformers' `name` in training mode. In evaluation mode, in which answers are
        written and pictures drawn, the model's own attention is used.

        Raises:
            ValueError: if the language model or the machine cannot.
        """
        language_model = self.language_model
        self._own_attention = self._own_attention or language_model.config._attn_implementation
        if name != language_model.config._attn_implementation:
            try:
                language_model.set_attn_implementation(name)
            except (ImportError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"no training with attention {name!r}: {reason}") from None
        self._training_attention = name
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    # -- reading -----------------------------------------------------------------------------

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(M, 3, H, W) in [0, 1] -> (M, N, D), what the language model looks at."""
        return self.vqrae.encode(pixel_values.to(self.vqrae.dtype))

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, L, T) of `input_ids` (B, L), with pictures at the pad positions.

        Args:
            pixel_values: (M, 3, H, W) in [0, 1], in the order in which they stand in the rows.
            features: (M, N, D), instead of `pixel_values`.
            places: (B, L), where in its picture each code stands, from 0 to N - 1; by default codes
                are taken for whole pictures.

        Raises:
            ValueError: if pictures and `<|image_pad|>` positions differ in number.
        """
        if features is None and pixel_values is not None:
            features = self.image_features(pixel_values)
        embeddings = self.token_embeddings(input_ids, places)
        pads = input_ids == self.config.image_pad_id
        room = int(pads.sum())
        given = 0 if features is None else features.shape[0] * features.shape[1]
        if room != given:
            raise ValueError(
                f"the text has places for {room} image tokens, but the pictures give {given}; "
                f"each picture takes {self.config.num_image_tokens}"
            )
        if not room:
            return embeddings
        projected = self.projector(features.to(self.projector.inner.weight.dtype))
        return embeddings.masked_scatter(pads[..., None], projected.to(embeddings.dtype))

    def token_embeddings(self, input_ids: Tensor, places: Tensor | None = None) -> Tensor:
        """`embed` where no pictures are looked at."""
        embeddings = self.get_input_embeddings()(input_ids)
        codes = input_ids - self.config.code_offset
        is_code = codes >= 0
        if self.input_rows is not None:
            rows = F.embedding(codes.clamp(min=0), self.input_rows().to(embeddings.dtype))
            embeddings = torch.where(is_code[..., None], rows, embeddings)
        if self.code_positions is not None:
            if places is None:
                places = (is_code.cumsum(1) - 1).clamp(min=0) % self.config.num_image_tokens
            embeddings = embeddings + is_code[..., None] * self.code_positions(places)
        return embeddings

    def decode(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, L, T) of the language model; `cache` is extended in place.

        Several sequences may be packed in one row: give `position_ids` that begin again at 0 for
        each of them, and no mask.
        """
        decoder = self.language_model.get_decoder()
        flash = "flash" in self.language_model.config._attn_implementation
        if flash and cache is None and attention_mask is None and position_ids is not None:
            # One row: rows that hold several sequences are told apart by their edges.
            hidden = decoder(
                inputs_embeds=embeddings.flatten(0, 1)[None],
                position_ids=position_ids.reshape(1, -1),
                use_cache=False,
                **packed_lengths(position_ids),
            ).last_hidden_state
            return hidden.view_as(embeddings)
        extra = {} if cache is None else {_cache_argument(decoder): cache}
        out = decoder(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **extra,
        )
        return out.last_hidden_state

    # -- writing -----------------------------------------------------------------------------

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., T) -> (..., V + 3), text and the three marks."""
        return self._head(hidden, 0, self.config.code_offset)

    def code_logits(self, hidden: Tensor, among: Tensor | None = None) -> Tensor:
        """(..., T) -> (..., K), codes only; those that are not `among` (K,) bool have no chance."""
        first = self.config.code_offset
        last = first + self.config.codebook_size
        shared = None if self.output_rows is None else self.output_rows()
        mixture = self.code_mixture
        guesses = hidden if mixture is None else mixture.guesses(hidden)
        if self.code_head is not None:
            logits = self.code_head(guesses)
        else:
            logits = self._head(guesses, first, last, shared)
        if among is not None:
            logits = logits.masked_fill(~among, _NO_CHANCE)
        logits = logits if mixture is None else mixture.mix(hidden, logits)
        return logits if self.code_bias is None else logits + self.code_bias.to(logits.dtype)

    def companions(self) -> list[nn.Module]:
        """Ours beside the language model that is trained with it, where the config asks for it."""
        parts = (self.code_positions, self.code_mixture)
        return [part for part in parts if part is not None]

    def train_new_rows_only(self) -> None:
        """Of the two tables, let gradients reach the rows of the marks and of the codes only.

        Under AdamW without decay the others then keep every bit.
        """
        first = self.config.image_start_id

        def of_new_rows(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[:first] = 0
            return gradient

        tables = (self.get_input_embeddings(), self.get_output_embeddings())
        for weight in {table.weight for table in tables}:
            weight.requires_grad_(True)
            weight.register_hook(of_new_rows)

    def share_code_rows(self) -> None:
        """Until `fold_code_rows`, rows of the codes are a linear map of what the codes look like,
        which starts as near as it can to the rows there are."""
        meanings = code_meanings(self.vqrae)
        tables = (self.get_input_embeddings(), self.get_output_embeddings())
        rows = [CodeRows(meanings, self._code_rows(table)) for table in tables]
        self.input_rows = rows[0]
        self.output_rows = rows[0] if tables[0].weight is tables[1].weight else rows[1]

    @torch.no_grad()
    def fold_code_rows(self) -> None:
        """Write shared rows into the tables, where they are plain rows from now on."""
        if self.input_rows is None:
            return
        self._code_rows(self.get_input_embeddings()).copy_(self.input_rows())
        self._code_rows(self.get_output_embeddings()).copy_(self.output_rows())
        self.input_rows = self.output_rows = None

    def _code_rows(self, table: nn.Module) -> Tensor:
        first = self.config.code_offset
        return table.weight.detach()[first : first + self.config.codebook_size]

    def _head(self, hidden: Tensor, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        head = self.language_model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        weight = head.weight[start:stop] if rows is None else rows.to(hidden.dtype)
        return F.linear(hidden, weight, None if bias is None else bias[start:stop])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        return_logits: bool | None = None,
    ) -> UnifiedOutput:
        """One pass over `input_ids` (B, L).

        Args:
            attention_mask: (B, L), 1 where there is a token.
            position_ids: (B, L); see `decode` for packed rows.
            pixel_values, features: see `embed`.
            labels: (B, L), the ids themselves where they are scored, -100 elsewhere. A text label
                is scored over text and marks only, a code label over the codes only.
            return_logits: also compute logits of all positions; the default is to do so when
                there are no labels.
        """
        embeddings = self.embed(input_ids, pixel_values, features)
        hidden = self.decode(embeddings, attention_mask, position_ids, cache)
        out = UnifiedOutput(hidden_states=hidden)
        if labels is not None:
            out.text_losses, out.code_losses = self.losses(hidden, labels)
            out.loss = mean_or_zero(out.text_losses) + mean_or_zero(out.code_losses)
        if return_logits or (return_logits is None and labels is None):
            out.logits = torch.cat([self.text_logits(hidden), self.code_logits(hidden)], -1)
        return out

    def losses(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies (S_text,) and (S_code,) of `labels` (B, L), given `hidden` (B, L, T).

        Of large vocabularies all logits are never held at once; see mllm/_linear_loss.py.
        While code rows are shared, codes that training never draws are left out of the latter; what
        probability they have together above 1%, on average, is added to each.
        """
        hidden, labels = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        first = self.config.code_offset
        text = ((labels != IGNORE) & (labels < first)).nonzero().squeeze(1)
        code = (labels >= first).nonzero().squeeze(1)
        head = self.language_model.get_output_embeddings()
        blocks = [(text, 0, first)]
        if all(part is None for part in (self.code_mixture, self.output_rows, self.code_bias)):
            blocks.append((code, first, first + self.config.codebook_size))
        found = linear_losses(hidden, labels, head.weight, getattr(head, "bias", None), blocks)
        if len(found) == 1:
            # More than a linear head over plain rows: its logits are all made.
            found.append(self._code_losses(hidden[code], labels[code] - first))
        return tuple(found)

    def _code_losses(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """(S,) of `codes` (S,) after `hidden` (S, T), by the plain formula."""
        among, excess = None, 0.0
        if self.output_rows is not None:
            # What training never draws is not pushed away: its row says what it looks like. But
            # where nothing holds it at all, a code that looks like no other may be drawn anywhere.
            among = self.output_rows.seen.index_fill(0, codes, True)
            excess = self._excess(hidden[::_EXCESS_EVERY], ~among)
        logits = self.code_logits(hidden, among).float()
        return F.cross_entropy(logits, codes, reduction="none") + excess

    def _excess(self, hidden: Tensor, unseen: Tensor) -> Tensor:
        """Mean over (S, T) of the probability above `_UNSEEN` of `unseen` (K,) codes."""
        chance = self.code_logits(hidden).float().softmax(-1)[:, unseen].sum(-1)
        return mean_or_zero(F.relu(chance - _UNSEEN))


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of a vector that may be empty; zero then, still joined to the graph."""
    return values.sum() / max(values.numel(), 1)


def check_agreement(model: UnifiedModel, processor: UnifiedProcessor) -> None:
    """Raise ValueError, naming both values, unless `processor` writes the ids `model` reads."""
    config = model.config
    pairs = {
        "image_start_id": (config.image_start_id, processor.image_start_id),
        "image_end_id": (config.image_end_id, processor.image_end_id),
        "image_pad_id": (config.image_pad_id, processor.image_pad_id),
        "code_offset": (config.code_offset, processor.code_offset),
        "codebook_size": (config.codebook_size, processor.codebook_size),
        "num_image_tokens": (config.num_image_tokens, processor.num_image_tokens),
        "image_size": (config.vqrae_config.image_size, processor.image_processor.image_size),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} in the model but {theirs} in its processor; "
                "load both from the same folder"
            )


def _check_plain_head(language_model: PreTrainedModel) -> None:
    """Refuse language models that do more than a linear head, such as soft-capping of logits."""
    with torch.no_grad():
        ids = torch.arange(4, device=language_model.device)[None]
        was_training = language_model.training
        language_model.eval()
        logits = language_model(input_ids=ids).logits
        hidden = language_model.get_decoder()(input_ids=ids).last_hidden_state
        plain = language_model.get_output_embeddings()(hidden)
        language_model.train(was_training)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"{type(language_model).__name__} alters its logits after its head (soft-capping or "
            "scaling), which is not supported; choose another language model"
        )


def _cache_argument(decoder: nn.Module) -> str:
    # transformers 5.2x renames past_key_values to cache.
    return (
        "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    )


AutoConfig.register("vqrae_unified", UnifiedConfig, exist_ok=True)
AutoModel.register(UnifiedConfig, UnifiedModel, exist_ok=True)
