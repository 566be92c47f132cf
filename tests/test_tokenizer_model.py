"""The tokenizer model: parity with its encoder, round trips, gradients of the two stages."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from vqrae.tokenizer import (
    TokenizerLossConfig,
    TokenizerObjective,
    VQRAEConfig,
    VQRAEImageProcessor,
    VQRAEModel,
    load_vfm,
)

VISION = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=64,
    patch_size=16,
)
TEXT = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=16,
    bos_token_id=0,
    eos_token_id=1,
)


@pytest.fixture(scope="module")
def vfm(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vfm")
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).eval()
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def tokenizer(vfm):
    torch.manual_seed(1)
    return VQRAEModel.from_vfm(str(vfm[0]), codebook_size=32, code_dim=48).eval()


def batch(model, count=4):
    pixels = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return {"keys": [str(i) for i in range(count)], "pixels": pixels}


def test_encode_equals_the_vision_towers_own_output(vfm, tokenizer):
    pixels = batch(tokenizer)["pixels"]
    expected = vfm[1].vision_model((pixels - 0.5) / 0.5).last_hidden_state
    torch.testing.assert_close(tokenizer.encode(pixels), expected)


def test_a_lone_vision_tower_loads_like_a_dual_encoder(tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(tmp_path)
    assert isinstance(load_vfm(tmp_path), SiglipVisionModel)


def test_decoder_mirrors_the_encoder(tokenizer):
    blocks = tokenizer.decoder.blocks.layers
    assert len(blocks) == len(tokenizer.encoder.encoder.layers)
    ours = [tuple(p.shape) for p in blocks.parameters()]
    assert ours == [tuple(p.shape) for p in tokenizer.encoder.encoder.layers.parameters()]
    assert not any(isinstance(m, torch.nn.Conv2d) for m in tokenizer.decoder.modules())


def test_detokenize_of_tokenize_is_the_reconstruction(tokenizer):
    pixels = batch(tokenizer)["pixels"]
    with torch.no_grad():
        out = tokenizer(pixels)
    codes = tokenizer.tokenize(pixels)
    assert codes.shape == (4, 16) and codes.dtype == torch.int64
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(tokenizer.detokenize(codes), out.reconstruction.clamp(0, 1))


def test_each_decoder_patch_lands_at_its_own_place(tokenizer):
    """With the blocks silenced, token i fills patch i, row by row."""
    with torch.no_grad():
        for parameter in tokenizer.decoder.blocks.parameters():
            parameter.zero_()
        tokenizer.decoder.position.zero_()
        tokens = torch.randn(1, 16, 32)
        image = tokenizer.decoder(tokens)
        patch = tokenizer.decoder.to_pixels(tokenizer.decoder.norm(tokens[0, 6]))
    expected = patch.view(16, 16, 3).permute(2, 0, 1)
    torch.testing.assert_close(image[0, :, 16:32, 32:48], expected)


def test_round_trip_is_bit_for_bit(tokenizer, tmp_path):
    with torch.no_grad():
        tokenizer.feature_mean.normal_()
        tokenizer.quantizer.transform.normal_()
    tokenizer.save_pretrained(tmp_path)
    VQRAEImageProcessor(64).save_pretrained(tmp_path)
    codes = tokenizer.tokenize(batch(tokenizer)["pixels"])
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    for cls in (VQRAEModel, AutoModel):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is VQRAEModel
        state = loaded.state_dict()
        assert state.keys() == tokenizer.state_dict().keys()
        assert all(torch.equal(v, state[k]) for k, v in tokenizer.state_dict().items())
        assert torch.equal(loaded.tokenize(batch(loaded)["pixels"]), codes)
    assert AutoImageProcessor.from_pretrained(tmp_path).image_size == 64


def test_image_processor_crops_the_centre_and_scales_to_one():
    image = Image.new("RGB", (128, 64), (0, 0, 0))
    image.paste((255, 0, 0), (32, 0, 96, 64))
    pixels = VQRAEImageProcessor(64)(image)["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    assert torch.equal(pixels[0, 0], torch.ones(64, 64))
    [back] = VQRAEImageProcessor.to_images(pixels)
    assert back.getpixel((10, 10)) == (255, 0, 0)
    with pytest.raises(ValueError, match="expected a PIL picture, not str"):
        VQRAEImageProcessor(64)("scene.png")


def gradients(model, stage, **fields):
    config = TokenizerLossConfig(stage=stage, codebook_init="random", **fields)
    objective = TokenizerObjective(model, config, steps=10)
    loss, logs = objective(batch(model), 0)
    loss.backward()
    return objective, logs


def test_turned_channels_are_turned_the_same_again(tokenizer):
    config = TokenizerLossConfig(codebook_init="random", turn_channels=True)
    objective = TokenizerObjective(tokenizer, config, steps=10)
    rgb = (200, 100, 0)
    samples = [{"key": str(n), "image": Image.new("RGB", (64, 64), rgb)} for n in range(40)]
    pixels = objective.collate(samples)["pixels"]
    assert torch.equal(pixels, objective.collate(samples)["pixels"])
    seen = {tuple(p[:, 0, 0].mul(255).round().int().tolist()) for p in pixels}
    assert seen == {(200, 100, 0), (0, 200, 100), (100, 0, 200)}


def test_stage_1_leaves_the_encoder_alone(tokenizer):
    objective, _ = gradients(tokenizer, 1)
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
    trained = {id(p) for g in objective.param_groups() for p in g["params"]}
    assert trained == {id(p) for p in tokenizer.parameters() if p.requires_grad}
    for part in (tokenizer.project_in, tokenizer.quantizer, tokenizer.decoder):
        assert all(p.grad is not None for p in part.parameters())


def test_stage_2_reaches_the_encoder_through_the_codes(tokenizer):
    """Without distillation the straight-through path alone must carry the gradient."""
    objective, logs = gradients(tokenizer, 2, distillation_weight=0.0)
    assert logs["distillation"] == 0  # the teacher starts as the encoder itself
    assert all(p.grad is not None for p in tokenizer.encoder.parameters())
    assert tokenizer.encoder.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    trained = {id(p) for g in objective.param_groups() for p in g["params"]}
    assert trained == {id(p) for p in tokenizer.parameters()}


def test_the_teacher_stays_when_the_encoder_moves(tokenizer):
    objective = TokenizerObjective(
        tokenizer, TokenizerLossConfig(stage=2, codebook_init="random"), steps=10
    )
    with torch.no_grad():
        tokenizer.encoder.post_layernorm.bias.add_(1.0)
    _, logs = objective(batch(tokenizer), 0)
    assert float(logs["distillation"]) == pytest.approx(1.0, rel=1e-4)


def test_the_critic_starts_at_its_step_and_takes_no_gradient_from_the_generator(tokenizer):
    config = TokenizerLossConfig(
        stage=1, adversarial_start=5, critic_width=4, codebook_init="random", lecam_weight=0.5
    )
    objective = TokenizerObjective(tokenizer, config, steps=10)
    assert not any("critic" in name for name, _ in objective.named_parameters())
    assert not objective.critic_active(4) and objective.critic_active(5)
    _, logs = objective(batch(tokenizer), 4)
    assert "adversarial" not in logs
    loss, logs = objective(batch(tokenizer), 5)
    fake, real = objective._stash["image"], batch(tokenizer)["pixels"]
    torch.testing.assert_close(logs["adversarial"], -objective.critic(fake).mean())
    critic_loss, _ = objective.critic_loss(batch(tokenizer), 5)
    expected = (
        (1 - objective.critic(real)).clamp(min=0).mean()
        + (1 + objective.critic(fake)).clamp(min=0).mean()
    ) / 2
    reals, fakes = objective.critic(real).detach(), objective.critic(fake).detach()
    past_real = past_fake = 0.0
    for _ in range(2):
        lecam = (reals - past_fake).relu().square().mean()
        lecam = lecam + (past_real - fakes).relu().square().mean()
        torch.testing.assert_close(critic_loss, expected + 0.5 * lecam)
        past_real, past_fake = 0.999 * past_real, 0.999 * past_fake
        past_real, past_fake = past_real + 0.001 * reals.mean(), past_fake + 0.001 * fakes.mean()
        critic_loss, _ = objective.critic_loss(batch(tokenizer), 5)
    again = TokenizerObjective(tokenizer, config, steps=10)
    again.load_extra_state(objective.extra_state() | {"usage": []})
    assert (again.lecam.real, again.lecam.fake) == (objective.lecam.real, objective.lecam.fake)


def test_kmeans_start_uses_almost_every_code(tokenizer):
    objective = TokenizerObjective(
        tokenizer, TokenizerLossConfig(codebook_init_images=40), steps=10
    )
    pixels = torch.rand(48, 3, 64, 64) * torch.rand(48, 1, 1, 1)
    objective.prepare(iter([{"keys": [], "pixels": pixels}]))
    codes = tokenizer.tokenize(pixels)
    assert codes.unique().numel() >= 0.9 * 32
    latents = tokenizer.to_latents(tokenizer.encode(pixels))
    normalised = (tokenizer.encode(pixels) - tokenizer.feature_mean) / tokenizer.feature_std
    # The projection is an isometry: distances between codes are distances between features.
    torch.testing.assert_close(
        latents.flatten(0, 1).norm(dim=-1), normalised.flatten(0, 1).norm(dim=-1)
    )


def test_vfm_perceptual_is_zero_for_the_same_picture_and_has_a_gradient(vfm, tokenizer):
    _, logs = gradients(tokenizer, 1, perceptual="vfm", perceptual_path=str(vfm[0]))
    assert logs["perceptual"] > 0
    from vqrae.tokenizer.perceptual import build_perceptual

    net = build_perceptual("vfm", vfm[0], 2)
    pixels = batch(tokenizer)["pixels"].requires_grad_()
    assert net(pixels, pixels.detach()) == 0
    net(pixels, torch.rand(4, 3, 64, 64)).backward()
    assert pixels.grad.abs().sum() > 0
    # Another size than the VFM's own: its positions are interpolated.
    assert net(torch.rand(1, 3, 96, 64), torch.rand(1, 3, 96, 64)) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, d: VQRAEConfig(codbook_size=3), "did you mean 'codebook_size'"),
        (lambda t, d: VQRAEModel.from_pretrained(d / "no"), "there is no folder .*no"),
        (lambda t, d: load_vfm("google/siglip2-so400m-patch16-256"), "cannot load the encoder"),
        (lambda t, d: t.encode(torch.rand(1, 3, 32, 30)), r"do not fit this tokenizer"),
        (lambda t, d: t.detokenize(torch.full((1, 16), 32)), "do not fit a codebook of 32"),
        (lambda t, d: t.detokenize(torch.zeros(1, 9).long()), r"are not \(B, 16\)"),
        (lambda t, d: gradients(t, 1, perceptual="lpips"), "needs perceptual_path"),
    ],
)
def test_user_mistakes_are_one_line(tokenizer, tmp_path, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(tokenizer, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_missing_keys_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["project_in.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, 'project_in.bias' first") as caught:
        VQRAEModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
