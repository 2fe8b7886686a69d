"""GPT-2 as Hugging Face keeps it, in and out: a folder of config.json, model.safetensors and a tokenizer.

There a product has its matrix the other way round (`Conv1D`), and every layer has biases.
"""

import json
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nanogpt_lite import files
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers import bpe, gpt2, hub
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import load_gpt2_tokenizer

SPECIAL_TOKEN = re.compile(r"<.+>|\[[A-Z]+\]")
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MASKS = (".attn.bias", ".attn.masked_bias")


def is_gpt2(init_from: str) -> bool:
    """Whether this names one of GPT-2's sizes, or a folder with such a network."""
    names = ("model.safetensors", "pytorch_model.bin")  # of which the second is a pickle, and refused
    return init_from in hub.GPT2_REPOS or any((Path(init_from) / name).is_file() for name in names)


def read_gpt2(init_from: str) -> tuple[Checkpoint, NetworkConfig, Tokenizer]:
    """The weights under our names, the network and the tokenizer of one of GPT-2's sizes, or of a folder.

    `UserError` if the folder holds another kind of network. `WorldError` if the hub cannot be reached.
    """
    folder = Path(init_from) if init_from not in hub.GPT2_REPOS else None
    names = ("config.json", "model.safetensors")
    paths = {name: folder / name if folder else hub.fetch_gpt2_file(init_from, name) for name in names}
    try:
        network = _parse_network(json.loads(paths["config.json"].read_text(encoding="utf-8")))
        found = {  # older files have the names without the prefix
            f"transformer.{name.removeprefix('transformer.')}": tensor
            for name, tensor in safetensors.torch.load_file(paths["model.safetensors"]).items()
        }
        rows, channels = found["transformer.wte.weight"].shape
        if channels != network.n_embd:
            raise ValueError("its token embedding has another width than its config.json says")
        tokenizer = _read_tokenizer(folder, rows) if folder else load_gpt2_tokenizer()
    except UserError:
        raise
    except (*gpt2.PARSE_ERRORS, safetensors.SafetensorError) as error:
        raise UserError(
            f"{init_from} holds no GPT-2 of Hugging Face ({error!r:.200}); give one of {', '.join(hub.GPT2_REPOS)}, "
            f"or a folder with {', '.join(names)} and tokenizer.json"
        ) from error
    tensors = {}
    for name, tensor in found.items():
        if not name.endswith((*MASKS, "lm_head.weight")):
            tensors[f"model.{name}"] = tensor.t() if name.endswith(TRANSPOSED) and tensor.dim() == 2 else tensor
    about = {"config": {**network.stored(), "tokenizer": tokenizer.to_json()["type"]}}
    return Checkpoint(paths["model.safetensors"], tensors, about), network, tokenizer


def _read_tokenizer(folder: Path, rows: int) -> BPETokenizer:
    """The tokenizer in a folder, for a network with so many rows. `UserError` if it numbers otherwise than GPT-2's."""
    merges, ids = gpt2.read_tokenizer(folder)
    pairs = BPETokenizer("", merges).tokens
    special = sorted(ids.keys() - set(pairs), key=lambda symbol: ids[symbol])
    unused = [f"<|unused{number}|>" for number in range(len(pairs) + len(special), rows)]
    tokenizer = BPETokenizer("", merges, [*special, *unused])
    plain = [symbol for symbol in special if not SPECIAL_TOKEN.fullmatch(symbol)]  # nothing that the merges make
    if plain or {symbol: id_ for id_, symbol in enumerate(tokenizer.tokens) if symbol not in unused} != ids:
        raise UserError(
            f"the tokenizer in {folder} numbers its symbols otherwise than GPT-2's, whose bytes come first, then what "
            "its merges make, then special texts; give a GPT-2 whose tokenizer does"
        )
    return tokenizer


