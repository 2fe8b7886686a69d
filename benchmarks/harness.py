"""Runs nanogpt_lite and nanoGPT as processes in a temporary folder, with the same threads on the same device.

What is run and measured: see the benchmarks.
"""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
import torch

import nanogpt_lite as ng
from nanogpt_lite.device import devices
from nanogpt_lite.trainer.state import init_state, save_state

DATA = Path("data", "shakespeare_char")  # the folder of the tokens, in both programs
NEEDED = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py", str(DATA / "prepare.py"))
PROBE, LAUNCH = (Path(__file__).resolve().with_name(name) for name in ("probe.py", "launch.py"))
COMMAND = ("-m", "nanogpt_lite")
RECIPE_STEPS = int(ng.PRESETS["cpu"]["max_iters"])
# nanoGPT's README, "I only have a macbook", without the numbers of steps
README_COMMAND = shlex.split(
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"
)
NANOGPT_SHAPE = ("block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
MAX_OTHER_LOAD = 0.1  # of a core; if other processes use more, the measured time is not reliable


@dataclass(frozen=True)
class CompletedRun:
    """The result of a process."""

    stdout: str
    seconds: float
    memory: float  # peak resident set size, in MB
    other_load: float = 0.0  # cores that other processes used meanwhile; 0 if it was not measured


@dataclass(frozen=True)
class Harness:
    """The temporary folder, with the dataset and a working folder for each program."""

    folder: Path
    threads: int
    dataset: ng.Dataset
    device: str
    deadline: float = math.inf  # as `time.monotonic`: a process that is not done then is killed

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of both programs: the same threads, and no GPU unless `device` is one."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads), **hidden}

    @property
    def lite_dir(self) -> Path:
        """The working folder of nanogpt_lite."""
        return self.folder / "lite"

    @property
    def nanogpt_dir(self) -> Path:
        """The working folder of nanoGPT: a copy of the files that it needs."""
        return self.folder / "nanogpt"

    @property
    def text(self) -> bytes:
        """The dataset as text."""
        return self.dataset.tokenizer.decode(np.concatenate([self.dataset.train, self.dataset.val])).encode("ascii")

    def call(self, cwd: Path, *command: str | Path) -> CompletedRun:
        """Run Python with arguments. `ExternalError` if it fails, or takes longer than until `deadline`."""
        os.sync()  # so that the run does not wait until the one before is written to disk
        before = _cpu_seconds_of_others()
        timeout = None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())
        run = launch([sys.executable, *map(str, command)], cwd, self.environment, timeout)
        other_load = (_cpu_seconds_of_others() - before) / run.seconds
        if other_load > MAX_OTHER_LOAD:
            print(f"warning: other programs used {other_load:.1f} cores meanwhile; measure again", file=sys.stderr)
        return replace(run, other_load=other_load)

    def train(self, name: str, *options: str) -> tuple[CompletedRun, ng.Run]:
        """Train with nanogpt_lite into runs/NAME of its working folder, where a run may be replaced."""
        out_dir = self.lite_dir / "runs" / name
        more = ["--device", self.device, "--out_dir", str(out_dir), "--overwrite"]
        return self.call(self.lite_dir, *COMMAND, "train", *options, *more), ng.Run(out_dir)

    def probe(self, function: str, *arguments: str | Path, cwd: Path | None = None) -> dict[str, float]:
        """What a function of `probe.py` measures in its own process, and the memory of that process in MB.

        It runs in the folder of nanoGPT, unless `cwd` is another one.
        """
        run = self.call(cwd or self.nanogpt_dir, PROBE, function, *arguments)
        measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        return {**measured, "memory": run.memory}


