"""The commands of the tutorial that modal_app.py replaces, in their spelling and order, with this file's name.

The tutorial: "Training NanoGPT on Modal: Your First GPU Training Pipeline". Its reader has the package modal alone, an
empty Volume, and types what is there. Containers get a small network, a small text in place of Shakespeare, and a CPU:
their `sitecustomize` replaces these after the checks on the reader's machine, which are not changed.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

from local_modal import LocalModal
from modal_commands import (
    APP,
    ROOT,
    SMALL,
    environment_with_modal_alone,
    functions_of,
    map_in_pairs,
    records_of,
    stored_run,
    stored_runs,
)

from nanogpt_lite.cloud.client.dataset_texts import SHAKESPEARE_CHARACTERS

TEXT = "".join(SHAKESPEARE_CHARACTERS[i * i % 65] + SHAKESPEARE_CHARACTERS[i % 65] for i in range(10_000))
CONTAINER = """
import json, os
from nanogpt_lite.cloud import container
from nanogpt_lite.data import download, sources

sources.RESOURCES["shakespeare_char"] = download.Resource(
    url="http://127.0.0.1:9", cache_name="shakespeare_char/input.txt", sha256={sha256!r}
)

def training_options(options, time_limit):
    secrets = {{name: os.environ[name] for name in ("HF_TOKEN", "WANDB_API_KEY") if name in os.environ}}
    print("asked for", json.dumps({{**options, "secrets": secrets}}), flush=True)
    return {{**options, **{small!r}, "world_size": 1, "time_limit": time_limit}}

def on_gpu(options):
    print("asked for", json.dumps(options), flush=True)
    return {{**options, "device": "cpu", "threads": 1}}

