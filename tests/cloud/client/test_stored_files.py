"""What a machine sees on a Volume: equal to what the library reads from the same files."""

import os
from pathlib import Path

import pytest
from fake_volume import GOLDEN, GOLDEN_RUNS, FakeVolume, volume_of_version_0_1
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.cloud.calls import Call, LocalDict
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.cloud.storage import VolumeStorage


@pytest.fixture
def volume(tmp_path):
    return volume_of_version_0_1(tmp_path / "volume")


def test_empty_volume_has_nothing(tmp_path):
    stored = StoredFiles(FakeVolume(tmp_path))
    assert (stored.runs, stored.datasets) == ([], [])
    with pytest.raises(ng.UserError, match="no run with a checkpoint on the Volume; train one: modal run"):
        stored.require_run("")


def test_runs_are_listed_by_the_time_of_their_last_checkpoint(volume):
    (volume.folder / "runs/begun").mkdir()
    (volume.folder / "runs/begun/config.json").write_text("{}", encoding="utf-8")
    stored = StoredFiles(volume)
    assert stored.runs == list(GOLDEN_RUNS)
    assert stored.require_run("") == "plain"
    os.utime(volume.folder / "runs/bpe/last.safetensors", (1_900_000_000,) * 2)
    assert StoredFiles(volume).runs == [*GOLDEN_RUNS[1:], GOLDEN_RUNS[0]]
    assert stored.require_run("bytes") == "bytes"
    assert [stored.modified(run) for run in stored.runs] == [1_800_000_000 + number for number in range(4)]
    for name in ("begun", "typo", "..", "."):
        with pytest.raises(ng.UserError, match="runs with one: bpe, bytes, modern, plain"):
            stored.require_run(name)


def test_datasets_are_prepared_ones_and_uploaded_texts(volume):
    (volume.folder / "texts").mkdir()
    for name in ("mine.txt", "sea.txt"):
        (volume.folder / "texts" / name).write_text("text", encoding="utf-8")
    stored = StoredFiles(volume)
    assert stored.datasets == ["bpe", "byte", "mine", "sea"]
    assert [stored.is_prepared(name) for name in stored.datasets] == [True, True, False, True]


@pytest.mark.parametrize("run", GOLDEN_RUNS)
def test_run_of_version_0_1_is_read_as_the_library_reads_it(volume, run):
    stored = StoredFiles(volume)
    metadata = read_checkpoint(GOLDEN / "runs" / run / "last.safetensors").metadata
    config = stored.run_config(run)
    assert config is not None
    assert config.stored() == metadata.config.stored()
    assert stored.metrics(run) == ng.Run(GOLDEN / "runs" / run).metrics
    assert stored.run_dataset(run) == ng.Run(GOLDEN / "runs" / run).data_folder.name
    assert stored.run_sha256(run) == metadata.dataset_sha256
    assert stored.run_characters(run) == metadata.tokenizer.get("chars")
    paths = list((GOLDEN / "runs" / run).iterdir())
    assert stored.files(run) == sorted(path.name for path in paths)
    assert stored.checkpoints(run) == sorted(path.stem for path in paths if path.suffix == ".safetensors")


def test_names_of_new_runs_are_free_on_a_volume_of_version_0_1(volume):
    assert not StoredFiles(volume).has_run("sea-1")
    storage = VolumeStorage(_NothingToWaitFor(), volume.folder)
    assert Call("mine", LocalDict()).reserve_new_run("sea", storage.has_run) == "sea-1"


class _NothingToWaitFor:
    def commit(self) -> None:
        pass

    def reload(self) -> None:
        pass


def test_has_run_is_true_for_each_folder_of_a_run(volume):
    (volume.folder / "runs/begun").mkdir()
    stored = StoredFiles(volume)
    names = ("begun", "plain", "typo", "runs")
    assert [stored.has_run(name) for name in names] == [True, True, False, False]


def test_files_of_a_run_include_folders_below_it_but_nothing_hidden(volume):
    run = volume.folder / "runs/plain"
    (run / "trace").mkdir()
    for name in ("trace/rank0.json", ".lock", ".last.safetensors.1.tmp", "trace/.hidden.json"):
        (run / name).write_text("", encoding="utf-8")
    (volume.folder / "runs/plain-2").mkdir()
    (volume.folder / "runs/plain-2/loss.png").write_text("", encoding="utf-8")
    files = StoredFiles(volume).files("plain")
    assert "trace/rank0.json" in files
    assert not [path for path in files if Path(path).name.startswith(".") or path == "owners"]
    assert files.count("loss.png") == 0


DAMAGED = ["", "{", "[]", "null", '{"config": [], "dataset": "text"}', '{"config": null, "dataset": ["a"]}', "\x00"]


@pytest.mark.parametrize("content", DAMAGED)
def test_run_with_a_damaged_config_is_listed_without_its_options(volume, content):
    (volume.folder / "runs/plain/config.json").write_text(content, encoding="utf-8")
    stored = StoredFiles(volume)
    assert stored.runs == list(GOLDEN_RUNS)
    assert (stored.run_config("plain"), stored.run_characters("plain")) == (None, None)
    assert (stored.run_dataset("plain"), stored.run_sha256("plain")) == ("", "")


def test_missing_files_are_empty(volume):
    for name in ("config.json", "metrics.jsonl"):
        (volume.folder / "runs/plain" / name).unlink()
    stored = StoredFiles(volume)
    assert (stored.run_config("plain"), stored.metrics("plain"), stored.read_json("runs/plain/x.json")) == (
        None,
        [],
        {},
    )


def test_characters_of_a_text_that_was_prepared_again_are_not_those_of_the_run(volume):
    tokenizer = volume.folder / "datasets/sea/tokenizer.json"
    tokenizer.write_text('{"type": "char", "chars": "abc"}', encoding="utf-8")
    assert StoredFiles(volume).run_characters("plain") is None


def test_run_of_this_version_is_read_as_the_library_reads_it(tmp_path, text_file):
    run = ng.train("bottles.txt", out_dir=tmp_path / "volume/runs/mine", **{**TINY, "max_iters": 2})
    stored = StoredFiles(FakeVolume(tmp_path / "volume"))
    config = stored.run_config("mine")
    assert config is not None
    assert config.stored() == read_checkpoint(run.out_dir / "last.safetensors").metadata.config.stored()
    assert stored.metrics("mine") == run.metrics
    assert stored.run_dataset("mine") == "bottles"
