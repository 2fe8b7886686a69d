"""The public functions that import and export models: from and to nanoGPT, to transformers, and weights alone.

They choose, check and lock folders; the formats are in the other modules of this package.
"""

import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.checkpoint import SUFFIX, checkpoint_file
from nanogpt_lite.config.options import LoadConfig
from nanogpt_lite.data import preparation, sources
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop import huggingface, nanogpt_export, nanogpt_import
from nanogpt_lite.interop.model_card import model_card
from nanogpt_lite.runs import run_files
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run, RunLike, checkpoints_in
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tracking import plots
from nanogpt_lite.trainer.state import save_state


def from_nanogpt(path: str | Path, *, meta: str | Path | None = None, out_dir: str | Path | None = None) -> Run:
    """Import nanoGPT's ckpt.pt as a run: it samples as nanoGPT does, and training can be resumed.

    `path`: that file, or its folder.
    `meta`: the meta.pkl of its dataset. Default: data/DATASET/meta.pkl, in the current folder or in the folder above
    the checkpoint's, as in nanoGPT. If there is none, and the vocabulary has the size of GPT-2's, the tokenizer is
    GPT-2's, from the Hugging Face hub, or from a merges.txt or tokenizer.json given as `meta`.
    `out_dir`: the folder of the run. Default: the next free one under runs/.

    `UserError` if the files cannot be read without executing code in them, or do not belong together.
    `ExternalError` if GPT-2's tokenizer cannot be fetched.
    """
    run_dir, path = str(out_dir or ""), Path(path)
    if run_dir and checkpoints_in(Path(run_dir)):
        raise UserError(f"{run_dir} holds a run already; give another `out_dir`")
    ckpt_path = path / "ckpt.pt" if path.is_dir() else path
    state = nanogpt_import.import_nanogpt_checkpoint(ckpt_path, Path(meta) if meta else None)
    folder = run_files.create_run_dir(run_dir, state.config.dataset)
    with run_files.lock_run(folder):
        run_files.require_no_run(run_dir, overwrite=False)  # again: another process may have been faster
        for name in ("best", "last"):
            save_state(state, folder / f"{name}{SUFFIX}")
    return Run(folder)


def to_nanogpt(
    run: RunLike,
    folder: str | Path,
    *,
    checkpoint: str = LoadConfig.checkpoint,
    dataset: bool = False,
    overwrite: bool = False,
) -> Path:
    """Export a checkpoint to nanoGPT: `folder`/ckpt.pt and, of a character tokenizer, `folder`/data/NAME/meta.pkl.

    nanoGPT's sample.py and train.py --init_from=resume read them, once data/NAME is in nanoGPT's own folder data.
    `dataset`: write train.bin and val.bin too. `overwrite`: replace existing files. Returns the path of ckpt.pt.

    `UserError` if nanoGPT does not have such a network or tokenizer, or if a file exists already.
    """
    saved, config, tokenizer = load_checkpoint(run, checkpoint)
    nanogpt_export.require_nanogpt_compatible(config, tokenizer, saved.path)
    folder, name = Path(folder), sources.dataset_name(config.dataset)
    data_files = ["meta.pkl"] if isinstance(tokenizer, CharTokenizer) else []
    data_files += ["train.bin", "val.bin"] if dataset else []
    paths = [folder / "ckpt.pt", *(folder / "data" / name / file for file in data_files)]
    _require_export_dir(folder)
    _require_no_files(paths, overwrite)
    bins: tuple[Path, ...] = ()
    if dataset:
        sha256 = saved.metadata.dataset_sha256 or None
        bins = preparation.prepare(config.dataset, tokenizer=tokenizer, sha256=sha256).bins
    with files.atomic_write_set(*paths) as (ckpt_path, *data_paths):
        nanogpt_export.export_nanogpt_checkpoint(saved, config, tokenizer, dataset=name, path=ckpt_path)
        if isinstance(tokenizer, CharTokenizer):
            nanogpt_export.write_meta(tokenizer, data_paths.pop(0))
        for source, target in zip(bins, data_paths, strict=True):
            shutil.copyfile(source, target)
    return paths[0]


def to_huggingface(
    run: RunLike, folder: str | Path, *, checkpoint: str = LoadConfig.checkpoint, overwrite: bool = False
) -> Path:
    """Export a checkpoint as a folder that transformers loads, with a model card. Returns the folder.

    `overwrite`: replace existing files. `UserError` if transformers has no such network, or if a file exists already.
    """
    saved, config, tokenizer = load_checkpoint(run, checkpoint)
    huggingface.require_gpt2_compatible(config, saved.path)
    folder, source = Path(folder), Run(saved.path.parent)
    _require_export_dir(folder)
    has_plot = find_spec("matplotlib") is not None and any(record["kind"] == "eval" for record in source.metrics)
    names = (*huggingface.FILES, "README.md", *["loss.png"] * has_plot)
    _require_no_files([folder / name for name in names], overwrite)
    huggingface.export_gpt2(saved, config, tokenizer, folder)
    if has_plot:
        plots.save_figure(source.plot(), folder / "loss.png")
    with files.atomic_write(folder / "README.md") as temporary:
        temporary.write_text(model_card(saved.metadata, config, has_plot=has_plot), encoding="utf-8", newline="\n")
    return folder


def export_weights(
    run: RunLike, path: str | Path | None = None, *, checkpoint: str = LoadConfig.checkpoint, overwrite: bool = False
) -> Path:
    """Write a checkpoint without the state of the optimizer, which is most of its size; `load` and `sample` read it.

    `path`: a file or an existing folder. Default: weights.safetensors in the folder of the run. `overwrite`: replace
    an existing file. Returns the path of the file.

    `UserError` if there is no such checkpoint, if it is damaged, or if `path` exists already.
    """
    saved, _, _ = load_checkpoint(run, checkpoint, weights_only=True)
    target = Path(path) if path else saved.path.with_stem("weights")
    if target.is_dir():
        target = target / f"weights{SUFFIX}"
    if target in checkpoints_in(target.parent):
        raise UserError(f"{target} is a checkpoint that is needed to resume its run; give another `path`")
    _require_no_files([target], overwrite)
    checkpoint_file.write_checkpoint(target, saved.tensors, saved.metadata)
    return target


def _require_export_dir(folder: Path) -> None:
    """`UserError` if this is a file, or a folder that holds a run."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, and the export is several files; give a folder")
    if checkpoints_in(folder):
        raise UserError(f"{folder} holds a run, whose files must not be mixed with exported ones; give another path")


def _require_no_files(paths: Iterable[Path], overwrite: bool) -> None:
    """`UserError` if one of the files exists and may not be replaced."""
    if not overwrite and (existing := [str(path) for path in paths if path.exists()]):
        raise UserError(
            f"{', '.join(existing)} would be replaced; give another path, or `overwrite=True` to replace it"
        )
