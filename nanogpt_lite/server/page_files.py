"""The page at the root: HTML, CSS and JavaScript in `page/`, as they are. They contain nothing of any run."""

from importlib import resources
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PREFIX = "/page/"


class PageFiles:
    """The routes of the page. A path is looked up among the files that exist."""

    def __init__(self) -> None:
        self._files = dict(_files_in(resources.files(__package__) / "page"))

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        return [Route("/", self.answer), Route(PREFIX + "{name:path}", self.answer)]

    async def answer(self, request: Request) -> Response:
        """A file."""
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise HTTPException(404, f"the page has no file {name!r}; open / instead")
        suffix = name[name.rindex(".") :]
        return Response(self._files[name].read_bytes(), media_type=MEDIA_TYPES[suffix])


def is_page(path: str) -> bool:
    """Whether a path is that of the page, which anybody may see."""
    return path == "/" or path.startswith(PREFIX)


def _files_in(folder: Traversable, prefix: str = "") -> list[tuple[str, Traversable]]:
    """The files of the page by their names, with the folders in them."""
    files: list[tuple[str, Traversable]] = []
    for item in folder.iterdir():
        if item.is_dir():
            files += _files_in(item, f"{prefix}{item.name}/")
        elif item.name.endswith(tuple(MEDIA_TYPES)):
            files.append((prefix + item.name, item))
    return files
