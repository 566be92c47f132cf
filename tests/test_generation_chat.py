"""Answers in batches, and conversations in which the model draws and looks."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from test_mllm_parts import noise_image, tiny_model
from vqrae.generation import ChatSession, answer, features_of, generate_ids, generate_text
from vqrae.generation import chat as chat_module


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


def asked(processor, text, images=1):
    return processor.encode_chat([{"role": "user", "content": text}], images)


def test_batched_answers_equal_single_plain_ones(parts):
    """Against whole forwards of one prompt at a time: no padding, no cache."""
    model, processor = parts
    questions = ["<image>what?", "<image>what is left of the circle?", "hello", "<image>where?"]
    images = [noise_image(0), noise_image(1), None, noise_image(2)]
    prompts = [asked(processor, text, text.count("<image>")) for text in questions]
    features = [features_of(model, processor, [i]) if i else None for i in images]
    expected = []
    with torch.no_grad():
        for prompt, feature in zip(prompts, features, strict=True):
            ids = []
            for _ in range(6):
                out = model(torch.tensor([[*prompt, *ids]]), features=feature)
                logits = out.logits[0, -1, : model.config.image_start_id]
                ids.append(int(logits.argmax()))
            expected.append(
                ids[: ids.index(end)] if (end := processor.end_of_turn_id) in ids else ids
            )
    for size in (1, 3, 128):
        written = generate_ids(
            model, processor, prompts, features, max_new_tokens=6, batch_size=size
        )
        assert [each.ids for each in written] == expected
    texts = generate_text(model, processor, prompts, features, max_new_tokens=6)
    assert texts == [processor.text(ids) for ids in expected]
    sampled = {"temperature": 1.0, "seeds": [4, 5, 6, 7], "max_new_tokens": 6}
    together = generate_text(model, processor, prompts, features, **sampled)
    alone = generate_text(
        model, processor, prompts[1:2], features[1:2], **(sampled | {"seeds": [5]})
    )
    assert together[1:2] == alone


def force(model, *ids):
    """Make the model write `ids` in turn as the next text tokens, whatever it reads."""
    queue, plain = list(ids), type(model).text_logits

    def scripted(hidden):
        logits = plain(model, hidden)
        if queue:
            logits[:, queue.pop(0)] = 1e4
        return logits

    model.text_logits = scripted


@pytest.fixture
def scripted():
    model, processor = tiny_model()
    return model, processor, lambda *ids: force(model, *ids)


def test_stops_at_the_end_of_turn(scripted):
    model, processor, script = scripted
    prompt = asked(processor, "hi", 0)
    script(65, 66, processor.end_of_turn_id)
    (written,) = generate_ids(model, processor, [prompt])
    assert written.ids == [65, 66] and written.stopped_by == "end"
    script(65, processor.image_start_id)
    (written,) = generate_ids(model, processor, [prompt], allow_draw=True)
    assert written.ids == [65] and written.stopped_by == "draw"
    (written,) = generate_ids(model, processor, [prompt], max_new_tokens=3)
    assert len(written.ids) == 3 and written.stopped_by == "length"


def test_only_text_is_written(parts):
    model, processor = parts
    prompts = [asked(processor, "hi", 0)] * 50
    written = generate_ids(model, processor, prompts, temperature=50.0, max_new_tokens=20, seeds=0)
    ids = [token for each in written for token in each.ids]
    assert len(set(ids)) > 100 and max(ids) < model.config.image_start_id


def test_answer(parts, monkeypatch):
    model, processor = parts
    one, two = noise_image(0), noise_image(1)
    single = answer(model, processor, one, "what?", max_new_tokens=4)
    assert isinstance(single, str)
    passes = []
    encode = model.vqrae.encode
    monkeypatch.setattr(model.vqrae, "encode", lambda p: passes.append(len(p)) or encode(p))
    many = answer(
        model, processor, [one, two, one], ["what?", "what?", "where is it?"], max_new_tokens=4
    )
    assert many[0] == single and len(many) == 3 and passes == [2]
    assert answer(model, processor, one, ["what?"], max_new_tokens=4) == [single]
    with pytest.raises(ValueError, match="2 pictures were given for 3 questions"):
        answer(model, processor, [one, two], ["a", "b", "c"])
    with pytest.raises(ValueError, match="question is empty"):
        answer(model, processor, one, " ")
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
        answer(model, processor, one, "what?", max_new_tokens=0)


def test_the_model_draws_and_is_asked_about_its_drawing(scripted):
    model, processor, script = scripted
    session = ChatSession(model, processor, max_new_tokens=3)
    script(processor.image_start_id)
    drawn = session.say("Draw a red circle.")
    assert drawn.text == "" and isinstance(drawn.images[0], Image.Image)
    assert session.drawings == drawn.images
    # Not a drawing this time, so the question is asked with the drawing in view.
    script(65, 65, 66, processor.end_of_turn_id)
    replied = session.say("what did you draw?")
    assert replied.text == processor.text([65, 66]) and not replied.images
    pads = session._ids.count(processor.image_pad_id)
    assert pads == processor.num_image_tokens
    (seen,) = session._features
    assert torch.equal(seen, features_of(model, processor, drawn.images))
    text = processor.tokenizer.decode(session._ids)
    codes = [i for i in session._ids if i >= processor.code_offset]
    assert len(codes) == processor.num_image_tokens
    picture = model.vqrae.detokenize(torch.tensor([codes]) - processor.code_offset)
    assert processor.image_processor.to_images(picture)[0].tobytes() == drawn.images[0].tobytes()
    assert text.startswith("<|im_start|>user\nDraw a red circle.<|im_end|>\n<|im_start|>assistant")
    # It was looked at once; the next turn goes on without a second copy.
    script(65, processor.end_of_turn_id)
    session.say("and its colour?")
    assert session._ids.count(processor.image_pad_id) == pads
    # Another drawing, decided on without the last one in view.
    script(processor.image_start_id)
    assert session.say("Draw a star.").images and len(session.drawings) == 2
    session.reset()
    assert session.turns == [] and session.drawings == []


def test_history_equals_one_long_prompt(parts):
    model, processor = parts
    session = ChatSession(model, processor, max_new_tokens=3)
    image = noise_image(3)
    first = session.say("what?", [image])
    second = session.say("and where?")
    suffix = processor.trusted(processor.assistant_suffix)
    prefix = processor.trusted(processor.assistant_prefix)
    features = [features_of(model, processor, [image])]
    prompt = asked(processor, "<image>\nwhat?")
    (one,) = generate_ids(model, processor, [prompt], features, max_new_tokens=3, allow_draw=True)
    prompt = [*prompt, *one.ids, *suffix, *processor.user_turn("and where?"), *prefix]
    (two,) = generate_ids(model, processor, [prompt], features, max_new_tokens=3, allow_draw=True)
    assert first.text == processor.text(one.ids) and second.text == processor.text(two.ids)


def test_draw_on_demand_and_seeds(parts):
    model, processor = parts
    drawn = [
        ChatSession(model, processor, seed=seed).draw("a red circle").images[0].tobytes()
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_errors_leave_the_conversation_as_it_was(parts, monkeypatch):
    model, processor = parts
    session = ChatSession(model, processor, max_new_tokens=2)
    session.say("hello")
    before, turns = list(session._ids), len(session.turns)
    for call, match in (
        (lambda: session.say(" "), "message is empty"),
        (lambda: session.draw(""), "prompt is empty"),
        (lambda: session.say("look at <image>"), "1 times '<image>', but 0 pictures"),
        (lambda: session.say("circle " * 10_000), r"has \d+ tokens, more than the limit of 512"),
        (lambda: session.draw("circle " * 10_000), r"has \d+ tokens, more than the limit of 512"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
        assert session._ids == before and len(session.turns) == turns
    monkeypatch.setattr(chat_module, "codes_to_images", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.draw("a")
    assert session._ids == before
    for bad in ({"top_p": 2.0}, {"temperature": -1.0}, {"text_temperature": -1.0}):
        with pytest.raises(ValueError):
            ChatSession(model, processor, **bad)


def test_long_conversations_end_with_the_limit(parts):
    model, processor = parts
    session = ChatSession(model, processor, max_new_tokens=4)
    with pytest.raises(ValueError, match=r"tokens, more than the limit of 512; shorten it"):
        for _ in range(60):
            session.say("what is this? " * 3)
    assert len(session._ids) <= 512


def test_answers_and_drawings_can_be_watched(scripted):
    model, processor, script = scripted
    pieces, states = [], []
    session = ChatSession(
        model, processor, max_new_tokens=9, on_text=pieces.append, on_drawing=states.append
    )
    script(65, 66, 67, processor.end_of_turn_id)
    reply = session.say("what?", [noise_image(0)])
    assert "".join(pieces) == reply.text == processor.text([65, 66, 67]) and len(pieces) == 3
    drawn = session.draw("a circle").images[0]
    assert len(states) == processor.num_image_tokens
    assert states[-1].tobytes() == drawn.tobytes() != states[0].tobytes()


def test_a_turn_costs_what_is_new_in_it(parts, monkeypatch):
    model, processor = parts
    session = ChatSession(model, processor, max_new_tokens=2)
    session.say("a long beginning of the conversation " * 3, [noise_image(0)])
    read, decode = [], model.decode
    monkeypatch.setattr(
        model, "decode", lambda e, *rest: read.append(e.shape[:2].numel()) or decode(e, *rest)
    )
    before = len(session._ids)
    session.say("and?")
    # The turn's own tokens, what it wrote, and the last answer's end.
    assert sum(read) <= len(session._ids) - before + 2
    read.clear()
    session.draw("a circle")
    half = len(processor.encode_draw(unconditional=True)) + 2 * processor.num_image_tokens
    assert sum(read) <= len(processor.user_turn("a circle")) + half + 10
