"""SimVQ against a plain reference, and what keeps a codebook alive."""

import pytest
import torch
from vqrae.tokenizer import SimVQ, _nearest
from vqrae.tokenizer.codebook_init import kmeans
from vqrae.tokenizer.usage import UsageWindow


def plain_simvq(z, codebook, transform, beta, assignment):
    """SimVQ written out: one vector at a time, with explicit distances."""
    codes = codebook @ transform
    picked = []
    for vector in z.detach():
        if assignment == "cosine":
            near = torch.nn.functional.cosine_similarity(vector, codes.detach()).argmax()
        else:
            near = torch.cdist(vector[None], codes.detach())[0].argmin()
        picked.append(int(near))
    quantized = codes[picked]
    commit = ((quantized.detach() - z) ** 2).mean()
    loss = ((quantized - z.detach()) ** 2).mean() + beta * commit
    return z + (quantized - z).detach(), picked, loss


@pytest.mark.parametrize("assignment", ["euclidean", "cosine"])
def test_equals_the_plain_reference_forward_and_backward(assignment):
    torch.manual_seed(0)
    quantizer = SimVQ(codebook_size=40, code_dim=12, beta=0.25, assignment=assignment)
    with torch.no_grad():
        quantizer.transform.add_(torch.randn(12, 12) * 0.1)
    z = torch.randn(30, 12, requires_grad=True)
    z2, w2 = z.detach().clone().requires_grad_(), quantizer.transform.detach().clone()
    w2.requires_grad_()
    ours = quantizer(z.view(5, 6, 12))
    values, picked, loss = plain_simvq(z2, quantizer.codebook, w2, 0.25, assignment)

    assert ours.codes.flatten().tolist() == picked
    torch.testing.assert_close(ours.latents.view(30, 12), values)
    torch.testing.assert_close(ours.loss, loss)
    weights = torch.randn(30, 12)
    ((ours.latents.view(30, 12) * weights).sum() + ours.loss).backward()
    ((values * weights).sum() + loss).backward()
    torch.testing.assert_close(z.grad, z2.grad)
    torch.testing.assert_close(quantizer.transform.grad, w2.grad)


def test_lookup_applies_the_transform():
    """The known trap: a raw codebook row is noise to the decoder."""
    quantizer = SimVQ(16, 8, 0.25, "euclidean")
    with torch.no_grad():
        quantizer.transform.copy_(torch.randn(8, 8))
    codes = torch.arange(16)
    torch.testing.assert_close(quantizer.lookup(codes), quantizer.effective_codebook())
    assert torch.equal(quantizer.nearest(quantizer.lookup(codes)), codes)


@pytest.mark.parametrize("assignment", ["euclidean", "cosine"])
def test_blocks_do_not_change_the_assignment(assignment, monkeypatch):
    quantizer = SimVQ(64, 8, 0.25, assignment)
    quantizer.codebook[40:50] = quantizer.codebook[3:13]  # of equal codes the first one is taken
    z = torch.cat([torch.randn(100, 8), quantizer.codebook])
    whole = quantizer.nearest(z)
    monkeypatch.setattr("vqrae.tokenizer._nearest._LATENTS", 7)
    monkeypatch.setattr("vqrae.tokenizer._nearest._CODES", 5)
    assert torch.equal(quantizer.nearest(z), whole)
    assert whole[100:].tolist() == [*range(40), *range(3, 13), *range(50, 64)]


@pytest.mark.parametrize("kind", ["random", "clusters", "far from zero", "equal"])
def test_two_passes_find_the_nearest(kind, monkeypatch):
    """The pass in bf16 may only leave out codes that can't be the nearest."""
    torch.manual_seed(0)
    codes, z = torch.randn(500, 96), torch.randn(300, 96)
    if kind == "clusters":
        codes = codes[:25].repeat(20, 1) + 1e-3 * torch.randn(500, 96)
    elif kind == "far from zero":
        codes, z = codes + 30, z + 30
    elif kind == "equal":
        codes = codes[:100].repeat(5, 1)
    z[:20] = codes[-20:]
    z[20:40] = codes[200:220] * 1.01
    distances = (z[:, None].double() - codes.double()).norm(dim=-1)
    for name, value in {
        "_LATENTS": 70,
        "_CODES": 128,
        "_GROUPS": 32,
        "_WORTHWHILE": 0,
        "_PAIRS": 50,
    }.items():
        monkeypatch.setattr(_nearest, name, value)
    monkeypatch.setattr(_nearest, "has_bf16", lambda: True)
    index = _nearest.CodeIndex(codes)
    if kind == "random":
        index._in_full = None  # few pairs need the second pass
    found = index.nearest(z)
    if kind in ("random", "equal"):
        assert torch.equal(found, distances.argmin(-1))
    # Squared distances in fp32 can't tell nearer ones apart.
    reached = distances.gather(1, found[:, None])[:, 0]
    tolerance = 0.05 if kind == "far from zero" else 1e-3
    assert (reached.square() - distances.amin(-1).square()).max() < tolerance


