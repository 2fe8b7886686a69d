"""Finds the text that a dataset option names (a name, a file, a folder, a glob or a URL) and reads it in chunks.

See `download` for fetching a URL, and `encoding` for what is done with the text.
"""

import codecs
import difflib
import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.data import download
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.errors import UserError

OUTPUT_FILES = ("train.bin", "metrics.jsonl", "best.safetensors", "last.safetensors")  # a folder with one is an output
ERROR_INVALID_NAME = 123  # of Windows: the path has a character that no file name can have
MAX_NAME_CHARS = 1000  # characters; longer than any useful path or URL
TRAIN_FRACTION = 0.9  # of the characters of a text, as in nanoGPT; the rest is the val split
CHUNK_BYTES = 2**18  # bytes read at a time: small enough for the processor's cache
RESOURCES = {  # by the name of the dataset; a prepared one is known by the SHA-256, without its text
    "shakespeare_char": download.Resource(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        cache_name="shakespeare_char/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
DATASET_NAMES = (*RESOURCES, "python_docs")


@dataclass(frozen=True)
class TextSource:
    """A text that can be read several times. It is read in chunks of any length, so that it need not fit in memory."""

    name: str  # of the dataset prepared from it
    label: str  # for messages and the manifest
    read_chunks: Callable[[], Iterator[str]]
    paths: tuple[Path, ...] = ()  # of the files that it is read from, in order


def dataset_name(dataset: str) -> str:
    """The name of the dataset prepared from `dataset`: that itself, or the stem of its path or URL.

    >>> dataset_name("python_docs"), dataset_name("texts/My letters.txt"), dataset_name("notes/*.md")
    ('python_docs', 'My_letters', 'notes')
    """
    if dataset.startswith(("http://", "https://")):
        return _safe_name(Path(download.url_resource(dataset).cache_name).stem)
    if len(dataset) > MAX_NAME_CHARS or "\n" in dataset:
        raise UserError(
            f"the dataset {dataset[:30]!r}… of {len(dataset)} characters is not a name or path; if it is the text "
            "itself, write it to a file and give the path of that file"
        )
    path = _local_path(dataset)
    if path.is_dir():
        return _safe_name(path.resolve().name)
    if glob.has_magic(dataset):
        return _safe_name(next((p.name for p in path.parents if not glob.has_magic(str(p))), ""))
    return dataset if dataset in DATASET_NAMES else _safe_name(path.stem)


def find_source(dataset: str, *, force_download: bool = False, report: ProgressCallback | None = None) -> TextSource:
    """The text that a name, URL, file, folder or glob stands for.

    What it needs from the web is downloaded if it is not cached, or if `force_download`. `UserError` if there is no
    such text, `DownloadError` if it cannot be downloaded.
    """
    name, path = dataset_name(dataset), _local_path(dataset)
    if dataset == "python_docs":
        return TextSource(name, "the language reference inside Python (pydoc_data.topics)", _read_python_docs)
    if dataset in RESOURCES or dataset.startswith(("http://", "https://")):
        resource = RESOURCES.get(dataset) or download.url_resource(dataset)
        return _file_source(name, [download.fetch(resource, force_download=force_download, report=report)])
    if path.is_file():
        return _file_source(name, [path])
    if path.is_dir():
        return _file_source(name, _files_below(path), dataset)
    if glob.has_magic(dataset):  # Path.glob takes no absolute pattern
        return _file_source(name, map(Path, glob.iglob(str(path), recursive=True)), dataset)  # noqa: PTH207
    if path.exists():  # a pipe, a device
        raise UserError(f"{dataset} is not a regular file, but a text is read more than once; copy it to a file")
    nearest = difflib.get_close_matches(dataset, DATASET_NAMES, n=1)
    remedy = (
        f"did you mean {nearest[0]}?"
        if nearest
        else f"give one of {', '.join(DATASET_NAMES)}, or the path or URL of a text"
    )
    raise UserError(f"there is no dataset, file or folder {dataset!r}; {remedy}")


def _local_path(dataset: str) -> Path:
    """The path that a dataset may be. `UserError` if the system refuses such a path."""
    try:
        path = Path(dataset).expanduser()
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError) as error:
        if getattr(error, "winerror", None) == ERROR_INVALID_NAME:  # a glob: no path of Windows has a *
            return path
        # too long, no permission, an unknown ~user, a null byte
        raise UserError(f"the dataset {dataset[:60]!r} cannot be read ({error}); give the path of a text") from None
    return path


def _file_source(name: str, candidates: Iterable[Path], dataset: str = "") -> TextSource:
    paths = sorted(path for path in candidates if path.is_file())
    if not paths:
        raise UserError(f"there are no files to read in {dataset!r}; give a folder or glob with text files")
    label = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
    return TextSource(name, label, lambda: _read_files(paths), tuple(paths))


def _read_files(paths: Iterable[Path]) -> Iterator[str]:
    """The text of the files, joined by one newline. Byte order marks are removed, newlines are not translated."""
    for number, path in enumerate(paths):
        if number:
            yield "\n"
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the first byte that is not yet decoded
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(CHUNK_BYTES)
                text = decoder.decode(data, final=not data)
                yield text[1:] if offset == 0 and text.startswith("\ufeff") else text
                if not data:
                    return
                offset = file.tell() - len(decoder.getstate()[0])
    except UnicodeDecodeError as error:
        is_utf16 = offset == 0 and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if is_utf16 else "latin1"
        raise UserError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}); convert it, for instance: iconv -f {encoding} -t utf-8 {path} > converted.txt"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error


def _files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its subfolders, except hidden ones and this program's outputs."""
    paths = list(folder.rglob("*"))
    output_folders = {path.parent for path in paths if path.name in OUTPUT_FILES}
    for path in paths:
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not is_hidden and output_folders.isdisjoint(path.parents):
            yield path


def _read_python_docs() -> Iterator[str]:
    from pydoc_data.topics import topics  # half a megabyte, so it is imported only when it is needed

    yield "\n".join(topics[name] for name in sorted(topics))


def _safe_name(name: str) -> str:
    return files.safe_name(name, "text")
