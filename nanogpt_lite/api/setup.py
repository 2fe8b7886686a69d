"""How a training run starts or resumes: the request, the data and a checkpoint become a state and a locked folder.

What a call may ask for is in `api.request`; what happens to the state afterwards is in `trainer`.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from nanogpt_lite.api import text_recipe
from nanogpt_lite.api.request import TrainRequest
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint, TensorFile
from nanogpt_lite.checkpoint.restore import load_weights, read_config, require_same_network
from nanogpt_lite.checkpoint.validation import validate_weights
from nanogpt_lite.config import presets, recipe
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Role, Value
from nanogpt_lite.data import batching, preparation, verification
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop import huggingface
from nanogpt_lite.runs import run_files, run_folder
from nanogpt_lite.runs.checkpoint_loading import load_checkpoint
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.trainer import ngram_fitting
from nanogpt_lite.trainer.state import TrainState, init_state, restore_state


class RunContext(NamedTuple):
    """A run that is ready to train."""

    state: TrainState
    data: Dataset
    out_dir: Path  # of a new run, only the main process knows it


class InitialWeights(NamedTuple):
    """The weights that a new run starts from, with their network and tokenizer."""

    file: TensorFile
    network: NetworkConfig
    tokenizer: Tokenizer


def start_or_resume(
    request: TrainRequest, group: ProcessGroup, stack: ExitStack, console: Console | None
) -> RunContext:
    """The requested run, ready to train. Its folder stays locked until `stack` is closed.

    `UserError` if options, data, folder and checkpoint do not fit together.
    """
    if request.init_from == "resume":
        return _resume(request, group, stack, console)
    return _start(request, group, stack, console)


def _start(request: TrainRequest, group: ProcessGroup, stack: ExitStack, console: Console | None) -> RunContext:
    """A new run, from scratch or from the weights of another network."""
    preset = _choose_preset(request, group)
    config = presets.config_with_preset(preset, request.options)
    if console and not preset and "max_iters" not in request.options:
        console.note(
            f"warning: the config file has no `max_iters`, and no preset is given, so there are {config.max_iters} "
            "steps whatever the text is; give `preset='modern-cpu'` or `preset='modern'` for the recipe of the text"
        )
    tokenizer: str | Tokenizer = config.tokenizer
    initial = None
    if request.init_from != "scratch":
        initial = read_initial_weights(request.init_from, int(request.options.get("block_size", 0)))
        config, tokenizer = _adopt_network(config, initial, request, console), initial.tokenizer
    if group.is_main_process:
        run_files.require_no_run(config.out_dir, request.overwrite)
    data = open_data(request, config.dataset, tokenizer, group, console)
    batching.require_length(data.train, data.val, block_size=config.block_size, sampled_val=config.eval_iters > 0)
    config.require_divisible_by(group.world_size)
    config = text_recipe.fit_config(
        config, preset, data, given=request.options, keep_network=initial is not None, group=group, console=console
    )
    state = init_state(config, data.tokenizer, dataset_sha256=data.sha256, group=group)
    if initial:
        load_weights(state.model, initial.file)
    if state.model.expert is not None:
        with verification.open_verified(data) as (train, _):
            ngram_fitting.count_train_split(state.model.expert, state.config, train)
    if not group.is_main_process:
        return RunContext(state, data, Path())
    out_dir = run_files.create_run_dir(config.out_dir, data.name)
    stack.enter_context(run_files.lock_run(out_dir))
    run_files.require_no_run(config.out_dir, request.overwrite)  # again: preparing the data may have taken long
    if request.overwrite:
        run_files.delete_run_files(out_dir)
    if console and preset in recipe.RECIPES:
        console.note(text_recipe.describe_recipe(config, preset, data))
    return RunContext(state, data, out_dir)


def _choose_preset(request: TrainRequest, group: ProcessGroup) -> str:
    """The preset of a new run: the one that the call names; without it and without a file, one that fits the call."""
    if request.preset or request.from_file:
        return request.preset or ""
    if request.init_from != "scratch" and huggingface.is_gpt2(request.init_from):
        return "finetune"
    return recipe.default_preset(devices.resolve_device(str(request.explicit.get("device", "auto")), group).type)


def _adopt_network(
    config: TrainConfig, initial: InitialWeights, request: TrainRequest, console: Console | None
) -> TrainConfig:
    """The config with the network's shape of the initial weights. `UserError` if the call asks for another one."""
    network = initial.network
    stored = {**network.stored(), "tokenizer": initial.tokenizer.to_json()["type"]}
    require_same_network(initial.file.path, stored, request.explicit)
    shape = {name: getattr(network, name) for name in NetworkConfig.names_by_role(Role.NETWORK)}
    preset_options = presets.get_preset(request.preset) if request.preset else {}
    if any(shape.get(name, value) != value for name, value in preset_options.items()) and console:
        console.note(
            f"warning: the network has the shape of {request.init_from}, and not that of `preset={request.preset!r}`"
        )
    return config.replace(shape)


