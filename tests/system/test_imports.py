"""Importing a module has no effect but to define names. Layers: see import-linter in pyproject.toml."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanogpt_lite

FOLDER = Path(nanogpt_lite.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)


def source_of(module: str) -> str:
    path = FOLDER.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def imports_of(source: str) -> Iterator[str]:
    """Every module that a source imports anywhere: `package.module`, or `package.name` after a `from`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["nanogpt_lite" if node.level else "", node.module]))
            package = origin == "nanogpt_lite"
            yield from (f"{origin}.{alias.name}" for alias in node.names) if package else [origin]


def third_party_imports(source: str) -> set[str]:
    """The modules that a source imports from outside the standard library."""
    return {name for name in imports_of(source) if name.split(".")[0] not in sys.stdlib_module_names}


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_package_imports_nothing_until_a_name_is_used():
    tree = ast.parse(source_of(""))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    assert set(imports_of(ast.unparse(tree))) == {"importlib", "typing"}


def test_config_imports_only_the_standard_library():
    assert third_party_imports(source_of("config.options")) == {"nanogpt_lite.errors", "nanogpt_lite.config.schema"}
    assert third_party_imports(source_of("config.schema")) == {"nanogpt_lite.errors"}
    assert "numpy.random" in third_party_imports(source_of("config.options") + "\nimport numpy.random")


@pytest.mark.parametrize("module", ["nanogpt_lite", "nanogpt_lite.cli.main"])
def test_heavy_packages_are_not_imported_at_start(module, tmp_path):
    code = f"import sys, {module}; print(*{{'torch', 'numpy', 'requests', 'tqdm', 'matplotlib'}} & set(sys.modules))"
    result = run_python(code, tmp_path)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_importing_has_no_effect(tmp_path):
    """No output, no file, no seeding, no settings: the global state is the same before and after."""
    code = f"""
import contextlib, importlib, logging, os, random, signal, sys
import numpy, torch
with contextlib.suppress(ImportError):
    import httpx  # it imports rich, which draws a random number

def global_state():
    return (
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        numpy.random.get_state()[1].tolist(), numpy.random.get_state()[2], random.getstate(),
        logging.root.level, list(logging.root.handlers), list(logging.getLogger("nanogpt_lite").handlers),
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ), sys.excepthook,
        torch.cuda.is_initialized(), os.listdir(),
    )

before = global_state()
for module in {MODULES}:
    importlib.import_module("nanogpt_lite." + module)
for number, (old, new) in enumerate(zip(before, global_state(), strict=True)):
    assert old == new, (number, old, new)
"""
    result = run_python(code, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_dir_lists_the_public_names_without_importing_them(tmp_path):
    code = (
        "import sys, nanogpt_lite as ng; print(sorted(ng.__all__ + ['__version__']) == dir(ng), 'torch' in sys.modules)"
    )
    result = run_python(code, tmp_path)
    assert (result.stdout, result.stderr) == ("True False\n", "")
