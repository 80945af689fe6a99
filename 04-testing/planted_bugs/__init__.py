"""Planted bugs with their fixes, and ways to find them."""
