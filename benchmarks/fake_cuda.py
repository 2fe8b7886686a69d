"""A CUDA device that computes nothing, for a build of PyTorch without CUDA, on Linux.

Tensors on it exist in FakeTensorMode only, which computes shapes and dtypes and no values.
"""

import ctypes
import importlib.util
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = "g++"


def load() -> None:
    """Compile the device for the PyTorch that is installed, which takes about two seconds, and register it.

    Call it before `import torch`, in a process that has no other use: PyTorch then believes in a GPU.
    `FileNotFoundError` without g++, `subprocess.CalledProcessError` if it fails.
    """
    specification = importlib.util.find_spec("torch")
    assert specification is not None
    assert specification.origin is not None
    torch_dir = Path(specification.origin).parent
    include, lib = torch_dir / "include", torch_dir / "lib"
    with TemporaryDirectory() as folder:
        library = Path(folder) / "fake_cuda.so"
        subprocess.run(
            [
                *(COMPILER, "-O0", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(library)),
                *(f"-I{include}", f"-I{include}/torch/csrc/api/include"),
                *(f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"),
            ],
            check=True,
        )
        ctypes.CDLL(str(library))  # it stays in memory
