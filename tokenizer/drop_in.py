"""A VQRAE encoder in the place of an MLLM's own vision tower, with no further training.

The paper's claim (section 4): stage 2 keeps the continuous features so near the original encoder's
that a model trained on those reads these as well. This writes the model to check it with.

Shapes: B batch, N image tokens, D encoder width.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from vqrae.data._writing import new_folder, write_json
from vqrae.tokenizer._encoder_families import family_of, used_layers
from vqrae.tokenizer.encoders import encoder_geometry
from vqrae.tokenizer.fingerprint import fingerprint
from vqrae.tokenizer.modeling_vqrae import VQRAEModel

logger = logging.getLogger(__name__)

RECORD = "drop_in.json"
TOWERS = {"llava": ("clip_vision_model", "siglip_vision_model"), "internvl": ("internvl_vision",)}
"""model_type of an MLLM: those of the towers that it may have."""

# Beside the geometry, what decides which function the weights stand for.
_CHOICES = ("num_channels", "hidden_act", "attention_bias", "use_qk_norm", "norm_type")
_CHOICES += ("use_absolute_position_embeddings", "use_mean_pooling")
# On disk towers stand under several prefixes, by the version of transformers that wrote them.
_IN_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(?P<name>.+)$")
_FLOATS = ("F64", "F32", "F16", "BF16")
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
# Other copies of the weights would still hold the old tower.
_NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", ".*")


@dataclass(frozen=True)
class DropIn:
    """What became of the tower; also written to the folder as drop_in.json."""

    tokenizer: str
    """Fingerprint of the VQRAE whose encoder it is."""
    replaced: int
    """Tensors that are the encoder's now."""
    kept: list[str]
    """Modules of the tower that are still the MLLM's own, for the encoder has none of them."""
    encoder: str
    """What `VQRAEModel.encode` gives: the layer, counted from 1, and its norm."""
    read: list[str]
    """The same of what the MLLM reads from its tower."""

    @property
    def same_features(self) -> bool:
        """Whether the MLLM reads what `VQRAEModel.encode` gives."""
        return self.read == [self.encoder]


def drop_in(vqrae: VQRAEModel, mllm: str | Path, out: str | Path) -> DropIn:
    """Copy an MLLM's folder with the encoder of `vqrae` in the place of its vision tower.

    For LLaVA with a CLIP or SigLIP tower and InternVL, as transformers has them
    (LlavaForConditionalGeneration, InternVLForConditionalGeneration). All other weights and files
    are the same bits. Tensors are cast to the type that the tower has on disk. What the encoder
    does not have (layers above its encoder_layer, a pooling head, a final norm that final_norm
    leaves out or strips of its weights) stays the MLLM's own, and is logged.

    Which features the MLLM reads is its own config's choice and is not changed. They are those of
    `VQRAEModel.encode` only if both stop at the same layer and norm, which `same_features` tells:

    - InternVL reads the last layer, as VQRAE does by default.
    - LLaVA-1.5 reads the last layer but one (vision_feature_layer -2), and never the final norm.
      The weights are put in nonetheless; but stage 2 held encode's features near the original, and
      what lies below them only as far as that needs it. Train with encoder_layer=-2 to hold what
      LLaVA reads (CLIP's final_norm is "none" by default).
    - LLaVA with SigLIP at vision_feature_layer -1 reads the last layer before its norm; VQRAE's
      default there is after it. final_norm="none" makes them one.

    Args:
        vqrae: the tokenizer, after stage 2 if the encoder shall differ from the original at all.
        mllm: folder of the MLLM, its weights as safetensors.
        out: folder to write; it appears whole or not at all.

    Raises:
        ValueError: for another kind of MLLM or tower; an encoder of another class or shape, or made
            for other mean and deviation of pixels, naming both values; a folder that is not whole;
            an `out` that holds something already.
    """
    mllm, out = Path(mllm), Path(out)
    if out.resolve().is_relative_to(mllm.resolve()):
        raise ValueError(f"'{out}' lies in the MLLM's own folder; choose another")
    config = _mllm_config(mllm)
    _check_same_architecture(vqrae.encoder.config, config.vision_config, mllm)
    _check_same_pixels(vqrae, mllm)
    ours = vqrae.encoder.state_dict()
    places = _places(mllm, ours)
    with new_folder(out) as aside:
        shutil.copytree(mllm, aside, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        for path in _weight_files(mllm):
            _write_weights(path, aside / path.name, ours, places)
        done = _describe(vqrae, config, places)
        write_json(aside / RECORD, asdict(done) | {"same_features": done.same_features})
    _log(done, vqrae, mllm, out)
    return done


# -- checks --------------------------------------------------------------------------------------


def _mllm_config(folder: Path) -> PreTrainedConfig:
    if not folder.is_dir():
        raise ValueError(f"there is no MLLM folder '{folder}'; give one written by save_pretrained")
    kind = _json(folder / "config.json").get("model_type")
    if kind not in TOWERS:
        raise ValueError(
            f"'{folder / 'config.json'}' is of model_type {kind!r}; an encoder can be put into "
            f"{' and '.join(TOWERS)} models of transformers"
        )
    config = AutoConfig.from_pretrained(folder)
    tower = config.vision_config.model_type
    if tower not in TOWERS[kind]:
        raise ValueError(
            f"the tower of '{folder}' is of type {tower!r}; in {kind} models one of "
            f"{', '.join(TOWERS[kind])} can be replaced"
        )
    return config


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"'{path.parent}' has no {path.name}; copy the MLLM again") from None
    except ValueError:
        raise ValueError(f"'{path}' is not JSON; copy the MLLM again") from None


