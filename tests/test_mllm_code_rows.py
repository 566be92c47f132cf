"""Rows of codes that share one map: what they start as, what they learn, and how they fold."""

from __future__ import annotations

import pytest
import torch
from test_mllm_objective import SAMPLES
from test_mllm_parts import CODES, noise_image, tiny_model, tiny_vqrae
from vqrae.mllm import UnifiedModel, UnifiedObjective, UnifiedObjectiveConfig
from vqrae.mllm.code_bias import fit_code_bias
from vqrae.mllm.code_rows import CodeRows, code_meanings


def test_meanings_are_what_the_encoder_sees():
    vqrae = tiny_vqrae().eval()
    meanings = code_meanings(vqrae)
    picture = vqrae.detokenize(torch.full((1, 4), 5))
    plain = torch.stack(
        [vqrae.encode(vqrae.detokenize(torch.full((1, 4), k))).mean((0, 1)) for k in range(CODES)]
    )
    assert torch.allclose(plain[5], vqrae.encode(picture).mean((0, 1)), atol=1e-6)
    assert torch.allclose(meanings, (plain - plain.mean(0)) / plain.std(0), atol=1e-4)


def test_rows_start_near_what_they_replace():
    torch.manual_seed(0)
    meanings = torch.randn(200, 8)
    meanings = (meanings - meanings.mean(0)) / meanings.std(0)
    rows = meanings @ torch.randn(8, 6) + 3.0
    assert torch.allclose(CodeRows(meanings, rows)(), rows, atol=0.2)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_folding_changes_no_logit(family, tmp_path):
    model, processor = tiny_model(family)
    model.share_code_rows()
    with torch.no_grad():
        for rows in {model.input_rows, model.output_rows}:
            rows.map.weight.normal_()
    tied = model.config.tie_word_embeddings
    assert (model.input_rows is model.output_rows) == tied
    ids = torch.tensor([[1, processor.image_start_id, *range(processor.code_offset, 300)]])
    ids = ids[:, :12].clamp(max=processor.code_offset + CODES - 1)
    before = model(ids).logits
    model.fold_code_rows()
    assert torch.equal(model(ids).logits, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(UnifiedModel.from_pretrained(tmp_path)(ids).logits, before)


def test_frequent_codes_have_a_part_of_their_own():
    model, processor = tiny_model()
    config = UnifiedObjectiveConfig(code_rows="shared", cond_dropout=0.0)
    objective = UnifiedObjective(model, processor, config)
    images = [noise_image(0), noise_image(0), noise_image(1)]
    samples = [
        {"key": str(n), "task": "t2i", "image": image, "text": "a star"}
        for n, image in enumerate(images)
    ]
    batch = objective.collate(samples)
    objective.prepare(iter([batch]))
    counts = torch.bincount(model.vqrae.tokenize(batch["pixel_values"]).flatten(), minlength=CODES)
    expected = counts > 0.5 * counts.sum() / CODES
    assert torch.equal(model.output_rows.frequent[:, 0].bool(), expected)
    assert torch.equal(model.output_rows.seen, counts > 0)
    with torch.no_grad():
        model.output_rows.own.fill_(1.0)
    rows = model.output_rows()
    shared = model.output_rows.map(model.output_rows.meanings)
    assert torch.equal((rows - shared).abs().amax(1) > 0.5, expected)


def test_counting_ends_where_nothing_is_drawn():
    model, processor = tiny_model()
    objective = UnifiedObjective(model, processor, UnifiedObjectiveConfig(code_rows="shared"))
    [asked] = [s for s in SAMPLES if s["task"] == "vqa"]
    batch = objective.collate([asked] * 512)
    objective.prepare(batch for _ in range(10**9))
    assert not model.output_rows.frequent.any()


@pytest.mark.parametrize("free", [0.01, 1.0])
@pytest.mark.parametrize("mixture", [1, 3])
def test_unseen_codes_are_not_pushed_away_but_from_too_much(mixture, free, monkeypatch):
    monkeypatch.setattr("vqrae.mllm.modeling_unified._UNSEEN", free)
    model, _ = tiny_model(code_mixture=mixture)
    model.share_code_rows()
    model.output_rows.set_counts(torch.arange(CODES) % 2)  # odd codes only
    first = model.config.code_offset
    hidden = torch.randn(1, 3, model.config.text_config.hidden_size, requires_grad=True)
    labels = torch.tensor([[-100, first + 1, first + 2]])  # the second target is an unseen code
    _, found = model.losses(hidden, labels)
    logs = model.code_logits(hidden)[0, :2].log_softmax(-1)
    among = [k for k in range(CODES) if k % 2 or k == 2]
    expected = logs[:, among].logsumexp(-1) - logs[[0, 1], [1, 2]]
    unseen = [k for k in range(CODES) if k not in among]
    # Of one place in four: here the first.
    excess = (logs[0, unseen].exp().sum() - free).clamp(min=0)
    assert (excess > 0) == (free < 1)
    if mixture == 1:
        torch.testing.assert_close(found, expected + excess)
    found.sum().backward()
    assert hidden.grad.isfinite().all() and hidden.grad.abs().sum() > 0
    chances = model.code_logits(hidden, torch.tensor([k in among for k in range(CODES)])).softmax(
        -1
    )
    assert chances[..., unseen].max() == 0
    assert model.code_logits(hidden).softmax(-1)[..., unseen].min() > 0  # drawing has all codes


@pytest.mark.parametrize("mixture", [1, 3])
def test_codes_that_were_never_drawn_have_a_fifth_of_an_even_share_in_the_end(
    mixture, tmp_path, monkeypatch
):
    monkeypatch.setattr("vqrae.mllm.code_bias._BATCH", 5)
    torch.manual_seed(0)
    model, processor = tiny_model(code_mixture=mixture)
    samples = [
        {"key": str(n), "image": noise_image(n), "text": ["a star", "two red circles"][n % 2]}
        for n in range(7)
    ]
    bias = fit_code_bias(model, processor, samples, pictures=5)
    pixels = processor.image_processor([s["image"] for s in samples])["pixel_values"]
    drawn = torch.zeros(CODES, dtype=torch.bool)
    drawn[model.vqrae.tokenize(pixels).flatten()] = True
    assert drawn.any() and not drawn.all()
    assert (bias[drawn] == 0).all() and (bias[~drawn] != 0).all()
    config = UnifiedObjectiveConfig(cond_dropout=0.0, packed=False)
    objective = UnifiedObjective(model, processor, config)
    chances = []
    with torch.no_grad():
        model.code_bias = None
        batch = objective.collate([sample | {"task": "t2i"} for sample in samples[:5]])
        hidden, labels = objective.read(batch)
        for row in range(5):
            at = (labels[row, 1:] >= model.config.code_offset).nonzero()[:, 0]
            chances.append(model.code_logits(hidden[row, at]).softmax(-1))
        model.code_bias = bias
        logits = model.code_logits(hidden)
    mean = torch.cat(chances).mean(0)
    expected = torch.full_like(mean, 0.2 / CODES)
    torch.testing.assert_close((bias.exp() * mean)[~drawn], expected[~drawn], rtol=1e-4, atol=1e-7)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(UnifiedModel.from_pretrained(tmp_path).code_logits(hidden), logits)


def test_codes_that_are_never_drawn_learn_too():
    model, processor = tiny_model()
    objective = UnifiedObjective(model, processor, UnifiedObjectiveConfig(code_rows="shared"))
    batch = objective.collate([s | {"image": noise_image(0)} for s in SAMPLES if "image" in s])
    drawn = model.vqrae.tokenize(batch["pixel_values"]).unique()
    rows = model.output_rows().detach()
    groups = objective.param_groups()
    optimizer = torch.optim.SGD([{"params": g["params"]} for g in groups], lr=0.1)
    objective(batch, 0)[0].backward()
    optimizer.step()
    moved = (model.output_rows().detach() - rows).norm(dim=1)
    never = [k for k in range(CODES) if k not in drawn.tolist()]
    assert never and (moved[never] > 0).all()
    assert {"code_rows", "code_rows_no_decay"} <= {g["name"] for g in groups}
