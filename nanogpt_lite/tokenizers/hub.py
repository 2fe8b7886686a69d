"""What the Hugging Face hub has of GPT-2, or a folder of its files: fetched by `huggingface_hub`, nothing executed."""

import re
from pathlib import Path

from nanogpt_lite.errors import ExternalError, UserError

GPT2_REPOS = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def fetch_gpt2_file(name: str, file: str) -> Path:
    """A file of one of the models in GPT2, which do not change: from the cache on this machine, or from the hub."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("GPT-2 comes from the Hugging Face hub: pip install 'nanogpt-lite[hf]'") from None
    try:
        cached = huggingface_hub.try_to_load_from_cache(GPT2_REPOS[name], file)
        return Path(cached if isinstance(cached, str) else huggingface_hub.hf_hub_download(GPT2_REPOS[name], file))
    except Exception as error:  # of the hub's, of the HTTP library that it has at the time, of the system
        reason = re.split(r"\.\s|\n", str(error))[0][:200] or type(error).__name__
        raise ExternalError(
            f"{file} of {GPT2_REPOS[name]} cannot be fetched ({reason}); check the network, "
            "or give a folder with its files"
        ) from error
