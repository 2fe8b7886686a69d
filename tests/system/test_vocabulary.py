"""Words of version 0.1 that the field does not use do not come back."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The old names and phrases themselves: this file is the only one that may contain them.
NAMES = [
    "Turns",
    "PRODUCTS_UP_TO",
    "_by_products",
    "keep_on_device",
    "normalisation()",
    "looked_up",
    "RecordedStep",
    "_put_back",
    "prepare_for_decoding",
    "round_to_int8",
    "is_first",
    "own_gpu",
    "own_share",
    "note_begun",
    "first_goes_ahead",
    "from_first",
    "gradients_stay",
    "few_rows",
    "keep_memory",
    "MOST_THREADS",
    "THREADS_EACH",
    "BFLOAT16_FROM",
    "NO_MEMORY",
    "Wishes",
    "wishes",
    "read_wishes",
    "begin_or_go_on",
    "DECIDE_BITS",
    "slot_shapes",
    "slots_to_be",
    "_take_in",
    "require_description",
    "GuardedTokens",
    "require_intact",
    "octets",
    "names_pairs",
    "TURNED",
    "OnVolume",
    "LOOK_EVERY",
    "send_up",
    "one_of_each",
    "NOT_GIVEN",
    "Lenient",
    "in_words",
    "_Lasting",
    "MOST_OF_A_CONTEXT",
    "furnish",
    "arena",
    "_settle",
]
PHRASES = (
    "the road",
    "fault of the world",
    "faults of the world",
    "error of the world",
    "is the business of",
    "(is|are) left to",
    "bends the line",
    "knows its place",
    "let go of the gradients",
    "brings the run home",
    "overlooking one",
    "is not possible: it must be",
    "so many-th",
)
# WorldError stays importable: its definition, the list of public names, the test of that, and where users read of it
OLD_PUBLIC_NAME = ("errors.py", "__init__.py", "test_errors.py", "CHANGELOG.md")


def sources() -> Iterator[Path]:
    """Every file that people read, but this one and recorded results."""
    for pattern in ("nanogpt_lite/**/*.py", "tests/**/*.py", "benchmarks/*.py", "benchmarks/*.sh", "docs/*.md", "*"):
        for path in ROOT.glob(pattern):
            if path.is_file() and path.suffix in (".py", ".md", ".sh", ".toml", ".ipynb") and path != Path(__file__):
                yield path


def old_words(text: str, *, world_error: bool = True) -> list[tuple[int, str]]:
    """The lines of a text with an old name or phrase, and the name or phrase."""
    names = [*NAMES, "WorldError"] if world_error else NAMES
    words = [*(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names), *(rf"(?i:\b{phrase}\b)" for phrase in PHRASES)]
    pattern = re.compile("|".join(words))
    return [(number, match[0]) for number, line in enumerate(text.splitlines(), 1) for match in pattern.finditer(line)]


def test_no_old_word_is_used():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in sources()
        for number, word in old_words(path.read_text(encoding="utf-8"), world_error=path.name not in OLD_PUBLIC_NAME)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "word"),
    [("x = Turns()", "Turns"), ("# The road on Modal", "The road"), ("self._put_back(x)", "_put_back")],
)
def test_an_old_word_is_found(line, word):
    assert old_words(f"first line\n{line}\n") == [(2, word)]


def test_longer_names_are_not_old_words():
    assert old_words("my_Turns keep_memory_used the roadmap") == []
