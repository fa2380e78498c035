"""A worker daemon that speaks the Job-Runner protocol."""

__version__ = "3.0.0"
