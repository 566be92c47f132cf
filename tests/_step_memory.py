"""Really trains two steps of a small tokenizer and prints the bytes that it took at the most."""

import resource
import sys
from pathlib import Path

import torch
from transformers import SiglipVisionConfig
from vqrae.tokenizer import TokenizerLossConfig, TokenizerObjective, VQRAEConfig, VQRAEModel
from vqrae.training import TrainConfig
from vqrae.training._critic import CriticTrainer
from vqrae.training.engine import TorchEngine

SIZE = 128
TRAIN = TrainConfig(steps=10, batch_size=1)


def build(stage: int, *, small: bool = False) -> TokenizerObjective:
    encoder = SiglipVisionConfig(
        hidden_size=32 if small else 256,
        intermediate_size=64 if small else 1024,
        num_hidden_layers=1 if small else 4,
        num_attention_heads=2 if small else 4,
        image_size=SIZE,
        patch_size=16,
        vision_use_head=False,
    )
    config = VQRAEConfig(encoder_config=encoder, codebook_size=2048, code_dim=320)
    loss = TokenizerLossConfig(
        stage=stage, adversarial_start=0 if stage == 2 else None, critic_width=16
    )
    return TokenizerObjective(VQRAEModel(config), loss, TRAIN.steps)


def batch(count: int) -> dict:
    return {"pixels": torch.rand(count, 3, SIZE, SIZE), "keys": list(range(count))}


def run(objective: TokenizerObjective, count: int) -> None:
    engine = TorchEngine(objective.train(), TRAIN, torch.device("cpu"))
    critic = CriticTrainer(objective, TRAIN, engine.device) if objective.critic else None
    for step in range(2):
        samples = batch(count)
        loss, _ = engine.forward(samples, step)
        engine.backward(loss)
        if critic is not None:
            critic.accumulate(samples, step)
        engine.step()
        if critic is not None:
            critic.step(step)


def main(stage: int, count: int) -> None:
    run(build(stage, small=True), 2)  # what libraries take once
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # The peak counter starts anew.
    Path("/proc/self/clear_refs").write_text("5")
    run(build(stage), count)
    peak = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    sys.stdout.write(str(peak * 1024 - pages * resource.getpagesize()))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
