"""The same losses and gradients in less memory: chunks of the head's rows, and layers run again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_mllm_objective import SAMPLES, objective
from test_mllm_parts import tiny_language_model, tiny_text_tokenizer, tiny_vqrae
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vqrae.mllm import UnifiedModel
from vqrae.mllm import _linear_loss as module
from vqrae.mllm._linear_loss import linear_losses

S, T, V, SPLIT = 60, 12, 500, 420


def head(*, bias=True, dtype=torch.float32, scale=1.0, frozen=False):
    """Hidden states, weight, bias; targets; blocks (text, codes; the last rows are of neither)."""
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(S, T, generator=generator)
    weight = torch.randn(V, T, generator=generator)
    offset = torch.randn(V, generator=generator) if bias else None
    at = torch.randperm(S, generator=generator)
    text, code = at[:40], at[40:55]  # five positions are not scored
    targets = torch.full((S,), -100)
    targets[text] = torch.randint(SPLIT, (len(text),), generator=generator)
    targets[code] = torch.randint(SPLIT, V - 30, (len(code),), generator=generator)
    # The first and last rows that there are.
    targets[text[:2]] = torch.tensor([0, SPLIT - 1])
    targets[code[:2]] = torch.tensor([SPLIT, V - 31])
    leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(not frozen)]
    if bias:
        leaves.append(offset.to(dtype).requires_grad_(not frozen))
    return leaves, targets, [(text, 0, SPLIT), (code, SPLIT, V - 30)]


def scored(leaves, targets, blocks):
    """Losses, and gradients of the leaves where positions have unlike weights."""
    hidden, weight, bias = (*leaves, None)[:3]
    losses = linear_losses(hidden, targets, weight, bias, blocks)
    shares = [torch.linspace(-1, 2, len(part)) for part in losses]
    total = sum((part * share).sum() for part, share in zip(losses, shares, strict=True))
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    return losses, torch.autograd.grad(total, trained)


def both_ways(monkeypatch, chunk, *problem):
    plain = scored(*problem)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(module, "_plain", None)
    return plain, scored(*problem)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 1000, 5000])
def test_chunks_give_the_plain_formulas_losses_and_gradients(monkeypatch, chunk, bias):
    plain, chunked = both_ways(monkeypatch, chunk, *head(bias=bias))
    for one, two in zip(plain, chunked, strict=True):
        for a, b in zip(one, two, strict=True):
            assert a.dtype == b.dtype == torch.float32
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * a.abs().max().item())
    assert not chunked[1][1][V - 30 :].any()  # rows of no block


def test_far_logits_do_not_overflow(monkeypatch):
    plain, chunked = both_ways(monkeypatch, 1000, *head(scale=100.0))
    assert max(part.max() for part in plain[0]) > 500
    for a, b in zip([*plain[0], *plain[1]], [*chunked[0], *chunked[1]], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 1)])
def test_blocks_without_positions(monkeypatch, empty):
    leaves, targets, blocks = head()
    for index in empty:
        blocks[index] = (blocks[index][0][:0], *blocks[index][1:])
    plain, chunked = both_ways(monkeypatch, 1000, leaves, targets, blocks)
    for index, losses in enumerate(chunked[0]):
        assert losses.requires_grad and len(losses) == (0 if index in empty else (40, 15)[index])
    for a, b in zip(plain[1], chunked[1], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)


def test_losses_of_bf16_states_are_exact(monkeypatch):
    leaves, targets, blocks = head(dtype=torch.bfloat16)
    _, (losses, gradients) = both_ways(monkeypatch, 1000, leaves, targets, blocks)
    for (at, start, stop), found in zip(blocks, losses, strict=True):
        with torch.no_grad():
            logits = leaves[0][at] @ leaves[1][start:stop].T
        logits = logits.double() + leaves[2][start:stop].double().detach()
        wanted = F.cross_entropy(logits, targets[at] - start, reduction="none")
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
        assert (found != found.bfloat16()).any()
    exact = scored([leaf.detach().float().requires_grad_() for leaf in leaves], targets, blocks)
    for a, b in zip(exact[1], gradients, strict=True):
        assert b.dtype == torch.bfloat16
        torch.testing.assert_close(b.float(), a, rtol=0.03, atol=0.03)


def test_autocast_is_followed(monkeypatch):
    problem = head(bias=False)
    exact = scored(*problem)
    with torch.autocast("cpu", torch.bfloat16):
        plain, chunked = both_ways(monkeypatch, 1000, *problem)
    for a, b, c in zip(exact[0], plain[0], chunked[0], strict=True):
        assert (a - b).abs().max() > 1e-3  # matmuls were rounded
        torch.testing.assert_close(c, b, rtol=0, atol=1e-5)
    for a, b in zip(plain[1], chunked[1], strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b, a, rtol=0.03, atol=0.03)


class Largest(TorchDispatchMode):
    """Sizes of the tensors that are made within it."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.sizes += made if function is not torch.ops.aten.detach.default else []
        return result


@pytest.mark.parametrize("frozen", [False, True])
def test_no_tensor_of_all_logits_is_made(monkeypatch, frozen):
    problem = head(bias=False, frozen=frozen)
    logits, table = 40 * SPLIT, V * T
    with Largest() as plain:
        scored(*problem)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    with Largest() as chunked:
        scored(*problem)
    assert max(plain.sizes) == logits
    assert chunked.sizes.count(table) == (0 if frozen else 1)  # one gradient for both blocks
    assert max(size for size in chunked.sizes if size != table) <= 1000


@pytest.mark.parametrize("family, mixture", [("qwen3", 1), ("llama", 1), ("qwen3", 2)])
def test_a_models_losses_do_not_depend_on_chunks(monkeypatch, family, mixture):
    model, processor = UnifiedModel.from_parts(
        tiny_language_model(family), tiny_text_tokenizer(), tiny_vqrae(), code_mixture=mixture
    )
    first = model.config.code_offset
    ids = torch.randint(first + 24, (3, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 20:] = ids[:, 20:] % 24 + first
    ids[ids == model.config.image_pad_id] = 0
    labels = ids.where(torch.arange(40) % 3 > 0, -100)
    found = []
    for chunk in (2**24, 500):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        out = model(ids, labels=labels)
        trained = [p for p in model.language_model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(out.loss, trained, allow_unused=True)
        found.append([out.text_losses, out.code_losses, *gradients])
    assert len(out.text_losses) > 30 and len(out.code_losses) > 30
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained", [{}, {"train_llm": False}])
def test_gradient_checkpointing_changes_no_loss(trained):
    found = []
    for checkpointing in (False, True):
        ours = objective(gradient_checkpointing=checkpointing, **trained).train()
        calls = []
        layer = ours.model.language_model.get_decoder().layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss, _ = ours(ours.collate(SAMPLES), 0)
        loss.backward()
        gradients = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
        found.append((loss, gradients))
        assert len(calls) == (2 if checkpointing else 1)
    (loss, gradients), (again, gradients_again) = found
    assert torch.equal(loss, again) and gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients[n], gradients_again[n]) for n in gradients)
