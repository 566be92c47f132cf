"""A real language model learns to see: SmolLM2-135M-Instruct joined with DINOv2-small.

Run: python examples/real_llm/run.py runs/real-llm
     (see README.md for what to install; killed, the same command goes on)

Adapters are trained on easy-vqa's questions and captions, with some plain text among them so that
the model goes on writing as before. Writes OUT/table.md and OUT/table.csv: accuracy on held-out
questions against steps, and the perplexity of two texts before, between and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from smollm2 import save_smollm2
from texts import held_out_texts, write_continuations
from transformers.utils.logging import disable_progress_bar
from vqrae.data import LlavaDataset, MixtureDataset, ShardDataset
from vqrae.data.easy_vqa import write_easy_vqa
from vqrae.eval import evaluate_vqa
from vqrae.mllm import UnifiedModel, UnifiedObjective, UnifiedObjectiveConfig
from vqrae.mllm.loading import load_language_model
from vqrae.recipes._grid import markdown_table, write_csv
from vqrae.tokenizer import VQRAEModel
from vqrae.training import TrainConfig, fit

sys.path.append(str(Path(__file__).resolve().parent.parent / "real_tokenizer"))
from weights import save_dinov2  # noqa: E402

SIZE = 112
LOSS = UnifiedObjectiveConfig(
    lr=2e-4,
    min_lr=2e-5,
    projector_lr=1e-3,
    projector_min_lr=1e-4,
    lora_rank=16,
    one_question=True,
)


@torch.no_grad()
def perplexity(model, processor, text: str) -> float:
    """Of `text` under the language model alone, nothing but text before it."""
    ids = torch.tensor([processor.untrusted(text)[:1024]])
    logits = model.language_model(input_ids=ids).logits[0, :-1, : processor.image_start_id]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:]).exp())


class Measure:
    """Accuracy on held-out questions and perplexity, every so many steps."""

    def __init__(self, processor, data: Path, questions: int, every: int):
        self.processor, self.data, self.texts = processor, data, held_out_texts()
        self.questions, self.every = questions, every

    def __call__(self, state) -> dict[str, float]:
        model = state.objective.model.eval()
        return self.of(model)

    def of(self, model) -> dict[str, float]:
        found = evaluate_vqa(
            model,
            self.processor,
            self.data / "test" / "vqa.json",
            train_json=self.data / "train" / "vqa.json",
            limit=self.questions,
            examples=0,
        )
        blind = found["baseline"]["words"]["overall"]
        types = {f"accuracy_{kind}": share for kind, share in found["types"].items()}
        scores = {
            f"perplexity_{name}": perplexity(model, self.processor, text)
            for name, text in self.texts.items()
        }
        return {"accuracy": found["overall"], **types, "text_only": blind, **scores}


@torch.no_grad()
def text_logits(llm, text_tokenizer, text: str) -> torch.Tensor:
    """(1, L, V) over the tokens that `text_tokenizer` had."""
    ids = torch.tensor([text_tokenizer(text, add_special_tokens=False)["input_ids"][:256]])
    return llm(input_ids=ids).logits[..., : len(text_tokenizer)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a VQRAE on DINOv2-small, else a fresh one")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--questions", type=int, default=300, help="asked at each measurement")
    parser.add_argument("--text", type=float, default=0.2, help="share of plain text")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    given = parser.parse_args()
    if not 0 <= given.text < 0.8:
        parser.error(f"--text is a share from 0 to below 0.8, not {given.text}")
    disable_progress_bar()
    out = given.out
    if not (out / "written").exists():
        save_smollm2(out / "smollm2")
        save_dinov2(out / "dinov2-small")
        (out / "written").touch()
    data = write_easy_vqa(out / "data")
    text = held_out_texts()["project"]

    torch.manual_seed(0)
    if given.tokenizer:
        vqrae = VQRAEModel.from_pretrained(given.tokenizer)
    else:  # only its encoder is needed to see
        vqrae = VQRAEModel.from_vfm(
            str(out / "dinov2-small"), codebook_size=256, code_dim=64, image_size=SIZE
        )
    llm, text_tokenizer = load_language_model(str(out / "smollm2"))
    logits = text_logits(llm, text_tokenizer, text)
    model, processor = UnifiedModel.from_parts(llm, text_tokenizer, vqrae, rows_multiple=64)
    extended = text_logits(model.language_model, text_tokenizer, text)
    difference = float((extended - logits).abs().max())

    measure = Measure(processor, data, given.questions, max(1, given.steps // 6))
    before = out / "before.json"
    if not before.exists():
        before.write_text(json.dumps(measure.of(model.eval())))
    objective = UnifiedObjective(model, processor, LOSS)
    parts = {
        "vqa": (LlavaDataset(data / "train" / "vqa.json", seed=0), 1 - 0.2 - given.text),
        "caption": (ShardDataset(data / "train", seed=0), 0.2),
    }
    if given.text:
        text_json = write_continuations(out / "text.json")
        parts["text"] = (LlavaDataset(text_json, seed=0), given.text)
    dataset = MixtureDataset(parts)
    config = TrainConfig(
        steps=given.steps,
        batch_size=given.batch,
        warmup=given.steps // 20,
        betas=(0.9, 0.999),
        save_every=100,
        precision=given.precision,
    )
    fit(objective, dataset, config, out / "run", recipe="real-llm", hooks=[measure])
    rows = [{"step": 0, **json.loads(before.read_text())}]
    for line in (out / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "accuracy" in row:
            rows.append(row)
    write(out, rows, difference)


def write(out: Path, rows: list[dict], difference: float) -> None:
    write_csv(out / "table.csv", rows)
    table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
    change = f"Largest change of a text logit by extending the vocabulary: {difference:g}."
    (out / "table.md").write_text(f"{table}\n{change}\n")
    print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
