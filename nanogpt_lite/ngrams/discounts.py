"""The discounts of modified Kneser-Ney smoothing."""

from collections.abc import Sequence

FALLBACK_DISCOUNT = 0.5  # where no n-gram has the count 1, so that nothing can be estimated


def estimate_discounts(n: Sequence[int]) -> list[float]:
    """The discounts D for the counts c = 0, 1, 2, and 3 or more, by the formula of Chen and Goodman (1999):

    D(c) = c - (c + 1) * Y * n[c + 1] / n[c], with n[c] the number of k-grams of count c and Y = n[1] / (n[1] + 2 n[2]).

    In a short text n[c] may be 0, or D(c) too small to leave anything for unseen tokens. Y is used then, the discount
    for all counts in Kneser-Ney smoothing without the modification. `n`: for the counts 0 to 4, and perhaps more.
    """
    discounts = [0.0, *[n[1] / (n[1] + 2 * n[2]) if n[1] else FALLBACK_DISCOUNT] * 3]
    for count in (2, 3) if n[1] else ():  # D(1) is Y
        denominator = (n[1] + 2 * n[2]) * n[count]
        numerator = count * denominator - (count + 1) * n[1] * n[count + 1]  # in integers: a zero is exact
        if numerator > 0:
            discounts[count] = numerator / denominator
    return discounts
