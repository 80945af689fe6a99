"""Random numbers that are always the largest, or always the smallest."""

from random import Random


class Longest(Random):
    """The largest of all that can be drawn."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Shortest(Random):
    """The smallest of all that can be drawn."""

    def uniform(self, a: float, b: float) -> float:
        return a
