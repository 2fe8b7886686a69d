"""The tokenizer of a nanoGPT checkpoint: the characters in its meta.pkl, or GPT-2's BPE if there is none.

A pickle can execute code. meta.pkl is read by an unpickler that admits only numbers, strings and collections of them.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import NoReturn

from nanogpt_lite.config.presets import GPT2_VOCAB_SIZE
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop.nanogpt_format import VOCAB_SIZES
from nanogpt_lite.tokenizers import bpe, gpt2
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer


def find_tokenizer(path: Path, meta: Path | None, *, dataset: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of the checkpoint `path`, which was trained on nanoGPT's data/DATASET and has this `vocab_size`.

    `meta`: its meta.pkl, or GPT-2's merges.txt or tokenizer.json; None: see `conversion.from_nanogpt`. `UserError` if
    there is no tokenizer, or if it has another vocabulary. `ExternalError` if GPT-2's merges cannot be fetched.
    """
    meta = meta or _find_meta(path, dataset)
    if meta and meta.suffix not in (".txt", ".json"):
        tokenizer: Tokenizer = _read_meta(meta)
    elif vocab_size in VOCAB_SIZES:
        tokenizer = _gpt2_tokenizer(meta, vocab_size)
    else:
        raise UserError(
            f"there is no data/{dataset}/meta.pkl, neither here nor in the folder above that of {path}, and without it "
            f"the {vocab_size} tokens of its vocabulary are not known; give it as `meta`"
        )
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {vocab_size} tokens and {meta} one of {tokenizer.vocab_size}; give the one "
            "of the dataset that it was trained on as `meta`"
        )
    return tokenizer


def _find_meta(path: Path, dataset: str) -> Path | None:
    """data/DATASET/meta.pkl in the current folder, or in the folder above that of the checkpoint, as in nanoGPT."""
    if ".." in Path(dataset).parts or Path(dataset).is_absolute():
        return None
    candidates = (base / "data" / dataset / "meta.pkl" for base in (Path(), path.resolve().parent.parent))
    return next((meta for meta in candidates if meta.is_file()), None)


def _gpt2_tokenizer(merges_path: Path | None, vocab_size: int) -> BPETokenizer:
    """GPT-2's tokenizer, with unused tokens up to `vocab_size`."""
    merges = gpt2.read_merges(merges_path) if merges_path else gpt2.fetch_gpt2_merges()
    if not bpe.is_gpt2_merges(merges):
        raise UserError(
            f"{merges_path or 'the hub'} has other merges than GPT-2's tokenizer; give its merges.txt as `meta`"
        )
    unused = [f"<|unused{number}|>" for number in range(GPT2_VOCAB_SIZE, vocab_size)]
    return BPETokenizer("gpt2", merges, [bpe.END_OF_TEXT, *unused])


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings and collections of them. All else would need `find_class`, which refuses."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read_meta(path: Path) -> CharTokenizer:
    """The tokenizer in nanoGPT's meta.pkl."""
    try:
        pickled = path.read_bytes()
        for opcode, argument, _ in pickletools.genops(pickled):
            # an index into the memo, which the unpickler allocates up to that index
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(pickled):
                raise ValueError("it would take more memory than its size justifies")
        content = _PlainUnpickler(io.BytesIO(pickled)).load()
        itos = content["itos"]
        chars = [itos[number] for number in range(len(itos))]
        if not all(type(char) is str and len(char) == 1 for char in chars):
            raise ValueError("its tokens are not single characters")
        if content["stoi"] != {char: number for number, char in enumerate(chars)}:
            raise ValueError("its itos and stoi do not agree")
        return CharTokenizer("".join(chars))
    except Exception as error:  # a pickle can fail in any way
        raise UserError(
            f"{path} is not a meta.pkl of characters ({str(error) or type(error).__name__:.200}); give the one that "
            "nanoGPT's prepare.py wrote beside its train.bin as `meta`"
        ) from error
