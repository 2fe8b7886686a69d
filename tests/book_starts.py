"""The ways to start on a prepared book.txt, and what is known about it."""

from pathlib import Path
from typing import Any

import pytest
from book_data import TEXT, set_time, write_book
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.data.preparation import open_or_prepare, prepare

REVERSED = TEXT[::-1]  # the same size and the same characters
BINS = ["train.bin", "val.bin"]
NOT_THE_TEXT = "are not those of the text that was prepared"


def text_of(dataset: Dataset) -> str:
    return dataset.tokenizer.decode([*dataset.train, *dataset.val])


def start_training(**options: Any) -> None:
    """Take the first step of a training."""
    ng.train("book.txt", **{**TINY, "max_iters": 1, "out_dir": "run", "overwrite": True, **options})


def start_resuming(**options: Any) -> None:
    ng.train(out_dir="run", init_from="resume", max_iters=2, **options)


def start_evaluating(**options: Any) -> None:
    ng.evaluate("run", **options)


STARTS = [start_training, start_resuming, start_evaluating]


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """book.txt, which was last modified long ago."""
    path = write_book(tmp_path, monkeypatch)
    set_time(path)
    return path


@pytest.fixture
def checked(book: Path) -> Path:
    """The folder of the prepared book, whose .bin files were checked long after they were written."""
    folder = prepare(book).path
    set_time(*(folder / name for name in BINS))
    assert open_or_prepare(book).path == folder
    return folder
