"""Numbers that look random and are the same on every run, machine and Python."""

import hashlib


def digest_of(*parts: object) -> str:
    """64 hexadecimal digits, the same for the same parts."""
    text = ":".join(map(str, parts))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def fraction_of(*parts: object) -> float:
    """A number from 0 up to but not including 1, the same for the same parts."""
    return int(digest_of(*parts)[:13], 16) / 16**13
