"""A token bucket: it holds up to `size` units, and `rate` units a second flow in."""

INSTANT = 1e-7  # seconds: shorter waits are rounding errors


class TokenBucket:
    """A bucket that starts full. `now` is in seconds, of any clock that only advances.

    Taking more than it holds leaves a debt: a level below zero.
    """

    def __init__(self, rate: float, size: float) -> None:
        self.rate, self.size, self.level = rate, size, size
        self.filled_at = 0.0

    def refill(self, now: float, full: float | None = None) -> None:
        """Add what has flowed in since the last refill, up to `full` (or `size`)."""
        self.add(self.rate * max(0.0, now - self.filled_at), full)
        self.filled_at = max(self.filled_at, now)

    def add(self, amount: float, full: float | None = None) -> None:
        """Give `amount` back, up to `full` (or `size`). Take it, if it is negative."""
        full = max(self.level, self.size if full is None else full)
        self.level = min(self.level + amount, full)

    def wait(self, amount: float) -> float:
        """Return the seconds until `amount` is there."""
        seconds = (amount - self.level) / self.rate
        return seconds if seconds > INSTANT else 0.0

    def take(self, amount: float) -> None:
        self.level -= amount

    def cap_at(self, level: float) -> None:
        self.level = min(self.level, level)
