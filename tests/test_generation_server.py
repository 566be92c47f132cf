"""The server through OpenAI's own client, and what must not get through it."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import http.server
import io
import json
import random
import re
import socket
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
import uvicorn
from PIL import Image
from test_mllm_parts import noise_image, tiny_model
from vqrae.generation import _pictures_in, answer, draw, generate_text
from vqrae.generation._pictures_in import PictureLimits, fetch, public_address, read_picture
from vqrae.generation._ragged import RaggedCache
from vqrae.generation._server_answers import Answer
from vqrae.generation._server_jobs import WaitedJob
from vqrae.generation._slots import Slots
from vqrae.generation._streamed_text import StreamedText
from vqrae.generation._wire import png_url
from vqrae.generation.engine import Request
from vqrae.generation.server import ServerOptions, build_app
from vqrae.generation.service import Job
from vqrae.scripts.main import main


def serving(model, processor, **options):
    """Address of a server in a thread of this process."""
    return serving_app(build_app(model, processor, ServerOptions(**options)))


@contextlib.contextmanager
def serving_app(app):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


@pytest.fixture(scope="module")
def address(parts):
    with serving(*parts, api_key="secret") as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)


def asked(text, *images):
    pictures = [{"type": "image_url", "image_url": {"url": png_url(i)}} for i in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def test_models(client):
    assert [m.id for m in client.models.list()] == ["vqrae"]
    assert client.models.retrieve("vqrae").owned_by == "vqrae"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


def test_chat(client, parts):
    model, processor = parts
    image = noise_image(3)
    expected = answer(model, processor, image, "what is it?", max_new_tokens=9)
    options = {"model": "vqrae", "temperature": 0, "max_tokens": 9}
    options["messages"] = [asked("what is it?", image)]
    reply = client.chat.completions.create(**options)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert 0 < reply.usage.completion_tokens <= 9
    assert reply.usage.prompt_tokens > processor.num_image_tokens
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage == reply.usage
    assert chunks[-2].choices[0].finish_reason == reply.choices[0].finish_reason
    # Several turns, a system message, sampled choices with seeds of their own.
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": "be short\nand now?"},
    ]
    prompt = processor.encode_chat(messages)
    sampled = {"temperature": 1.0, "max_new_tokens": 6, "allow_draw": True}
    expected = [generate_text(model, processor, [prompt], seeds=[s], **sampled)[0] for s in (7, 8)]
    messages[2] = {"role": "user", "content": "and now?"}
    messages.insert(2, {"role": "system", "content": "be short"})
    reply = client.chat.completions.create(
        model="vqrae", messages=messages, max_completion_tokens=6, n=2, seed=7
    )
    assert [c.message.content for c in reply.choices] == expected


def decoded(data: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").tobytes()


def test_drawing(client, parts):
    model, processor = parts
    [expected] = draw(model, processor, "a red circle", n=2, seed=5, guidance_scale=2.0)
    reply = client.images.generate(
        prompt="a red circle", n=2, size="32x32", extra_body={"seed": 5, "guidance_scale": 2.0}
    )
    assert [decoded(i.b64_json) for i in reply.data] == [i.tobytes() for i in expected]


def test_a_drawing_in_a_conversation(monkeypatch):
    model, processor = tiny_model()
    plain, begun = model.text_logits, []

    def begin_to_draw(hidden):
        logits = plain(hidden)
        if not begun:
            logits[:, processor.image_start_id] = 1e4
        begun.append(1)
        return logits

    monkeypatch.setattr(model, "text_logits", begin_to_draw)
    with serving(model, processor) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        messages = [{"role": "user", "content": "draw a circle"}]
        drawn = client.chat.completions.create(model="vqrae", messages=messages, seed=1)
        message = drawn.choices[0].message
        [image] = message.images
        assert message.content == "" and drawn.choices[0].finish_reason == "stop"
        first = decoded(image["image_url"]["url"].split(",")[1])
        begun.clear()
        chunks = client.chat.completions.create(
            model="vqrae", messages=messages, seed=1, stream=True
        )
        images = [i for c in chunks for i in getattr(c.choices[0].delta, "images", None) or []]
        assert [decoded(i["image_url"]["url"].split(",")[1]) for i in images] == [first]
        # Sent back, it is looked at.
        messages += [message.model_dump(), {"role": "user", "content": "what is it?"}]
        reply = client.chat.completions.create(
            model="vqrae", messages=messages, temperature=0, max_tokens=4
        )
        assert reply.usage.prompt_tokens > drawn.usage.prompt_tokens + processor.num_image_tokens


BAD_CHATS = [
    ({"messages": []}, "messages: "),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role: "),
    ({"messages": [{"role": "user", "content": ""}]}, r"messages\[0\] is empty"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "last message must be the user's"),
    ({"messages": [{"role": "user", "content": "<image> a"}]}, "send pictures as"),
    ({"temperature": 9}, "temperature: "),
    ({"n": 99}, "n is 99, more than the limit of 8"),
    ({"messages": [{"role": "user", "content": "a " * 3000}]}, r"has \d+ tokens, more than"),
]
BAD_URLS = [
    ("data:image/png;base64,####", "base64 is damaged"),
    ("data:image/png;base64," + base64.b64encode(b"GIF89a?").decode(), "cannot read image"),
    ("data:text/html,hello", "begins with data:image/TYPE;base64,"),
    ("https://example.org/a.png", "remote pictures are switched off"),
    ("file:///etc/passwd", "cannot read a picture from 'file:///etc/passwd'"),
]


def test_mistakes_are_told(client, parts):
    good = {"model": "vqrae", "messages": [{"role": "user", "content": "a"}]}
    for change, match in BAD_CHATS:
        with pytest.raises(openai.BadRequestError, match=match):
            client.chat.completions.create(**(good | change))
    for url, match in BAD_URLS:
        part = {"type": "image_url", "image_url": {"url": url}}
        with pytest.raises(openai.BadRequestError, match=match):
            client.chat.completions.create(
                model="vqrae", messages=[{"role": "user", "content": [part]}]
            )
    for change, match in (
        ({"size": "1024x1024"}, "this model draws 32x32"),
        ({"prompt": " "}, "prompt is empty"),
        ({"response_format": "url"}, "take b64_json"),
        ({"n": 0}, "n: "),
    ):
        with pytest.raises(openai.BadRequestError, match=match):
            client.images.generate(**({"prompt": "a"} | change))
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'"):
        client.chat.completions.create(**(good | {"model": "gpt-4o"}))
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.with_options(api_key="other").models.list()


def post(address, data, headers=None):
    request = urllib.request.Request(f"{address}/v1/chat/completions", data, headers or {})
    request.add_header("Authorization", "Bearer secret")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_damaged_and_oversized_requests(parts, address):
    status, body = post(address, b'{"model": "vqrae", ', {"Content-Type": "application/json"})
    assert status == 400 and body["error"]["type"] == "invalid_request_error"
    with serving(*parts, max_body=1000, pictures=PictureLimits(max_pixels=100)) as small:
        status, body = post(small, b"x" * 2000)
        assert status == 413 and "larger than 1000 bytes" in body["error"]["message"]
        # The same without saying how long it is.
        with socket.create_connection(("127.0.0.1", int(small.rsplit(":", 1)[1]))) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: application/json\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n"
            )
            assert b" 413 " in raw.recv(200)
        client = openai.OpenAI(base_url=f"{small}/v1", api_key="any", max_retries=0)
        flat = Image.new("RGB", (32, 32))
        with pytest.raises(openai.BadRequestError, match="more than 100 pixels"):
            client.chat.completions.create(model="vqrae", messages=[asked("a", flat)])


def slow(model, processor, seconds=0.05):
    """Every forward takes a while, and no text ends by itself."""
    decode, text_logits = model.decode, model.text_logits

    def slowly(*args, **kwargs):
        time.sleep(seconds)
        return decode(*args, **kwargs)

    def endless(hidden):
        logits = text_logits(hidden)
        logits[:, [processor.end_of_turn_id, processor.image_start_id]] = -torch.inf
        return logits

    model.decode, model.text_logits = slowly, endless


def test_a_full_queue_and_time_limits():
    model, processor = tiny_model()
    slow(model, processor)
    chat = {"model": "vqrae", "messages": [{"role": "user", "content": "a"}], "temperature": 2}
    with serving(model, processor, rows=2, queue=2) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)

        def ask(_):
            try:
                client.chat.completions.create(**chat, max_tokens=15)
                return "done"
            except openai.APIStatusError as error:
                return error.status_code

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(ask, range(12)))
        assert set(found) == {"done", 429} and found.count("done") >= 2
        text = urllib.request.urlopen(f"{address}/metrics").read().decode()
        refused = found.count(429)
        assert f"vqrae_refused_total {float(refused)}" in text
        assert f'path="/v1/chat/completions",status="429"}} {float(refused)}' in text


def test_time_limits():
    model, processor = tiny_model()
    slow(model, processor)
    chat = {"model": "vqrae", "messages": [{"role": "user", "content": "a"}], "temperature": 2}
    with serving(model, processor, seconds=1.0) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.APIStatusError, match="longer than 1.0 seconds") as error:
            client.chat.completions.create(**chat, seed=0)
        assert error.value.status_code == 504
        with pytest.raises(openai.APIError, match="longer than 1.0 seconds"):
            list(client.chat.completions.create(**chat, seed=0, stream=True))


def test_nothing_runs_for_clients_that_have_gone():
    model, processor = tiny_model()
    slow(model, processor)
    chat = {"model": "vqrae", "messages": [{"role": "user", "content": "a"}], "temperature": 2}
    with serving(model, processor) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)

        def running():
            return json.load(urllib.request.urlopen(f"{address}/health"))["running"]

        def wait_until(number):
            deadline = time.monotonic() + 5
            while running() != number and time.monotonic() < deadline:
                time.sleep(0.05)
            assert running() == number

        stream = client.chat.completions.create(**chat, stream=True)
        next(iter(stream))
        wait_until(1)
        stream.close()
        wait_until(0)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(**chat)
        wait_until(0)


def of_requests() -> tuple[Counter, int]:
    """What lives and belongs to requests, and the bytes of all tensors."""
    kinds, tensors = Counter(), {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            with contextlib.suppress(RuntimeError):  # a compiler's fakes have no storage
                tensors[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif issubclass(type(each), (Request, Job, WaitedJob, Answer, Slots, RaggedCache)):
            kinds[type(each).__name__] += 1
    return kinds, sum(tensors.values())


def memory() -> tuple[int, int]:
    """Bytes of Python's objects, while they are traced, and of the process."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc gives back what is free
    status = Path("/proc/self/status")
    resident = re.search(r"VmRSS:\s+(\d+)", status.read_text())[1] if status.exists() else 0
    return tracemalloc.get_traced_memory()[0], int(resident) * 1024


