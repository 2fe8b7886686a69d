"""What the flags of a call ask for becomes a plan, before anything is uploaded or rented.

Each function raises `UserError` on a mistake that can be seen from the flags, from the texts of this machine, and from
what is stored on the Volume (`checks`). What only the data or the GPU can tell is found in the container.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanogpt_lite.cloud import sweeps
from nanogpt_lite.cloud.client import checks, memory_check, rental
from nanogpt_lite.cloud.client.dataset_texts import Text, find_text
from nanogpt_lite.cloud.client.rental import (
    BENCHMARK_SECONDS,
    DAY,
    MARGIN_SECONDS,
    MINUTE,
    OTHER_SECONDS,
    TRAIN_SECONDS,
    Rental,
    format_dollars,
    make_rental,
    single_gpus,
)
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.cloud.client.volume_names import require_safe_name, run_name
from nanogpt_lite.config import presets
from nanogpt_lite.config.options import DataConfig, LoadConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers import hub

RENTAL_FLAGS = ("gpu", "timeout", "max_dollars")


@dataclass(frozen=True)
class Plan:
    """A call that has passed the checks."""

    options: dict[str, Any]  # of the Function
    rental: Rental
    function_options: dict[str, Any]  # of `Function.with_options`
    texts: tuple[Text, ...] = ()  # those of this machine are to be uploaded
    notes: tuple[str, ...] = ()  # shown to the user before
    block_size: int = 0
    prompt: str = ""

    def show(self) -> None:
        """Print the notes, and what is rented."""
        for line in (*self.notes, str(self.rental)):
            print(line)

    def with_run(self, name: str) -> "Plan":
        """The same call, of a run whose name was not known before."""
        return replace(self, options={**self.options, "out_dir": name})

    def texts_to_prepare(self) -> list[Text]:
        """The texts that have to be prepared before the Function is called."""
        return [text for text in self.texts if text.tokenizer and not text.is_prepared]

    def check_prepared_texts(self, stored: StoredFiles) -> None:
        """The checks of texts of which nothing was known before they were prepared."""
        for text in self.texts_to_prepare():
            prepared = find_text(stored, text.dataset, text.tokenizer)
            prepared.require_length(self.block_size)
            prepared.require_prompt(self.prompt)


def plan_preparation(stored: StoredFiles, flags: Mapping[str, Any]) -> Plan:
    """Check a call of `prepare_data`."""
    options = _without(flags, *RENTAL_FLAGS)
    data = DataConfig.from_dict(_without(options, "overwrite"))
    text = find_text(stored, data.dataset, data.tokenizer)
    rental = _rental(_without(flags, "gpu"), "", OTHER_SECONDS)
    notes = ("--gpu has no effect here: a text is prepared on a CPU",) if flags.get("gpu") else ()
    return Plan({**options, "dataset": text.dataset}, rental, rental.function_options, (text,), notes)


def plan_pipeline(stored: StoredFiles, flags: Mapping[str, Any], *, gpu: str) -> tuple[Plan, Plan]:
    """Check a call of `main`: the plan of the training, and that of the sampling after it, without the run's name."""
    sample_options = {"num_samples": 3, "max_new_tokens": 300, **_only(flags, *SampleConfig.names())}
    settings = checks.check_sampling(sample_options)
    if "start" in flags:
        sample_options["start"] = settings.start
    sampling = _rental({}, ",".join(single_gpus(flags.get("gpu", gpu))), OTHER_SECONDS)
    train_flags = _only(flags, *TrainConfig.names(), "preset", "overwrite", "verify", *RENTAL_FLAGS)
    if (max_dollars := flags.get("max_dollars")) is not None:
        training_rental = _rental(_without(flags, "max_dollars"), gpu, TRAIN_SECONDS)
        sampling = _limit_sampling(sampling, training_rental, max_dollars)
        train_flags["max_dollars"] = max_dollars - sampling.most_dollars
    training = plan_training(stored, train_flags, gpu=gpu, prompt=sample_options.get("start", ""))
    most = training.rental.most_dollars + sampling.most_dollars
    training = replace(
        training, notes=(*training.notes, f"training and sampling together cost at most ${format_dollars(most)}")
    )
    return training, Plan(sample_options, sampling, sampling.function_options)


