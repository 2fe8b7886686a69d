"""The data of jobs on a shared Volume: which text a run is trained and evaluated on, and under which names."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from shared_volume import TEXT, Machines
from volume_jobs import steps_of, stored_files, train, upload

import nanogpt_lite as ng
from nanogpt_lite.cloud import job_data, jobs
from nanogpt_lite.cloud.prepare_job import prepare_and_push
from nanogpt_lite.tokenizers.byte import ByteTokenizer


@pytest.fixture
def machines(tmp_path, monkeypatch):
    return Machines(tmp_path, monkeypatch)


def test_changed_text_is_trained_on_also_from_the_weights_of_a_run(machines):
    train(machines, "parent", max_iters=2, out_dir="parent")
    hashes = []
    for number, text in enumerate((TEXT, TEXT[::-1])):
        upload(machines, text)
        train(machines, f"call-{number}", max_iters=2, dataset="mine", out_dir=f"child{number}", init_from="parent")
        config = json.loads((machines.shared / f"runs/child{number}/config.json").read_text())
        hashes.append(config["dataset"]["sha256"])
    assert hashes == [hashlib.sha256(text.encode()).hexdigest() for text in (TEXT, TEXT[::-1])]


def test_run_goes_on_after_its_data_of_an_earlier_version_was_prepared_for_characters(machines):
    """Up to version 0.2, datasets/NAME held the tokenizer that was given last."""
    upload(machines, TEXT)
    storage = machines.start()
    data = ng.prepare(storage.root / "texts/mine.txt", tokenizer="byte", out_dir="data/mine").path
    storage.push(data)
    train(machines, "me", max_iters=2, dataset="mine", tokenizer="byte", out_dir="run")
    assert ng.Run(machines.shared / "runs/run").data_folder == data
    loss = jobs.evaluate_job(machines.start(), "run")["val_loss"]
    prepare_and_push(machines.start(), "mine")
    assert jobs.evaluate_job(machines.start(), "run")["val_loss"] == loss
    train(machines, "next", max_iters=4, out_dir="run", init_from="resume", dataset="")
    assert steps_of(machines, "done", "run") == [2, 4]
    assert ng.Run(machines.shared / "runs/run").data_folder == Path("data/mine-byte")
    tokenizers = {
        path.parent.name: json.loads(path.read_text())["type"]
        for path in (machines.shared / "datasets").glob("*/tokenizer.json")
    }
    assert tokenizers == {"mine": "char", "mine-byte": "byte"}


def test_runs_with_several_tokenizers_have_the_names_of_their_data(machines):
    for call_id, options, name in (
        ("a", {"tokenizer": "byte"}, "text-byte-1"),
        ("b", {"init_from": "text-byte-1"}, "text-byte-2"),
        ("c", {}, "text-1"),
    ):
        assert train(machines, call_id, max_iters=1, **options)["run"] == name
        folder = ng.Run(machines.shared / "runs" / name).data_folder
        assert folder.name == name[:-2], "as on one's own machine"
        assert (machines.shared / "datasets" / folder.name / "train.bin").is_file()


def test_built_in_text_is_stored_with_each_tokenizer_and_keeps_its_name_in_a_resumed_run(machines):
    assert train(machines, "a", dataset="python_docs", tokenizer="byte", max_iters=1)["run"] == "python_docs-byte-1"
    assert (machines.shared / "datasets/python_docs-byte/train.bin").is_file()
    shutil.rmtree(machines.shared / "datasets")  # every machine can prepare them
    train(machines, "b", max_iters=2, out_dir="python_docs-byte-1", init_from="resume", dataset="")
    config = json.loads((machines.shared / "runs/python_docs-byte-1/config.json").read_text())
    # the name that every machine knows, not a folder of this one
    assert (config["config"]["dataset"], config["dataset"]["path"]) == ("python_docs", "data/python_docs-byte")
    storage = machines.start()
    assert job_data.data_to_resume(storage, jobs.find_run(storage), "python_docs") == "python_docs"


def test_evaluation_on_another_text_stores_nothing_and_uses_what_is_stored(machines):
    train(machines, "me", tokenizer="byte", max_iters=1)
    prepare_and_push(machines.start(), machines.text)
    upload(machines, TEXT[::-1])
    before = stored_files(machines)
    result = jobs.evaluate_job(machines.start(), "text-byte-1", dataset="mine")
    assert result["val_tokens"] == len(TEXT) - int(0.9 * len(TEXT))
    assert stored_files(machines) == before
    prepare_and_push(machines.start(), "mine", tokenizer="byte")
    storage = machines.start()
    (storage.root / "texts/mine.txt").unlink()
    storage.volume.commit()
    assert jobs.evaluate_job(machines.start(), "text-byte-1", dataset="mine")["val_loss"] == result["val_loss"]


def test_run_whose_text_was_replaced_goes_on_with_the_text_stored_apart(machines):
    upload(machines, TEXT)
    train(machines, "me", max_iters=2, dataset="mine", out_dir="run")
    upload(machines, TEXT[::-1])
    prepare_and_push(machines.start(), "mine")
    for call in (
        lambda: jobs.evaluate_job(machines.start(), "run"),
        lambda: train(machines, "a", max_iters=4, out_dir="run", init_from="resume", dataset=""),
    ):
        with pytest.raises(ng.UserError, match=r"the text 'mine' on the Volume is not the one .* give that text"):
            call()
    storage = machines.start()
    (storage.root / "texts/mine-for-run.txt").write_text(TEXT, encoding="utf-8")  # as the client uploads it
    storage.volume.commit()
    train(machines, "b", max_iters=4, out_dir="run", init_from="resume", dataset="mine-for-run")
    assert steps_of(machines, "done", "run") == [2, 4]
    storage = machines.start()
    data = job_data.data_to_resume(storage, jobs.find_run(storage, "run"), "mine")
    assert isinstance(data, ng.Dataset)
    assert data.name == "mine-for-run", "mine is another text now"


def test_text_of_a_folder_is_the_uploaded_one_of_its_name_or_that_without_the_tokenizer(machines):
    upload(machines, TEXT)
    storage = machines.start()
    for folder, text in (("mine", "mine"), ("mine-byte", "mine"), ("other-byte", "other")):
        assert job_data._text_of(storage, folder, ByteTokenizer()) == text
    (storage.root / "texts/mine-byte.txt").write_text(TEXT, encoding="utf-8")
    storage.volume.commit()
    assert job_data._text_of(storage, "mine-byte", ByteTokenizer()) == "mine-byte"
