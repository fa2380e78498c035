"""The commands of those who run a worker, on the machine of the worker."""
