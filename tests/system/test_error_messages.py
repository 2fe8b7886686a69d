"""Every error of the library is raised by some test, and its message says in a line or two what to do."""

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


def error_sites() -> Iterator[tuple[str, range]]:
    """Where the library creates an error: the file name of the module, and the lines of the call."""
    for path in sorted(Path(nanogpt_lite.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                yield path.name, range(node.lineno, (node.end_lineno or node.lineno) + 1)


@pytest.mark.whole_suite
def test_every_error_is_raised_by_a_test():
    raised = {(name, line) for name, line, _ in error_recorder.recorded()}
    untested = [
        f"{name}:{lines.start}" for name, lines in error_sites() if not any((name, line) in raised for line in lines)
    ]
    assert untested == []


@pytest.mark.whole_suite
def test_every_error_message_gives_a_remedy():
    modules = {name for name, _ in error_sites()}
    messages = {message for name, _, message in error_recorder.recorded() if name in modules}
    assert len(messages) > 100
    # some messages are quoted by another one, which gives the remedy
    quoted = {part for part in messages for message in messages if part != message and part in message}
    final = sorted(messages - quoted)
    assert [message for message in final if not REMEDY.search(message)] == []
    assert [message for message in final if message.count("\n") > 1 or "Traceback" in message] == []
    assert [message for message in final if message.endswith(".")] == []