def plan_training(stored: StoredFiles, flags: Mapping[str, Any], *, gpu: str, prompt: str = "") -> Plan:
    """Check a call of `train`; with `prompt`, also that the network will know its characters.

    `gpu` is the default of the flag of that name.
    """
    rental = _rental(flags, gpu, TRAIN_SECONDS, margin=MARGIN_SECONDS)
    options = _without(flags, *RENTAL_FLAGS)
    if options.get("device") == "cpu" and rental.gpus:
        print("warning: with --device cpu, the GPU that is rented is not used")
    if options.get("out_dir"):
        options["out_dir"] = require_safe_name(run_name(options["out_dir"]), "run")
    checks.require_wandb_key(options)
    plan = _plan_resume if options.get("init_from") == "resume" else _plan_new_run
    return plan(stored, options, rental, prompt)


def plan_sampling(stored: StoredFiles, flags: Mapping[str, Any], *, gpu: str) -> Plan:
    """Check a call of `sample`. A prompt FILE:PATH is read here."""
    rental = _rental_of_one(flags, gpu)
    options = _without(flags, *RENTAL_FLAGS)
    settings = checks.check_sampling(_without(options, "out_dir"))
    run = checks.existing_run(stored, options, settings)
    if "start" in options:
        options["start"] = settings.start
        Text(stored.run_dataset(run), characters=stored.run_characters(run)).require_prompt(settings.start)
    return Plan({**options, "out_dir": run}, rental, rental.function_options, notes=_newest(options, run))


def plan_evaluation(stored: StoredFiles, flags: Mapping[str, Any], *, gpu: str) -> Plan:
    """Check a call of `evaluate`."""
    rental = _rental_of_one(flags, gpu)
    options = _without(flags, *RENTAL_FLAGS)
    settings = LoadConfig.from_dict(_without(options, "out_dir", "dataset", "verify"))
    run = checks.existing_run(stored, options, settings)
    notes = _newest(options, run)
    options["out_dir"] = run
    if not options.get("dataset"):
        checks.require_data_of_run(stored, run)
        return Plan(options, rental, rental.function_options, notes=notes)
    text = find_text(stored, options["dataset"], "auto")
    text.require_characters_of(run, stored.run_characters(run))
    return Plan({**options, "dataset": text.dataset}, rental, rental.function_options, (text,), notes)


def plan_benchmark(flags: Mapping[str, Any], *, gpu: str) -> Plan:
    """Check a call of `benchmark`."""
    rental = _rental_of_one(flags, gpu, BENCHMARK_SECONDS, margin=MARGIN_SECONDS)
    options = _without(flags, *RENTAL_FLAGS, "to")
    require_known([options.get("device", "cuda")], ("cuda", "cpu"), "device")
    return Plan({**options, "time_limit": rental.seconds}, rental, rental.function_options)


def describe_web(stored: StoredFiles, run: str, *, gpu: str) -> str:
    """What is served at a URL, and what it costs. `run`: empty for the newest one. `UserError` if there is none."""
    name = stored.require_run(run_name(run))
    which = name if run else f"the newest run, now {name},"
    return f"serving {which} {rental.describe_web(gpu)}"


