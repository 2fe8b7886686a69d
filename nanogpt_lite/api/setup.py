"""How a run begins, or goes on: what was asked for, data and checkpoint become a state in a folder of its own.

What happens to the state then is the business of `trainer`.
"""

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import load_weights, read_config, read_network, require_same_network
from nanogpt_lite.checkpoint.validation import validate_weights
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import SHAPE_FIELDS, NetworkConfig, TrainConfig, read_config_file
from nanogpt_lite.config.schema import Value, require_known
from nanogpt_lite.data import batching, preparation, verification
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices
from nanogpt_lite.device.distributed import SINGLE_PROCESS, ProcessGroup
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop import huggingface
from nanogpt_lite.runs import run_folder
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.trainer.state import TrainState, init_state, restore_state

REPRODUCIBILITY_FIELDS = ("dtype", "threads", "seed", "batch_size", "gradient_accumulation_steps", "compile")

RunContext = tuple[TrainState, Dataset, Path]
"""A run that is ready to train: its state, its data, its folder (known to the first rank alone if it is new)."""


@dataclass(frozen=True)
class TrainRequest:
    """What a call of `training` asks for. `UserError` on an option or a preset that does not exist."""

    given: dict[str, Value]  # explicitly
    file: dict[str, Value]  # by --config
    preset: str | None
    dataset: Dataset | None  # if it is at hand
    overwrite: bool

    def __post_init__(self) -> None:
        for values in (self.file, self.given):
            require_known(values, TrainConfig.names(), "option")
        if self.preset:
            presets.get_preset(self.preset)


def read_request(
    dataset: Dataset | str | Path | None,
    preset: str | None,
    config: str | Path | None,
    overwrite: bool,
    options: Mapping[str, Value | Path],
) -> TrainRequest:
    """What a call with these arguments asks for. `UserError` if the file `config` cannot be read."""
    given = paths_to_str(options)
    if dataset is not None:
        given["dataset"] = dataset.source if isinstance(dataset, Dataset) else str(dataset)
    in_file = read_config_file(config) if config else {}
    return TrainRequest(given, in_file, preset, dataset if isinstance(dataset, Dataset) else None, overwrite)


def paths_to_str(options: Mapping[str, Value | Path]) -> dict[str, Value]:
    """The options with paths as texts, as configs and JSON have them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def request_for_restart(wishes: TrainRequest, begun: str) -> TrainRequest:
    """The same wishes after ranks have died: they go on with the run in the folder `begun`, if there is one."""
    if not begun:
        return wishes
    in_folder = {**wishes.given, "out_dir": begun}
    if not run_folder.checkpoints_in(Path(begun)):
        return dataclasses.replace(wishes, given=in_folder)
    return dataclasses.replace(wishes, given={**in_folder, "init_from": "resume"}, preset=None)


def start_or_resume(wishes: TrainRequest, group: ProcessGroup, stack: ExitStack, console: Console | None) -> RunContext:
    """The run that was asked for, ready to train. Its folder is held until `stack` is closed.

    `UserError` if options, data, folder and checkpoint do not go together.
    """
    resume = {**wishes.file, **wishes.given}.get("init_from") == "resume"
    return _resume(wishes, group, stack, console) if resume else _start(wishes, group, stack, console)


def default_preset(device: str, group: ProcessGroup = SINGLE_PROCESS) -> str:
    """The preset for a device when nobody chose one."""
    return "modern-cpu" if devices.resolve_device(device, group).type == "cpu" else "modern"


def _start(wishes: TrainRequest, group: ProcessGroup, stack: ExitStack, console: Console | None) -> RunContext:
    """A new run, from scratch or from another run's weights."""
    given, preset = wishes.given, wishes.preset
    parent = str({**wishes.file, **given}.get("init_from", "scratch"))
    if not (preset or wishes.file):
        of_gpt2 = parent != "scratch" and huggingface.is_gpt2(parent)
        preset = "finetune" if of_gpt2 else default_preset(str(given.get("device", "auto")), group)
    config = TrainConfig.from_dict({**(presets.get_preset(preset) if preset else {}), **wishes.file, **given})
    other = None
    tokenizer: str | Tokenizer = config.tokenizer
    if parent != "scratch":
        other, network, tokenizer = read_initial_weights(parent, int({**wishes.file, **given}.get("block_size", 0)))
        require_same_network(other, given)
        shape = {name: getattr(network, name) for name in SHAPE_FIELDS}
        of_preset = presets.get_preset(wishes.preset) if wishes.preset else {}
        if any(shape.get(name, value) != value for name, value in of_preset.items()) and console:
            console.note(f"warning: the network is that of {parent}, and not that of --preset {wishes.preset}")
        config = config.replace(shape)
    if group.is_main_process:
        run_folder.require_no_run(config.out_dir, wishes.overwrite)
    data = open_data(config.dataset, tokenizer, group, console, ready=wishes.dataset)
    batching.require_length(data.train, data.val, block_size=config.block_size, sampled_val=config.eval_iters > 0)
    state = init_state(config, data.tokenizer, dataset_sha256=data.sha256, group=group)
    config.require_divisible_by(group.world_size)
    if other:
        load_weights(state.model, other)
    if not group.is_main_process:
        return state, data, Path()
    out_dir = run_folder.create_run_dir(config.out_dir, data.name)
    stack.enter_context(run_folder.lock_run(out_dir))
    run_folder.require_no_run(config.out_dir, wishes.overwrite)  # still, after the data was prepared
    if wishes.overwrite:
        run_folder.delete_run_files(out_dir)
    return state, data, out_dir


