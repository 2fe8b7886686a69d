"""nanoGPT's checkpoints and meta.pkl, in and out. Nothing that a file holds is executed on the way in.

A checkpoint of nanoGPT is a pickle, and so is its meta.pkl. The one is read by PyTorch's reader that admits tensors and
plain values alone, the other by one that admits plain values alone. Without a meta.pkl nanoGPT means GPT-2's tokens.
"""

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite.checkpoint import validation
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import load_weights
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data import sources
from nanogpt_lite.device import memory
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tokenizers import bpe, gpt2
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.trainer.state import TrainState, init_state, state_metadata

MODEL_ARGS = ("n_layer", "n_head", "n_embd", "block_size", "bias")  # of nanoGPT's model_args, beside vocab_size
IGNORED_OPTIONS = ("out_dir", "init_from", "device", "compile", "wandb_log", "wandb_project", "wandb_run_name")
WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and DistributedDataParallel put before a name
INITIAL_LOSS = 1e9  # where nanoGPT begins
GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE = (
    50257,
    50304,
)  # symbols: GPT-2's, and the next multiple of 64, which nanoGPT trains with


def read_nanogpt(path: Path, meta: Path | None) -> TrainState:
    """The state of a run of nanoGPT's, from its ckpt.pt and meta.pkl; `meta`: as of `convert.from_nanogpt`."""
    content = _read_checkpoint(path)
    optimizer = content.get("optimizer", {"state": {}})  # some leave it out
    try:
        shape = {name: content["model_args"][name] for name in MODEL_ARGS}
        vocab_size = content["model_args"]["vocab_size"]
        config = _convert_config(content["config"], shape)
        dataset = str(content["config"]["dataset"])
        tokenizer = _find_tokenizer(path, meta or _find_meta(path, dataset), dataset, vocab_size)
        _require_finite_tensors(path, content["model"], optimizer["state"])
        saved = Checkpoint(path, _convert_weights(content["model"]), {})
        validation.validate_weights(config, tokenizer.vocab_size, saved)
        begun = init_state(config.replace({"device": "cpu"}), tokenizer)  # made here, wherever it was trained
        begun.device = torch.device(str(content["config"].get("device", "cuda")).split(":")[0])
        load_weights(begun.model, saved)
        _load_optimizer(begun, optimizer["state"])
        begun.step = begun.evaluated = begun.best_step = int(content["iter_num"])
        loss = float(content["best_val_loss"])
        begun.best_val_loss = loss if loss < INITIAL_LOSS else None  # nor is nan one
        validation.validate_metadata(state_metadata(begun))
    except (UserError, ExternalError):
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        if memory.is_out_of_memory(error):
            raise
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is no checkpoint of nanoGPT's train.py ({reason:.200}); give its ckpt.pt") from error
    return begun


def write_nanogpt(saved: Checkpoint, config: TrainConfig, tokenizer: Tokenizer, dataset: str, path: Path) -> None:
    """Write a checkpoint as nanoGPT's ckpt.pt, of a run on its data/DATASET. `OSError` if it cannot be written."""
    weights = saved.with_prefix("model.")
    content = {
        "model": {**weights, "lm_head.weight": weights["transformer.wte.weight"]},
        "optimizer": _convert_optimizer(saved, config),
        "model_args": {
            **{name: getattr(config, name) for name in (*MODEL_ARGS, "dropout")},
            "vocab_size": tokenizer.vocab_size,
        },
        "iter_num": saved.metadata["step"],
        "best_val_loss": INITIAL_LOSS if saved.metadata["best_val_loss"] is None else saved.metadata["best_val_loss"],
        "config": {**config.stored(), "dataset": dataset, "device": saved.metadata["device"]},
    }
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch's about its archive, whatever the file said
        why = error if isinstance(error, OSError) else error.__context__
        if not isinstance(why, OSError):
            raise
        raise OSError(why.errno, why.strerror, str(path)) from error


def write_meta(tokenizer: CharTokenizer, path: Path) -> None:
    """Write nanoGPT's meta.pkl: plain values alone."""
    itos = dict(enumerate(tokenizer.chars))
    content = {"vocab_size": len(itos), "itos": itos, "stoi": {char: id_ for id_, char in itos.items()}}
    path.write_bytes(pickle.dumps(content))


