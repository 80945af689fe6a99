"""What only tests use: the pytest plugin and its parts."""
