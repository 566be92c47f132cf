"""Exports: the plain language model says what ours says; an MLLM sees through our encoder."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_mllm_parts import (
    CODES,
    noise_image,
    tiny_language_model,
    tiny_model,
    tiny_text_tokenizer,
    tiny_vqrae,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PhiConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from vqrae.generation import features_of, generate_ids, sample_codes
from vqrae.mllm import UnifiedModel
from vqrae.mllm.export_llm import export_language_model
from vqrae.scripts.main import main
from vqrae.tokenizer import VQRAEConfig, VQRAEModel
from vqrae.tokenizer.drop_in import drop_in
from vqrae.tokenizer.fingerprint import fingerprint

PROMPTS = ["a", "a red circle above a blue square", "circle circle"]
TIED = {("qwen3", True), ("qwen3", False), ("llama", True), ("llama", False)}


# -- the language model --------------------------------------------------------------------------


def unified(family: str, tied: bool, **options):
    """Random weights far from uniform, head and embeddings two tensors where they are not tied."""
    config = tiny_language_model(family).config
    config.tie_word_embeddings = tied
    torch.manual_seed(3)
    llm = AutoModelForCausalLM.from_config(config).eval()
    return UnifiedModel.from_parts(llm, tiny_text_tokenizer(), tiny_vqrae(), **options)


@pytest.fixture(scope="module", params=sorted(TIED), ids=lambda p: f"{p[0]}-{p[1]}")
def exported(request, tmp_path_factory):
    model, processor = unified(*request.param)
    folder = tmp_path_factory.mktemp("export") / "new" / "plain"
    assert export_language_model(model, processor, folder) == folder
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, processor, plain, folder


@torch.no_grad()
def test_the_plain_model_has_our_logits(exported):
    model, processor, plain, folder = exported
    config = model.config
    assert type(plain) is type(model.language_model) and plain.dtype == torch.float32
    assert plain.config.tie_word_embeddings == config.tie_word_embeddings
    torch.manual_seed(0)
    ids = torch.randint(0, config.image_pad_id, (2, 12))  # text and both marks
    ids[:, 4:8] = config.code_offset + torch.randint(0, CODES, (2, 4))
    ours, theirs = model(ids), plain(ids, output_hidden_states=True)
    assert torch.equal(theirs.hidden_states[-1], ours.hidden_states)
    # The same bits where the same product is asked for: ours scores text and codes apart.
    rows, first = plain.get_output_embeddings().weight, config.code_offset
    assert torch.equal(F.linear(ours.hidden_states, rows), theirs.logits)
    assert torch.equal(F.linear(ours.hidden_states, rows[:first]), ours.logits[..., :first])
    assert torch.equal(F.linear(ours.hidden_states, rows[first:]), ours.logits[..., first:])
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=1e-6, atol=1e-6)


def test_tokenizer_and_vocabulary_say_the_same_ids(exported):
    model, processor, plain, folder = exported
    text = AutoTokenizer.from_pretrained(folder)
    known = json.loads((folder / "vocabulary.json").read_text())
    assert len(text) == plain.config.vocab_size == known["code_offset"] + CODES
    assert text.convert_tokens_to_ids("<|code_0|>") == known["code_offset"]
    marks = [known[f"image_{name}_id"] for name in ("start", "end", "pad")]
    assert marks == [text.convert_tokens_to_ids(f"<|image_{n}|>") for n in ("start", "end", "pad")]
    assert marks[0] == known["text_size"] == len(tiny_text_tokenizer())
    assert (known["codebook_size"], known["num_image_tokens"]) == (CODES, 4)
    turn = known["turn_format"]
    prompt = f"{turn['user_prefix']}a red circle{turn['user_suffix']}{turn['assistant_prefix']}"
    ids = text(turn["conversation_prefix"] + prompt, add_special_tokens=False)["input_ids"]
    assert [*ids, marks[0]] == processor.encode_draw("a red circle")
    assert plain.generation_config.eos_token_id == known["end_of_turn_id"]
    vqrae = VQRAEModel.from_pretrained(folder / "vqrae")
    assert known["tokenizer"] == fingerprint(vqrae) == fingerprint(model.vqrae)
    codes = torch.randint(0, CODES, (2, 4))
    assert torch.equal(vqrae.detokenize(codes), model.vqrae.detokenize(codes))


def test_plain_generate_draws_our_codes(exported):
    """The library's sampler, cache, padding and guidance, held to the codes."""
    model, processor, plain, _ = exported
    first = model.config.code_offset
    codes_only = {
        "prefix_allowed_tokens_fn": lambda *_: list(range(first, first + CODES)),
        "max_new_tokens": 4,
        "do_sample": False,
    }
    prompts = [processor.encode_draw(text) for text in PROMPTS]
    unconditional = processor.encode_draw(unconditional=True)
    ours = sample_codes(model, prompts, unconditional, guidance_scale=1.0, temperature=0, min_p=0)
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids = [[processor.pad_id] * n + prompt for n, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in pads]
    out = plain.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **codes_only)
    assert torch.equal(out[:, longest:] - first, ours)
    guided = sample_codes(model, prompts, unconditional, guidance_scale=2.5, temperature=0, min_p=0)
    assert not torch.equal(guided, ours)
    for prompt, expected in zip(prompts, guided, strict=True):
        out = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            guidance_scale=2.5,
            negative_prompt_ids=torch.tensor([unconditional]),
            **codes_only,
        )
        assert torch.equal(out[0, len(prompt) :] - first, expected)


