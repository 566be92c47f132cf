"""Which tables each benchmark is, and where they come from."""

from __future__ import annotations

from vqrae.eval.tasks.sources import Source

POPE = Source(
    name="pope",
    hub="lmms-lab/POPE",
    config="data",
    split="test",
    columns=("question", "answer", "category", "image"),
    official="github.com/AoiDragon/POPE, pictures of COCO val2014",
    other_form="coco_pope_{random,popular,adversarial}.json with val2014/",
)
GQA = Source(
    name="gqa",
    hub="lmms-lab/GQA",
    config="testdev_balanced_instructions",
    split="testdev",
    columns=("id", "imageId", "question", "answer"),
    official="cs.stanford.edu/people/dorarad/gqa",
    other_form="testdev_balanced_questions.json with images/",
)
GQA_IMAGES = Source(
    name="gqa",
    hub="lmms-lab/GQA",
    config="testdev_balanced_images",
    split="testdev",
    columns=("id", "image"),
    official=GQA.official,
)
TEXTVQA = Source(
    name="textvqa",
    hub="lmms-lab/textvqa",
    config="data",
    split="validation",
    columns=("question_id", "question", "answers", "image"),
    official="textvqa.org",
    other_form="TextVQA_0.5.1_val.json with train_images/",
)
MMBENCH = Source(
    name="mmbench",
    hub="lmms-lab/MMBench",
    config="en",
    split="dev",
    columns=("index", "question", "A", "B", "answer", "image"),
    official="github.com/open-compass/MMBench",
    other_form="mmbench_dev_*.tsv or MMBench_DEV_EN*.tsv",
)
MME = Source(
    name="mme",
    hub="lmms-lab/MME",
    config="data",
    split="test",
    columns=("question_id", "category", "question", "answer", "image"),
    official="github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation",
    other_form="a folder for each subtask with pictures and .txt files",
)
SEEDBENCH = Source(
    name="seedbench",
    hub="lmms-lab/SEED-Bench",
    config="data",
    split="test",
    columns=("question_id", "question_type_id", "data_type", "question", "choice_a", "answer"),
    official="github.com/AILab-CVC/SEED-Bench",
    other_form="SEED-Bench.json with SEED-Bench-image/",
)
AI2D = Source(
    name="ai2d",
    hub="lmms-lab/ai2d",
    config="data",
    split="test",
    columns=("question", "options", "answer", "image"),
    official="allenai.org/data/diagrams",
)
SOURCES = (POPE, GQA, TEXTVQA, MMBENCH, MME, SEEDBENCH, AI2D)
