"""Muon for the matrices inside transformer blocks, AdamW for everything else.

Momentum made orthogonal by Newton-Schulz steps (K. Jordan and others, 2024): the same loss in a
fraction of AdamW's steps on small models. Not in the paper, whose recipes use AdamW. torch's and
timm's own Muon work in bfloat16, which a CPU without such hardware runs a hundred times slower;
this one does so in bf16 runs only, and works over all matrices of one shape at once.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(M, rows, columns) -> the same with singular values near 1 (between about 0.7 and 1.2)."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """Groups with "muon": True are stepped by Muon, the others by AdamW.

    The update of a matrix is `lr * sqrt(max(1, rows / columns))` times an orthogonal matrix.

    Args:
        dtype: in which matrices are made orthogonal; weights and momentum keep theirs.
    """

    def __init__(
        self,
        groups: list[dict],
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        **adamw,
    ):
        super().__init__(groups, **adamw)
        self.momentum, self.dtype = momentum, dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both."""
        groups = self.param_groups
        for group in groups:
            if group.get("muon"):
                self._muon_step(group)
        # AdamW's own step walks over self.param_groups.
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _muon_step(self, group: dict) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            directions = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
                directions.append(parameter.grad.lerp(state["momentum"], self.momentum))
            updates = orthogonalise(torch.stack(directions).to(self.dtype)).to(directions[0])
            lr = group["lr"]
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.sub_(update, alpha=lr * max(1.0, shape[0] / shape[1]) ** 0.5)
