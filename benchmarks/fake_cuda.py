"""A CUDA device that computes nothing, for a build of PyTorch without CUDA.

`compile_library` needs g++. `load` must come before `import torch`, in a process that has no other use: PyTorch then
believes in a GPU. Tensors on it exist in FakeTensorMode only, which computes shapes and dtypes and no values.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from nanogpt_lite.data import download

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = "g++"


def compile_library() -> Path:
    """The shared library, compiled for the PyTorch that is installed; it is kept for the next call.

    `FileNotFoundError` without g++, `subprocess.CalledProcessError` if it fails.
    """
    specification = importlib.util.find_spec("torch")
    assert specification is not None
    assert specification.origin is not None
    torch_dir = Path(specification.origin).parent
    version = f"{importlib.metadata.version('torch')} {torch_dir}"
    name = hashlib.sha256(version.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = download.cache_dir() / f"fake_cuda_{name}.so"
    if library.exists():
        return library
    if shutil.which(COMPILER) is None:
        raise FileNotFoundError(f"{COMPILER} is not installed")
    include, lib = torch_dir / "include", torch_dir / "lib"
    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    subprocess.run(
        [
            *(COMPILER, "-O0", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(unfinished)),
            *(f"-I{include}", f"-I{include}/torch/csrc/api/include"),
            *(f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    unfinished.replace(library)
    return library


def load() -> None:
    """Register the device in this process. Call it before `import torch`."""
    ctypes.CDLL(str(compile_library()))
