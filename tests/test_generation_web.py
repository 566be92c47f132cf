"""The page: what its buttons do, and that it needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
import torch
from PIL import Image
from test_mllm_parts import noise_image, tiny_model
from vqrae.generation import answer, draw
from vqrae.generation.attention import answer_and_look, overlay

gradio_client = pytest.importorskip("gradio_client")
web = pytest.importorskip("vqrae.generation.web")


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


@pytest.fixture(scope="module")
def address(parts):
    page = web.build_page(*parts)
    _, url, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", theme=web.THEME
    )
    yield url
    page.close()


def test_where_it_looked(parts):
    """Without queries all that came before is looked at alike; with them it is not."""
    model, processor = parts
    image = noise_image(1)
    text, looked = answer_and_look(model, processor, image, "what is it?")
    assert text == answer(model, processor, image, "what is it?")
    assert looked.shape == (2, 2) and torch.isclose(looked.sum(), torch.tensor(1.0))
    assert (looked - 0.25).abs().max() > 1e-3
    assert model.language_model.config._attn_implementation != "eager"
    flat = tiny_model()[0]
    with torch.no_grad():
        for layer in flat.language_model.get_decoder().layers:
            layer.self_attn.q_proj.weight.zero_()
    _, even = answer_and_look(flat, processor, image, "what is it?")
    torch.testing.assert_close(even, torch.full((2, 2), 0.25))
    shown = overlay(Image.new("RGB", (32, 32), "white"), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 64)
    assert shown.getpixel((0, 0)) == (255, 255, 255) and shown.getpixel((63, 63)) < (60, 60, 60)


def test_codes_are_drawn():
    image = web.draw_codes(torch.tensor([3, 500, 3, 16_000]), 100)
    corner = [image.getpixel(at) for at in ((1, 1), (51, 1), (1, 51), (51, 51))]
    assert corner[0] == corner[2] and len(set(corner)) == 3 and image.size == (100, 100)


def test_the_page_draws_looks_and_talks(parts, address, tmp_path):
    model, processor = parts
    client = gradio_client.Client(address, verbose=False)
    gallery = client.predict("a circle", 2, 2.0, 1.0, 0.0, 7, api_name="/draw")
    [expected] = draw(model, processor, "a circle", n=2, seed=7, guidance_scale=2.0, min_p=0.0)
    shown = [Image.open(each["image"]).convert("RGB") for each in gallery]
    assert [i.size for i in shown] == [(384, 384)] * 2
    assert [i.resize((32, 32), 0).tobytes() for i in shown] == [i.tobytes() for i in expected]
    picture = tmp_path / "picture.png"
    noise_image(1).save(picture)
    file = gradio_client.handle_file(str(picture))
    text, *pictures = client.predict(file, "what is it?", api_name="/look")
    assert text == answer(model, processor, noise_image(1), "what is it?")
    assert len(pictures) == 3 and all(Image.open(path).size[0] == 384 for path in pictures)
    said = client.predict({"text": "hello", "files": [file]}, api_name="/chat")
    assert said
    with pytest.raises(Exception, match="prompt is empty"):
        client.predict(" ", 1, 2.0, 1.0, 0.0, 7, api_name="/draw")


def test_nothing_comes_from_elsewhere(address):
    page = urllib.request.urlopen(address).read().decode()
    loaded = re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["'](https?://[^"']+)""", page)
    assert [url for url in loaded if not url.startswith(address)] == []
    config = json.load(urllib.request.urlopen(f"{address}config"))
    assert config["analytics_enabled"] is False
    assert not [url for url in config.get("stylesheets") or [] if url.startswith("http")]
