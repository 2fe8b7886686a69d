"""A temporary folder in which this program and nanoGPT run by turns, with the same threads on the same device.

What is run there, and what that tells, is the business of the benchmarks.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
import torch

import nanogpt_lite as ng
from nanogpt_lite.device import devices
from nanogpt_lite.trainer.state import init_state, save_state

DATA = Path("data", "shakespeare_char")  # either program's folder of the tokens
NEEDED = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py", str(DATA / "prepare.py"))
PROBE, LAUNCH = (Path(__file__).resolve().with_name(name) for name in ("probe.py", "launch.py"))
COMMAND = ("-m", "nanogpt_lite")
RECIPE_STEPS = int(ng.PRESETS["cpu"]["max_iters"])
# nanoGPT's README, "I only have a macbook", without the lengths
README_COMMAND = shlex.split(
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"
)
THEIR_SHAPE = ("block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
MUCH = 0.1  # of a core: when others take more, the time of a run counts for little


@dataclass(frozen=True)
class Ended:
    """What a process printed, the seconds that it took, and the most memory that it had at a time, in MB."""

    printed: str
    seconds: float
    memory: float


@dataclass(frozen=True)
class Harness:
    """The folder, with the data and with a folder for either program."""

    folder: Path
    threads: int
    dataset: ng.Dataset
    device: str

    @property
    def environment(self) -> dict[str, str]:
        """What both programs find: the same threads, and a GPU only if it is meant."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads), **hidden}

    @property
    def ours(self) -> Path:
        """Where this program runs."""
        return self.folder / "ours"

    @property
    def theirs(self) -> Path:
        """Where nanoGPT runs: a copy of what it needs."""
        return self.folder / "theirs"

    @property
    def text(self) -> bytes:
        """The text that was prepared."""
        return self.dataset.tokenizer.decode(np.concatenate([self.dataset.train, self.dataset.val])).encode("ascii")

    def call(self, cwd: Path, *command: str | Path) -> Ended:
        """Run Python to its end. `WorldError` if it failed."""
        os.sync()  # so that nobody waits for what the run before has yet to write to disk
        others = _seconds_of_others()
        ended = launch([sys.executable, *map(str, command)], cwd, self.environment)
        others = _seconds_of_others() - others
        if others > MUCH * ended.seconds:
            taken = others / ended.seconds
            print(f"warning: other programs took {taken:.1f} cores meanwhile; measure again", file=sys.stderr)
        return ended

    def probe(self, verb: str, *arguments: str | Path) -> dict[str, float]:
        """What a verb of `probe` measured."""
        ended = self.call(self.theirs, PROBE, verb, *arguments)
        measured: dict[str, float] = json.loads(ended.printed.splitlines()[-1])
        return {**measured, "memory": ended.memory}


def launch(command: list[str], cwd: Path, environment: dict[str, str]) -> Ended:
    """Run a command to its end. `WorldError` if it failed."""
    with TemporaryDirectory() as folder, TemporaryFile("w+") as printed, TemporaryFile("w+") as complained:
        path = Path(folder) / "told.json"
        launching = [sys.executable, str(LAUNCH), str(path), *command]
        subprocess.run(launching, cwd=cwd, env=environment, stdout=printed, stderr=complained, check=True)
        told = json.loads(path.read_text())
        for file in (printed, complained):
            file.seek(0)
        if told["status"]:
            last = " | ".join(complained.read().strip().splitlines()[-3:])
            raise ng.ExternalError(f"{shlex.join(command)} ended with status {told['status']}: {last}")
        return Ended(printed.read(), told["seconds"], told["memory"])


def require_clone(clone: Path) -> None:
    """`UserError` if a folder does not hold what is needed of nanoGPT."""
    for name in NEEDED:
        if not (clone / name).is_file():
            raise ng.UserError(
                f"there is no {name} in --nanogpt {clone}; give the folder of "
                "git clone https://github.com/karpathy/nanoGPT"
            )


def set_up(folder: Path, clone: Path, *, device: str = "cpu") -> Harness:
    """Put a copy of nanoGPT into a folder, and the data, which each program prepares for itself."""
    dataset = ng.prepare("shakespeare_char", out_dir=folder / "ours" / DATA)
    place = Harness(folder, devices.resolve_threads(0), dataset, device)
    for name in NEEDED:
        (place.theirs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clone / name, place.theirs / name)
    (place.theirs / DATA / "input.txt").write_bytes(place.text)
    place.call(place.theirs / DATA, "prepare.py")
    return place


def networks(arena: Harness) -> tuple[Path, Path]:
    """The network of shakespeare_char with random weights, as a checkpoint of either program."""
    config = ng.TrainConfig.from_dict({**ng.PRESETS["shakespeare_char"], "device": "cpu", "dtype": "float32"})
    network = init_state(config, arena.dataset.tokenizer)
    ours, theirs = arena.folder / "sample.safetensors", arena.folder / "sample.pt"
    save_state(network, ours)
    model_args = {**{name: getattr(config, name) for name in THEIR_SHAPE}, "vocab_size": network.model.vocab_size}
    torch.save({"model_args": model_args, "model": network.model.state_dict()}, theirs)
    return ours, theirs


def _seconds_of_others() -> float:
    """Processor time that all but this process and its ended children have taken; 0 where there is no /proc/stat."""
    if sys.platform != "linux":
        return 0.0
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
