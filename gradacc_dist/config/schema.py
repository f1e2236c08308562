"""What can be configured: one frozen model per section, one sentence and unit per field.

Imports no torch, so that `--help`, `--check` and the launcher answer at once. A field that the
run can derive (the number of accumulated micro-batches, the epoch) is not here.
"""

from __future__ import annotations

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
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of fields; unknown keys are refused and values cannot change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def _with_default(given: Any, either: tuple[str, str], default: int) -> Any:
    """Fill the first of two fields, of which a user sets one, when none is set."""
    if isinstance(given, dict) and all(given.get(name) is None for name in either):
        return {**given, either[0]: default}
    return given


class Run(Section):
    """The run as a whole."""

    output_dir: Path = Field(
        Path("runs/default"), description="Folder that receives everything the run leaves."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of the initial weights, the order of examples, and dropout."
    )
    overwrite: bool = Field(
        False, description="Replace an earlier run found in output_dir, its checkpoints included."
    )
    resume: str = Field(
        "auto",
        description="`auto`: continue from the newest complete checkpoint in output_dir, if there "
        "is one; `never`: start anew; or the path of a checkpoint to continue from.",
    )
    stop_after_steps: PositiveInt | None = Field(
        None,
        description="End this invocation after that step of the same schedule, with a checkpoint; "
        "the same command without it goes on.",
    )
    allow_change: tuple[str, ...] = Field(
        (),
        description="Sections or fields (`data`, `window`, `optimizer.learning_rate`) that may "
        "differ from those of the run that is continued.",
    )

    @property
    def folder(self) -> Path:
        """output_dir, with ~ as the user's home."""
        return self.output_dir.expanduser()


class Model(Section):
    """The model and its tokenizer: `path` to start from weights, or `config` to start anew."""

    path: str | None = Field(
        None, description="Folder or hub name of a pretrained model to continue from."
    )
    config: dict[str, Any] | None = Field(
        None,
        description="A transformers configuration (model_type and its fields) to start anew.",
    )
    tokenizer: str | None = Field(
        None,
        description="Folder or hub name; `embedded` trains a byte-level BPE on the embedded "
        "corpus; unset: the tokenizer of model.path.",
    )


class Share(Section):
    """One source of a mixture."""

    path: str = Field(description="The source, given like data.train.")
    weight: PositiveFloat = Field(
        1.0, description="How many times an epoch holds its examples; of 2.5, the half is a subset."
    )


Sources = str | Annotated[tuple[Share, ...], Field(min_length=1)]


class Data(Section):
    """Where examples come from and how they become tokens."""

    train: Sources = Field(
        "embedded",
        description="Training examples: `embedded` (the Python standard library), a file (.jsonl, "
        ".json, .parquet, .arrow, .txt), a folder of such files, or a dataset of the hub "
        "(org/name:split); or several, as [{path: ..., weight: ...}, ...].",
    )
    evaluate: Sources | None = Field(
        None, description="Held-out examples, given like data.train; unset: no evaluation."
    )
    supervise: Literal["auto", "assistant", "completion", "all"] = Field(
        "auto",
        description="Which tokens the loss is taken over: those that the assistant writes, those "
        "of the completion (of messages: the last one), or all; `auto`: what the rows' columns "
        "suggest.",
    )
    chat_template: Path | None = Field(
        None,
        description="Jinja file that renders messages, in place of the tokenizer's own chat "
        "template; unset: the tokenizer's.",
    )
    streaming: bool = Field(
        False,
        description="Read data.train row by row as training goes, for what is too large to index; "
        "needs schedule.steps.",
    )
    shuffle_buffer: NonNegativeInt = Field(
        1024,
        description="Examples among which a stream is shuffled, held by every rank; 0: file order "
        "(streaming only; otherwise an epoch is shuffled as a whole).",
    )
    max_length: PositiveInt = Field(
        1024, description="Longest example in tokens; longer ones are cut at the end and counted."
    )
    on_zero_items: Literal["error", "keep"] = Field(
        "error",
        description="When examples hold no supervised token: stop before training, or keep them, "
        "which adds nothing to the loss.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/gradacc_dist"),
        description="Folder of tokenised data and trained tokenizers, shared by runs.",
    )


