"""A loss in the units of other programs: by definition, and by counting the bits of a whole text."""

import math

import pytest

from nanogpt_lite.diagnosis.measures import measure_text


def test_measures_are_those_of_the_definitions():
    measures = measure_text(2.5, n_tokens=1000, n_chars=4000, n_bytes=5000)
    assert measures.perplexity == pytest.approx(12.18249396)
    assert measures.nats_per_character == pytest.approx(0.625)
    assert measures.bits_per_character == pytest.approx(0.901684400)
    assert measures.bits_per_byte == pytest.approx(0.721347520)


def test_measures_do_not_depend_on_the_tokenizer():
    """The same probability of the same text, in two tokenizations."""
    total = 1000 * math.log(3)
    short, long = (measure_text(total / n, n_tokens=n, n_chars=600, n_bytes=700) for n in (600, 100))
    assert short.perplexity < long.perplexity
    for name in ("nats_per_character", "bits_per_character", "bits_per_byte"):
        assert getattr(short, name) == pytest.approx(getattr(long, name), rel=1e-12)


def test_a_loss_that_diverged_has_a_finite_perplexity():
    assert 1e300 < measure_text(1e4, n_tokens=3, n_chars=2, n_bytes=2).perplexity < math.inf
