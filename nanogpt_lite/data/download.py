"""Files from the web, kept in a cache folder: time-outs, retries, a checked hash.

What is in the files is the business of `datasets`.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nanogpt_lite import files
from nanogpt_lite.errors import ExternalError, UserError

ATTEMPTS = 3
TIMEOUT = (5, 30)  # seconds: to connect, and between two pieces of the answer
UNCOMPRESSED = {"Accept-Encoding": "identity"}  # not compressed on the way, so that the length is known
RETRY_DELAY = 1.0  # seconds before the second attempt; doubled before each further one

ProgressCallback = Callable[[str, int, int | None], None]
"""Told (what is being done, bytes done, bytes in all or None)."""


@dataclass(frozen=True)
class Resource:
    """A file on the web, where it is kept, and its SHA-256 where it is known."""

    url: str
    cache_name: str
    sha256: str | None = None


class DownloadError(ExternalError):
    """A file could not be fetched."""


def url_resource(url: str) -> Resource:
    """The resource behind any URL. Its cache name ends with the file name in the URL. `UserError` if it is none."""
    try:
        path = unquote(urlsplit(url).path)
    except ValueError as error:
        raise UserError(f"{url!r} is no URL ({error}); give one like https://example.org/text.txt") from None
    name = re.sub(r"[^\w.-]+", "_", path.rsplit("/", 1)[-1]).strip("._") or "index.txt"
    return Resource(url, f"urls/{hashlib.sha256(url.encode()).hexdigest()[:16]}/{name}")


def fetch(wanted: Resource, again: bool = False, report: ProgressCallback | None = None) -> Path:
    """The path of the file in the cache folder, fetched if it is not there (or `again`).

    `DownloadError` if it cannot be had, or is not the file that it should be; it says where to put it by hand.
    """
    path = cache_dir() / wanted.cache_name
    if not again and path.is_file() and wanted.sha256 in (None, _sha256(path)):
        return path
    try:
        with files.atomic_write(path) as temporary:
            _download(wanted.url, temporary, report)
            found = _sha256(temporary)
            if wanted.sha256 not in (None, found):
                raise DownloadError(
                    f"{wanted.url} gave another file than expected (SHA-256 {found}, not {wanted.sha256})"
                )
    except (DownloadError, OSError) as error:
        raise DownloadError(
            f"{error}; check the network, or put the file at {path} by hand, or use "
            "--dataset python_docs, which needs no network"
        ) from error.__cause__
    return path


def cache_dir() -> Path:
    """The folder for fetched files: NANOGPT_LITE_CACHE, else the platform's."""
    if chosen := os.environ.get("NANOGPT_LITE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nanogpt_lite"


def _download(url: str, path: Path, report: ProgressCallback | None) -> None:
    """Write what `url` answers to `path`. Faults that may pass are tried again after a pause."""
    import requests  # a fifth of a second, so only when there is something to fetch

    reason: requests.RequestException | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(RETRY_DELAY * 2 ** (attempt - 1))  # give a passing fault the time to pass
        try:
            with (
                requests.get(url, headers=UNCOMPRESSED, stream=True, timeout=TIMEOUT) as answer,
                path.open("wb") as file,
            ):
                answer.raise_for_status()
                packed = "Content-Encoding" in answer.headers  # then the length is not that of the file
                total = None if packed else int(answer.headers.get("Content-Length", 0)) or None
                for piece in answer.iter_content(2**16):
                    file.write(piece)
                    if report:
                        report("download", file.tell(), total)
                if total is not None and file.tell() != total:
                    raise requests.ConnectionError(f"{file.tell()} of {total} bytes came")
            return
        except requests.HTTPError as error:
            reason = error
            if error.response.status_code < 500 and error.response.status_code != 429:
                break  # it will not be there the next time either
        except requests.ConnectTimeout as error:
            reason = error
            break  # each address of the host was tried for its 5 seconds
        except requests.RequestException as error:
            reason = error
    raise DownloadError(f"cannot fetch {url} ({_root_cause(reason)})") from reason


def _root_cause(error: Exception | None) -> str:
    """The first reason that a chain of network errors gives, without the addresses of Python objects."""
    text = str(error)
    inner = re.search(r"\(Caused by \w+\([\"']?(?:<[^>]*>: ?|\w+\(host=[^)]*\): )?(.*?)[\"']?\)\)", text)
    return (inner.group(1) if inner else text)[:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
