"""What a call rents and what it costs: by hand from Modal's prices, and equal to what the decorators of the app say."""

import ast
import math
import re
from pathlib import Path

import pytest

import nanogpt_lite as ng
from nanogpt_lite.cloud.client import rental
from nanogpt_lite.cloud.client.rental import GPURequest, Rental, make_rental, parse_gpu, parse_seconds
from nanogpt_lite.device.gpus import GPUS

APP = Path(__file__).parents[3] / "modal_app.py"
MODAL_GPUS = sorted({gpu.modal_type for gpu in GPUS if gpu.modal_type})
# by https://modal.com/pricing in June 2026: an L4, 4 cores and 8 GiB, in dollars a second
L4 = 0.000222 + 4 * 0.0000131 + 8 * 0.00000222


def test_price_of_a_gpu_has_its_cores_and_memory():
    assert GPURequest("L4").dollars_per_second == pytest.approx(L4)
    assert GPURequest("L4", 4).dollars_per_second == pytest.approx(4 * L4)
    assert make_rental("", default_seconds=60).dollars_per_second == pytest.approx(2 * 0.0000131)  # two cores


@pytest.mark.parametrize("modal_type", MODAL_GPUS)
def test_each_gpu_of_modal_can_be_rented_and_has_a_price(modal_type):
    gpu = parse_gpu(modal_type.lower())
    assert str(gpu) == modal_type
    (price,) = {row.dollars_per_second for row in GPUS if row.modal_type == modal_type}
    assert price is not None
    assert gpu.dollars_per_second - price == pytest.approx(L4 - 0.000222)
    assert rental.is_modal_gpu(modal_type)


@pytest.mark.parametrize(("other_name", "name"), [("A100", "A100-40GB"), ("H100!", "H100"), ("B200+", "B200")])
def test_other_names_of_modal_have_the_price_of_the_gpu(other_name, name):
    assert str(parse_gpu(other_name)) == other_name
    assert parse_gpu(other_name).dollars_per_second == parse_gpu(name).dollars_per_second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H1000", "unknown GPU 'H1000'; did you mean H100"),
        ("", "unknown GPU ''"),
        ("H100:0", "H100:0 has an invalid number of GPUs; give 1 to 8, such as H100:2"),
        ("H100:9", "invalid number"),
        ("H100:", "invalid number"),
        ("H100:two", "invalid number"),
        ("H100:-1", "invalid number"),
    ],
)
def test_unknown_gpu_or_number_is_refused(text, message):
    with pytest.raises(ng.UserError, match=message):
        parse_gpu(text)


@pytest.mark.parametrize("text", ["60s", "1m", "1min", "60", " 1.0 m ", "24h", "0.5h"])
def test_time_from_a_minute_to_a_day_is_taken(text):
    number, unit = re.findall(r"([\d.]+)\s*(\w*)", text)[0]
    assert parse_seconds(text) == float(number) * {"h": 3600, "m": 60, "min": 60, "s": 1, "": 1}[unit]


@pytest.mark.parametrize("text", ["59s", "0", "-1h", "25h", "1d", "two hours", "", "1h30m", "nan", "inf"])
def test_invalid_time_is_refused(text):
    with pytest.raises(ng.UserError, match="invalid time; give 1m to 24h, such as 90s, 30m or 2h"):
        parse_seconds(text)


def test_function_options_are_those_of_the_gpu_and_the_later_limit_of_modal():
    training = make_rental("l4:2", timeout="30m", default_seconds=7200, margin=300)
    assert training.function_options == {"gpu": "L4:2", "cpu": 8, "memory": 16384, "timeout": 2100}
    assert training.world_size == 2
    assert make_rental("", default_seconds=900).function_options == {"timeout": 900}
    assert make_rental("T4", timeout="24h", default_seconds=900, margin=300).function_options["timeout"] == 86400


def test_list_of_gpus_is_left_to_the_decorator_and_costs_what_the_most_expensive_costs():
    listed = make_rental("L4:4, H100", default_seconds=3600)
    assert listed.function_options == {"timeout": 3600}
    assert listed.world_size == 4
    assert listed.dollars_per_second == pytest.approx(max(4 * L4, 0.001097 + L4 - 0.000222))


@pytest.mark.parametrize("max_dollars", [0.2, 1.0, 30.0, 1e9])
@pytest.mark.parametrize("gpu", ["T4", "H100:8", "L4,A100-80GB:2", ""])
@pytest.mark.parametrize("calls", [1, 7])
def test_most_dollars_are_never_above_max_dollars(max_dollars, gpu, calls):
    try:
        limited = make_rental(gpu, timeout="2h", max_dollars=max_dollars, default_seconds=60, calls=calls)
    except ng.UserError as error:
        (amount,) = re.findall(r"give ([\d.]+) or more", str(error))
        assert float(amount) > max_dollars
        limited = make_rental(gpu, max_dollars=float(amount), default_seconds=7200, calls=calls)
        assert 60 <= limited.seconds < 70
        max_dollars = float(amount)
    assert limited.most_dollars <= max_dollars
    assert limited.seconds <= 7200


