"""The reconstruction benchmark: features, the Fréchet distance, references, ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.fid import _compute_fid
from transformers import SiglipVisionConfig
from vqrae.eval.benchmark_result import read_benchmark
from vqrae.eval.frechet import FeatureStatistics, frechet_distance, load_reference
from vqrae.eval.inception import load_inception
from vqrae.eval.reconstruct import reconstruct
from vqrae.scripts.main import main
from vqrae.tokenizer import VQRAEConfig, VQRAEModel


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Pictures, a tokenizer with random weights, and Inception with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    home = tmp_path_factory.mktemp("reconstruct")
    (home / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((40, 36), Image.Resampling.BICUBIC)
        picture.save(home / "pictures" / f"{number:02d}.png")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    config = VQRAEConfig(encoder_config=vision, codebook_size=16, code_dim=40)
    VQRAEModel(config).save_pretrained(home / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = library.FeatureExtractorInceptionV3("x", ["2048"])
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):  # or features all but vanish
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), home / "inception.pth")
    return home


def run(home, name, **options):
    weights = {"inception": str(home / "inception.pth"), "any_inception": True}
    return reconstruct(
        home / "tokenizer", str(home / "pictures"), home / name, device="cpu", **weights, **options
    )


def test_distance_is_that_of_the_library():
    generator = torch.Generator().manual_seed(1)
    sets = [torch.randn(200, 12, generator=generator).double() for _ in range(2)]
    sets[1] = sets[1] * 1.5 + 0.3
    found = []
    for features in sets:
        statistics = FeatureStatistics()
        for part in features.split(33):
            statistics.add(part)
        torch.testing.assert_close(statistics.mean, features.mean(0))
        torch.testing.assert_close(statistics.covariance, features.T.cov())
        found += [statistics.mean, statistics.covariance]
    assert frechet_distance(*found) == pytest.approx(float(_compute_fid(*found)), rel=1e-9)
    assert frechet_distance(*found[:2], *found[:2]) == pytest.approx(0, abs=1e-6)


def test_features_do_not_depend_on_the_batch(home):
    features = load_inception(home / "inception.pth", check=False)
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    whole = features(pixels)
    alone = torch.cat([features(one[None]) for one in pixels])
    assert whole.shape == (5, 2048) and whole.dtype == torch.float64
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-6)
    assert float(whole.std(0).mean()) > 1e-4


RANKS = """
import json, sys
from vqrae.eval._ranks import join_ranks
from vqrae.eval.reconstruct import reconstruct
home = sys.argv[1]
found = reconstruct(f"{home}/tokenizer", f"{home}/pictures", f"{home}/two", device="cpu",
    inception=f"{home}/inception.pth", any_inception=True, batch_size=3)
"""


def test_ranks_and_batches_change_nothing(home):
    one = run(home, "one", save_reference=str(home / "originals.safetensors"))
    script = home / "ranks.py"
    script.write_text(RANKS)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(home)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((home / "two" / "results.json").read_text())
    for name in ("psnr", "ssim", "rfid", "usage", "perplexity"):
        assert two["scores"][name] == pytest.approx(one.scores[name], rel=1e-6), name
    assert two["histogram"] == one.details["histogram"]
    assert two["protocol"] == one.protocol and one.protocol["count"] == 6 and one.scores["rfid"] > 0
    again, first = (read_benchmark(home / name) for name in ("two", "one"))
    assert [item["key"] for item in again.items] == [f"{number:02d}.png" for number in range(6)]
    for item, other in zip(again.items, first.items, strict=True):
        assert item["id"] == other["id"]
        assert [item[name] for name in ("psnr", "ssim")] == pytest.approx(
            [other[name] for name in ("psnr", "ssim")], rel=1e-6
        )
    means = again.aggregate(again.items)
    assert means == {name: again.scores[name] for name in ("psnr", "ssim")}
    with Image.open(home / "one" / "pairs.png") as sheet:
        assert sheet.size == (6 * 32, 64)


def test_references_of_the_same_images_only(home, monkeypatch):
    # Eigenvalues of 2048 x 2048 take seconds.
    monkeypatch.setattr("vqrae.eval.reconstruct.FEATURES", 64)
    monkeypatch.setattr(
        "vqrae.eval.reconstruct.load_inception",
        lambda *a, **k: lambda pixels: load_inception(*a, **k)(pixels)[:, :64],
    )
    one = run(home, "first", save_reference=str(home / "mine.safetensors"))
    again = run(home, "second", reference=str(home / "mine.safetensors"))
    assert again.scores["rfid"] == pytest.approx(one.scores["rfid"], rel=1e-9)
    assert again.protocol == one.protocol  # a reference of these very images changes nothing
    with pytest.raises(ValueError, match="does not fit: its images is .*count is 6, not 5"):
        run(home, "third", reference=str(home / "mine.safetensors"), images=5)
    kept = load_reference(home / "mine.safetensors")
    foreign = {"mu": kept.mean.numpy(), "sigma": kept.covariance.numpy()}
    np.savez(home / "foreign.npz", **foreign)
    found = run(home, "fourth", reference=str(home / "foreign.npz"))
    assert found.scores["rfid"] == pytest.approx(one.scores["rfid"], rel=1e-6)
    assert found.details["distance of the reference from the originals"] < 1e-3
    assert found.protocol["reference_sha256"] and not one.protocol["reference_sha256"]
    np.savez(home / "other.npz", mu=foreign["mu"] + 1, sigma=foreign["sigma"])
    with pytest.raises(ValueError, match=r"away \(in FID\) from the originals: it is of other"):
        run(home, "fifth", reference=str(home / "other.npz"))


def test_pictures_are_known_by_what_they_show(home, tmp_path):
    """The same pictures in another place and under other names are the same data; others are not,
    whatever they are called."""
    for name in ("moved", "changed"):
        (tmp_path / name).mkdir()
        for number in range(6):
            picture = Image.open(home / "pictures" / f"{number:02d}.png")
            if name == "changed" and number == 3:
                picture = picture.point(lambda value: value ^ 1)
            place = f"{number:02d}.png" if name == "changed" else f"{number}.bmp"
            picture.save(tmp_path / name / place)
    images = [
        reconstruct(home / "tokenizer", str(place), tmp_path / "out", device="cpu").protocol
        for place in (home / "pictures", tmp_path / "moved", tmp_path / "changed")
    ]
    assert images[0] == images[1]
    assert {name for name in images[0] if images[0][name] != images[2][name]} == {"images"}
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()


def test_on_the_command_line(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    line = ["reconstruct", "--model", "tokenizer", "--device", "cpu"]
    assert main([*line, "--data", "pictures", "--images", "4"]) == 0
    shown = capsys.readouterr().out
    assert "4 images" in shown and "VQRAE-SigLIP2" in shown and "codes used" in shown
    for options, message in (
        (["--data", "nowhere"], "'nowhere' is no data that can be read"),
        (["--data", "pictures", "--inception", "inception.pth"], "is not the Inception of FID"),
        (["--data", "pictures", "--inception", "no.pth"], "no file of Inception weights 'no.pth'"),
        (["--data", "pictures", "--reference", "x.npz"], "need inception"),
    ):
        assert main([*line, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    (home / "pictures" / "zz.png").write_bytes(b"\x89PNG broken")
    assert main([*line, "--data", "pictures"]) == 2
    assert "1 of 7 samples of 'pictures' are bad" in capsys.readouterr().err
    (home / "pictures" / "zz.png").unlink()
