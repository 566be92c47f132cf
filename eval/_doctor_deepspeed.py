"""Whether DeepSpeed would take our settings, and a user's own: its own classes are asked."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from vqrae import deepspeed_configs
from vqrae.eval._finding import Finding, one_line
from vqrae.training import TrainConfig
from vqrae.training._deepspeed import _import_deepspeed, settings

_SECTIONS = ("zero_optimization", "bf16", "fp16")
# DeepSpeed ignores a key that it does not know, without a word. Batch size, clipping, optimizer and
# schedule are not here: `settings` refuses them with the reason.
_KNOWN = frozenset(
    """
    activation_checkpointing aio autotuning checkpoint comms_logger communication_data_type
    compile csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    disable_allgather disable_python_gc dump_state elasticity flops_profiler gradient_allreduce_op
    gradient_predivide_factor hybrid_engine load_universal_checkpoint log_level
    managed_gradient_accumulation memory_breakdown nebula pipeline prescale_gradients
    seq_parallel_communication_data_type sequence_parallel_size sparse_attention sparse_gradients
    steps_per_print tensor_parallel tensorboard timers use_data_before_expert_parallelism
    vocabulary_size wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer bf16 fp16 zero_optimization
    """.split()  # noqa: SIM905
)


def check_deepspeed(given: str | None) -> Iterator[Finding]:
    """Each shipped file and the given one, merged as a run merges it."""
    check = "deepspeed"
    installed = find_spec("deepspeed") is not None
    if installed:
        # it writes a line or two to stdout, which may be read as JSON
        with contextlib.redirect_stdout(sys.stderr):
            _import_deepspeed(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        yield Finding(check, "ok", f"DeepSpeed {version('deepspeed')} can be imported")
    else:
        text = "DeepSpeed is not installed; the inner keys of its settings are not checked"
        mend = "" if given is None else "pip install 'vqrae[train]'"
        yield Finding(check, "ok" if given is None else "warning", text, mend)
    fine = []
    for name in [*deepspeed_configs.names(), *([] if given is None else [given])]:
        try:
            _check(name, installed)
            fine.append(name)
        except Exception as error:
            text = f"{name}: {one_line(error)}"
            yield Finding(check, "problem", text, "see deepspeed_configs/ for files that work")
    if fine:
        yield Finding(check, "ok", f"settings that can be used: {', '.join(fine)}")


def _check(name: str, installed: bool) -> None:
    file = deepspeed_configs.path(name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"not a JSON object but a {type(content).__name__}")
    for section in _SECTIONS:
        if not isinstance(content.get(section, {}), dict):
            raise ValueError(f"{section} is {content[section]!r}, not an object")
    settings(TrainConfig(steps=1, batch_size=1, engine="deepspeed", deepspeed=name), 1)
    for key in content:
        if key not in _KNOWN:
            raise ValueError(f"{key!r} is no key of DeepSpeed's, which would ignore it{_near(key)}")
    if installed:
        _check_sections(content)


def _near(key: str) -> str:
    close = difflib.get_close_matches(key, _KNOWN, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_sections(content: dict[str, Any]) -> None:
    """By DeepSpeed's own classes, which forbid unknown keys."""
    from deepspeed.runtime.precision_config import get_bfloat16_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**content.get("zero_optimization", {}))
        if "bf16" in content:
            get_bfloat16_config({"bf16": content["bf16"]})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place} is {first['input']!r}: {first['msg'].lower()}") from None
