"""The road on Modal: a text is prepared on a CPU, a network trained and sampled on a GPU, all kept on a Volume.

    modal run modal_app.py                                  prepare, train, sample
    modal run modal_app.py --dataset my.txt --gpu H100      a text of yours, another GPU
    modal run modal_app.py::train --max-iters=2000          one step of it, with any option of the library
    modal run modal_app.py::sample --start "ROMEO:"

Nothing is computed here. The functions call the library, which works in the container's own folder and keeps what
it makes on the Volume: /data/datasets/NAME and /data/runs/NAME (`nanogpt_lite.homes`).
"""

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import modal

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import DataConfig, LoadConfig, RunConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.signatures import with_flags
from nanogpt_lite.errors import UserError

if TYPE_CHECKING:
    from nanogpt_lite.cloud.storage import LocalStorage

VOLUME = "nanogpt-lite"
MOUNT = os.environ.get("NANOGPT_MOUNT", "/data")
GPU = os.environ.get("NANOGPT_GPU", "A100-40GB")  # a type, or TYPE:n, or several with commas, preferred first
SECRETS = ("WANDB_API_KEY", "HF_TOKEN")  # of yours, from the environment or .env; each may be missing
DAY = 24 * 60 * 60  # seconds; the longest that Modal lets an attempt run

# Dollars a second, from https://modal.com/pricing as listed in May 2026. CPU and memory come on top.
PRICES = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "RTX-PRO-6000": 0.000842,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}


def choices(gpus: str) -> list[str]:
    """The GPUs to choose from, in order."""
    return [name.strip() for name in gpus.split(",")]


def one_of_each(gpus: str) -> list[str]:
    """The same for what has use for one GPU only: A100:4 is four ranks for training, and one to sample."""
    return [name.partition(":")[0] for name in choices(gpus)]


def own_secrets() -> dict[str, str | None]:
    """The secrets as they are set where the app is started; in a container they come from Modal."""
    if not modal.is_local():
        return {}
    in_file: dict[str, str | None] = {}
    if Path(".env").is_file():
        from dotenv import dotenv_values

        in_file = dotenv_values(".env")
    return {name: os.environ.get(name) or in_file.get(name) for name in SECRETS}


app = modal.App("nanogpt-lite")
volume = modal.Volume.from_name(VOLUME, create_if_missing=True, version=2)
image = (
    modal.Image.debian_slim(python_version="3.12")
    .pip_install_from_pyproject(str(Path(__file__).with_name("pyproject.toml")), optional_dependencies=["image"])
    .add_local_python_source("nanogpt_lite")
)

named = os.environ.get("NANOGPT_SECRET")  # a secret that is kept at Modal, besides
secrets = [  # two in any case: Modal wants as many here as it finds in a container
    modal.Secret.from_dict(own_secrets()),
    modal.Secret.from_name(named) if named else modal.Secret.from_dict({}),
]

# a container that does not start must not wait for a day
on_volume: dict[str, Any] = {
    "image": image,
    "volumes": {MOUNT: volume},
    "secrets": secrets,
    "startup_timeout": 600,
}
on_gpu: dict[str, Any] = {**on_volume, "gpu": one_of_each(GPU)}


@app.function(**on_volume, cpu=2, timeout=DAY)
@with_flags(DataConfig, overwrite=bool)
def prepare_data(dataset: str = DataConfig.dataset, **options: Any) -> str:
    """Write a text as token ids to the Volume, unless it is there: a name, a URL, or a text that was sent up."""
    from nanogpt_lite.cloud import jobs

    prepared = str(jobs.prepare_job(home(), dataset, **options))
    print(prepared)
    return prepared


# A mistake in the options is tried again too, since Modal cannot tell it from a crash; hence not the 10 it allows.
@app.function(
    **{**on_gpu, "gpu": choices(GPU)},
    timeout=DAY,
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
    single_use_containers=True,
)
@with_flags(TrainConfig, preset=str, overwrite=bool)
def train(**options: Any) -> dict[str, Any]:
    """Train a network, or go on with the run `out_dir` (a name; the dataset's if there is none) from its last state.

    On several GPUs each is a rank, with a share of every step.
    """
    from nanogpt_lite.cloud import jobs

    with bill():
        run = jobs.train_job(home(), owner=modal.current_input_id() or "", count=gpu_count(), **options)
    name = run.out_dir.name
    if not modal.is_local():
        print(f"bring it home: modal volume get --force {VOLUME} runs/{name} . && nanogpt-lite sample --out_dir {name}")
    return {"run": name, "best_val_loss": run.best_val_loss}


