"""Print what the project and the named extras require, one a line, from pyproject.toml alone.

So the image installs them in a layer of their own, which a change of the source does not touch.
Usage: python requirements.py EXTRA,EXTRA... (may be empty). The standard library only.
"""

import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """`project`: the table of that name. An unknown extra ends the build, with those there are."""
    found = list(project["dependencies"])
    optional = project["optional-dependencies"]
    for extra in extras:
        if extra not in optional:
            sys.exit(
                f"EXTRAS names {extra!r}, which pyproject.toml has not; legal: "
                f"{', '.join(sorted(optional))}"
            )
        found += optional[extra]
    return found


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = [extra.strip() for extra in sys.argv[1].split(",") if extra.strip()]
    print("\n".join(requirements(table, extras)))
