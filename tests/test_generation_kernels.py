"""The kernels for CPUs: as torch does it, and done without where they cannot be built."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from vqrae.generation import _kernels
from vqrae.generation._huge_pages import in_huge_pages
from vqrae.generation._kernels import attend, have_kernels, panels_of

assert have_kernels()  # a compiler is among what the tests need


@pytest.mark.parametrize("heads, shared", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("width", [1, 20, 64, 128, 200])
def test_attention_equals_the_library(heads, shared, width):
    torch.manual_seed(0)
    rows, room = 3, 37
    # Views into larger buffers, as caches give them.
    query = torch.randn(rows, 1, heads, width).transpose(1, 2)
    key, value = torch.randn(2, rows, shared, room + 9, width)[..., :room, :]
    mask = torch.rand(rows, room) < 0.7
    mask[:, 5] = True
    expected = scaled_dot_product_attention(
        query, key, value, mask[:, None, None], scale=0.3, enable_gqa=True
    )
    ours = attend(query[:, :, 0], key, value, mask, 0.3)
    torch.testing.assert_close(ours, expected[:, :, 0])
    # What is masked is not read.
    key, value = (t.masked_fill(~mask[:, None, :, None], torch.nan) for t in (key, value))
    assert torch.equal(attend(query[:, :, 0], key, value, mask, 0.3), ours)
    alone = attend(query[1:2, :, 0], key[1:2], value[1:2], mask[1:2], 0.3)
    assert torch.equal(alone, ours[1:2])


def test_a_row_that_sees_nothing_gives_zeros():
    query, key = torch.randn(1, 2, 8), torch.randn(1, 2, 5, 8)
    assert not attend(query, key, key, torch.zeros(1, 5, dtype=torch.bool), 1.0).any()


def test_what_is_no_number_stays_none():
    query, key = torch.randn(2, 1, 2, 8), torch.randn(1, 2, 5, 8)
    query[0] = torch.nan
    seen = torch.ones(1, 5, dtype=torch.bool)
    assert attend(query[0], key, key, seen, 1.0).isnan().all()
    key[0, 1, 3] = torch.nan
    out = attend(query[1], key, torch.ones_like(key), seen, 1.0)
    assert out[0, 1].isnan().all() and out[0, 0].isfinite().all()


def test_the_compiler_is_told_the_truth():
    """Shapes, strides and that nothing is written in place, as torch.compile assumes them."""
    panels = panels_of(torch.randn(70, 33))
    torch.library.opcheck(torch.ops.vqrae.linear, (torch.randn(3, 33), panels, None, 70))
    key = torch.randn(2, 2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    torch.library.opcheck(torch.ops.vqrae.attend, (torch.randn(2, 4, 8), key, key, mask, 0.5))


@pytest.mark.parametrize("why", ["no compiler", "a failing compiler", "no folder to build in"])
def test_without_them_one_goes_on(why, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if why == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    elif why == "a failing compiler":
        monkeypatch.setenv("CXX", "false")
    else:
        (tmp_path / "vqrae").write_text("a file")
    with caplog.at_level("INFO"):
        assert not have_kernels.__wrapped__()
    assert "ours cannot be built" in caplog.text


def test_built_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = _kernels._built()
    made = first.stat().st_mtime_ns
    assert _kernels._built() == first and first.stat().st_mtime_ns == made
    # Nothing that was built aside is left.
    assert list(first.parent.iterdir()) == [first]
    # Another compiler's is another.
    monkeypatch.setenv("CXX", "c++ -O2")
    assert _kernels._built() != first


def test_huge_pages_hold_what_is_put_there():
    for shape in ((3, 5), (700, 1024)):  # less than a page and more
        made = in_huge_pages(shape, torch.float32)
        assert made.shape == shape and not made.any()
        values = torch.randn(shape)
        assert torch.equal(made.copy_(values), values)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert made.data_ptr() % (2 << 20) == 0
