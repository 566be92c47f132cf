"""Filters against a plain reference, and drawing codes: cache, neighbours, guidance, seeds."""

from __future__ import annotations

import math

import pytest
import torch
from test_mllm_parts import CODES, FAMILIES, noise_image, tiny_model
from vqrae.generation import (
    codes_to_images,
    draw,
    features_of,
    filter_logits,
    partial_images,
    sample_codes,
)
from vqrae.generation.guidance import SCHEDULES
from vqrae.generation.sampling import pick, uniforms_for

PROMPTS = ["a", "a red circle above a blue square", "circle circle"]


def plain_filter(logits, temperature, top_k, top_p):
    """One row at a time, in plain Python."""
    kept = torch.full_like(logits, -torch.inf)
    for row, values in enumerate(logits / temperature):
        order = sorted(range(len(values)), key=lambda i: -float(values[i]))
        order = order[: top_k or len(order)]
        shares = values[order].softmax(0).tolist()
        total = 0.0
        for index, share in zip(order, shares, strict=True):
            if top_p < 1 and total >= top_p:
                break
            kept[row, index] = values[index]
            total += share
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50])
@pytest.mark.parametrize("top_p", [0.05, 0.7, 1.0])
def test_filter_equals_a_plain_reference(temperature, top_k, top_p):
    torch.manual_seed(top_k)
    logits = 3 * torch.randn(8, 20)
    ours = filter_logits(logits, temperature, top_k, top_p)
    torch.testing.assert_close(ours, plain_filter(logits, temperature, top_k, top_p))


def test_pick_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).expand(20_000, 4)
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = pick(logits, uniforms).bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.015, rtol=0)
    # The ends of the range stay inside what is possible.
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    rows = torch.tensor([-torch.inf, 1.0, 1.0, -torch.inf]).expand(2, 4)
    assert pick(rows, ends).tolist() == [1, 2]
    assert pick(rows, ends, temperature=0).tolist() == [1, 1]
    assert (pick(torch.full((2, 4), torch.nan), ends) < 4).all()


def test_numbers_belong_to_their_seed():
    together = uniforms_for([3, 4, 5], 6)
    assert torch.equal(together[1], uniforms_for([4], 6)[0])
    assert torch.equal(together[1, :2], uniforms_for([4], 2)[0])


OPTIONS = {family: {} for family in FAMILIES}
OPTIONS["qwen3 with all"] = {"code_positions": True, "code_mixture": 3}


@pytest.fixture(scope="module", params=OPTIONS)
def parts(request):
    model, processor = tiny_model(request.param.split()[0], **OPTIONS[request.param])
    prompts = [processor.encode_draw(text) for text in PROMPTS]
    return model, processor, prompts, processor.encode_draw(unconditional=True)


WAYS = [
    {"temperature": 0},
    {"temperature": 0, "guidance_scale": 1.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 10, "top_p": 0.9, "guidance_scale": 5.0, "min_p": 0.5},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_cached_equals_uncached_and_alone_equals_together(parts, way):
    model, _, prompts, unconditional = parts
    seeds = [11, 12, 13]
    codes = sample_codes(model, prompts, unconditional, seeds=seeds, **way)
    assert codes.shape == (3, 4) and codes.min() >= 0 and codes.max() < CODES
    full = sample_codes(model, prompts, unconditional, seeds=seeds, cache=False, **way)
    assert torch.equal(codes, full)
    alone = [
        sample_codes(model, [prompt], unconditional, seeds=[seed], **way)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert torch.equal(codes, torch.cat(alone))


def test_guided_sampling_equals_plain_forwards(parts):
    """No batching, padding, masks or cache of ours: two whole forwards for each code."""
    model, _, prompts, unconditional = parts
    offset = model.config.code_offset
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            codes = []
            for _ in range(4):
                cond, uncond = (
                    model(torch.tensor([[*ids, *codes]])).logits[0, -1, offset:]
                    for ids in (prompt, unconditional)
                )
                guided = uncond + 2.5 * (cond - uncond)
                guided[cond.softmax(-1) < 0.9 * cond.softmax(-1).max()] = -torch.inf
                codes.append(offset + int(guided.argmax()))
            expected.append([code - offset for code in codes])
    ours = sample_codes(model, prompts, unconditional, guidance_scale=2.5, temperature=0, min_p=0.9)
    assert ours.tolist() == expected


def test_a_model_draws_as_its_config_says_unless_told_otherwise(tmp_path):
    model, processor = tiny_model()
    prompts, unconditional = [processor.encode_draw("a")], processor.encode_draw(unconditional=True)
    plain = sample_codes(model, prompts, unconditional)
    model.config.guidance_scale, model.config.min_p = 6.0, 0.97
    told = {"guidance_scale": 6.0, "min_p": 0.97}
    own = sample_codes(model, prompts, unconditional)
    assert torch.equal(own, sample_codes(model, prompts, unconditional, **told))
    assert not torch.equal(own, plain)
    told = {"guidance_scale": 3.0, "min_p": 0.0}
    assert torch.equal(plain, sample_codes(model, prompts, unconditional, **told))
    model.save_pretrained(tmp_path)
    config = type(model.config).from_pretrained(tmp_path)
    assert (config.guidance_scale, config.min_p) == (6.0, 0.97)


def test_prompts_that_look_at_pictures(parts):
    model, processor, _, unconditional = parts
    features = features_of(model, processor, [noise_image(0), noise_image(1)])
    texts = ["<image> draw it", "<image> and then draw what you see in it"]
    prompts = [
        [*processor.encode_chat([{"role": "user", "content": text}], 1), processor.image_start_id]
        for text in texts
    ]
    both = sample_codes(model, prompts, unconditional, seeds=5, features=features)
    second = sample_codes(model, prompts[1:], unconditional, seeds=6, features=features[1:])
    assert torch.equal(both[1:], second)


def test_no_second_half_without_guidance(parts):
    model, _, prompts, unconditional = parts
    sizes = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    sample_codes(model, prompts, unconditional, guidance_scale=1.0)
    sample_codes(model, prompts, unconditional, guidance_scale=2.0)
    hook.remove()
    # The other half is the same for all until the first code: read once.
    assert sizes == [3] * 4 + [4] + [6] * 3


SCALES = [1.0, 3.0, 6.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5), (0.25, 0.75)])
def test_guidance_of_each_picture_and_step(parts, schedule, interval):
    """Together as alone, and as two plain forwards for each code."""
    model, _, prompts, unconditional = parts
    way = {"guidance_schedule": schedule, "guidance_interval": interval, "temperature": 0}
    codes = sample_codes(model, prompts, unconditional, guidance_scale=SCALES, **way)
    offset, expected = model.config.code_offset, []
    for prompt, scale in zip(prompts, SCALES, strict=True):
        alone = sample_codes(model, [prompt], unconditional, guidance_scale=scale, **way)
        expected.append(alone)
        drawn = []
        for step, share in enumerate((0, 1 / 3, 2 / 3, 1)):
            share = {"constant": 1, "linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2}[
                schedule
            ]
            inside = interval[0] <= step / 4 < interval[1]
            with torch.no_grad():
                own, other = (
                    model(torch.tensor([[*ids, *drawn]])).logits[0, -1, offset:]
                    for ids in (prompt, unconditional)
                )
            strength = 1 + (scale - 1) * share if inside else 1
            drawn.append(offset + int((other + strength * (own - other)).argmax()))
        assert [code - offset for code in drawn] == alone[0].tolist()
    assert torch.equal(codes, torch.cat(expected))