def launch(command: list[str], cwd: Path, environment: dict[str, str], timeout: float | None = None) -> CompletedRun:
    """Run a command and measure it. `ExternalError` if it fails, or is not done after `timeout` seconds."""
    with (
        TemporaryDirectory() as folder,
        TemporaryFile("w+", encoding="utf-8") as stdout,
        TemporaryFile("w+", encoding="utf-8") as stderr,
    ):
        path = Path(folder) / "usage.json"
        launching = [sys.executable, str(LAUNCH), str(path), *command]
        process = subprocess.Popen(launching, cwd=cwd, env=environment, stdout=stdout, stderr=stderr, process_group=0)
        try:
            status = process.wait(timeout)
        except BaseException as error:  # also Ctrl-C, which reaches this process alone
            os.killpg(process.pid, signal.SIGKILL)  # with the command, and the processes that it has started
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ng.ExternalError(f"{shlex.join(command)} was not done after {timeout:.0f} s") from None
            raise
        if status:
            raise subprocess.CalledProcessError(status, launching)
        usage = json.loads(path.read_text(encoding="utf-8"))
        for file in (stdout, stderr):
            file.seek(0)
        if usage["status"]:
            last_lines = " | ".join(stderr.read().strip().splitlines()[-3:])
            raise ng.ExternalError(f"{shlex.join(command)} ended with status {usage['status']}: {last_lines}")
        return CompletedRun(stdout.read(), usage["seconds"], usage["memory"])


def require_clone(clone: Path) -> None:
    """`UserError` if a folder does not contain the files of nanoGPT that are needed."""
    for name in NEEDED:
        if not (clone / name).is_file():
            raise ng.UserError(
                f"there is no {name} in --nanogpt {clone}; give the folder of "
                "git clone https://github.com/karpathy/nanoGPT"
            )


def set_up(folder: Path, clone: Path, *, device: str = "cpu") -> Harness:
    """Copy nanoGPT into a folder, and prepare the dataset with each program."""
    harness = set_up_lite(folder, device=device)
    set_up_nanogpt(harness, clone)
    return harness


def set_up_lite(folder: Path, *, device: str) -> Harness:
    """Prepare the dataset in a folder."""
    dataset = ng.prepare("shakespeare_char", out_dir=folder / "lite" / DATA)
    return Harness(folder, devices.resolve_threads(0), dataset, device)


def set_up_nanogpt(harness: Harness, clone: Path) -> None:
    """Copy nanoGPT, and prepare the dataset with its own program."""
    copy_nanogpt(clone, harness.nanogpt_dir)
    (harness.nanogpt_dir / DATA / "input.txt").write_bytes(harness.text)
    harness.call(harness.nanogpt_dir / DATA, "prepare.py")


def copy_nanogpt(clone: Path, folder: Path) -> None:
    """Copy the files of nanoGPT that are needed into a folder."""
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clone / name, folder / name)


def evaluations(run: ng.Run) -> list[dict[str, Any]]:
    """The evaluation records of a run, oldest first."""
    return [record for record in run.metrics if record["kind"] == "eval"]


def save_networks(harness: Harness, **shape: int) -> tuple[Path, Path]:
    """Write the network of shakespeare_char with random weights: the checkpoints of nanogpt_lite and of nanoGPT.

    `shape` replaces options of the network.
    """
    options = {**ng.PRESETS["shakespeare_char"], **shape, "device": "cpu", "dtype": "float32"}
    config = ng.TrainConfig.from_dict(options)
    state = init_state(config, harness.dataset.tokenizer)
    lite, nanogpt = harness.folder / "sample.safetensors", harness.folder / "sample.pt"
    save_state(state, lite)
    model_args = {**{name: getattr(config, name) for name in NANOGPT_SHAPE}, "vocab_size": state.model.vocab_size}
    torch.save({"model_args": model_args, "model": state.model.state_dict()}, nanogpt)
    return lite, nanogpt


def _cpu_seconds_of_others() -> float:
    """CPU time of all processes except this one and its ended children; 0 where there is no /proc/stat."""
    if sys.platform != "linux":
        return 0.0
    user, nice, system = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
