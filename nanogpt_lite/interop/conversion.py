"""Checkpoints of other programs, in and out: nanoGPT's, those of Hugging Face's transformers, and weights alone."""

import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.checkpoint import checkpoint_file, validation
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX, Checkpoint
from nanogpt_lite.checkpoint.restore import read_network
from nanogpt_lite.config.options import LoadConfig, TrainConfig
from nanogpt_lite.data import preparation, sources, verification
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop import huggingface, nanogpt
from nanogpt_lite.runs import run_folder
from nanogpt_lite.runs.run_folder import Run, RunLike
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tracking import plots
from nanogpt_lite.trainer.state import save_state


def from_nanogpt(path: str | Path, *, meta: str | Path | None = None, out_dir: str | Path | None = None) -> Run:
    """A run whose last checkpoint is nanoGPT's ckpt.pt, so that it samples and trains on as that would.

    `path`: that file, or the folder that it is in.
    `meta`: the meta.pkl of its data, without it the one that nanoGPT would find: data/DATASET/meta.pkl, seen from here
    or from the folder above the checkpoint's. If there is none, and it has GPT-2's number of symbols, its tokenizer is
    GPT-2's, from the hub or from a merges.txt as `meta`. `out_dir`: the run's folder, without it the next free one
    under runs/.

    `UserError` if the files cannot be read without executing them, or do not go together.
    """
    wanted, path = str(out_dir or ""), Path(path)
    if wanted and run_folder.checkpoints_in(Path(wanted)):
        raise UserError(f"{wanted} holds a run already; give another --out_dir")
    begun = nanogpt.read_nanogpt(path / "ckpt.pt" if path.is_dir() else path, Path(meta) if meta else None)
    folder = run_folder.create_run_dir(wanted, begun.config.dataset)
    with run_folder.lock_run(folder):
        run_folder.require_no_run(wanted, overwrite=False)  # still
        for name in ("best", "last"):
            save_state(begun, folder / f"{name}{SUFFIX}")
    return Run(folder)


