"""Read nanoGPT's ckpt.pt as a training state. Nothing in the file is executed.

The file is a pickle. PyTorch reads it with `weights_only=True`, which admits tensors and plain values alone. Its
tokenizer is found by `nanogpt_tokenizer`.
"""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nanogpt_lite.checkpoint.checkpoint_file import TensorFile
from nanogpt_lite.checkpoint.metadata import InvalidMetadataError
from nanogpt_lite.checkpoint.restore import load_weights
from nanogpt_lite.checkpoint.validation import validate_weights
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data import sources
from nanogpt_lite.device import memory
from nanogpt_lite.errors import NanoGPTLiteError, UserError
from nanogpt_lite.interop.nanogpt_format import INITIAL_LOSS, MODEL_ARGS, optimizer_parameter_names
from nanogpt_lite.interop.nanogpt_tokenizer import find_tokenizer
from nanogpt_lite.optim import build
from nanogpt_lite.trainer.state import TrainState, init_state, make_metadata

IGNORED_OPTIONS = ("out_dir", "init_from", "device", "compile", "wandb_log", "wandb_project", "wandb_run_name")
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # of parameter names, by torch.compile and DistributedDataParallel

Entry = TypeVar("Entry")
OptimizerState = Mapping[int, Mapping[str, Tensor]]
"""The "state" of the state_dict of PyTorch's AdamW: parameter number -> name -> tensor."""


def import_nanogpt_checkpoint(path: Path, meta: Path | None) -> TrainState:
    """The training state in nanoGPT's ckpt.pt; `meta` as of `conversion.from_nanogpt`.

    `UserError` if the file is not such a checkpoint, or if its tokenizer is not known.
    """
    try:
        state = _convert_state(path, _parse_content(_read_pickle(path)), meta)
        make_metadata(state).validate()
    except NanoGPTLiteError:
        raise
    except (_NotNanoGPTError, InvalidMetadataError) as error:
        raise UserError(
            f"{path} is not a checkpoint of nanoGPT's train.py ({error!s:.200}); give its ckpt.pt"
        ) from error
    return state


class _NotNanoGPTError(ValueError):
    """The content is not what nanoGPT's train.py saves. The message says why."""


class _Content(NamedTuple):
    """What nanoGPT's train.py saves, with types that were checked."""

    model: dict[str, Tensor]
    optimizer_state: OptimizerState
    model_args: dict[str, Any]  # its values are checked by `TrainConfig`
    vocab_size: int
    config: dict[str, Any]  # the same; other options of nanoGPT are ignored
    iter_num: int
    best_val_loss: float


def _parse_content(content: dict[Any, Any]) -> _Content:
    """The content of ckpt.pt. `_NotNanoGPTError` if something is missing or has a wrong type."""
    model, model_args, config = (_entry(content, key, dict) for key in ("model", "model_args", "config"))
    optimizer = _entry(content, "optimizer", dict) if "optimizer" in content else {"state": {}}  # some delete it
    optimizer_state = _entry(optimizer, "state", dict)
    if not all(isinstance(name, str) and _is_weight(tensor) for name, tensor in model.items()):
        raise _NotNanoGPTError("its model is not a state_dict of numbers")
    for parameter_state in optimizer_state.values():
        if not isinstance(parameter_state, dict) or not all(map(_is_weight, parameter_state.values())):
            raise _NotNanoGPTError("its optimizer is not a state_dict of numbers")
    for name in MODEL_ARGS:
        _entry(model_args, name, int)
    for name in model_args:
        if name not in (*MODEL_ARGS, "vocab_size", "dropout"):  # an extended nanoGPT, whose network computes otherwise
            raise _NotNanoGPTError(f"its network has the unknown option {name!r:.40}")
    _entry(config, "dataset", str)
    for name in ("learning_rate", "min_lr"):
        if not isinstance(config.get(name, 0.0), int | float):
            raise _NotNanoGPTError(f"its {name} is not a number")
    loss = content.get("best_val_loss")
    if isinstance(loss, Tensor) and _is_weight(loss) and loss.numel() == 1:  # train.py saves what it computed
        loss = loss.item()
    if not isinstance(loss, int | float):
        raise _NotNanoGPTError("its best_val_loss is not a number")
    vocab_size, iter_num = _entry(model_args, "vocab_size", int), _entry(content, "iter_num", int)
    return _Content(model, optimizer_state, model_args, vocab_size, config, iter_num, float(loss))


def _entry(content: Mapping[str, Any], key: str, kind: type[Entry]) -> Entry:
    if key not in content:
        raise _NotNanoGPTError(f"it lacks {key!r}")
    value = content[key]
    if not isinstance(value, kind):
        raise _NotNanoGPTError(f"its {key} is not of the type {kind.__name__}")
    return value


