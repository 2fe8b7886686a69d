"""The pages of the documentation, for the tests that read them: their code blocks, commands, links and names."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"
SECURITY = ROOT / "SECURITY.md"
PAGES = [README, *DOCS, CONTRIBUTING, CHANGELOG, SECURITY]


def code_blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced and indented code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def inline_code(page: Path) -> list[str]:
    """The code between single backticks in the prose, line breaks as spaces."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def shell_commands(page: Path) -> list[list[str]]:
    """Every command of the sh blocks as words, `&&` taken apart and continued lines joined."""
    lines = "".join(code_blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


def modal_commands(page: Path) -> list[list[str]]:
    """The commands of Modal's client, without the environment variables before them."""
    commands = [[word for word in words if not word.startswith("NANOGPT_")] for words in shell_commands(page)]
    return [words for words in commands if words[0] == "modal"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page."""
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def links(page: Path) -> list[str]:
    """The targets of all links and images of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
