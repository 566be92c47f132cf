"""Requests joined while they run, against each of them alone."""

from __future__ import annotations

import pytest
from test_mllm_parts import FAMILIES, noise_image, tiny_model
from vqrae.generation import features_of, generate_ids, lay_out_weights, sample_codes
from vqrae.generation.engine import DrawRequest, Engine, WriteRequest


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request):
    return tiny_model(request.param)


def requests_and_results(model, processor):
    """Pairs of a request and what it gives alone, by the plain functions."""
    pairs = []
    unconditional = processor.encode_draw(unconditional=True)
    for seed, (text, options) in enumerate(
        [
            ("a", {"guidance_scale": 3.0}),
            ("a red circle above a blue square", {"guidance_scale": 1.0, "top_k": 9}),
            ("circle circle", {"guidance_scale": 2.0, "guidance_interval": (0.0, 0.5)}),
            ("a star", {"guidance_scale": 4.0, "guidance_schedule": "linear", "min_p": 0.3}),
        ]
    ):
        ids = processor.encode_draw(text)
        codes = sample_codes(
            model, [ids], unconditional, seeds=[seed], **({"min_p": 0.0} | options)
        )
        pairs.append((DrawRequest(ids=ids, seed=seed, **options), codes[0].tolist()))
    for seed, (text, image, options) in enumerate(
        [
            ("hello", None, {"temperature": 1.0, "max_new_tokens": 7}),
            ("<image>what is left of the circle?", noise_image(1), {"max_new_tokens": 3}),
            ("<image>where?", noise_image(2), {"temperature": 0.7, "top_p": 0.9}),
        ]
    ):
        ids = processor.encode_chat([{"role": "user", "content": text}], text.count("<image>"))
        features = features_of(model, processor, [image]) if image else None
        written = generate_ids(
            model, processor, [ids], [features], seeds=[seed], **({"max_new_tokens": 64} | options)
        )[0]
        request = WriteRequest(ids=ids, features=features, seed=seed, **options)
        pairs.append((request, written.ids))
    return pairs


@pytest.mark.parametrize("rows", [2, 3, 5, 20])
@pytest.mark.parametrize("late", [0, 1, 4])
def test_together_as_alone(parts, rows, late):
    model, processor = parts
    engine = Engine(model, processor, rows=rows)
    pairs = requests_and_results(model, processor)
    ended = []
    for request, _ in pairs:
        engine.submit(request)
        for _ in range(late):
            ended += engine.step()
    while engine.waiting or engine.running:
        ended += engine.step()
    assert {id(r) for r in ended} == {id(r) for r, _ in pairs} and len(ended) == len(pairs)
    for request, expected in pairs:
        assert request.written == expected
        assert request.stopped_by in ("length", "end")


@pytest.mark.parametrize("family", FAMILIES)
def test_with_our_kernels_as_plain(family):
    model, processor = tiny_model(family)
    pairs = requests_and_results(model, processor)
    engine = Engine(lay_out_weights(model, kernels=True), processor, rows=5)
    for request, _ in pairs:
        engine.submit(request)
    engine.run()
    for request, expected in pairs:
        assert request.written == expected


def test_cancelling_and_following(parts):
    model, processor = parts
    engine = Engine(model, processor, rows=4)
    pairs = requests_and_results(model, processor)
    seen = []
    stopped, waiting = pairs[0][0], pairs[-1][0]
    stopped.on_token = lambda r: (
        seen.append(list(r.written)) or (len(r.written) == 2 and r.cancel())
    )
    for request, _ in pairs:
        engine.submit(request)
    waiting.cancel()
    assert waiting in engine.step() and waiting.written == []
    engine.run()
    assert stopped.stopped_by == "cancelled" and seen == [pairs[0][1][:1], pairs[0][1][:2]]
    for request, expected in pairs[1:-1]:
        assert request.written == expected


def test_what_cannot_run(parts):
    model, processor = parts
    engine = Engine(model, processor, room=20)
    for request, match in (
        (DrawRequest(ids=[1] * 17), "needs 21 tokens, more than the limit of 20"),
        (WriteRequest(ids=[1] * 20), "needs 21 tokens"),
        (WriteRequest(ids=[1], max_new_tokens=0), "max_new_tokens must be at least 1, not 0"),
        (DrawRequest(ids=[1], guidance_scale=-1.0), "guidance_scale must not be negative"),
        (DrawRequest(ids=[1], temperature=-1.0), "temperature must be"),
    ):
        with pytest.raises(ValueError, match=match):
            engine.submit(request)
    with pytest.raises(ValueError, match="rows must be at least 2"):
        Engine(model, processor, rows=1)
    assert not engine.step()


def test_text_ends_at_its_room(parts):
    model, processor = parts
    request = WriteRequest(ids=[3, 4, 5], max_new_tokens=50, temperature=5.0)
    engine = Engine(model, processor, room=9)
    engine.submit(request)
    engine.run()
    assert request.stopped_by == "end" or len(request.written) == 6


def test_a_conversation_is_read_on_from_where_it_was(parts, monkeypatch):
    """Turn by turn as all anew, but only what is new goes through the model."""
    model, processor = parts
    read = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda e, *rest: read.append(e.shape[:2].numel()) or decode(e, *rest)
    )
    image = noise_image(3)
    features = features_of(model, processor, [image])
    said = ["<image>what is it?", "and where is it?", "are you sure?"]
    engine, messages, before = Engine(model, processor, rows=2), [], 0
    for text in said:
        messages.append({"role": "user", "content": text})
        ids = processor.encode_chat(messages, 1)
        options = {"ids": ids, "features": features, "max_new_tokens": 4}
        ours, anew = WriteRequest(**options), WriteRequest(**options)
        read.clear()
        engine.submit(ours)
        engine.run()
        assert sum(read) <= len(ids) - before + 4
        fresh = Engine(model, processor, rows=2)
        fresh.submit(anew)
        fresh.run()
        assert ours.written == anew.written
        before = len(ids)
        messages.append({"role": "assistant", "content": processor.text(ours.written) or "a"})
    # The same words about another picture are another conversation.
    other = features_of(model, processor, [noise_image(4)])
    results = []
    for rows in (engine, Engine(model, processor, rows=2)):
        request = WriteRequest(ids=ids, features=other, max_new_tokens=4)
        rows.submit(request)
        rows.run()
        results.append(request.written)
    assert results[0] == results[1]