@contextlib.contextmanager
def leaving_nothing(requests: int):
    """Within, with the collector off, `requests` run; all that was theirs is gone afterwards."""

    def quiet():
        time.sleep(1.5)  # a connection keeps its last request until it is closed

    gc.collect()
    gc.disable()
    try:
        quiet()
        (kinds, tensors), (traced, resident) = of_requests(), memory()
        yield
        quiet()
        (kinds_after, tensors_after), (traced_after, resident_after) = of_requests(), memory()
    finally:
        gc.enable()
    assert kinds_after == kinds and kinds.keys() == {"Slots", "RaggedCache"}
    assert tensors_after - tensors < 1000
    assert traced_after - traced < 2000 * requests
    assert resident_after - resident < 16_000_000


def test_load(client, parts):
    """Many at once, drawings, questions and mistakes mixed: each gets its own answer, and nothing
    of them stays."""
    model, processor = parts
    images = [noise_image(i) for i in range(4)]
    questions = ["what?", "where is the circle?", "a longer question about the red square"]
    texts = {
        (q, i): answer(model, processor, image, q, max_new_tokens=5)
        for q in questions
        for i, image in enumerate(images)
    }
    pictures = {
        (p, s): draw(model, processor, p, seed=s)[0][0].tobytes()
        for p in ("a", "a red circle above a blue square")
        for s in range(3)
    }
    rng = random.Random(0)
    kinds = ["chat"] * 90 + ["draw"] * 80 + ["bad"] * 30
    rng.shuffle(kinds)
    jobs = [(kind, rng.choice(list(texts)), rng.choice(list(pictures))) for kind in kinds]

    def one(job):
        kind, (question, image), (prompt, seed) = job
        if kind == "chat":
            reply = client.chat.completions.create(
                model="vqrae",
                messages=[asked(question, images[image])],
                temperature=0,
                max_tokens=5,
            )
            return reply.choices[0].message.content == texts[question, image]
        if kind == "draw":
            reply = client.images.generate(prompt=prompt, extra_body={"seed": seed})
            return decoded(reply.data[0].b64_json) == pictures[prompt, seed]
        try:
            client.chat.completions.create(model="vqrae", messages=[asked("a")], n=99)
        except openai.BadRequestError:
            return True
        return False

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, jobs[:80]))
        tracemalloc.start()
        try:
            assert all(pool.map(one, jobs[80:120]))  # threads, connections, buffers are there
            with leaving_nothing(80):
                assert all(pool.map(one, jobs[120:]))
        finally:
            tracemalloc.stop()


