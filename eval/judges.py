"""Who answers questions about pictures: a local model, or an endpoint that speaks OpenAI's API."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from vqrae.eval.protocol import model_dtype, weight_hashes

YES_OR_NO = "{question} Answer yes or no."
"""How a judge that talks is asked; one trained on short answers gets the question alone."""
MAX_TOKENS = 16
_OFFICIAL = (
    "no: the official judge is mPLUG-large (damo/mplug_visual-question-answering_coco_large_en)"
)


class Judge(Protocol):
    """What answers questions about a picture."""

    name: str
    card: Mapping[str, Any]

    def answers(self, picture: Image.Image, questions: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(place of the question, answer), as they come."""


def said_yes(answer: str) -> bool | None:
    """Whether the first word is yes or no; None where it is neither."""
    found = re.match(r"[^a-z]*(yes|no)\b", answer.lower())
    return None if found is None else found[1] == "yes"


def judge_type(folder: str | Path) -> str:
    """The model type in a folder. ValueError where there is none."""
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise ValueError(f"no judge in '{folder}' (it has no config.json); give a model's folder")
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"'{config}' names no model_type; copy the judge again") from None


class LocalJudge:
    """A model from a folder: a unified model of ours, one of transformers for visual questions
    (BLIP, ViLT), or any that transformers loads for images and text to text.

    Args:
        folder: of the model and its processor.
        template: what is asked, with {question} in it; None: the question, with a request for yes
            or no where the model chats.

    Raises:
        ValueError: where the folder holds no such model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        template: str | None = None,
    ) -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        self.kind = judge_type(folder)
        self.name = self.folder.resolve().name
        self._load()
        self.template = check_template(template or (YES_OR_NO if self._talks else "{question}"))

    def _load(self) -> None:
        import transformers as hf
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TALKING,
        )
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES as ANSWERING,
        )

        self._talks = False
        if self.kind == "vqrae_unified":
            from vqrae.generation import load_unified

            self.model, self.processor = load_unified(self.folder, device=self.device)
            return
        if self.kind in ANSWERING:
            loader = hf.AutoModelForVisualQuestionAnswering
        elif self.kind in TALKING:
            loader, self._talks = hf.AutoModelForImageTextToText, True
        else:
            raise ValueError(
                f"'{self.folder}' holds a '{self.kind}' model, which answers no questions about "
                "pictures; give a model for visual questions"
            )
        try:
            self.model = loader.from_pretrained(self.folder, dtype="auto")
            self.processor = hf.AutoProcessor.from_pretrained(self.folder)
        except OSError as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"cannot read the judge in '{self.folder}': {first}") from None
        self.model = self.model.to(self.device).eval()

    @property
    def card(self) -> dict[str, Any]:
        """What must be equal for two results to compare."""
        return {
            "kind": self.kind,
            "name": self.name,
            "weights sha256": weight_hashes(self.folder),
            "dtype": model_dtype(self.model),
            "template": self.template,
            "official": _OFFICIAL,
        }

    @torch.no_grad()
    def answers(self, picture: Image.Image, questions: Sequence[str]) -> Iterator[tuple[int, str]]:
        asked = [self.template.format(question=question) for question in questions]
        if self.kind == "vqrae_unified":
            from vqrae.generation import answer

            pictures = [picture] * len(asked)
            yield from enumerate(
                answer(self.model, self.processor, pictures, asked, max_new_tokens=MAX_TOKENS)
            )
            return
        # One at a time: no answer can depend on the padding that others bring.
        for place, question in enumerate(asked):
            yield place, self._one(picture, question)

    def _one(self, picture: Image.Image, question: str) -> str:
        if self._talks:
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self.processor(images=picture, text=question, return_tensors="pt")
        inputs = inputs.to(self.device, self.model.dtype)
        if not self.model.can_generate():
            best = int(self.model(**inputs).logits[0].argmax())
            return str(self.model.config.id2label[best])
        ids = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)[0]
        # Some models give the question back before the answer.
        asked = inputs["input_ids"][0]
        if torch.equal(ids[: len(asked)], asked):
            ids = ids[len(asked) :]
        return self.processor.decode(ids, skip_special_tokens=True).strip()


class EndpointJudge:
    """A model behind an endpoint that speaks OpenAI's chat completions, pictures as data URLs.

    Asks again after a lost connection, 429 and 5xx, later each time and as the server wishes. The
    key, where one is needed, is read from OPENAI_API_KEY.

    Args:
        url: as "http://localhost:8000/v1".
        model: its name there.
        parallel: questions at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        template: str | None = None,
        parallel: int = 8,
        retries: int = 6,
        timeout: float = 120.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the judge's address is '{url}'; begin it with http:// or https://")
        if parallel < 1:
            raise ValueError(f"questions at once must be at least 1, not {parallel}")
        try:
            from openai import OpenAI
        except ImportError:
            raise ValueError("a judge behind an address needs `pip install openai`") from None
        self.url, self.name, self.parallel = url, model, parallel
        self.template = check_template(template or YES_OR_NO)
        self._client = OpenAI(
            base_url=url.rstrip("/").removesuffix("/chat/completions"),
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=retries,
            timeout=timeout,
        )

    @property
    def card(self) -> dict[str, Any]:
        """What must be equal for two results to compare; the weights behind a name are not seen."""
        return {
            "kind": "endpoint",
            "name": self.name,
            "temperature": 0,
            "max tokens": MAX_TOKENS,
            "template": self.template,
            "official": _OFFICIAL,
        }

    def answers(self, picture: Image.Image, questions: Sequence[str]) -> Iterator[tuple[int, str]]:
        data = io.BytesIO()
        picture.save(data, format="PNG")
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        with ThreadPoolExecutor(self.parallel) as pool:
            places = {pool.submit(self._one, url, q): place for place, q in enumerate(questions)}
            try:
                for future in as_completed(places):
                    yield places[future], future.result()
            finally:
                for future in places:
                    future.cancel()

    def _one(self, picture: str, question: str) -> str:
        import openai

        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": self.template.format(question=question)},
        ]
        try:
            reply = self._client.chat.completions.create(
                model=self.name,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=MAX_TOKENS,
            )
            text = reply.choices[0].message.content
        except openai.APIConnectionError as error:
            raise ValueError(
                f"the judge at {self.url} cannot be reached ({error}); start it, or mend the "
                "address; the answers so far are kept"
            ) from None
        except openai.APIStatusError as error:
            raise ValueError(
                f"the judge at {self.url} says {error.status_code}: {_first_line(error.message)}; "
                "the answers so far are kept"
            ) from None
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError):
            raise ValueError(
                f"what answers at {self.url} is no chat completion; give the address of one that "
                "speaks OpenAI's API, as http://localhost:8000/v1"
            ) from None
        return (text or "").strip()


def check_template(template: str) -> str:
    """The template; ValueError where the question has no place in it."""
    try:
        asked = template.format(question="\0")
    except (KeyError, IndexError, ValueError):
        asked = ""
    if "\0" not in asked:
        raise ValueError(f"the judge's template '{template}' has no {{question}}; add it")
    return template


def _first_line(text: str) -> str:
    return (str(text).splitlines() or [""])[0][:200]
