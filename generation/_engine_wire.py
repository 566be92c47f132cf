"""What goes over the wire to engines that take token ids and give token ids.

Read from the sources of vLLM 0.33.0 (entrypoints/openai/completion) and SGLang 0.5.23
(srt/managers/io_struct.py, srt/sampling/sampling_params.py); neither ran here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

EngineKind = Literal["vllm", "sglang"]
# Added to a logit it leaves no chance, and JSON has no infinity.
_NEVER = -1e9
# What vLLM's Model Runner V2 has room for.
_FEW_IDS = 1024


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One sequence that is wanted of an engine."""

    ids: Sequence[int]
    """The prompt."""
    allowed: range
    """Ids that may follow, at every place."""
    most: int
    """Tokens at most."""
    end: int | None = None
    """The one of `allowed` that ends it earlier; None takes all `most`."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    """Of probabilities before temperature, as in sample_codes."""
    seed: int = 0


class Wire(Protocol):
    """How an engine is asked."""

    path: str

    def body(self, ask: Ask) -> dict[str, Any]:
        """What is posted to `path`, as JSON."""

    def written(self, answer: Any) -> Any:
        """The token ids in its answer; None or anything else where there are none."""

    def hint(self, ask: Ask, status: int) -> str:
        """The mend of an error that users meet with this engine, or nothing."""


class VLLMWire:
    """vLLM's OpenAI-compatible server."""

    path = "/v1/completions"

    def __init__(self, model: str | None = None):
        self.model = model

    def body(self, ask: Ask) -> dict[str, Any]:
        body = {
            "prompt": list(ask.ids),
            "allowed_token_ids": list(ask.allowed),
            "return_token_ids": True,
            "max_tokens": ask.most,
            "min_tokens": ask.most if ask.end is None else 0,
            "ignore_eos": ask.end is None,
            "stop_token_ids": _end_of(ask),
            "temperature": ask.temperature,
            "top_k": ask.top_k,
            "top_p": ask.top_p,
            "min_p": _after_temperature(ask),
            "seed": ask.seed,
        }
        return body if self.model is None else body | {"model": self.model}

    def written(self, answer: Any) -> Any:
        return answer["choices"][0]["token_ids"]

    def hint(self, ask: Ask, status: int) -> str:
        if status >= 500 and len(ask.allowed) > _FEW_IDS:
            return (
                f"; its Model Runner V2 takes {_FEW_IDS} allowed ids at most and these are "
                f"{len(ask.allowed)}: start vLLM with VLLM_USE_V2_MODEL_RUNNER=0"
            )
        return ""


class SGLangWire:
    """SGLang's own endpoint. It has no list of allowed ids, so all others get a bias.

    Args:
        rows: of the language model's head, codes and surplus rows with them.
    """

    path = "/generate"

    def __init__(self, rows: int):
        self.rows = rows
        self._biases: dict[range, dict[str, float]] = {}

    def body(self, ask: Ask) -> dict[str, Any]:
        sampling = {
            "max_new_tokens": ask.most,
            "ignore_eos": ask.end is None,
            "stop_token_ids": _end_of(ask),
            "temperature": ask.temperature,
            "top_k": ask.top_k or -1,
            "top_p": ask.top_p,
            "min_p": _after_temperature(ask),
            "sampling_seed": ask.seed,
            "logit_bias": self._bias(ask),
        }
        return {"input_ids": list(ask.ids), "sampling_params": sampling}

    def _bias(self, ask: Ask) -> dict[str, float]:
        if ask.allowed not in self._biases:
            others = (i for i in range(self.rows) if i not in ask.allowed)
            self._biases[ask.allowed] = {str(i): _NEVER for i in others}
        return self._biases[ask.allowed]

    def written(self, answer: Any) -> Any:
        return answer["output_ids"]

    def hint(self, ask: Ask, status: int) -> str:
        return ""


def _end_of(ask: Ask) -> list[int]:
    return [] if ask.end is None else [ask.end]


def _after_temperature(ask: Ask) -> float:
    """min_p of what temperature has sharpened: both engines apply it there, we before it."""
    return ask.min_p ** (1 / ask.temperature) if ask.temperature > 0 else 0.0
