"""What a Function finds in a container: the Volume, its call, a rank for each GPU. Without one: the current folder."""

from pathlib import Path

import modal
import pytest
import torch
from shared_volume import FolderVolume, SharedDict

from nanogpt_lite.cloud import container
from nanogpt_lite.cloud.storage import MOUNT, MOUNT_VARIABLE, LocalStorage, VolumeStorage


@pytest.fixture
def in_container(monkeypatch):
    """Modal says that this process is in a container, as an attempt of the call fc-1."""
    monkeypatch.setattr(modal, "is_local", lambda: False)
    monkeypatch.setattr(modal, "current_function_call_id", lambda: "fc-1")


@pytest.fixture
def volume(tmp_path):
    return FolderVolume(tmp_path / "mount", tmp_path / "shared")


def test_storage_is_the_mounted_volume_in_a_container(in_container, volume, monkeypatch):
    monkeypatch.delenv(MOUNT_VARIABLE, raising=False)
    storage = container.open_storage(volume)
    assert isinstance(storage, VolumeStorage)
    assert (storage.volume, storage.root) == (volume, MOUNT)
    monkeypatch.setenv(MOUNT_VARIABLE, str(volume.mount))
    storage = container.open_storage(volume)
    assert isinstance(storage, VolumeStorage)
    assert storage.root == volume.mount
    storage.write_text("sweeps/a.json", "[]")
    assert Path(volume.shared, "sweeps/a.json").read_text(encoding="utf-8") == "[]"


def test_storage_is_the_current_folder_without_a_container(volume):
    assert isinstance(container.open_storage(volume), LocalStorage)


def test_each_attempt_sees_the_same_call_and_another_call_does_not(in_container, monkeypatch):
    shared = SharedDict()
    container.current_call(shared, {"seed": 1}).reserve_run("mine")
    assert container.current_call(shared, {"seed": 1}).run_name() == "mine"
    assert container.current_call(shared, {"seed": 2}).run_name() == ""
    monkeypatch.setattr(modal, "current_function_call_id", lambda: "fc-2")
    assert container.current_call(shared, {"seed": 1}).run_name() == ""


def test_call_without_a_container_leaves_the_shared_dictionary_unchanged():
    shared = SharedDict()
    container.current_call(shared, {}).reserve_run("mine")
    assert container.current_call(shared, {}).run_name() == ""
    assert shared.values == {}


def test_device_is_cuda_in_a_container_unless_another_is_given(in_container):
    options = {"max_iters": 3}
    assert container.on_gpu(options) == {"max_iters": 3, "device": "cuda"}
    assert container.on_gpu({"device": "cpu"}) == {"device": "cpu"}
    assert options == {"max_iters": 3}


@pytest.mark.parametrize(
    ("gpus", "variable", "world_size"), [(4, None, 4), (1, None, 1), (0, None, 1), (0, "2", 2), (4, "", 4)]
)
def test_training_has_one_rank_for_each_gpu_and_a_time_limit(in_container, monkeypatch, gpus, variable, world_size):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv(container.RANKS_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(container.RANKS_VARIABLE, variable)
    assert container.training_options({"seed": 2}, 60.0) == {
        "seed": 2,
        "device": "cuda",
        "world_size": world_size,
        "time_limit": 60.0,
    }


def test_options_without_a_container_are_those_given():
    assert container.on_gpu({"seed": 2}) == container.training_options({"seed": 2}, 60.0) == {"seed": 2}