def test_the_second_half_goes_where_guidance_ends(parts):
    model, _, prompts, unconditional = parts
    sizes = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    sample_codes(model, prompts, unconditional, guidance_scale=2.0, guidance_interval=(0, 0.5))
    sample_codes(model, prompts, unconditional, guidance_scale=[1.0, 2.0, 1.0])
    hook.remove()
    # A code is embedded in the step that chose it, before the next one drops the half.
    assert sizes == [4, 6, 6, 3] + [4] * 4


def test_one_can_watch(parts):
    model, processor, prompts, unconditional = parts
    seen = []
    codes = sample_codes(model, prompts, unconditional, watch=lambda so_far: seen.append(so_far))
    assert [part.shape for part in seen] == [(3, 1), (3, 2), (3, 3), (3, 4)]
    assert torch.equal(seen[-1], codes)
    early, whole = (partial_images(model, processor, codes[:, :n]) for n in (1, 4))
    assert [i.tobytes() for i in whole] == [
        i.tobytes() for i in codes_to_images(model, processor, codes)
    ]
    assert early[0].getpixel((31, 31)) == (208, 208, 208) != early[0].getpixel((3, 3))
    shown = []
    pictures = draw(
        model, processor, "a", n=2, watch_every=3, watch=lambda *state: shown.append(state)
    )
    assert [(len(images), done) for images, done in shown] == [(2, 3)] and len(pictures[0]) == 2


def test_a_seed_gives_the_same_picture_at_any_batch_size(parts):
    model, processor, *_ = parts
    options = {"n": 3, "seed": 7}
    whole = draw(model, processor, PROMPTS, **options)
    done = []
    parted = draw(
        model, processor, PROMPTS, batch_size=2, progress=lambda *a: done.append(a), **options
    )
    alone = draw(model, processor, PROMPTS[1], n=2, seed=8)
    flat = [image.tobytes() for row in whole for image in row]
    assert flat == [image.tobytes() for row in parted for image in row]
    assert flat[4:6] == [image.tobytes() for image in alone[0]]
    assert len(set(flat)) > 3 and whole[0][0].size == (32, 32)
    assert done[:5] == [(2, 36), (4, 36), (6, 36), (8, 36), (10, 36)] and done[-1] == (36, 36)


def test_sampling_leaves_the_mode_as_it_was(parts):
    model, _, prompts, unconditional = parts
    model.train()
    sample_codes(model, prompts[:1], unconditional)
    assert model.training and not model.vqrae.training
    model.eval()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.5},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"n": 0},
        {"batch_size": 0},
        {"guidance_scale": -1.0},
        {"guidance_schedule": "quadratic"},
        {"guidance_interval": (0.5, 0.25)},
        {"watch_every": 0},
    ],
    ids=str,
)
def test_bad_arguments_name_the_value(parts, bad):
    model, processor, *_ = parts
    ((name, value),) = bad.items()
    last = value[-1] if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=f"{name} must .*{last}"):
        draw(model, processor, "a", **bad)


def test_bad_prompts_and_seeds(parts):
    model, processor, prompts, unconditional = parts
    with pytest.raises(ValueError, match="prompt is empty"):
        draw(model, processor, ["a", ""])
    with pytest.raises(ValueError, match="2 seeds were given for 3 pictures"):
        sample_codes(model, prompts, unconditional, seeds=[1, 2])
    with pytest.raises(ValueError, match="2 guidance scales were given for 3 pictures"):
        sample_codes(model, prompts, unconditional, guidance_scale=[1, 2])
    with pytest.raises(ValueError, match="2 guidance scales were given for 1 prompts"):
        draw(model, processor, "a", n=2, guidance_scale=[1, 2])
    with pytest.raises(ValueError, match="no prompts"):
        sample_codes(model, [], unconditional)
