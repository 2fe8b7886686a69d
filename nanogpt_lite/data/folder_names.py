"""Names of prepared datasets under data/: a text has a folder for each tokenizer, side by side.

    data/NAME                  characters
    data/NAME-TOKENIZER        any other tokenizer that is chosen by its name: byte, gpt2, bpe-SIZE
    data/NAME-TYPE-HASH        the tokenizer of a run that is not one of the above for this text

Two texts may have one folder: a/my.txt and b/my.txt, or my.txt with the tokenizer byte and my-byte.txt. It holds the
one that was used last, by the SHA-256 of its text, and the other is prepared again when it is used.

Up to version 0.2, data/NAME held the tokenizer that was chosen last: such data is still found. `preparation` decides
which folder is used. Nothing here needs NumPy: the client on Modal has none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_lite import files

if TYPE_CHECKING:
    from nanogpt_lite.tokenizers.base import Tokenizer

DATA_DIR = Path("data")
HASH_CHARS = 8  # hexadecimal digits of the SHA-256 of a run's tokenizer


def prepared_name(text: str, tokenizer: str) -> str:
    """The name of the folder of a text, given by its name, with a tokenizer, given by the option's value.

    >>> prepared_name("my", "auto"), prepared_name("my", "char"), prepared_name("my", "bpe-512")
    ('my', 'my', 'my-bpe-512')
    """
    return text if tokenizer in ("auto", "char") else f"{text}-{tokenizer}"


def run_tokenizer_name(text: str, tokenizer: "Tokenizer") -> str:
    """The name of the folder of a text with the tokenizer of a run."""
    return f"{text}{_run_tokenizer_suffix(tokenizer)}"


def possible_names(text: str, tokenizer: "str | Tokenizer") -> list[str]:
    """The names of the folders that may hold a text with a tokenizer, the likeliest first.

    >>> possible_names("my", "char"), possible_names("my", "byte")
    (['my'], ['my-byte', 'my'])
    """
    if isinstance(tokenizer, str):
        names = [prepared_name(text, tokenizer)]
    else:
        names = [prepared_name(text, tokenizer.to_json()["type"]), run_tokenizer_name(text, tokenizer)]
    return list(dict.fromkeys([*names, text]))


def without_hash(name: str, tokenizer: "Tokenizer") -> str:
    """The name of a folder, without the hash of its tokenizer, if it has one."""
    text = name.removesuffix(_run_tokenizer_suffix(tokenizer))
    return name if text == name else prepared_name(text, tokenizer.to_json()["type"])


def text_name(name: str, tokenizer: "Tokenizer") -> str:
    """The name of the text in a folder of this name, which holds this tokenizer: the inverse of `possible_names`."""
    text = name.removesuffix(_run_tokenizer_suffix(tokenizer))
    return text if text != name else name.removesuffix(prepared_name("", tokenizer.to_json()["type"]))


def _run_tokenizer_suffix(tokenizer: "Tokenizer") -> str:
    content = tokenizer.to_json()
    return f"-{content['type']}-{files.json_sha256(content)[:HASH_CHARS]}"