def require_nanogpt_network(config: TrainConfig, tokenizer: Tokenizer, path: Path) -> None:
    """`UserError` unless nanoGPT has such a network and such a tokenizer."""
    plain = TrainConfig()
    names = ("position", "norm", "qk_norm", "activation", "tied", "ngram")
    other = [f"{name}={getattr(config, name)}" for name in names if getattr(config, name) != getattr(plain, name)]
    name = tokenizer.to_json()["type"]
    gpt2s = name == "gpt2" and tokenizer.vocab_size in (GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE)
    other += [] if name == "char" or gpt2s else [f"tokenizer={name}"]
    if other:
        raise UserError(
            f"nanoGPT has no network like the one in {path}, with {', '.join(other)}; train one that it has: "
            "--preset shakespeare_char or --preset cpu, --tokenizer char"
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """What nanoGPT's ckpt.pt holds, if that is tensors and plain values."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a ckpt.pt of nanoGPT's train.py")
    path.open("rb").close()  # what may not be read is not damaged
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                    raise ValueError("it is compressed, so nobody knows how large it is")  # PyTorch never does that
                if damaged := parts.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about what is refused in the next line
            # nanoGPT has no other format; weights_only admits tensors and plain values, and executes nothing
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way
        if memory.is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} cannot be read without executing what it holds: it is damaged, or there is more in it than "
            "tensors and plain values; give a ckpt.pt of nanoGPT's train.py"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of nanoGPT's train.py; give its ckpt.pt")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts and collections of them. Whatever else a pickle holds, it would have to be looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _find_tokenizer(path: Path, meta: Path | None, dataset: str, vocab_size: Any) -> Tokenizer:
    """The tokenizer of a checkpoint with so many symbols: that of a meta.pkl, or GPT-2's."""
    if meta and meta.suffix not in (".txt", ".json"):
        tokenizer = _read_meta(meta)
    elif vocab_size in (GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE):
        unused = [f"<|unused{number}|>" for number in range(GPT2_VOCAB_SIZE, vocab_size)]
        merges = gpt2.read_merges(meta) if meta else gpt2.fetch_gpt2_merges()
        if not bpe.is_gpt2_merges(merges):
            raise UserError(f"{meta or 'the hub'} has other merges than GPT-2's tokenizer; give its merges.txt: --meta")
        tokenizer = BPETokenizer("gpt2", merges, [bpe.END_OF_TEXT, *unused])
    else:
        raise UserError(
            f"there is no data/{dataset}/meta.pkl here, nor in the folder above that of {path}, which would say what "
            f"its {vocab_size} symbols are; give it: --meta"
        )
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{path} has {vocab_size} symbols and {meta} {tokenizer.vocab_size}; give the one of the data that it was "
            "trained on: --meta"
        )
    return tokenizer


def _read_meta(path: Path) -> Tokenizer:
    """The tokenizer that nanoGPT's meta.pkl describes."""
    try:
        content = path.read_bytes()
        for code, argument, _ in pickletools.genops(content):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(content):
                raise ValueError("it asks for more memory than it can need")
        found = _PlainUnpickler(io.BytesIO(content)).load()
        itos = found["itos"]
        chars = [itos[number] for number in range(len(itos))]
        if not all(type(char) is str and len(char) == 1 for char in chars):
            raise ValueError("its symbols are not single characters")
        if found["stoi"] != {char: number for number, char in enumerate(chars)}:
            raise ValueError("its two tables do not agree")
        return CharTokenizer("".join(chars))
    except Exception as error:  # a pickle can fail in any way
        raise UserError(
            f"{path} is no meta.pkl of characters ({str(error) or type(error).__name__:.200}); give the one that "
            "nanoGPT's prepare.py wrote beside its train.bin: --meta"
        ) from error


def _find_meta(path: Path, dataset: str) -> Path | None:
    """The meta.pkl of a dataset of nanoGPT's."""
    if ".." in Path(dataset).parts or Path(dataset).is_absolute():
        return None
    found = (base / "data" / dataset / "meta.pkl" for base in (Path(), path.resolve().parent.parent))
    return next((meta for meta in found if meta.is_file()), None)