def to_nanogpt(
    run: RunLike,
    folder: str | Path,
    *,
    checkpoint: str = LoadConfig.checkpoint,
    dataset: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a run's checkpoint as nanoGPT's ckpt.pt into `folder`, and as data/NAME/meta.pkl there its characters.

    nanoGPT's sample.py and train.py --init_from=resume take them, once data/NAME lies in its own folder data.
    `dataset`: write train.bin and val.bin too. `overwrite`: replace what is there. The path of the checkpoint.

    `UserError` if the network or the tokenizer is none that nanoGPT has, or if a file is there already.
    """
    saved, config, tokenizer = _load_checked(run, checkpoint)
    nanogpt.require_nanogpt_network(config, tokenizer, saved.path)
    folder, name = Path(folder), sources.dataset_name(config.dataset)
    wanted = ["meta.pkl"] if isinstance(tokenizer, CharTokenizer) else []
    wanted += ["train.bin", "val.bin"] if dataset else []
    paths = [folder / "ckpt.pt", *(folder / "data" / name / file for file in wanted)]
    _require_export_dir(folder)
    _require_no_files(paths, overwrite)
    bins: tuple[Path, ...] = ()
    if dataset:
        data = preparation.prepare(config.dataset, tokenizer=tokenizer, sha256=saved.metadata["dataset_sha256"] or None)
        verification.verify_checksum(data)
        bins = data.bins
    with files.atomic_write_set(*paths) as (main, *others):
        nanogpt.write_nanogpt(saved, config, tokenizer, name, main)
        if isinstance(tokenizer, CharTokenizer):
            nanogpt.write_meta(tokenizer, others.pop(0))
        for source, target in zip(bins, others, strict=True):
            shutil.copyfile(source, target)
    return paths[0]


def to_huggingface(
    run: RunLike, folder: str | Path, *, checkpoint: str = LoadConfig.checkpoint, overwrite: bool = False
) -> Path:
    """Write a run as a folder that transformers loads, with a model card. The folder. `overwrite`: replace its files.

    `UserError` if transformers has no such network, or if a file is there already.
    """
    saved, config, tokenizer = _load_checked(run, checkpoint)
    huggingface.require_hf_network(config, saved.path)
    folder, source = Path(folder), Run(saved.path.parent)
    _require_export_dir(folder)
    drawn = find_spec("matplotlib") is not None and any(record["kind"] == "eval" for record in source.metrics)
    _require_no_files([folder / name for name in (*huggingface.FILES, "README.md", *["loss.png"] * drawn)], overwrite)
    huggingface.write_hf(saved, config, tokenizer, folder)
    if drawn:
        plots.save_figure(source.plot(), folder / "loss.png")
    with files.atomic_write(folder / "README.md") as temporary:
        temporary.write_text(_model_card(saved, config, drawn), encoding="utf-8")
    return folder


def export_weights(
    run: RunLike, path: str | Path | None = None, *, checkpoint: str = LoadConfig.checkpoint, overwrite: bool = False
) -> Path:
    """Write a checkpoint without the optimizer's state, most of its size, which `load` and `sample` take.

    `path`: a file or a folder, without it weights.safetensors in the run's folder. `overwrite`: replace what is there.
    The path of the file.

    `UserError` if there is no such checkpoint, if it is damaged, or if `path` is there already.
    """
    saved, _, _ = _load_checked(run, checkpoint, prefix="model.")
    target = Path(path) if path else saved.path.with_stem("weights")
    if target.is_dir():
        target = target / f"weights{SUFFIX}"
    if target in run_folder.checkpoints_in(target.parent):
        raise UserError(f"{target} is a checkpoint, from which its run goes on; give another place (--path)")
    _require_no_files([target], overwrite)
    checkpoint_file.write_checkpoint(target, saved.tensors, saved.metadata)
    return target


def _load_checked(run: RunLike, checkpoint: str, prefix: str = "") -> tuple[Checkpoint, TrainConfig, Tokenizer]:
    """A checkpoint whose weights are those of its network."""
    saved = checkpoint_file.read_checkpoint(run_folder.find_checkpoint(run, checkpoint), prefix=prefix)
    config, tokenizer = read_network(saved)
    validation.validate_weights(config, tokenizer.vocab_size, saved)
    return saved, config, tokenizer


def _require_export_dir(folder: Path) -> None:
    """`UserError` if this is a file, or a folder that holds a run."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, and what is exported are several; give a folder (--path)")
    if run_folder.checkpoints_in(folder):
        raise UserError(f"{folder} holds a run, whose files would be mixed with others; give another place (--path)")


def _require_no_files(paths: Iterable[Path], overwrite: bool) -> None:
    """`UserError` if a file is there that may not be replaced."""
    if not overwrite and (taken := [str(path) for path in paths if path.exists()]):
        raise UserError(
            f"{', '.join(taken)} would be replaced; give another place (--path), or --overwrite to replace it"
        )


def _model_card(saved: Checkpoint, config: TrainConfig, drawn: bool) -> str:
    """What the network is, in Markdown."""
    about = saved.metadata
    rows = {
        "trained on": f"{config.dataset} (SHA-256 {about['dataset_sha256'] or 'not known'})",
        "steps": about["step"],
        "lowest val loss": "none yet"
        if about["best_val_loss"] is None
        else f"{about['best_val_loss']:.4f} nats per token, at step {about['best_step']}",
        **config.stored(),
    }
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", "", "# A small GPT", ""]
    lines += ["Trained by nanogpt_lite, exported for transformers:", ""]
    lines += ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += ['model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")']
    lines += [f"# it sees {config.block_size} tokens, prompt and answer together", "```", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([*lines, *(["", "![loss curves](loss.png)"] if drawn else []), ""])
