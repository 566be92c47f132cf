"""Whether a model folder is whole, and whether what is in it does what it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from vqrae.assets import nano_folder
from vqrae.eval._finding import Finding
from vqrae.eval.protocol import weight_hashes

_CHECK = "model"
_SAVE_AGAIN = "save or copy the folder again"
# Batches are summed in another order; a hundred times what fp32 rounds off.
_CLOSE = 1e-3


def check_model(folder: Path) -> Iterator[Finding]:
    """Files, hashes, then the loaded model's vocabulary and pictures."""
    weights = sorted(folder.rglob("*.safetensors"))
    broken = [line for line in map(_unreadable, weights) if line]
    for line in broken:
        yield Finding(_CHECK, "problem", line, _SAVE_AGAIN)
    if not broken:
        yield from _hashes(folder)
    from vqrae.eval.run import load_models

    tokenizer, image_processor, model, processor = load_models(folder, torch.device("cpu"))
    kind = "tokenizer" if model is None else "unified model"
    whole = tokenizer if model is None else model
    millions = sum(p.numel() for p in whole.parameters()) / 1e6
    dtype = str(next(whole.parameters()).dtype).removeprefix("torch.")
    yield Finding(_CHECK, "ok", f"'{folder}' is a {kind}, {millions:.1f} million, {dtype}")
    bad = next((name for name, p in whole.state_dict().items() if not _finite(p)), None)
    if bad is not None:
        text = f"weights are not finite, {bad} first"
        yield Finding(_CHECK, "problem", text, "take an earlier checkpoint")
    if model is None and not (folder / "preprocessor_config.json").is_file():
        text = "no preprocessor_config.json beside the tokenizer"
        mend = "VQRAEImageProcessor(image_size).save_pretrained(folder)"
        yield Finding(_CHECK, "warning", text, mend)
    if model is not None:
        yield from _vocabulary(model, processor)
    with torch.no_grad():
        yield from _pictures(tokenizer)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _unreadable(path: Path) -> str:
    """What is wrong with a safetensors file; "" for nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"'{path}' is not whole: {error}"


def _hashes(folder: Path) -> Iterator[Finding]:
    """Against those that a results.json in the folder or above it has recorded."""
    found = weight_hashes(folder)
    listed = ", ".join(f"{name} {digest[:12]}" for name, digest in found.items())
    record = next((p for f in (folder, folder.parent) if (p := f / "results.json").is_file()), None)
    recorded = _recorded(record) if record is not None else set()
    if found and recorded.issuperset(found.values()):
        yield Finding(_CHECK, "ok", f"weights are those that '{record}' measured: {listed}")
    elif recorded and folder.resolve() == nano_folder().resolve():
        text = f"weights of the model that ships are not those that it was measured with: {listed}"
        yield Finding(_CHECK, "problem", text, "install the package again")
    elif recorded:
        text = f"weights are not among those that '{record}' records: {listed}"
        yield Finding(_CHECK, "ok", text)
    elif found:
        yield Finding(_CHECK, "ok", f"no results beside the weights name their hashes: {listed}")


def _recorded(file: Path) -> set[str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        # results of before version 1 had them in the protocol
        cards = [content.get("model"), content.get("protocol")]
        found = [card["weights sha256"] for card in cards if isinstance(card, dict)
                 and "weights sha256" in card]  # fmt: skip
        return {str(digest) for card in found for digest in card.values()}
    except (OSError, ValueError, AttributeError):
        return set()


def _vocabulary(model: Any, processor: Any) -> Iterator[Finding]:
    """Every code one id, in its place; and nobody can type one."""
    from vqrae.mllm.vocabulary import code_token

    config, tokenizer = model.config, processor.tokenizer
    codes = [code_token(index) for index in range(config.codebook_size)]
    ids = tokenizer(codes, add_special_tokens=False, verbose=False)["input_ids"]
    wanted = range(config.code_offset, config.code_offset + config.codebook_size)
    wrong = [index for index, (got, id_) in enumerate(zip(ids, wanted, strict=True))
             if got != [id_]]  # fmt: skip
    if wrong:
        first = wrong[0]
        text = f"{len(wrong)} of {len(codes)} codes are not one id in their place: {codes[first]} "
        text += f"is {ids[first]}, not [{wanted[first]}]"
        yield Finding(_CHECK, "problem", text, "copy tokenizer.json from where the model was saved")
        return
    text = f"each of {len(codes)} codes is one id, from {config.code_offset} on"
    yield Finding(_CHECK, "ok", text)
    marks = (config.image_start_id, config.image_end_id, config.image_pad_id)
    typed = "".join([*tokenizer.convert_ids_to_tokens(list(marks)), codes[0], codes[-1]])
    processor.untrusted(typed)  # asserts
    yield Finding(_CHECK, "ok", "marks and codes that somebody types stay text")


def _pictures(tokenizer: Any) -> Iterator[Finding]:
    """Codes and back: finite, the same again, the same in another batch."""
    size = tokenizer.config.image_size
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(tokenizer.parameters()).dtype)
    codes = tokenizer.tokenize(pixels)
    drawn = tokenizer.detokenize(codes)
    wrong = []
    if drawn.shape != pixels.shape or not bool(drawn.isfinite().all()):
        wrong.append(f"pictures come back as {tuple(drawn.shape)} and not all finite")
    if not 0 <= int(codes.min()) <= int(codes.max()) < tokenizer.config.codebook_size:
        wrong.append(f"codes reach from {int(codes.min())} to {int(codes.max())}")
    again = tokenizer.tokenize(pixels)
    if not torch.equal(again, codes) or not torch.equal(tokenizer.detokenize(codes), drawn):
        wrong.append("the same picture gives other codes or pixels when asked again")
    together, alone = tokenizer.encode(pixels)[:1].float(), tokenizer.encode(pixels[:1]).float()
    gap = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-12))
    limit = _CLOSE if pixels.dtype == torch.float32 else 0.1
    if not gap <= limit:
        wrong.append(f"features of a picture differ by {gap:.1e} of their size with its batch")
    for text in wrong:
        yield Finding(_CHECK, "problem", text, _SAVE_AGAIN)
    if not wrong:
        text = f"pictures of {size} pixels go through {codes.shape[1]} codes and back; features in "
        yield Finding(_CHECK, "ok", f"{text}a batch and alone differ by {gap:.0e} of their size")
