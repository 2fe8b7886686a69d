"""One call over its attempts: the name of its run, which no other call gets, and the time that it has used."""

import inspect
import threading
from pathlib import Path

import pytest
from shared_volume import SharedDict

import nanogpt_lite as ng
from nanogpt_lite.cloud.calls import Call, LocalDict, call_id


def is_never_taken(name):
    return False


def test_new_run_gets_the_first_name_that_is_neither_taken_nor_reserved():
    shared = SharedDict()
    taken = {"text-1", "text-3"}
    names = [Call(call, shared).reserve_new_run("text", taken.__contains__) for call in ("a", "b", "c")]
    assert names == ["text-2", "text-4", "text-5"]
    assert Call("a", shared).reserve_new_run("other", taken.__contains__) == "other-1"


def test_calls_at_the_same_time_get_different_names():
    shared, number = SharedDict(), 24
    start, names = threading.Barrier(number), list[str]()

    def reserve(call):
        start.wait()
        names.append(call.reserve_new_run("text", is_never_taken))

    threads = [threading.Thread(target=reserve, args=(Call(f"call {i}", shared),)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == sorted(f"text-{i + 1}" for i in range(number))


def test_name_that_another_call_reserves_after_it_was_seen_as_free_is_not_given_twice():
    shared = SharedDict()

    def is_taken(name):
        Call("quicker", shared).reserve_run("text-1")
        return False

    assert Call("slower", shared).reserve_new_run("text", is_taken) == "text-2"


class BusyDict(SharedDict):
    """A dictionary in which another call tries to reserve text-1 as soon as any value has been read."""

    def __init__(self):
        super().__init__()
        self.other_has_text_1 = False

    def get(self, key, default=None):
        value = super().get(key, default)
        self.other_has_text_1 |= self.put("runs/text-1", "other", skip_if_exists=True)
        return value


def test_name_is_reserved_in_one_operation():
    """A name that is read as free, and then written, would be given to two calls."""
    shared = BusyDict()
    name = Call("mine", shared).reserve_new_run("text", is_never_taken)
    assert name == ("text-2" if shared.other_has_text_1 else "text-1")
    assert shared.values[f"runs/{name}"] == "mine"


def test_later_attempt_knows_its_run_and_keeps_its_reservation():
    shared = SharedDict()
    assert Call("mine", shared).run_name() == ""
    name = Call("mine", shared).reserve_new_run("text", is_never_taken)
    assert Call("mine", shared).run_name() == name == "text-1"
    assert Call("mine", shared).reserve_new_run("text", is_never_taken) == name
    Call("mine", shared).reserve_run(name)
    assert Call("other", shared).run_name() == ""


def test_attempt_that_was_killed_before_it_noted_its_run_gets_the_same_name():
    shared = SharedDict()
    name = Call("mine", shared).reserve_new_run("text", is_never_taken)
    shared.pop("run of mine")
    assert Call("mine", shared).reserve_new_run("text", is_never_taken) == name


def test_reserved_name_is_refused_to_other_calls_until_it_is_released():
    shared = SharedDict()
    mine, other = Call("mine", shared), Call("other", shared)
    mine.reserve_run("a")
    with pytest.raises(ng.UserError, match=r"another call .* the run 'a', .*another `out_dir`, or .*`overwrite=True`"):
        other.reserve_run("a")
    assert other.run_name() == ""
    mine.release_run("a")
    assert mine.run_name() == ""
    other.reserve_run("a")
    assert other.run_name() == "a"


def test_run_that_was_taken_over_is_not_released_by_the_earlier_call():
    shared = SharedDict()
    mine, other = Call("mine", shared), Call("other", shared)
    mine.reserve_run("a")
    other.take_over_run("a")
    assert other.run_name() == "a"
    mine.release_run("a")
    with pytest.raises(ng.UserError, match="another call"):
        Call("third", shared).reserve_run("a")
    other.reserve_run("a")


def test_used_time_is_that_of_the_last_note_of_the_same_call():
    shared = SharedDict()
    mine = Call("mine", shared)
    assert mine.used_time() == (0.0, 0)
    for seconds, attempts in ((1.5, 1), (20.0, 2)):
        mine.note_time(seconds, attempts)
        assert Call("mine", shared).used_time() == (seconds, attempts)
    assert Call("other", shared).used_time() == (0.0, 0)


def test_call_id_is_the_same_for_the_same_options_in_any_order():
    options = {"out_dir": "a", "max_iters": 4, "dataset": Path("my.txt")}
    assert call_id("fc-1", options) == call_id("fc-1", dict(reversed(options.items())))
    assert call_id("fc-1", options).startswith("fc-1-")


def test_call_id_differs_between_the_calls_of_one_map_and_between_function_calls():
    """Modal gives all calls of one `.map` or `.starmap` the same id of the function call."""
    calls = [("fc-1", {"seed": seed}) for seed in range(50)] + [("fc-1", {}), ("fc-2", {}), ("fc-1", {"seed": "1"})]
    assert len({call_id(function_call, options) for function_call, options in calls}) == len(calls)


def test_call_id_is_stable_over_versions():
    """A call that waits for a GPU while the app is deployed again resumes its own run."""
    assert call_id("fc-1", {"max_iters": 4}) == "fc-1-ebd057ff"


@pytest.mark.parametrize("kind", [LocalDict, SharedDict])
def test_dictionaries_that_stand_for_that_of_modal_behave_alike(kind):
    shared = kind()
    assert shared.get("a") is None
    assert shared.get("a", 1) == 1
    assert shared.put("a", 2, skip_if_exists=True) is True
    assert shared.put("a", 3, skip_if_exists=True) is False
    assert shared.get("a") == 2
    assert shared.put("a", None) is True
    assert shared.put("a", 4, skip_if_exists=True) is False
    assert shared.pop("a") is None
    assert shared.pop("a", 5) == 5
    assert shared.get("a", 6) == 6


@pytest.mark.parametrize("method", ["get", "put", "pop"])
def test_dictionary_of_modal_takes_the_same_arguments(method):
    modal = pytest.importorskip("modal")
    parameters = [
        [(p.name, p.kind) for p in inspect.signature(getattr(kind, method)).parameters.values()]
        for kind in (modal.Dict, LocalDict, SharedDict)
    ]
    assert parameters[1] == parameters[0]
    assert parameters[2] == parameters[0]
