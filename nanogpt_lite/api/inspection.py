"""What a trained run computes on a text: see `readout`."""

from collections.abc import Generator
from typing import Unpack

from nanogpt_lite.api.inference import Loaded, load_model
from nanogpt_lite.config.keyword_types import InspectOptions
from nanogpt_lite.config.options import FilterConfig, InspectConfig, read_prompt
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.device import devices, generators
from nanogpt_lite.errors import UserError
from nanogpt_lite.readout.reading import Reading, read_steps
from nanogpt_lite.runs.run_folder import RunLike


@with_options(InspectConfig)
def inspect(run: RunLike | Loaded, text: str, **options: Unpack[InspectOptions]) -> Reading:
    """Read a text with a trained network, token by token. `run` may be what `load` returned; it stays as it is.

    Any option of `InspectConfig` is a keyword argument. A text that begins with "FILE:" is the name of a file. The
    computation is separate from that of the network, see `readout.plain_forward`. `UserError` if there is no
    checkpoint, or if the text is empty or cannot be encoded.
    """
    settings = InspectConfig.from_dict(options)
    loaded = run if isinstance(run, tuple) else load_model(run, settings)[:2]
    if not text:
        raise UserError("`text` is empty, so there is nothing to read; give at least one character")
    *_, reading = read_with(loaded, read_prompt(text, what="text"), settings, top=settings.top)
    assert reading is not None
    return reading


def read_with(
    loaded: Loaded, text: str, settings: FilterConfig, *, top: int, attention: bool = True, lens: bool = True
) -> Generator[Reading | None, None, None]:
    """The steps of reading a text with a loaded network: see `read_steps`. `UserError` if it cannot be encoded."""
    model, tokenizer = loaded
    ids = tokenizer.encode(text, what="text")
    steps = read_steps(model, tokenizer, ids, settings, top, attention=attention, lens=lens)
    threads = devices.resolve_threads(settings.threads)
    return generators.context_per_item(steps, lambda: devices.compute_settings(threads, tf32=settings.tf32))
