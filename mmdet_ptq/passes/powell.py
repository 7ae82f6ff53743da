# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Powell's method with a budget of evaluations."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar

#: how exactly a line is searched, and most evaluations on it
WITHIN, MOST = 0.05, 8


class _Spent(Exception):
    """The budget is spent."""


class Powell:
    """Minimises a function of many numbers, within a box.

    As SciPy's, with two differences: no more evaluations are made than
    given, and a line search never leaves a point for a worse one. SciPy's
    goes to the best point that it looked at, and does not look at the one
    that it comes from.

    Args:
        loss (Callable): Gives a float of a 1-D array. It must be exact
            below :attr:`value`; above it any number above it will do.
        start (np.ndarray): Shape (N, ), where to begin.
        value (float): Its loss.
        width (float): How far a number may go from ``start``.
        budget (int): Most evaluations.
        tol (float): A round that gains less than this share is the last.

    Attributes:
        point (np.ndarray): The best one so far.
        value (float): Its loss.
        evaluations (int): How many were made.
    """

    def __init__(
        self,
        loss: Callable[[np.ndarray], float],
        start: np.ndarray,
        value: float,
        width: float,
        budget: int,
        tol: float = 1e-3,
    ) -> None:
        self.loss, self.budget, self.tol = loss, budget, tol
        self.low, self.high = start - width, start + width
        self.point, self.value = start, value
        self.evaluations = 0
        # so that every number has its turn
        self.share = max(2, min(MOST, budget // max(1, len(start))))

    def run(self, rounds: int) -> None:
        """Searches along each direction once a round.

        Args:
            rounds (int): Most rounds.
        """
        directions = list(np.eye(len(self.point)))
        try:
            for i in range(rounds):
                start, before = self.point, self.value
                gains = [self._line(one) for one in directions]
                if before - self.value <= self.tol * before:
                    return
                if i + 1 < rounds:
                    self._turn(directions, gains, start, before)
        except _Spent:
            return

    def _turn(
        self,
        directions: list[np.ndarray],
        gains: list[float],
        start: np.ndarray,
        before: float,
    ) -> None:
        """Takes the way of the round as a direction, if that pays.

        It is worth it unless most of the gain was that of one direction, or
        the loss turns up again along the way (Numerical Recipes, 10.7).
        """
        way = self.point - start
        value, most = self.value, max(gains)
        beyond = self._at(np.clip(self.point + way, self.low, self.high))
        rest = before - value - most
        bend = 2 * (before + beyond - 2 * value) * rest**2
        if beyond < before and bend < most * (before - beyond) ** 2:
            self._line(way)
            directions[gains.index(most)] = directions[-1]
            directions[-1] = way

    def _line(self, way: np.ndarray) -> float:
        """Searches along a direction; gives what it gained."""
        start, before = self.point, self.value
        moves = way != 0
        ends = np.stack([self.low - start, self.high - start])[:, moves]
        steps = np.sort(ends / way[moves], 0)
        least, most = steps[0].max(), steps[1].min()
        if least < most:
            minimize_scalar(
                lambda step: self._at(start + step * way),
                bounds=(least, most),
                method='bounded',
                options=dict(
                    maxiter=self.share, xatol=WITHIN / np.abs(way).max()
                ),
            )
        return before - self.value

    def _at(self, point: np.ndarray) -> float:
        if self.evaluations >= self.budget:
            raise _Spent
        self.evaluations += 1
        found = self.loss(point)
        if found < self.value:
            self.point, self.value = point, found
        return found
