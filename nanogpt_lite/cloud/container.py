"""What the Functions of `modal_app.py` need in a container, or without one, when they are called by `.local()`."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import modal

from nanogpt_lite.cloud import compiled_files
from nanogpt_lite.cloud.calls import Call, LocalDict, SharedDict, call_id
from nanogpt_lite.cloud.storage import LocalStorage, Storage, Volume, VolumeStorage, mount_dir

RANKS_VARIABLE = "NANOGPT_RANKS"  # an environment variable: the number of ranks, if it is not that of the GPUs


def open_storage(volume: Volume) -> Storage:
    """Where data and runs are stored: on the Volume, or without a container in the current folder."""
    return LocalStorage() if modal.is_local() else VolumeStorage(volume)


def keep_compiled(volume: Volume, options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Let a training use in the block what earlier ones compiled, and keep on this Volume what it compiles.

    Nothing is read for a training that does not compile; whether one that is resumed does, its run says.
    """
    may_compile = options.get("compile") or options.get("compile_whole") or options.get("init_from") == "resume"
    if modal.is_local() or not may_compile:
        return nullcontext()
    return compiled_files.keep(volume, compiled_files.archive_path(mount_dir()))


def current_call(shared: SharedDict, options: Mapping[str, object]) -> Call:
    """The call that runs in this container, with these options. Its id is the same in each of its attempts."""
    return Call(
        call_id(modal.current_function_call_id() or "local", options), LocalDict() if modal.is_local() else shared
    )


def on_gpu(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the device cuda if none is given: a rented GPU that does not work must be an error."""
    return {**options} if modal.is_local() else {"device": "cuda", **options}


def training_options(options: Mapping[str, Any], time_limit: float) -> dict[str, Any]:
    """The arguments of `jobs.train_job`: in a container, one rank for each GPU, and a limit of time."""
    if modal.is_local():
        return {**options}
    import torch  # only here: the container that prepares a text does not have it

    world_size = int(os.environ.get(RANKS_VARIABLE) or max(1, torch.cuda.device_count()))
    return {**on_gpu(options), "world_size": world_size, "time_limit": time_limit}
