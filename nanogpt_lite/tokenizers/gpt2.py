"""GPT-2's merges, and the tokenizer files of models that are like GPT-2.

See `bpe` for the tokenizer made from them, and `hub` for the download.
"""

import json
from pathlib import Path

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.hub import fetch_gpt2_file


def fetch_gpt2_merges() -> list[str]:
    """The merges of GPT-2's tokenizer, in order. `ExternalError` if they are not cached and cannot be downloaded."""
    return read_merges(fetch_gpt2_file("gpt2", "merges.txt"))


def read_merges(path: Path) -> list[str]:
    """The merges in a merges.txt, or in a tokenizer.json of a BPE tokenizer. `UserError` if it holds none."""
    try:
        if path.suffix == ".json":
            return _parse_merges(read_json_object(path))
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise _not_gpt2_tokenizer(path, error) from error
    return [line for line in lines if line and not line.startswith("#version")]


def read_tokenizer(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The merges, and the id of each token, from tokenizer.json, or else from merges.txt and vocab.json.

    `UserError` if the files are missing, or if the tokenizer does not split texts as GPT-2's does.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder / "vocab.json"
        merges = read_merges(folder / "merges.txt")
    try:
        content = read_json_object(path)
        if path.name == "vocab.json":
            return merges, _parse_ids(content)
        _require_like_gpt2(content)
        return _parse_merges(content), {**_parse_ids(_object(content["model"]).get("vocab")), **_parse_added(content)}
    except (OSError, ValueError) as error:
        raise _not_gpt2_tokenizer(path, error) from error


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in a file. `OSError` if it cannot be read, `ValueError` if it is something else."""
    try:
        return _object(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def _object(content: object) -> dict[str, object]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds {content!r:.40} where a JSON object is expected")
    return content


def _require_like_gpt2(content: dict[str, object]) -> None:
    """`ValueError` unless a tokenizer.json describes byte-level BPE that splits texts as GPT-2's does."""
    model, pre_tokenizer = _object(content.get("model")), _object(content.get("pre_tokenizer"))
    if model.get("type") != "BPE":
        raise ValueError("its model is not BPE")
    if content.get("normalizer") or pre_tokenizer.get("type") != "ByteLevel" or pre_tokenizer.get("add_prefix_space"):
        raise ValueError("it has a normalizer, adds a prefix space, or is not byte-level")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if not pre_tokenizer.get("use_regex", True) or any(model.get(affix) for affix in affixes):
        raise ValueError("it does not split a text into words, or it marks subwords with a prefix or suffix")


def _parse_merges(content: dict[str, object]) -> list[str]:
    """The merges of a tokenizer.json: texts "a b", or in newer files pairs ["a", "b"]."""
    merges = _object(content.get("model")).get("merges")
    if not isinstance(merges, list):
        raise ValueError("it has no merges")
    joined = [
        " ".join(merge) if isinstance(merge, list) and all(isinstance(part, str) for part in merge) else merge
        for merge in merges
    ]
    if not all(isinstance(merge, str) for merge in joined):
        raise ValueError("its merges are not pairs of tokens")
    return joined


def _parse_ids(vocabulary: object) -> dict[str, int]:
    """The id of each token. `ValueError` unless all are whole numbers."""
    ids = {token: id_ for token, id_ in _object(vocabulary).items() if type(id_) is int}
    if len(ids) < len(_object(vocabulary)):
        raise ValueError("the ids of its tokens are not whole numbers")
    return ids


def _parse_added(content: dict[str, object]) -> dict[str, int]:
    """The ids of the added tokens of a tokenizer.json, such as <|endoftext|>."""
    tokens = content.get("added_tokens")
    if not isinstance(tokens, list):
        raise ValueError("it has no list of added tokens")
    texts = [(_object(token).get("content"), _object(token).get("id")) for token in tokens]
    if not all(isinstance(text, str) for text, _ in texts):
        raise ValueError("its added tokens are not texts")
    return _parse_ids({str(text): id_ for text, id_ in texts})


def _not_gpt2_tokenizer(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} has no tokenizer like GPT-2's ({str(error) or type(error).__name__:.200}); give its tokenizer.json, "
        "or its merges.txt and vocab.json"
    )
