"""Configuration: what can be set, read from YAML and flags, with all mistakes told at once.

Imports neither torch nor numpy: `--help`, `--check` and the launcher answer at once.
"""

from gradacc_dist.config.flags import CommandLine, parse_command_line
from gradacc_dist.config.help import help_text
from gradacc_dist.config.load import load
from gradacc_dist.config.present import dump, print_table, rich_table, table
from gradacc_dist.config.resolved import Resolved, fingerprint, leaves
from gradacc_dist.config.schema import Config

__all__ = [
    "CommandLine",
    "Config",
    "Resolved",
    "dump",
    "fingerprint",
    "help_text",
    "leaves",
    "load",
    "parse_command_line",
    "print_table",
    "rich_table",
    "table",
]
