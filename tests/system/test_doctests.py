"""The examples in docstrings print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import nanogpt_lite

FOLDER = Path(nanogpt_lite.__file__).parent
MODULES = sorted(
    ".".join(("nanogpt_lite", *path.relative_to(FOLDER).with_suffix("").parts))
    for path in FOLDER.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_print_what_they_say(module):
    result = doctest.testmod(import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_kind_of_module_has_examples():
    packages = {module.split(".")[1] for module in MODULES}
    assert packages >= {
        "config",
        "data",
        "diagnosis",
        "files",
        "generation",
        "model",
        "ngrams",
        "optim",
        "tokenizers",
        "tracking",
    }
