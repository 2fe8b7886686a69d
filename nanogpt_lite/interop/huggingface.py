"""GPT-2 in the format of Hugging Face transformers, in and out: config.json, model.safetensors and a tokenizer.

In that format the weights of linear layers are transposed (`Conv1D`), and every layer has biases.
"""

import json
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nanogpt_lite import files
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import TensorFile
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.device.memory import is_out_of_memory
from nanogpt_lite.errors import NanoGPTLiteError, UserError
from nanogpt_lite.interop.export_checks import unsupported_options
from nanogpt_lite.interop.nanogpt_format import MODEL_ARGS
from nanogpt_lite.tokenizers import bpe, gpt2, hub
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import load_gpt2_tokenizer

SPECIAL_TOKEN = re.compile(r"<.+>|\[[A-Z]+\]")
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ACTIVATION_OF_HF_NAME = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
ATTENTION_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old files hold


def is_gpt2(init_from: str) -> bool:
    """Whether this is the name of a GPT-2 model on the hub, or a folder with a model of transformers."""
    names = ("model.safetensors", "pytorch_model.bin")  # `import_gpt2` refuses the second, a pickle
    return init_from in hub.GPT2_REPOS or any((Path(init_from) / name).is_file() for name in names)


def import_gpt2(init_from: str) -> tuple[TensorFile, NetworkConfig, Tokenizer]:
    """The weights as `model.NAME`, the network and the tokenizer of a GPT-2: of a name on the hub, or of a folder.

    `UserError` if the folder holds another kind of network. `ExternalError` if the hub cannot be reached. Names and
    shapes of the weights are not checked: see `validation.validate_weights`.
    """
    folder = Path(init_from) if init_from not in hub.GPT2_REPOS else None
    names = ("config.json", "model.safetensors")
    paths = {name: folder / name if folder else hub.fetch_gpt2_file(init_from, name) for name in names}
    try:
        network = _parse_config(gpt2.read_json_object(paths["config.json"]))
        tensors = _read_tensors(paths["model.safetensors"])
        vocab_size = _vocab_size(tensors, network)
    except NanoGPTLiteError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{init_from} holds no GPT-2 of Hugging Face ({error!r:.200}); give one of {', '.join(hub.GPT2_REPOS)}, "
            f"or a folder with {', '.join(names)} and tokenizer.json"
        ) from error
    tokenizer = _read_tokenizer(folder, vocab_size) if folder else load_gpt2_tokenizer()
    weights = {}
    for name, tensor in tensors.items():
        if not name.endswith((*ATTENTION_MASKS, "lm_head.weight")):
            is_transposed = name.endswith(TRANSPOSED) and tensor.dim() == 2
            weights[f"model.{name}"] = tensor.t() if is_transposed else tensor
    return TensorFile(paths["model.safetensors"], weights), network, tokenizer


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a model.safetensors, with the prefix that older files lack. `ValueError` if it is damaged."""
    try:
        tensors = safetensors.torch.load_file(path)
    # an unknown number format is an AttributeError or a KeyError, a shape that PyTorch does not have a RuntimeError
    except (safetensors.SafetensorError, RuntimeError, AttributeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(str(error)) from error
    return {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in tensors.items()}


def _vocab_size(tensors: dict[str, Tensor], network: NetworkConfig) -> int:
    """The number of tokens that the token embedding is for. `ValueError` if it has another width than the network."""
    embedding = tensors.get("transformer.wte.weight")
    if embedding is None or embedding.dim() != 2 or embedding.size(1) != network.n_embd:
        raise ValueError("it has no token embedding of the width that its config.json says")
    return embedding.size(0)


def _read_tokenizer(folder: Path, vocab_size: int) -> BPETokenizer:
    """The tokenizer in a folder, with unused tokens up to `vocab_size`. `UserError` if its ids are not as GPT-2's."""
    merges, ids = gpt2.read_tokenizer(folder)
    merged = BPETokenizer("", merges).tokens
    special = sorted(ids.keys() - set(merged), key=lambda token: ids[token])
    unused = [f"<|unused{number}|>" for number in range(len(merged) + len(special), vocab_size)]
    tokenizer = BPETokenizer("", merges, [*special, *unused])
    not_special = [token for token in special if not SPECIAL_TOKEN.fullmatch(token)]  # and no merge makes them
    expected_ids = {token: id_ for id_, token in enumerate(tokenizer.tokens) if token not in unused}
    if not_special or expected_ids != ids:
        raise UserError(
            f"the tokenizer in {folder} assigns its ids in another order than GPT-2's: first the bytes, then the "
            "tokens that the merges make, then the special tokens; give a GPT-2 whose tokenizer has that order"
        )
    return tokenizer


