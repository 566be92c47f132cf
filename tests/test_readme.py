"""The README's words work: the demo (tiny), every Python block, every command line."""

import contextlib
import io
import json
from pathlib import Path

import _documents
import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel
from vqrae.data import train_text_tokenizer
from vqrae.eval.benchmark_result import read_benchmark
from vqrae.eval.compare import check_scores
from vqrae.generation import load_unified
from vqrae.recipes._chain import make_chain
from vqrae.recipes._pack import pack
from vqrae.recipes.demo import Demo, demo
from vqrae.scripts.main import main

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return _documents.blocks(README, language)


def commands(name: str) -> list[list[str]]:
    lines = _documents.command_lines(README)
    return [words[1:] for words in lines if words[:2] == ["vqrae", name]]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which the demo has run, at a hundredth of its size."""
    home = tmp_path_factory.mktemp("home")
    demo(Demo(out=str(home / "runs/demo"), scale=0.01))
    return home


@pytest.fixture
def at_home(home, monkeypatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.delenv("VQRAE_MODEL", raising=False)
    return home


def test_the_demo_leaves_its_report_and_goes_on_where_it_was(home):
    report = home / "runs/demo/report"
    first = json.loads((report / "results.json").read_text())
    weights = (home / "runs/demo/unified/final/model.safetensors").read_bytes()
    assert "data:image/png" in (report / "report.html").read_text()
    (report / "results.json").unlink()
    demo(Demo(out=str(home / "runs/demo"), scale=0.01))
    again = json.loads((report / "results.json").read_text())
    assert (home / "runs/demo/unified/final/model.safetensors").read_bytes() == weights
    for part in ("table", "reconstruction", "vqa", "text_to_image", "zero_shot"):
        assert again[part] == first[part]


def test_python_of_the_tokenizer_and_of_the_model(at_home):
    names: dict = {}
    exec(blocks("python")[0], names)
    assert names["features"].shape == (1, 16, 128) and names["codes"].shape == (1, 16)
    assert names["images"].shape == (1, 3, 64, 64)
    exec(blocks("python")[1], names)
    assert names["picture"].size == names["drawing"].size == (64, 64)
    assert isinstance(names["reply"].text, str) and isinstance(names["answer"], str)


def test_python_of_other_parts(at_home):
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    SiglipVisionModel(vision).save_pretrained("google/siglip")
    text = train_text_tokenizer(["a red circle", "how many stars are there?"] * 50, 300)
    llm = Qwen3Config(
        vocab_size=len(text), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    Qwen3ForCausalLM(llm).save_pretrained("Qwen/qwen")
    text.save_pretrained("Qwen/qwen")
    code = blocks("python")[2].replace("google/siglip2-so400m-patch16-256", "google/siglip")
    names: dict = {}
    exec(code.replace("Qwen/Qwen3-0.6B", "Qwen/qwen"), names)
    assert names["tokenizer"].config.codebook_size == 16384
    assert names["model"].config.codebook_size == 16384


def test_draw_and_chat_lines(at_home, capsys, monkeypatch):
    [line] = commands("draw")
    assert main(line) == 0
    assert Image.open("out.png").width > 4 * 64
    four = [np.asarray(Image.open(f"out-{n}.png")) for n in (1, 2, 3, 4)]
    assert all(picture.shape == (64, 64, 3) for picture in four)

    asked, interactive = commands("chat")
    Image.open("runs/demo/data/test/images/test-000000.png").save("scene.png")
    assert main(asked) == 0
    assert capsys.readouterr().out.strip()
    turns = "/draw two green stars\nwhat did you draw?\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(turns))
    assert main(interactive) == 0
    assert Image.open("drawing-1.png").size == (64, 64)


def test_data_eval_train_and_study_lines_are_understood(at_home, monkeypatch):
    """Parsed by the real options; the work itself is recorded, not done."""
    seen: list = []
    monkeypatch.setattr("vqrae.data.write_scenes", lambda out, **_: seen.append(out) or Path(out))
    monkeypatch.setattr("vqrae.data.easy_vqa.write_easy_vqa", lambda out: seen.append(out))

    class Enough(ValueError):
        pass

    def stop(*args, **kwargs):
        seen.append(args)
        raise Enough("parsed")

    monkeypatch.setattr("vqrae.eval.evaluate", stop)
    monkeypatch.setattr("vqrae.eval.vqa_tasks.run", stop)
    from vqrae.recipes import load_recipe

    monkeypatch.setattr("vqrae.scripts.train.load_recipe", lambda n: (load_recipe(n)[0], stop))
    for name in ("codebook", "strategy", "llm", "directions", "guidance"):
        monkeypatch.setattr(f"vqrae.recipes.study_{name}.study_{name}", stop)
    assert [main(line) for line in commands("data")] == [0, 0]
    lines = [line for line in commands("eval") if line[1] not in ("compare", "report")]
    assert {main(line) for line in lines} == {2}
    tasks = ("pope", "gqa", "mme", "mmmu_val")
    [asked] = [args for args in seen if isinstance(args, tuple) and args[1:2] == (tasks,)]
    seen.remove(asked)
    assert len(seen) == 5
    monkeypatch.setattr("vqrae.tokenizer.encode_corpus.encode_corpus", stop)
    monkeypatch.setattr("vqrae.eval.reconstruct.reconstruct", stop)
    for (line,) in (commands("encode"), commands("reconstruct")):
        place = line[line.index("--model") + 1]
        line[line.index("--model") + 1] = place.replace("runs/stage2", "runs/demo/stage2")
        assert main(line) == 2
        assert seen.pop()[1] in ("pictures", "corpus/part-{0000..0127}.tar")
    lines = [*commands("train"), *commands("study")]
    assert [main(line) for line in lines] == [2] * 11
    places = [getattr(c, "run", None) or c.out for (c,) in seen[5:]]
    assert places == [
        *("runs/vfm", "runs/stage1", "runs/stage2", "runs/unified", "runs/easy", "runs/mine"),
        *("runs/codebook", "runs/strategy", "runs/llm", "runs/directions", "runs/guidance"),
    ]


def test_lines_that_compare_and_examine_are_understood(at_home, monkeypatch, capsys):
    seen: list = []
    for place in ("compare.compare", "runs_report.write_runs_report", "doctor.examine"):
        monkeypatch.setattr(f"vqrae.eval.{place}", lambda *given, **_: seen.append(given) or [])
    readers = [line for line in commands("eval") if line[1] in ("compare", "report")]
    assert len(readers) == 2 and [main(line) for line in commands("doctor")] == [0]
    for line in readers:
        with contextlib.suppress(AttributeError):  # of the comparison that was not made
            main(line)
    assert seen == [
        ("runs/unified/final",), ("runs/a", "runs/b"), (("runs/a", "runs/b"), "page.html"),
    ]  # fmt: skip


def test_a_chain_is_packed_whole_and_forgets_where_it_was_made(home, tmp_path):
    chain = make_chain(home / "runs/demo")
    results = json.loads((chain.out / "report" / "results.json").read_text())
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "old").touch()
    packed = pack(chain, results, tmp_path / "packed", "make nano")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed"]
    assert not (packed / "old").exists()
    result = read_benchmark(packed)
    check_scores(result, packed)
    assert result.scores["vqa"] == results["vqa"]["overall"]
    texts = [p for p in packed.rglob("*") if p.suffix in (".json", ".md")]
    assert len(texts) > 5 and not any(str(home) in p.read_text() for p in texts)
    ours, _ = load_unified(packed / "unified")
    theirs, _ = load_unified(chain.final("unified"))
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    count = sum(p.numel() for p in ours.state_dict().values())
    assert "| unified |" in (packed / "README.md").read_text() and count > 1e5


def test_torchrun_lines_reach_the_recipe():
    """Without `--` torchrun takes the recipe's own `--run` for a misspelt option of its own."""
    from torch.distributed.run import parse_args
    from vqrae.recipes import load_recipe

    reached = {}
    for program, *words in _documents.command_lines(README):
        if program == "torchrun":
            args = parse_args(words)
            assert args.module and args.training_script == "vqrae.scripts.train"
            name, *options = args.training_script_args
            reached[name] = tyro.cli(load_recipe(name)[0], args=options)
    assert {name: config.run for name, config in reached.items()} == {
        "scenes-unified": "runs/unified",
        "siglip2-256-1": "runs/s1",
        "siglip2-256-2": "runs/s2",
        "unified": "runs/unified",
    }
