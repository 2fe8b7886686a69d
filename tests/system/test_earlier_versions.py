"""Files that earlier versions wrote are still read: runs, prepared data, and Volumes of Modal.

`tests/golden/v0.1` was written by version 0.1.0 on a CPU: four small runs of 20 steps on `sea.txt`, with the data that
it prepared, and weights that it exported. `expected.json` holds what that version then printed and computed. Losses are
compared with a tolerance, because another CPU rounds differently.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.cloud import storage
from nanogpt_lite.runs.run_summary import format_text

GOLDEN = Path(__file__).parents[1] / "golden" / "v0.1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
RUNS = sorted(EXPECTED)
TOLERANCE = 1e-4  # nats


@pytest.fixture
def golden_dir(tmp_path, monkeypatch):
    """A copy of the golden files, which is the current folder."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_golden_runs_cover_the_formats():
    kinds = {run: read_checkpoint(GOLDEN / "runs" / run / "last.safetensors").metadata for run in RUNS}
    assert {metadata.tokenizer["type"] for metadata in kinds.values()} == {"char", "byte", "bpe-280"}
    assert {metadata.config.optimizer for metadata in kinds.values()} == {"adamw", "muon"}
    assert {metadata.config.position for metadata in kinds.values()} == {"learned", "rotary"}
    assert {bool(metadata.scaler) for metadata in kinds.values()} == {True, False}


@pytest.mark.parametrize("run", RUNS)
def test_text_of_a_run_is_the_same(golden_dir, run):
    options: dict[str, Any] = {"start": "The ", "max_new_tokens": 40, "device": "cpu", "threads": 1}
    assert ng.sample(f"runs/{run}", temperature=0, **options)[0] == EXPECTED[run]["greedy"].removesuffix("\n")
    assert ng.sample(f"runs/{run}", seed=7, **options)[0] == EXPECTED[run]["seeded"].removesuffix("\n")


@pytest.mark.parametrize("run", RUNS)
def test_losses_of_a_run_are_the_same(golden_dir, run):
    result: dict[str, Any] = {**ng.evaluate(f"runs/{run}", device="cpu", threads=1)}
    assert result["step"] == 20
    for split in ("train", "val"):
        assert result[f"{split}_tokens"] == EXPECTED[run]["eval"][f"{split}_tokens"]
        assert result[f"{split}_loss"] == pytest.approx(EXPECTED[run]["eval"][f"{split}_loss"], abs=TOLERANCE)


@pytest.mark.parametrize("run", RUNS)
def test_resumed_run_continues_as_in_the_version_that_began_it(golden_dir, run, capsys):
    resumed = ng.train(out_dir=f"runs/{run}", init_from="resume", max_iters=40)
    losses = {record["step"]: record["val_loss"] for record in resumed.metrics if record["kind"] == "eval"}
    assert sorted(losses) == [10, 20, 30, 40]
    for step, loss in EXPECTED[run]["resumed"].items():
        assert losses[int(step)] == pytest.approx(loss, abs=TOLERANCE)
    assert "not bit for bit" not in capsys.readouterr().err


@pytest.mark.parametrize("run", RUNS)
def test_summary_plot_and_weights_of_a_run(golden_dir, run):
    summary = ng.summary(f"runs/{run}")
    assert (summary["step"], summary["versions"]["nanogpt-lite"]) == (20, "0.1.0")
    assert format_text(summary)
    assert ng.Run(Path(f"runs/{run}")).save_plot().is_file()
    weights = ng.export_weights(f"runs/{run}", overwrite=True)
    assert ng.sample(weights, start="The ", max_new_tokens=40, temperature=0, device="cpu", threads=1)[0] == EXPECTED[
        run
    ]["greedy"].removesuffix("\n")


def test_exported_weights_are_read(golden_dir):
    weights = Path("runs/plain/weights.safetensors")
    text = ng.sample(weights, start="The ", max_new_tokens=40, temperature=0, device="cpu", threads=1)[0]
    assert text == EXPECTED["plain"]["greedy"].removesuffix("\n")
    run = ng.train("sea.txt", init_from=weights, max_iters=2, device="cpu", threads=1, out_dir="runs/finetuned")
    assert ng.summary(run)["network"]["n_embd"] == 8


def test_run_is_exported_to_nanogpt_and_to_transformers(golden_dir):
    with torch.no_grad():
        model, tokenizer = ng.load("runs/plain", device="cpu")
        ids = torch.tensor([tokenizer.encode("The ship").tolist()])
        logits, _ = model(ids)
        ng.to_nanogpt("runs/plain", "nanogpt")
        back, _ = ng.load(ng.from_nanogpt("nanogpt", meta="nanogpt/data/sea/meta.pkl", out_dir="back"), device="cpu")
        torch.testing.assert_close(back(ids)[0], logits)
        import transformers

        folder = ng.to_huggingface("runs/plain", "hf")
        torch.testing.assert_close(
            transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits, logits, atol=1e-5, rtol=1e-5
        )


def test_config_file_repeats_a_run(golden_dir):
    repeated = ng.train(config="runs/modern/config.json", out_dir="runs/again")
    losses = [record["val_loss"] for record in repeated.metrics if record["kind"] == "eval"]
    expected = [record["val_loss"] for record in ng.Run(Path("runs/modern")).metrics if record["kind"] == "eval"]
    assert losses == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(("name", "tokenizer"), [("sea", "char"), ("byte", "byte"), ("bpe", "bpe-280")])
def test_prepared_data_is_opened_and_not_written_again(golden_dir, name, tokenizer):
    tokens = {path: path.read_bytes() for path in Path(f"data/{name}").glob("*.bin")}
    dataset = ng.prepare("sea.txt", tokenizer=tokenizer, out_dir=f"data/{name}")
    text = Path("sea.txt").read_text(encoding="utf-8")
    assert dataset.tokenizer.decode([*dataset.train, *dataset.val]) == text
    assert {path: path.read_bytes() for path in Path(f"data/{name}").glob("*.bin")} == tokens
    opened = ng.prepare(f"data/{name}")
    assert opened.sha256 == dataset.sha256


def test_weights_of_an_earlier_version_start_a_new_run(golden_dir):
    run = ng.train("sea.txt", init_from="runs/modern", max_iters=2, device="cpu", threads=1, out_dir="runs/finetuned")
    config = read_checkpoint(run.out_dir / "last.safetensors").metadata.config
    assert (config.rope_theta, config.n_embd) == (160, 8)


def test_volume_of_an_earlier_version_is_read(golden_dir, tmp_path_factory, monkeypatch):
    root = tmp_path_factory.mktemp("volume")
    shutil.copytree(GOLDEN / "data", root / "datasets")
    shutil.copytree(GOLDEN / "runs", root / "runs")
    shutil.rmtree("runs")
    shutil.rmtree("data")
    (root / "runs/plain/owners").write_text("in-1\nin-2\n", encoding="utf-8")  # as 0.1 writes beside a run
    volume = storage.VolumeStorage(FakeVolume(), root)
    assert set(volume.run_names()) == set(RUNS)
    for folder in (Path("runs/plain"), Path("data/sea")):
        volume.pull(folder)
        assert contents(folder) == {folder / path.name: path.read_bytes() for path in (GOLDEN / folder).iterdir()}
    assert volume.is_owner(Path("runs/plain"), "in-2")
    test_losses_of_a_run_are_the_same(golden_dir, "plain")


class FakeVolume:
    """Modal's Volume as far as `VolumeStorage` uses it, with nothing to wait for."""

    def reload(self) -> None:
        pass

    def commit(self) -> None:
        pass
