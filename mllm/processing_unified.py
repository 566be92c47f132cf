"""Turns, pictures and requests to draw, as ids of the one vocabulary.

Text that a user gives is never trusted: it is tokenized with special tokens off, so that typing
`<|image_start|>` gives the letters. The marks between turns are ours and tokenized with them on.

Shapes: N image tokens, M pictures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from vqrae.mllm.configuration_unified import UnifiedConfig
from vqrae.mllm.vocabulary import read_layout

IMAGE_PLACE = "<image>"  # where a picture stands in a message, as in LLaVA's data


def turn_format_for(tokenizer) -> dict[str, str]:
    """ChatML for tokenizers that know its marks, the plain format of Vicuna for others."""
    if "<|im_start|>" in tokenizer.get_vocab():
        return {
            "conversation_prefix": "",
            "user_prefix": "<|im_start|>user\n",
            "user_suffix": "<|im_end|>\n",
            "assistant_prefix": "<|im_start|>assistant\n",
            "assistant_suffix": "<|im_end|>\n",
        }
    if not tokenizer.eos_token:
        raise ValueError("the text tokenizer has no eos_token to end a turn with; set one")
    return {
        "conversation_prefix": tokenizer.bos_token or "",
        "user_prefix": "USER: ",
        "user_suffix": " ",
        "assistant_prefix": "ASSISTANT: ",
        "assistant_suffix": tokenizer.eos_token,
    }


class UnifiedProcessor(ProcessorMixin):
    """Text tokenizer and image processor, with the turn format that the model was trained on.

    Args:
        image_processor: VQRAEImageProcessor.
        tokenizer: the extended text tokenizer; UnifiedModel.from_parts makes it.
        num_image_tokens: N.
        max_length: longest sequence, in tokens, that is let pass.
        conversation_prefix, user_prefix, user_suffix, assistant_prefix, assistant_suffix: what
            stands around turns. Left out, they are chosen for the tokenizer. `assistant_suffix`
            begins with the token that ends a turn.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int = 256,
        max_length: int = 1536,
        conversation_prefix: str | None = None,
        user_prefix: str | None = None,
        user_suffix: str | None = None,
        assistant_prefix: str | None = None,
        assistant_suffix: str | None = None,
        chat_template=None,
    ):
        given = {
            "conversation_prefix": conversation_prefix,
            "user_prefix": user_prefix,
            "user_suffix": user_suffix,
            "assistant_prefix": assistant_prefix,
            "assistant_suffix": assistant_suffix,
        }
        for name, default in turn_format_for(tokenizer).items():
            setattr(self, name, default if given[name] is None else given[name])
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self._read_vocabulary()

    def _read_vocabulary(self) -> None:
        layout = read_layout(self.tokenizer)
        self.image_start_id = layout.image_start_id
        self.image_end_id = layout.image_end_id
        self.image_pad_id = layout.image_pad_id
        self.code_offset = layout.code_offset
        self.codebook_size = layout.codebook_size
        self._trusted: dict[str, list[int]] = {}
        self.end_of_turn_id = self.trusted(self.assistant_suffix)[0]
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.end_of_turn_id if pad is None else pad

    # -- pieces ------------------------------------------------------------------------------

    def trusted(self, text: str) -> list[int]:
        """Ids of our own `text`, in which special tokens count."""
        if text not in self._trusted:
            self._trusted[text] = self._ids(text, split_special_tokens=False)
        return self._trusted[text]

    def untrusted(self, text: str) -> list[int]:
        """Ids of anybody's `text`: whatever it spells, text tokens only."""
        ids = self._ids(text, split_special_tokens=True)
        assert max(ids, default=0) < self.image_start_id, "a mark got through the text tokenizer"
        return ids

    def _ids(self, text: str, *, split_special_tokens: bool) -> list[int]:
        if not text:
            return []
        return self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            verbose=False,
        )["input_ids"]

    def picture_to_see(self) -> list[int]:
        """Ids of a picture that is looked at: N pads between the marks."""
        pads = [self.image_pad_id] * self.num_image_tokens
        return [self.image_start_id, *pads, self.image_end_id]

    def content(self, text: str, images: int) -> list[int]:
        """Ids of a message in which `<image>` stands `images` times.

        Raises:
            ValueError: if it stands there another number of times.
        """
        pieces = text.split(IMAGE_PLACE)
        if len(pieces) - 1 != images:
            raise ValueError(
                f"the text has {len(pieces) - 1} times {IMAGE_PLACE!r}, but {images} pictures were "
                f"given: {_short(text)}"
            )
        ids = self.untrusted(pieces[0])
        for piece in pieces[1:]:
            ids = ids + self.picture_to_see() + self.untrusted(piece)
        return ids

    def user_turn(self, text: str, images: int = 0) -> list[int]:
        """A whole turn of the user."""
        inner = self.content(text, images)
        return [*self.trusted(self.user_prefix), *inner, *self.trusted(self.user_suffix)]

    # -- whole prompts -----------------------------------------------------------------------

    def encode_chat(
        self,
        messages: Sequence[dict],
        images: Sequence[Image.Image] | int | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Ids of a conversation, ready for the answer.

        Args:
            messages: [{"role": "user" or "assistant", "content": text}, ...]; `<image>` in a
                content is the place of the next picture.
            images: the pictures, or how many there are; their pixels come from `pixels`.

        Raises:
            ValueError: no message, an empty question, an unknown role, another number of pictures
                than places, or a conversation longer than `max_length`.
        """
        left = images if isinstance(images, int) else len(images or ())
        places = sum(message["content"].count(IMAGE_PLACE) for message in messages)
        if places != left:
            raise ValueError(
                f"the conversation has {places} places {IMAGE_PLACE!r}, but {left} pictures were "
                "given"
            )
        if not messages or not messages[-1]["content"].replace(IMAGE_PLACE, "").strip():
            raise ValueError("the question is empty; write what you want to know")
        ids = list(self.trusted(self.conversation_prefix))
        for message in messages:
            text = message["content"]
            if message["role"] == "user":
                ids += self.user_turn(text, text.count(IMAGE_PLACE))
            elif message["role"] == "assistant":
                ids += self.trusted(self.assistant_prefix)
                ids += self.content(text, text.count(IMAGE_PLACE))
                ids += self.trusted(self.assistant_suffix)
            else:
                raise ValueError(f"a message has role {message['role']!r}; use user or assistant")
        if add_generation_prompt:
            ids += self.trusted(self.assistant_prefix)
        self.check_length(len(ids))
        return ids

    def encode_draw(self, prompt: str = "", *, unconditional: bool = False) -> list[int]:
        """Ids that end in `<|image_start|>`: the codes of the picture come next.

        Args:
            unconditional: leave the turn empty, for guidance; `prompt` is not used then.

        Raises:
            ValueError: for an empty prompt, or one longer than `max_length` allows.
        """
        if unconditional:
            prompt = ""
        elif not prompt.strip():
            raise ValueError("the prompt is empty; write what to draw")
        ids = [*self.trusted(self.conversation_prefix), *self.user_turn(prompt)]
        ids += [*self.trusted(self.assistant_prefix), self.image_start_id]
        self.check_length(len(ids) + self.num_image_tokens + 1, "the prompt with its picture")
        return ids

    def check_length(self, length: int, what: str = "the conversation") -> None:
        """Raise ValueError if `length` tokens are too many."""
        if length > self.max_length:
            raise ValueError(
                f"{what} has {length} tokens, more than the limit of {self.max_length}; shorten it"
            )

    def pixels(self, images: Sequence[Image.Image] | Image.Image) -> Tensor:
        """PIL pictures -> (M, 3, H, W) in [0, 1]."""
        return self.image_processor(images)["pixel_values"]

    def text(self, ids: Sequence[int]) -> str:
        """Text of generated `ids`, without marks and codes."""
        plain = [int(index) for index in ids if index < self.image_start_id]
        return self.tokenizer.decode(plain, skip_special_tokens=True).strip()

    def __call__(self, text: str, images=None, **_) -> BatchFeature:
        """One question about `images` as tensors for UnifiedModel: input_ids and pixel_values."""
        pictures = [] if images is None else images
        pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        if IMAGE_PLACE not in text:
            text = f"{IMAGE_PLACE}\n" * len(pictures) + text
        data = {"input_ids": [self.encode_chat([{"role": "user", "content": text}], pictures)]}
        if pictures:
            data["pixel_values"] = self.pixels(pictures)
        return BatchFeature(data, tensor_type="pt")


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


AutoProcessor.register(UnifiedConfig, UnifiedProcessor, exist_ok=True)
