"""What a trained run is used for: generated text, and the network itself.

How a run is trained is in `api.pipeline`, and what its loss is in `api.run_evaluation`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Unpack
from weakref import WeakKeyDictionary

import torch

from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import load_weights
from nanogpt_lite.config.keyword_types import LoadOptions, SampleOptions, StreamOptions
from nanogpt_lite.config.options import LoadConfig, NetworkConfig, SampleConfig, read_prompt
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.device import devices, fast_paths, generators, seeding
from nanogpt_lite.errors import UserError
from nanogpt_lite.generation import cpu_linear, text_stream
from nanogpt_lite.generation.cuda_graph import Recordings
from nanogpt_lite.generation.text_stream import Chunk
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import RunLike
from nanogpt_lite.tokenizers.base import Tokenizer

Loaded = tuple[GPT, Tokenizer]
"""A trained network and its tokenizer, as `load` returns them."""

# Of networks that were loaded once for many calls.
_recordings: WeakKeyDictionary[GPT, Recordings] = WeakKeyDictionary()


@with_options(SampleConfig)
def sample(run: RunLike | Loaded = None, **options: Unpack[SampleOptions]) -> list[str]:
    """Generate `num_samples` texts, each with its prompt, from a trained run.

    Any option of `SampleConfig` is a keyword argument. `UserError` if there is no checkpoint, or if the prompt cannot
    be encoded.
    """
    return text_stream.join_texts(stream_batch(run, **options))


@with_options(SampleConfig, without=("num_samples",))
def stream(run: RunLike | Loaded = None, **options: Unpack[StreamOptions]) -> Iterator[str]:
    """One text in chunks as it is generated, the prompt first. The options of `sample` without `num_samples`."""
    one_sample: SampleOptions = {**options, "num_samples": 1}
    for chunks in stream_batch(run, **one_sample):
        yield chunks[0]


@with_options(SampleConfig)
def stream_batch(run: RunLike | Loaded = None, **options: Unpack[SampleOptions]) -> Iterator[list[str]]:
    """`num_samples` texts in chunks as they are generated: lists of the new text of each sample, the prompt first.

    `run` may be what `load` returned, to load once for many calls. The network stays as it is, also its mode (training
    or evaluation). On a CPU, a call takes as much memory as the network again, until its end: see `cpu_linear`.
    """
    settings = SampleConfig.from_dict(options)
    if isinstance(run, tuple):
        loaded, copies = run, True
    else:
        loaded, copies = load_model(run, settings)[:2], False
    prompt = read_prompt(settings.start) if "start" in options else default_prompt(loaded[1])
    steps = continue_text(loaded, prompt, settings, copies=copies)
    yield [prompt] * settings.num_samples
    yield from text_stream.texts_of(steps)


def continue_text(
    loaded: Loaded,
    prompt: str,
    settings: SampleConfig,
    *,
    stops: Sequence[str] | None = None,
    with_logits: bool = False,
    copies: bool = True,
    is_over: Callable[[], bool] = lambda: False,
) -> Generator[list[Chunk], None, None]:
    """What each step adds to `num_samples` texts that follow a prompt; `settings.start` is not read.

    `stops`: stop texts in place of `settings.stop`. `with_logits`: also the logits of each token. `copies`: leave the
    network as it is. When `is_over` is true, no more tokens are generated. `UserError`, at once, if the prompt cannot
    be encoded.
    """
    model, tokenizer = loaded
    ids = tokenizer.encode(prompt, what="prompt")
    size = (settings.num_samples, settings.max_new_tokens)
    recordings = None
    if not copies:
        cpu_linear.optimize_linears(model, *size)
    elif isinstance(model, GPT):  # else it is compiled or wrapped, and its modules belong to the wrapper
        recordings = _recordings.setdefault(model, Recordings())
        model = cpu_linear.copy_for_generation(model, *size)
    steps = text_stream.stream_chunks(
        model, tokenizer, ids, settings, stops, with_logits=with_logits, recordings=recordings, is_over=is_over
    )
    threads = devices.resolve_threads(settings.threads)
    return generators.context_per_item(steps, lambda: devices.compute_settings(threads, tf32=settings.tf32))


pieces = stream_batch  # its name in version 0.1


@with_options(LoadConfig)
def load(run: RunLike = None, **options: Unpack[LoadOptions]) -> Loaded:
    """The trained network of a run, in evaluation mode, and its tokenizer.

    Any option of `LoadConfig` is a keyword argument. `dtype` is that of the weights, float32 for "auto". `UserError` if
    there is no such checkpoint, or if it is damaged.
    """
    model, tokenizer, _ = load_model(run, LoadConfig.from_dict(options))
    return model, tokenizer


def default_prompt(tokenizer: Tokenizer) -> str:
    """A newline, as in nanoGPT; if the text had none, the first character of the vocabulary."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except UserError:
        return tokenizer.decode([0])


def load_model(run: RunLike, settings: LoadConfig) -> tuple[GPT, Tokenizer, Checkpoint]:
    """The network of a checkpoint, on the device and in the number format that the settings ask for."""
    saved, config, tokenizer = load_checkpoint(run, settings.checkpoint, weights_only=True)
    with seeding.seeded(torch.device("cpu")):  # the initial weights are random, and replaced at once
        model = GPT(config.subset(NetworkConfig), tokenizer.vocab_size)
    load_weights(model, saved)
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    device = devices.resolve_device(settings.device)
    fast_paths.check(device, dtype, head_size=config.n_embd // config.n_head)
    model.to(device, devices.DTYPES[dtype])
    if settings.int8:
        cpu_linear.quantize_int8(model)
    return model.eval(), tokenizer, saved
