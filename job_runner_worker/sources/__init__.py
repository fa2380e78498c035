"""How orders arrive."""
