"""Configuration: what can be set, read from YAML and flags, with all mistakes told at once.

Imports neither torch nor numpy: `--help`, `--check` and the launcher answer at once.
"""
