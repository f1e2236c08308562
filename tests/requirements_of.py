"""What a test needs of the machine: it is skipped where that is missing, and says so."""

import os

import pytest

REQUIRE_ALL = "GRADACC_REQUIRE_ALL"


def require(condition: bool, reason: str) -> None:
    """Skip the test where `condition` is false; fail it where GRADACC_REQUIRE_ALL is set (CI)."""
    if not condition:
        if os.environ.get(REQUIRE_ALL):
            pytest.fail(f"{reason}, and {REQUIRE_ALL} is set")
        pytest.skip(reason)
