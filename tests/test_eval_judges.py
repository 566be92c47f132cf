"""Judges of pictures: local models of every kind, and an endpoint that refuses or babbles."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from _tiny_judges import save_blip, save_clip, save_llava, save_vilt
from PIL import Image
from vqrae.assets import nano_folder
from vqrae.eval.judges import EndpointJudge, LocalJudge, said_yes

QUESTIONS = ["Is there a dog?", "Is the dog red?", "How many cats are there?"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        *(("yes", True), ("Yes, there is.", True), (" **Yes**", True), ("no", False)),
        *(("No.", False), ("none", None), ("yesterday", None), ("", None), ("I say yes", None)),
    ],
)
def test_yes_no_and_neither(answer, said):
    assert said_yes(answer) is said


def picture(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 30), color)


def test_blip_answers_as_the_library_does(tmp_path):
    save_blip(tmp_path / "blip", QUESTIONS)
    judge = LocalJudge(tmp_path / "blip")
    inputs = judge.processor(images=picture(), text=QUESTIONS[1], return_tensors="pt")
    torch.manual_seed(0)
    ids = judge.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    wanted = judge.processor.decode(ids[0], skip_special_tokens=True).strip()
    found = dict(judge.answers(picture(), QUESTIONS))
    assert sorted(found) == [0, 1, 2] and found[1] == wanted
    assert judge.card["template"] == "{question}" and judge.card["kind"] == "blip"
    assert list(judge.card["weights sha256"]) == ["model.safetensors"]


def test_vilt_says_its_best_label(tmp_path):
    save_vilt(tmp_path / "vilt", QUESTIONS, answer="yes")
    judge = LocalJudge(tmp_path / "vilt")
    assert list(judge.answers(picture(), QUESTIONS[:2])) == [(0, "yes"), (1, "yes")]


def test_a_model_that_chats_is_asked_for_yes_or_no(tmp_path):
    save_llava(tmp_path / "llava", QUESTIONS)
    judge = LocalJudge(tmp_path / "llava")
    assert judge.card["template"] == "{question} Answer yes or no."
    asked = []
    decode = judge.processor.decode
    judge.processor.decode = lambda ids, **k: asked.append(ids) or decode(ids, **k)
    [(place, answer)] = judge.answers(picture(), QUESTIONS[:1])
    assert place == 0 and isinstance(answer, str)
    assert 1 <= len(asked[0]) <= 16  # what is new alone, not the question again


def test_our_own_model_judges():
    from vqrae.data import Background, Scene, SceneObject, render

    scene = Scene((SceneObject("star", "red", "large", 1, 1),), Background("plain", "grey"))
    judge = LocalJudge(nano_folder())
    seen = Image.fromarray(render(scene))
    questions = ["Is there a red star?", "Is there a blue circle?"]
    assert [said_yes(a) for _, a in judge.answers(seen, questions)] == [True, False]


def test_no_judges(tmp_path):
    with pytest.raises(ValueError, match="no judge in"):
        LocalJudge(tmp_path)
    save_clip(tmp_path / "clip", QUESTIONS)
    with pytest.raises(ValueError, match="holds a 'clip' model, which answers no questions"):
        LocalJudge(tmp_path / "clip")
    save_vilt(tmp_path / "vilt", QUESTIONS, answer="no")
    with pytest.raises(ValueError, match=r"template 'yes or no' has no \{question\}"):
        LocalJudge(tmp_path / "vilt", template="yes or no")
    with pytest.raises(ValueError, match="begin it with http"):
        EndpointJudge("localhost:8000", "m")


class Endpoint:
    """A local stand-in. replies: (status, body, headers) by turn, the last one for good."""

    def __init__(self, *replies: tuple[int, str, dict[str, str]]) -> None:
        self.replies, self.requests = list(replies), []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                with lock:
                    outer.requests.append((self.path, json.loads(self.rfile.read(size))))
                    last = len(outer.replies) == 1
                    status, body, more = outer.replies[0] if last else outer.replies.pop(0)
                self.send_response(status)
                data = body.encode()
                headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
                for name, value in (headers | more).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


def says(text: str | None) -> tuple[int, str, dict[str, str]]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, json.dumps(body | {"choices": [choice]}), {}


BUSY = (429, '{"error": {"message": "slow down"}}', {"retry-after-ms": "5"})


def test_an_endpoint_is_asked_with_the_picture_and_again_when_busy():
    with Endpoint(BUSY, (503, "{}", {"retry-after-ms": "5"}), says("Yes.")) as server:
        judge = EndpointJudge(server.url + "/", "m", parallel=1)
        assert list(judge.answers(picture(), QUESTIONS[:2])) == [(0, "Yes."), (1, "Yes.")]
    assert len(server.requests) == 4
    path, body = server.requests[-1]
    assert path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0
    image, text = body["messages"][0]["content"]
    assert text["text"] == "Is the dog red? Answer yes or no."
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_many_at_once_come_to_their_own_places():
    with Endpoint(says("no")) as server:
        found = dict(EndpointJudge(server.url, "m", parallel=4).answers(picture(), QUESTIONS * 5))
    assert found == {place: "no" for place in range(15)} and len(server.requests) == 15


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, '{"error": {"message": "no model m"}}', {}), r"says 404: .*no model m"),
        (BUSY, "says 429"),
        ((200, "<html>hello</html>", {"Content-Type": "text/html"}), "is no chat completion"),
        ((200, '{"choices": []}', {}), "is no chat completion"),
        ((200, "{broken", {}), "is no chat completion"),
    ],
)
def test_what_an_endpoint_does_wrong_is_one_line(reply, message):
    with Endpoint(reply) as server, pytest.raises(ValueError, match=message) as error:
        list(EndpointJudge(server.url, "m", retries=2).answers(picture(), QUESTIONS[:1]))
    assert "\n" not in str(error.value)
    assert len(server.requests) == (3 if reply is BUSY else 1)


def test_an_endpoint_that_is_not_there_and_one_that_says_nothing():
    with Endpoint(says(None)) as server:
        judge = EndpointJudge(server.url, "m", retries=0)
        assert list(judge.answers(picture(), QUESTIONS[:1])) == [(0, "")]
    with pytest.raises(ValueError, match="cannot be reached"):
        list(judge.answers(picture(), QUESTIONS[:1]))