def test_plain_generate_answers_about_pictures_through_our_embeddings(exported):
    model, processor, plain, _ = exported
    ids = processor.encode_chat([{"role": "user", "content": "<image>\nhow many?"}], 1)
    features = features_of(model, processor, [noise_image(0)])
    [ours] = generate_ids(model, processor, [ids], [features], max_new_tokens=12)
    out = plain.generate(
        inputs_embeds=model.embed(torch.tensor([ids]), features=features),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        suppress_tokens=list(range(model.config.text_size, model.config.text_config.vocab_size)),
        max_new_tokens=12,
        do_sample=False,
    )
    written = out[0].tolist()
    assert written[: len(ours.ids)] == ours.ids and len(ours.ids) > 3


def test_half_precision_and_rows_behind_the_codes_stay(tmp_path):
    model, processor = tiny_model()
    model.language_model.resize_token_embeddings(384, mean_resizing=False)
    export_language_model(model.to(torch.bfloat16), processor, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    state, ours = plain.state_dict(), model.language_model.state_dict()
    assert plain.dtype == torch.bfloat16 and len(plain.get_input_embeddings().weight) == 384
    assert all(torch.equal(state[name], value) for name, value in ours.items())


def test_what_a_plain_checkpoint_would_lose_is_refused(tmp_path):
    model, processor = tiny_model(code_positions=True, code_mixture=3)
    model.register_buffer("code_bias", torch.linspace(-1, 1, CODES))
    fields = "code_positions=True.*code_mixture=3.*code_bias=True"
    with pytest.raises(ValueError, match=f"plain Qwen3ForCausalLM .*{fields}") as caught:
        export_language_model(model, processor, tmp_path / "plain")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    model, processor = tiny_model()
    model.share_code_rows()
    with pytest.raises(ValueError, match="fold_code_rows"):
        export_language_model(model, processor, tmp_path / "plain")
    model.fold_code_rows()
    model.register_buffer("code_bias", torch.zeros(CODES))  # training drew them all
    export_language_model(model, processor, tmp_path / "plain")
    with pytest.raises(ValueError, match="plain' holds something already"):
        export_language_model(model, processor, tmp_path / "plain")


@torch.no_grad()
def test_code_bias_goes_into_a_head_that_has_one(tmp_path):
    phi = PhiConfig(
        vocab_size=len(tiny_text_tokenizer()), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3,
    )  # fmt: skip
    llm = AutoModelForCausalLM.from_config(phi).eval()
    llm.lm_head.bias.normal_()
    model, processor = UnifiedModel.from_parts(llm, tiny_text_tokenizer(), tiny_vqrae())
    model.register_buffer("code_bias", torch.linspace(-5, 5, CODES))
    before = model.get_output_embeddings().bias.clone()
    export_language_model(model, processor, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    ids = torch.randint(0, model.config.image_pad_id, (2, 7))
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)
    assert torch.equal(model.get_output_embeddings().bias, before)


# -- the encoder in an MLLM ----------------------------------------------------------------------

VISION = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
    image_size=32, patch_size=8,
)  # fmt: skip
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, vocab_size=64,
)  # fmt: skip
FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
LLAVA = dict(text_config=LlamaConfig(**TEXT), image_token_index=60, image_seq_length=16)
MLLMS = {
    "llava-clip": LlavaConfig(vision_config=CLIPVisionConfig(**VISION), **LLAVA),
    "llava-siglip": LlavaConfig(vision_config=SiglipVisionConfig(**VISION), **LLAVA, **FULL),
    "internvl": InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION),
        text_config=Qwen2Config(**TEXT),
        image_token_id=60,
        downsample_ratio=0.5,
    ),
    "internvl-norm": InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION, use_mean_pooling=False),
        text_config=Qwen2Config(**TEXT),
        image_token_id=60,
    ),
}
# MLLM, fields of the VQRAE, whether the MLLM reads what encode gives, what stays the MLLM's own
CASES = [
    ("llava-clip", {}, False, {"post_layernorm"}),
    ("llava-clip", {"encoder_layer": -2}, True, {"encoder.layers.2", "post_layernorm"}),
    ("llava-siglip", {}, False, {"head"}),
    ("llava-siglip", {"final_norm": "none"}, True, {"head", "post_layernorm"}),
    ("internvl", {}, True, set()),
    ("internvl", {"encoder_layer": 2, "final_norm": "none"}, False, {"encoder.layer.2"}),
    ("internvl-norm", {}, True, set()),
    ("internvl-norm", {"final_norm": "plain"}, False, {"layernorm"}),
]


