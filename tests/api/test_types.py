"""The types of the public API. mypy checks the `assert_type` calls; pytest runs them, so that the values have them."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, assert_type

import pytest
import torch
from torch import Tensor

import nanogpt_lite as ng
from nanogpt_lite.api.run_evaluation import EvalResult
from nanogpt_lite.runs.run_summary import RunSummary
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    Record,
    SampleRecord,
    StartRecord,
    StopReason,
)

# not `tiny.TINY`, a dict[str, Any]: here mypy has to see the type of each keyword argument
OPTIONS: ng.TrainOptions = {
    "device": "cpu",
    "threads": 1,
    "block_size": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "batch_size": 4,
    "max_iters": 2,
}


def test_types_of_data_and_training(text_file: Path) -> None:
    dataset = assert_type(ng.prepare(text_file), ng.Dataset)
    assert_type(dataset.tokenizer, Tokenizer)
    run = assert_type(ng.train(dataset, preset="cpu", out_dir=Path("run"), **OPTIONS), ng.Run)
    assert isinstance(assert_type(run.out_dir, Path), Path)
    assert isinstance(assert_type(run.best_val_loss, float | None), float)
    assert isinstance(assert_type(run.metrics, list[dict[str, Any]])[0], dict)
    assert assert_type(run.save_plot(), Path).is_file()


def test_types_of_records(text_file: Path) -> None:
    records = assert_type(ng.training(text_file, sample_interval=1, **OPTIONS), Generator[Record, None, None])
    kinds = []
    for record in records:
        kinds.append(assert_type(record.step, int))
        match record.kind:
            case "start":
                assert isinstance(assert_type(record, StartRecord), StartRecord)
            case "eval":
                assert isinstance(assert_type(record, EvalRecord).val_loss, float)
            case "checkpoint":
                assert Path(assert_type(record, CheckpointRecord).path).is_file()
            case "sample":
                assert isinstance(assert_type(record, SampleRecord).text, str)
            case "done":
                assert assert_type(assert_type(record, DoneRecord).reason, StopReason) == "max_iters"
    assert kinds[-1] == 2


def test_types_of_a_trained_run(trained: ng.Run) -> None:
    options: ng.SampleOptions = {"num_samples": 2, "max_new_tokens": 3, "start": "9"}
    texts = assert_type(ng.sample(trained, **options), list[str])
    chunks = list(assert_type(ng.stream_batch(trained, **options), Iterator[list[str]]))
    assert ["".join(parts) for parts in zip(*chunks, strict=True)] == texts
    stream = assert_type(ng.stream(str(trained.out_dir), start="9", max_new_tokens=3), Iterator[str])
    assert "".join(stream) == texts[0]
    model, tokenizer = assert_type(ng.load(trained, dtype="float32"), tuple[ng.GPT, Tokenizer])
    logits, loss = assert_type(model.forward(torch.tensor([[1, 2]])), tuple[Tensor, Tensor | None])
    assert (logits.shape, loss) == ((1, 2, tokenizer.vocab_size), None)
    result = assert_type(ng.evaluate(trained), EvalResult)
    assert result.keys() == EvalResult.__annotations__.keys()
    assert isinstance(assert_type(result["val_loss"], float), float)
    content = assert_type(ng.summary(trained), RunSummary)
    assert content.keys() == RunSummary.__annotations__.keys()
    assert isinstance(assert_type(content["best_val_loss"], float | None), float)


def test_types_of_exports(text_file: Path) -> None:
    trained = ng.train(text_file, preset="cpu", **OPTIONS)
    assert assert_type(ng.to_nanogpt(trained, "exported"), Path).is_file()
    assert assert_type(ng.export_weights(trained, "weights.safetensors"), Path).is_file()
    imported = assert_type(ng.from_nanogpt("exported", meta="exported/data/bottles/meta.pkl"), ng.Run)
    assert imported.out_dir.is_dir()
    assert assert_type(ng.to_huggingface(imported, "hf", overwrite=True), Path).is_dir()


def test_types_of_constants_and_errors() -> None:
    assert set(assert_type(ng.PRESETS, dict[str, dict[str, int | float | bool | str]]))
    error: ng.NanoGPTLiteError = assert_type(ng.UserError("no"), ng.UserError)
    assert isinstance(error, ValueError)
    assert_type(ng.CharTokenizer("ab").vocab_size, int)
    assert_type(ng.__version__, str)
    with pytest.raises(AttributeError, match="smaple"):
        _ = ng.smaple  # type: ignore[attr-defined]  # mypy reports an ignore that is not needed: it must refuse the name
