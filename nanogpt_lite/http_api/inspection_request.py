"""What a request for a reading asks for, and the reading as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanogpt_lite.config.options import InspectConfig, LoadConfig, NetworkConfig
from nanogpt_lite.http_api.fields import FieldError, given_fields, read_flag, read_model, read_options
from nanogpt_lite.readout.reading import Reading
from nanogpt_lite.tokenizers.base import Tokenizer

MAX_TOKENS = 4096
MAX_TOP = 50
MAX_NUMBERS = 2_000_000  # of attention, and of the lens: they are sent as text
OPTIONS = {name: name for name in ("top", "temperature", "top_k", "top_p", "min_p")}
DECIMALS = 6  # of attention: enough to draw it


@dataclass(frozen=True)
class InspectionRequest:
    """A request to read a text."""

    model: str | None
    text: str
    settings: InspectConfig
    attention: bool
    lens: bool


def read_inspection(body: Mapping[str, Any], load: LoadConfig) -> InspectionRequest:
    """The request in a body for /api/inspect. `load` is how networks are loaded. `FieldError` if it is not valid."""
    given = given_fields(body, ["model", "text", *OPTIONS, "attention", "lens"])
    text = given.get("text")
    if not isinstance(text, str) or not text:
        raise FieldError("text", "`text` must be a text of at least one character")
    settings = read_options(InspectConfig, given, OPTIONS, load)
    if settings.top > MAX_TOP:
        raise FieldError("top", f"`top={settings.top}` is too much for this server; give at most {MAX_TOP}")
    attention, lens = read_flag(given, "attention"), read_flag(given, "lens")
    return InspectionRequest(read_model(given), text, settings, attention, lens)


def require_readable(asked: InspectionRequest, num_tokens: int, network: NetworkConfig) -> None:
    """`FieldError` if a text has too many tokens for what is asked about it."""
    if num_tokens > MAX_TOKENS:
        raise FieldError("text", f"the text has {num_tokens} tokens; give at most {MAX_TOKENS}")
    numbers = {
        "attention": network.n_layer * network.n_head * num_tokens**2,
        "lens": (network.n_layer + 1) * num_tokens * asked.settings.top,
    }
    for name, number in numbers.items():
        if getattr(asked, name) and number > MAX_NUMBERS:
            raise FieldError(
                name, f"the {name} of {num_tokens} tokens would be {number:,} numbers; give a shorter text"
            )


def encode_reading(reading: Reading, tokenizer: Tokenizer, asked: InspectionRequest, model: str) -> bytes:
    """The JSON of a reading. Attention is (layer, head, T, T), and the lens (layer, T, K)."""
    content = {"model": model, **reading.to_dict()}
    if asked.attention:
        content["attention"] = reading.attention.numpy().round(DECIMALS).tolist()
    if asked.lens:
        ids, probabilities = (tensor.tolist() for tensor in reading.lens)
        tokens = [[[tokenizer.decode([number]) for number in row] for row in layer] for layer in ids]
        content["lens"] = {"ids": ids, "tokens": tokens, "probabilities": probabilities}
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
