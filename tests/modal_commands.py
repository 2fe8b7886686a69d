"""Commands of `modal_app.py` on the local Modal, and what tests look at afterwards: containers, runs, checkpoints."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT
from local_modal import LocalModal
from modal_alone import modal_alone

import nanogpt_lite as ng

ROOT = Path(__file__).parents[1]
APP = ROOT / "modal_app.py"
VOLUME_NAME = "nanogpt-lite"
# A training that takes a moment. On Modal, the device is cuda unless another one is given.
SMALL: dict[str, Any] = {
    "block_size": 8,
    "batch_size": 2,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "threads": 1,
    "device": "cpu",
}


def to_flags(options):
    """Options as flags of Modal's command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


FLAGS = to_flags({"preset": "tutorial", **SMALL})


@pytest.fixture
def service(tmp_path, request):
    """The local Modal. An indirect parameter True: a container that exits normally commits its Volumes."""
    secrets = {"stored-at-modal": {"WANDB_API_KEY": "from-modal"}}
    with LocalModal(tmp_path / "modal", secrets=secrets, exit_commits=getattr(request, "param", False)) as service:
        yield service


@pytest.fixture
def prepared(service, tmp_path):
    """The service, with the dataset "bottles" on the Volume."""
    prepare_bottles(service, tmp_path)
    return service


def prepare_bottles(service, folder):
    """Put the dataset "bottles" on the Volume; its text, bottles.txt, is written to `folder`."""
    (folder / "bottles.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    ng.prepare(folder / "bottles.txt", out_dir=service.volume(VOLUME_NAME) / "datasets" / "bottles")


@functools.cache
def environment_with_modal_alone(folder: Path) -> dict[str, str]:
    """`modal_alone`, once for each folder: it reads the metadata of all installed packages."""
    return modal_alone(folder)


def run_command(service, *arguments, env=None, timeout=120, **options):
    """A finished process of `modal run`, on a machine where only the package modal is installed."""
    env = {**environment_with_modal_alone(service.folder / "alone"), **(env or {})}
    return service.modal("run", *arguments, timeout=timeout, env=env, **options)


def modal_run(service, *arguments, code=0, **options):
    """What `modal run` prints, on a machine where only the package modal is installed."""
    done = run_command(service, *arguments, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def map_in_pairs(call, *arguments):
    """The results of `call` for each of the arguments, two at a time: most of the time goes into importing PyTorch."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, arguments))


def train_without_modal(service, folder, monkeypatch, **options):
    """A run of this process in `folder`, on the dataset of the Volume, with the preset of the tutorial by default."""
    (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("data/bottles").symlink_to(service.volume(VOLUME_NAME) / "datasets/bottles")
    return ng.train("data/bottles", **{"preset": "tutorial", **options})


def stored_run(service, name):
    """A run on the Volume."""
    return ng.Run(service.volume(VOLUME_NAME) / "runs" / name)


def stored_runs(service):
    """The names of the runs on the Volume that have a checkpoint."""
    return sorted(path.parent.name for path in (service.volume(VOLUME_NAME) / "runs").glob("*/last.safetensors"))


def records_of(service, name, kind):
    """The records of one kind of a run on the Volume."""
    return [record for record in stored_run(service, name).metrics if record["kind"] == kind]


def read_last(service, name):
    """The bytes of the last checkpoint of a run on the Volume."""
    return (service.volume(VOLUME_NAME) / "runs" / name / "last.safetensors").read_bytes()


def last_eval_step(output):
    """The step of the last evaluation in the output of a container."""
    return max((int(line.split()[1][:-1]) for line in output.splitlines() if line.startswith("step ")), default=0)


def functions_of(containers):
    """The names of the Functions that containers were started for."""
    return [container.function for container in containers]
