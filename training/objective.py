"""What is trained: an `Objective` says how a batch becomes a loss; `fit` does everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn


class TrainingStopped(RuntimeError):
    """Training cannot usefully go on. The message says the step, what happened, what to try."""


class Objective(nn.Module):
    """Losses, trainable parameters and optimizer groups of one kind of training.

    The whole objective is one module and is given whole to the engine, so that DeepSpeed sees
    every parameter, and `forward` is the only way into it while training. What must stay outside
    (a GAN's critic, a teacher that is rebuilt on every start) is kept in an attribute that
    `nn.Module` does not register, for example inside a tuple or through `object.__setattr__`.
    """

    unit: str = "images"
    """What throughput counts, "images" or "tokens": the metric is called `<unit>_per_s`."""

    not_saved: tuple[str, ...] = ()
    """Prefixes of state-dict keys that checkpoints leave out (frozen parts rebuilt at start)."""

    # ---- data

    def collate(self, samples: list[dict]) -> dict:
        """Samples to one batch of CPU tensors; `batch["keys"]` is a list[str] naming them.

        It must not draw random numbers when it runs in loader workers (num_workers > 0): their
        generators start anew when a run is resumed.
        """
        raise NotImplementedError

    def count(self, batch: dict) -> int:
        """How many `unit`s the batch holds; by default the number of its keys."""
        return len(batch["keys"])

    def prepare(self, batches: Iterator[dict]) -> None:
        """Called once before step 0 of a fresh run, with batches already on the device.

        They come from a copy of the dataset, so the training stream is undisturbed. The engine is
        built afterwards, so parameters may be changed freely; with several ranks each one calls
        it, and rank 0's result is then given to all.
        """

    # ---- the model's phase

    def param_groups(self) -> list[dict]:
        """Optimizer groups: "params" and optionally "name", "lr" (peak), "min_lr", "weight_decay".

        What is left out comes from TrainConfig. Parameters with requires_grad=False are dropped by
        the engine. By default one group holds all trainable parameters.
        """
        return [{"name": "all", "params": [p for p in self.parameters() if p.requires_grad]}]

    def muon_parameters(self) -> list[nn.Parameter]:
        """Matrices for Muon, if the run chooses it: by default those of `nn.Linear` in layers that
        repeat (an `nn.ModuleList`), so neither embeddings nor heads nor lone projections."""
        blocks = [m for m in self.modules() if isinstance(m, nn.ModuleList)]
        linears = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
        return list({id(m.weight): m.weight for m in linears}.values())

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (scalar, a mean over this rank's batch) and detached scalars for the log.

        `step` counts finished steps: 0 in the first one.
        """
        raise NotImplementedError

    def large_parts(self) -> list[nn.Module]:
        """What TrainConfig.compile compiles, each by itself; by default nothing."""
        return []

    # ---- the critic's phase (GAN)

    @property
    def critic(self) -> nn.Module | None:
        """A second network, trained against the model by an optimizer of its own.

        It must NOT be a registered submodule. During `forward` its parameters do not require
        gradients (the model's gradient passes through it, nothing is added to its own).
        """
        return None

    def critic_param_groups(self) -> list[dict]:
        """As `param_groups`, for the critic; by default all of it in one group."""
        assert self.critic is not None
        return [{"name": "critic", "params": list(self.critic.parameters())}]

    def critic_active(self, step: int) -> bool:
        """Whether the critic is trained in this step."""
        return True

    def critic_loss(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss and logs, on what `forward` stashed (detached) for the same batch.

        It must not use the objective's own parameters, which ZeRO-3 has put away by now.
        """
        raise NotImplementedError

    # ---- after the step

    def after_step(self, step: int) -> dict[str, float]:
        """Called after the optimizer's step: statistics, revival of dead codes; returns logs.

        `step` is the one that forward saw. May change buffers, and the parameters that
        `edited_parameters` names, in the same way on every rank. May raise TrainingStopped.
        """
        return {}

    def edited_parameters(self) -> list[nn.Parameter]:
        """Parameters that `after_step` changes in place (and those that it reads under ZeRO-3).

        DeepSpeed gathers them around `after_step`, and rank 0's values go back into its masters.
        """
        return []

    # ---- state and result

    def extra_state(self) -> dict:
        """Tensors, numbers, strings (nested in dicts, lists) that are not in state_dict.

        Kept per rank; when the number of ranks changes, all get rank 0's. Only what
        torch.load(weights_only=True) reads.
        """
        return {}

    def load_extra_state(self, state: dict) -> None:
        """The counterpart of `extra_state`."""

    def export(self, directory: Path) -> None:
        """Save the finished model into the (existing, empty) directory."""


def decay_groups(
    module: nn.Module, *, name: str, lr: float, min_lr: float, weight_decay: float
) -> list[dict]:
    """Two groups of a module's trainable parameters: matrices decay, biases and norms do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    common = {"lr": lr, "min_lr": min_lr}
    groups = [
        {
            "name": name,
            "params": [p for p in trainable if p.ndim >= 2],
            "weight_decay": weight_decay,
            **common,
        },
        {
            "name": f"{name}_no_decay",
            "params": [p for p in trainable if p.ndim < 2],
            "weight_decay": 0.0,
            **common,
        },
    ]
    return [group for group in groups if group["params"]]
