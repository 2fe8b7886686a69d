"""Names on the Volume, which must not lead out of their folder."""

import pytest

import nanogpt_lite as ng
from nanogpt_lite.cloud.client.volume_names import require_safe_name


@pytest.mark.parametrize("name", ["a", "shakespeare_char-12", "_x", "ä.b", "a" * 100])
def test_plain_folder_name_is_returned(name):
    assert require_safe_name(name, "run") == name


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", ".", "..", "a" * 101, "x\n", "-x"])
def test_name_that_could_be_a_path_is_refused(name):
    with pytest.raises(ng.UserError, match="invalid run name"):
        require_safe_name(name, "run")
