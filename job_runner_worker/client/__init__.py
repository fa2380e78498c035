"""The command line for people and programs: submit, runs, log, kill, workers."""
