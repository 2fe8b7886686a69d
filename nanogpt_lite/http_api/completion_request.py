"""What a request for text asks for: the fields of OpenAI's API, checked, as options of sampling.

What is left out, or null, has the default of the command line. A field that would change the text and is not supported
is refused, as is one that is not known.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanogpt_lite.config.options import LoadConfig, SampleConfig
from nanogpt_lite.http_api.fields import FieldError, given_fields, read_count, read_flag, read_model, read_options

MAX_TOKENS = 16_384  # in a text
MAX_TEXTS = 32  # in a request
MAX_ALL_TOKENS = 65_536  # in all texts of a request
MAX_LOGPROBS = 20
MAX_TOKENS_WITH_LOGPROBS = 16_384  # in all texts of a request with log-probabilities, and in its prompt
MAX_STOPS = 16
MAX_PROMPT = 100_000  # characters

OPTIONS = {
    **{"max_tokens": "max_new_tokens", "n": "num_samples", "seed": "seed", "temperature": "temperature"},
    **{"top_p": "top_p", "top_k": "top_k", "min_p": "min_p"},
}
"""Fields of a request, and the options of sampling that they are."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **{"presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "suffix": ("",)},
    **{"tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "modalities": (["text"],)},
    **{"response_format": ({"type": "text"},), "parallel_tool_calls": (True, False)},
}
"""Fields of OpenAI's API that have no meaning here, and the values with which they change nothing."""

IGNORED = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that do not change a text."""


@dataclass(frozen=True)
class TextRequest:
    """A request for texts that follow a prompt."""

    model: str | None
    prompt: str | None  # None: the default of the command line
    settings: SampleConfig
    stops: tuple[str, ...]
    streams: bool
    logprobs: int | None  # how many of the likeliest tokens are reported too; None: no probabilities
    echo: bool
    with_usage: bool  # in a stream, at its end


def read_completion(body: Mapping[str, Any], load: LoadConfig) -> TextRequest:
    """The request in a body for /v1/completions. `load` is how networks are loaded. `FieldError` if it is not valid."""
    given = _supported_fields(body, ("prompt", "logprobs", "echo", "best_of"))
    best_of = given.get("best_of")
    if best_of is not None and best_of != given.get("n", 1):
        raise FieldError("best_of", f"`best_of={best_of!r}` is not supported; leave it out, or give the value of `n`")
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if prompt is not None and not isinstance(prompt, str):
        raise FieldError("prompt", "`prompt` must be one text; send a request for each of several prompts")
    logprobs, echo = read_count(given, "logprobs", MAX_LOGPROBS), read_flag(given, "echo")
    return _read(given, load, prompt=prompt, logprobs=logprobs, echo=echo)


def read_chat(body: Mapping[str, Any], load: LoadConfig, template: str) -> TextRequest:
    """The request in a body for /v1/chat/completions: its messages are written by `template` as one prompt.

    `FieldError` if it is not valid.
    """
    given = _supported_fields(body, ("messages", "logprobs", "top_logprobs", "max_completion_tokens"))
    if given.get("logprobs"):
        raise FieldError("logprobs", "`logprobs` of a chat are not supported; ask /v1/completions for them")
    if "max_completion_tokens" in given:  # the newer name
        given["max_tokens"] = given["max_completion_tokens"]
    prompt, ending = write_chat(given.get("messages"), template)
    request = _read(given, load, prompt=prompt, logprobs=None, echo=False)
    return request if request.stops or not ending else dataclasses.replace(request, stops=(ending,))


def write_chat(messages: object, template: str) -> tuple[str, str]:
    """The messages of a chat as one text, up to where the next one begins; and what ends that one.

    >>> write_chat([{"role": "user", "content": "Who goes there?"}], "{role}: {content}\\n")
    ('user: Who goes there?\\nassistant: ', '\\n')
    """
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "`messages` must be a list of at least one message with `role` and `content`")
    parts = []
    for message in messages:
        match message:
            case {"role": str(role), "content": str(content)}:
                parts.append(_fill(template, role, content))
            case {"role": str(role), "content": [*items]} if all(_is_text(item) for item in items):
                parts.append(_fill(template, role, "".join(item["text"] for item in items)))
            case _:
                raise FieldError("messages", "each of `messages` needs `role` and `content`, which must be texts")
    before, ending = (part.replace("{role}", "assistant") for part in template.split("{content}", 1))
    return "".join(parts) + before, ending


def _fill(template: str, role: str, content: str) -> str:
    values = {"{role}": role, "{content}": content}  # in one pass: a content may hold "{role}"
    return re.sub(r"\{role\}|\{content\}", lambda match: values[match[0]], template)


def _is_text(item: object) -> bool:
    return isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str)


def _supported_fields(body: Mapping[str, Any], more: tuple[str, ...]) -> dict[str, Any]:
    """The fields that are given. `FieldError` for one that is not known, or that asks for what is not supported."""
    given = given_fields(body, [*more, *OPTIONS, "model", "stop", "stream", "stream_options", *UNSUPPORTED, *IGNORED])
    for name, harmless in UNSUPPORTED.items():
        if name in given and given[name] not in harmless:
            raise FieldError(name, f"`{name}` is not supported; leave it out")
    return given


def _read(
    given: Mapping[str, Any], load: LoadConfig, *, prompt: str | None, logprobs: int | None, echo: bool
) -> TextRequest:
    """The request with the fields that both kinds of bodies have."""
    if prompt is not None and not 0 < len(prompt) <= MAX_PROMPT:
        raise FieldError("prompt", f"the prompt must have 1 to {MAX_PROMPT:,} characters; this one has {len(prompt):,}")
    settings = read_options(SampleConfig, given, OPTIONS, load)
    _require_bounded(settings, logprobs)
    return TextRequest(
        model=read_model(given),
        prompt=prompt,
        settings=settings,
        stops=_stops(given.get("stop")),
        streams=read_flag(given, "stream"),
        logprobs=logprobs,
        echo=echo,
        with_usage=_wants_usage(given.get("stream_options")),
    )


def _require_bounded(settings: SampleConfig, logprobs: int | None) -> None:
    """`FieldError` if too much text is asked for."""
    tokens, texts = settings.max_new_tokens, settings.num_samples
    at_most = MAX_ALL_TOKENS if logprobs is None else MAX_TOKENS_WITH_LOGPROBS
    if tokens > MAX_TOKENS:
        raise FieldError("max_tokens", f"`max_tokens={tokens}` is too much for this server; give at most {MAX_TOKENS}")
    if texts > MAX_TEXTS:
        raise FieldError("n", f"`n={texts}` is too much for this server; give at most {MAX_TEXTS}")
    if tokens * texts > at_most:
        with_logprobs = "" if logprobs is None else " with `logprobs`"
        raise FieldError("n", f"{texts} texts of {tokens} tokens are too much for one request{with_logprobs}; give at "
                         f"most {at_most} tokens in all")  # fmt: skip


def _stops(stop: object) -> tuple[str, ...]:
    stops = stop if isinstance(stop, list) else [stop] if stop is not None else []
    if len(stops) > MAX_STOPS or not all(isinstance(text, str) and 0 < len(text) <= MAX_PROMPT for text in stops):
        raise FieldError("stop", f"`stop` must be a text that is not empty, or a list of at most {MAX_STOPS} of them")
    return tuple(stops)


def _wants_usage(stream_options: object) -> bool:
    match stream_options:
        case None:
            return False
        case {"include_usage": bool(wants)}:
            return wants
    raise FieldError("stream_options", '`stream_options` must be {"include_usage": true}, or be left out')
