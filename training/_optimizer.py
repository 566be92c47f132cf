"""AdamW over an objective's groups, and its state by parameter name.

State by name is what lets a checkpoint be read by another engine or another ZeRO stage.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ._muon import MuonAdamW
from .config import TrainConfig

logger = logging.getLogger(__name__)


def complete_groups(
    groups: list[dict], config: TrainConfig, muon: Iterable[nn.Parameter] = ()
) -> list[dict]:
    """Groups for torch: frozen parameters dropped, the config's numbers filled in.

    With optimizer "muon", the parameters in `muon` leave their group for one of their own.
    """
    matrices = {id(p) for p in muon} if config.optimizer == "muon" else set()
    whole = []
    for index, group in enumerate(groups):
        params = [p for p in group["params"] if p.requires_grad]
        name = group.get("name", f"group{index}")
        peak = float(group.get("lr", config.lr))
        low = float(group.get("min_lr", min(config.min_lr, peak)))
        decay = float(group.get("weight_decay", config.weight_decay))
        for suffix, inside, factor in (("", False, 1.0), ("_muon", True, config.muon_factor)):
            chosen = [p for p in params if (id(p) in matrices) == inside]
            if not chosen:
                continue
            whole.append(
                {
                    "name": name + suffix,
                    "params": chosen,
                    "muon": inside,
                    "lr": peak * factor,
                    "peak_lr": peak * factor,
                    "min_lr": low * factor,
                    "weight_decay": decay,
                }
            )
    if not whole:
        raise ValueError("the objective has no trainable parameter; unfreeze a part of it")
    return whole


def make_optimizer(groups: list[dict], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, with Muon where the config says so.

    Fused, because the loop over parameters in Python costs more than small models do.
    """
    floating = all(p.is_floating_point() for group in groups for p in group["params"])
    options = {"betas": config.betas, "eps": config.eps, "fused": floating}
    if not any(group["muon"] for group in groups):
        return torch.optim.AdamW(groups, **options)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return MuonAdamW(groups, dtype=dtype, **options)


def warn_left_out(module: nn.Module, groups: list[dict]) -> None:
    """A trainable parameter in no group would silently stay as it is."""
    grouped = {id(p) for group in groups for p in group["params"]}
    names = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in grouped]
    if names:
        logger.warning(
            "%d trainable parameters are in no optimizer group and stay as they are: %s",
            len(names),
            ", ".join(names[:5]) + (" ..." if len(names) > 5 else ""),
        )


def pack_state(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimizer's state as {"NAME/exp_avg": tensor, ...}, where it lies (not copied)."""
    return {
        f"{name}/{key}": value.detach()
        for name, parameter in named
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def unpack_state(
    tensors: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
) -> None:
    """The counterpart of `pack_state`; a parameter that had no state gets none."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        by_name.setdefault(name, {})[key] = value
    fused = {id(p): g.get("fused") for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in named:
        if id(parameter) not in fused or name not in by_name:
            continue
        state = {}
        for key, value in by_name[name].items():
            # Only a fused step counter lives beside its parameter.
            on_cpu = key == "step" and not fused[id(parameter)]
            state[key] = value.clone() if on_cpu else value.to(parameter.device, copy=True)
        optimizer.state[parameter] = state
