"""Every family of vision encoders: our features against the library's own, and round trips."""

import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    InternVLConfig,
    InternVLModel,
    InternVLVisionConfig,
    Qwen3Config,
    ResNetConfig,
    SiglipVisionConfig,
    TimmWrapperConfig,
)
from vqrae.tokenizer import (
    TokenizerLossConfig,
    TokenizerObjective,
    VQRAEImageProcessor,
    VQRAEModel,
    load_vfm,
)
from vqrae.tokenizer._encoder_families import FAMILIES

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
PLAIN = dict(SIZES, intermediate_size=64, image_size=32, patch_size=8)
TIMM = dict(img_size=32, patch_size=8, depth=3, embed_dim=32, num_heads=2, mlp_ratio=2)
# name: (config, tokens before the patches, name of the final norm)
ENCODERS = {
    "siglip": (SiglipVisionConfig(**PLAIN), 0, "post_layernorm"),
    "clip": (CLIPVisionConfig(**PLAIN), 1, "post_layernorm"),
    "internvit": (InternVLVisionConfig(**{**PLAIN, "use_mean_pooling": False}), 1, "layernorm"),
    "internvit-no-norm": (InternVLVisionConfig(**PLAIN), 1, None),
    "dinov2": (Dinov2Config(**SIZES, image_size=32, patch_size=8, mlp_ratio=2), 1, "layernorm"),
    "dinov2-registers": (
        Dinov2WithRegistersConfig(**SIZES, image_size=32, patch_size=8, mlp_ratio=2),
        5,
        "layernorm",
    ),
    "dinov3": (DINOv3ViTConfig(**PLAIN, num_register_tokens=3), 4, "norm"),
    "timm": (
        TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TIMM),
        1,
        "timm_model.norm",
    ),
    "timm-siglip": (
        TimmWrapperConfig(architecture="vit_base_patch16_siglip_224", model_args=TIMM),
        0,
        "timm_model.norm",
    ),
}


def pixels(height=32, width=32):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request, tmp_path_factory):
    """The library's model with random weights, its folder, tokens to drop, its norm's name."""
    config, prefix, norm = ENCODERS[request.param]
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too must show that they are there
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, str(folder), prefix, norm


def tokenizer(folder, **fields):
    torch.manual_seed(1)
    mean_std = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.5,) * 3}
    return VQRAEModel.from_vfm(folder, codebook_size=16, code_dim=40, **mean_std, **fields).eval()


def of_layer(model, layer, shown):
    """The library's hidden states after `layer`, by a hook, without any later norm."""
    kept = []
    layers = model.get_submodule(FAMILIES[model.config.model_type].layers)
    hook = layers[layer].register_forward_hook(lambda _, __, out: kept.append(out))
    model((shown - 0.5) / 0.5)
    hook.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


@torch.no_grad()
def test_features_are_the_library_s(encoder):
    model, folder, prefix, _ = encoder
    ours, shown = tokenizer(folder), pixels()
    expected = model((shown - 0.5) / 0.5).last_hidden_state[:, prefix:]
    torch.testing.assert_close(ours.encode(shown), expected)
    geometry = ours.config.geometry
    assert (geometry.grid, geometry.width, geometry.depth) == (4, 32, 3)
    assert (geometry.heads, geometry.mlp_width, geometry.patch_size) == (2, 64, 8)


@torch.no_grad()
def test_layer_and_norm_can_be_chosen(encoder):
    model, folder, prefix, norm = encoder
    shown = pixels()
    for layer, index in ((-2, 1), (-1, 2), (1, 0)):
        ours = tokenizer(folder, encoder_layer=layer, final_norm="none")
        assert ours.config.geometry.depth == index + 1 == len(ours.decoder.blocks.layers)
        expected = of_layer(model, index, shown)[:, prefix:]
        torch.testing.assert_close(ours.encode(shown), expected)
    last = of_layer(model, 2, shown)[:, prefix:]
    if norm is None:
        with pytest.raises(ValueError, match="no final norm of its own"):
            tokenizer(folder, final_norm="affine")
        eps = model.config.layer_norm_eps
    else:
        module = model.get_submodule(norm)
        torch.testing.assert_close(
            tokenizer(folder, final_norm="affine").encode(shown), module(last)
        )
        eps = module.eps
    plain = torch.nn.functional.layer_norm(last, (32,), eps=eps)
    torch.testing.assert_close(tokenizer(folder, final_norm="plain").encode(shown), plain)
    with pytest.raises(ValueError, match=r"encoder_layer 4 does not exist: .* 3 layers"):
        tokenizer(folder, encoder_layer=4)


