"""The modules import one way only, and importing one has no effect."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanogpt_lite

FOLDER = Path(nanogpt_lite.__file__).parent
ROWS = (
    "errors files",
    "options tokenizer ranks metrics adamw checkpoint download",
    "config presets runtime activation attention muon",
    "arguments bpe hub texts batches ngrams optim traces logs plots signatures sweeps",
    "model vocabulary",
    "graphs inspection encoding",
    "prepared",
    "datasets state sampling decoding trackers",
    "evaluation huggingface integrity runs steps",
    "trainer starts homes nanogpt summaries inference",
    "pipeline convert",
    "launcher",
    "volumes",
    "cli",
    "__main__",
)
ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row.split()}
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def source_of(module: str) -> str:
    return (FOLDER / f"{module}.py").read_text(encoding="utf-8")


def imported(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in a source: `package.module`, or `package.name` after a `from`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["nanogpt_lite" if node.level else "", node.module]))
            package = origin == "nanogpt_lite"
            yield from (f"{origin}.{alias.name}" for alias in node.names) if package else [origin]


def violations(module: str, source: str) -> list[str]:
    """What a module with this source imports from the package but should not: its own row, or one below."""
    own = [name.split(".") for name in imported(source) if name.split(".")[0] == "nanogpt_lite"]
    names = [parts[1] if len(parts) > 1 else "" for parts in own]
    # a name that is no module, such as `train`, would bring the module that defines it
    return [name for name in names if name != "__version__" and ROW_OF.get(name, len(ROWS)) >= ROW_OF[module]]


def foreign(source: str) -> set[str]:
    """What a source imports from outside the standard library."""
    return {name for name in imported(source) if name.split(".")[0] not in sys.stdlib_module_names}


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_every_module_is_in_the_table():
    assert sorted(ROW_OF) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_rows_above(module):
    assert violations(module, source_of(module)) == []


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("config", "from nanogpt_lite.model import GPT", ["model"]),
        ("config", "from nanogpt_lite import pipeline, errors", ["pipeline"]),
        ("texts", "import nanogpt_lite.batches", ["batches"]),  # the same row
        ("texts", "import nanogpt_lite.texts", ["texts"]),
        ("model", "def f():\n    from . import trainer", ["trainer"]),
        ("model", "def f():\n    from .trainer import train", ["trainer"]),
        ("model", "if TYPE_CHECKING:\n    import nanogpt_lite.runs", ["runs"]),
        ("files", "from nanogpt_lite import sample", ["sample"]),
        ("files", "import nanogpt_lite as ng", [""]),
        ("cli", "from nanogpt_lite import __version__", []),
        ("model", "import torch, os.path", []),
    ],
)
def test_a_forbidden_import_is_found(module, line, found):
    assert violations(module, f"{source_of(module)}\n{line}\n") == found


def test_the_package_itself_imports_nothing_before_a_name_is_used():
    tree = ast.parse(source_of("__init__"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    assert set(imported(ast.unparse(tree))) == {"importlib", "typing"}


def test_config_needs_the_standard_library_only():
    assert foreign(source_of("config")) == {"nanogpt_lite.errors", "nanogpt_lite.options"}
    assert foreign(source_of("options")) == {"nanogpt_lite.errors"}
    assert "numpy.random" in foreign(source_of("config") + "\nimport numpy.random")


@pytest.mark.parametrize("module", ["nanogpt_lite", "nanogpt_lite.cli"])
def test_heavy_packages_are_left_for_later(module, tmp_path):
    code = f"import sys, {module}; print(*{{'torch', 'numpy', 'requests', 'tqdm', 'matplotlib'}} & set(sys.modules))"
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_importing_has_no_effect(tmp_path):
    """No output, no file, no seeding, no settings: the state of the world is the same before and after."""
    code = f"""
import importlib, logging, os, random, signal, sys
import numpy, torch

def world():
    return (
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        numpy.random.get_state()[1].tolist(), numpy.random.get_state()[2], random.getstate(),
        logging.root.level, list(logging.root.handlers), list(logging.getLogger("nanogpt_lite").handlers),
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ), sys.excepthook,
        torch.cuda.is_initialized(), os.listdir(),
    )

before = world()
for module in {MODULES}:
    importlib.import_module("nanogpt_lite." + module)
for number, (old, new) in enumerate(zip(before, world(), strict=True)):
    assert old == new, (number, old, new)
"""
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
