"""What the mixed training trains, how fast, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqrae.data.augment import Augment
from vqrae.mllm.training_attention import Attention


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
