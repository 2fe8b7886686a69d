"""Large numbers as short text for people: 10.65M parameters, 42.6MB."""

SI_PREFIXES = ("k", "M", "G", "T", "P")  # each 1000 times the one before; for FLOPs and bytes
COUNT_SUFFIXES = ("k", "M", "B", "T")  # thousand, million, billion, trillion; for parameters and tokens


def format_number(number: float, *, digits: int = 3, suffixes: tuple[str, ...] = SI_PREFIXES) -> str:
    """The number with that many significant digits and a suffix, without zeros at the end.

    It is rounded before the suffix is chosen: 999,999 is 1M and not 1000k.
    """
    rounded = float(f"{number:.{digits}g}")
    power = max((power for power in range(1, len(suffixes) + 1) if rounded >= 1000**power), default=0)
    return f"{rounded / 1000**power:.{digits}g}{suffixes[power - 1] if power else ''}"
