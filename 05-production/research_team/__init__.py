"""The parts of research.py."""