container.training_options, container.on_gpu = training_options, on_gpu
"""
SECRETS = {"HF_TOKEN": "your_huggingface_token", "WANDB_API_KEY": "your_wandb_key"}  # as in the tutorial
STORED_SECRETS = {"HF_TOKEN": "xxx", "WANDB_API_KEY": "yyy"}


@dataclass(frozen=True)
class Line:
    """A command of the tutorial, and what it does."""

    command: str
    functions: tuple[str, ...]  # of its containers, in order
    asked: dict[str, Any] = field(default_factory=dict)  # options that the last container is asked for
    gpu: str = "A100-40GB"  # of the last container
    steps: int = 0  # of the new run
    env: dict[str, str] = field(default_factory=dict)


PREPARE = Line("modal run TrainNanoGPTModal.py::prepare_data", ("prepare_data",), gpu="")
TRAIN_100 = Line("modal run TrainNanoGPTModal.py::train --max-iters=100", ("train",), {"max_iters": 100}, steps=100)
SAMPLE = Line("modal run TrainNanoGPTModal.py::sample", ("sample",), env={"NANOGPT_GPU": ""})  # empty: the default
EVERY_HYPERPARAMETER = {
    "max_iters": 60,
    "eval_interval": 30,
    "batch_size": 16,
    "block_size": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "learning_rate": 5e-4,
}
LINES = [
    # "Run Everything at Once", which starts with an empty Volume: 3 samples of 300 characters
    Line(
        "modal run TrainNanoGPTModal.py",
        ("prepare_data", "train", "sample"),
        {"num_samples": 3, "max_new_tokens": 300},
        steps=1000,
    ),
    # "Run Steps Individually"
    PREPARE,
    Line(
        "modal run TrainNanoGPTModal.py::train --max-iters=2000 --batch-size=128",
        ("train",),
        {"max_iters": 2000, "batch_size": 128},
        steps=2000,
    ),
    SAMPLE,
    # "Playing with Configuration": every name of the two tables, and other GPUs
    Line(
        "modal run TrainNanoGPTModal.py::train --max-iters=60 --eval-interval=30 --batch-size=16 --block-size=64"
        " --n-layer=4 --n-head=4 --n-embd=128 --learning-rate=5e-4",
        ("train",),
        EVERY_HYPERPARAMETER,
        steps=60,
    ),
    Line(
        "modal run TrainNanoGPTModal.py::sample --num-samples=5 --max-new-tokens=50 --temperature=1.5 --start=ROMEO:",
        ("sample",),
        {"num_samples": 5, "max_new_tokens": 50, "temperature": 1.5, "start": "ROMEO:"},
    ),
    Line(
        "modal run TrainNanoGPTModal.py::train --gpu=a100-80gb --max-iters=20",
        ("train",),
        gpu="A100-80GB",
        steps=20,
    ),
    Line(
        "modal run TrainNanoGPTModal.py::train --gpu=T4 --timeout=1h --max-iters=20",
        ("train",),
        gpu="T4",
        steps=20,
    ),
    Line("modal run TrainNanoGPTModal.py::sample", ("sample",), gpu="L40S", env={"NANOGPT_GPU": "L40S"}),
    Line("modal run TrainNanoGPTModal.py::sample", ("sample",), gpu="A100-40GB", env={"NANOGPT_GPU": "a100-40gb"}),
    # "Adding Secrets": from the file .env, which is in the folder, and one that is stored at Modal
    Line(
        "modal run TrainNanoGPTModal.py::train --max-iters=20",
        ("train",),
        {"secrets": SECRETS},
        steps=20,
    ),
    Line("modal secret create my-secrets HF_TOKEN=xxx WANDB_API_KEY=yyy", (), gpu=""),
    Line(
        "modal run TrainNanoGPTModal.py::train --max-iters=20",
        ("train",),
        {"secrets": STORED_SECRETS},
        steps=20,
        env={"NANOGPT_SECRET": "my-secrets"},
    ),
    # "When Things Go Wrong", after a longer run
    Line("modal run TrainNanoGPTModal.py::train --batch-size=32", ("train",), {"batch_size": 32}, steps=1000),
    TRAIN_100,
]


@pytest.fixture
def service(tmp_path):
    """The local Modal, whose containers train a small network on a small text on a CPU."""
    folder = tmp_path / "container"
    (folder / "cache/shakespeare_char").mkdir(parents=True)
    (folder / "cache/shakespeare_char/input.txt").write_text(TEXT)
    code = CONTAINER.format(sha256=hashlib.sha256(TEXT.encode()).hexdigest(), small=SMALL)
    (folder / "sitecustomize.py").write_text(code)
    variables = {"NANOGPT_LITE_CACHE": str(folder / "cache")}
    with LocalModal(tmp_path / "modal", pythonpath=[folder], variables=variables) as service:
        yield service


def run_line(service, line, folder):
    """Run a line in a folder; a row of the table of lines."""
    program, *words = line.command.replace("TrainNanoGPTModal.py", str(APP)).split()
    assert program == "modal"
    n_containers, runs = len(service.containers), set(stored_runs(service))
    env = {**environment_with_modal_alone(service.folder / "alone"), **line.env}
    done = service.modal(*words, cwd=folder, env=env, timeout=120)
    containers = service.containers[n_containers:]
    last = [text for text in (done.stdout + done.stderr).splitlines() if text.strip() and "App completed" not in text]
    row = [line.command, str(done.returncode), " ".join(functions_of(containers)) or "-", last[-1]]
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(functions_of(containers)) == line.functions
    assert "Traceback" not in done.stdout + done.stderr
    if containers:
        assert containers[-1].gpu_type == line.gpu
        asked = [json.loads(text[10:]) for text in containers[-1].output.splitlines() if text.startswith("asked for ")]
        assert all(option in (asked or [{}])[-1].items() for option in line.asked.items()), asked
    new_runs = set(stored_runs(service)) - runs
    assert len(new_runs) == bool(line.steps)
    for run in new_runs:  # the numbers count on, whatever was trained before
        assert run == f"shakespeare_char-{len(runs) + 1}"
        assert stored_run(service, run).metrics[-1]["step"] == line.steps
    return row


def run_lines(service, lines, folder):
    """Run the lines one after the other, and print a table of them."""
    folder.mkdir()
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    rows = [run_line(service, line, folder) for line in lines]
    for row in [["line", "exit status", "containers", "last line"], *rows]:
        print("| " + " | ".join(row) + " |")


@pytest.mark.slow  # test_modal_app runs the pipeline
def test_steps_of_the_tutorial_one_by_one(service, tmp_path):
    run_lines(service, [PREPARE, TRAIN_100, SAMPLE], tmp_path / "reader")
    assert service.volume("nanogpt-lite").joinpath("datasets/shakespeare_char/train.bin").is_file()


@pytest.mark.slow
def test_every_line_of_the_tutorial_in_its_order(service, tmp_path):
    run_lines(service, LINES, tmp_path / "reader")
    # the pipeline: 1000 steps, evaluated every 250, at the learning rate of the table
    (start,) = records_of(service, "shakespeare_char-1", "start")
    assert [record["step"] for record in records_of(service, "shakespeare_char-1", "eval")] == [250, 500, 750, 1000]
    config = json.loads((stored_run(service, "shakespeare_char-1").out_dir / "config.json").read_text())["config"]
    assert (start["step"], config["learning_rate"], config["eval_interval"]) == (0, 1e-3, 250)


@pytest.mark.slow
def test_functions_are_called_from_python_as_in_the_tutorial(service, tmp_path):
    """Also its `main`, which calls `.remote()`. `prepare_data.local()` needs this package installed."""
    script = tmp_path / "main.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import modal

if __name__ == "__main__":
    from modal_app import app, prepare_data, train, sample
    if sys.argv[1] == "local":
        print(prepare_data.local())
    else:
        with app.run():
            prepare_data.remote()
            train.remote(max_iters=1000, eval_interval=250, batch_size=64)
            print("samples:", len(sample.remote(num_samples=3, max_new_tokens=300)))
"""
    )
    # on the reader's machine, the text is small too
    small = tmp_path / "container"
    local = {"PYTHONPATH": os.pathsep.join([str(small), str(ROOT)]), "NANOGPT_LITE_CACHE": str(small / "cache")}
    remote = environment_with_modal_alone(service.folder / "alone")
    for done in map_in_pairs(
        lambda call: service.python(script, call[0], cwd=tmp_path, env=call[1], timeout=120),
        ("local", local),
        ("remote", remote),
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    assert "samples: 3\n" in done.stdout
    assert (tmp_path / "data/shakespeare_char/train.bin").is_file()
    assert functions_of(service.containers) == ["prepare_data", "train", "sample"]
    assert [record["step"] for record in records_of(service, "shakespeare_char-1", "eval")] == [250, 500, 750, 1000]