def _is_weight(value: object) -> bool:
    """Whether this is a dense tensor of numbers in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized)
    )


def _read_pickle(path: Path) -> dict[str, Any]:
    """The content of ckpt.pt, if that is tensors and plain values."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a ckpt.pt of nanoGPT's train.py")
    path.open("rb").close()  # a file without read permission is an OSError, and not damaged
    try:
        # a zip file: the format before PyTorch 1.6, which nanoGPT never used, can ask for any amount of memory
        with zipfile.ZipFile(path) as archive:
            # PyTorch never compresses; a compressed file may expand to any size
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, so its size in memory is not known")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of what it then refuses
            # weights_only admits tensors and plain values, and executes nothing; nanoGPT has no format but pickle
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way
        if memory.is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} cannot be read without executing code in it: it is damaged, or it holds more than tensors and "
            "plain values; give a ckpt.pt of nanoGPT's train.py"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint of nanoGPT's train.py; give its ckpt.pt")
    return content


def _convert_state(path: Path, content: _Content, meta: Path | None) -> TrainState:
    """The training state that the content of ckpt.pt describes."""
    network = {name: content.model_args[name] for name in MODEL_ARGS}
    config = _convert_config(content.config, network)
    tokenizer = find_tokenizer(path, meta, dataset=content.config["dataset"], vocab_size=content.vocab_size)
    _require_finite_tensors(path, content.model, content.optimizer_state)
    weights = TensorFile(path, _convert_weights(content.model))
    validate_weights(config, tokenizer.vocab_size, weights)
    state = init_state(config.replace({"device": "cpu"}), tokenizer)  # this machine may lack the stored device
    state.device = _device(content.config)
    load_weights(state.model, weights)
    _import_optimizer_state(state, content.optimizer_state)
    state.step = state.last_eval_step = state.best_step = content.iter_num
    state.best_val_loss = content.best_val_loss if content.best_val_loss < INITIAL_LOSS else None  # also None for nan
    return state


def _device(options: Mapping[str, Any]) -> torch.device:
    """The device that nanoGPT trained on, without its number."""
    name = str(options.get("device", "cuda")).split(":")[0]
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise _NotNanoGPTError(f"its device is {name!r:.40}") from error


def _convert_config(options: Mapping[str, Any], network: Mapping[str, Any]) -> TrainConfig:
    """The config with nanoGPT's options that this program has too, and the options `network`."""
    converted = {
        name: value for name, value in options.items() if name in TrainConfig.names() and name not in IGNORED_OPTIONS
    }
    if "cuda" not in str(options.get("device", "cuda")):
        converted["dtype"] = "float32"  # nanoGPT's train.py ignores its dtype unless the device is CUDA
    rate = converted.get("learning_rate", TrainConfig.learning_rate)
    if converted.get("decay_lr") is False:  # then nanoGPT ignores min_lr
        converted["min_lr"] = rate
    elif converted.get("min_lr", TrainConfig.min_lr) > rate:
        converted["min_lr"] = rate
        warnings.warn("its learning rate would rise to min_lr; here it stays constant", stacklevel=2)
    converted["dataset"] = sources.dataset_name(str(options["dataset"]))  # a folder in nanoGPT's data: only the name
    return TrainConfig.from_dict({**converted, **network})


def _require_finite_tensors(path: Path, model: Mapping[str, Tensor], optimizer_state: OptimizerState) -> None:
    """`_NotNanoGPTError` if the tensors hold more than the file can, or are not finite. A tensor may repeat a value."""
    tensors = [tensor for name, tensor in model.items() if not name.endswith("lm_head.weight")]  # tied, so shared
    tensors += [tensor for parameter_state in optimizer_state.values() for tensor in parameter_state.values()]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > path.stat().st_size:
        raise _NotNanoGPTError("its tensors have more elements than the file holds")
    if not all(tensor.float().isfinite().all() for tensor in tensors):  # in float32, as they will be stored
        raise _NotNanoGPTError("some of its numbers are not finite")


def _convert_weights(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as `model.NAME`: without prefixes of wrappers, attention masks, and the tied output matrix."""
    weights = {}
    for name, tensor in model.items():
        for prefix in WRAPPER_PREFIXES:
            name = name.removeprefix(prefix)
        if not name.endswith(".attn.bias"):
            weights[f"model.{name}"] = tensor
    output, embedding = weights.pop("model.lm_head.weight", None), weights.get("model.transformer.wte.weight")
    if output is None:
        return weights
    if embedding is None or output.dtype != embedding.dtype or not torch.equal(output, embedding):
        raise _NotNanoGPTError("its output matrix differs from its token embedding; in nanoGPT they are tied")
    return weights


def _import_optimizer_state(state: TrainState, optimizer_state: OptimizerState) -> None:
    """Load nanoGPT's AdamW state, if there is one."""
    if not optimizer_state:
        return
    parameters, shapes = dict(state.model.named_parameters()), build.optimizer_state_shapes(state.optimizer)
    for number, name in enumerate(optimizer_parameter_names(state.model)):
        parameter = parameters[name]
        parameter_state = optimizer_state.get(number, {})
        tensors = {key: value.float() for key, value in parameter_state.items() if key in shapes[parameter]}
        if {key: value.shape for key, value in tensors.items()} != shapes[parameter]:
            raise _NotNanoGPTError(f"the optimizer state of {name} has another shape than the parameter")
        state.optimizer.state[parameter] = tensors
