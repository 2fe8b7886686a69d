"""The parts of `any_text.py`: what is measured on one text. Each function returns what the table and OUT.json need."""

import json
import pickle
import shutil
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import COMPRESSORS, compressed_nats, ngram_loss
from harness import README_COMMAND, RECIPE_STEPS, CompletedRun, Harness, copy_nanogpt, evaluations
from settings import SETTINGS, StepTimer, changed_options, length_options

import nanogpt_lite as ng
from nanogpt_lite.config.schema import Value
from nanogpt_lite.data.dataset import val_text_size
from nanogpt_lite.diagnosis.measures import measure_text

DEFAULT: dict[str, Value] = {"device": "cpu"}  # what is given to the default recipe: nothing else
NANOGPT_DATASET = "any_text"
NGRAM = "5-gram"
START_SECONDS = 5.0  # of a training, whatever the number of steps: the imports, the first step, the result
LIMIT_MARGIN = 0.92  # of nanoGPT's time: evaluations, and the noise of the machine


@dataclass(frozen=True)
class PreparedText:
    """A text that is prepared in a temporary folder, and the harness that runs both programs on it."""

    text: str
    harness: Harness

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that losses are converted with, and those for the table."""
        data = self.harness.dataset
        n_chars, n_bytes = val_text_size(data)
        return {
            "vocab_size": data.tokenizer.vocab_size,
            "train_tokens": len(data.train),
            "val_tokens": len(data.val),
            "val_characters": n_chars,
            "val_bytes": n_bytes,
        }

    def losses(self, nats_per_token: float) -> dict[str, float]:
        """A loss per token, per character and per byte of the val split. No text has a loss for its first token."""
        data = self.harness.dataset
        n_chars, n_bytes = val_text_size(data)
        measures = measure_text(nats_per_token, n_tokens=len(data.val), n_chars=n_chars, n_bytes=n_bytes)
        return {
            "nats_per_token": nats_per_token,
            "nats_per_character": measures.nats_per_character,
            "bits_per_byte": measures.bits_per_byte,
        }

    def result(self, process: CompletedRun, run: ng.Run) -> dict[str, Any]:
        """What a training gave: the loss of its best checkpoint, the last one, and the time of the process.

        The best loss is that of the result, which covers the whole val split also where evaluations do not. (Of a text
        of more than about 25 MB, it covers as much as was trained on.)
        """
        losses = [(record["step"], record["val_loss"]) for record in evaluations(run)]
        (result,) = (record for record in run.metrics if record["kind"] == "result")
        (best,) = (record for record in evaluations(run) if record["step"] == result["best_step"])
        return {
            **self.losses(result["val_loss"]),
            "network_nats_per_token": best["network_val_loss"],
            "last_nats_per_token": losses[-1][1],
            "steps": losses[-1][0],
            "evaluations": losses,
            "verdict": result["verdict"],
            **costs(process),
        }


def prepare_text(text: str, tokenizer: str, folder: Path, threads: int) -> PreparedText:
    """Prepare a text for both programs."""
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    data = ng.prepare(path, tokenizer=tokenizer, out_dir=folder / "lite" / "data")
    return PreparedText(text, Harness(folder, threads, data, "cpu"))


def start_default(text: PreparedText) -> Path:
    """The config.json of the default recipe for a text. A training is started, and closed before its first step."""
    harness = text.harness
    out_dir = harness.lite_dir / "runs" / "started"
    options: dict[str, Any] = {**DEFAULT, "threads": harness.threads}
    with closing(ng.training(harness.dataset, out_dir=str(out_dir), overwrite=True, **options)) as records:
        next(records)
    return out_dir / "config.json"


def read_recipe(config: Path) -> dict[str, Any]:
    """The options in a config.json, without the folder of the text."""
    options: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))["config"]
    return {name: value for name, value in options.items() if name != "dataset"}


def measure_default(text: PreparedText, **options: Value) -> dict[str, Any]:
    """The default recipe, and what it is for this text."""
    words = to_arguments({"dataset": str(text.harness.dataset.path), **DEFAULT, **options})
    process, run = text.harness.train("default", *words)
    return {"recipe": read_recipe(run.out_dir / "config.json"), **text.result(process, run)}


def takes_longer(row: Mapping[str, Any]) -> bool:
    """Whether the default took longer than nanoGPT."""
    return "default" in row and "nanogpt" in row and row["default"]["seconds"] > row["nanogpt"]["seconds"]


def measure_limited(text: PreparedText, row: Mapping[str, Any]) -> dict[str, Any]:
    """The default with as many steps as fit into nanoGPT's time."""
    seconds, nanogpt_seconds = (max(row[part]["seconds"] - START_SECONDS, 1) for part in ("default", "nanogpt"))
    steps = int(row["default"]["steps"] * LIMIT_MARGIN * nanogpt_seconds / seconds)
    limited = measure_default(text, max_iters=max(1, steps))
    return {**limited, "recipe": row["default"]["recipe"]}  # the recipe that it was limited from


