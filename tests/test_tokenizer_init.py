"""What stage 1 starts from: k-means where there is something to see, projections from pixels."""

import pytest
import torch
import torch.nn.functional as F
from transformers import SiglipVisionConfig
from vqrae.tokenizer import TokenizerLossConfig, TokenizerObjective, VQRAEConfig, VQRAEModel
from vqrae.tokenizer.codebook_init import initialise_codebook, patch_contrast
from vqrae.tokenizer.projection_init import PixelRegression, initialise_projections


def tiny(**fields) -> VQRAEModel:
    torch.manual_seed(0)
    encoder = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        image_size=8, patch_size=4,
    )  # fmt: skip
    fields = {"codebook_size": 20, "code_dim": 12} | fields
    return VQRAEModel(VQRAEConfig(encoder_config=encoder, **fields))


def pictures(count: int = 64) -> torch.Tensor:
    """Patches of one colour each."""
    return F.interpolate(torch.rand(count, 3, 2, 2), scale_factor=4)


def test_patches_are_what_the_decoder_lays_out():
    model, pixels = tiny(), pictures(3)
    patches = model.decoder.patches(pixels)
    assert patches.shape == (3, 4, 48)
    torch.testing.assert_close(patches[1, 2].view(4, 4, 3), pixels[1, :, 4:, :4].permute(1, 2, 0))
    model.decoder.to_pixels = torch.nn.Identity()
    model.decoder.hidden = lambda tokens, grid: tokens
    assert torch.equal(model.decoder(patches), pixels)


def test_contrast_is_of_one_patch_and_steers_kmeans():
    pixels = torch.full((1, 3, 8, 8), 0.5)
    pixels[0, :, :4, 4:] = torch.rand(3, 4, 4)
    model = tiny()
    contrast = patch_contrast(model.decoder.patches(pixels)[0])
    assert contrast.shape == (4,) and contrast[1] > 0.1 and contrast[[0, 2, 3]].max() < 1e-6

    features = torch.randn(2000, 8)
    features[:100] += 12  # few objects, much dull background, both spread alike
    objects = torch.zeros(2000)
    objects[:100] = 1.0

    def codes_on_objects(weights):
        initialise_codebook(model, features, weights, tokens=2000)
        return len(model.quantize_features(features[None, :100]).unique())

    assert codes_on_objects(objects) > 2 * codes_on_objects(None)


def test_regression_over_batches_is_least_squares_over_all():
    torch.manual_seed(1)
    x, y = torch.randn(300, 8) * 3 + 1, torch.randn(300, 48)
    fit = PixelRegression()
    for part_x, part_y in zip(x.split(70), y.split(70), strict=True):
        fit.add(part_x, part_y)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    plain = torch.linalg.lstsq(z, (y - y.mean(0)).double()).solution
    torch.testing.assert_close(fit.regression(ridge=0), plain)


@pytest.mark.parametrize("code_dim", [5, 12])
def test_latents_start_as_uncorrelated_pixel_components(code_dim):
    model, pixels = tiny(code_dim=code_dim), pictures()
    features = model.encode(pixels).flatten(0, 1).detach()
    fit = PixelRegression()
    fit.add(features, model.decoder.patches(pixels).flatten(0, 1))
    model.feature_mean.copy_(fit.mean())
    model.feature_std.copy_(fit.std())
    initialise_projections(model, fit, flatten=0.4)
    latents = model.to_latents(features[None])[0]
    spread = torch.linalg.eigvalsh(torch.cov(latents.T)).flip(0)
    _, variances = fit.components(0.4)
    rank = min(code_dim, len(variances))
    # cov divides by M - 1
    expected = variances[:rank].float() * len(features) / (len(features) - 1)
    torch.testing.assert_close(spread[:rank], expected, rtol=1e-3, atol=1e-4)
    if code_dim > len(variances) == 8:  # nothing is lost: the way back is exact
        standard = (features - fit.mean()) / fit.std()
        torch.testing.assert_close(model.project_out(latents), standard.float(), rtol=0, atol=0.05)


def test_the_untrained_decoder_draws_already():
    model, pixels = tiny(codebook_size=32), pictures(128)
    config = TokenizerLossConfig(projection_init="pixels", codebook_init_images=128)
    TokenizerObjective(model, config, steps=10).prepare(iter([{"pixels": pixels}]))
    error = F.mse_loss(model.detokenize(model.tokenize(pixels)), pixels)
    mean = F.mse_loss(pixels.mean(0, keepdim=True).expand_as(pixels), pixels)
    assert error < 0.5 * mean


def test_pixels_need_kmeans():
    config = TokenizerLossConfig(projection_init="pixels", codebook_init="random")
    with pytest.raises(ValueError, match="projection_init=pixels needs codebook_init=kmeans"):
        TokenizerObjective(tiny(), config, steps=10)