def _parse_network(form: dict[str, Any]) -> NetworkConfig:
    """The network that a config.json describes. `UserError` if it is none of ours."""
    rules = {
        "model_type": form.get("model_type") == "gpt2",
        "activation_function": form.get("activation_function", "gelu_new") in ACTIVATIONS,
        "layer_norm_epsilon": form.get("layer_norm_epsilon", 1e-5) == 1e-5,
        "n_inner": form.get("n_inner") in (None, 4 * form.get("n_embd", 0)),
        "scale_attn_by_inverse_layer_idx": not form.get("scale_attn_by_inverse_layer_idx"),
        "scale_attn_weights": form.get("scale_attn_weights", True),
        "tie_word_embeddings": form.get("tie_word_embeddings", True),
    }
    if other := [f"{name}={form.get(name)!r}" for name, holds in rules.items() if not holds]:
        raise UserError(f"this program has no network with {', '.join(other)}; give a GPT-2")
    return NetworkConfig(
        block_size=form["n_positions"],
        n_layer=form["n_layer"],
        n_head=form["n_head"],
        n_embd=form["n_embd"],
        bias=True,
        activation=ACTIVATIONS[form.get("activation_function", "gelu_new")],
    )


def require_hf_network(config: TrainConfig, path: Path) -> None:
    """`UserError` unless transformers has such a network."""
    plain = TrainConfig()
    other = [
        f"{name}={getattr(config, name)}"
        for name in ("position", "norm", "qk_norm", "ngram")
        if getattr(config, name) != getattr(plain, name)
    ]
    other += [f"activation={config.activation}"] if config.activation not in ACTIVATIONS.values() else []
    if other:
        raise UserError(
            f"transformers has no network like the one in {path}, with {', '.join(other)}; train one that it "
            "has: --preset shakespeare_char or --preset cpu"
        )


def write_hf(saved: Checkpoint, config: TrainConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a network as `FILES` that `AutoModelForCausalLM` and `AutoTokenizer` of transformers load."""
    form = _tokenizer_json(tokenizer)
    end = tokenizer.end_of_text if isinstance(tokenizer, BPETokenizer) else None
    description = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation],
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "vocab_size": tokenizer.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": end,
        "eos_token_id": end,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }
    about_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }
    with files.atomic_write_set(*(folder / name for name in FILES)) as (of_network, of_weights, of_tokenizer, about):
        of_network.write_text(json.dumps(description, indent=2), encoding="utf-8")
        checkpoint_file.write_tensors(of_weights, _convert_tensors(saved), {"format": "pt"})
        of_tokenizer.write_text(form, encoding="utf-8")
        about.write_text(json.dumps(about_tokenizer, indent=2), encoding="utf-8")


def _convert_tensors(saved: Checkpoint) -> dict[str, Tensor]:
    """The weights under Hugging Face's names: matrices turned, and zeros where a layer has no bias."""
    tensors = {}
    for name, tensor in saved.with_prefix("model.").items():
        tensors[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        if name.endswith((*TRANSPOSED, "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros(tensor.size(0)))
    biases = {name: tensor for name, tensor in saved.with_prefix("model.").items() if name.endswith(".bias")}
    return {**tensors, **biases}


def _tokenizer_json(tokenizer: Tokenizer) -> str:
    """A tokenizer.json: the same ids for the same text."""
    library = bpe.import_tokenizers()
    if isinstance(tokenizer, BPETokenizer):
        made = tokenizer.to_hf_tokenizer()
        made.decoder = library.decoders.ByteLevel()
    elif isinstance(tokenizer, ByteTokenizer):
        vocabulary = bpe.unicode_to_bytes()
        made = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=[]))
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
    else:
        assert isinstance(tokenizer, CharTokenizer)
        vocabulary = {char: number for number, char in enumerate(tokenizer.chars)}
        made = library.Tokenizer(library.models.WordLevel(vocab=vocabulary))
        made.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), behavior="isolated")
        made.decoder = library.decoders.Fuse()
    return str(made.to_str())
