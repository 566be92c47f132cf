"""A page to try the model on: chat, draw, and look into the tokenizer. Works without a network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import torch
from PIL import Image, ImageDraw
from vqrae.generation._prompts import evaluating
from vqrae.generation.attention import answer_and_look, overlay
from vqrae.generation.chat import ChatSession
from vqrae.generation.draw import draw
from vqrae.mllm import UnifiedModel, UnifiedProcessor

# Pictures are shown at this width.
_SHOWN = 384
_PARTS = 8
# The fonts of other themes come from the network.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def build_page(model: UnifiedModel, processor: UnifiedProcessor) -> gr.Blocks:
    """The page; launch it with theme=THEME. One thing is computed at a time."""
    page = _Page(model, processor)
    with gr.Blocks(title="vqrae", analytics_enabled=False) as blocks:
        gr.Markdown("# vqrae\nOne model that sees and draws.")
        with gr.Tab("Chat"):
            gr.ChatInterface(
                page.chat,
                multimodal=True,
                chatbot=gr.Chatbot(
                    show_label=False,
                    height=520,
                    buttons=["copy"],
                    placeholder="Attach a picture and ask about it, or say what to draw: it looks "
                    "at its own drawings, too.",
                ),
                textbox=gr.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    placeholder="Ask about a picture, or ask for one",
                ),
                concurrency_limit=1,
                api_name="chat",
            )
        with gr.Tab("Draw"):
            _draw_tab(page)
        with gr.Tab("Look inside"):
            _look_tab(page)
        blocks.unload(page.forget)
    return blocks


def _draw_tab(page: _Page) -> None:
    config = page.model.config
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt", value="a red circle above a blue star")
            button = gr.Button("Draw", variant="primary")
            number = gr.Slider(1, 8, 4, step=1, label="Pictures")
            guidance = gr.Slider(0, 10, config.guidance_scale, step=0.25, label="Guidance scale")
            temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature")
            min_p = gr.Slider(0, 0.5, config.min_p, step=0.01, label="min_p")
            seed = gr.Number(0, precision=0, label="Seed")
        # Labels of galleries and pictures lie on the pictures, so none has one.
        gallery = gr.Gallery(
            show_label=False,
            columns=2,
            height=600,
            format="png",
            buttons=["download", "fullscreen"],  # not the one that shares: it uploads
            elem_id="drawn",
        )
    inputs = [prompt, number, guidance, temperature, min_p, seed]
    for start in (button.click, prompt.submit):
        start(page.draw, inputs, gallery, concurrency_limit=1, concurrency_id="model")


def _look_tab(page: _Page) -> None:
    with gr.Row():
        picture = _titled("Picture", type="pil")
        redrawn = _titled("From its codes")
        codes = _titled("Its codes")
        looked = _titled("Where it looked")
    with gr.Row():
        question = gr.Textbox(label="Question", value="how many shapes are there?", min_width=300)
        answer = gr.Textbox(label="Answer", interactive=False, min_width=300)
    button = gr.Button("Look", variant="primary")
    outputs = [answer, redrawn, codes, looked]
    for start in (button.click, question.submit):
        start(page.look, [picture, question], outputs, concurrency_limit=1, concurrency_id="model")


def _titled(title: str, **options) -> gr.Image:
    with gr.Column(min_width=220):
        gr.Markdown(f"**{title}**")
        return gr.Image(
            label=title,
            show_label=False,
            height=300,
            format="png",
            buttons=[],  # they lie on the picture, too
            elem_id=title.lower().replace(" ", "-"),
            **options,
        )


class _Page:
    def __init__(self, model: UnifiedModel, processor: UnifiedProcessor):
        self.model, self.processor = model, processor
        self._sessions: dict[str, ChatSession] = {}
        self._lock = threading.Lock()

    # -- chat

    def chat(self, message: dict, history: list, request: gr.Request) -> Iterator[Any]:
        """One turn; text grows as it is written, a drawing follows it."""
        session = self._sessions.get(request.session_hash)
        if session is None or not history:
            session = ChatSession(self.model, self.processor)
            self._sessions[request.session_hash] = session
        files = [Image.open(file).convert("RGB") for file in message.get("files", ())]
        said = message.get("text", "")

        def turn(tell: Callable[[str], None]):
            session.on_text = tell
            return session.say(said, files)

        text = ""
        for kind, value in self._follow(turn):
            if kind == "part":
                text += value
                yield text
            else:
                drawn = [gr.Image(_large(image), format="png") for image in value.images]
                yield [*([value.text] if value.text or not drawn else []), *drawn]

    def forget(self, request: gr.Request) -> None:
        """The browser has gone."""
        self._sessions.pop(request.session_hash, None)

    # -- draw

    def draw(
        self,
        prompt: str,
        number: int,
        guidance: float,
        temperature: float,
        min_p: float,
        seed: int,
    ) -> Iterator[list[Image.Image]]:
        """Pictures as far as they are drawn, then whole."""
        places = self.model.config.num_image_tokens

        def work(tell: Callable[[list], None]):
            [pictures] = draw(
                self.model,
                self.processor,
                prompt,
                n=int(number),
                seed=int(seed or 0),
                guidance_scale=guidance,
                temperature=temperature,
                min_p=min_p,
                # The last part is the whole: told twice, its file is written while it is fetched.
                watch=lambda images, done: done < places and tell(images),
                watch_every=max(1, places // _PARTS),
            )
            return pictures

        for _, pictures in self._follow(work):
            yield [_large(picture) for picture in pictures]

    # -- look inside

    def look(
        self, picture: Image.Image | None, question: str
    ) -> tuple[str, Image.Image, Image.Image, Image.Image]:
        """The answer, the picture from its codes, the codes, and where the model looked."""
        if picture is None:
            raise gr.Error("Choose a picture first.")
        with self._lock, evaluating(self.model):
            pixels = self.processor.pixels([picture]).to(self.model.device)
            codes = self.model.vqrae.tokenize(pixels)
            [redrawn] = self.processor.image_processor.to_images(self.model.vqrae.detokenize(codes))
            [seen] = self.processor.image_processor.to_images(pixels)
            try:
                answer, looked = answer_and_look(self.model, self.processor, picture, question)
            except ValueError as error:
                raise gr.Error(str(error)) from None
        return answer, _large(redrawn), draw_codes(codes[0]), overlay(seen, looked, _SHOWN)

    # -- both

    def _follow(self, work: Callable) -> Iterator[tuple[str, Any]]:
        """("part", x) for each x that `work` tells, then ("whole", what it returns)."""
        news: queue.Queue = queue.Queue()

        def run() -> None:
            try:
                with self._lock:
                    news.put(("whole", work(lambda part: news.put(("part", part)))))
            except Exception as error:
                news.put(("error", error))

        threading.Thread(target=run, daemon=True).start()
        while True:
            kind, value = news.get()
            if kind == "error":
                raise gr.Error(str(value)) from value
            yield kind, value
            if kind == "whole":
                return


def _large(image: Image.Image) -> Image.Image:
    factor = max(1, _SHOWN // image.width)
    return image.resize([side * factor for side in image.size], Image.Resampling.NEAREST)


def draw_codes(codes: torch.Tensor, size: int = _SHOWN) -> Image.Image:
    """Codes (N,) as a square of numbers, each code in a colour of its own."""
    side = round(len(codes) ** 0.5)
    cell = size // side
    image = Image.new("RGB", (cell * side, cell * side), "white")
    pen = ImageDraw.Draw(image)
    for place, code in enumerate(codes.tolist()):
        left, top = place % side * cell, place // side * cell
        # The golden angle keeps the colours of neighbouring numbers apart.
        colour = f"hsl({code * 137.508 % 360:.0f}, 60%, 75%)"
        pen.rectangle((left, top, left + cell - 1, top + cell - 1), fill=colour)
        if cell >= 24:
            centre = (left + cell / 2, top + cell / 2)
            pen.text(centre, str(code), fill="black", anchor="mm", font_size=max(8, cell // 4))
    return image
