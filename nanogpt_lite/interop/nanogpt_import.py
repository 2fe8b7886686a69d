"""Read nanoGPT's ckpt.pt as a training state. Nothing in the file is executed.

The file is a pickle. PyTorch reads it with `weights_only=True`, which admits tensors and plain values alone. Its
tokenizer is found by `nanogpt_tokenizer`.
"""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite.checkpoint.checkpoint_file import TensorFile
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

OptimizerState = Mapping[int, Mapping[str, Tensor]]
"""The "state" of the state_dict of PyTorch's AdamW: parameter number -> name -> tensor."""


def import_nanogpt_checkpoint(path: Path, meta: Path | None) -> TrainState:
    """The training state in nanoGPT's ckpt.pt; `meta` as of `conversion.from_nanogpt`.

    `UserError` if the file is not such a checkpoint, or if its tokenizer is not known.
    """
    content = _read_pickle(path)
    try:
        state = _convert_state(path, content, meta)
        make_metadata(state).validate()
    except NanoGPTLiteError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        if memory.is_out_of_memory(error):
            raise
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} is not a checkpoint of nanoGPT's train.py ({reason:.200}); give its ckpt.pt"
        ) from error
    return state


def _read_pickle(path: Path) -> dict[str, Any]:
    """The content of ckpt.pt, if that is tensors and plain values."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a ckpt.pt of nanoGPT's train.py")
    path.open("rb").close()  # a file without read permission is an OSError, and not damaged
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # PyTorch never compresses; a compressed file may expand to any size
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it is compressed, so its size in memory is not known")
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of what it then refuses
            # nanoGPT has no other format; weights_only admits tensors and plain values, and executes nothing
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


def _convert_state(path: Path, content: Mapping[str, Any], meta: Path | None) -> TrainState:
    """The training state that the content of ckpt.pt describes."""
    optimizer = content.get("optimizer", {"state": {}})  # some people delete it, to make the file smaller
    network = {name: content["model_args"][name] for name in MODEL_ARGS}
    vocab_size = content["model_args"]["vocab_size"]
    config = _convert_config(content["config"], network)
    dataset = str(content["config"]["dataset"])
    tokenizer = find_tokenizer(path, meta, dataset=dataset, vocab_size=vocab_size)
    _require_finite_tensors(path, content["model"], optimizer["state"])
    weights = TensorFile(path, _convert_weights(content["model"]))
    validate_weights(config, tokenizer.vocab_size, weights)
    state = init_state(config.replace({"device": "cpu"}), tokenizer)  # this machine may lack the stored device
    state.device = torch.device(str(content["config"].get("device", "cuda")).split(":")[0])
    load_weights(state.model, weights)
    _import_optimizer_state(state, optimizer["state"])
    state.step = state.last_eval_step = state.best_step = int(content["iter_num"])
    loss = float(content["best_val_loss"])
    state.best_val_loss = loss if loss < INITIAL_LOSS else None  # also None for nan
    return state


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
    """`ValueError` if the tensors hold more than the file can (a tensor may repeat one value), or are not finite."""
    tensors = [tensor for name, tensor in model.items() if not name.endswith("lm_head.weight")]  # tied, so shared
    tensors += [tensor for parameter_state in optimizer_state.values() for tensor in parameter_state.values()]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > path.stat().st_size:
        raise ValueError("its tensors have more elements than the file holds")
    if not all(tensor.float().isfinite().all() for tensor in tensors):  # in float32, as they will be stored
        raise ValueError("some of its numbers are not finite")


def _convert_weights(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as `model.NAME`: without prefixes of wrappers, attention masks, and the tied output matrix."""
    weights = {}
    for name, tensor in model.items():
        for prefix in WRAPPER_PREFIXES:
            name = name.removeprefix(prefix)
        if not name.endswith(".attn.bias"):
            weights[f"model.{name}"] = tensor
    output = weights.pop("model.lm_head.weight", None)
    if output is not None and not torch.equal(output, weights["model.transformer.wte.weight"]):
        raise ValueError("its output matrix differs from its token embedding; in nanoGPT they are tied")
    return weights


def _import_optimizer_state(state: TrainState, optimizer_state: OptimizerState) -> None:
    """Load nanoGPT's AdamW state, if there is one."""
    if not optimizer_state:
        return
    parameters, shapes = dict(state.model.named_parameters()), build.optimizer_state_shapes(state.optimizer)
    for number, name in enumerate(optimizer_parameter_names(state.model)):
        parameter = parameters[name]
        tensors = {key: optimizer_state[number][key].float() for key in shapes[parameter]}
        if {key: value.shape for key, value in tensors.items()} != shapes[parameter]:
            raise ValueError(f"the optimizer state of {name} has another shape than the parameter")
        state.optimizer.state[parameter] = tensors