def test_the_command_and_its_page(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **where: started.append((app, where)))
    monkeypatch.delenv("VQRAE_MODEL", raising=False)
    page = (Path(__file__).parents[1] / "docs/serving.md").read_text()
    line = re.search(r"^vqrae (serve .*)$", page, re.MULTILINE)[1]
    assert main(line.split()) == 0
    [(app, where)] = started
    assert where["host"] == "127.0.0.1" and where["port"] == 8000
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    said = []
    with serving_app(app) as address:
        code = code.replace("http://127.0.0.1:8000", address)
        exec(compile(code, "serving.md", "exec"), {"print": said.append})
    assert Image.open("drawn.png").size == (64, 64) and said[0]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "0.0.0.0"],
)
def test_private_hosts_are_never_fetched_from(host):
    with pytest.raises(ValueError, match="not a public one"):
        public_address(host, 80)


def test_fetching(monkeypatch):
    picture = io.BytesIO()
    noise_image(0).save(picture, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            if name in ("inside", "good", "loop"):
                port = self.server.server_address[1]
                where = {
                    "inside": f"http://127.0.0.1:{port}/picture",
                    "good": "/picture",
                    "loop": "/loop",
                }[name]
                self.send_response(302)
                self.send_header("Location", where)
                self.end_headers()
                return
            self.send_response(200 if name in ("picture", "large") else 404)
            self.end_headers()
            self.wfile.write(picture.getvalue() if name == "picture" else b"x" * 300_000)

        def log_message(self, *_):
            pass

    checked = public_address
    monkeypatch.setattr(
        _pictures_in,
        "public_address",
        lambda host, port: "127.0.0.1" if host == "good.test" else checked(host, port),
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://good.test:{server.server_address[1]}"
    limits = PictureLimits(allow_remote=True, max_bytes=100_000)
    assert fetch(f"{base}/good", limits) == picture.getvalue()
    assert read_picture(f"{base}/picture", limits).tobytes() == noise_image(0).tobytes()
    for path, match in (
        ("inside", "not a public one"),
        ("loop", "redirects more than 3 times"),
        ("large", "more than 100000 bytes"),
        ("missing", "answered with status 404"),
    ):
        with pytest.raises(ValueError, match=match):
            fetch(f"{base}/{path}", limits)
    with pytest.raises(ValueError, match="no user or password"):
        fetch("http://me:secret@good.test/", limits)
    server.shutdown()


def test_streamed_text_is_never_taken_back():
    letters = "ab\ufffd"
    text = StreamedText(lambda ids: "".join(letters[i] for i in ids))
    assert [text.more([0]), text.more([0, 2]), text.more([0, 2], last=True)] == ["a", "", "\ufffd"]
    words = "one STOP two"
    text = StreamedText(lambda ids: words[: len(ids)], ["STOP", "never"])
    pieces = [text.more(range(n)) for n in range(len(words) + 1)]
    assert "".join(pieces) == "one " == text.text and text.stopped
    assert pieces[5] == "" == text.more(range(12), last=True)
