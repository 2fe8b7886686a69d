"""An environment in which only some packages are installed: all others cannot be imported.

`pip install modal` is all that a machine needs to start a call on Modal; a container has what its image lists.
"""

import re
from importlib.metadata import packages_distributions, requires
from pathlib import Path

CODE = """
import sys

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        is_blocked = name.partition(".")[0] in {blocked!r}
        return None if is_blocked else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Finder, sys.meta_path)
"""


def modal_alone(folder: Path) -> dict[str, str]:
    """Environment variables for Python processes that may import modal, what it needs, and packages by their path."""
    return only_installed(folder, "modal")


def only_installed(folder: Path, *distributions: str) -> dict[str, str]:
    """As `modal_alone`, for these packages and what they need."""
    folder.mkdir(parents=True, exist_ok=True)
    code = CODE.format(blocked=_not_needed_by(*distributions))
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def _not_needed_by(*distributions: str) -> set[str]:
    """The names of the modules of all installed packages that the `distributions` do not need."""
    needed, remaining = set(), [*map(_normalised, distributions)]
    while remaining:
        name = remaining.pop()
        if name not in needed:
            needed.add(name)
            for requirement in _requirements(name):
                remaining.append(requirement)
    return {
        module
        for module, owners in packages_distributions().items()
        if needed.isdisjoint(map(_normalised, owners)) and module != "nanogpt_lite"
    }


def _requirements(name: str) -> list[str]:
    try:
        texts = requires(name) or []
    except ModuleNotFoundError:  # needed on another system or with another version of Python
        return []
    names = [re.match(r"[\w.-]+", text) for text in texts if "extra ==" not in text]
    return [_normalised(match[0]) for match in names if match]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