def save_mllm(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(MLLMS[name])
    with torch.no_grad():
        for parameter in model.parameters():  # norms too must show that they are there
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size="60KB")  # several files
    mean_std = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    CLIPImageProcessor(size=32, crop_size=32, **mean_std).save_pretrained(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "chat.jinja").write_text("kept")
    (folder / "pytorch_model.bin").write_text("the old tower")
    return folder


@pytest.fixture(scope="module")
def mllms(tmp_path_factory):
    home = tmp_path_factory.mktemp("mllms")
    return {name: save_mllm(name, home / name) for name in MLLMS}


def stage_2(name: str, **fields) -> VQRAEModel:
    """A tokenizer on the MLLM's kind of tower, with other weights."""
    torch.manual_seed(7)
    config = VQRAEConfig(
        encoder_config=MLLMS[name].vision_config, codebook_size=16, code_dim=40,
        pixel_mean=(0.5,) * 3, pixel_std=(0.25,) * 3, **fields,
    )  # fmt: skip
    vqrae = VQRAEModel(config).eval()
    with torch.no_grad():
        for parameter in vqrae.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return vqrae


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("*.safetensors")
    return {name: value for path in files for name, value in load_file(path).items()}


@torch.no_grad()
@pytest.mark.parametrize(("name", "fields", "same", "kept"), CASES, ids=str)
def test_the_mllm_sees_through_our_encoder(mllms, tmp_path, caplog, name, fields, same, kept):
    vqrae, out = stage_2(name, **fields), tmp_path / "out"
    with caplog.at_level(logging.INFO):
        done = drop_in(vqrae, mllms[name], out)
    assert done.same_features == same and set(done.kept) == kept
    assert all(module in caplog.text for module in kept)
    assert ("held near the original" in caplog.text) == (not same)
    before, after = weights_of(mllms[name]), weights_of(out)
    assert before.keys() == after.keys()
    ours = vqrae.encoder.state_dict()
    for key, value in after.items():
        tower, _, place = key.partition("vision_tower.")
        expected = ours.get(place) if place else None
        assert torch.equal(value, before[key] if expected is None else expected), key
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert len(changed) == len(ours) == done.replaced
    # All other files are there, but no other copy of the old tower.
    assert (out / "notes" / "chat.jinja").read_text() == "kept"
    assert not (out / "pytorch_model.bin").exists()
    assert json.loads((out / "drop_in.json").read_text())["tokenizer"] == fingerprint(vqrae)

    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours = into_projector(model, vqrae.encode(pixels))
    seen = features_read(model, (pixels - 0.5) / 0.25)
    assert seen.shape == ours.shape
    assert torch.equal(seen, ours) if same else not torch.allclose(seen, ours)
    old = AutoModelForImageTextToText.from_pretrained(mllms[name]).eval()
    assert not torch.allclose(features_read(old, (pixels - 0.5) / 0.25), seen)