def measure_nanogpt(text: PreparedText, clone: Path) -> dict[str, Any]:
    """nanoGPT's recipe for a CPU on the same tokens."""
    harness, data = text.harness, text.harness.dataset
    if data.train.dtype.itemsize != 2:
        raise ng.UserError(f"a vocabulary of {data.tokenizer.vocab_size} tokens is too large for nanoGPT")
    copy_nanogpt(clone, harness.nanogpt_dir)
    folder = harness.nanogpt_dir / "data" / NANOGPT_DATASET
    folder.mkdir(exist_ok=True)
    for path in data.bins:
        shutil.copyfile(path, folder / path.name)
    # train.py takes the size alone from it; without it the vocabulary would be that of GPT-2
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": data.tokenizer.vocab_size}))
    out_dir = harness.nanogpt_dir / "out"
    length = [f"--max_iters={RECIPE_STEPS}", f"--lr_decay_iters={RECIPE_STEPS}"]
    more = [f"--dataset={NANOGPT_DATASET}", f"--out_dir={out_dir}"]
    process = harness.call(harness.nanogpt_dir, "train.py", *README_COMMAND, *length, *more)
    val_loss = harness.probe("evaluate_nanogpt", out_dir / "ckpt.pt", folder / "val.bin")["val_loss"]
    return {**text.losses(val_loss), **costs(process)}


def measure_settings(text: PreparedText, config: Path, default: Mapping[str, Any]) -> dict[str, Any]:
    """The eight settings. One that is the default itself has its result. `default` is what `measure_default` gave."""
    harness, recipe = text.harness, default["recipe"]
    timer = StepTimer(harness.dataset, config, harness.lite_dir / "runs")
    results = {}
    for name in SETTINGS:
        changed = changed_options(name, recipe)
        step_time = timer.relative_time(changed)
        length = length_options(name, recipe, steps=default["steps"], step_time=step_time)
        if {**recipe, **changed, **length} == recipe:
            result = {key: value for key, value in default.items() if key != "recipe"}
        else:
            words = to_arguments({"config": str(config), "dataset": str(harness.dataset.path), **changed, **length})
            result = text.result(*harness.train("setting", *words))
        results[name] = {"changed": changed, "step_time": step_time, **result}
        print(f"  {name}: {result['nats_per_token']:.4f} nats per token, {result['seconds']:.1f} s", file=sys.stderr)
    return {"recipe": recipe, "results": results}


def measure_baselines(text: PreparedText) -> dict[str, Any]:
    """The 5-gram model and the compressors."""
    data = text.harness.dataset
    nats = {name: compressed_nats(text.text, compress) for name, compress in COMPRESSORS.items()}
    losses = {NGRAM: ngram_loss(data), **{name: total / len(data.val) for name, total in nats.items()}}
    return {name: text.losses(loss) for name, loss in losses.items()}


def costs(process: CompletedRun) -> dict[str, float]:
    """Seconds and memory of a process, and the cores that other processes used meanwhile."""
    return {"seconds": process.seconds, "memory": process.memory, "other_load": process.other_load}


def to_arguments(options: Mapping[str, Value]) -> list[str]:
    """Options as arguments of the command line."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
