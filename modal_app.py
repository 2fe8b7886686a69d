"""The pipeline on Modal: a text is prepared on a CPU, a network trained and sampled on a GPU, all stored on a Volume.

    modal run modal_app.py                                  prepare, train, sample
    modal run modal_app.py --dataset my.txt --gpu H100      your own text, another GPU
    modal run modal_app.py::train --max-iters=2000          one step of the pipeline, with any option of the library
    modal run modal_app.py::sample --start "ROMEO:"
    modal deploy modal_app.py::web_app                      an API in the form of OpenAI's, for a run
    modal run modal_app.py::benchmark                       how fast it is on a GPU, beside nanoGPT

First what containers are made of, then the Functions that run in them, then the commands, which run on your machine:
they check what you ask for, say what it costs, and call the Functions. How training works is not shown here: see
`nanogpt_lite.trainer`. Uploads, checks and prices are in `nanogpt_lite.cloud.client`, the rest in `nanogpt_lite.cloud`.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.cloud.client import benchmark_tables, entry_points, housekeeping, plans, rental
from nanogpt_lite.cloud.client.dataset_texts import upload_texts
from nanogpt_lite.cloud.client.local_secrets import secrets_to_send
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.cloud.messages import errors_as_results, exit_on_error, modal_spelling, result_or_error
from nanogpt_lite.config.options import DataConfig, LoadConfig, RunConfig, SampleConfig, TrainConfig
from nanogpt_lite.errors import UserError

GPU = os.environ.get("NANOGPT_GPU") or "A100-40GB"  # a type, or TYPE:n, or several with commas, preferred first
MINUTES, HOURS = 60, 60 * 60  # in seconds, as Modal counts

# An App is the group of Functions that `modal run` and `modal deploy` register.
app = modal.App("nanogpt-lite")

# An Image is what a container's file system starts from. Modal builds it once, and again when one of its steps changes;
# with exact versions, a build in a year is the same. A text is prepared without PyTorch: a small Image starts faster.
# Source code is copied when a container starts, so a change of it does not rebuild the Image.
small_image = modal.Image.debian_slim(python_version="3.12").uv_pip_install(
    "numpy==2.4.6", "requests==2.34.2", "filelock==4.2.12", "tokenizers==0.23.3"
).add_local_python_source("nanogpt_lite")  # fmt: skip
gpu_packages = modal.Image.debian_slim(python_version="3.12").uv_pip_install(
    "torch==2.13.0", "numpy==2.4.6", "requests==2.34.2", "safetensors==0.8.0", "tqdm==4.70.1", "filelock==4.2.12",
    "tokenizers==0.23.3", "huggingface_hub==2.4.0", "matplotlib==3.11.2", "tensorboard==2.21.0", "wandb==0.31.0",
)  # fmt: skip
gpu_image = gpu_packages.add_local_python_source("nanogpt_lite")

# A Volume is a file system that outlives containers, which see it as a folder. What a container writes there is stored
# by `volume.commit()`; it sees what others stored after `volume.reload()`. `nanogpt_lite.cloud.storage` does both.
volume = modal.Volume.from_name("nanogpt-lite", create_if_missing=True, version=2)

# What `--compile True` compiled has a Volume of its own, which only `train` mounts: it is code, and runs in the next
# container that reads it.
compiled = modal.Volume.from_name("nanogpt-lite-compiled", create_if_missing=True, version=2)

# A Dict is a dictionary that all containers share. Here it gives each call of `train` a run of its own, also if several
# start at once, and tells a later attempt of the same call which run that was.
shared = modal.Dict.from_name("nanogpt-lite-calls", create_if_missing=True)
stored_files = functools.partial(StoredFiles, volume, shared)  # what your machine sees of both

# A Secret sets environment variables in containers: here those of your machine, and one that is stored at Modal. The
# list must have the same length everywhere, because containers import this file too.
stored_secret = os.environ.get("NANOGPT_SECRET")
secrets = [
    modal.Secret.from_dict(secrets_to_send("WANDB_API_KEY", "HF_TOKEN") if modal.is_local() else {}),
    modal.Secret.from_name(stored_secret) if stored_secret else modal.Secret.from_dict({}),
]


# A Function runs in a container when it is called with `.remote()` or `.spawn()`. What it imports inside is needed
# there only: your machine has no PyTorch. Its `name` is free in Python for the command, which is further below.
@app.function(
    name="prepare_data", image=small_image, volumes={"/data": volume}, cpu=2, timeout=15 * MINUTES, startup_timeout=600
)
@errors_as_results
def prepare_on_cpu(dataset: str = DataConfig.dataset, **options: Any) -> str:
    """Write a text as token ids to the Volume, unless it is stored: a name, a URL, or an uploaded text."""
    from nanogpt_lite.cloud import container, prepare_job

    return str(prepare_job.prepare_and_push(container.open_storage(volume), dataset, verify=True, **options))


# GPUs are preemptible: Modal may end a container at any time, with 30 seconds to save, and starts its call again in a
# new one. Retries do the same after a crash. Each attempt resumes from the last checkpoint on the Volume. `cpu` cores
# and `memory` (MiB) are reserved, so that the GPU does not wait for its host. `timeout` is for one attempt.
@app.function(
    name="train", image=gpu_image, volumes={"/data": volume, "/compiled": compiled}, secrets=secrets,
    gpu=rental.gpu_order(GPU), cpu=4, memory=8192, timeout=2 * HOURS + 5 * MINUTES, startup_timeout=600,
    retries=modal.Retries(max_retries=3, initial_delay=0.0), single_use_containers=True,
)  # fmt: skip
@errors_as_results
def train_on_gpu(time_limit: float = 2 * HOURS, **options: Any) -> dict[str, Any]:
    """Train a network, for at most `time_limit` seconds over all attempts. Several GPUs share each step."""
    from nanogpt_lite.cloud import container, jobs

    call, storage = container.current_call(shared, options), container.open_storage(volume)
    with container.keep_compiled(compiled, options):
        return dict(jobs.train_job(storage, call, **container.training_options(options, time_limit)))


@app.function(
    name="sample", image=gpu_image, volumes={"/data": volume}, gpu=rental.single_gpus(GPU), cpu=4, memory=8192,
    timeout=15 * MINUTES, startup_timeout=600,
)  # fmt: skip
@errors_as_results
def sample_on_gpu(out_dir: str = "", **options: Any) -> list[str]:
    """Generate text from the run `out_dir` (a name; by default the newest run), printed token by token."""
    from nanogpt_lite.cloud import container, jobs

    return jobs.sample_job(container.open_storage(volume), out_dir, **container.on_gpu(options))


@app.function(
    name="evaluate", image=gpu_image, volumes={"/data": volume}, gpu=rental.single_gpus(GPU), cpu=4, memory=8192,
    timeout=15 * MINUTES, startup_timeout=600,
)  # fmt: skip
@errors_as_results
def evaluate_on_gpu(out_dir: str = "", **options: Any) -> dict[str, Any]:
    """The loss of the run `out_dir` (a name; by default the newest run) over the whole train and val splits."""
    from nanogpt_lite.cloud import container, jobs

    return dict(jobs.evaluate_job(container.open_storage(volume), out_dir, **container.on_gpu(options)))


# A Function may call others. `.spawn()` starts a call and returns at once; `.get()` waits for its result, in any
# process that knows its id. This one runs on Modal too, so that with `modal run --detach` a sweep continues when your
# machine is switched off. CPUs can be rented so that they are not preempted.
@app.function(
    name="sweep", image=small_image, volumes={"/data": volume}, nonpreemptible=True, timeout=24 * HOURS,
    retries=modal.Retries(max_retries=3, initial_delay=0.0), startup_timeout=600,
)  # fmt: skip
@errors_as_results
def sweep_on_cpu(
    out_dir: str = "sweep", gpu: str = "", time_limit: float = 2 * HOURS, preset: str = "",
    sweep_iters: int | None = None, **grid: Any,
) -> str:  # fmt: skip
    """Train each combination of options, such as learning_rate="1e-4,1e-3", some steps; then the best to its end."""
    from nanogpt_lite.cloud import calls, container, prepare_job

    storage = container.open_storage(volume)
    text_size = functools.cache(functools.partial(prepare_job.text_size, storage))
    name = f"{out_dir}-{(modal.current_function_call_id() or 'here')[-8:].lower()}"
    trials = sweeps.make_trials(grid, name=name, preset=preset, sweep_iters=sweep_iters, text_size=text_size)
    trainer = train_on_gpu.with_options(**rental.training_options(gpu, time_limit))
    start = functools.partial(trainer.spawn, time_limit=time_limit)
    get, trained_by = modal.FunctionCall.from_id, functools.partial(calls.reserved_by, shared)
    return sweeps.run_sweep(name, trials, storage, start=start, get=get, trained_by=trained_by)


# A Cls is a class whose objects live in containers: `enter` runs once when a container starts, and each method call
# finds what it loaded. A container without calls for `scaledown_window` seconds is stopped.
@app.cls(
    image=gpu_image, volumes={"/data": volume}, gpu=rental.single_gpus(GPU), cpu=4, memory=8192, scaledown_window=300
)
class Sampler:
    """A run that stays loaded between calls. docs/modal.md shows how any program calls it, once it is deployed."""

    # A parameter is an argument of the constructor. Each value has containers of its own.
    run: str = modal.parameter(default="")
    device: str = modal.parameter(default="cuda")

    @modal.enter()
    def load(self) -> None:
        """Load the run `run` (a name; by default the newest run). An error here would start the container again."""
        from nanogpt_lite.cloud import container, jobs

        self.loaded = jobs.load_job(container.open_storage(volume), self.run, device=self.device)

    @modal.method()
    @modal_spelling()
    def sample(self, /, **options: Any) -> list[str]:
        """`num_samples` texts, each with its prompt. Any option of `ng.sample` is a keyword."""
        import nanogpt_lite as ng

        return ng.sample(result_or_error(self.loaded), **options)

    @modal.method()
    def stream(self, /, **options: Any) -> Iterator[str]:
        """One text in chunks, as they are generated."""
        import nanogpt_lite as ng

        with modal_spelling():
            yield from ng.stream(result_or_error(self.loaded), **options)


def rent(function: modal.Function[..., Any, Any], plan: plans.Plan) -> Any:
    """Upload and prepare the texts of a call, then run it in a container. Its result."""
    plan.show()
    upload_texts(volume, plan.texts)
    for text in plan.texts_to_prepare():
        result_or_error(prepare_on_cpu.remote(dataset=text.dataset, tokenizer=text.tokenizer))
    plan.check_prepared_texts(stored_files())
    # with `.remote()`, retries would be started by your machine, which with --detach may be switched off
    call = function.with_options(**plan.function_options).spawn(**plan.options)
    try:
        return result_or_error(call.get())
    except modal.exception.FunctionTimeoutError as error:
        raise UserError(f"{error}; give a longer --timeout, or ask for less") from None


# A local entry point runs on your machine, when `modal run` names it. Each of these first checks what you ask for, and
# ends in one line if something is wrong: nothing is rented then. `command_flags` lists options of the library as flags,
# beside those of what is rented: --gpu, --timeout, --max-dollars.


@app.local_entrypoint()
@entry_points.command_flags(RunConfig, preset=str, overwrite=bool, verify=bool)
def main(**flags: Any) -> None:
    """Prepare, train and sample: `modal run modal_app.py`."""
    training, sampling = plans.plan_pipeline(stored_files(), flags, gpu=GPU)
    trained = housekeeping.report_training(volume, training, rent(train_on_gpu, training))
    rent(sample_on_gpu, sampling.with_run(trained["run"]))


@entry_points.command_of(prepare_on_cpu)
@app.local_entrypoint()
@entry_points.command_flags(DataConfig, overwrite=bool)
def prepare_data(**flags: Any) -> str:
    """Write a text as token ids to the Volume."""
    return housekeeping.report(rent(prepare_on_cpu, plans.plan_preparation(stored_files(), flags)))


@entry_points.command_of(train_on_gpu)
@app.local_entrypoint()
@entry_points.command_flags(TrainConfig, preset=str, overwrite=bool, verify=bool)
def train(**flags: Any) -> str:
    """Train a network, in a new run, or resume one."""
    plan = plans.plan_training(stored_files(), flags, gpu=GPU)
    return housekeeping.report(housekeeping.report_training(volume, plan, rent(train_on_gpu, plan)))


@entry_points.command_of(sample_on_gpu)
@app.local_entrypoint()
@entry_points.command_flags(SampleConfig, out_dir=str)
def sample(**flags: Any) -> str:
    """Generate text from a run. The container prints it; `modal run -w FILE` also writes it to a file."""
    return "\n---------------\n".join(rent(sample_on_gpu, plans.plan_sampling(stored_files(), flags, gpu=GPU)))


@entry_points.command_of(evaluate_on_gpu)
@app.local_entrypoint()
@entry_points.command_flags(LoadConfig, out_dir=str, dataset=str, verify=bool)
def evaluate(**flags: Any) -> str:
    """The loss of a run."""
    return housekeeping.report(rent(evaluate_on_gpu, plans.plan_evaluation(stored_files(), flags, gpu=GPU)))


@entry_points.command_of(sweep_on_cpu)
@app.local_entrypoint()
@entry_points.command_flags(sweep_iters=int, preset=str, **dict.fromkeys(TrainConfig.names(), str))
def sweep(**flags: Any) -> str:
    """Train each combination of options for some steps, then the best to its end. The container prints the table."""
    return str(rent(sweep_on_cpu, plans.plan_sweep(stored_files(), flags, gpu=GPU)))


@app.local_entrypoint()
@exit_on_error()
def runs() -> str:
    """List the runs on the Volume, with step, loss, GPU time and cost."""
    return housekeeping.report(housekeeping.format_runs(stored_files()))


@app.local_entrypoint()
@exit_on_error()
def bring(out_dir: str = "", to: str = "", overwrite: bool = False) -> str:
    """Download a run, by default the newest, into runs/modal-NAME."""
    folder = housekeeping.bring_run(stored_files(), volume, out_dir, to=to, overwrite=overwrite)
    return housekeeping.report(f"sample from it: nanogpt-lite sample --out_dir {folder}")


@app.local_entrypoint()
@exit_on_error()
def delete(out_dir: str) -> str:
    """Delete a run from the Volume."""
    return housekeeping.report(f"deleted {housekeeping.delete_run(stored_files(), volume, shared, out_dir)}")


# A web endpoint is an ASGI application with a URL, for which Modal starts a container when a request comes. Here it is
# the server of `nanogpt-lite serve`, for one run, in an App of its own: `modal run` needs no URL. Modal's proxy lets
# those in who send a key of the workspace. A memory snapshot keeps what was imported before it, for later containers.
WEB_GPU, WEB_RUN = os.environ.get("NANOGPT_WEB_GPU", ""), os.environ.get("NANOGPT_WEB_RUN", "")  # a CPU, the newest
web_app = modal.App("nanogpt-lite-web")
web_image = (
    gpu_packages.uv_pip_install("starlette==1.10.0")
    .env({"NANOGPT_WEB_GPU": WEB_GPU, "NANOGPT_WEB_RUN": WEB_RUN})
    .add_local_python_source("nanogpt_lite", ignore=["**/__pycache__"])  # also the page, which is no Python
)
entry_points.show_when_deployed("web_app", lambda: plans.describe_web(stored_files(), WEB_RUN, gpu=WEB_GPU))


# `modal.concurrent`: one container takes several requests at once. They wait there for their turn, or are refused.
@web_app.cls(
    image=web_image, volumes={"/data": volume.with_mount_options(read_only=True)}, gpu=WEB_GPU or None,
    cpu=(rental.WEB_CORES, rental.WEB_CORES), memory=rental.WEB_MEMORY_MIB, max_containers=1,
    scaledown_window=rental.WEB_IDLE_SECONDS, enable_memory_snapshot=True, startup_timeout=600,
)  # fmt: skip
@modal.concurrent(max_inputs=rental.WEB_REQUESTS)
class Web:
    """A run that answers by HTTP. docs/modal.md shows how programs ask it."""

    @modal.enter(snap=True)
    def import_packages(self) -> None:
        """Import PyTorch and the rest, which takes longer than loading a run."""
        from nanogpt_lite.cloud import web_job  # noqa: F401

    @modal.asgi_app(requires_proxy_auth=True)
    def api(self) -> Any:
        """The application, made when a container starts."""
        from nanogpt_lite.cloud import container, web_job

        device, threads = ("cuda", 0) if WEB_GPU else ("cpu", rental.WEB_CORES)
        return web_job.RunApplication(container.open_storage(volume), WEB_RUN, device=device, threads=threads)


# The benchmark is an App of its own: `modal run` builds the Images of one App, and no training needs this one. Commands
# extend an Image as in a Dockerfile; here they fetch one commit of nanoGPT. Local files, like source code, come last.
benchmark_app = modal.App("nanogpt-lite-benchmark")
folder = Path(__file__).parent
benchmark_image = (
    gpu_packages.apt_install("git")
    .uv_pip_install("pytest==9.2.0", "hypothesis==6.170.17")
    .run_commands(
        "git clone https://github.com/karpathy/nanoGPT /root/nanoGPT",
        "git -C /root/nanoGPT checkout 3adf61e154c3fe3fca428ad6bc3818b27a3b8291",
    )
    .add_local_python_source("nanogpt_lite")
    .add_local_dir(folder / "benchmarks", "/root/benchmarks", ignore=["**/*.md", "**/*.png", "**/__pycache__"])
    .add_local_dir(folder / "tests", "/root/tests", ignore=["golden", "**/__pycache__"])
    .add_local_file(folder / "pyproject.toml", "/root/pyproject.toml")
)


# A Function that yields sends each value at once; `.remote_gen()` iterates over them. If you press Ctrl-C, or the
# container is ended, what has been measured so far is on your machine.
@benchmark_app.function(
    name="benchmark", image=benchmark_image, gpu=rental.single_gpus(GPU), cpu=4, memory=8192,
    timeout=45 * MINUTES, startup_timeout=600,
)  # fmt: skip
def benchmark_on_gpu(time_limit: float = 40 * MINUTES, **options: Any) -> Iterator[benchmark_tables.BenchmarkTable]:
    """Measure this program and nanoGPT in turn: the table so far, after each part."""
    from nanogpt_lite.cloud import benchmark_job, container

    call = container.current_call(shared, options)
    with modal_spelling():
        yield from benchmark_job.benchmark_job(call, time_limit=time_limit, **container.on_gpu(options))


@benchmark_app.local_entrypoint()
@entry_points.command_flags(short=bool, device=str, to=str)
def benchmark(to: str = benchmark_tables.RESULTS_DIR, **flags: Any) -> str:
    """Measure a GPU, and write the table to benchmarks/results. The container prints it; `--short`: tiny, to try it."""
    plan = plans.plan_benchmark(flags, gpu=GPU)
    plan.show()
    tables = benchmark_on_gpu.with_options(**plan.function_options).remote_gen(**plan.options)
    return housekeeping.report(f"wrote {benchmark_tables.write_tables(tables, Path(to))}")


def __dir__() -> list[str]:  # so that `modal run modal_app.py` finds `main` alone, and `::train` finds `train`
    return entry_points.names_for_modal_run(globals(), __file__)
