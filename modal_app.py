"""The pipeline on Modal: a text is prepared on a CPU, a network trained and sampled on a GPU, all stored on a Volume.

    modal run modal_app.py                                  prepare, train, sample
    modal run modal_app.py --dataset my.txt --gpu H100      your own text, another GPU
    modal run modal_app.py::train --max-iters=2000          one step of the pipeline, with any option of the library
    modal run modal_app.py::sample --start "ROMEO:"

The Functions below call `nanogpt_lite.cloud.jobs`, which works in the container's current folder and copies the results
to the Volume: /data/datasets/NAME and /data/runs/NAME (`nanogpt_lite.cloud.storage`). How training works is not shown
here; see `nanogpt_lite.trainer`.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.cloud.client.local_secrets import local_secrets
from nanogpt_lite.cloud.client.uploads import upload_text
from nanogpt_lite.cloud.client.volume_names import require_safe_name
from nanogpt_lite.cloud.gpu_prices import gpu_order, report_cost, single_gpus
from nanogpt_lite.cloud.messages import exit_on_error, modal_spelling
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import DataConfig, LoadConfig, RunConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.signatures import with_flags
from nanogpt_lite.errors import UserError

if TYPE_CHECKING:
    from nanogpt_lite.cloud.storage import Storage

VOLUME_NAME = "nanogpt-lite"
MOUNT = os.environ.get("NANOGPT_MOUNT", "/data")  # where containers see the Volume
GPU = os.environ.get("NANOGPT_GPU", "A100-40GB")  # a type, or TYPE:n, or several with commas, preferred first
SECRET_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN")  # sent from your environment or .env, if they are set
DAY = 24 * 60 * 60  # seconds; the longest timeout that Modal allows for one attempt


# An App is the group of Functions that `modal run` and `modal deploy` register.
app = modal.App("nanogpt-lite")

# A Volume is a file system that outlives containers. A container's changes are stored by `commit`, and it sees those
# of others after `reload`; `nanogpt_lite.cloud.storage` calls both.
volume = modal.Volume.from_name(VOLUME_NAME, create_if_missing=True, version=2)

# An Image is what a container's file system starts from. It is built once, and again when one of its steps changes.
image = (
    modal.Image.debian_slim(python_version="3.12")
    .pip_install_from_pyproject(str(Path(__file__).with_name("pyproject.toml")), optional_dependencies=["image"])
    .add_local_python_source("nanogpt_lite")  # copied when a container starts, so a change does not rebuild the Image
)

# A Secret sets environment variables in containers: here those of your machine, and one that is stored at Modal.
secret_name = os.environ.get("NANOGPT_SECRET")
secrets = [  # always two: a container runs this module too, and must register as many as were registered outside
    modal.Secret.from_dict(local_secrets(SECRET_VARIABLES) if modal.is_local() else {}),
    modal.Secret.from_name(secret_name) if secret_name else modal.Secret.from_dict({}),
]

# What all Functions have in common.
cpu_options: dict[str, Any] = {
    "image": image,
    "volumes": {MOUNT: volume},
    "secrets": secrets,
    "startup_timeout": 600,  # seconds; without it a container that cannot start would have `timeout` to try, a day
}
gpu_options: dict[str, Any] = {**cpu_options, "gpu": single_gpus(GPU)}


# A Function runs in a container of its own when it is called with `.remote()`, which `modal run FILE::NAME` does. Its
# parameters become flags of the command line; `with_flags` lists the library's options as such parameters.
@app.function(**cpu_options, cpu=2, timeout=DAY)
@with_flags(DataConfig, overwrite=bool)
@modal_spelling()
def prepare_data(dataset: str = DataConfig.dataset, **options: Any) -> str:
    """Write a text as token ids to the Volume, unless it is stored: a name, a URL, or an uploaded text."""
    from nanogpt_lite.cloud import jobs

    prepared = str(jobs.prepare_job(storage(), dataset, **options))
    print(prepared)
    return prepared


# Retries start a failed call again in a new container; a call whose container is preempted starts again in any case.
# Both resume from the last checkpoint. Modal cannot tell a mistake in the options from a crash and retries it too,
# hence 3 retries and not the 10 that Modal allows.
@app.function(
    **{**cpu_options, "gpu": gpu_order(GPU)},
    timeout=DAY,
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
    single_use_containers=True,
)
@with_flags(TrainConfig, preset=str, overwrite=bool, verify=bool)
@modal_spelling()
def train(**options: Any) -> dict[str, Any]:
    """Train a network, or resume the run `out_dir` (a name; by default the dataset's) from its last checkpoint.

    With several GPUs, each trains as a rank, on its share of every step.
    """
    from nanogpt_lite.cloud import jobs

    with report_cost():
        # the input id is the same in every attempt of a call, which is how a retry knows its own run
        run = jobs.train_job(storage(), owner=modal.current_input_id() or "", world_size=gpu_count(), **options)
    name = run.out_dir.name
    if not modal.is_local():
        print(
            f"download it: modal volume get --force {VOLUME_NAME} runs/{name} . && nanogpt-lite sample --out_dir {name}"
        )
    return {"run": name, "best_val_loss": run.best_val_loss}


@app.function(**gpu_options, timeout=DAY)
@with_flags(SampleConfig, out_dir=str)
@modal_spelling()
def sample(out_dir: str = "", **options: Any) -> list[str]:
    """Generate text from the run `out_dir` (a name; by default the newest run), printed token by token."""
    import nanogpt_lite as ng
    from nanogpt_lite.cli.commands import print_samples
    from nanogpt_lite.cloud import jobs

    with report_cost():
        return print_samples(ng.stream_batch(jobs.find_run(storage(), out_dir), **options))


@app.function(**gpu_options, timeout=DAY)
@with_flags(LoadConfig, out_dir=str, verify=bool)
@modal_spelling()
def evaluate(out_dir: str = "", **options: Any) -> dict[str, Any]:
    """The loss of the run `out_dir` (a name; by default the newest run) over the whole train and val splits."""
    from nanogpt_lite.cloud import jobs

    with report_cost():
        result = jobs.evaluate_job(storage(), out_dir, **options)
    print(json.dumps(result))
    return dict(result)


# A Function may call other Functions. This one runs on Modal too, so with `modal run --detach` a sweep continues when
# your machine is switched off.
@app.function(**cpu_options, timeout=DAY)
@with_flags(sweep_iters=int, gpu=str, preset=str, **dict.fromkeys(TrainConfig.names(), str))
@modal_spelling()
def sweep(sweep_iters: int = 200, gpu: str = "", preset: str = presets.RENTED_GPU_PRESET, **grid: str) -> str:
    """Train each combination of options, such as --learning-rate 3e-4,1e-3, for some steps; then the best to its end.

    The results of the trials are stored on the Volume before the best one is resumed: a second attempt of this call
    does not train the trials again.
    """
    call_id = (modal.current_input_id() or "here")[-8:].lower()
    name = require_safe_name(f"{grid.pop('out_dir', 'sweep')}-{call_id}", "run")
    trials = sweeps.make_trials(grid, preset=preset, steps=sweep_iters, name=name)
    trainer = with_gpu(gpu, train)
    stored = storage().read_text(f"sweeps/{name}.json")
    if not stored:
        stored = json.dumps(run_trials(trials, trainer))
        storage().write_text(f"sweeps/{name}.json", stored)
    results = json.loads(stored)
    table = sweeps.format_table(trials, results)
    print(table)
    storage().write_text(f"sweeps/{name}.md", table)
    trainer.remote(**sweeps.best_trial(trials, results).resume_options)
    return table


# A Cls is a class whose objects live in containers: `enter` runs once when a container starts, and each method call
# finds what it loaded. A container without calls for `scaledown_window` seconds is stopped.
@app.cls(**gpu_options, scaledown_window=300)
class Sampler:
    """A run that stays loaded between calls. After `modal deploy modal_app.py`, from any Python:

    Sampler = modal.Cls.from_name("nanogpt-lite", "Sampler")
    Sampler(run="shakespeare_char").sample.remote(start="ROMEO:", num_samples=3)
    """

    # A parameter is an argument of the constructor. Each value has containers of its own.
    run: str = modal.parameter(default="")

    @modal.enter()
    @modal_spelling()
    def load(self) -> None:
        """Load the run `run` (a name; by default the newest run)."""
        import nanogpt_lite as ng
        from nanogpt_lite.cloud import jobs

        self.loaded = ng.load(jobs.find_run(storage(), self.run))

    @modal.method()
    @modal_spelling()
    def sample(self, /, **options: Any) -> list[str]:
        """`num_samples` texts, each with its prompt. Any option of `ng.sample` is a keyword."""
        import nanogpt_lite as ng

        return ng.sample(self.loaded, **options)

    @modal.method()
    def stream(self, /, **options: Any) -> Iterator[str]:
        """One text in chunks, as they are generated."""
        import nanogpt_lite as ng

        with modal_spelling():
            yield from ng.stream(self.loaded, **options)


# A local entry point runs on your machine: `modal run modal_app.py` calls it.
@app.local_entrypoint()
@with_flags(RunConfig, gpu=str, preset=str, overwrite=bool, verify=bool)
@exit_on_error()
def main(gpu: str = "", dataset: str = DataConfig.dataset, **options: Any) -> None:
    """Prepare, train and sample. A local text is uploaded first."""
    trainer, sampler = with_gpu(gpu, train), with_gpu(gpu.partition(":")[0], sample)
    train_options = pick(options, *TrainConfig.names(), "preset", "overwrite", "verify")
    sample_options = {"num_samples": 3, "max_new_tokens": 300, **pick(options, *SampleConfig.names())}
    # a mistake in the options is reported before anything is uploaded or rented
    SampleConfig.from_dict(sample_options)
    preset = options.get("preset", presets.RENTED_GPU_PRESET)
    config = presets.config_with_preset(preset, pick(options, *TrainConfig.names()))
    config.require_divisible_by(max(1, int(gpu.partition(":")[2] or 1)))
    dataset = upload_text(volume, dataset)
    prepare_data.remote(dataset=dataset, **pick(options, "tokenizer", "overwrite"))
    trained = trainer.remote(dataset=dataset, **train_options)
    sampler.remote(out_dir=trained["run"], **sample_options)


def with_gpu(gpu: str, function: modal.Function[..., Any, Any]) -> modal.Function[..., Any, Any]:
    """The Function on another GPU than that of its decorator, if one is given."""
    if "," in gpu:
        raise UserError(f"--gpu takes one GPU; to give an order of preference, set NANOGPT_GPU={gpu}")
    return function.with_options(gpu=gpu) if gpu else function


def run_trials(
    trials: Sequence[sweeps.Trial], trainer: modal.Function[..., Any, dict[str, Any]]
) -> list[sweeps.Result]:
    """The results of the trials of a sweep, which train at the same time, each in a container of its own."""
    for dataset in {str(trial.first_options.get("dataset", DataConfig.dataset)) for trial in trials}:
        prepare_data.remote(dataset=dataset)  # once, not in the container of each trial
    calls = [trainer.spawn(**trial.first_options) for trial in trials]  # `spawn` returns before the call has ended
    return [trial_result(call) for call in calls]


def trial_result(call: modal.FunctionCall[dict[str, Any]]) -> sweeps.Result:
    """The best val loss of a training, or the error that ended it."""
    try:
        return float(call.get()["best_val_loss"])
    except Exception as error:  # of any kind: a failed trial must not end the sweep
        return f"{type(error).__name__}: {error}"


def pick(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options that have one of these names."""
    return {name: value for name, value in options.items() if name in names}


def storage() -> "Storage":
    """Where data and runs are stored: on the Volume; in the current folder if a Function is called by `.local()`."""
    from nanogpt_lite.cloud.storage import LocalStorage, VolumeStorage

    return LocalStorage() if modal.is_local() else VolumeStorage(Path(MOUNT), volume)


def gpu_count() -> int:
    """The number of ranks: one for each GPU of the container; one if the Function is called by `.local()`."""
    import torch

    count = os.environ.get("NANOGPT_RANKS") or max(1, torch.cuda.device_count())  # tests set it: they have no GPU
    return 1 if modal.is_local() else int(count)