def features_read(model, pixels):
    """What goes into the MLLM's projector."""
    kept = []
    projector = model.model.multi_modal_projector
    projector.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model.model.get_image_features(pixel_values=pixels)
    return kept[0]


def into_projector(model, features):
    """(B, 16, D) as the projector takes them: InternVL joins four neighbours into one."""
    if model.config.model_type == "llava":
        return features
    joined = model.model.pixel_shuffle(features.unflatten(1, (4, 4)), scale_factor=0.5)
    return joined.flatten(1, 2)


def test_the_tower_keeps_its_type_on_disk_and_older_names(mllms, tmp_path):
    """As llava-hf's folders are written: half precision, `vision_model` in the names."""
    source = shutil.copytree(mllms["llava-clip"], tmp_path / "old")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    renamed = {}
    for path in source.glob("*.safetensors"):
        weights = {
            key.replace("vision_tower.", "vision_tower.vision_model."): value.half()
            for key, value in load_file(path).items()
        }
        renamed |= dict.fromkeys(weights, path.name)
        save_file(weights, path, metadata={"format": "pt", "note": "kept"})
    index["weight_map"] = renamed
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    vqrae = stage_2("llava-clip")
    drop_in(vqrae, source, tmp_path / "out")
    after = weights_of(tmp_path / "out")
    assert after.keys() == renamed.keys()
    for name, value in vqrae.encoder.state_dict().items():
        assert torch.equal(after[f"vision_tower.vision_model.{name}"], value.half())
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata()["note"] == "kept"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    loaded = model.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    assert torch.equal(loaded, vqrae.encoder.encoder.layers[0].mlp.fc1.weight.half())


@pytest.mark.parametrize("name", MLLMS)
def test_an_encoder_that_learnt_nothing_changes_nothing(mllms, tmp_path, name):
    """Taken out of the MLLM and put back."""
    vqrae = VQRAEModel.from_vfm(str(mllms[name]), codebook_size=16, code_dim=40)
    drop_in(vqrae, mllms[name], tmp_path / "out")
    before, after = weights_of(mllms[name]), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert (tmp_path / "out/config.json").read_bytes() == (mllms[name] / "config.json").read_bytes()


