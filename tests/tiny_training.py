"""A training of a moment for tests, without files of data: a tokenizer of 8 characters, two splits, a small config."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.tokenizers.base import Ids
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tracking.records import Record
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.state import TrainState, init_state

AnyRecord = TypeVar("AnyRecord", bound=Record)

TOKENIZER = CharTokenizer("abcdefgh")
SMALL = TrainConfig(
    device="cpu",
    dtype="float32",
    threads=1,
    block_size=8,
    n_layer=2,
    n_head=2,
    n_embd=16,
    bias=True,
    dropout=0.0,
    batch_size=4,
    max_iters=12,
    warmup_iters=3,
    eval_interval=5,
    log_interval=2,
)


def counting_ids(length: int, seed: int = 0) -> Ids:
    """Ids that a network can learn: most of them are the previous one plus one."""
    noise = np.random.default_rng(seed).integers(0, 8, length)
    ids: Ids = ((np.arange(length) + (noise == 0) * noise[::-1]) % 8).astype(np.uint16)
    return ids


TRAIN, VAL = counting_ids(1000), counting_ids(203, seed=1)


def small_config(**values: Any) -> TrainConfig:
    """SMALL with other values."""
    return dataclasses.replace(SMALL, **values)


def train(
    out_dir: Path, config: TrainConfig = SMALL, state: TrainState | None = None, **options: Any
) -> tuple[TrainState, list[Any]]:
    """Train to the end; the state and all records."""
    state = state or init_state(config, TOKENIZER)
    return state, list(loop.train_loop(state, TRAIN, VAL, out_dir=out_dir, **options))


def records_of(record_type: type[AnyRecord], records: Iterable[Record]) -> list[AnyRecord]:
    """The records of one type."""
    return [record for record in records if isinstance(record, record_type)]
