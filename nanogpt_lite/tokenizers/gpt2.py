"""What the Hugging Face hub has of GPT-2, or a folder of its files: fetched by `huggingface_hub`, nothing executed."""

import json
from pathlib import Path
from typing import Any

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.hub import fetch_gpt2_file

PARSE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)  # of a file that is another


def gpt2_merges() -> list[str]:
    """The merges of GPT-2's tokenizer, in their order. `ExternalError` without a network."""
    return read_merges(fetch_gpt2_file("gpt2", "merges.txt"))


def read_merges(path: Path) -> list[str]:
    """The merges in a merges.txt, or in a tokenizer.json of byte pairs. `UserError` if there are none."""
    try:
        if path.suffix == ".json":
            return _parse_merges(json.loads(path.read_text(encoding="utf-8")))
        lines = path.read_text(encoding="utf-8").split("\n")
        return [line for line in lines if line and not line.startswith("#version")]
    except PARSE_ERRORS as error:
        raise _not_gpt2_tokenizer(path, error) from error


def read_tokenizer(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The merges and the id of each symbol, from a tokenizer.json, or from a merges.txt and a vocab.json.

    `UserError` if there are none, or if texts are not taken apart as GPT-2 does it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder / "vocab.json"
        merges = read_merges(folder / "merges.txt")
    try:
        form = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            return merges, dict(form)
        if form["model"]["type"] != "BPE":
            raise ValueError("its tokens are no byte pairs")
        before = form["pre_tokenizer"]
        if form.get("normalizer") or before["type"] != "ByteLevel" or before["add_prefix_space"]:
            raise ValueError("it changes a text first, or does not take it apart into bytes")
        marks = ("continuing_subword_prefix", "end_of_word_suffix")
        if not before.get("use_regex", True) or any(form["model"].get(mark) for mark in marks):
            raise ValueError("it does not take a text apart into words, or marks their parts")
        added = {token["content"]: token["id"] for token in form["added_tokens"]}
        return _parse_merges(form), {**form["model"]["vocab"], **added}
    except PARSE_ERRORS as error:
        raise _not_gpt2_tokenizer(path, error) from error


def _parse_merges(form: Any) -> list[str]:
    found = form["model"]["merges"]
    return [" ".join(merge) if isinstance(merge, list) else str(merge) for merge in found]


def _not_gpt2_tokenizer(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} has no tokenizer like GPT-2's ({str(error) or type(error).__name__:.200}); give its tokenizer.json, "
        "or its merges.txt and vocab.json"
    )