def changed_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_does_not_fit_is_one_line(mllms, tmp_path):
    def refused(match, vqrae=None, mllm="llava-clip", out="out"):
        with pytest.raises(ValueError, match=match) as caught:
            drop_in(vqrae or stage_2("llava-clip"), mllms.get(mllm, mllm), tmp_path / out)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    wider = dict(VISION, hidden_size=64)
    refused("width 64, .*llava-clip' 32", VQRAEModel(small(CLIPVisionConfig(**wider))))
    larger = dict(VISION, image_size=64)
    refused("image_size 64, .* 32", VQRAEModel(small(CLIPVisionConfig(**larger))))
    act = dict(VISION, hidden_act="gelu")
    refused("hidden_act 'gelu', .* 'quick_gelu'", VQRAEModel(small(CLIPVisionConfig(**act))))
    refused("type 'clip_vision_model', .* 'siglip_vision_model'", mllm="llava-siglip")
    refused("type 'siglip_vision_model', .* 'internvl_vision'", stage_2("llava-siglip"), "internvl")
    other = stage_2("llava-clip")
    other.config.pixel_mean = [0.4] * 3
    refused(r"\[0.4, 0.4, 0.4\].*prepares them with \[\[0.5, 0.5, 0.5\]", other)
    source = shutil.copytree(mllms["llava-clip"], tmp_path / "processor")
    fields = json.loads((source / "preprocessor_config.json").read_text()) | {
        "image_std": [1, 1, 1]
    }
    (source / "preprocessor_config.json").unlink()
    (source / "processor_config.json").write_text(json.dumps({"image_processor": fields}))
    refused(r"0.25, 0.25\]\], but .*\[1, 1, 1\]\]", mllm=source)
    refused("no MLLM folder '.*nowhere'", mllm=tmp_path / "nowhere")
    source = shutil.copytree(mllms["llava-clip"], tmp_path / "broken")
    refused("lies in the MLLM's own folder", mllm=source, out="broken/out")
    sorted(source.glob("*.safetensors"))[0].unlink()
    refused("has no model-00001-of-", mllm=source)
    source = shutil.copytree(mllms["llava-clip"], tmp_path / "llama")
    changed_config(source, model_type="llama")
    refused("model_type 'llama'; .* llava and internvl", mllm=source)
    dino = dict(VISION, mlp_ratio=2) | {"model_type": "dinov2"}
    changed_config(source, model_type="llava", vision_config=Dinov2Config(**dino).to_dict())
    refused("of type 'dinov2'; in llava models one of clip", mllm=source)
    (source / "config.json").unlink()
    refused("has no config.json", mllm=source)


def small(encoder) -> VQRAEConfig:
    return VQRAEConfig(encoder_config=encoder, codebook_size=16, code_dim=40)


# -- the command ---------------------------------------------------------------------------------


def test_the_command(mllms, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VQRAE_MODEL", raising=False)
    model, processor = tiny_model()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    line = ["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "plain")]
    assert main(line) == 0 and "vocabulary.json" in capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert main(line) == 2
    assert re.search(r"^vqrae export: '.*plain' holds", capsys.readouterr().err, re.MULTILINE)
    # The model that ships has all three of what a plain checkpoint cannot carry.
    assert main(["export", "--out", str(tmp_path / "nano")]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and "code_positions=True" in error and "code_bias" in error

    stage_2("internvl").save_pretrained(tmp_path / "stage2")
    line = ["export", "--model", str(tmp_path / "stage2"), "--out", str(tmp_path / "seeing")]
    assert main(line) == 2 and "is a tokenizer, which has no" in capsys.readouterr().err
    line = ["export", "--model", str(tmp_path / "stage2"), "--into", str(mllms["internvl"])]
    assert main([*line, "--out", str(tmp_path / "seeing")]) == 0
    assert "reads what VQRAEModel.encode gives" in capsys.readouterr().out
    tower = AutoModelForImageTextToText.from_pretrained(tmp_path / "seeing").model.vision_tower
    ours = stage_2("internvl").encoder.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in tower.state_dict().items())


def test_the_page_works(tmp_path, monkeypatch):
    """docs/export.md: its Python that needs nothing but transformers and this package."""
    page = Path(__file__).resolve().parent.parent / "docs" / "export.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    model, processor = tiny_model()
    export_language_model(model, processor, tmp_path / "runs" / "plain")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code[0], names)
    assert names["images"].shape == (1, 3, 32, 32) and "vllm" not in code[0]
    codes = sample_codes(
        model, [processor.encode_draw("a red circle above a blue star")], [0],
        guidance_scale=1.0, temperature=0, min_p=0,
    )  # fmt: skip
    assert torch.equal(names["codes"], codes)
