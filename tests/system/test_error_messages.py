"""Every error that the library tells: each is met by a test, and says in a line or two what to do."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import error_recorder
import pytest

import nanogpt_lite

KINDS = ("UserError", "ExternalError", "DownloadError")
REMEDY = re.compile(
    r"\b(give|use|try|train|wait|go on|restore|prepare|check|begin|start|leave|move|write|convert|install|unset|see|"
    r"copy|lists|did you mean|there are|must be|it has|runs with one)\b",
    re.IGNORECASE,
)


def places() -> Iterator[tuple[str, range]]:
    """Where an error is made: a module, and the lines."""
    for path in sorted(Path(nanogpt_lite.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                yield path.name, range(node.lineno, node.end_lineno + 1)


@pytest.mark.whole_suite
def test_every_error_was_met_by_a_test():
    met = {(name, line) for name, line, _ in error_recorder.noted()}
    missed = [f"{name}:{lines.start}" for name, lines in places() if not any((name, line) in met for line in lines)]
    assert missed == []


@pytest.mark.whole_suite
def test_every_message_says_what_to_do():
    of_the_library = {name for name, _ in places()}
    messages = {message for name, _, message in error_recorder.noted() if name in of_the_library}
    assert len(messages) > 100
    reasons = {part for part in messages for whole in messages if part != whole and part in whole}  # of other ones
    told_alone = sorted(messages - reasons)
    assert [message for message in told_alone if not REMEDY.search(message)] == []
    assert [message for message in told_alone if message.count("\n") > 1 or "Traceback" in message] == []
    assert [message for message in told_alone if message.endswith(".")] == []
