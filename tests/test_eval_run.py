"""The whole evaluation on a tiny chain that was never trained, and zero-shot on a known answer."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from vqrae.eval import evaluate
from vqrae.eval.benchmark_result import read_benchmark
from vqrae.eval.zero_shot import all_pairs, prompt_of, single_object_scenes, zero_shot_accuracy


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folders of data, teacher, stage 1, and the unified model over stage 2."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipConfig, SiglipModel
    from vqrae.data import scene_corpus, train_text_tokenizer, write_scenes
    from vqrae.mllm import UnifiedModel
    from vqrae.tokenizer import VQRAEModel

    root = tmp_path_factory.mktemp("chain")
    data = write_scenes(root / "data", train=20, test=20, prompts_per_category=1)
    text = train_text_tokenizer(scene_corpus(data), vocab_size=300)
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = SiglipConfig(
        text_config=size
        | special
        | {"vocab_size": len(text), "max_position_embeddings": 16, "projection_size": 16},
        vision_config=size | {"image_size": 64, "patch_size": 16},
    )
    SiglipModel(config).save_pretrained(root / "teacher")
    text.save_pretrained(root / "teacher")
    for name in ("stage1", "stage2"):
        tokenizer = VQRAEModel.from_vfm(str(root / "teacher"), codebook_size=16, code_dim=24)
        tokenizer.save_pretrained(root / name)
    language = Qwen3ForCausalLM(
        Qwen3Config(
            **size,
            vocab_size=len(text),
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=256,
        )
    )
    model, processor = UnifiedModel.from_parts(language, text, tokenizer)
    model.save_pretrained(root / "unified")
    processor.save_pretrained(root / "unified")
    (root / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return root


def test_the_whole_chain(chain, tmp_path):
    small = {"questions": 6, "images_per_prompt": 1, "zero_shot_images": 64}
    found = evaluate(
        chain / "unified",
        chain / "data",
        tmp_path,
        stage1_tokenizer=chain / "stage1",
        teacher=chain / "teacher",
        runs={"stage 1": chain / "metrics.jsonl"},
        batch_size=7,
        **small,
    )
    names = ["drawings", "items.jsonl", "pairs.png", "report.html", "results.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert len(list((tmp_path / "drawings").iterdir())) == 9  # one prompt of each category
    plain = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert plain["reconstruction"]["window"] == {"images": 20, "tokens": 320}
    assert plain["reconstruction"]["whole_split"] is True
    # stage 2 here has the teacher's encoder unchanged
    assert plain["zero_shot"]["encoder"] == plain["zero_shot"]["teacher"]
    assert plain["vqa"]["questions"] == 6
    assert len(plain["text_to_image"]["categories"]) == 6
    assert len(plain["more_drawing"]["categories"]) == 3
    shown = {row["metric"] for row in plain["table"]}
    assert {"GenEval, trained combinations", "two beside one"} <= shown
    assert plain["criteria"]["of"] == 6
    assert set(plain["model"]["weights sha256"]) == {
        f"{role}: model.safetensors" for role in ("model", "stage 1", "teacher")
    }
    assert plain["protocol"]["counts"] == {
        "pictures": 20, "zero_shot_scenes": 64, "questions": 6, "geneval_prompts": 6,
        "more_prompts": 3, "images_per_prompt": 1,
    }  # fmt: skip
    # every score but those of the whole codebook follows from the items, to the last digit
    result = read_benchmark(tmp_path)
    decided = result.aggregate(result.items)
    assert set(result.scores) - set(decided) == {"lpips", "usage", "perplexity"}
    assert decided == {name: result.scores[name] for name in decided}
    assert decided["psnr"] == plain["reconstruction"]["psnr"]
    assert decided["vqa"] == plain["vqa"]["overall"]
    assert decided["geneval"] == plain["text_to_image"]["overall"]
    kinds = Counter(item["kind"] for item in result.items)
    assert kinds == {"reconstruction": 20, "zero_shot": 64, "vqa": 6, "prompt": 9}
    assert len({item["id"] for item in result.items}) == 99
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f'id="{part}"' in page for part in ("drawings", "questions", "curves", "codes"))
    # the tokenizer inside the unified model and the same alone give the same numbers
    alone = evaluate(chain / "stage2", chain / "data", tmp_path / "alone", batch_size=20)
    for name in ("psnr", "ssim", "usage", "perplexity", "baseline_psnr"):
        wanted = pytest.approx(found["reconstruction"][name], abs=1e-5)
        assert alone["reconstruction"][name] == wanted
    assert alone["vqa"] is alone["text_to_image"] is alone["zero_shot"] is None
    assert alone["scores"]["vqa"] is alone["scores"]["geneval"] is None
    assert (
        alone["protocol"]["data"]["pictures_sha256"]
        == (plain["protocol"]["data"]["pictures_sha256"])
    )


def test_a_part_of_the_split_is_called_a_part(chain, tmp_path):
    found = evaluate(chain / "stage2", chain / "data", tmp_path, images=5)
    assert found["reconstruction"]["whole_split"] is False
    assert found["table"][0]["verdict"] == "not judged"


def test_wrong_folders_are_one_line(chain, tmp_path):
    for model, data, message in (
        (tmp_path, chain / "data", "no config.json"),
        (chain / "teacher", chain / "data", "holds a 'siglip' model"),
        (chain / "stage2", tmp_path, "no test split"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            evaluate(model, data, tmp_path / "out")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="not a whole SiglipModel"):
        evaluate(chain / "stage2", chain / "data", tmp_path / "out", teacher=chain / "stage1")
    with pytest.raises(ValueError, match="no VQRAE tokenizer"):
        evaluate(
            chain / "stage2", chain / "data", tmp_path / "out", stage1_tokenizer=chain / "teacher"
        )
    assert not (tmp_path / "out").exists()


def test_zero_shot_counts_each_kind_of_pair():
    pairs = [("red", "circle"), ("red", "star"), ("blue", "circle"), ("orange", "star")]
    texts = torch.eye(4)
    teacher = SimpleNamespace(vision_model=SimpleNamespace(head=lambda features: features[:, 0]))
    # the "picture" of a pair says its place, the features say another for the last one
    images = [torch.full((3, 2, 2), float(place)) for place in (0, 1, 2, 3)]
    seen = torch.tensor([0, 1, 2, 1])

    def encode(pixels):
        return torch.eye(4)[seen[pixels[:, 0, 0, 0].long()]][:, None]

    found = zero_shot_accuracy(
        encode,
        teacher,
        None,
        images,
        pairs,
        pairs=pairs,
        held_out=[("orange", "star"), ("blue", "circle")],
        embed_texts=lambda given: texts[: len(given)],
        batch_size=3,
    )
    assert found["accuracy"] == 3 / 4
    assert found["trained_pairs"] == 1 and found["held_out_pairs"] == 1 / 2
    assert found["color"] == 3 / 4 and found["shape"] == 1
    assert prompt_of(("orange", "star")) == "a photo of an orange star"


def test_single_object_scenes_cover_all_pairs():
    images, labels = single_object_scenes(73, seed=1)
    assert set(labels) == set(all_pairs()) and len(labels) == len(images) == 73
    assert (images[0] != images[72]).any()