@app.function(**on_gpu, timeout=DAY)
@with_flags(SampleConfig, out_dir=str)
def sample(out_dir: str = "", **options: Any) -> list[str]:
    """Draw text from the run `out_dir` (a name; the newest if there is none), shown as it is made."""
    import nanogpt_lite as ng
    from nanogpt_lite.cli.commands import print_samples
    from nanogpt_lite.cloud import jobs

    with bill():
        return print_samples(ng.pieces(jobs.find_run(home(), out_dir), **options))


@app.function(**on_gpu, timeout=DAY)
@with_flags(LoadConfig, out_dir=str)
def evaluate(out_dir: str = "", **options: Any) -> dict[str, Any]:
    """The loss of the run `out_dir` (a name; the newest if there is none) over both whole splits of its data."""
    from nanogpt_lite.cloud import jobs

    with bill():
        result = jobs.evaluate_job(home(), out_dir, **options)
    print(json.dumps(result))
    return result


@app.function(**on_volume, timeout=DAY)
@with_flags(sweep_iters=int, gpu=str, preset=str, **dict.fromkeys(TrainConfig.names(), str))
def sweep(sweep_iters: int = 200, gpu: str = "", preset: str = presets.RENTED_GPU_PRESET, **texts: str) -> str:
    """Train each combination of options, as of --learning-rate 3e-4,1e-3, for a while; then the best one to its end.

    It runs on Modal itself (its containers call others), so that with --detach it needs no laptop to stay on. What
    it found is on the Volume before the best one goes on: started again, it does not try everything anew.
    """
    from nanogpt_lite.cloud import storage

    call = (modal.current_input_id() or "here")[-8:].lower()
    name = storage.require_safe_name(f"{texts.pop('out_dir', 'sweep')}-{call}", "run")
    tried = sweeps.make_trials(texts, preset=preset, steps=sweep_iters, name=name)
    trainer = on(gpu, train)
    found = home().read(f"sweeps/{name}.json")
    if not found:
        for dataset in {str(trial.begin.get("dataset", DataConfig.dataset)) for trial in tried}:
            prepare_data.remote(dataset=dataset)  # once, not in each container
        calls = [trainer.spawn(**trial.begin) for trial in tried]
        found = json.dumps([loss_of(call) for call in calls])
        home().write(f"sweeps/{name}.json", found)
    results = json.loads(found)
    table = sweeps.format_table(tried, results)
    print(table)
    home().write(f"sweeps/{name}.md", table)
    trainer.remote(**sweeps.best_trial(tried, results).go_on)
    return table


@app.cls(**on_gpu, scaledown_window=300)
class Sampler:
    """A run that stays loaded between calls. After `modal deploy modal_app.py`, from any Python:

    Sampler = modal.Cls.from_name("nanogpt-lite", "Sampler")
    Sampler(run="shakespeare_char").sample.remote(start="ROMEO:", num_samples=3)
    """

    run: str = modal.parameter(default="")

    @modal.enter()
    def load(self) -> None:
        """Load the run once."""
        import nanogpt_lite as ng
        from nanogpt_lite.cloud import jobs

        self.loaded = ng.load(jobs.find_run(home(), self.run))

    @modal.method()
    def sample(self, /, **options: Any) -> list[str]:
        """`num_samples` texts, each with its prompt. Any option of `ng.sample` is a keyword."""
        import nanogpt_lite as ng

        return ng.sample(self.loaded, **options)

    @modal.method()
    def stream(self, /, **options: Any) -> Iterator[str]:
        """One text as it is made, piece by piece."""
        import nanogpt_lite as ng

        yield from ng.stream(self.loaded, **options)