def _check_same_architecture(ours: PreTrainedConfig, theirs: PreTrainedConfig, mllm: Path) -> None:
    def facts(config: PreTrainedConfig) -> dict[str, object]:
        choices = {name: getattr(config, name, None) for name in _CHOICES}
        return {"type": config.model_type} | asdict(encoder_geometry(config)) | choices

    expected = facts(theirs)
    for name, value in facts(ours).items():
        if value != expected[name]:
            raise ValueError(
                f"the tokenizer's encoder has {name} {value!r}, but the tower of '{mllm}' "
                f"{expected[name]!r}; take a VQRAE trained on that MLLM's own encoder"
            )


def _check_same_pixels(vqrae: VQRAEModel, mllm: Path) -> None:
    found = _pixel_statistics(mllm)
    if found is None:
        logger.warning("%s says nothing of pixels' mean and deviation: not compared", mllm)
        return
    ours = [list(vqrae.config.pixel_mean), list(vqrae.config.pixel_std)]
    if not torch.allclose(torch.tensor(ours), torch.tensor(found), atol=1e-4):
        raise ValueError(
            f"the tokenizer's encoder reads pixels with mean and deviation {ours}, but '{mllm}' "
            f"prepares them with {list(found)}; take a VQRAE trained on that MLLM's own encoder"
        )


def _pixel_statistics(folder: Path) -> tuple[list[float], list[float]] | None:
    """From the image processor's file, alone or inside the whole processor's."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            fields = _json(folder / name)
            fields = fields.get("image_processor", fields)
            if "image_mean" in fields and "image_std" in fields:
                return fields["image_mean"], fields["image_std"]
    return None


# -- weights -------------------------------------------------------------------------------------


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        names = sorted(set(_json(folder / _INDEX)["weight_map"].values()))
    else:
        names = [_WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"'{folder}' has no {name}; save the MLLM as safetensors, or again")
    return [folder / name for name in names]


def _places(mllm: Path, ours: dict[str, Tensor]) -> dict[str, str]:
    """Names on disk of the tower's tensors: the names that its class has for them."""
    places: dict[str, str] = {}
    for path in _weight_files(mllm):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if match := _IN_TOWER.match(key):
                        places[key] = match["name"]
                        _check_fits(file.get_slice(key), ours.get(match["name"]), key, path)
        except SafetensorError as error:
            raise ValueError(f"cannot read '{path}': {error}; copy it again") from None
    missing = sorted(ours.keys() - places.values())
    if missing:
        raise ValueError(
            f"the tower in '{mllm}' lacks {len(missing)} weights that the encoder has, "
            f"{missing[0]!r} first; copy the MLLM again"
        )
    return places