def _parse_config(content: dict[str, object]) -> NetworkConfig:
    """The network that a config.json describes. `UserError` if this program does not have it.

    `ValueError` if it has no size of the network.
    """
    sizes = [content.get(name) for name in ("n_positions", "n_layer", "n_head", "n_embd")]
    block_size, n_layer, n_head, n_embd = (size if type(size) is int else 0 for size in sizes)
    if 0 in (block_size, n_layer, n_head, n_embd):
        raise ValueError("its config.json has no n_positions, n_layer, n_head or n_embd")
    activation = ACTIVATION_OF_HF_NAME.get(str(content.get("activation_function", "gelu_new")))
    is_supported = {
        "model_type": content.get("model_type") == "gpt2",
        "activation_function": activation is not None,
        "layer_norm_epsilon": content.get("layer_norm_epsilon", 1e-5) == 1e-5,
        "n_inner": content.get("n_inner") in (None, 4 * n_embd),
        "scale_attn_by_inverse_layer_idx": not content.get("scale_attn_by_inverse_layer_idx"),
        "scale_attn_weights": content.get("scale_attn_weights", True),
        "tie_word_embeddings": content.get("tie_word_embeddings", True),
    }
    if unsupported := [
        f"{name}={content.get(name)!r:.60}" for name, supported in is_supported.items() if not supported
    ]:
        raise UserError(f"this program has no network with {', '.join(unsupported)}; give a GPT-2")
    assert activation is not None
    return NetworkConfig(
        block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=True, activation=activation
    )


def require_gpt2_compatible(config: TrainConfig, path: Path) -> None:
    """`UserError` unless transformers has this network as a GPT-2. `path` is the checkpoint, for the message."""
    missing = unsupported_options(config, supported=(*MODEL_ARGS, "tied", "activation"))
    missing += [f"activation={config.activation}"] if config.activation not in ACTIVATION_OF_HF_NAME.values() else []
    if missing:
        raise UserError(
            f"transformers has no network like the one in {path}, with {', '.join(missing)}; train one that it "
            "has: `preset='shakespeare_char'` or `preset='cpu'`"
        )


def export_gpt2(saved: TensorFile, config: TrainConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `FILES`, which `AutoModelForCausalLM` and `AutoTokenizer` of transformers load. `OSError` if that fails."""
    tokenizer_json = _tokenizer_json(tokenizer)
    end_of_text = tokenizer.end_of_text if isinstance(tokenizer, BPETokenizer) else None
    model_config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation],
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "vocab_size": tokenizer.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }
    with files.atomic_write_set(*(folder / name for name in FILES)) as (
        config_path,
        weights_path,
        tokenizer_path,
        last_path,
    ):
        config_path.write_text(json.dumps(model_config, indent=2), encoding="utf-8")
        checkpoint_file.write_safetensors(weights_path, _convert_tensors(saved), {"format": "pt"})
        tokenizer_path.write_text(tokenizer_json, encoding="utf-8")
        last_path.write_text(json.dumps(tokenizer_config, indent=2), encoding="utf-8")


def _convert_tensors(saved: TensorFile) -> dict[str, Tensor]:
    """The weights in Hugging Face's format: linear layers transposed, and zeros where a layer has no bias."""
    weights = saved.with_prefix("model.")
    tensors = {}
    for name, tensor in weights.items():
        tensors[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        if name.endswith((*TRANSPOSED, "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros(tensor.size(0)))
    biases = {name: tensor for name, tensor in weights.items() if name.endswith(".bias")}
    return {**tensors, **biases}


def _tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of a tokenizer.json that gives the same ids for the same text. `UserError` if there is none."""
    tokenizers = bpe.import_tokenizers()
    if isinstance(tokenizer, BPETokenizer):
        hf_tokenizer = tokenizer.to_hf_tokenizer()
        hf_tokenizer.decoder = tokenizers.decoders.ByteLevel()
    elif isinstance(tokenizer, ByteTokenizer):
        vocabulary = bpe.unicode_to_bytes()
        hf_tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
        hf_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        hf_tokenizer.decoder = tokenizers.decoders.ByteLevel()
    elif isinstance(tokenizer, CharTokenizer):
        vocabulary = {char: number for number, char in enumerate(tokenizer.chars)}
        hf_tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocabulary))
        hf_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
        hf_tokenizer.decoder = tokenizers.decoders.Fuse()
    else:
        raise UserError(
            f"transformers has no tokenizer like {tokenizer.to_json()['type']}; train with `tokenizer='char'`, "
            "`tokenizer='byte'` or `tokenizer='bpe-4096'`"
        )
    return str(hf_tokenizer.to_str())
