"""A symmetric function of many objects, evaluated on few of them with weights that keep the moments."""

from __future__ import annotations

from math import comb


def n_atoms(m: int, k: int) -> int:
    """Objects that are enough to keep every moment of degree ≤ k, the number of monomials C(m + k, k).

    Any positive measure on R^m has this many of its own atoms with positive weights that keep all of its moments up to
    degree k, the total included (Tchakaloff, Carathéodory); fewer if the monomials are dependent on the data.

    Args:
        m: dimension of an object, ≥ 1.
        k: degree, ≥ 0.

    Returns:
        The number.

    Raises:
        ValueError: if one is out of range.

    Source: arXiv 2510.00504.

    Example:
        >>> n_atoms(3, 2), n_atoms(6, 2)
        (10, 28)
    """  # noqa: DOC502
    _check(m, k)
    return comb(m + k, k)


def predict_exponent(m: int, k: int) -> float:
    """Exponent α of the error d^(−α) when d objects are compressed to a fixed part of d, (k + 1)/m + 1/2.

    For a mean of smooth functions of the objects: a cluster of diameter r ∝ d^(−1/m) errs by O(r^(k+1)), and the
    errors of clusters that have nothing to do with each other add up like noise. This is what is observed; proven is
    an error of at most O(d^(1 − (k + 1)/m)).

    Args:
        m: dimension of an object, ≥ 1.
        k: degree of the moments that are kept, ≥ 0.

    Returns:
        α; as d grows, and as long as C(m + k, k) is small beside what d is compressed to.

    Raises:
        ValueError: if one is out of range.

    Source: arXiv 2510.00504, scaling of the error.

    Example:
        >>> predict_exponent(2, 3)
        2.5
    """  # noqa: DOC502
    _check(m, k)
    return (k + 1) / m + 0.5


def _check(m: int, k: int) -> None:
    if m < 1 or k < 0:
        raise ValueError(f"The dimension must be at least 1 and the degree at least 0, got m = {m!r} and k = {k!r}.")
