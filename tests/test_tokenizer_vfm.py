"""SigLIP pretraining: the loss against the plain formula, and wrong captions that stay fair."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SiglipConfig, SiglipModel
from vqrae.data import train_text_tokenizer
from vqrae.tokenizer import VFMLossConfig, VFMObjective
from vqrae.tokenizer.codebook_init import initialise_from_features, patch_contrast
from vqrae.tokenizer.modeling_vqrae import VQRAEModel

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


def samples(count: int) -> list[dict]:
    captions = [CORPUS[index % len(CORPUS)] for index in range(count)]
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


def test_loss_is_the_sigmoid_loss_of_every_pair(objective):
    made = objective(hard_negatives=2)
    torch.manual_seed(2)
    batch = made.collate(samples(6))
    loss, logs = made(batch, 0)
    model = made.model
    out = model(input_ids=batch["input_ids"], pixel_values=batch["pixels"])
    scale, bias, total = model.logit_scale.exp(), model.logit_bias, 0.0
    for i, image in enumerate(out.image_embeds):
        for j in range(6):
            logit = image @ out.text_embeds[j] * scale + bias
            total = total - F.logsigmoid(logit if i == j else -logit)
        for j in (6 + 2 * i, 7 + 2 * i):
            total = total - F.logsigmoid(-(image @ out.text_embeds[j] * scale + bias))
    torch.testing.assert_close(loss, total.squeeze() / 6)
    assert batch["wrong"].all() and 0 < logs["hard"] < loss


def test_hard_negatives_need_words():
    with pytest.raises(ValueError, match="needs word_groups"):
        VFMObjective(None, None, VFMLossConfig(hard_negatives=1))


def test_contrast_is_each_patch_own_and_steers_kmeans():
    pixels = torch.full((1, 3, 32, 32), 0.5)
    pixels[0, :, :16, 16:] = torch.rand(3, 16, 16)
    contrast = patch_contrast(pixels, 16)
    assert contrast.shape == (1, 4) and contrast.argmax() == 1
    assert contrast[0, [0, 2, 3]].abs().max() < 1e-6

    from transformers import SiglipVisionConfig

    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=32, patch_size=16,
    )  # fmt: skip
    from vqrae.tokenizer.configuration_vqrae import VQRAEConfig

    model = VQRAEModel(VQRAEConfig(encoder_config=config, codebook_size=20, code_dim=8))
    torch.manual_seed(3)
    # Much dull background, few objects; both spread alike.
    features = torch.randn(2000, 8)
    features[:100] += 12
    dull = torch.full((2000,), 0.0)
    objects = dull.clone()
    objects[:100] = 1.0

    def codes_on_objects(weights):
        initialise_from_features(model, features, weights, tokens=2000)
        return len(model.quantize_features(features[None, :100]).unique())

    assert codes_on_objects(objects) > codes_on_objects(None)
