"""What a checkpoint says of its run beside the tensors: state.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from gradacc_dist.checkpoint.manifest import REMEDY, STATE
from gradacc_dist.errors import CheckpointError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RunState(BaseModel):
    """Where a run stands, and what it is. Nothing in it depends on ranks, engine or micro-batch.

    No state of a random generator: random numbers follow (seed, step, micro-batch).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    step: NonNegativeInt
    """Windows consumed, skipped ones included."""
    num_updates: NonNegativeInt
    """Optimizer steps made: what the learning rate follows."""
    examples_seen: NonNegativeInt
    """Position in the data: examples over all epochs."""
    epoch: NonNegativeInt
    """Of the last window."""
    seed: NonNegativeInt
    num_steps: PositiveInt
    """Windows of the whole schedule."""
    loss_scale: PositiveFloat | None
    """float16's factor on the next loss; null in other formats."""
    loss_scale_updates: NonNegativeInt
    """Since it last changed, or gradients overflowed: what it is raised after."""
    loss_scale_borne: NonNegativeInt
    """The overflow that lowers it, counted from here."""
    ledger_bytes: NonNegativeInt
    """Length of ledger.jsonl once it has the line of this step."""
    elapsed_seconds: NonNegativeFloat
    """Wall-clock seconds of the run, over all of its invocations."""
    tracker_id: str | None
    version: str
    """Of gradacc_dist."""
    identity: dict[str, object]
    """`section.field` of every field that decides the result, with its value."""
    data_sha256: Sha256
    held_out_sha256: Sha256 | None
    layout: dict[str, object]
    """Ranks, engine, micro-batch and hostnames at the save: for people only."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any], path: Path = Path(STATE)) -> RunState:
        """The state that state.json at `path` holds. Raises CheckpointError naming the field."""
        written_in = fields.get("format") if isinstance(fields, Mapping) else None
        if written_in != 1:
            raise CheckpointError(
                f"{path}: has format {written_in!r}, this version reads 1; use the version of "
                "gradacc_dist that wrote it"
            )
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(
                f"{path}: {field}: {first['msg']}, got {first['input']!r:.60}; {REMEDY}"
                if first["type"] != "missing"
                else f"{path}: {field}: is missing; {REMEDY}"
            ) from error
