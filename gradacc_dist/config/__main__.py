"""`python -m gradacc_dist.config`: the JSON Schema for editors, or what a configuration means."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from gradacc_dist.config.flags import parse_command_line
from gradacc_dist.config.load import load
from gradacc_dist.config.present import print_table
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import ConfigError

USAGE = "usage: python -m gradacc_dist.config schema | show [--config FILE] [--section.field VALUE]"


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        match argv:
            case ["schema"]:
                print(json.dumps(Config.model_json_schema(), indent=2))
            case ["-h" | "--help"]:
                print(USAGE)
            case ["show", *rest]:
                _show(rest)
            case _:
                raise ConfigError(f"got {' '.join(argv) or 'no command'}; {USAGE}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _show(argv: Sequence[str]) -> None:
    line = parse_command_line(argv)
    if line.help:
        print(USAGE)
    else:
        print_table(load(line.path, line.flags), is_terminal=sys.stdout.isatty())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