def _convert_config(given: Mapping[str, Any], shape: Mapping[str, Any]) -> TrainConfig:
    """The options of a run of nanoGPT's."""
    known = {
        name: value for name, value in given.items() if name in TrainConfig.names() and name not in IGNORED_OPTIONS
    }
    if "cuda" not in str(given.get("device", "cuda")):
        known["dtype"] = "float32"  # whatever it says: elsewhere nanoGPT computes in nothing else
    rate = known.get("learning_rate", TrainConfig.learning_rate)
    if known.get("decay_lr") is False:  # then nanoGPT does not look at min_lr
        known["min_lr"] = rate
    elif known.get("min_lr", TrainConfig.min_lr) > rate:
        known["min_lr"] = rate
        warnings.warn("its learning rate would rise to min_lr; here it stays as it is", stacklevel=2)
    known["dataset"] = sources.dataset_name(str(given["dataset"]))  # there a folder in data, and never a path elsewhere
    return TrainConfig.from_dict({**known, **shape})


def _require_finite_tensors(path: Path, model: Mapping[str, Tensor], state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """`ValueError` if the tensors claim more than the file can hold (one may be a number, repeated), or no numbers."""
    slots = [tensor for each in state.values() for tensor in each.values()]
    tensors = [tensor for name, tensor in model.items() if not name.endswith("lm_head.weight")]
    if sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *slots)) > path.stat().st_size:
        raise ValueError("its tensors claim more numbers than there are in the file")
    if not all(tensor.float().isfinite().all() for tensor in (*tensors, *slots)):  # as we have them
        raise ValueError("some of its numbers are not finite")


def _convert_weights(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, which are nanoGPT's: without wrappers, masks, and the second name of a matrix."""
    weights = {}
    for name, tensor in found.items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        if not name.endswith(".attn.bias"):
            weights[f"model.{name}"] = tensor
    output = weights.pop("model.lm_head.weight", None)
    if output is not None and not torch.equal(output, weights["model.transformer.wte.weight"]):
        raise ValueError("its output has another matrix than its token embedding, which nanoGPT's has not")
    return weights


def _nanogpt_parameter_order(model: GPT) -> list[str]:
    """The names of the parameters in the order in which nanoGPT's optimizer counts them."""
    named = dict(model.named_parameters())
    return [n for n, p in named.items() if p.dim() >= 2] + [n for n, p in named.items() if p.dim() < 2]


def _load_optimizer(begun: TrainState, found: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Give the optimizer of a new state the means of nanoGPT's."""
    parameters, shapes = dict(begun.model.named_parameters()), build.optimizer_state_shapes(begun.optimizer)
    for number, name in enumerate(_nanogpt_parameter_order(begun.model) if found else []):
        parameter = parameters[name]
        slots = {slot: found[number][slot].float() for slot in shapes[parameter]}
        if {slot: value.shape for slot, value in slots.items()} != shapes[parameter]:
            raise ValueError(f"the optimizer's means of {name} have another shape than it")
        begun.optimizer.state[parameter] = slots


def _convert_optimizer(saved: Checkpoint, config: TrainConfig) -> dict[str, Any]:
    """The state of PyTorch's AdamW as nanoGPT makes it: without means if there are none, or if Muon has them."""
    model = validation.meta_model(config, saved.tensors["model.transformer.wte.weight"].size(0))
    names = _nanogpt_parameter_order(model)
    slots = [saved.with_prefix(f"optimizer.{name}.") for name in names]
    decayed = sum(parameter.dim() >= 2 for parameter in model.parameters())
    stand_ins = [torch.empty(0) for _ in names]
    groups = [
        {"params": stand_ins[:decayed], "weight_decay": config.weight_decay},
        {"params": stand_ins[decayed:], "weight_decay": 0.0},
    ]
    rate = learning_rate(saved.metadata["step"], config)
    form = torch.optim.AdamW(groups, lr=rate, betas=(config.beta1, config.beta2)).state_dict()
    return {**form, "state": dict(enumerate(slots)) if all(slots) and config.optimizer == "adamw" else {}}
