"""Downloads files into a cache folder, with timeouts, retries and a check of the SHA-256.

See `sources` for what the files contain.
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

MAX_ATTEMPTS = 3
TIMEOUT = (5, 30)  # seconds: to connect, and between two parts of the response
NO_COMPRESSION = {"Accept-Encoding": "identity"}  # so that Content-Length is the length of the file
RETRY_DELAY = 1.0  # seconds before the second attempt; doubled before each further one
DOWNLOAD_CHUNK_BYTES = 2**16

ProgressCallback = Callable[[str, int, int | None], None]
"""Called with (task, bytes done, bytes in total or None), where task is what is being done, such as "download"."""


@dataclass(frozen=True)
class Resource:
    """A file on the web, its path in the cache folder, and its SHA-256 if that is known."""

    url: str
    cache_name: str
    sha256: str | None = None


class DownloadError(ExternalError):
    """A file could not be downloaded."""


def url_resource(url: str) -> Resource:
    """The resource for any URL. Its cache name ends with the file name in the URL. `UserError` if it is not a URL."""
    try:
        path = unquote(urlsplit(url).path)
    except ValueError as error:
        raise UserError(f"{url!r} is not a valid URL ({error}); give one like https://example.org/text.txt") from None
    name = files.safe_name(path.rsplit("/", 1)[-1], "index.txt")
    return Resource(url, f"urls/{hashlib.sha256(url.encode()).hexdigest()[:16]}/{name}")


def fetch(resource: Resource, *, force_download: bool = False, report: ProgressCallback | None = None) -> Path:
    """The path of the file in the cache folder. It is downloaded if it is not cached, or if `force_download`.

    `DownloadError` if the download fails or gives a file with another SHA-256. An older cached file then stays.
    """
    path = cache_dir() / resource.cache_name
    if not force_download and path.is_file() and resource.sha256 in (None, _sha256(path)):
        return path
    try:
        with files.atomic_write(path) as temporary:
            _download(resource.url, temporary, report)
            sha256 = _sha256(temporary)
            if resource.sha256 not in (None, sha256):
                raise DownloadError(
                    f"{resource.url} returned an unexpected file (SHA-256 {sha256}, expected {resource.sha256})"
                )
    except (DownloadError, OSError) as error:
        raise DownloadError(
            f"{error}; check the network, or copy the file to {path} yourself, or use `dataset='python_docs'`, "
            "which needs no network"
        ) from error.__cause__
    return path


def cache_dir() -> Path:
    """The folder for downloaded files: $NANOGPT_LITE_CACHE, else nanogpt_lite in the platform's cache folder."""
    if folder := os.environ.get("NANOGPT_LITE_CACHE"):
        return Path(folder).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nanogpt_lite"


def _download(url: str, path: Path, report: ProgressCallback | None) -> None:
    """Write the response of `url` to `path`. Temporary errors are retried after a delay."""
    import requests  # takes 0.2 s, so it is imported only for a download

    reason: requests.RequestException | None = None
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(RETRY_DELAY * 2 ** (attempt - 1))  # a server that is overloaded or restarting needs time
        try:
            _download_once(url, path, report)
            return
        except requests.HTTPError as error:
            reason = error
            if error.response.status_code < 500 and error.response.status_code != 429:
                break  # an error of the request, which would come again
        except requests.ConnectTimeout as error:
            reason = error
            break  # requests has already tried each address of the host for 5 seconds
        except requests.RequestException as error:
            reason = error
    raise DownloadError(f"cannot fetch {url} ({_root_cause(reason)})") from reason


def _download_once(url: str, path: Path, report: ProgressCallback | None) -> None:
    """One attempt. `requests.RequestException` if it fails, or if the response is incomplete."""
    import requests

    with requests.get(url, headers=NO_COMPRESSION, stream=True, timeout=TIMEOUT) as response, path.open("wb") as file:
        response.raise_for_status()
        is_compressed = "Content-Encoding" in response.headers  # then Content-Length is not the length of the file
        total = None if is_compressed else int(response.headers.get("Content-Length", 0)) or None
        for chunk in response.iter_content(DOWNLOAD_CHUNK_BYTES):
            file.write(chunk)
            if report:
                report("download", file.tell(), total)
        if total is not None and file.tell() != total:
            raise requests.ConnectionError(f"received {file.tell()} of {total} bytes")


def _root_cause(error: Exception | None) -> str:
    """The innermost reason in a chain of network errors, without the addresses of Python objects."""
    text = str(error)
    inner = re.search(r"\(Caused by \w+\([\"']?(?:<[^>]*>: ?|\w+\(host=[^)]*\): )?(.*?)[\"']?\)\)", text)
    return (inner.group(1) if inner else text)[:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
