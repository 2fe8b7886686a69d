"""What exporters share: which options of the network another program would have to know."""

from collections.abc import Collection

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Role

# Options that only have an effect with another value of a second one than the default.
_PART_OF = {"rope_theta": "position", "ngram_rows": "ngram"}


def unsupported_options(config: TrainConfig, *, supported: Collection[str]) -> list[str]:
    """`name=value` of each option of the network that is neither `supported` by a format nor at its default.

    With the defaults the network is nanoGPT's. So an option that nobody thought of when the exporter was written is
    refused, unless it changes nothing. Each exporter checks the option `tokenizer` itself.
    """
    default = type(config)()
    names = [
        name
        for name in config.names_by_role(Role.NETWORK)
        if name not in (*supported, "tokenizer") and _PART_OF.get(name, name) in (*supported, name)
    ]
    return [f"{name}={getattr(config, name)}" for name in names if getattr(config, name) != getattr(default, name)]
