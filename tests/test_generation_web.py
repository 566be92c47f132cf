"""The page: what its buttons do, in a browser too, and that it needs nothing from elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import time
import urllib.request

import pytest
import torch
from PIL import Image
from test_mllm_parts import noise_image, tiny_model
from vqrae.assets import nano_folder
from vqrae.generation import answer, draw, load_unified
from vqrae.generation.attention import answer_and_look, overlay

gradio_client = pytest.importorskip("gradio_client")
web = pytest.importorskip("vqrae.generation.web")


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


@pytest.fixture(scope="module")
def address(parts):
    with launched(*parts) as url:
        yield url


@contextlib.contextmanager
def launched(model, processor):
    page = web.build_page(model, processor)
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
    # The last part is the whole, told once: the file of equal pictures is one, and it is fetched.
    told = list(web._Page(model, processor).draw("a circle", 1, 1.0, 1.0, 0.0, 7))
    assert len(told) == model.config.num_image_tokens
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


# -- in a browser --------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@contextlib.contextmanager
def browsing(url):
    """The page in headless Chromium, which finds no host but this one; then what went wrong."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        context = browser.new_context(viewport={"width": 1280, "height": 760})
        asked, errors = [], []
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(url)
        yield page
        assert [a for a in asked if not a.startswith((url, "data:", "blob:"))] == []
        assert asked and errors == []
        browser.close()


def shown(page, where, number):
    """The pictures in an element, once so many are loaded."""
    page.wait_for_function(
        """([where, number]) => {
            const found = [...document.querySelectorAll(where + " img")];
            return found.length == number && found.every(i => i.complete && i.naturalWidth > 0);
        }""",
        arg=[where, number],
    )
    sources = page.eval_on_selector_all(f"{where} img", "all => all.map(each => each.src)")
    return [Image.open(io.BytesIO(page.request.get(s).body())).convert("RGB") for s in sources]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_without_a_network(tmp_path):
    model, processor = load_unified(nano_folder(), device="cpu")
    prompt = "two green stars"
    [expected] = draw(model, processor, prompt, n=2, seed=0)
    picture = expected[0].resize((384, 384), Image.Resampling.NEAREST)
    picture.save(tmp_path / "picture.png")
    with launched(model, processor) as url, browsing(url) as page:
        # Chat, with a picture.
        page.locator("input[type=file]:not([webkitdirectory])").first.set_input_files(
            tmp_path / "picture.png"
        )
        page.locator(".thumbnail-item img").first.wait_for()
        page.locator("textarea[data-testid=textbox]:visible").fill("how many stars are there?")
        page.keyboard.press("Enter")
        said = answer(model, processor, picture, "how many stars are there?")
        page.locator("[data-testid=bot]", has_text=said).wait_for()

        page.get_by_role("tab", name="Draw").click()
        page.get_by_label("Prompt").fill(prompt)
        page.get_by_label("number input for Pictures").fill("2")
        page.get_by_role("button", name="Draw", exact=True).click()
        wanted, found, until = [i.tobytes() for i in expected], [], time.monotonic() + 60
        while found != wanted and time.monotonic() < until:  # they come in parts
            found = [i.resize((64, 64), 0).tobytes() for i in shown(page, "#drawn", 2)]
        page.screenshot(path=tmp_path / "draw.png")
        assert found == wanted

        page.get_by_role("tab", name="Look inside").click()
        page.locator("#picture input[type=file]").set_input_files(tmp_path / "picture.png")
        shown(page, "#picture", 1)
        page.get_by_role("button", name="Look", exact=True).click()
        [redrawn] = shown(page, "#from-its-codes", 1)
        [codes] = shown(page, "#its-codes", 1)
        [looked] = shown(page, "#where-it-looked", 1)
        assert page.get_by_label("Answer").input_value() == answer(
            model, processor, picture, "how many shapes are there?"
        )
        pixels = processor.pixels([picture])
        with torch.no_grad():
            ids = model.vqrae.tokenize(pixels)
            [own] = processor.image_processor.to_images(model.vqrae.detokenize(ids))
        assert redrawn.resize((64, 64), 0).tobytes() == own.tobytes()
        assert codes.tobytes() == web.draw_codes(ids[0]).tobytes()
        _, weights = answer_and_look(model, processor, picture, "how many shapes are there?")
        [seen] = processor.image_processor.to_images(pixels)
        assert looked.tobytes() == overlay(seen, weights, 384).tobytes()
        page.screenshot(path=tmp_path / "look.png")
        # Side by side, none over another, and nothing runs out of the window.
        names = ("picture", "from-its-codes", "its-codes", "where-it-looked")
        boxes = [page.locator(f"#{name}").bounding_box() for name in names]
        for one, two in zip(boxes, boxes[1:], strict=False):
            assert one["x"] + one["width"] <= two["x"] and one["y"] == two["y"]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
