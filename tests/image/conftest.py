"""The image, built once a session from a copy of the sources in which secrets were planted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from image.building import IN_BUILD_SECRETS, Built, build, copy_sources, plant
from image.containers import Engine, engine, forbidden
from image.index import Index, index_of_this_machine
from requirements_of import require


@pytest.fixture(scope="session")
def containers() -> Iterator[Engine]:
    reason = forbidden()
    require(reason is None, f"{reason}")
    with engine() as started:
        yield started


@pytest.fixture(scope="session")
def base(containers) -> str:
    return containers.make_base()


@pytest.fixture(scope="session")
def sources(containers, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "sources"
    copy_sources(folder)
    return folder


@pytest.fixture(scope="session")
def planted(sources) -> dict[str, str]:
    return plant(sources)


@pytest.fixture(scope="session")
def index(tmp_path_factory, planted) -> Index:
    return index_of_this_machine(tmp_path_factory.mktemp("index"), planted[IN_BUILD_SECRETS])


@pytest.fixture(scope="session")
def built(containers, base, sources, planted, index) -> Built:
    return build(containers, base, sources, planted, index)
