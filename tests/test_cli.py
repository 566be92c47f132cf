"""The command line: help is quick, mistakes are one line with the mend, nothing else."""

import subprocess
import sys

import pytest
from PIL import Image
from vqrae.scripts.main import main


def failing(capsys, *argv) -> str:
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from vqrae.scripts.main import main; main(['--help'])\n"
        "assert not {'torch', 'transformers', 'tyro'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "draw" in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["drwa"], "there is no command 'drwa'"),
        (["train", "scenes-vmf"], "did you mean 'scenes-vfm'"),
        (["--local_rank=1", "train", "scenes-vmf"], "did you mean"),  # DeepSpeed's launcher adds it
        (["draw", "  "], "the prompt is empty"),
        (["draw", "a star", "-o", "out.xyz"], "end it in .png"),
        (["draw", "a star", "--model", "/no/where"], "there is no model folder '/no/where'"),
        (["chat", "missing.png", "what is it?"], "missing.png"),
        (["eval", "--model", "/no/where", "--data", "/no/data"], "no test split in '/no/data'"),
        (["demo", "--scale", "0"], "scale must be above 0"),
    ],
)
def test_a_mistake_is_one_line(capsys, argv, message):
    assert message in failing(capsys, *argv)


def test_a_text_file_named_png_is_named(capsys, tmp_path):
    path = tmp_path / "scene.png"
    path.write_text("hello")
    assert str(path) in failing(capsys, "chat", str(path), "what is it?")


def test_a_truncated_picture_is_named(capsys, tmp_path):
    path = tmp_path / "scene.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:400])
    assert str(path) in failing(capsys, "chat", str(path), "what is it?")
