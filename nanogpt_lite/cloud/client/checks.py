"""Checks of a call against what is stored on the Volume, on this machine: runs, their networks, their steps.

How the flags of a call become a plan is in `plans`.
"""

import os
from collections.abc import Collection, Mapping
from typing import Any

from nanogpt_lite.cloud.client.dataset_texts import Text
from nanogpt_lite.cloud.client.local_secrets import local_secrets
from nanogpt_lite.cloud.client.rental import MINUTE, Rental, format_seconds
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.cloud.client.volume_names import run_exists_error, run_name, run_reserved_error
from nanogpt_lite.config import presets, recipe
from nanogpt_lite.config.options import DataConfig, LoadConfig, SampleConfig, TrainConfig, read_prompt
from nanogpt_lite.config.schema import Role
from nanogpt_lite.data import sources
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers import hub

START_SECONDS = 60  # of a training beside its steps: its start, the steps that are timed, its result


def check_sampling(options: Mapping[str, Any]) -> SampleConfig:
    """The options of sampling; a prompt in a file of this machine is read."""
    settings = SampleConfig.from_dict(options)
    return settings.replace({"start": read_prompt(settings.start)})


def default_preset(dataset: str, init_from: str) -> str:
    """The preset of a new run without `preset`, for all devices; empty: the library chooses the one for the device.

    So the text of the Modal tutorial is trained on as there, and any other one with the recipe that fits the text. The
    container decides by this too.
    """
    if init_from in hub.GPT2_REPOS:
        return "finetune"
    return presets.TUTORIAL_PRESET if sources.dataset_name(dataset) == DataConfig.dataset else ""


def preset_of_new_run(options: Mapping[str, Any]) -> str:
    """The preset of a new run on a rented GPU with these explicit options, none of which is `preset`."""
    dataset, init_from = options.get("dataset", DataConfig.dataset), options.get("init_from", "scratch")
    device = "cpu" if options.get("device") == "cpu" else "cuda"
    return default_preset(dataset, init_from) or recipe.default_preset(device)


def require_minutes_usable(config: TrainConfig, given: Collection[str], rental: Rental) -> None:
    """`UserError` if `minutes` cannot be used with what is rented, or with the explicit options: `given`, their names.

    A retry of the call, which resumes its run, does not need it.
    """
    config.require_minutes_usable(given, rental.world_size)
    if config.minutes * MINUTE + START_SECONDS > rental.seconds:
        raise UserError(
            f"`minutes={config.minutes:g}` is too much for the {format_seconds(rental.seconds)} that the call may take "
            "with its start; give fewer `minutes`, or a longer --timeout (if --max-dollars is given, more dollars)"
        )


def check_out_dir(stored: StoredFiles, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes about the folder of a new run. `UserError` if there is a run in it that is not to be replaced."""
    name, overwrite = options.get("out_dir", ""), options.get("overwrite", False)
    if overwrite and not name:
        raise UserError("`overwrite` replaces the run of a name; give the name (`out_dir`), or leave `overwrite` out")
    if name and not overwrite and stored.is_reserved(name) and not stored.checkpoints(name):
        raise run_reserved_error(name)
    if not name or not stored.checkpoints(name):
        return ()
    if not overwrite:
        raise run_exists_error(name)
    return (f"warning: replacing the run {name} ({_describe(stored, name)}); none of its options are kept",)


def _describe(stored: StoredFiles, run: str) -> str:
    records = stored.metrics(run)
    step = records[-1]["step"] if records else 0
    return f"dataset {stored.run_dataset(run) or 'unknown'}, {step} steps"


def require_steps_left(stored: StoredFiles, name: str, config: TrainConfig, options: Mapping[str, Any]) -> None:
    """`UserError` if a run that is to be resumed has no steps left."""
    steps = [record["step"] for record in stored.metrics(name)]
    step = steps[-1] if steps else 0
    if "max_iters" in options and config.max_iters < step:
        raise UserError(
            f"the run {name!r} is at step {step}, beyond max_iters={config.max_iters}; give a larger `max_iters`, or "
            "leave it out"
        )
    if step >= config.max_iters:
        raise UserError(
            f"the run {name!r} has all of its {config.max_iters} steps; to make it longer, give a larger `max_iters`"
        )


def require_text_of_run(stored: StoredFiles, run: str, text: Text) -> None:
    """`UserError` if a text of this machine is another one than the run was trained on."""
    sha256 = stored.run_sha256(run)
    if sha256 and text.sha256 != sha256:
        raise UserError(
            f"{text.local_path} is not the text that the run {run!r} was trained on (SHA-256 {text.sha256[:12]}…, "
            f"expected {sha256[:12]}…); restore that text, or start a new run from the weights: `init_from={run!r}`"
        )


def require_data_of_run(stored: StoredFiles, run: str) -> None:
    """`UserError` if the text that a run was trained on is not on the Volume any more."""
    dataset, sha256 = stored.run_dataset(run), stored.run_sha256(run)
    is_other = sha256 and stored.dataset_sha256(dataset) not in ("", sha256)
    config = stored.run_config(run)
    is_built_in = config is not None and config.dataset in sources.DATASET_NAMES
    is_gone = not is_built_in and dataset not in stored.datasets
    if dataset and (is_other or is_gone):
        state = "is not the one" if is_other else "is not on the Volume, or not the one"
        raise UserError(
            f"the text {dataset!r} {state} that the run {run!r} was trained on; give that text, from this machine: "
            "`dataset`"
        )


def require_same_network(run: str, config: TrainConfig, options: Mapping[str, Any]) -> None:
    """`UserError` if an option that is given needs another network than the one of the run."""
    automatic = {"tokenizer": "auto", "rope_theta": 0.0}
    stored = config.stored()
    differences = [
        f"{name}={options[name]} (the run has {stored[name]})"
        for name in network_names()
        if name in options and name != "tokenizer" and options[name] not in (stored[name], automatic.get(name))
    ]
    if differences:
        raise UserError(
            f"the run {run!r} holds another network than these options describe: {', '.join(differences)}; leave them "
            "out, or start a new run"
        )


def existing_run(stored: StoredFiles, options: Mapping[str, Any], settings: LoadConfig) -> str:
    """The run to load. `UserError` if there is none, or if it does not have the checkpoint."""
    run = stored.require_run(run_name(options.get("out_dir", "")))
    checkpoints = stored.checkpoints(run)
    if settings.checkpoint not in ("best", "last", *checkpoints):
        raise UserError(
            f"the run {run!r} has no checkpoint {settings.checkpoint!r}; give one of {', '.join(checkpoints)} as "
            "`checkpoint`"
        )
    return run


def require_wandb_key(options: Mapping[str, Any]) -> None:
    """`UserError` if the options need the key of Weights & Biases, and no secret has it."""
    has_key = local_secrets(("WANDB_API_KEY",))["WANDB_API_KEY"] or os.environ.get("NANOGPT_SECRET")
    if options.get("wandb_log") and not has_key:
        raise UserError(
            "`wandb_log` needs a key; give it in the environment or in a file .env, as WANDB_API_KEY, or set "
            "NANOGPT_SECRET"
        )


def network_names() -> list[str]:
    """The options that decide the network."""
    return TrainConfig.names_by_role(Role.NETWORK)
