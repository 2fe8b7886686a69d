"""The workflow, pre-commit, the citation, the changelog and the templates agree with the project and with .ci/run."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from datetime import date
from typing import Any

import pytest
import yaml
from documentation import CHANGELOG, README, ROOT, shell_commands

import nanogpt_lite as ng
from nanogpt_lite.cli import main

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CI_RUN = (ROOT / ".ci/run").read_text(encoding="utf-8")
SETUP, INSTALL, TEST = (  # README's command for the tests
    words for words in shell_commands(README)[3:6]
)
RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)
SYSTEMS = {"Linux": "ubuntu", "MacOS": "macos", "Windows": "windows"}  # in classifiers: in the names of runners


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.fixture
def workflow() -> dict[Any, Any]:
    content: dict[Any, Any] = read_yaml(".github/workflows/ci.yml")
    return content


def commands_of(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def classified(prefix: str) -> set[str]:
    """The last words of the classifiers that begin with `prefix`."""
    return {name.rsplit(" :: ", 1)[1] for name in PROJECT["classifiers"] if name.startswith(prefix)}


def test_linux_runs_what_developers_run(workflow):
    assert commands_of(workflow["jobs"]["linux"]) == [".ci/run"]
    assert commands_of(workflow["jobs"]["slow"])[0].split()[:2] == [".ci/run", "--slow"]


def test_other_systems_run_the_command_of_the_readme(workflow):
    assert (SETUP[:3], INSTALL[:2], TEST) == (
        ["python3", "-m", "venv"],
        [".venv/bin/pip", "install"],
        [".venv/bin/pytest", "-n", "auto"],
    )
    commands = [shlex.split(command) for command in commands_of(workflow["jobs"]["macos-windows"])]
    assert commands == [["python", "-m", "pip", *INSTALL[1:]], ["python", "-m", "pytest", "-n", "auto"]]


def test_workflow_covers_the_systems_and_pythons_of_the_classifiers(workflow):
    linux, others = (workflow["jobs"][name] for name in ("linux", "macos-windows"))
    versions = {version for version in classified("Programming Language :: Python :: 3") if "." in version}
    for job in (linux, others):
        assert set(job["strategy"]["matrix"]["python-version"]) == versions
        assert job["strategy"]["fail-fast"] is False
    assert PROJECT["requires-python"] == f">={min(versions, key=lambda version: int(version.split('.')[1]))}"
    runners = {linux["runs-on"], *others["strategy"]["matrix"]["os"]}
    assert runners == {f"{SYSTEMS[name]}-latest" for name in classified("Operating System")}


def test_workflow_has_few_rights_a_time_limit_and_pinned_actions(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert set(triggers) == {"push", "pull_request", "schedule", "workflow_dispatch"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 180
        used = {step["uses"]: step["with"] for step in job["steps"] if "uses" in step}
        assert all(re.fullmatch(r"actions/(checkout|setup-python)@v\d+\.\d+\.\d+", name) for name in used)
        options = {key: value for values in used.values() for key, value in values.items()}
        assert (options["persist-credentials"], options["cache"]) == (False, "pip")
        assert (ROOT / options["cache-dependency-path"]).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason=".ci/run is a Bash script, for Linux and macOS")
def test_ci_run_passes_its_arguments_to_pytest(tmp_path):
    """The script in a folder of its own, where python3 makes an environment of programs that print their arguments."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    shutil.copy(README, tmp_path)
    (tmp_path / ".ci/browser").write_text('#!/bin/sh\necho "browser for $(basename "$1")"\n', encoding="utf-8")
    (tmp_path / ".ci/browser").chmod(0o755)
    echo = '#!/bin/sh\necho "$(basename "$0")" "$@"\n'
    fake = f"#!/bin/sh\nmkdir -p $3/bin\nfor name in pip ruff mypy lint-imports pytest; do\nprintf '%s' '{echo}' > "
    fake += "$3/bin/$name\nchmod +x $3/bin/$name\ndone\n"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(fake, encoding="utf-8")
    (tmp_path / "bin/python3").chmod(0o755)
    ran = subprocess.run(
        [tmp_path / ".ci/run", "--slow", "-k", "two words"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == [
        "pip install -e .[dev]",
        "browser for python",
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports",
        "pytest -n auto --slow -k two words",
    ]


def test_pre_commit_runs_the_checks_of_ci_from_the_environment():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # nothing is fetched, so nothing is pinned a second time
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    in_ci = re.findall(r'^"\$work/venv/bin/([\w-]+)"( [a-z]+)?', CI_RUN, re.MULTILINE)
    hooks = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    assert hooks == [program + argument for program, argument in in_ci]
    for hook in repository["hooks"]:
        assert hook.get("pass_filenames", True) is ("ruff" in hook["entry"])
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_version_and_date_are_those_of_the_changelog_and_the_citation():
    releases = RELEASE.findall(CHANGELOG.read_text(encoding="utf-8"))
    citation = read_yaml("CITATION.cff")
    assert releases[0] == (ng.__version__, citation["date-released"])
    assert citation["version"] == ng.__version__
    numbers = [tuple(map(int, version.split("."))) for version, _ in releases]
    assert numbers == sorted(set(numbers), reverse=True)
    days = [date.fromisoformat(day) for _, day in releases]
    assert days == sorted(days, reverse=True)


def test_changelog_has_the_sections_of_keep_a_changelog():
    text = CHANGELOG.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[:2] == ["Files of earlier versions", "[Unreleased]"]
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in RELEASE.split(text)[3::3]:
        found = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert found == sorted(found, key=kinds.index)
        assert found


def test_citation_describes_the_project_and_names_no_person():
    citation = read_yaml("CITATION.cff")
    required = {"cff-version", "message", "title", "authors"}  # of the schema, version 1.2.0
    assert (
        required
        <= citation.keys()
        <= required
        | {*("abstract", "type", "version", "date-released", "license", "keywords", "repository-code", "url", "doi")}
    )
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", PROJECT["license"])
    assert citation["abstract"] == PROJECT["description"]
    assert citation["authors"] == [{"name": "nanogpt_lite contributors"}]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_complete(name):
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    assert all(element["type"] == "textarea" and element["attributes"]["label"] for element in fields)
    assert len({element["id"] for element in fields}) == len(fields)
    assert any(element.get("validations", {}).get("required") for element in fields)


def test_bug_form_asks_for_what_is_needed_to_repeat_it():
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    for wanted in ("nanogpt-lite --version", "config.json", "The command", "SECURITY.md"):
        assert wanted in text
    (command,) = re.findall(r"`nanogpt-lite (info --json .*?)`", text)
    main.parse_command(command.split())
    assert not [line for line in text.splitlines() if re.search(r"https?://", line)]
