"""Configuration of the one model that sees and draws."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from vqrae.mllm.vocabulary import NUM_SPECIALS
from vqrae.tokenizer import VQRAEConfig
from vqrae.tokenizer._keywords import refuse_unknown_keywords


@strict
class UnifiedConfig(PreTrainedConfig):
    """A causal language model, a VQRAE tokenizer, and where their vocabularies meet.

    The vocabulary is: text (V rows, as the language model had them), `<|image_start|>`,
    `<|image_end|>`, `<|image_pad|>`, then the K codes. So `image_start_id` is V and `code_offset`
    is V + 3; both are stored, and checked when a model is loaded.

    Args:
        text_config: the language model's own transformers config, with the extended vocab_size.
        vqrae_config: the tokenizer's config.
        image_start_id, image_end_id, image_pad_id, code_offset, codebook_size: see above.
        num_image_tokens: N, codes per picture and continuous features per picture.
        feature_positions: whether the projector adds a learnt vector for each place in a picture.
        code_positions: whether embeddings of codes have a learnt vector added for each such place.
        code_mixture: how many softmaxes the head over codes mixes; 1 is the paper's plain head.
        code_bias: whether logits of codes have offsets added; see vqrae.mllm.code_bias.
        guidance_scale, min_p: how this model draws best, taken where a caller names no other.
        tie_word_embeddings: as in `text_config`; kept here because transformers looks here.

    Raises:
        ValueError: for a misspelt keyword, or numbers that contradict each other.
    """

    model_type = "vqrae_unified"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
        "vqrae_config": SubConfigSpec(config_class=VQRAEConfig),
    }

    text_config: dict | PreTrainedConfig | None = None
    vqrae_config: dict | PreTrainedConfig | None = None
    image_start_id: int | None = None
    image_end_id: int | None = None
    image_pad_id: int | None = None
    code_offset: int | None = None
    codebook_size: int | None = None
    num_image_tokens: int | None = None
    feature_positions: bool = False
    code_positions: bool = False
    code_mixture: int = 1
    code_bias: bool = False
    guidance_scale: float = 3.0
    min_p: float = 0.0
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        refuse_unknown_keywords(type(self), kwargs)
        super().__post_init__(**kwargs)
        text, vqrae = self.text_config, self.vqrae_config
        # A default config, which transformers builds now and then, holds as much text as it can.
        derived = {"codebook_size": vqrae.codebook_size, "num_image_tokens": vqrae.num_image_tokens}
        derived["tie_word_embeddings"] = bool(getattr(text, "tie_word_embeddings", False))
        first = text.vocab_size - vqrae.codebook_size - NUM_SPECIALS
        first = first if self.image_start_id is None else self.image_start_id
        derived |= {"image_start_id": first, "image_end_id": first + 1, "image_pad_id": first + 2}
        derived["code_offset"] = first + NUM_SPECIALS
        for name, value in derived.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
            elif getattr(self, name) != value:
                raise ValueError(
                    f"UnifiedConfig: {name} is {getattr(self, name)}, but the other fields make "
                    f"it {value}; take it from the config that the model was saved with"
                )
        if self.code_mixture < 1:
            raise ValueError(f"UnifiedConfig: code_mixture is {self.code_mixture}; 1 is the least")
        if self.image_start_id < 1 or self.code_offset + self.codebook_size > text.vocab_size:
            raise ValueError(
                f"UnifiedConfig: {self.codebook_size} codes from id {self.code_offset} on do not "
                f"fit text_config.vocab_size={text.vocab_size}; use UnifiedModel.from_parts"
            )

    @property
    def text_size(self) -> int:
        """V, how many text tokens there are."""
        return self.image_start_id

    @property
    def feature_dim(self) -> int:
        """D, width of the continuous features."""
        return self.vqrae_config.feature_dim

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the language model was made for, if it says."""
        return getattr(self.text_config, "max_position_embeddings", None)
