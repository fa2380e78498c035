#!/usr/bin/env python3
"""Prints to stdout and to stderr, and fails with exit status 3."""

import sys

print("looking for the number of answers", flush=True)
print("there are none", file=sys.stderr, flush=True)
sys.exit(3)
