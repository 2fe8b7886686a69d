"""Which tokenizer: from its JSON form, or by its name, for a text."""

from collections.abc import Callable, Iterable
from typing import Any

from nanogpt_lite import bpe, hub
from nanogpt_lite.bpe import END_OF_TEXT, BPETokenizer
from nanogpt_lite.config import names_pairs
from nanogpt_lite.errors import UserError, WorldError
from nanogpt_lite.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer


def named(name: str, alphabet: str, pieces: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer of that name for a text with these characters. `WorldError` if GPT-2's cannot be fetched."""
    if name == "byte":
        return ByteTokenizer()
    if name == "gpt2":
        return gpt2()
    if name.startswith("bpe-"):
        return bpe.train(name, pieces(), int(name.removeprefix("bpe-")))
    return CharTokenizer(alphabet)


def gpt2() -> BPETokenizer:
    """GPT-2's tokenizer, 50,257 symbols. `WorldError` without a network, or if the hub's file is damaged here."""
    merges = hub.gpt2_merges()
    if not bpe.are_gpt2s(merges):
        raise WorldError(
            "the merges.txt of openai-community/gpt2 in the Hugging Face hub's cache are not GPT-2's; remove them "
            "from there (hf cache rm), and try again"
        )
    return BPETokenizer("gpt2", merges, [END_OF_TEXT])


def from_json(form: Any) -> Tokenizer:
    """The tokenizer of a JSON form. `UserError` if it is none."""
    match form:
        case {"type": "byte"}:
            return ByteTokenizer()
        case {"type": "char", "chars": str(chars)} if chars:
            return CharTokenizer(chars)
        case {"type": str(name), "merges": [*merges], "special": [*special]} if _are_texts(name, *merges, *special):
            return BPETokenizer(name, merges, special)
    raise UserError(
        f"not a tokenizer: {str(form)[:60]!r}; it must be "
        '{"type": "char", "chars": "…"}, {"type": "byte"} or byte pairs: prepare the data again'
    )


def _are_texts(name: Any, *parts: Any) -> bool:
    return names_pairs(name) and all(isinstance(part, str) for part in parts)
