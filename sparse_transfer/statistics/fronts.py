"""Two quantities at once, cost and error: what nothing beats, and comparison at equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NAN = float("nan")
Point = tuple[float, float]  # (cost, error)


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats in both coordinates, by rising cost."""
    best: list[Point] = []
    for cost, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((cost, error))
    return best


def beaten_by(points: Sequence[Point], place: int) -> int | None:
    """The place of the point that beats the given one most clearly; None where it is on the front.

    A point beats another if it is nowhere worse and somewhere better. Of several, the one of the
    least error is named, of those the cheapest.
    """
    cost, error = points[place]
    rivals = [
        (other_error, other_cost, number)
        for number, (other_cost, other_error) in enumerate(points)
        if other_cost <= cost
        and other_error <= error
        and (other_cost < cost or other_error < error)
    ]
    return min(rivals)[2] if rivals else None


def at_cost(cost: float, points: Sequence[Point]) -> float:
    """The error of one method at a cost between two of its own points.

    Linear in the logarithm of the cost between the two neighbours. NaN outside the range of the
    points: nothing is extrapolated.

    Args:
        cost: above 0, in the unit of the points.
        points: of one method, costs above 0 and all different.
    """
    ordered = sorted(points)
    costs = np.log([point[0] for point in ordered])
    wanted = float(np.log(cost))
    slack = 1e-9  # the cost of a point itself is inside
    if not costs[0] - slack <= wanted <= costs[-1] + slack:
        return NAN
    return float(np.interp(wanted, costs, [point[1] for point in ordered]))
