"""The recipe for a text: its values at known sizes, and how they change with the text and with the given options."""

import itertools

import pytest

from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.presets import PRESETS

SHAKESPEARE_TOKENS = 1_003_854  # of the train split of tiny Shakespeare, in nanoGPT's README
TOKENS_PER_STEP = {name: TrainConfig.from_dict(PRESETS[name]).tokens_per_step for name in recipe.RECIPES}
SIZES = [100, 10_000, 54_000, 200_000, 500_000, SHAKESPEARE_TOKENS, 5_000_000, 20_000_000, 10**10]


def fit(preset, train_tokens, vocab_size=65, **options):
    sizes = {"train_tokens": train_tokens, "vocab_size": vocab_size, "tokens_per_step": TOKENS_PER_STEP[preset]}
    return recipe.fit_options(preset, **{**sizes, **options})


@pytest.mark.parametrize("preset", recipe.RECIPES)
def test_the_preset_has_the_values_for_tiny_shakespeare(preset):
    values = TrainConfig.from_dict(PRESETS[preset])
    fitted = fit(preset, SHAKESPEARE_TOKENS)
    assert {name: getattr(values, name) for name in fitted} == pytest.approx(fitted, rel=0.03)


@pytest.mark.parametrize("preset", recipe.RECIPES)
@pytest.mark.parametrize("is_fast", [False, True])
def test_a_longer_text_gets_no_fewer_steps_and_no_more_regularisation(preset, is_fast):
    for shorter, longer in itertools.pairwise(fit(preset, size, has_fast_bfloat16=is_fast) for size in SIZES):
        assert shorter["max_iters"] <= longer["max_iters"]
        for name in recipe.RECIPES[preset].by_epochs:
            assert shorter[name] >= longer[name]


@pytest.mark.parametrize("preset", recipe.RECIPES)
@pytest.mark.parametrize("train_tokens", SIZES)
@pytest.mark.parametrize("is_fast", [False, True])
def test_values_are_valid_options_with_bounded_steps_and_fewer_evaluations_on_a_long_text(
    preset, train_tokens, is_fast
):
    fitted = fit(preset, train_tokens, has_fast_bfloat16=is_fast)
    config = TrainConfig.from_dict({**PRESETS[preset], **fitted})
    limits = {"modern-cpu": 979 if is_fast else 430, "modern": 5000}
    assert recipe.MIN_STEPS <= config.max_iters <= limits[preset]
    epochs = config.max_iters * TOKENS_PER_STEP[preset] / train_tokens
    few = preset == "modern-cpu" and epochs <= 4
    assert (3 if few else 6) <= config.max_iters / config.eval_interval <= (4 if few else 8)


