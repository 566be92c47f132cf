"""A model in two places: its language model in an engine elsewhere, the pixels here.

The engine (vLLM or SGLang) serves the folder that `vqrae export` wrote, and gives token ids for
token ids. Prompts are built on this side, and codes become pictures here.

Shapes: B pictures, N image tokens, K codebook size.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image
from vqrae.generation._engine_wire import Ask, EngineKind, SGLangWire, VLLMWire, Wire
from vqrae.generation.draw import picture_seed
from vqrae.generation.loading import load_exported
from vqrae.generation.sampling import check_sampling


class RemoteModel:
    """Draws and answers through an engine.

    Args:
        exported: the folder that `vqrae export` wrote; its language model is not loaded.
        url: where the engine listens, such as http://127.0.0.1:8000.
        engine: which one it is.
        api_key: sent as `Authorization: Bearer KEY`.
        model: the name the engine serves it by; only needed where it serves several (vLLM).
        timeout: longest wait for one picture or answer, in seconds.
        at_once: most requests at one time. The engine makes one batch of them.
        device: where codes become pixels; left out, a GPU if there is one.

    Raises:
        ValueError: for a folder that is not whole, an address that is none, or another engine.
    """

    def __init__(
        self,
        exported: str | Path,
        url: str,
        *,
        engine: EngineKind = "vllm",
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 300.0,
        at_once: int = 16,
        device: str | torch.device | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"an engine's address is like http://127.0.0.1:8000, not {url!r}")
        for name, value in (("timeout", timeout), ("at_once", at_once)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        self.vqrae, self.processor, self.known = load_exported(exported, device=device)
        self.url = url.rstrip("/").removesuffix("/v1")
        self.exported, self.timeout, self.at_once = str(exported), timeout, at_once
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._wire = self._wire_of(engine, model)

    def _wire_of(self, engine: str, model: str | None) -> Wire:
        if engine == "vllm":
            return VLLMWire(model)
        if engine == "sglang":
            return SGLangWire(self.known["rows"])
        raise ValueError(f"engine must be vllm or sglang, not {engine!r}")

    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float | None = None,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Image.Image]]:
        """`n` pictures for each prompt, without guidance.

        The j-th picture of a prompt is drawn with a seed that belongs to the prompt and seed + j,
        as in `vqrae.generation.draw`. At temperature 0 it is the same picture, but for rounding;
        above, the engine's random numbers are its own. SGLang minds seeds only if it was started
        with `--enable-deterministic-inference`.

        Args:
            guidance_scale: 1. Guidance takes a second pass in step with the first, which no engine
                makes.
            min_p: as in sample_codes; None takes the model's own.
            batch_size: pictures decoded at once.
            progress: called with (codes done, codes of all pictures) after each picture.
            The others: see sample_codes.

        Raises:
            ValueError: for an empty or too long prompt, an argument out of its range, an engine
                that cannot be reached or fails, and one whose answer is not N codes.
        """
        if guidance_scale != 1:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but an engine makes one pass where guidance "
                "needs two; give 1, or serve the model with `vqrae serve`"
            )
        for name, value in (("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        min_p = self.known["min_p"] if min_p is None else min_p
        check_sampling(temperature, top_k, top_p, min_p)
        first, places = self.processor.code_offset, self.processor.num_image_tokens
        asks = []
        for prompt in prompts:
            ids = self.processor.encode_draw(prompt)
            asks += [
                Ask(
                    ids=ids,
                    allowed=range(first, first + self.processor.codebook_size),
                    most=places,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    min_p=min_p,
                    seed=picture_seed(prompt, seed + number),
                )
                for number in range(n)
            ]
        tell = progress and (lambda done, of: progress(done * places, of * places))
        found = self._all(asks, tell)
        pictures = []
        for start in range(0, len(found), batch_size):
            pictures += self._pictures(torch.tensor(found[start : start + batch_size]) - first)
        return [pictures[start : start + n] for start in range(0, len(pictures), n)]

    def answer(
        self,
        question: str | Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str | list[str]:
        """What the model says to a text; a list for a list, the i-th with seed + i.

        What reads pictures is not in an exported folder, so it can be asked about none.

        Raises:
            ValueError: for an empty question, and as in `draw`.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        check_sampling(temperature, 0, 1.0)
        questions = [question] if isinstance(question, str) else list(question)
        asks = []
        for number, each in enumerate(questions):
            ids = self.processor.encode_chat([{"role": "user", "content": each}])
            self.processor.check_length(len(ids) + 1, "the conversation with its answer")
            ask = Ask(
                ids=ids,
                allowed=range(self.known["text_size"]),
                most=min(max_new_tokens, self.processor.max_length - len(ids)),
                end=self.processor.end_of_turn_id,
                temperature=temperature,
                seed=seed + number,
            )
            asks.append(ask)
        texts = [self.processor.text(ids) for ids in self._all(asks)]
        return texts[0] if isinstance(question, str) else texts

    # -- the engine --------------------------------------------------------------------------

    def _all(
        self, asks: list[Ask], progress: Callable[[int, int], None] | None = None
    ) -> list[list[int]]:
        """What follows each prompt; after a failure no more are asked."""
        found = []
        with ThreadPoolExecutor(self.at_once) as pool:
            running = [pool.submit(self._one, ask) for ask in asks]
            try:
                for each in running:
                    found.append(each.result())
                    if progress is not None:
                        progress(len(found), len(asks))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _one(self, ask: Ask) -> list[int]:
        answer = self._post(ask)
        try:
            written = self._wire.written(answer)
        except (KeyError, IndexError, TypeError):
            written = None
        if not isinstance(written, list) or not all(type(each) is int for each in written):
            raise ValueError(
                f"the engine at {self.url} gave no token ids, but {_short(answer)}; is it a "
                "version that can (return_token_ids of vLLM, output_ids of SGLang)?"
            )
        if ask.end is not None:
            return self._checked(_until(written, ask.end), ask, "a text token")
        if len(written) != ask.most:
            raise ValueError(
                f"the engine at {self.url} gave {len(written)} codes of {ask.most}; is its longest "
                f"sequence (--max-model-len, --context-length) at least {len(ask.ids) + ask.most}?"
            )
        return self._checked(written, ask, "a code")

    def _checked(self, written: list[int], ask: Ask, what: str) -> list[int]:
        wrong = [token for token in written if token not in ask.allowed]
        if wrong:
            raise ValueError(
                f"the engine at {self.url} gave token {wrong[0]}, which is not {what} "
                f"({ask.allowed.start} to {ask.allowed.stop - 1}); does it serve {self.exported!r}?"
            )
        return written

    def _post(self, ask: Ask) -> Any:
        request = urllib.request.Request(
            self.url + self._wire.path, json.dumps(self._wire.body(ask)).encode(), self._headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = _short(_message(error.read(10_000)))
            raise ValueError(
                f"the engine at {self.url} answered with status {error.code}: {said}"
                f"{self._wire.hint(ask, error.code)}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise ValueError(
                    f"the engine at {self.url} took longer than {self.timeout} seconds; give a "
                    "longer timeout, or ask for less at once"
                ) from None
            raise ValueError(
                f"no engine answers at {self.url}: {_short(str(reason) or type(reason).__name__)}"
                "; start it, or give its address"
            ) from None
        except ValueError:
            raise ValueError(
                f"what answers at {self.url} does not speak JSON; is it the engine?"
            ) from None

    # -- pixels ------------------------------------------------------------------------------

    @torch.no_grad()
    def _pictures(self, codes: torch.Tensor) -> list[Image.Image]:
        """Codes (B, N) -> B PIL pictures."""
        pixels = self.vqrae.detokenize(codes.to(self.vqrae.device))
        return self.processor.image_processor.to_images(pixels)


def _until(written: list[int], end: int) -> list[int]:
    return written[: written.index(end)] if end in written else written


def _message(data: bytes) -> Any:
    """What an error's body says: both engines put it in error.message, proxies where they like."""
    text = data.decode(errors="replace")
    try:
        said = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text
    return said.get("message", said) if isinstance(said, dict) else said


def _short(said: Any, limit: int = 200) -> str:
    text = " ".join((said if isinstance(said, str) else json.dumps(said)).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
