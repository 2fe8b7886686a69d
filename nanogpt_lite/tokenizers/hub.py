"""Downloads GPT-2's files, tokenizer and weights, from the Hugging Face hub into the hub's cache.

`huggingface_hub` is imported on first use. See `gpt2` for reading the tokenizer files, and `interop.huggingface` for
reading the weights.
"""

import re
from pathlib import Path

from nanogpt_lite.errors import ExternalError, UserError

GPT2_REPOS = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def fetch_gpt2_file(model: str, filename: str) -> Path:
    """The path of a file of one of the models in `GPT2_REPOS`: from the hub's local cache, else downloaded.

    A cached file is not checked for updates: these models do not change. `UserError` if `huggingface_hub` is not
    installed, `ExternalError` if the download fails.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            "GPT-2 is downloaded with the package huggingface_hub; install it: pip install 'nanogpt-lite[hf]'"
        ) from None
    repo = GPT2_REPOS[model]
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo, filename)
        return Path(cached if isinstance(cached, str) else huggingface_hub.hf_hub_download(repo, filename))
    except Exception as error:  # the hub's own errors, those of its HTTP library (which changed), and OSError
        reason = re.split(r"\.\s|\n", str(error))[0][:200] or type(error).__name__
        raise ExternalError(
            f"{filename} of {repo} cannot be fetched ({reason}); check the network, or give a folder with its files"
        ) from error
