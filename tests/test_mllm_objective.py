"""What the mixed training scores, and that packing changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_mllm_parts import CODES, noise_image, tiny_model
from torch.utils.data import IterableDataset
from vqrae.data import Augment
from vqrae.mllm import (
    UnifiedModel,
    UnifiedObjective,
    UnifiedObjectiveConfig,
    UnifiedProcessor,
    check_agreement,
)
from vqrae.mllm.packing import IGNORE
from vqrae.mllm.sequences import TASKS
from vqrae.training import TrainConfig, fit


def shard(task, key, seed=0, text="a red circle", **extra):
    return {"key": key, "task": task, "image": noise_image(seed), "text": text, **extra}


def talk(task, key, images, *turns):
    roles = ("user", "assistant")
    conversations = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"key": key, "task": task, "images": images, "conversations": conversations}


SAMPLES = [
    shard("t2i", "t0", 0),
    shard("t2i", "t1", 1, "a blue square above a circle"),
    shard("caption", "c0", 2),
    shard("interleaved", "i0", 3),
    shard("interleaved", "i1", 4, "a square"),
    talk("vqa", "v0", [noise_image(5)], "<image>\nwhat?", "circle", "and?", "red"),
    talk("text", "x0", [], "hello", "hello to you"),
]

READ = ("caption", "vqa", "text")


def objective(family="qwen3", **config):
    torch.manual_seed(0)
    return UnifiedObjective(*tiny_model(family), UnifiedObjectiveConfig(**config))


def scored(objective, sample, **config):
    """The only row of a batch, read as text, and its scored part; codes stand as <|code_0|>."""
    objective.sequences.config = UnifiedObjectiveConfig(**config)
    batch = objective.collate([sample])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(ids[labels != IGNORE], labels[labels != IGNORE])
    decode = objective.processor.tokenizer.decode
    return decode(ids), decode(labels[labels != IGNORE]), batch


def test_drawing_scores_visual_tokens():
    ours = objective()
    codes = "<|code_0|>" * 4
    start, tail = "<|im_start|>assistant\n<|image_start|>", "<|image_end|><|im_end|>\n"
    row, part, batch = scored(ours, SAMPLES[0], cond_dropout=0, draw_wording=0)
    assert row == f"<|im_start|>user\na red circle<|im_end|>\n{start}{codes}{tail}"
    assert part == codes
    assert batch["draws"].tolist() == [0] and batch["looks"].tolist() == []
    row, part, _ = scored(ours, SAMPLES[0], cond_dropout=1)
    assert row == f"<|im_start|>user\n<|im_end|>\n{start}{codes}{tail}" and part == codes
    row, part, _ = scored(ours, SAMPLES[0], cond_dropout=0, draw_wording=1)
    assert "a red circle" in row and part == "<|image_start|>" + codes


def test_answers_are_scored_with_their_end():
    ours = objective()
    see = "<|image_start|>" + "<|image_pad|>" * 4 + "<|image_end|>\n"
    row, part, batch = scored(ours, SAMPLES[2])
    assert f"user\n{see}" in row and part == "a red circle<|im_end|>"
    assert batch["looks"].tolist() == [0] and batch["draws"].tolist() == []
    row, part, _ = scored(ours, SAMPLES[5])
    assert f"{see}what?" in row and part == "circle<|im_end|>red<|im_end|>"
    _, part, batch = scored(ours, SAMPLES[6])
    assert part == "hello to you<|im_end|>" and "pixel_values" not in batch


def test_interleaved_draws_then_looks_at_it():
    row, part, batch = scored(objective(), SAMPLES[3])
    codes, pads = "<|code_0|>" * 4, "<|image_pad|>" * 4
    assert row.index(codes) < row.index(pads)
    assert part == f"<|image_start|>{codes}a red circle<|im_end|>"
    assert batch["draws"].tolist() == batch["looks"].tolist() == [0]
    asked = shard("interleaved", "q", json={"questions": [
        {"question": "what shape?", "answer": "circle"}, {"question": "color?", "answer": "red"}
    ]})  # fmt: skip
    row, part, _ = scored(objective(), asked)
    assert part.endswith("circle<|im_end|>red<|im_end|>") and row.count(pads) == 1


def test_pictures_in_answers_are_drawn():
    pictures = [noise_image(i) for i in range(3)]
    sample = talk(
        "vqa", "d", pictures, "<image>\nand with a star?", "here<image>", "two?", "<image>\ndone"
    )
    row, part, batch = scored(objective(), sample)
    codes, pads = "<|image_start|>" + "<|code_0|>" * 4, "<|image_pad|>" * 4
    assert row.index(pads) < row.index("here" + codes + "<|image_end|><|im_end|>")
    assert part == f"here{codes}{codes}\ndone<|im_end|>"
    assert batch["looks"].tolist() == [0] and batch["draws"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="sample 'd': it is drawn .*train_encoder"):
        objective(train_encoder=True).collate([sample])


def test_conditions_are_dropped_at_their_rate():
    ours = objective(cond_dropout=0.1)
    empty = "user\n<|im_end|>"
    rows = [ours.collate([shard("t2i", str(i))])["input_ids"][0] for i in range(400)]
    dropped = sum(empty in ours.processor.tokenizer.decode(row) for row in rows)
    assert 20 <= dropped <= 65


def test_captions_are_chosen_among_all():
    ours = objective(cond_dropout=0, draw_wording=0)
    samples = [
        shard("t2i", str(i), text="one", json={"captions": ["one", "two", "three"]})
        for i in range(20)
    ]
    rows = [ours.collate([sample])["input_ids"][0].tolist() for sample in samples]
    assert len(set(map(tuple, rows))) == 3
    again = [ours.collate([sample])["input_ids"][0].tolist() for sample in samples]
    assert rows == again  # chosen by the keys, so that a resumed run chooses the same


def test_one_question_stays_with_its_picture():
    ours, asked = objective(), set()
    for key in map(str, range(30)):
        sample = talk("vqa", key, [noise_image(0)], "<image>\nwhat?", "circle", "how?", "red")
        text, answer, batch = scored(ours, sample, one_question=True)
        assert len(batch["looks"]) == 1
        asked.add((tuple(q for q in ("what?", "how?") if q in text), answer))
    assert asked == {(("what?",), "circle<|im_end|>"), (("how?",), "red<|im_end|>")}
    for sample in (
        talk("vqa", "0", [noise_image(0)], "<image>\nwhat?", "circle"),
        talk("text", "0", [], "hello", "well", "and?", "yes"),
    ):
        assert scored(ours, sample, one_question=True)[:2] == scored(ours, sample)[:2]


@pytest.mark.parametrize(("family", "chained"), [("qwen3", 0), ("qwen3", 1), ("gemma3", 1)])
def test_packing_changes_no_loss(family, chained):
    losses = []
    for packed in (True, False):
        ours = objective(family, packed=packed, chained=chained)
        batch = ours.collate(SAMPLES)
        assert ours.count(batch) == int((batch["position_ids"] > 0).sum()) + len(SAMPLES)
        loss, logs = ours(batch, 0)
        loss.backward()
        grads = [p.grad for p in ours.parameters() if p.grad is not None]
        losses.append((loss, logs, grads, batch["input_ids"].numel()))
    (loss, logs, grads, size), (loss2, logs2, grads2, size2) = losses
    torch.testing.assert_close(loss, loss2)
    assert logs.keys() == logs2.keys()
    assert {f"loss_{task}" for task in TASKS} | {"loss", "loss_start"} == logs.keys()
    for name in logs:
        torch.testing.assert_close(logs[name], logs2[name])
    for one, two in zip(grads, grads2, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    assert size < size2


def test_codes_and_features_are_those_of_the_tokenizer():
    ours = objective(cond_dropout=0)
    model = ours.model
    batch = ours.collate(SAMPLES)
    seen = {}
    model.embed, embed = (
        lambda ids, **kw: seen.update(ids=ids, **kw) or embed(ids, **kw),
        model.embed,
    )
    ours(batch, 0)
    pixels = batch["pixel_values"]
    assert len(pixels) >= 6
    codes = seen["ids"][batch["is_code"]].view(-1, 4) - model.config.code_offset
    assert torch.equal(codes, model.vqrae.tokenize(pixels[batch["draws"]]))
    assert codes.min() >= 0 and codes.max() < CODES
    features = model.vqrae.encode(pixels[batch["looks"]])
    torch.testing.assert_close(seen["features"], features)


def test_weights_and_freezing():
    ours = objective(weight_t2i=2.0, weight_text=0.0, train_llm=False)
    loss, logs = ours(ours.collate(SAMPLES), 0)
    torch.testing.assert_close(loss.detach(), 2 * logs["loss_t2i"])
    ours.config = UnifiedObjectiveConfig(train_llm=False)
    loss, _ = ours(ours.collate(SAMPLES), 0)
    loss.backward()
    got = {name.split(".")[1] for name, p in ours.named_parameters() if p.grad is not None}
    assert got == {"projector"}
    assert {group["name"] for group in ours.param_groups()} == {"projector", "projector_no_decay"}
    groups = objective().param_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    wanted = [id(p) for p in objective().parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) == len(wanted)


def test_it_learns_a_handful_of_samples():
    ours = objective(cond_dropout=0)
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        loss, _ = ours(ours.collate(SAMPLES), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])


class Repeated(IterableDataset):
    """Samples over and over, with a position."""

    rank, world_size, place = 0, 1, 0

    def __init__(self, samples=SAMPLES):
        self.samples = samples

    def __iter__(self):
        while True:
            self.place += 1
            yield self.samples[(self.place - 1) % len(self.samples)]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


ENCODER_TOO = {"train_encoder": True, "augment": Augment(mirror=True, shift=0.25)}


@pytest.mark.parametrize("config", [{}, {"code_rows": "shared"}, ENCODER_TOO])
def test_resumed_equals_uninterrupted_and_exports(config, tmp_path, monkeypatch):
    monkeypatch.setattr("vqrae.mllm.objective._COUNTED_SAMPLES", 16)
    samples = [s for s in SAMPLES if "train_encoder" not in config or s["task"] in READ]
    train = TrainConfig(steps=4, batch_size=4, log_every=1, schedule="constant", device="cpu")

    def run(name, steps):
        ours = objective(cond_dropout=0.5, **config)
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        changed = dataclasses.replace(train, steps=steps)
        result = fit(ours, Repeated(samples), changed, tmp_path / name, recipe="unified")
        moved = {
            n
            for n, value in ours.state_dict().items()
            if n not in before or not torch.equal(value, before[n])
        }
        return ours, result, {n for n in moved if n.startswith("model.vqrae.")}

    whole, _, moved = run("whole", 4)
    encoder = {n for n in moved if n.startswith("model.vqrae.encoder.")}
    assert moved == encoder and bool(moved) == ("train_encoder" in config)
    run("parted", 2)
    _, parted, _ = run("parted", 4)
    assert parted.resumed_from == 2
    exported = [
        UnifiedModel.from_pretrained(tmp_path / run / "final") for run in ("whole", "parted")
    ]
    one, two = (model.state_dict() for model in exported)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], ours) for name, ours in whole.model.state_dict().items())
    check_agreement(exported[0], UnifiedProcessor.from_pretrained(tmp_path / "whole" / "final"))


def test_samples_that_are_too_long_are_left_out_and_named(caplog):
    long = shard("caption", "long", text="red " * 1000)
    ours = objective(chained=0.0)
    batch = ours.collate([long, *SAMPLES])
    assert "skipped bad sample 'long'" in caplog.text and "limit of 512" in caplog.text
    expected = ours.collate(SAMPLES)
    assert batch["pixel_values"].shape == expected["pixel_values"].shape
    assert ours.count(batch) == int((batch["position_ids"] > 0).sum()) + len(SAMPLES)
    loss, logs = ours(batch, 0)
    assert logs["too_long"] == 1 and loss.isfinite()
    assert "too_long" not in ours(expected, 0)[1]
    # One alone on a rank: the others wait for its step.
    loss, logs = ours(ours.collate([long]), 0)
    loss.backward()
    assert loss == 0 and logs["too_long"] == 1
    with pytest.raises(ValueError, match=r"above the allowed share 0.05 .*raise --max-length"):
        for _ in range(20):
            ours.collate([long])


def test_bad_samples_are_named():
    ours = objective()
    with pytest.raises(ValueError, match="sample 'k' has task 'dance'; valid tasks: t2i"):
        ours.collate([shard("dance", "k")])
    with pytest.raises(ValueError, match="sample 'v': it has 1 pictures but 0 places"):
        ours.collate([talk("vqa", "v", [noise_image(0)], "what?", "circle")])
    with pytest.raises(ValueError, match="sample 'd': it is drawn .*train_encoder"):
        objective(train_encoder=True).collate([shard("t2i", "d")])
    for bad in ({"cond_dropout": 2}, {"lr": -1}, {"train_llm": False, "train_projector": False}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            UnifiedObjectiveConfig(**bad)
