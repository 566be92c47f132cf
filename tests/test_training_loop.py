"""`fit`: exact resume, accumulation, the critic's phase, hooks, and the ways a run ends early."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from _training_toy import ToyDataset, ToyObjective
from safetensors.torch import load_file
from vqrae.training import TrainConfig, TrainingStopped, fit, read_metrics
from vqrae.training._data import make_loader
from vqrae.training._watch import StepWatch
from vqrae.training.checkpoint import checkpoint_path, checkpoints


@pytest.fixture(autouse=True)
def one_thread():
    """The toy's tensors are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TIMES = ("seconds", "images_per_s")


def config(**changes):
    defaults = {"steps": 12, "batch_size": 8, "log_every": 1, "save_every": 5, "device": "cpu"}
    return TrainConfig(**{**defaults, **changes})


def rows(run):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run)]


class At:
    """A hook that does something at one step."""

    every = 1

    def __init__(self, step, action):
        self.step, self.action = step, action

    def __call__(self, state):
        if state.step == self.step:
            return self.action(state)


class PowerCut(Exception):
    pass


def cut(_state):
    raise PowerCut


# ---- resume

CHILD = """
import sys
import torch
from _training_toy import ToyDataset, ToyObjective
from test_training_loop import config
from vqrae.training import fit
import logging
logging.basicConfig(level=logging.INFO)
torch.set_num_threads(1)
fit(ToyObjective(noise=0.1, slow=0.1), ToyDataset(), config(steps=30, log_every=2, save_every=7),
    sys.argv[1], recipe="toy")
"""


def test_killed_runs_go_on_as_if_nothing_had_been(tmp_path):
    """SIGTERM in the middle of a log window, and SIGKILL anywhere; losses equal bit for bit."""
    children = {
        number: subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / number.name)],
            cwd=Path(__file__).parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (signal.SIGTERM, signal.SIGKILL)
    }
    whole = config(steps=30, log_every=2, save_every=7)
    waiting = dict(children)
    deadline = time.monotonic() + 100
    while waiting:
        for number, child in list(waiting.items()):
            metrics = tmp_path / number.name / "metrics.jsonl"
            if metrics.exists() and metrics.read_text().count("\n") > 5:
                child.send_signal(number)
                del waiting[number]
            assert child.poll() is None or number not in waiting, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fit(ToyObjective(noise=0.1), ToyDataset(), whole, tmp_path / "whole", recipe="toy")
    assert len(rows(tmp_path / "whole")) == 16
    for number, child in children.items():
        run = tmp_path / number.name
        _, stderr = child.communicate(timeout=60)
        saved = int(checkpoints(run)[-1].name.split("-")[1])
        if number == signal.SIGTERM:
            assert child.returncode == 0, stderr
            assert f"interrupted at step {saved}; run the same command to go on" in stderr
            assert "Traceback" not in stderr
        else:
            assert child.returncode == -signal.SIGKILL
        assert 7 <= saved < 30
        result = fit(ToyObjective(noise=0.1), ToyDataset(), whole, run, recipe="toy")
        assert result.resumed_from == saved
        assert rows(run) == rows(tmp_path / "whole")
        for name in ("model", "critic", "optimizer", "critic_optimizer"):
            a, b = (
                load_file(checkpoint_path(r, 30) / f"{name}.safetensors")
                for r in (run, tmp_path / "whole")
            )
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_average_of_the_weights_is_exported_and_resumed(tmp_path):
    kept = []

    class Keep:
        every = 1

        def __call__(self, state):
            kept.append({k: v.detach().clone() for k, v in state.objective.out.named_parameters()})

    objective = ToyObjective(noise=0.1)
    average = {k: v.detach().clone() for k, v in objective.out.named_parameters()}
    settings = config(ema=0.5, save_every=4)
    fit(objective, ToyDataset(), settings, tmp_path / "whole", recipe="toy", hooks=[Keep()])
    for step, weights in enumerate(kept):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {k: decay * average[k] + (1 - decay) * w for k, w in weights.items()}
    exported = load_file(tmp_path / "whole" / "final" / "out.st")
    for name, weight in objective.out.named_parameters():
        torch.testing.assert_close(exported[name], average[name])
        assert torch.equal(weight, kept[-1][name]) and not torch.equal(weight, exported[name])
    with pytest.raises(PowerCut):
        fit(
            ToyObjective(noise=0.1),
            ToyDataset(),
            settings,
            tmp_path / "parted",
            recipe="toy",
            hooks=[At(6, cut)],
        )
    fit(ToyObjective(noise=0.1), ToyDataset(), settings, tmp_path / "parted", recipe="toy")
    again = load_file(tmp_path / "parted" / "final" / "out.st")
    assert all(torch.equal(again[name], exported[name]) for name in exported)