@pytest.mark.parametrize("preset", recipe.RECIPES)
@pytest.mark.parametrize("train_tokens", [*SIZES, 120_000, 130_000, 250_000, 490_000, 510_000])
@pytest.mark.parametrize("max_iters", [0, 50, 429, 2000])
@pytest.mark.parametrize("is_fast", [False, True])
def test_a_training_that_only_gets_worse_ends_before_its_last_step(preset, train_tokens, max_iters, is_fast):
    fitted = fit(preset, train_tokens, max_iters=max_iters, has_fast_bfloat16=is_fast)
    evaluations = -(-fitted["max_iters"] // fitted["eval_interval"])
    assert fitted["patience"] <= evaluations - 2 or fitted["max_iters"] < 10


def test_a_text_that_is_seen_often_is_evaluated_often():
    """At 14 of its epochs a text of 126,000 tokens has all steps; what is longer is seen less often."""
    evaluations = [429 / fit("modern-cpu", size)["eval_interval"] for size in (126_000, 150_000, 435_000, 445_000)]
    assert [round(number) for number in evaluations] == [8, 8, 8, 4]


@pytest.mark.parametrize(("train_tokens", "steps"), [(100_000, 342), (200_000, 684), (284_000, 967), (10**9, 967)])
def test_a_cpu_that_is_faster_in_bfloat16_trains_more_steps_if_the_text_is_long_enough(train_tokens, steps):
    slow, fast = fit("modern-cpu", train_tokens), fit("modern-cpu", train_tokens, has_fast_bfloat16=True)
    assert (slow["max_iters"], fast["max_iters"]) == (min(steps, 429), steps)
    assert fast == fit("modern-cpu", train_tokens, has_fast_bfloat16=True, max_iters=steps)
    assert (fast == slow) == (steps <= 429)
    assert fit("modern", train_tokens, has_fast_bfloat16=True) == fit("modern", train_tokens)


def test_tiny_shakespeare_is_regularised_as_a_long_text_on_every_cpu():
    slow, fast = (fit("modern-cpu", SHAKESPEARE_TOKENS, has_fast_bfloat16=is_fast) for is_fast in (False, True))
    assert fast == {**slow, "max_iters": 967, "eval_interval": 242}
    assert fast["dropout"] == 0


@pytest.mark.parametrize("preset", recipe.RECIPES)
def test_smaller_steps_are_more_and_larger_ones_fewer(preset):
    usual = TOKENS_PER_STEP[preset]
    assert recipe.RECIPES[preset].tokens_per_step == usual
    steps = [fit(preset, 10**9, tokens_per_step=tokens)["max_iters"] for tokens in (usual // 4, usual, usual * 4)]
    assert steps[0] == pytest.approx(4 * steps[1], rel=0.02)
    assert steps[2] == pytest.approx(steps[1] / 4, rel=0.02)
    assert fit(preset, 10**9, tokens_per_step=usual * 10_000)["max_iters"] == recipe.MIN_STEPS


def test_a_longer_training_on_the_same_text_is_regularised_more_and_evaluated_as_often():
    fitted = [fit("modern-cpu", 54_000, max_iters=steps) for steps in (20, 185, 600, 5000)]
    assert [values["max_iters"] for values in fitted] == [20, 185, 600, 5000]
    for name in ("dropout", "ngram_dropout", "weight_decay"):
        values = [options[name] for options in fitted]
        assert values == sorted(values)
        assert values[0] < values[1]
    intervals = [options["eval_interval"] for options in fitted]
    assert intervals == [3, 24, 24, 24]  # the best step is near the one of the recipe


def test_a_large_vocabulary_has_shorter_n_grams():
    assert [fit("modern-cpu", 54_000, vocab_size)["ngram"] for vocab_size in (65, 512, 513, 50_257)] == [4, 4, 2, 2]
    assert fit("modern", 54_000)["ngram"] == TrainConfig().ngram


def test_a_larger_vocabulary_has_fewer_steps_in_the_same_time_but_not_on_a_short_text():
    sizes = (65, 512, 4096, 50_257)
    steps = [fit("modern-cpu", 10**7, vocab_size)["max_iters"] for vocab_size in sizes]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[2]) == (429, 344)
    fast = [fit("modern-cpu", 10**7, vocab_size, has_fast_bfloat16=True)["max_iters"] for vocab_size in sizes]
    assert fast[:3] == [967, 890, 544]
    assert len({fit("modern-cpu", 20_000, vocab_size)["max_iters"] for vocab_size in sizes}) == 1
    assert len({fit("modern", 10**9, vocab_size)["max_iters"] for vocab_size in sizes}) == 1, "not measured on a GPU"


def test_other_presets_are_the_same_for_every_text():
    assert set(recipe.RECIPES) == {"modern-cpu", "modern"}
    for preset in (*(set(PRESETS) - set(recipe.RECIPES)), ""):
        assert recipe.fit_options(preset, train_tokens=54_000, vocab_size=65, tokens_per_step=768) == {}


@pytest.mark.parametrize(("device", "preset"), [("cpu", "modern-cpu"), ("cuda", "modern"), ("mps", "modern")])
@pytest.mark.parametrize("has_fast_bfloat16", [False, True])
def test_the_steps_that_would_help_are_more_than_those_of_the_recipe_on_a_long_text_only(
    device, preset, has_fast_bfloat16
):
    for train_tokens in (54_000, 10**8):
        steps, most_steps = recipe.steps_for_text(
            device,
            train_tokens=train_tokens,
            vocab_size=65,
            tokens_per_step=TOKENS_PER_STEP[preset],
            has_fast_bfloat16=has_fast_bfloat16,
        )
        assert steps == fit(preset, train_tokens, has_fast_bfloat16=has_fast_bfloat16)["max_iters"]
        assert (most_steps > steps) == (train_tokens == 10**8)


@pytest.mark.parametrize(("max_iters", "patience"), [(0, 5), (185, 5), (1_000, 5), (5_000, 18), (20_000, 70)])
def test_a_longer_training_has_patience_for_a_twelfth_of_it(max_iters, patience):
    """With a high learning rate, the val loss may not fall for a while, and does when the rate decays."""
    options = recipe.fit_options(
        "modern-cpu", train_tokens=54_000, vocab_size=60, tokens_per_step=4096, max_iters=max_iters
    )
    assert (options["eval_interval"], options["patience"]) == (24, patience)


@pytest.mark.parametrize("preset", PRESETS)
def test_named_options_are_those_that_follow_from_a_text(preset):
    """Whatever the text is: the names are those of a very short one."""
    for vocab_size, train_tokens in ((65, 10**6), (50_257, 10**5)):
        fitted = recipe.fit_options(preset, train_tokens=train_tokens, vocab_size=vocab_size, tokens_per_step=4096)
        assert recipe.fitted_names(preset) == list(fitted)
    assert bool(recipe.fitted_names(preset)) == (preset in recipe.RECIPES)
