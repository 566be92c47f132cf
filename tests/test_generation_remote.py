"""Pictures and answers through an engine.

No engine ran here: what speaks below is a stand-in. It takes the fields of vLLM 0.33.0 and of
SGLang 0.5.23 as their sources have them, refuses others, answers in their form, and computes with
the exported checkpoint in transformers.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time

import pytest
import torch
from PIL import Image
from test_mllm_parts import CODES, tiny_model
from transformers import AutoModelForCausalLM
from vqrae.generation import RemoteModel, draw, generate_text
from vqrae.generation.draw import picture_seed
from vqrae.mllm.export_llm import export_language_model
from vqrae.scripts.main import main

PROMPTS = ["a red circle", "a red circle above a blue square"]
# Of vLLM's CompletionRequest and SGLang's SamplingParams, those that take part here.
FIELDS = {
    "/v1/completions": "model prompt allowed_token_ids return_token_ids max_tokens min_tokens "
    "ignore_eos stop_token_ids temperature top_k top_p min_p seed",
    "/generate": "max_new_tokens ignore_eos stop_token_ids temperature top_k top_p min_p "
    "sampling_seed logit_bias",
}


class Engine(http.server.BaseHTTPRequestHandler):
    """The stand-in. What it does wrong is set on its server: `fault` makes an answer of its own."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        if self.server.fault is not None:
            self.send(*self.server.fault(body))
        elif self.path == "/v1/completions":
            self.send(200, self.vllm(body))
        else:
            self.send(200, self.sglang(body))

    def vllm(self, body):
        assert body.keys() <= set(FIELDS[self.path].split()), body.keys()
        written = self.continued(
            body["prompt"],
            body["max_tokens"],
            body["stop_token_ids"],
            lambda _, scores: scores.index_fill(
                1, torch.tensor(sorted(set(range(self.rows())) - set(body["allowed_token_ids"]))),
                -torch.inf,
            ),
        )  # fmt: skip
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
        choice |= {"stop_reason": None, "token_ids": written, "prompt_logprobs": None}
        choice |= {"prompt_token_ids": body["prompt"], "routed_experts": None}
        return {
            "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "plain",
            "choices": [choice], "service_tier": None, "system_fingerprint": None,
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(written)},
        }  # fmt: skip

    def sglang(self, body):
        assert body.keys() == {"input_ids", "sampling_params"}
        sampling = body["sampling_params"]
        assert sampling.keys() <= set(FIELDS[self.path].split()), sampling.keys()
        assert all(0 <= int(token) < self.rows() for token in sampling["logit_bias"])
        bias = torch.zeros(self.rows())
        for token, value in sampling["logit_bias"].items():
            bias[int(token)] = value
        written = self.continued(
            body["input_ids"],
            sampling["max_new_tokens"],
            sampling["stop_token_ids"],
            lambda _, scores: scores + bias,
        )
        meta = {"id": "1", "finish_reason": {"type": "length", "length": len(written)}}
        return {"text": "", "output_ids": written, "meta_info": meta}

    def rows(self):
        return self.server.model.config.vocab_size

    def continued(self, ids, most, stops, processor):
        with torch.no_grad():
            out = self.server.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=stops or None,
                logits_processor=[processor],
            )
        return out[0, len(ids) :].tolist()

    def send(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    return export_language_model(*parts, tmp_path_factory.mktemp("export") / "plain")


@pytest.fixture(scope="module")
def running(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.model = AutoModelForCausalLM.from_pretrained(folder).eval()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(running):
    running.asked, running.fault = [], None
    return running


def address(engine):
    return f"http://127.0.0.1:{engine.server_address[1]}"


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_pictures_are_those_of_our_own_sampler(parts, folder, engine, kind):
    remote = RemoteModel(folder, address(engine), engine=kind, at_once=3)
    options = {"n": 2, "seed": 5, "temperature": 0, "guidance_scale": 1.0}
    done = []
    drawn = remote.draw(PROMPTS, **options, progress=lambda *now: done.append(now))
    ours = draw(*parts, PROMPTS, **options)
    assert [[i.tobytes() for i in row] for row in drawn] == [
        [i.tobytes() for i in row] for row in ours
    ]
    assert drawn[0][0].tobytes() != drawn[1][0].tobytes()
    assert done == [(4, 16), (8, 16), (12, 16), (16, 16)]
    prompt = [{"role": "user", "content": "a <|image_start|> red"}]
    [expected] = generate_text(*parts, [parts[1].encode_chat(prompt)], max_new_tokens=9)
    assert remote.answer(prompt[0]["content"], max_new_tokens=9) == expected
    assert remote.answer([prompt[0]["content"]], max_new_tokens=9) == [expected]


def test_what_is_asked(parts, folder, engine):
    """Sampling, seeds and the key go out with the meaning they have in `draw`."""
    _, processor = parts
    first = processor.code_offset
    remote = RemoteModel(
        folder, f"{address(engine)}/v1/", api_key="secret", model="plain", at_once=1
    )
    remote.draw("a", n=2, seed=7, temperature=0.5, top_k=3, top_p=0.9, min_p=0.04)
    for number, (path, headers, body) in enumerate(engine.asked):
        assert path == "/v1/completions" and headers["Authorization"] == "Bearer secret"
        assert body.pop("allowed_token_ids") == list(range(first, first + CODES))
        # The engine leaves out what is 0.04 ** 2 as likely once temperature has squared it.
        assert body.pop("min_p") == pytest.approx(0.0016)
        assert body == {
            "model": "plain", "prompt": processor.encode_draw("a"), "return_token_ids": True,
            "max_tokens": 4, "min_tokens": 4, "ignore_eos": True, "stop_token_ids": [],
            "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": picture_seed("a", 7 + number),
        }  # fmt: skip
    engine.asked.clear()
    remote.answer("a")
    body = engine.asked[0][2]
    assert body["allowed_token_ids"] == list(range(processor.image_start_id))
    assert body["stop_token_ids"] == [processor.end_of_turn_id] and not body["ignore_eos"]
    remote = RemoteModel(folder, address(engine), engine="sglang")
    engine.asked.clear()
    remote.draw("a", seed=7, temperature=0.5)
    sampling = engine.asked[0][2]["sampling_params"]
    assert sampling["sampling_seed"] == picture_seed("a", 7) and sampling["top_k"] == -1
    assert "Authorization" not in engine.asked[0][1]


def test_one_line_says_what_came_back(folder, engine, parts):
    first = parts[1].code_offset
    remote = RemoteModel(folder, address(engine), timeout=0.5)

    def refused(match, fault, call=lambda: remote.draw("a")):
        engine.fault = fault
        with pytest.raises(ValueError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)

    def answering(ids):
        return lambda _: (200, {"choices": [{"token_ids": ids, "text": ""}]})

    refused("gave 3 codes of 4; .*--max-model-len", answering([first] * 3))
    refused(
        f"token 17, which is not a code .{first} to {first + CODES - 1}.; does it serve .*plain",
        answering([first, 17, first, first]),
    )
    refused("not a text token", answering([5, first]), lambda: remote.answer("a", max_new_tokens=2))
    refused("gave no token ids, but .*'?text", answering(None))
    refused("gave no token ids", lambda _: (200, {"choices": []}))
    refused("gave no token ids", lambda _: (200, [1]))
    refused("does not speak JSON", lambda _: (200, b"<html>"))
    error = {"error": {"message": "max_tokens is\ntoo large", "type": "BadRequestError"}}
    refused("status 400: max_tokens is too large", lambda _: (400, error))
    refused("status 401: Unauthorized", lambda _: (401, {"error": "Unauthorized"}))
    refused("status 502: <html>", lambda _: (502, b"<html>" + b"x" * 20_000))
    refused("longer than 0.5 seconds", lambda _: time.sleep(1) or (200, {}))
    engine.fault = lambda _: (500, {"error": {"message": "EngineCore encountered an issue"}})
    remote.processor.codebook_size = 16_384
    refused("takes 1024 allowed ids .* these are 16384: .*V2_MODEL_RUNNER=0", engine.fault)
    closed = RemoteModel(folder, "http://127.0.0.1:9")
    refused("no engine answers at http://127.0.0.1:9", None, lambda: closed.draw("a"))


def test_mistakes_are_told_before_anything_is_asked(folder, engine, tmp_path):
    remote = RemoteModel(folder, address(engine))
    for match, options in (
        ("guidance_scale is 3.0, .*one pass", {"guidance_scale": 3.0}),
        ("temperature must be", {"temperature": -1}),
        ("n must be at least 1", {"n": 0}),
    ):
        with pytest.raises(ValueError, match=match):
            remote.draw("a", **options)
    with pytest.raises(ValueError, match="prompt is empty"):
        remote.draw(["a", " "])
    with pytest.raises(ValueError, match="question is empty"):
        remote.answer(" ")
    with pytest.raises(ValueError, match="tokens, more than the limit"):
        remote.draw("a " * 2000)
    assert engine.asked == []
    for match, call in (
        ("address is like", lambda: RemoteModel(folder, "localhost:8000")),
        ("engine must be vllm or sglang", lambda: RemoteModel(folder, "http://a", engine="tgi")),
        ("timeout must be above 0", lambda: RemoteModel(folder, "http://a", timeout=0)),
        ("no vocabulary.json", lambda: RemoteModel(tmp_path, "http://a")),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_a_damaged_folder_is_named(parts, tmp_path):
    folder = export_language_model(*parts, tmp_path / "plain")
    path = folder / "vocabulary.json"
    known = json.loads(path.read_text())

    def refused(match, text):
        path.write_text(text)
        with pytest.raises(ValueError, match=match) as caught:
            RemoteModel(folder, "http://a")
        assert "\n" not in str(caught.value)

    refused("cannot read .*plain", "{")
    refused(
        "code_offset is 7 in .*vocabulary.json' but 297", json.dumps(known | {"code_offset": 7})
    )
    refused("not the tokenizer that drawings", json.dumps(known | {"tokenizer": "0" * 16}))
    path.write_text(json.dumps(known))
    (folder / "vqrae" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no vqrae/model.safetensors"):
        RemoteModel(folder, "http://a")


def test_the_command(parts, folder, engine, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VQRAE_API_KEY", "secret")
    line = ["draw", "a red circle", "-o", str(tmp_path / "out.png"), "--engine", address(engine)]
    assert main([*line, "--exported", str(folder), "--temperature", "0"]) == 0
    [[expected]] = draw(*parts, "a red circle", temperature=0, guidance_scale=1.0)
    assert Image.open(tmp_path / "out.png").tobytes() == expected.tobytes()
    assert engine.asked[0][1]["Authorization"] == "Bearer secret"
    capsys.readouterr()
    for match, rest in (
        ("--engine ADDRESS and --exported FOLDER belong together", []),
        ("guidance_scale is 2.0", ["--exported", str(folder), "--guidance-scale", "2"]),
    ):
        assert main([*line, *rest]) == 2
        error = capsys.readouterr().err
        assert re.search(match, error) and error.count("\n") == 1
