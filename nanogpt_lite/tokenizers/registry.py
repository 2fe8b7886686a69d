"""Makes a tokenizer from its name, for a text, or from its JSON form."""

from collections.abc import Callable, Iterable
from typing import TypeGuard

from nanogpt_lite.config.options import is_bpe_name
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers import bpe, gpt2
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT, BPETokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer


def make_tokenizer(name: str, *, charset: str, read_chunks: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer of that name for a text: char, byte, gpt2 or bpe-SIZE.

    `charset`: all characters of the text, for char. `read_chunks`: reads the text in chunks, to train bpe-SIZE.
    `ExternalError` if GPT-2's merges cannot be downloaded.
    """
    match name:
        case "char":
            return CharTokenizer(charset)
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return load_gpt2_tokenizer()
    assert name.startswith("bpe-"), name
    return bpe.train_bpe(name, read_chunks(), int(name.removeprefix("bpe-")))


def option_of(tokenizer: Tokenizer, *, charset: str) -> str | None:
    """The name with which `make_tokenizer` makes this very tokenizer for a text with these characters.

    None if there is none, or if it is not known: bpe-SIZE would have to be trained.
    """
    match tokenizer.to_json():
        case {"type": "byte"}:
            return "byte"
        case {"type": "char", "chars": chars} if chars == charset:
            return "char"
        case {"type": "gpt2", "merges": merges, "special": [special]} if special == END_OF_TEXT:
            return "gpt2" if bpe.is_gpt2_merges(merges) else None
    return None


def load_gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer, 50,257 tokens. `ExternalError` without a network, or if the hub's cached file is damaged."""
    merges = gpt2.fetch_gpt2_merges()
    if not bpe.is_gpt2_merges(merges):
        raise ExternalError(
            "merges.txt of openai-community/gpt2 in the Hugging Face hub's cache is not GPT-2's; remove it from the "
            "cache (hf cache rm), then try again"
        )
    return BPETokenizer("gpt2", merges, [END_OF_TEXT])


def tokenizer_from_json(content: object) -> Tokenizer:
    """The tokenizer of a JSON form, see `Tokenizer.to_json`. `UserError` if it is not valid."""
    match content:
        case {"type": "byte"}:
            return ByteTokenizer()
        case {"type": "char", "chars": str(chars)} if chars:
            return CharTokenizer(chars)
        case {"type": str(name), "merges": [*merges], "special": [*special]} if (
            is_bpe_name(name) and _is_str_list(merges) and _is_str_list(special)
        ):
            return BPETokenizer(name, merges, special)
    raise UserError(
        f'invalid tokenizer {str(content)[:60]!r}: must be {{"type": "byte"}}, {{"type": "char", "chars": "…"}}, or '
        '{"type": "bpe-SIZE", "merges": […], "special": […]}; prepare the data again'
    )


def _is_str_list(items: list[object]) -> TypeGuard[list[str]]:
    return all(isinstance(item, str) for item in items)
