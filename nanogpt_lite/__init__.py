"""Train small GPTs on any text: prepare, train, sample.

    import nanogpt_lite as ng
    dataset = ng.prepare("shakespeare_char")
    run = ng.train(dataset, preset="cpu", max_iters=500)
    print(ng.sample(run, start="ROMEO:")[0])

Importing the package imports nothing else: the first use of a name below imports its module (and PyTorch).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_lite.api.inference import load, pieces, sample, stream, stream_batch
    from nanogpt_lite.api.inspection import inspect
    from nanogpt_lite.api.pipeline import train, training
    from nanogpt_lite.api.run_evaluation import evaluate
    from nanogpt_lite.config.keyword_types import (
        AppOptions,
        InspectOptions,
        LoadOptions,
        SampleOptions,
        ServeOptions,
        StreamOptions,
        TrainOptions,
    )
    from nanogpt_lite.config.options import SampleConfig, TrainConfig
    from nanogpt_lite.config.presets import PRESETS
    from nanogpt_lite.data.dataset import Dataset
    from nanogpt_lite.data.preparation import prepare
    from nanogpt_lite.errors import ExternalError, Interrupted, NanoGPTLiteError, UserError, WorldError
    from nanogpt_lite.interop.conversion import export_weights, from_nanogpt, to_huggingface, to_nanogpt
    from nanogpt_lite.model.gpt import GPT
    from nanogpt_lite.model.kv_cache import KVCache
    from nanogpt_lite.readout.reading import Reading
    from nanogpt_lite.runs.run_folder import Run
    from nanogpt_lite.runs.run_summary import summary
    from nanogpt_lite.server.serving import app, serve
    from nanogpt_lite.tokenizers.bpe import BPETokenizer
    from nanogpt_lite.tokenizers.byte import ByteTokenizer
    from nanogpt_lite.tokenizers.char import CharTokenizer

__version__ = "0.2.0"

_EXPORTS = {
    "api.inference": ("load", "pieces", "sample", "stream", "stream_batch"),
    "api.inspection": ("inspect",),
    "api.pipeline": ("train", "training"),
    "api.run_evaluation": ("evaluate",),
    "config.keyword_types": (
        "AppOptions",
        "InspectOptions",
        "LoadOptions",
        "SampleOptions",
        "ServeOptions",
        "StreamOptions",
        "TrainOptions",
    ),
    "config.options": ("SampleConfig", "TrainConfig"),
    "config.presets": ("PRESETS",),
    "data.dataset": ("Dataset",),
    "data.preparation": ("prepare",),
    "errors": ("ExternalError", "Interrupted", "NanoGPTLiteError", "UserError", "WorldError"),
    "interop.conversion": ("export_weights", "from_nanogpt", "to_huggingface", "to_nanogpt"),
    "model.gpt": ("GPT",),
    "model.kv_cache": ("KVCache",),
    "readout.reading": ("Reading",),
    "runs.run_folder": ("Run",),
    "runs.run_summary": ("summary",),
    "server.serving": ("app", "serve"),
    "tokenizers.bpe": ("BPETokenizer",),
    "tokenizers.byte": ("ByteTokenizer",),
    "tokenizers.char": ("CharTokenizer",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = [  # noqa: RUF022 (the order of the pipeline; then classes and exceptions)
    "prepare",
    "train",
    "training",
    "sample",
    "stream",
    "stream_batch",
    "pieces",  # the name of stream_batch in version 0.1
    "evaluate",
    "inspect",
    "serve",
    "app",
    "load",
    "summary",
    "from_nanogpt",
    "to_nanogpt",
    "to_huggingface",
    "export_weights",
    "Dataset",
    "Run",
    "Reading",
    "GPT",
    "KVCache",
    "CharTokenizer",
    "ByteTokenizer",
    "BPETokenizer",
    "TrainConfig",
    "SampleConfig",
    "PRESETS",
    "TrainOptions",  # the types of keyword arguments
    "LoadOptions",
    "StreamOptions",
    "SampleOptions",
    "InspectOptions",
    "ServeOptions",
    "AppOptions",
    "NanoGPTLiteError",
    "UserError",
    "ExternalError",
    "WorldError",  # the name of ExternalError in version 0.1
    "Interrupted",
]


if not TYPE_CHECKING:  # else type checkers would accept any name

    def __getattr__(name: str) -> object:  # PEP 562
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
