"""Train small GPTs on any text: prepare, train, sample.

    import nanogpt_lite as ng
    dataset = ng.prepare("shakespeare_char")
    run = ng.train(dataset, preset="cpu", max_iters=500)
    print(ng.sample(run, start="ROMEO:")[0])

Importing the package imports nothing else: each name below brings its module (and PyTorch) on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogpt_lite.bpe import BPETokenizer
    from nanogpt_lite.config import SampleConfig, TrainConfig
    from nanogpt_lite.convert import export_weights, from_nanogpt, to_huggingface, to_nanogpt
    from nanogpt_lite.datasets import prepare
    from nanogpt_lite.errors import Interrupted, UserError, WorldError
    from nanogpt_lite.inference import evaluate, load, pieces, sample, stream
    from nanogpt_lite.model import GPT, KVCache
    from nanogpt_lite.pipeline import train, training
    from nanogpt_lite.prepared import Dataset
    from nanogpt_lite.presets import PRESETS
    from nanogpt_lite.runs import Run
    from nanogpt_lite.summaries import summary
    from nanogpt_lite.tokenizer import ByteTokenizer, CharTokenizer

__version__ = "0.1.0"

_HOMES = {
    "bpe": ("BPETokenizer",),
    "config": ("SampleConfig", "TrainConfig"),
    "presets": ("PRESETS",),
    "convert": ("export_weights", "from_nanogpt", "to_huggingface", "to_nanogpt"),
    "datasets": ("prepare",),
    "prepared": ("Dataset",),
    "errors": ("Interrupted", "UserError", "WorldError"),
    "inference": ("evaluate", "load", "pieces", "sample", "stream"),
    "model": ("GPT", "KVCache"),
    "pipeline": ("train", "training"),
    "runs": ("Run",),
    "summaries": ("summary",),
    "tokenizer": ("ByteTokenizer", "CharTokenizer"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [  # noqa: RUF022 (in the order of the road)
    "prepare",
    "train",
    "training",
    "sample",
    "stream",
    "pieces",
    "evaluate",
    "load",
    "summary",
    "from_nanogpt",
    "to_nanogpt",
    "to_huggingface",
    "export_weights",
    "Dataset",
    "Run",
    "GPT",
    "KVCache",
    "CharTokenizer",
    "ByteTokenizer",
    "BPETokenizer",
    "TrainConfig",
    "SampleConfig",
    "PRESETS",
    "UserError",
    "WorldError",
    "Interrupted",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
