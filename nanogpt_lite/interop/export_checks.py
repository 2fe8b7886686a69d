"""What exporters share: which options of the network another program would have to know."""

import dataclasses
from collections.abc import Collection

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Role


def unsupported_options(config: TrainConfig, *, supported: Collection[str]) -> list[str]:
    """`name=value` of each option of the network that is neither `supported` by a format nor at its default.

    With the defaults the network is nanoGPT's. So an option that is unknown to an exporter is refused, unless it
    changes nothing. A part of an unsupported option has an effect only if that one is refused too. Each exporter checks
    the option `tokenizer` itself.
    """
    default = type(config)()
    part_of = {field.name: field.metadata["part_of"] for field in dataclasses.fields(config)}
    names = [
        name
        for name in config.names_by_role(Role.NETWORK)
        if name not in (*supported, "tokenizer") and (not part_of[name] or part_of[name] in supported)
    ]
    return [f"{name}={getattr(config, name)}" for name in names if getattr(config, name) != getattr(default, name)]
