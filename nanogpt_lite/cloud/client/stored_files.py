"""What is stored on the Volume, as the machine sees it where `modal run` is started: runs, texts, prepared data."""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Protocol

from nanogpt_lite.checkpoint import SUFFIX
from nanogpt_lite.cloud.client.volume_names import UPLOADS_DIR
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.tracking import metrics_file


class FileEntry(Protocol):
    """What `modal.Volume.listdir` says about a file or a folder."""

    path: str
    mtime: int  # seconds


class ListedVolume(Protocol):
    """The methods of `modal.Volume` that are used here."""

    def listdir(self, path: str, *, recursive: bool = False) -> list[Any]:
        """The `FileEntry` of each file and folder below a folder."""

    def read_file(self, path: str) -> Iterable[bytes]:
        """The content of a file, in chunks. `FileNotFoundError` if there is none."""


class Reservations(Protocol):
    """The method of `modal.Dict` that is used here."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""


class StoredFiles:
    """The files on the Volume, from one listing of it."""

    def __init__(self, volume: ListedVolume, shared: Reservations | None = None) -> None:
        """`shared` has the names of runs that calls have reserved."""
        self._volume, self._shared = volume, shared
        entries: list[FileEntry] = volume.listdir("/", recursive=True)
        self._times = {PurePosixPath(entry.path.strip("/")): entry.mtime for entry in entries}

    @property
    def runs(self) -> list[str]:
        """The names of the runs that have a checkpoint, the newest last."""
        last = {path.parent.name: time for path, time in self._times.items() if path.match(f"runs/*/last{SUFFIX}")}
        return sorted(last, key=lambda name: (last[name], name))

    @property
    def datasets(self) -> list[str]:
        """The names of the texts that were uploaded or prepared."""
        texts = {path.stem for path in self._times if path.match(f"{UPLOADS_DIR}/*.txt")}
        prepared = {path.parent.name for path in self._times if path.match("datasets/*/manifest.json")}
        return sorted(texts | prepared)

    def has_text(self, dataset: str) -> bool:
        """Whether a text of this name was uploaded."""
        return PurePosixPath(UPLOADS_DIR, f"{dataset}.txt") in self._times

    def is_prepared(self, dataset: str) -> bool:
        """Whether there is a prepared dataset of this name."""
        return PurePosixPath("datasets", dataset, "manifest.json") in self._times

    def checkpoints(self, run: str) -> list[str]:
        """The names of the checkpoints of a run: best, last, step_001000."""
        return sorted(path.stem for path in self._times if path.match(f"runs/{run}/*{SUFFIX}"))

    def files(self, run: str) -> list[str]:
        """The paths of all files of a run, relative to its folder, except hidden ones and the list of its owners."""
        folder = PurePosixPath("runs", run)
        below = [path.relative_to(folder) for path in self._times if path.is_relative_to(folder) and path != folder]
        return [str(path) for path in sorted(below) if path.suffix and not path.name.startswith(".")]

    def has_run(self, run: str) -> bool:
        """Whether there is a folder of a run of this name, with or without a checkpoint."""
        return PurePosixPath("runs", run) in self._times or bool(self.files(run))

    def require_run(self, name: str) -> str:
        """The run `name`, by default the newest one. `UserError`, which lists the runs, if it has no checkpoint."""
        runs = self.runs
        if not runs:
            raise UserError("there is no run with a checkpoint on the Volume; train one: modal run modal_app.py::train")
        if name and name not in runs:
            raise UserError(f"there is no checkpoint of a run {name!r}; runs with one: {', '.join(runs)}")
        return name or runs[-1]

    def read_json(self, path: str) -> dict[str, Any]:
        """The object in a JSON file; empty if there is no such file, or another content."""
        try:
            content = json.loads(b"".join(self._volume.read_file(path)))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def run_config(self, run: str) -> TrainConfig | None:
        """The options of a run; None if its config.json is missing or not of a run."""
        stored = self.read_json(f"runs/{run}/config.json").get("config")
        if not isinstance(stored, dict):
            return None
        return TrainConfig.from_stored({name: value for name, value in stored.items() if name in TrainConfig.names()})

    def run_dataset(self, run: str) -> str:
        """The name of the dataset that a run was trained on; empty if it is not known."""
        return PurePosixPath(str(self._dataset_record(run).get("path", ""))).name

    def dataset_sha256(self, dataset: str) -> str:
        """The SHA-256 of the text of a prepared dataset; empty if there is none."""
        return str(self.read_json(f"datasets/{dataset}/manifest.json").get("sha256", ""))

    def is_reserved(self, run: str) -> bool:
        """Whether a call has reserved the name of a run."""
        return self._shared is not None and self._shared.get(f"runs/{run}") is not None

    def run_sha256(self, run: str) -> str:
        """The SHA-256 of the text that a run was trained on; empty if it is not known."""
        return str(self._dataset_record(run).get("sha256", ""))

    def run_characters(self, run: str) -> str | None:
        """The characters that the network of a run knows; None if they are not known, or if it knows all."""
        characters = self.read_json(f"datasets/{self.run_dataset(run)}/tokenizer.json").get("chars")
        # another vocabulary: since then, the text was prepared again
        vocab_size = self._dataset_record(run).get("vocab_size")
        is_of_run = isinstance(characters, str) and vocab_size == len(characters)
        return characters if is_of_run else None

    def run_vocab_size(self, run: str) -> int:
        """The number of tokens that the network of a run knows; 0 if it is not known."""
        vocab_size = self._dataset_record(run).get("vocab_size")
        return vocab_size if isinstance(vocab_size, int) else 0

    def _dataset_record(self, run: str) -> dict[str, Any]:
        """What config.json says about the dataset of a run."""
        record = self.read_json(f"runs/{run}/config.json").get("dataset")
        return record if isinstance(record, dict) else {}

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """All records of a run, the oldest first."""
        try:
            content = b"".join(self._volume.read_file(f"runs/{run}/metrics.jsonl"))
        except FileNotFoundError:
            return []
        return metrics_file.parse_metrics(content)

    def modified(self, run: str) -> int:
        """When the last checkpoint of a run was written, in seconds since 1970."""
        return self._times[PurePosixPath("runs", run, f"last{SUFFIX}")]
