"""A run directory belongs to one recipe and one config."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from vqrae.training import RunDirectory, TrainConfig
from vqrae.training.schedule import learning_rate


def settings(**changes):
    return {"train": TrainConfig(**{"steps": 10, "batch_size": 8, **changes}), "width": 64}


def refused(path, recipe, config):
    with pytest.raises(ValueError) as error:
        RunDirectory.open(path, recipe, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_says_what_it_is(tmp_path):
    run = RunDirectory.open(tmp_path / "r", "stage1", {**settings(), "data": Path("x")})
    written = json.loads((run.path / "config.json").read_text())
    assert written["recipe"] == "stage1"
    assert written["config"]["train"]["batch_size"] == 8
    assert written["config"]["data"] == "x"
    assert json.loads((run.path / "environment.json").read_text())["packages"]["torch"]
    assert run.done() is None
    run.mark_done(steps=3)
    assert run.done() == {"steps": 3}


def test_another_recipe_is_refused(tmp_path):
    RunDirectory.open(tmp_path, "stage1", settings())
    message = refused(tmp_path, "stage2", settings())
    assert message == (
        f"run directory '{tmp_path}' belongs to recipe 'stage1', not 'stage2'; choose another --run"
    )


def test_another_config_is_refused_by_field(tmp_path):
    RunDirectory.open(tmp_path, "stage1", settings())
    message = refused(tmp_path, "stage1", settings(lr=0.5))
    assert "train.lr = 0.001, not 0.5" in message
    assert "width = 64, not 32" in refused(tmp_path, "stage1", {**settings(), "width": 32})
    assert "depth = unset, not 2" in refused(tmp_path, "stage1", {**settings(), "depth": 2})


def test_what_is_not_computed_may_change(tmp_path):
    RunDirectory.open(tmp_path, "stage1", settings())
    free = settings(steps=99, log_every=3, save_every=7, keep=9, device="cpu", wandb=True, mfu=True)
    RunDirectory.open(tmp_path, "stage1", free)
    RunDirectory.open(tmp_path, "stage1", settings(engine="deepspeed", deepspeed="zero2"))
    RunDirectory.open(tmp_path, "stage1", settings(accumulation=2, shard_bytes=10**9))


def test_other_things_are_not_taken_for_runs(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file", "a", {})
    assert "holds other files" in refused(tmp_path, "a", {})
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert "config.json is not a run's config" in refused(tmp_path, "a", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"shard_bytes": 0}, "shard_bytes is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"schedule": "linear"}, "cosine, constant"),
        ({"engine": "jax"}, "torch, deepspeed"),
        ({"deepspeed": "zero1"}, "set engine to deepspeed"),
    ],
)
def test_config_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 10, "batch_size": 8, **changes})


def test_the_batch_must_come_out_even():
    config = TrainConfig(steps=1, batch_size=12, accumulation=2)
    assert config.micro_batch(3) == 2
    with pytest.raises(ValueError, match="12; it must be a multiple of .* = 4 \\* 2"):
        config.micro_batch(4)


def test_every_field_is_explained():
    import inspect

    source = inspect.getsource(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        after = source.split(f"    {field.name}: ")[1].split("\n")[1]
        assert after.strip().startswith('"""'), field.name


def test_the_schedule():
    cosine = TrainConfig(steps=110, batch_size=1, warmup=10)
    rates = [learning_rate(step, cosine, 1.0, 0.1) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.55)
    assert rates[109] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    constant = TrainConfig(steps=110, batch_size=1, warmup=10, schedule="constant")
    assert learning_rate(109, constant, 1.0, 0.1) == 1.0