def test_compiled_parts_give_the_same_losses(tmp_path):
    class Compiled(ToyObjective):
        def large_parts(self):
            return [self.hidden, self.out]

    for name in ("", "aot_eager"):
        compiled = Compiled()
        fit(
            compiled, ToyDataset(), config(compile=name, steps=3), tmp_path / f"{name}.", recipe="t"
        )
        assert (compiled.out._compiled_call_impl is not None) == bool(name)
    for a, b in zip(rows(tmp_path / "."), rows(tmp_path / "aot_eager."), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_a_log_window_survives_an_interruption_in_its_middle(tmp_path):
    settings = config(log_every=4, accumulation=2)
    fit(ToyObjective(noise=0.1), ToyDataset(), settings, tmp_path / "whole", recipe="toy")

    def terminate(_state):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        fit(
            ToyObjective(noise=0.1), ToyDataset(), settings, tmp_path / "cut", recipe="toy",
            hooks=[At(6, terminate)],
        )  # fmt: skip
    assert end.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    result = fit(ToyObjective(noise=0.1), ToyDataset(), settings, tmp_path / "cut", recipe="toy")
    assert result.resumed_from in (6, 7)
    assert [row["step"] for row in rows(tmp_path / "cut")] == [1, 4, 8, 12]
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_failure_goes_back_to_the_last_checkpoint_without_double_rows(tmp_path):
    whole, cut_run = tmp_path / "whole", tmp_path / "cut"
    fit(ToyObjective(noise=0.1), ToyDataset(), config(), whole, recipe="toy")
    with pytest.raises(PowerCut):
        fit(ToyObjective(noise=0.1), ToyDataset(), config(), cut_run, recipe="toy",
            hooks=[At(8, cut)])  # fmt: skip
    with open(cut_run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # a row cut short
    again = fit(ToyObjective(noise=0.1), ToyDataset(), config(), cut_run, recipe="toy")
    assert again.resumed_from == 5
    assert rows(cut_run) == rows(whole)


def test_a_finished_run_returns_at_once_and_can_be_lengthened(tmp_path):
    constant = {"schedule": "constant", "save_every": 0}
    first = fit(ToyObjective(), ToyDataset(), config(steps=4, **constant), tmp_path, recipe="toy")
    assert (tmp_path / "final" / "out.st").is_file() and (tmp_path / "DONE").is_file()
    objective = ToyObjective()
    again = fit(objective, ToyDataset(), config(steps=4, **constant), tmp_path, recipe="toy")
    assert objective.ran == 0
    assert (again.step, again.last_logs) == (4, first.last_logs)
    longer = fit(ToyObjective(), ToyDataset(), config(steps=9, **constant), tmp_path, recipe="toy")
    assert (longer.step, longer.resumed_from) == (9, 4)
    fit(ToyObjective(), ToyDataset(), config(steps=9, **constant), tmp_path / "x", recipe="toy")
    assert rows(tmp_path) == rows(tmp_path / "x")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_position_is_the_next_batch(workers):
    def loader():
        objective, device = ToyObjective(), torch.device("cpu")
        return make_loader(ToyDataset(), 3, objective.collate, workers, 0, device)

    first = loader()
    stream = iter(first)
    for _ in range(3):
        next(stream)
    state = first.state_dict()
    wanted = [next(stream)["keys"] for _ in range(4)]
    second = loader()
    second.load_state_dict(state)
    resumed = iter(second)
    assert [next(resumed)["keys"] for _ in range(4)] == wanted


# ---- the step


def test_accumulation_equals_one_big_batch(tmp_path):
    for parts in (1, 2, 4):
        settings = config(steps=6, accumulation=parts)
        fit(ToyObjective(), ToyDataset(), settings, tmp_path / str(parts), recipe="toy")
    whole = rows(tmp_path / "1")
    for parts in ("2", "4"):
        for a, b in zip(whole, rows(tmp_path / parts), strict=True):
            assert a.keys() == b.keys()
            for name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name


def test_each_phase_moves_its_own_network_only(tmp_path):
    objective = ToyObjective()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    critic = {k: v.clone() for k, v in objective.critic.state_dict().items()}
    seen = []

    def look(state):
        seen.append(
            all(torch.equal(v, critic[k]) for k, v in objective.critic.state_dict().items())
        )
        assert all(p.grad is None for p in objective.critic.parameters())

    hooks = [At(step, look) for step in (2, 3)]
    fit(objective, ToyDataset(), config(steps=3), tmp_path, recipe="toy", hooks=hooks)
    assert seen == [True, False]  # it is active from the third step on
    after = objective.state_dict()
    assert torch.equal(after["frozen.weight"], before["frozen.weight"])
    assert not torch.equal(after["hidden.weight"], before["hidden.weight"])
    assert after["tied.weight"].data_ptr() == after["part.linear.weight"].data_ptr()
    moments = load_file(checkpoint_path(tmp_path, 3) / "optimizer.safetensors")
    assert "hidden.weight/exp_avg" in moments
    assert not any(name.startswith("frozen") for name in moments)


def test_the_optimizer_is_adamw_with_each_groups_rate(tmp_path):
    objective, reference = ToyObjective(gan=False), ToyObjective(gan=False)
    settings = config(steps=3, warmup=2, clip=0.3)
    fit(objective, ToyDataset(), settings, tmp_path, recipe="toy")
    groups = reference.param_groups()
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
        group.setdefault("weight_decay", 0.0)
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)
    samples = iter(ToyDataset())
    for step, scale in enumerate((0.5, 1.0, 1.0)):
        for group, peak in zip(optimizer.param_groups, (1e-2, 5e-3), strict=True):
            group["lr"] = peak * scale
        batch = reference.collate([next(samples) for _ in range(8)])
        reference(batch, step)[0].backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(objective.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_prepare_has_data_of_its_own(tmp_path):
    class Prepared(ToyObjective):
        def prepare(self, batches):
            self.prepared = [next(batches)["keys"] for _ in range(2)]
            torch.rand(5)  # its random numbers do not count either
            with torch.no_grad():
                self.codes.zero_()

        def forward(self, batch, step):
            if step == 0:
                self.first = (batch["keys"], self.codes.detach().clone())
            return super().forward(batch, step)

    objective = Prepared()
    fit(objective, ToyDataset(), config(steps=2), tmp_path, recipe="toy")
    assert objective.prepared[0] == [f"sample-{i}" for i in range(8)]
    assert objective.first[0] == objective.prepared[0]
    assert not objective.first[1].any()
    again = Prepared()
    fit(again, ToyDataset(), config(steps=3), tmp_path, recipe="toy")
    assert again.prepared == []  # not when going on


def test_hooks_do_not_change_the_training(tmp_path):
    calls = []

    class Sample:
        every = 5

        def __call__(self, state):
            calls.append((state.step, state.logs["step"], state.rank))
            state.objective.eval()
            torch.rand(3)
            return {"psnr": float(state.step)}

    fit(ToyObjective(noise=0.1), ToyDataset(), config(), tmp_path / "a", recipe="toy")
    fit(ToyObjective(noise=0.1), ToyDataset(), config(), tmp_path / "b", recipe="toy",
        hooks=[Sample()])  # fmt: skip
    assert calls == [(5, 5, 0), (10, 10, 0), (12, 12, 0)]
    hooked = rows(tmp_path / "b")
    assert [row for row in hooked if "psnr" not in row] == rows(tmp_path / "a")
    assert {"step": 10, "psnr": 10.0} in hooked


def test_what_a_run_leaves_behind(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    result = fit(ToyObjective(), ToyDataset(), config(log_every=5), tmp_path, recipe="toy")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 5, 10, 12]
    row = read_metrics(tmp_path)[-1]
    assert {"loss", "distance", "loss_critic", "lr", "grad_norm", *TIMES} <= row.keys()
    assert row == result.last_logs and result.seconds >= row["seconds"] > 0
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000010", "step-00000012"]
    hidden = {p.name for p in (*tmp_path.iterdir(), *(tmp_path / "checkpoints").iterdir())}
    assert not any(name.startswith(".") for name in hidden)
    assert any("step 10/12" in r.message and "left" in r.message for r in caplog.records)


# ---- ends


def test_a_loss_that_is_not_finite_stops_before_it_is_learnt(tmp_path):
    objective = ToyObjective(nan_at=6)
    with pytest.raises(TrainingStopped, match=r"loss is not finite in step 7.*sample-48.*lower"):
        fit(objective, ToyDataset(), config(), tmp_path, recipe="toy")
    assert all(p.isfinite().all() for p in objective.parameters())
    assert checkpoints(tmp_path)[-1].name == "step-00000005"
    assert not (tmp_path / "DONE").exists()
    assert fit(ToyObjective(), ToyDataset(), config(), tmp_path, recipe="toy").resumed_from == 5


def test_a_gradient_that_is_not_finite_stops(tmp_path):
    class Root(ToyObjective):
        def forward(self, batch, step):
            loss, logs = super().forward(batch, step)
            if step == 2:
                loss = loss + (self.codes * 0.0).sum().abs().sqrt()  # finite, its slope is not
            return loss, logs

    with pytest.raises(TrainingStopped, match="gradient is not finite in step 3"):
        fit(Root(), ToyDataset(), config(), tmp_path, recipe="toy")


def test_the_objective_may_stop_the_run(tmp_path):
    class Collapsed(ToyObjective):
        def after_step(self, step):
            raise TrainingStopped(f"2 codes alive in step {step + 1}; raise the learning rate")

    with pytest.raises(TrainingStopped, match="2 codes alive in step 1"):
        fit(Collapsed(), ToyDataset(), config(), tmp_path, recipe="toy")


def test_a_dataset_that_ends_is_named(tmp_path):
    with pytest.raises(ValueError, match="dataset ended in step 4 of 12"):
        fit(ToyObjective(), ToyDataset(length=30), config(), tmp_path, recipe="toy")


def test_a_failed_export_leaves_no_final(tmp_path):
    class Half(ToyObjective):
        def export(self, directory):
            (directory / "half").write_text("x")
            raise PowerCut

    with pytest.raises(PowerCut):
        fit(Half(), ToyDataset(), config(), tmp_path, recipe="toy")
    assert not (tmp_path / "final").exists() and not (tmp_path / "DONE").exists()
    result = fit(ToyObjective(), ToyDataset(), config(), tmp_path, recipe="toy")
    assert result.resumed_from == 12
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["out.st"]


def test_several_processes_need_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="use --engine deepspeed"):
        fit(ToyObjective(), ToyDataset(), config(), tmp_path, recipe="toy")


def test_wandb_is_asked_for_only_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        fit(ToyObjective(), ToyDataset(), config(wandb=True), tmp_path, recipe="toy")


def test_on_a_gpu_the_watch_looks_one_step_later():
    """The lagged form, whose logic does not need a GPU."""

    def watch():
        found = StepWatch(torch.device("cpu"), 1)
        found._lagged = True
        return found

    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    first = watch()
    for step, (loss, stop, answer) in enumerate(
        [(good, False, False), (good, True, False), (good, True, True)]
    ):
        assert first.look(loss, ["a"], step, last=True, stop=stop) is answer
        first.look_at_gradient(good, step)
    second = watch()
    second.look(bad, ["x"], 4, last=False, stop=False)
    second.look(good, ["y"], 4, last=True, stop=False)
    with pytest.raises(TrainingStopped, match="not finite in step 5; batch keys: x, y;"):
        second.look(good, ["z"], 5, last=True, stop=False)
    third = watch()
    third.look(good, ["x"], 4, last=True, stop=False)
    third.look_at_gradient(bad, 4)
    with pytest.raises(TrainingStopped, match="not finite in step 5"):
        third.settle(5)
