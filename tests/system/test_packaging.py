"""The wheel and the source distribution: what is in them, and that the wheel works alone.

The wheel is installed into an empty environment and run from an empty folder. Here that environment has the
dependencies of the running one and no network. A slow test installs them from the package index.
"""

import email
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from documentation import README, ROOT, code_blocks
from tiny import TINY, to_arguments

import nanogpt_lite as ng

DEPENDENCIES = [
    re.split("[^A-Za-z0-9._-]", requirement)[0]
    for requirement in requires("nanogpt-lite") or []
    if "extra ==" not in requirement
]
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:1")
TINY_RUN = to_arguments({**TINY, "max_iters": 4, "eval_interval": 2, "max_new_tokens": 40})
WRITTEN_BY_RUN = {"best.safetensors", "last.safetensors", "metrics.jsonl", "config.json", "loss.png"}


def execute(words: Sequence[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, without the variables that lead Python to other packages than its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NANOGPT"))}
    result = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**kept, "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error", **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, (words, result.stdout[-2000:], result.stderr[-4000:])
    return result


def environment_program(folder: Path, name: str) -> Path:
    """The path of a program in a virtual environment."""
    return folder / ("Scripts" if os.name == "nt" else "bin") / (f"{name}.exe" if os.name == "nt" else name)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> tuple[Path, Path]:
    """The paths of the wheel and of the source distribution. The wheel is built from the source distribution."""
    folder = tmp_path_factory.mktemp("packages")
    execute([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], folder, PYTHONWARNINGS="")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory) -> Path:
    """A virtual environment with the wheel and the dependencies of the running environment, and nothing else.

    A .pth file adds the folders of the dependencies at the end of sys.path. The .pth files in those folders are not
    read, so an editable installation of this repository is not visible.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    pip = [sys.executable, "-m", "pip", "--python", str(environment_program(folder, "python"))]
    execute([*pip, "install", "--no-index", "--no-deps", str(packages[0])], folder, PYTHONWARNINGS="")
    folders = {str(Path(str(distribution(name).locate_file(""))).resolve()) for name in DEPENDENCIES}
    (site_packages,) = {path.parent for path in folder.rglob("nanogpt_lite/")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(folders)), encoding="utf-8")
    return folder


@pytest.fixture
def empty_folder(tmp_path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def require_works_alone(environment: Path, folder: Path) -> None:
    """The command and README's example, in `folder`, without a network."""
    offline = {**NO_NETWORK, "NANOGPT_LITE_CACHE": str(folder.parent / "cache")}
    python, command = (environment_program(environment, name) for name in ("python", "nanogpt-lite"))
    where = execute([python, "-c", "import nanogpt_lite as ng; print(ng.__file__, ng.__version__)"], folder)
    file, version = where.stdout.rsplit(maxsplit=1)
    assert Path(file).is_relative_to(environment)
    assert not Path(file).is_relative_to(ROOT)
    assert version == ng.__version__
    assert execute([command, "--version"], folder).stdout.strip() == ng.__version__
    assert "usage: nanogpt-lite COMMAND [OPTIONS]" in execute([command, "--help"], folder).stdout

    ran = execute([command, "run", *TINY_RUN], folder, **offline)
    assert len(ran.stdout) == 42  # a newline as prompt, 40 tokens, and the end of the line
    assert "warning: cannot fetch https://" in ran.stderr
    written = {path.name for path in (folder / "runs/python_docs-1").iterdir()}
    assert WRITTEN_BY_RUN - {"loss.png"} <= written <= WRITTEN_BY_RUN  # loss.png needs matplotlib

    (folder / "my.txt").write_text("ROMEO:\nWhat light?\n\nJULIET:\nAy me.\n\n" * 40, encoding="utf-8")
    (example,) = code_blocks(README, "python")
    assert '"shakespeare_char"' in example
    assert "max_iters=500" in example
    example = example.replace('"shakespeare_char"', '"my.txt"').replace("max_iters=500", "max_iters=4, n_embd=16")
    printed = execute([python, "-c", example], folder, **offline).stdout
    assert printed.startswith("ROMEO:")
    assert len(printed) == len("ROMEO:") + 300 + len("\n")


def test_wheel_holds_the_package_and_nothing_else(packages):
    with zipfile.ZipFile(packages[0]) as wheel:
        names = set(wheel.namelist())
    package = ROOT / "nanogpt_lite"
    page = package / "server" / "page"
    files = [*package.rglob("*.py"), *(path for path in page.rglob("*") if path.is_file())]
    sources = {path.relative_to(ROOT).as_posix() for path in files} | {"nanogpt_lite/py.typed"}
    assert {"nanogpt_lite/server/page/index.html", "nanogpt_lite/server/page/vendor/LICENSE"} < sources
    metadata = {name for name in names if name.startswith(f"nanogpt_lite-{ng.__version__}.dist-info/")}
    assert names - metadata == sources
    assert {name.split("/", 1)[1] for name in metadata} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_sdist_holds_every_file_of_the_repository(packages):
    if not (ROOT / ".git").exists():
        pytest.skip("only a git repository says which files belong to it")
    listed = execute(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).stdout.splitlines()
    with tarfile.open(packages[1]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert names - {"PKG-INFO"} == {name for name in listed if (ROOT / name).is_file()}


def test_metadata_is_accepted_by_the_package_index(packages, empty_folder):
    checked = execute([sys.executable, "-m", "twine", "--no-color", "check", "--strict", *packages], empty_folder)
    assert checked.stdout.count("PASSED") == 2
    with zipfile.ZipFile(packages[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("nanogpt-lite", ng.__version__)
    assert metadata.get_payload() == README.read_text(encoding="utf-8")


def test_wheel_works_in_an_empty_environment_and_folder_without_a_network(installed, empty_folder):
    require_works_alone(installed, empty_folder)


@pytest.mark.slow
def test_wheel_works_with_dependencies_from_the_package_index(packages, tmp_path, empty_folder):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=os.name != "nt")
    pip = [str(environment_program(environment, "python")), "-m", "pip", "--disable-pip-version-check"]
    reached = subprocess.run(
        [*pip, "download", "--no-deps", "--dest", str(tmp_path), "tqdm"], capture_output=True, text=True, check=False
    )
    if reached.returncode:
        pytest.skip(f"the package index cannot be reached: {reached.stderr.strip()[-200:]}")
    execute([*pip, "install", str(packages[0])], empty_folder, PYTHONWARNINGS="")
    require_works_alone(environment, empty_folder)
