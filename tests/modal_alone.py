"""An environment in which `pip install modal` was all: every other installed package cannot be imported."""

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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(CODE.format(blocked=_not_needed_by("modal")), encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def _not_needed_by(distribution: str) -> set[str]:
    """The names of the modules of all installed packages that `distribution` does not need."""
    needed, remaining = set(), [distribution]
    while remaining:
        name = remaining.pop()
        if name not in needed:
            needed.add(name)
            for requirement in _requirements(name):
                remaining.append(requirement)
    return {
        module
        for module, distributions in packages_distributions().items()
        if needed.isdisjoint(map(_normalised, distributions)) and module != "nanogpt_lite"
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