class Objective(Section):
    """What is minimised."""

    name: Literal["causal_lm"] = Field(
        "causal_lm", description="Kind of head and loss: next-token cross-entropy."
    )
    denominator: Literal["window", "micro_batch_mean"] = Field(
        "window",
        description="`window`: the sum over all ranks divided by the global count of supervised "
        "tokens; `micro_batch_mean`: the historical mean of means, wrong, for comparison only.",
    )


class Window(Section):
    """Everything between two optimizer steps, over all ranks: the global batch."""

    examples: PositiveInt | None = Field(
        None,
        description="Examples per optimizer step, over all ranks: the size of the global batch. "
        "Either this or supervised_tokens; 64 when neither is set.",
    )
    supervised_tokens: PositiveInt | None = Field(
        None,
        description="Most supervised tokens per optimizer step, over all ranks: examples are taken "
        "in order while they fit; one that alone exceeds it is a window of its own.",
    )
    on_zero_items: Literal["error", "skip"] = Field(
        "error",
        description="When a window holds no supervised token: stop, or skip its optimizer step.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        return _with_default(given, ("examples", "supervised_tokens"), 64)


class MicroBatch(Section):
    """What one rank runs through one forward and backward; accumulation follows from it."""

    examples: PositiveInt = Field(
        8, description="Most examples in one forward; lower it when memory runs out."
    )


class Optimizer(Section):
    """How gradients become weights."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="Kind of optimizer.")
    learning_rate: NonNegativeFloat = Field(
        3e-4, description="Peak learning rate, reached after warm-up."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's two decay rates.")
    eps: PositiveFloat = Field(1e-8, description="AdamW's term that keeps a division finite.")
    momentum: Beta = Field(0.0, description="SGD's momentum.")
    weight_decay: NonNegativeFloat = Field(
        0.1, description="Decay per step times learning rate, on matrices only."
    )
    max_grad_norm: PositiveFloat | None = Field(
        1.0, description="Largest global gradient norm before clipping; null: never clip."
    )
    on_non_finite: Literal["error", "skip"] = Field(
        "error",
        description="When a loss or gradient is NaN or infinite: stop, or skip the optimizer step.",
    )


class Schedule(Section):
    """How long to train, and the learning rate as a function of the step."""

    steps: PositiveInt | None = Field(
        None,
        description="Number of windows to train on. Either this or epochs; 1000 when neither is "
        "set.",
    )
    epochs: PositiveFloat | None = Field(
        None,
        description="Passes over the training examples; the window in which a fraction of a pass "
        "ends is trained whole. Either this or steps.",
    )
    shape: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = Field(
        "cosine",
        description="Shape of the learning rate after warm-up; warmup_stable_decay holds the peak "
        "and falls linearly at the end.",
    )
    decay_fraction: Fraction = Field(
        0.1,
        description="Part of the run, at its end, in which the learning rate falls "
        "(warmup_stable_decay only).",
    )
    warmup_steps: NonNegativeInt = Field(
        0, description="Optimizer steps in which the learning rate rises from zero to its peak."
    )
    final_fraction: Fraction = Field(
        0.1, description="Learning rate at the end, as a fraction of the peak (not for constant)."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        return _with_default(given, ("steps", "epochs"), 1000)


class Precision(Section):
    """Number formats."""

    compute: Literal["fp32", "fp64", "bf16", "fp16"] = Field(
        "fp32",
        description="Format of the model's arithmetic; bf16 and fp16 keep weights, gradients, "
        "reductions and losses in fp32; fp16 scales the loss so that gradients do not vanish.",
    )
    accumulate: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Format in which DeepSpeed accumulates gradients over a window when compute is "
        "bf16; bf16 takes half the memory and rounds every sum. Otherwise as wide as the weights.",
    )


class Engine(Section):
    """How ranks share the work; changes speed and memory, never the result."""

    name: Literal["auto", "single", "ddp", "fsdp2", "deepspeed"] = Field(
        "auto",
        description="`auto`: DeepSpeed when engine.deepspeed is set, else what accelerate launch "
        "asks for; else single for one rank, DDP for several.",
    )
    deepspeed: Path | None = Field(
        None,
        description="DeepSpeed's JSON: ZeRO stage, offload, buckets. What this configuration "
        "decides (batch sizes, clipping, optimizer, schedule, precision) is left out there, "
        '"auto", or the same; unset: what accelerate launch asks for.',
    )
    reduce: Literal["auto", "window", "micro_batch"] = Field(
        "auto",
        description="Reduce gradients once per window (less traffic) or per micro-batch (less "
        "memory when sharded); auto: window for DDP, ZeRO-0 and -1, micro_batch for FSDP2, ZeRO-2 "
        "and -3.",
    )
    replicas: PositiveInt | None = Field(
        None,
        description="FSDP2: groups of ranks that each hold the whole model; more than one is "
        "hybrid sharding; unset: what accelerate launch asks for, else 1.",
    )
    wrap: tuple[str, ...] | None = Field(
        None,
        description="FSDP2: classes of the blocks that are sharded one by one; []: the model as "
        "one; unset: what accelerate launch asks for, else the model's own.",
    )
    reshard_after_forward: bool | None = Field(
        None,
        description="FSDP2: free gathered weights after each forward; false keeps them for a "
        "window, which is faster; unset: what accelerate launch asks for, else true.",
    )
    offload: bool | None = Field(
        None,
        description="FSDP2: keep weights, gradients and optimizer state in CPU memory; unset: what "
        "accelerate launch asks for, else false.",
    )
    timeout_seconds: PositiveFloat = Field(
        300.0, description="Seconds a collective may wait for the other ranks before the run stops."
    )


class Evaluate(Section):
    """Loss on held-out examples, as global sum over global count."""

    every_steps: PositiveInt | None = Field(
        None, description="Steps between evaluations; unset: at the end only."
    )
    examples: PositiveInt | None = Field(
        None, description="Number of held-out examples, from the first on; unset: all of them."
    )


class Checkpoint(Section):
    """What is saved, and when."""

    every_steps: PositiveInt | None = Field(
        None, description="Steps between checkpoints; unset: by time alone."
    )
    every_minutes: PositiveFloat | None = Field(
        30.0, description="Minutes between checkpoints; null: by steps alone."
    )
    keep: Annotated[int, Field(ge=2)] = Field(
        2, description="Checkpoints that are kept, the newest ones; one alone could be damaged."
    )
    keep_every_steps: PositiveInt | None = Field(
        None, description="Checkpoints at multiples of this step are kept for ever."
    )
    on_error: Literal["stop", "continue"] = Field(
        "stop",
        description="When a checkpoint cannot be written (disk full): stop, or go on without it.",
    )

    save_model: bool = Field(
        True, description="Write model/ (weights, configuration, tokenizer) at the end."
    )


class Track(Section):
    """What a person sees of the run."""

    every_steps: PositiveInt = Field(
        10, description="Steps between progress lines where there is no terminal."
    )
    sample_tokens: NonNegativeInt = Field(
        64, description="Tokens of the sample that the trained model writes at the end; 0: none."
    )
    wandb: Literal["off", "offline", "online"] = Field(
        "off",
        description="Weights & Biases: `offline` records the run in output_dir/wandb, for `wandb "
        "sync`; `online` sends it as well, with the key of WANDB_API_KEY or `wandb login`.",
    )
    project: str = Field("gradacc_dist", description="Project in wandb that the run belongs to.")
    name: str | None = Field(
        None, description="Name of the run in wandb; unset: the last part of run.output_dir."
    )


class Config(Section):
    """A training run, up to its data: the whole of what a user decides."""

    run: Run = Run()
    model: Model = Model()
    data: Data = Data()
    objective: Objective = Objective()
    window: Window = Window()
    micro_batch: MicroBatch = MicroBatch()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Precision = Precision()
    engine: Engine = Engine()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Track()
