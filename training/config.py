"""The run's own numbers: how long, how large, how fast. One owner for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ._weights import SHARD_BYTES


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything `fit` needs besides the objective and the data."""

    steps: int
    """Optimizer steps of the whole run."""
    batch_size: int
    """Samples per step over all processes and all accumulated micro-batches."""
    accumulation: int = 1
    """Micro-batches per step; each holds batch_size / (processes * accumulation) samples. May
    change when a run goes on, for example with another number of processes."""
    lr: float = 1e-3
    """Peak learning rate of the groups for which the objective names none."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine schedule, for groups that name none."""
    weight_decay: float = 0.0
    """AdamW's weight decay of the groups for which the objective names none."""
    warmup: int = 0
    """Steps of linear warm-up to the peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices that the objective names (those in transformer blocks), AdamW for
    the rest; plain torch engine only. The paper uses AdamW; muon is for runs of minutes."""
    muon_factor: float = 10.0
    """Muon's learning rate as a multiple of its group's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 clips nothing."""
    seed: int = 0
    """Seed of python, numpy and torch at step 0 (rank r adds r). When a run goes on with another
    number of processes, seed, step and rank make a new one."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl; a row is the mean over the steps since the last one."""
    save_every: int = 200
    """Steps between checkpoints; 0 saves only at the end and when interrupted."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""
    shard_bytes: int = SHARD_BYTES
    """Largest file of weights or moments in a checkpoint, in bytes. What is larger is written to
    several (a single larger tensor to a file of its own), and no more is gathered at a time."""
    engine: Literal["torch", "deepspeed"] = "torch"
    """Plain torch for one process, or DeepSpeed for any number of them."""
    deepspeed: str | None = None
    """DeepSpeed settings: a shipped name (zero0 to zero3, zero3_offload) or a JSON file's path."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast (weights stay fp32). Slow on most CPUs."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is exported; 0: none. The TiTok
    family takes 0.999. Not with ZeRO 3, which keeps no weight whole."""
    compile: str = ""
    """Backend with which torch.compile compiles the large parts, such as inductor; empty: none."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    num_workers: int = 0
    """Loader processes; 0 loads in the training process."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the wandb package)."""
    mfu: bool = False
    """Also log mfu, from 0 to 1: the share of the device's matmul speed, measured at the start in
    under a second, that the model's own products make use of."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every", "keep", "shard_bytes"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in (
            "warmup",
            "save_every",
            "num_workers",
            "clip",
            "lr",
            "min_lr",
            "weight_decay",
            "muon_factor",
        ):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it is a decay from 0 (none) to below 1")
        for name, known in (
            ("optimizer", ("adamw", "muon")),
            ("schedule", ("cosine", "constant")),
            ("engine", ("torch", "deepspeed")),
            ("precision", ("fp32", "bf16")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}")
        if self.optimizer == "muon" and self.engine == "deepspeed":
            raise ValueError(
                "optimizer is 'muon', which needs whole matrices; with engine deepspeed use adamw"
            )
        if self.deepspeed is not None and self.engine != "deepspeed":
            raise ValueError(
                f"deepspeed is {self.deepspeed!r} but engine is {self.engine!r}; "
                "set engine to deepspeed"
            )

    def micro_batch(self, world_size: int) -> int:
        """Samples per process and forward pass; ValueError when batch_size does not divide."""
        parts = world_size * self.accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be a multiple of processes * "
                f"accumulation = {world_size} * {self.accumulation}"
            )
        return self.batch_size // parts
