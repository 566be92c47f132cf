"""SigLIP pretraining: the loss against the plain formula, and wrong captions that stay fair."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SiglipConfig, SiglipModel
from vqrae.data import Augment, train_text_tokenizer
from vqrae.tokenizer import VFMLossConfig, VFMObjective

SHAPES, COLORS = ["star", "ring", "heart"], ["red", "blue", "green"]
# "green ring" stands nowhere in it.
CORPUS = [f"a {c} {s}" for c in COLORS for s in SHAPES if (c, s) != ("green", "ring")]


@pytest.fixture
def objective():
    torch.manual_seed(0)
    text = train_text_tokenizer(CORPUS * 20, 300)
    tower = dict(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1
    )  # fmt: skip
    config = SiglipConfig(
        text_config=dict(tower, vocab_size=len(text), max_position_embeddings=12),
        vision_config=dict(tower, image_size=32, patch_size=16),
    )

    def make(**loss):
        model = SiglipModel(config)
        return VFMObjective(model, text, VFMLossConfig(**loss), [SHAPES, COLORS], CORPUS)

    return make


def samples(count: int, texts: int = len(CORPUS)) -> list[dict]:
    captions = [CORPUS[index % texts] for index in range(count)]
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    return [{"key": str(i), "image": image, "text": text} for i, text in enumerate(captions)]


def test_wrong_captions_differ_in_one_word_and_hold_no_unseen_pair(objective):
    made = objective(hard_negatives=1)
    torch.manual_seed(1)
    reached = set()
    for text in CORPUS * 40:
        wrong = made._exchange(text)
        changed = [a for a, b in zip(text.split(), wrong.split(), strict=True) if a != b]
        assert len(changed) == 1 and "green ring" not in wrong
        reached.add(wrong)
    assert reached == set(CORPUS)
    assert made._exchange("nothing to exchange") == "nothing to exchange"


@pytest.mark.parametrize("positives", ["own", "same_text"])
def test_loss_is_the_sigmoid_loss_of_every_pair(positives, objective):
    made = objective(hard_negatives=2, positives=positives)
    torch.manual_seed(2)
    # The first caption is the fifth, too, and the second the sixth.
    batch = made.collate(samples(6, texts=4))
    loss, logs = made(batch, 0)
    model = made.model
    out = model(input_ids=batch["input_ids"], pixel_values=batch["pixels"])
    scale, bias, total = model.logit_scale.exp(), model.logit_bias, 0.0
    for i, image in enumerate(out.image_embeds):
        for j in range(6):
            logit = image @ out.text_embeds[j] * scale + bias
            right = i == j if positives == "own" else i % 4 == j % 4
            total = total - F.logsigmoid(logit if right else -logit)
        for j in (6 + 2 * i, 7 + 2 * i):
            total = total - F.logsigmoid(-(image @ out.text_embeds[j] * scale + bias))
    torch.testing.assert_close(loss, total.squeeze() / 6)
    assert batch["wrong"].all() and 0 < logs["hard"] < loss


def test_pictures_are_augmented_by_the_keys(objective):
    plain, moved = objective(), objective(augment=Augment(mirror=True, shift=0.25))
    given = samples(8)
    batches = [made.collate(given)["pixels"] for made in (plain, moved, moved)]
    assert not torch.equal(batches[0], batches[1]) and torch.equal(batches[1], batches[2])


def test_hard_negatives_need_words():
    with pytest.raises(ValueError, match="needs word_groups"):
        VFMObjective(None, None, VFMLossConfig(hard_negatives=1))
