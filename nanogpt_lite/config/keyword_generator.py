"""Writes `keyword_types.py`, the types of the keyword arguments, from the options and the presets.

Type checkers and editors read source and cannot see a signature that is made when a module is imported. After a change
of an option or a preset:

    python -m nanogpt_lite.config.keyword_generator
"""

import dataclasses
import textwrap
from pathlib import Path
from typing import NamedTuple

from nanogpt_lite.config.options import (
    FilterConfig,
    InspectConfig,
    LoadConfig,
    NetworkConfig,
    RunConfig,
    RuntimeConfig,
    SampleConfig,
    ServeConfig,
    TrainConfig,
)
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.config.schema import Options, type_of

OUTPUT = Path(__file__).with_name("keyword_types.py")
PATH_OPTIONS = ("dataset", "out_dir", "init_from", "trace")  # `api.request` converts a Path to text
LINE_LENGTH = 120


class TypedDictSource(NamedTuple):
    """What a generated class holds: the options of `kind` that are neither in a base class nor left out."""

    name: str
    bases: tuple[str, ...]
    kind: type[Options]
    docstring: str
    without: tuple[str, ...] = ()


CLASSES = (
    TypedDictSource("RuntimeOptions", (), RuntimeConfig, "The device, the number format, and the seed."),
    TypedDictSource("NetworkOptions", (), NetworkConfig, "The architecture of the network."),
    TypedDictSource(
        "TrainOptions",
        ("NetworkOptions", "RuntimeOptions"),
        TrainConfig,
        "Keyword arguments of `train` and `training`. The dataset is their first argument.",
        without=("dataset",),
    ),
    TypedDictSource("LoadOptions", ("RuntimeOptions",), LoadConfig, "Keyword arguments of `load` and `evaluate`."),
    TypedDictSource(
        "FilterOptions", ("LoadOptions",), FilterConfig, "Which tokens may be drawn, and how likely they are."
    ),
    TypedDictSource("InspectOptions", ("FilterOptions",), InspectConfig, "Keyword arguments of `inspect`."),
    TypedDictSource(
        "AppOptions", ("LoadOptions",), ServeConfig, "Keyword arguments of `app`.", without=("host", "port")
    ),
    TypedDictSource("ServeOptions", ("AppOptions",), ServeConfig, "Keyword arguments of `serve`."),
    TypedDictSource(
        "StreamOptions", ("FilterOptions",), SampleConfig, "Keyword arguments of `stream`.", without=("num_samples",)
    ),
    TypedDictSource(
        "SampleOptions", ("StreamOptions",), SampleConfig, "Keyword arguments of `sample` and `stream_batch`."
    ),
    TypedDictSource(
        "RunOptions", ("TrainOptions", "SampleOptions"), RunConfig, "Keyword arguments of `api.main_job.run`."
    ),
)

HEADER = '''"""The types of the keyword arguments, for type checkers and editors.

Generated from `options` and `presets` by `python -m nanogpt_lite.config.keyword_generator`: do not edit.
"""

from pathlib import Path
from typing import Literal, TypedDict

'''


def keyword_types() -> str:
    """The source of `keyword_types.py`, formatted as `ruff format` does it."""
    names = "".join(f'    "{name}",\n' for name in PRESETS)
    preset_name = f'PresetName = Literal[\n{names}]\n"""The names of the presets."""\n'
    names_of: dict[str, list[str]] = {}
    classes = []
    for source in CLASSES:
        inherited = {name for base in source.bases for name in names_of[base]}
        names_of[source.name] = [name for name in source.kind.names() if name not in source.without]
        own = [f for f in dataclasses.fields(source.kind) if f.name in set(names_of[source.name]) - inherited]
        header = f"class {source.name}({', '.join(source.bases) or 'TypedDict'}, total=False):"
        classes.append("\n".join([header, f'    """{source.docstring}"""', "", *map(_field_source, own)]))
    return HEADER + "\n\n".join([preset_name, *classes])


def _field_source(field: "dataclasses.Field[Options]") -> str:
    """The line that declares an option, and its help as the docstring that editors show."""
    default = f"{field.default!r} {field.metadata['unit']}".rstrip()
    text = f"{field.metadata['help']} (default: {default})"
    # one line, or a wrapped text: ruff leaves it as it is
    lines = textwrap.wrap(text, LINE_LENGTH - len('    """"""'), break_on_hyphens=False)
    docstring = "\n    ".join(lines).replace("\\", "\\\\")
    closing = "\n    " if len(lines) > 1 else ""
    return f'    {field.name}: {_type_source(field)}\n    """{docstring}{closing}"""\n'


def _type_source(field: "dataclasses.Field[Options]") -> str:
    """The type of an option: as the option has it, a few names as Literal, and a Path where one is accepted."""
    if choices := field.metadata["rule"].choices:
        names = ", ".join(f'"{choice}"' for choice in choices)
        return f"Literal[{names}]"
    type_name = type_of(field).__name__
    return f"{type_name} | Path" if field.name in PATH_OPTIONS else type_name


if __name__ == "__main__":
    OUTPUT.write_text(keyword_types(), encoding="utf-8", newline="\n")
    print(OUTPUT)