def _check_fits(theirs, tensor: Tensor | None, key: str, path: Path) -> None:
    if tensor is None:
        return
    shape = list(theirs.get_shape())
    if shape != list(tensor.shape) or theirs.get_dtype() not in _FLOATS:
        raise ValueError(
            f"{key!r} in '{path}' is {theirs.get_dtype()} {shape}, but the encoder's is "
            f"{list(tensor.shape)}; take an MLLM whose tower is not quantized, of the same shape"
        )


def _write_weights(
    path: Path, target: Path, ours: dict[str, Tensor], places: dict[str, str]
) -> None:
    """One file: copied as it is where nothing of the tower is in it."""
    with safe_open(path, "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    new = {key: ours[places[key]] for key in keys & places.keys() if places[key] in ours}
    if not new:
        shutil.copyfile(path, target)
        return
    weights = load_file(path)
    for key, tensor in new.items():
        weights[key] = tensor.detach().to("cpu", weights[key].dtype).contiguous()
    save_file(weights, target, metadata=metadata)


# -- what was done -------------------------------------------------------------------------------


def _describe(vqrae: VQRAEModel, config: PreTrainedConfig, places: dict[str, str]) -> DropIn:
    ours = vqrae.encoder.state_dict()
    kept = [name for name in places.values() if name not in ours]
    layers = family_of(vqrae.encoder.config).layers
    depth = vqrae.encoder.config.num_hidden_layers
    used = used_layers(depth, vqrae.config.encoder_layer)
    read = config.vision_feature_layer
    return DropIn(
        tokenizer=fingerprint(vqrae),
        replaced=sum(name in ours for name in places.values()),
        kept=sorted({_module(name, layers) for name in kept if not name.endswith("position_ids")}),
        encoder=_feature(used, depth, _norm_of(vqrae.encoder)),
        read=[
            _feature(layer if layer >= 0 else depth + 1 + layer, depth, _norm_read(config, layer))
            for layer in ([read] if isinstance(read, int) else read)
        ],
    )


def _module(name: str, layers: str) -> str:
    """The layer that a weight belongs to, or the part of the tower."""
    if name.startswith(f"{layers}."):
        return f"{layers}.{name.removeprefix(f'{layers}.').partition('.')[0]}"
    return name.partition(".")[0]


def _feature(layer: int, depth: int, norm: str) -> str:
    return f"layer {layer} of {depth}, final norm {norm}"


def _norm_of(encoder: nn.Module) -> str:
    norm = encoder.get_submodule(family_of(encoder.config).norm)
    if isinstance(norm, nn.Identity):
        return "none"
    return "affine" if getattr(norm, "weight", None) is not None else "plain"


def _norm_read(config: PreTrainedConfig, layer: int) -> str:
    """LLaVA takes hidden states, which have no norm; InternVL the tower's output, if the last."""
    normed = config.model_type == "internvl" and layer == -1
    return "affine" if normed and not config.vision_config.use_mean_pooling else "none"


def _log(done: DropIn, vqrae: VQRAEModel, mllm: Path, out: Path) -> None:
    logger.info("%s: %d tensors of the tower of %s replaced", out, done.replaced, mllm)
    if done.kept:
        logger.info("the MLLM's own, for the encoder has none: %s", ", ".join(done.kept))
    if not done.same_features:
        logger.warning(
            "the MLLM reads %s; VQRAEModel.encode gives %s, and only that was held near the "
            "original by stage 2",
            " and ".join(done.read),
            done.encoder,
        )
    trained, made = vqrae.config.image_size, encoder_geometry(vqrae.encoder.config).image_size
    if trained != made:
        logger.warning("trained on pictures of %d pixels; the MLLM reads %d", trained, made)
