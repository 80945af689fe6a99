"""Errors that are meant to be read by whoever runs a script."""


class ReaderError(Exception):
    """Its message is one line: what is wrong, and what is allowed or to be done."""
