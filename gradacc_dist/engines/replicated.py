"""Every rank holds the whole model: one device alone, or DDP over several."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradacc_dist.data.batch import MicroBatch
from gradacc_dist.engines.engine import Engine, Update
from gradacc_dist.engines.loss_scale import LossScale
from gradacc_dist.engines.state import copy_like, load_named_state, named_state
from gradacc_dist.engines.update import clip_and_step, square_sum
from gradacc_dist.errors import ConfigError
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World


def wrap_in_ddp(
    module: ObjectiveModule, world: World, reduced: set[int]
) -> DistributedDataParallel:
    """`module` under DDP, its reduction a sum. Collective.

    Each reduction adds the ids of its parameters to `reduced`. Raises ConfigError when accelerate
    wrapped it in anything else.
    """
    wrapped = world.accelerator.prepare_model(module)
    if not isinstance(wrapped, DistributedDataParallel):
        raise ConfigError(
            f"engine.name: ddp was asked for, but accelerate made {type(wrapped).__name__} of the "
            f"model on {world.ranks} ranks (distributed type "
            f"{world.accelerator.distributed_type.value}); start with `accelerate launch "
            "--multi_gpu` or torchrun, and no other engine in accelerate's configuration"
        )
    # Buffers (rotary frequencies and the like) are constants: equal since the start.
    wrapped.broadcast_buffers = False
    wrapped.register_comm_hook(reduced, _reduce_to_sum)
    return wrapped


# DDP compares the annotations below with its types, so this module keeps them evaluated.
def _reduce_to_sum(
    reduced: set[int],
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    # DDP's own reduction is a mean. Multiplying by the number of ranks for DDP to divide it away
    # again rounds twice wherever that number is no power of two.
    reduced.update(id(parameter) for parameter in bucket.parameters())
    work = dist.all_reduce(bucket.buffer(), op=dist.ReduceOp.SUM, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class ReplicatedEngine(Engine):
    """Wraps `module` in DDP when there are several ranks.

    With `autocast` to a lower precision, weights and gradients stay in their own.
    """

    reduction_factor = 1.0

    def __init__(
        self,
        module: ObjectiveModule,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        world: World,
        *,
        reduces_once: bool,
        autocast: torch.dtype | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.name = "single" if world.ranks == 1 else "ddp"
        self.reduces_once = reduces_once
        self._autocast = autocast
        self._loss_scale = loss_scale
        self._reduced: set[int] = set()
        wrapped = module if world.ranks == 1 else wrap_in_ddp(module, world, self._reduced)
        self._wrapped = wrapped
        self._optimizer = build_optimizer(wrapped)
        self._world = world
        self._parameters = [p for p in wrapped.parameters() if p.requires_grad]

    @property
    def module(self) -> ObjectiveModule:
        """The module without DDP."""
        if isinstance(self._wrapped, DistributedDataParallel):
            inside: ObjectiveModule = self._wrapped.module
            return inside
        return self._wrapped

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Reducing once, gradients stay on their rank until the window's last micro-batch."""
        with self._reduction(last):
            yield
        if last and self._loss_scale is not None:
            self._loss_scale.remove([p.grad for p in self._parameters if p.grad is not None])

    @contextmanager
    def _reduction(self, last: bool) -> Iterator[None]:
        if not isinstance(self._wrapped, DistributedDataParallel):
            yield
        elif self.reduces_once and not last:
            with self._wrapped.no_sync():
                yield
        else:
            if not self.reduces_once and not self._world.is_main:
                # DDP reduces all that has accumulated. What earlier micro-batches reduced is on
                # every rank already: one of them brings it into the next sum.
                for parameter in self._parameters:
                    if parameter.grad is not None:
                        parameter.grad.zero_()
            yield

    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Term sums on the device."""
        with self._precision():
            return self._wrapped(batch.to(self._world.device))

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DDP reduces them meanwhile."""
        (loss * (self.loss_scale or 1)).backward()

    def gradients(self) -> dict[str, Tensor]:
        """Copies, by the model's names."""
        return {name: gradient.clone() for name, gradient in self.local_gradients()}

    def local_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The gradients themselves: every rank holds them whole."""
        self._check_reduced()
        for name, parameter in self.module.model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def update(self, learning_rate: float, max_grad_norm: float | None) -> Update:
        """Every rank holds the same gradients, so each clips and steps by itself, alike."""
        norm = square_sum(gradient for _, gradient in self.local_gradients()).sqrt()
        update = clip_and_step(
            self._optimizer, self._parameters, norm, learning_rate, max_grad_norm, self._loss_scale
        )
        self.discard()
        return update

    def _check_reduced(self) -> None:
        """DDP says nothing of a bucket it never reduced: its gradients are one rank's alone.

        That happens to every bucket with a parameter that the last micro-batch did not use.
        """
        if not isinstance(self._wrapped, DistributedDataParallel):
            return
        named = self.module.model.named_parameters()
        missing = [n for n, p in named if p.requires_grad and id(p) not in self._reduced]
        if missing:
            raise ConfigError(
                f"engine.name: ddp did not reduce the gradients of {len(missing)} parameters "
                f"({', '.join(missing[:3])}, ...): this model does not use all of its parameters "
                "in each forward; use engine.name: single, or a model without unused parts",
                same_on_all_ranks=True,
            )

    def discard(self) -> None:
        """Clear the gradients."""
        self._reduced.clear()
        self._optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Straight through the module: without gradients the ranks need not meet."""
        module = self.module.eval()
        with torch.no_grad(), self._precision():
            sums = module(batch.to(self._world.device))
        module.train()
        return sums

    def state_dict(self) -> dict[str, Tensor]:
        """Every rank could give it; rank 0 does."""
        if not self._world.is_main:
            return {}
        return {name: value.cpu() for name, value in self.module.model.state_dict().items()}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What each rank holds."""
        return named_state(self.module.model, self._optimizer, lambda value: value)

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Every rank reads it all."""
        load_named_state(self.module.model, self._optimizer, saved, copy_like)

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._world.device.type, self._autocast)