def plan_sweep(stored: StoredFiles, flags: Mapping[str, Any], *, gpu: str) -> Plan:
    """Check a call of `sweep`: its grid, and each of its trainings."""
    grid = _without(flags, *RENTAL_FLAGS, "sweep_iters", "preset")
    name = require_safe_name(run_name(grid.pop("out_dir", "sweep")), "run")
    given = _only(flags, "preset", "sweep_iters")
    trials = sweeps.make_trials(grid, name=name, **given)
    # one call more than there are trials: the best one is trained to its end
    rental = _rental(flags, gpu, TRAIN_SECONDS, calls=len(trials) + 1, margin=MARGIN_SECONDS)
    texts: dict[tuple[str, str], Text] = {}
    local_paths: dict[str, str] = {}
    notes: list[str] = []
    for trial in trials:
        checks.require_wandb_key(trial.options)
        plan = _plan_new_run(stored, {**trial.options, **_only(trial.first_options, "preset")}, rental, "")
        notes += [note for note in plan.notes if note not in notes]
        for text in plan.texts:
            if local_paths.setdefault(text.dataset, text.local_path) != text.local_path:
                raise UserError(f"two texts would be stored as {text.dataset!r}; give one of them another name")
            texts[text.dataset, text.tokenizer] = text
    if "dataset" in grid:
        grid["dataset"] = ",".join(local_paths)
    options = {**grid, **given, "out_dir": name, "time_limit": rental.seconds}
    if len(rental.gpus) == 1:
        options["gpu"] = str(rental.gpus[0])
    limit = min(rental.calls * rental.seconds + MARGIN_SECONDS, DAY)  # of the Function that waits for the trainings
    return Plan(options, rental, {"timeout": limit}, tuple(texts.values()), tuple(notes))


def _plan_new_run(stored: StoredFiles, options: dict[str, Any], rental: Rental, prompt: str) -> Plan:
    """Check a training that starts a run."""
    init_from = str(options.get("init_from", "scratch"))
    config, vocab_size = _config_of_new_run(options), 0
    checks.require_minutes_usable(config, options, rental)
    if init_from != "scratch" and init_from not in hub.GPT2_REPOS:
        parent = stored.require_run(run_name(init_from))
        options["init_from"], vocab_size = parent, stored.run_vocab_size(parent)
        if parent_config := stored.run_config(parent):
            checks.require_same_network(parent, parent_config, options)
            config = config.replace({name: getattr(parent_config, name) for name in checks.network_names()})
    elif init_from != "scratch":
        config = memory_check.with_gpt2_network(config, init_from, options.get("block_size", 0))
    config.require_divisible_by(rental.world_size)
    notes = checks.check_out_dir(stored, options)
    # with the weights of another network, the text is prepared with that network's tokenizer, by the training
    text = find_text(stored, config.dataset, config.tokenizer if init_from == "scratch" else "auto")
    if init_from == "scratch":
        text.require_length(config.block_size)
        text.require_prompt(prompt)
        text = replace(text, tokenizer=config.tokenizer)
    vocab_size = vocab_size or memory_check.guess_vocab_size(config.tokenizer, text)
    notes += memory_check.check_memory(config, vocab_size, rental)
    options |= {"dataset": text.dataset, "time_limit": rental.seconds}
    return Plan(options, rental, rental.function_options, (text,), notes, config.block_size, prompt)


def _config_of_new_run(options: dict[str, Any]) -> TrainConfig:
    """The config of a new run, as far as it does not follow from the text or from initial weights."""
    preset = options.get("preset") or checks.preset_of_new_run(options)
    return presets.config_with_preset(preset, _without(options, "preset", "overwrite", "verify"))


