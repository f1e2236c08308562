"""What a test needs of the machine it runs on."""

import os

import pytest


def require(condition: bool, reason: str) -> None:
    """Skip the test for `reason`, or fail it where the machine is meant to have everything."""
    if condition:
        return
    if os.environ.get("GRADACC_REQUIRE_ALL"):
        pytest.fail(f"GRADACC_REQUIRE_ALL is set, but {reason}")
    pytest.skip(reason)
