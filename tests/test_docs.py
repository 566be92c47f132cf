"""docs/ works: every link, every public name, every command line, every Python block."""

import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from _documents import blocks, broken_links, command_lines
from PIL import Image, ImageDraw
from transformers import Qwen3Config, Qwen3ForCausalLM
from vqrae.data import train_text_tokenizer
from vqrae.scripts._command import run_command
from vqrae.scripts.main import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
# Run by a test of the part that they are about, or in need of what is not here. Their imports are
# checked all the same.
RUN_ELSEWHERE = {
    "export.md": "tests/test_export.py",
    "serving.md": "tests/test_generation_server.py",
    "engines.md": "an engine on another machine",
    "benchmarks/vqa.md": "files of a benchmark",
}
# What a page's trainings are cut down to.
TINY = ["--train.steps=2", "--train.batch-size=4", "--train.warmup=1", "--train.log-every=1"]


# ---- the site


def test_the_site_has_no_broken_link_and_loads_nothing_from_elsewhere(tmp_path):
    subprocess.run(["make", "types"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert broken_links(tmp_path / "site") == []
    names = {path.name for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert {"search_index.json", "hostfile", "CONTRIBUTING.html"} <= names
    assert not any(name.endswith((".py", ".pyc")) for name in names)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here"></a><a href="https://example.org/#x"></a><a href="#"></a>'
        '<a href="b.html#there"></a><a href="c.html"></a><a href="#nowhere"></a>'
        '<link rel="stylesheet" href="https://example.org/a.css"><script src="//example.org/a.js">'
    )
    (tmp_path / "a.css").write_text('@import "https://example.org/f.css"; a{b:url(data:x)}')
    assert broken_links(tmp_path) == [
        *(f"a.html: {link}" for link in ("b.html#there", "c.html", "#nowhere")),
        *(f"a.html: {link}" for link in ("https://example.org/a.css", "//example.org/a.js")),
        "a.css: https://example.org/f.css",
    ]


@pytest.mark.parametrize(
    "package", ["tokenizer", "mllm", "generation", "eval", "training", "data", "recipes"]
)
def test_a_page_of_the_api_lists_what_its_subpackage_exports(package):
    """For a name that is missing, write `::: MODULE.NAME` under the fitting heading of the page. Of
    recipes the page also has the functions and settings, which the package does not export."""
    page = (DOCS / "api" / f"{package}.md").read_text()
    listed = dict.fromkeys(re.findall(rf"^::: (vqrae\.{package}\.\S+)$", page, flags=re.MULTILINE))
    names = {place.rpartition(".")[2]: place.rpartition(".")[0] for place in listed}
    module = importlib.import_module(f"vqrae.{package}")
    missing = set(module.__all__) - set(names)
    assert not missing, f"docs/api/{package}.md lacks {', '.join(sorted(missing))}"
    gone = set(names) - set(module.__all__) if package != "recipes" else set()
    assert not gone, f"docs/api/{package}.md has {', '.join(sorted(gone))}, no longer exported"
    for name in module.__all__:
        assert getattr(importlib.import_module(names[name]), name) is getattr(module, name)


# ---- command lines


class Parsed(Exception):
    """A command line was understood; the work itself is not done."""


def called(words: list[str]) -> list[str] | None:
    """What a line runs of ours, as [script, arguments...]; None for other programs' lines."""
    if "vqrae" in words[:3]:  # behind settings of the environment
        return words[words.index("vqrae") :]
    for place, word in enumerate(words):
        if word.startswith("vqrae.scripts.") and word != "vqrae.scripts.main":
            return [word.rpartition(".")[2], *words[place + 1 :]]
    return None


LINES = [
    pytest.param(line, id=f"{page}:{' '.join(words)[:60]}")
    for page in PAGES
    for words in command_lines((DOCS / page).read_text())
    if (line := called(words)) and words[0] not in ("pip",)
]


@pytest.mark.parametrize("line", LINES)
def test_every_option_of_every_command_line_is_understood(line, monkeypatch):
    real = tyro.cli

    def parse(*arguments, **options):
        result = real(*arguments, **options)
        if options.get("return_unknown_args"):  # the recipe's own follow
            return result
        raise Parsed

    def parse_commands(commands, **options):
        stubs = {name: functools.wraps(f)(_parsed) for name, f in commands.items()}
        return subcommands(stubs, **options)

    subcommands = tyro.extras.subcommand_cli_from_dict
    if line[1:2] == ["data"]:
        monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", parse_commands)
    else:
        monkeypatch.setattr(tyro, "cli", parse)
    try:
        assert (main(line[1:]) if line[0] == "vqrae" else run_command(*line[:1], line[1:], "")) == 0
    except Parsed:
        pass
    except SystemExit as end:
        assert not end.code


def _parsed(*_, **__):
    raise Parsed


def test_torchrun_lines_leave_our_options_to_us():
    from torch.distributed.run import parse_args

    lines = [w for page in PAGES for w in command_lines((DOCS / page).read_text())]
    lines = [words[1:] for words in lines if words[0] == "torchrun"]
    assert lines
    for words in lines:
        found = parse_args(words)
        assert found.module and found.training_script.startswith("vqrae.scripts.")


# ---- Python, and the commands of the pages that one reads first


@pytest.mark.parametrize("page", [p for p in PAGES if blocks((DOCS / p).read_text(), "python")])
def test_what_python_imports_from_us_is_there(page):
    code = "\n".join(blocks((DOCS / page).read_text(), "python"))
    compile(code, page, "exec")
    for line in re.findall(r"^from vqrae.*$", code, flags=re.MULTILINE):
        exec(line, {})


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with pictures, talks about them, a tiny language model and a clone's assets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VQRAE_MODEL", raising=False)
    Path("assets").symlink_to(ROOT / "assets")
    Path("pictures").mkdir()
    for number, name in enumerate("abcdef"):
        picture = Image.new("RGB", (90, 70 + number), (40 * number, 90, 200))
        ImageDraw.Draw(picture).ellipse((10, 10, 40 + 5 * number, 50), fill="yellow")
        picture.save(f"pictures/{name}.png")
        Path(f"pictures/{name}.txt").write_text(f"what it shows, {name}")
    talks, mine = blocks((DOCS / "train.md").read_text(), "json")
    Path("talks.jsonl").write_text(talks)
    Path("mine.jsonl").write_text(mine)
    text = train_text_tokenizer(["what it shows", "How many blobs? six"] * 50, 300)
    llm = Qwen3Config(
        vocab_size=len(text), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    Qwen3ForCausalLM(llm).save_pretrained("Qwen/Qwen3-0.6B")
    text.save_pretrained("Qwen/Qwen3-0.6B")
    return tmp_path


def work_through(page: str, skip: tuple[str, ...] = ()) -> dict:
    """Python blocks and our commands in the page's order, trainings cut short; what Python left."""
    names: dict = {}
    for language, code in re.findall(
        r"^```(python|bash)\n(.*?)^```", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            exec(code, names)
            continue
        for program, *words in command_lines(f"```bash\n{code}```"):
            if program == "vqrae" and words[0] not in skip:
                tiny = TINY if words[0] == "train" else []
                tiny = [*tiny, "--codebook-size", "64"] if "tokenizer-1" in words else tiny
                assert main(words + tiny) == 0, words
    return names


def test_ten_minutes(home, capsys):
    names = work_through("tour.md", skip=("eval",))
    assert capsys.readouterr().out.split("\n") == ["blue", "top left", ""]
    assert (names["first"], names["second"]) == ("red", "two")
    assert names["features"].shape == (1, 16, 128) and names["codes"].shape == (1, 16)
    assert names["token"] == f"<|code_{int(names['codes'][0, 0])}|>"
    assert len(names["processor"].untrusted("<|code_7|>")) > 1
    assert Image.open("mine-again.png").size == (64, 64)


def test_train_on_your_data(home):
    names = work_through("train.md")
    assert names["count"] == 6
    assert Image.open("drawn.png").size == Image.open("mine.png").size == (64, 64)
    assert Path("runs/reconstruct/pairs.png").is_file()


REST = [p for p in PAGES if p not in ("tour.md", "train.md", *RUN_ELSEWHERE)]
REST = [p for p in REST if blocks((DOCS / p).read_text(), "python")]


@pytest.mark.parametrize("page", REST)
def test_python_of_the_other_pages_runs(page, home):
    for code in blocks((DOCS / page).read_text(), "python"):
        exec(code, names := {})
        assert names