def read_initial_weights(init_from: str, block_size: int) -> InitialWeights:
    """The weights to start from; with a smaller `block_size` than theirs (0: theirs), the context is cropped to it."""
    file: TensorFile
    network: NetworkConfig
    if huggingface.is_gpt2(init_from):
        file, network, tokenizer = huggingface.import_gpt2(init_from)
        validate_weights(network, tokenizer.vocab_size, file)
    else:
        file, network, tokenizer = load_checkpoint(init_from, weights_only=True)
    if 0 < block_size < network.block_size:
        network = network.replace({"block_size": block_size})
        if "model.transformer.wpe.weight" in file.tensors:
            file.tensors["model.transformer.wpe.weight"] = file.tensors["model.transformer.wpe.weight"][:block_size]
    return InitialWeights(file, network, tokenizer)


def _resume(request: TrainRequest, group: ProcessGroup, stack: ExitStack, console: Console | None) -> RunContext:
    """A run that continues from its last checkpoint."""
    options = request.options_to_resume()
    out_dir, checkpoint = _find_run_to_resume(request, options, group, console)
    if group.is_main_process:
        stack.enter_context(run_files.lock_run(out_dir))
    saved = checkpoint_file.read_checkpoint(checkpoint)
    state = restore_state(saved, options, group=group)
    state.config.require_divisible_by(group.world_size)
    if "max_iters" in options and state.config.max_iters < state.step:
        raise UserError(
            f"{out_dir} is at step {state.step}, beyond max_iters={state.config.max_iters}; give a larger `max_iters`, "
            "or leave it out"
        )
    if console:
        _warn_about_changes(saved, state, console)
    data = _open_data_of_run(request, saved, state, out_dir, console)
    state.dataset_sha256 = data.sha256  # a run imported from nanoGPT does not know the hash of its text
    state.seconds = Run(out_dir).seconds_until(state.step)
    return RunContext(state, data, out_dir)


def _find_run_to_resume(
    request: TrainRequest, options: dict[str, Value], group: ProcessGroup, console: Console | None
) -> tuple[Path, Path]:
    """The folder of the run to resume, the newest run without `out_dir`, and the path of its last checkpoint."""
    if group.world_size > 1 and not options.get("out_dir"):
        raise UserError("several ranks can only resume a run that is named; give `out_dir`")
    out_dir = Path(str(options["out_dir"])) if options.get("out_dir") else run_folder.newest_run().out_dir
    checkpoint = run_folder.find_checkpoint(out_dir, "last")
    if console and not options.get("out_dir"):
        console.note(f"resuming the newest run: {out_dir}")
    if console and checkpoint.stem != "last":
        console.note(f"warning: {out_dir} has no last checkpoint; resuming from {checkpoint.stem}")
    if console and request.preset:
        console.note(
            "warning: a resumed run keeps its own options; `preset` has no effect (give the options themselves instead)"
        )
    if console and options.get("minutes"):
        console.note(
            "warning: a resumed run keeps its number of steps; `minutes` has no effect (give `max_iters` or "
            "`max_seconds` instead)"
        )
    return out_dir, checkpoint


def _warn_about_changes(saved: Checkpoint, state: TrainState, console: Console) -> None:
    """Say which options differ from the run so far, and whether it is still reproducible bit for bit."""
    before = read_config(saved, {})
    described = [
        f"{name} {getattr(before, name)} -> {getattr(state.config, name)}"
        for name in TrainConfig.names_by_role(Role.TRAINING)
        if getattr(before, name) != getattr(state.config, name) and name not in ("dataset", "init_from")
    ]
    if described:
        console.note(f"warning: changed options, from step {state.step} on: {', '.join(described)}")
    names = TrainConfig.names_by_role(Role.BITS)
    changed = [name for name in names if getattr(before, name) != getattr(state.config, name)]
    changed += ["device"] if saved.metadata.device != state.device.type else []
    changed += ["the number of ranks"] if saved.metadata.ranks != state.group.world_size else []
    if changed:
        console.note(
            f"warning: {', '.join(changed)} changed: the run continues, but not bit for bit as it would have without "
            "the change"
        )


def _open_data_of_run(
    request: TrainRequest, saved: Checkpoint, state: TrainState, out_dir: Path, console: Console | None
) -> Dataset:
    """The data that a run was trained on. `UserError` if it cannot be found, or is another text now."""
    sha256 = state.dataset_sha256 or None
    try:
        return open_data(request, state.config.dataset, state.tokenizer, state.group, console, sha256=sha256)
    except UserError as error:
        dataset = read_config(saved, {}).dataset
        raise UserError(
            f"{error} ({out_dir} was trained on {dataset!r}, as seen from the folder where it was started: resume it "
            "from there, or give the path of that text: `dataset`)"
        ) from error


def open_data(
    request: TrainRequest,
    dataset: str,
    tokenizer: str | Tokenizer,
    group: ProcessGroup,
    console: Console | None,
    *,
    sha256: str | None = None,
) -> Dataset:
    """The dataset to train on, prepared and verified: that of the request if it fits, else the one called `dataset`."""
    prepared = request.dataset
    data = preparation.open_or_prepare(
        prepared.path if prepared else dataset,
        tokenizer=tokenizer,
        sha256=sha256 or (prepared.sha256 if prepared else None),
        verify=request.verify and group.is_main_process,
        report=console.report if console else None,
    )
    if console:
        console.close()
    return data
