"""GPT-2's merges, and the tokenizer files of models that are like GPT-2.

See `bpe` for the tokenizer made from them, and `hub` for the download.
"""

import json
from pathlib import Path
from typing import Any

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.hub import fetch_gpt2_file

# what reading a JSON file of an unexpected form can raise
PARSE_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def fetch_gpt2_merges() -> list[str]:
    """The merges of GPT-2's tokenizer, in order. `ExternalError` if they are not cached and cannot be downloaded."""
    return read_merges(fetch_gpt2_file("gpt2", "merges.txt"))


def read_merges(path: Path) -> list[str]:
    """The merges in a merges.txt, or in a tokenizer.json of a BPE tokenizer. `UserError` if it holds none."""
    try:
        if path.suffix == ".json":
            return _parse_merges(json.loads(path.read_text(encoding="utf-8")))
        lines = path.read_text(encoding="utf-8").split("\n")
        return [line for line in lines if line and not line.startswith("#version")]
    except PARSE_ERRORS as error:
        raise _not_gpt2_tokenizer(path, error) from error


def read_tokenizer(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The merges, and the id of each token, from tokenizer.json, or else from merges.txt and vocab.json.

    `UserError` if the files are missing, or if the tokenizer does not split texts as GPT-2's does.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder / "vocab.json"
        merges = read_merges(folder / "merges.txt")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            return merges, dict(content)
        _require_like_gpt2(content)
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        return _parse_merges(content), {**content["model"]["vocab"], **added}
    except PARSE_ERRORS as error:
        raise _not_gpt2_tokenizer(path, error) from error


def _require_like_gpt2(content: dict[str, Any]) -> None:
    """`ValueError` unless a tokenizer.json describes byte-level BPE that splits texts as GPT-2's does."""
    if content["model"]["type"] != "BPE":
        raise ValueError("its model is not BPE")
    pre_tokenizer = content["pre_tokenizer"]
    if content.get("normalizer") or pre_tokenizer["type"] != "ByteLevel" or pre_tokenizer["add_prefix_space"]:
        raise ValueError("it has a normalizer, adds a prefix space, or is not byte-level")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if not pre_tokenizer.get("use_regex", True) or any(content["model"].get(affix) for affix in affixes):
        raise ValueError("it does not split a text into words, or it marks subwords with a prefix or suffix")


def _parse_merges(content: Any) -> list[str]:
    merges = content["model"]["merges"]
    return [" ".join(merge) if isinstance(merge, list) else str(merge) for merge in merges]


def _not_gpt2_tokenizer(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} has no tokenizer like GPT-2's ({str(error) or type(error).__name__:.200}); give its tokenizer.json, "
        "or its merges.txt and vocab.json"
    )