def read_initial_weights(init_from: str, block_size: int) -> tuple[Checkpoint, NetworkConfig, Tokenizer]:
    """The weights to start from, their network and tokenizer; of the context only `block_size`, if that is less."""
    network: NetworkConfig
    if huggingface.is_gpt2(init_from):
        other, network, tokenizer = huggingface.read_gpt2(init_from)
    else:
        other = checkpoint_file.read_checkpoint(run_folder.find_checkpoint(init_from), prefix="model.")
        network, tokenizer = read_network(other)
    validate_weights(network, tokenizer.vocab_size, other)
    if 0 < block_size < network.block_size:
        network = network.replace({"block_size": block_size})
        other.metadata["config"]["block_size"] = block_size
        if "model.transformer.wpe.weight" in other.tensors:
            other.tensors["model.transformer.wpe.weight"] = other.tensors["model.transformer.wpe.weight"][:block_size]
    return other, network, tokenizer


def _resume(wishes: TrainRequest, group: ProcessGroup, stack: ExitStack, console: Console | None) -> RunContext:
    """A run that goes on from its last checkpoint."""
    # the checkpoint comes before preset and file, but it does not know what belongs to one call
    of_one_call = {name: value for name, value in wishes.file.items() if name not in TrainConfig().stored()}
    given = {**of_one_call, **wishes.given}
    if group.world_size > 1 and not given.get("out_dir"):
        raise UserError("several ranks go on with a run that is named; give --out_dir")
    out_dir = Path(str(given["out_dir"])) if given.get("out_dir") else run_folder.newest_run().out_dir
    checkpoint = run_folder.find_checkpoint(out_dir, "last")
    if console and not given.get("out_dir"):
        console.note(f"going on with the newest run: {out_dir}")
    if console and checkpoint.stem != "last":
        console.note(f"warning: {out_dir} has no last checkpoint; going on from {checkpoint.stem}")
    if console and wishes.preset:
        console.note("warning: a run goes on with its own options; --preset changes nothing (give the options instead)")
    if group.is_main_process:
        stack.enter_context(run_folder.lock_run(out_dir))
    saved = checkpoint_file.read_checkpoint(checkpoint)
    state = restore_state(saved, given, group=group)
    state.config.require_divisible_by(group.world_size)
    if "max_iters" in given and state.config.max_iters < state.step:
        raise UserError(
            f"{out_dir} is at step {state.step}, beyond max_iters={state.config.max_iters}; give more, or leave it out"
        )
    before = read_config(saved, {})
    changed = [name for name in REPRODUCIBILITY_FIELDS if getattr(before, name) != getattr(state.config, name)]
    changed += ["device"] if saved.metadata["device"] != state.device.type else []
    changed += ["the number of ranks"] if saved.metadata["ranks"] != group.world_size else []
    if changed and console:
        console.note(
            f"warning: {', '.join(changed)} changed, so the run goes on but no longer bit for bit as it would have"
        )
    try:
        data = open_data(
            state.config.dataset,
            state.tokenizer,
            group,
            console,
            ready=wishes.dataset,
            sha256=state.dataset_sha256 or None,
        )
    except UserError as error:
        raise UserError(
            f"{error} ({out_dir} was trained on {before.dataset!r}, as seen from the folder where it began: go "
            "on from there, or say where that text is: --dataset)"
        ) from error
    state.dataset_sha256 = data.sha256  # what nanoGPT trained does not say of which text
    kept = [
        r["seconds"] for r in Run(out_dir).metrics if isinstance(r.get("seconds"), float) and r["step"] <= state.step
    ]
    state.seconds = max(kept, default=0.0)
    return state, data, out_dir


def open_data(
    dataset: str,
    tokenizer: str | Tokenizer,
    group: ProcessGroup,
    console: Console | None,
    *,
    ready: Dataset | None = None,
    sha256: str | None = None,
) -> Dataset:
    """The dataset to train on: the one at hand if it fits, or the one of that name."""
    report = console.report if console else None
    if ready:
        data = preparation.prepare(ready.path, tokenizer=tokenizer, sha256=sha256 or ready.sha256)
    else:
        data = preparation.prepare(dataset, tokenizer=tokenizer, sha256=sha256, report=report)
    if group.is_main_process:
        verification.verify_checksum(data, report)
    if console:
        console.close()
    return data