def _plan_resume(stored: StoredFiles, options: dict[str, Any], rental: Rental, prompt: str) -> Plan:
    """Check a training that resumes a run."""
    name = stored.require_run(options.get("out_dir", ""))
    if options.pop("overwrite", False):
        raise UserError("`init_from='resume'` continues a run, and `overwrite=True` replaces it; give one of them")
    notes = [] if options.get("out_dir") else [f"resuming the newest run: {name}"]
    options = {**options, "out_dir": name}
    if options.pop("preset", ""):
        notes.append("warning: a resumed run keeps its own options; --preset has no effect")
    if options.pop("minutes", 0):
        notes.append("warning: a resumed run keeps its number of steps; --minutes has no effect")
    texts: tuple[Text, ...] = ()
    text = find_text(stored, options.pop("dataset"), "auto") if "dataset" in options else None
    if text and text.local_path:
        checks.require_text_of_run(stored, name, text)
        if text.sha256 != stored.dataset_sha256(stored.run_dataset(name)):  # stored apart, for this run alone
            text = replace(text, dataset=f"{text.dataset}-for-{name}", replaces=False)
            texts, options["dataset"] = (text,), text.dataset
    elif text:
        options["dataset"] = text.dataset
    else:
        checks.require_data_of_run(stored, name)
    Text(stored.run_dataset(name), characters=stored.run_characters(name)).require_prompt(prompt)
    if config := stored.run_config(name):
        checks.require_same_network(name, config, options)
        network_fields = ("init_from", "dataset", "out_dir", *checks.network_names())
        config = config.replace(_without(options, *network_fields, "verify"))
        config.require_divisible_by(rental.world_size)
        checks.require_steps_left(stored, name, config, options)
        vocab_size = stored.run_vocab_size(name) or memory_check.guess_vocab_size(config.tokenizer, text or Text(""))
        on_device = config.replace({"device": options.get("device", "auto")})  # not on that of the run so far
        notes += memory_check.check_memory(on_device, vocab_size, rental)
    options["time_limit"] = rental.seconds
    return Plan(options, rental, rental.function_options, texts, tuple(notes))


def _newest(options: Mapping[str, Any], run: str) -> tuple[str, ...]:
    """A note about the run of a call that names none."""
    return () if options.get("out_dir") else (f"the newest run: {run}",)


def _rental(
    flags: Mapping[str, Any], default_gpu: str, default_seconds: int, *, calls: int = 1, margin: int = 0
) -> Rental:
    """What the flags rent; without --gpu, `default_gpu`: a list with commas, or empty for a CPU."""
    if flags.get("gpu") == "":  # of a shell variable that is not set
        raise UserError("--gpu is empty; give a GPU, such as T4, or leave it out")
    if "," in flags.get("gpu", ""):
        raise UserError(f"--gpu takes one GPU; to give an order of preference, set NANOGPT_GPU={flags['gpu']}")
    return make_rental(
        flags.get("gpu", default_gpu),
        timeout=flags.get("timeout", ""),
        max_dollars=flags.get("max_dollars"),
        default_seconds=default_seconds,
        calls=calls,
        margin=margin,
    )


def _limit_sampling(sampling: Rental, training: Rental, max_dollars: float) -> Rental:
    """The sampling for a fifth of the dollars, or for less, if the training would have less than a minute.

    `UserError` if that leaves less than a minute for the sampling.
    """
    training_minute, sampling_minute = (MINUTE * rental.dollars_per_second for rental in (training, sampling))
    dollars = min(max_dollars / 5, max_dollars - training_minute)
    seconds = max(MINUTE, int(min(OTHER_SECONDS, dollars / sampling.dollars_per_second)))
    if max_dollars < training_minute + seconds * sampling.dollars_per_second:
        raise UserError(
            f"--max-dollars {max_dollars:g} is too little to train and sample for a minute each; give "
            f"{format_dollars(training_minute + sampling_minute)} or more, or a cheaper --gpu"
        )
    return replace(sampling, seconds=seconds)


def _rental_of_one(
    flags: Mapping[str, Any], default_gpu: str, default_seconds: int = OTHER_SECONDS, *, margin: int = 0
) -> Rental:
    """What the flags rent for a call that uses a single GPU."""
    rental = _rental(flags, ",".join(single_gpus(default_gpu)), default_seconds, margin=margin)
    if rental.world_size > 1:
        raise UserError(f"--gpu {flags['gpu']} is more than one GPU, and only a training uses several; give one")
    return rental


def _only(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options that have one of these names."""
    return {name: value for name, value in options.items() if name in names}


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options but those of these names."""
    return {name: value for name, value in options.items() if name not in names}