@app.local_entrypoint()
@with_flags(RunConfig, gpu=str, preset=str, overwrite=bool)
def main(gpu: str = "", dataset: str = DataConfig.dataset, **options: Any) -> None:
    """Prepare, train and sample; a text of yours is sent up first."""
    trainer, sampler = on(gpu, train), on(gpu.partition(":")[0], sample)
    training = chosen(options, *TrainConfig.names(), "preset", "overwrite")
    sampling = {"num_samples": 3, "max_new_tokens": 300, **chosen(options, *SampleConfig.names())}
    SampleConfig.from_dict(sampling)  # a mistake is told before anything is sent or rented
    asked = {
        **presets.get_preset(options.get("preset", presets.RENTED_GPU_PRESET)),
        **chosen(options, *TrainConfig.names()),
    }
    TrainConfig.from_dict(asked).require_divisible_by(max(1, int(gpu.partition(":")[2] or 1)))
    dataset = send_up(dataset)
    prepare_data.remote(dataset=dataset, **chosen(options, "tokenizer", "overwrite"))
    trained = trainer.remote(dataset=dataset, **training)
    sampler.remote(out_dir=trained["run"], **sampling)


def on(gpu: str, function: modal.Function[..., Any, Any]) -> modal.Function[..., Any, Any]:
    """The function on another GPU than it asks for, if one is named."""
    if "," in gpu:
        raise UserError(f"--gpu takes one GPU; to give an order of preference, set NANOGPT_GPU={gpu}")
    return function.with_options(gpu=gpu) if gpu else function


def send_up(dataset: str) -> str:
    """Put a text of yours (a file, a folder, a glob) on the Volume, as one file; what to call the dataset there."""
    from nanogpt_lite.cloud import storage
    from nanogpt_lite.data import sources

    if dataset in sources.DATASET_NAMES or not any(glob.iglob(str(Path(dataset).expanduser()), recursive=True)):  # noqa: PTH207
        return dataset  # a name or a URL
    name = f"{storage.UPLOADS_DIR}/{storage.require_safe_name(sources.dataset_name(dataset), 'dataset')}.txt"
    with TemporaryFile() as file:
        for piece in sources.find_source(dataset).read_chunks():
            file.write(piece.encode())
        file.seek(0)
        with volume.batch_upload(force=True) as batch:
            batch.put_file(file, name)
    return name


def loss_of(call: modal.FunctionCall[dict[str, Any]]) -> float | str:
    """The val loss that a training came to, or why it failed."""
    try:
        return float(call.get()["best_val_loss"])
    except Exception as error:  # whatever went wrong in one trial must not end the others
        return f"{type(error).__name__}: {error}"


def chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of the options that have one of these names."""
    return {name: value for name, value in options.items() if name in names}


def home() -> "LocalStorage":
    """Where data and runs are kept: on the Volume, or under `.local()` where they are made."""
    from nanogpt_lite.cloud import storage

    return storage.LocalStorage() if modal.is_local() else storage.VolumeStorage(Path(MOUNT), volume)


def gpu_count() -> int:
    """How many ranks train: one for each GPU of the container, one where the app runs without Modal."""
    import torch

    there = os.environ.get("NANOGPT_RANKS") or max(1, torch.cuda.device_count())  # the tests have none to count
    return 1 if modal.is_local() else int(there)


@contextmanager
def bill() -> Iterator[None]:
    """Say for how long the GPU was used, and what that costs about."""
    import torch

    begun = time.monotonic()
    try:
        yield
    finally:
        seconds, count = time.monotonic() - begun, torch.cuda.device_count()
        device = torch.cuda.get_device_name() if count else "no GPU"
        price = price_of(device)
        cost = f", about ${price * count * seconds:.2f}" if price else ""
        print(f"{max(count, 1)} x {device} for {seconds:.0f} s{cost}")


def price_of(device: str) -> float | None:
    """Dollars a second for a GPU by the name that its maker gives it, if it is in the list."""
    by_length = sorted(PRICES, key=len, reverse=True)  # an A100 is no A10, an L40S no L4
    found = (PRICES[name] for name in by_length if all(word in device for word in name.split("-")))
    return next(found, None)