@pytest.mark.parametrize("gpu", [*MODAL_GPUS, "H100:8", ""])
def test_amount_that_an_error_names_is_enough(gpu):
    with pytest.raises(ng.UserError, match="less than a minute") as caught:
        make_rental(gpu, max_dollars=0.0001, default_seconds=900)
    amount = float(re.findall(r"give ([\d.]+) or more", str(caught.value))[0])
    assert make_rental(gpu, max_dollars=amount, default_seconds=900).seconds >= 60
    with pytest.raises(ng.UserError):
        make_rental(gpu, max_dollars=amount - 0.01, default_seconds=900)


@pytest.mark.parametrize("max_dollars", [0.0, -1.0, math.inf, math.nan])
def test_no_dollars_rent_nothing(max_dollars):
    with pytest.raises(ng.UserError, match="less than a minute"):
        make_rental("L4", max_dollars=max_dollars, default_seconds=900)


def test_rental_says_what_it_rents_for_how_long_and_at_most_how_much():
    hour, most = 3600 * 2 * L4, math.ceil(100 * 3 * 5400 * 2 * L4) / 100
    assert str(Rental((GPURequest("L4", 2),), 5400, calls=3, margin=300)) == (
        f"renting 2 x L4, ${hour:.2f} an hour, 3 calls, each for at most 90 min over all attempts: at most ${most:.2f}"
    )
    assert str(Rental((), 900)) == "renting a CPU, $0.09 an hour, for at most 15 min: at most $0.03"
    assert "1 x L4 or 1 x T4" in str(Rental((GPURequest("L4"), GPURequest("T4")), 7200))


DECORATORS = ("app.function", "app.cls", "benchmark_app.function")


@pytest.fixture(scope="module")
def decorators():
    """The arguments of DECORATORS in modal_app.py, by the name of the Function or class."""
    tree = ast.parse(APP.read_text(encoding="utf-8"))
    arguments = {}
    for node in [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]:
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) in DECORATORS:
                keywords = {keyword.arg: keyword.value for keyword in call.keywords}
                name = ast.literal_eval(keywords["name"]) if "name" in keywords else node.name
                arguments[name] = (node, keywords)
    return arguments


def evaluate(node):
    """The value of an argument: a number, or numbers with the names of times and `*` and `+`."""
    return eval(ast.unparse(node), {"__builtins__": {}, "MINUTES": 60, "HOURS": 3600})  # of our own source


def test_decorators_reserve_the_cores_and_memory_that_prices_count(decorators):
    on_gpu = {name for name, (_, keywords) in decorators.items() if "gpu" in keywords}
    assert on_gpu == {"train", "sample", "evaluate", "Sampler", "benchmark"}
    for name in on_gpu:
        keywords = decorators[name][1]
        reserved = evaluate(keywords["cpu"]), evaluate(keywords["memory"])
        assert reserved == (rental.CORES_PER_GPU, rental.MEMORY_MIB_PER_GPU), name
    assert evaluate(decorators["prepare_data"][1]["cpu"]) == rental.CORES_WITHOUT_GPU


def test_decorators_have_the_limits_of_time_that_prices_count(decorators):
    limits = {
        name: evaluate(keywords["timeout"]) for name, (_, keywords) in decorators.items() if "timeout" in keywords
    }
    assert limits == {
        "train": rental.TRAIN_SECONDS + rental.MARGIN_SECONDS,
        "prepare_data": rental.OTHER_SECONDS,
        "sample": rental.OTHER_SECONDS,
        "evaluate": rental.OTHER_SECONDS,
        "sweep": rental.DAY,
        "benchmark": rental.BENCHMARK_SECONDS + rental.MARGIN_SECONDS,
    }
    for name, seconds in (
        ("train", rental.TRAIN_SECONDS),
        ("sweep", rental.TRAIN_SECONDS),
        ("benchmark", rental.BENCHMARK_SECONDS),
    ):
        arguments = decorators[name][0].args
        defaults = dict(zip([a.arg for a in arguments.args][::-1], arguments.defaults[::-1], strict=False))
        assert evaluate(defaults["time_limit"]) == seconds


def test_only_functions_that_resume_are_retried(decorators):
    retries = {name: ast.unparse(k["retries"]) for name, (_, k) in decorators.items() if "retries" in k}
    assert set(retries) == {"train", "sweep"}
    assert len(set(retries.values())) == 1
