"""What the Hugging Face hub has of GPT-2, or a folder of its files: fetched by `huggingface_hub`, nothing executed."""

import json
from pathlib import Path
from typing import Any

from nanogpt_lite.errors import UserError, WorldError

GPT2 = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def gpt2_merges() -> list[str]:
    """The merges of GPT-2's tokenizer, in their order. `WorldError` without a network."""
    return read_merges(fetch("gpt2", "merges.txt"))


def read_merges(path: Path) -> list[str]:
    """The merges in a merges.txt, or in a tokenizer.json of byte pairs. `UserError` if there are none."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found = json.loads(text)["model"]["merges"]
            return [" ".join(merge) if isinstance(merge, list) else str(merge) for merge in found]
        return [line for line in text.split("\n") if line and not line.startswith("#version")]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} has no merges of GPT-2's tokenizer ({str(error) or type(error).__name__:.200}); give its "
            "merges.txt, or its tokenizer.json"
        ) from error


def fetch(name: str, file: str) -> Path:
    """A file of one of the models in GPT2, from the hub or from its cache on this machine."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError("GPT-2 comes from the Hugging Face hub: pip install 'nanogpt-lite[hf]'") from None
    failed: Any = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError)
    try:
        return Path(huggingface_hub.hf_hub_download(GPT2[name], file))
    except failed as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise WorldError(
            f"{file} of {GPT2[name]} cannot be fetched ({reason}); check the network, or give a folder with its files"
        ) from error
