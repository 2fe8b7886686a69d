"""Generators that change a setting of the process while they compute an item."""

import contextlib

import pytest

from nanogpt_lite.device import generators


@contextlib.contextmanager
def change(setting):
    setting.append("changed")
    try:
        yield
    finally:
        setting.pop()


def items_of(setting, closed):
    try:
        for number in range(3):
            assert setting == ["changed"]
            yield number
    finally:
        closed.append(True)


@pytest.mark.parametrize(
    ("wrapper", "between"), [(generators.context_per_item, []), (generators.context_for_all, ["changed"])]
)
def test_setting_is_changed_while_items_are_computed_and_restored_on_every_exit(wrapper, between):
    setting, closed = [], []
    for number, item in enumerate(wrapper(items_of(setting, closed), lambda: change(setting))):
        assert item == number
        assert setting == between
    assert (setting, closed) == ([], [True])
    items = wrapper(items_of(setting, closed), lambda: change(setting))
    assert next(items) == 0
    items.close()
    assert (setting, closed) == ([], [True, True])


@pytest.mark.parametrize("wrapper", [generators.context_per_item, generators.context_for_all])
def test_error_of_an_item_restores_the_setting(wrapper):
    setting = []

    def failing():
        yield 0
        raise KeyError

    items = wrapper(failing(), lambda: change(setting))
    next(items)
    with pytest.raises(KeyError):
        next(items)
    assert setting == []