def test_round_trip_and_every_parameter_learns(encoder, tmp_path):
    _, folder, _, _ = encoder
    ours = tokenizer(folder, encoder_layer=-2, final_norm="plain", image_size=48)
    ours.save_pretrained(tmp_path / "saved")
    again = VQRAEModel.from_pretrained(tmp_path / "saved").eval()
    shown = pixels(48, 48)
    assert again.config.num_image_tokens == 36
    assert torch.equal(again.encode(shown), ours.encode(shown))
    objective = TokenizerObjective(again, TokenizerLossConfig(stage=2, perceptual="none"), 10)
    image = Image.effect_noise((48, 48), 60).convert("RGB")
    batch = objective.collate([{"key": str(i), "image": image} for i in range(2)])
    objective(batch, 0)[0].backward()
    idle = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@torch.no_grad()
def test_other_sizes_come_back_in_their_size(encoder):
    model, folder, prefix, _ = encoder
    ours, shown = tokenizer(folder), pixels(24, 56)
    asked = {"interpolate_pos_encoding": True} if FAMILIES[model.config.model_type].asks else {}
    if model.config.model_type == "timm_wrapper":
        arguments = {**model.config.model_args, "dynamic_img_size": True}
        flexible = timm.create_model(model.config.architecture, num_classes=0, **arguments)
        flexible.load_state_dict(model.timm_model.state_dict())
        expected = flexible.eval().forward_features((shown - 0.5) / 0.5)
    else:
        expected = model((shown - 0.5) / 0.5, **asked).last_hidden_state
    torch.testing.assert_close(ours.encode(shown), expected[:, prefix:])
    grid = ours.grid_of(shown)
    codes = ours.tokenize(shown)
    assert grid == (3, 7) and codes.shape == (2, 21)
    assert ours.detokenize(codes, grid).shape == shown.shape == ours(shown).reconstruction.shape
    with pytest.raises(ValueError, match=r"\(2, 3, 24, 50\) .* that 8 divides"):
        ours.encode(pixels(24, 50))
    with pytest.raises(ValueError, match=r"are not \(B, 16\)"):
        ours.detokenize(codes)


@torch.no_grad()
def test_towers_of_larger_models(tmp_path):
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    vision = InternVLVisionConfig(**PLAIN)
    large = {
        "clip": CLIPModel(CLIPConfig(text_config=dict(text, vocab_size=16), vision_config=PLAIN)),
        "internvl": InternVLModel(
            InternVLConfig(text_config=Qwen3Config(**text, vocab_size=16), vision_config=vision)
        ),
    }
    for name, model in large.items():
        model.eval().save_pretrained(tmp_path / name)
        tower = model.vision_model if name == "clip" else model.vision_tower
        expected = tower(pixels()).last_hidden_state
        found = load_vfm(str(tmp_path / name)).eval()(pixel_values=pixels()).last_hidden_state
        torch.testing.assert_close(found, expected)


def test_pictures_of_any_shape_are_prepared():
    prepare = VQRAEImageProcessor(image_size=32)
    wide = Image.linear_gradient("L").resize((100, 40)).convert("RGB")
    assert prepare(wide)["pixel_values"].shape == (1, 3, 32, 32)
    assert prepare(wide, size=(24, 56))["pixel_values"].shape == (1, 3, 24, 56)


def test_mistakes_are_one_line(tmp_path):
    resnet = AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    resnet.save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="type 'resnet' are not supported; choose one of siglip"):
        load_vfm(str(tmp_path / "resnet"))
    other = TimmWrapperConfig(architecture="resnet18")
    AutoModel.from_config(other).save_pretrained(tmp_path / "timm")
    with pytest.raises(ValueError, match="'resnet18' is not a ViT") as caught:
        load_vfm(str(tmp_path / "timm"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot load the encoder 'no/where'") as caught:
        load_vfm("no/where")
    assert "\n" not in str(caught.value)
