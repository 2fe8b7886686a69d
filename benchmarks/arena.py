"""A temporary folder in which this program and nanoGPT run by turns, with the same threads and without a GPU.

What is run there, and what that tells, is the business of the benchmarks.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

import nanogpt_lite as ng
from nanogpt_lite import runtime

DATA = Path("data", "shakespeare_char")  # either program's folder of the tokens
NEEDED = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py", str(DATA / "prepare.py"))
PROBE = Path(__file__).resolve().with_name("probe.py")
MUCH = 0.1  # of a core: when others take more, the time of a run counts for little


@dataclass(frozen=True)
class Ended:
    """What a process printed, the seconds that it took, and the most memory that it had at a time, in MB."""

    printed: str
    seconds: float
    memory: float


@dataclass(frozen=True)
class Arena:
    """The folder, with the data and with a folder for either program."""

    folder: Path
    threads: int
    dataset: ng.Dataset

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

    def call(self, cwd: Path, *command: str | Path) -> "Ended":
        """Run Python to its end. `WorldError` if it failed."""
        alike = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(self.threads)}
        arguments = [sys.executable, *map(str, command)]
        os.sync()  # so that nobody waits for what the run before has yet to write to disk
        with TemporaryFile("w+") as printed, TemporaryFile("w+") as complained:
            begun, others = time.perf_counter(), _seconds_of_others()
            child = subprocess.Popen(arguments, cwd=cwd, env={**os.environ, **alike}, stdout=printed, stderr=complained)
            _, status, usage = os.wait4(child.pid, 0)  # tells the memory, too, which Popen.wait does not
            child.returncode = os.waitstatus_to_exitcode(status)
            seconds, others = time.perf_counter() - begun, _seconds_of_others() - others
            for file in (printed, complained):
                file.seek(0)
            if child.returncode:
                last = " | ".join(complained.read().strip().splitlines()[-3:])
                raise ng.WorldError(f"{shlex.join(arguments)} ended with status {child.returncode}: {last}")
            if others > MUCH * seconds:
                print(
                    f"warning: other programs took {others / seconds:.1f} cores meanwhile; measure again",
                    file=sys.stderr,
                )
            memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
            return Ended(printed.read(), seconds, memory)

    def probe(self, verb: str, *arguments: str | Path) -> dict[str, float]:
        """What a verb of `probe` measured."""
        ended = self.call(self.theirs, PROBE, verb, *arguments)
        measured: dict[str, float] = json.loads(ended.printed.splitlines()[-1])
        return {**measured, "memory": ended.memory}


def require_clone(clone: Path) -> None:
    """`UserError` if a folder does not hold what is needed of nanoGPT."""
    for name in NEEDED:
        if not (clone / name).is_file():
            raise ng.UserError(
                f"there is no {name} in --nanogpt {clone}; give the folder of "
                "git clone https://github.com/karpathy/nanoGPT"
            )


def furnish(folder: Path, clone: Path) -> Arena:
    """Put a copy of nanoGPT into a folder, and the data, which each program prepares for itself."""
    dataset = ng.prepare("shakespeare_char", out_dir=folder / "ours" / DATA)
    place = Arena(folder, runtime.resolve_threads(0), dataset)
    for name in NEEDED:
        (place.theirs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clone / name, place.theirs / name)
    (place.theirs / DATA / "input.txt").write_bytes(place.text)
    place.call(place.theirs / DATA, "prepare.py")
    return place


def _seconds_of_others() -> float:
    """Processor time that all but this process and its ended children have taken; 0 where there is no /proc/stat."""
    if sys.platform != "linux":
        return 0.0
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
