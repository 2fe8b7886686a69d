"""Which tokenizer: from its JSON form, or by its name, for a text."""

from collections.abc import Callable, Iterable
from typing import Any

from nanogpt_lite.config.options import is_bpe_name
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers import bpe, gpt2
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT, BPETokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer


def make_tokenizer(name: str, alphabet: str, pieces: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer of that name for a text with these characters. `ExternalError` if GPT-2's cannot be fetched."""
    if name == "byte":
        return ByteTokenizer()
    if name == "gpt2":
        return gpt2_tokenizer()
    if name.startswith("bpe-"):
        return bpe.train_bpe(name, pieces(), int(name.removeprefix("bpe-")))
    return CharTokenizer(alphabet)


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer, 50,257 symbols. `ExternalError` without a network, or if the hub's file is damaged here."""
    merges = gpt2.gpt2_merges()
    if not bpe.is_gpt2_merges(merges):
        raise ExternalError(
            "the merges.txt of openai-community/gpt2 in the Hugging Face hub's cache are not GPT-2's; remove them "
            "from there (hf cache rm), and try again"
        )
    return BPETokenizer("gpt2", merges, [END_OF_TEXT])


def tokenizer_from_json(form: Any) -> Tokenizer:
    """The tokenizer of a JSON form. `UserError` if it is none."""
    match form:
        case {"type": "byte"}:
            return ByteTokenizer()
        case {"type": "char", "chars": str(chars)} if chars:
            return CharTokenizer(chars)
        case {"type": str(name), "merges": [*merges], "special": [*special]} if _is_bpe_json(name, *merges, *special):
            return BPETokenizer(name, merges, special)
    raise UserError(
        f"not a tokenizer: {str(form)[:60]!r}; it must be "
        '{"type": "char", "chars": "…"}, {"type": "byte"} or byte pairs: prepare the data again'
    )


def _is_bpe_json(name: Any, *parts: Any) -> bool:
    return is_bpe_name(name) and all(isinstance(part, str) for part in parts)