def test_a_changed_codebook_is_searched_anew():
    """In evaluation the codes are kept between calls."""
    torch.manual_seed(0)
    quantizer, every = SimVQ(16, 8, 0.25, "euclidean").eval(), torch.arange(16)
    assert torch.equal(quantizer.nearest(quantizer.effective_codebook()), every)
    kept = quantizer._kept[1]
    assert torch.equal(quantizer.nearest(quantizer.effective_codebook()), every)
    assert quantizer._kept[1] is kept
    quantizer.fill(torch.randn(16, 8))
    assert torch.equal(quantizer.nearest(quantizer.effective_codebook()), every)
    quantizer.load_state_dict({"codebook": torch.randn(16, 8), "transform": 2 * torch.eye(8)})
    assert torch.equal(quantizer.nearest(quantizer.effective_codebook()), every)
    quantizer.train()
    quantizer.transform.data.mul_(-1)  # as an engine does, unseen by autograd's counter
    quantizer.eval()
    assert torch.equal(quantizer.nearest(quantizer.effective_codebook()), every)


def test_two_passes_take_what_is_not_a_number(monkeypatch):
    monkeypatch.setattr(_nearest, "_WORTHWHILE", 0)
    monkeypatch.setattr(_nearest, "has_bf16", lambda: True)
    codes, z = torch.randn(50, 8), torch.randn(4, 8)
    z[2] = torch.nan
    found = _nearest.CodeIndex(codes).nearest(z)
    assert found.max() < 50
    kept = torch.tensor([0, 1, 3])
    assert torch.equal(found[kept], torch.cdist(z[kept], codes).argmin(-1))


def test_fill_and_revive_hold_in_the_transformed_space():
    torch.manual_seed(0)
    quantizer = SimVQ(16, 8, 0.25, "euclidean")
    with torch.no_grad():
        quantizer.transform.copy_(torch.randn(8, 8))
    rows = torch.randn(16, 8)
    quantizer.fill(rows)
    torch.testing.assert_close(quantizer.effective_codebook(), rows, atol=1e-4, rtol=1e-4)
    new = torch.randn(2, 8)
    quantizer.revive(torch.tensor([3, 7]), new)
    rows[[3, 7]] = new
    torch.testing.assert_close(quantizer.effective_codebook(), rows, atol=1e-4, rtol=1e-4)


def test_kmeans_finds_separate_clusters_and_leaves_no_centre_empty():
    torch.manual_seed(0)
    truth = torch.randn(20, 6) * 10
    vectors = (truth[:, None] + torch.randn(20, 50, 6) * 0.01).flatten(0, 1)
    centres = kmeans(vectors, 20, iterations=20)
    assert torch.cdist(truth, centres).min(1).values.max() < 0.1
    assert torch.equal(kmeans(vectors, 20), kmeans(vectors, 20))
    with pytest.raises(ValueError, match="1000 encoded tokens cannot start a codebook of 2000"):
        kmeans(vectors, 2000)


def test_usage_is_counted_over_its_window_only():
    usage = UsageWindow(codebook_size=4, batches=2)
    usage.add(torch.tensor([[0, 1]]))
    usage.add(torch.tensor([[2, 2]]))
    usage.add(torch.tensor([[2, 3]]))
    assert usage.full
    assert usage.counts().tolist() == [0, 0, 3, 1]
    logs = usage.logs()
    assert logs["usage"] == 0.5
    assert logs["perplexity"] == pytest.approx((0.75**-0.75) * (0.25**-0.25))
