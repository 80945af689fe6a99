"""The same agents on several machines: Ray, and leases of one limit."""
