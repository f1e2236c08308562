"""Every rank holds a shard of the model: torch's `fully_shard` on the ranks, or on groups of them.

torch directly, because accelerate offers FSDP on GPUs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from gradacc_dist.config.engine import Sharding
from gradacc_dist.data.batch import MicroBatch
from gradacc_dist.engines.engine import Engine, Update
from gradacc_dist.engines.loss_scale import LossScale
from gradacc_dist.engines.state import copy_like, load_named_state, named_state
from gradacc_dist.engines.update import clip_and_step, square_sum
from gradacc_dist.engines.weights import take_weights_of_rank_0
from gradacc_dist.errors import ConfigError
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World, form_group_alone

SHARD = "shard"


def shard(
    module: ObjectiveModule,
    sharding: Sharding,
    world: World,
    timeout_seconds: float,
    compute: torch.dtype | None = None,
) -> DeviceMesh:
    """Shard `module` in place, its reduction a sum; returns the mesh of ranks. Collective.

    The weights are rank 0's. `compute` is a lower precision for the arithmetic only: weights stay
    in theirs, gradients are reduced and accumulated in float32. Raises ConfigError when a class
    of `sharding.wrap` is not in the model.
    """
    blocks = _blocks(module.model, sharding.wrap)
    take_weights_of_rank_0(module, world)
    mesh = _mesh(sharding.replicas, world, timedelta(seconds=timeout_seconds))
    precision = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.float32 if compute is not None else None
    )
    offload = OffloadPolicy()
    if sharding.offload:
        offload = CPUOffloadPolicy(pin_memory=world.device.type != "cpu")
    # From the inside out: each call takes the parameters that no earlier one took.
    for inside in (*blocks, module):
        fully_shard(
            inside,
            mesh=mesh,
            # None: torch keeps the root's, which backward needs first.
            reshard_after_forward=None if sharding.reshard_after_forward else False,
            mp_policy=precision,
            offload_policy=offload,
        )
    for unit in _units(module):
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
    return mesh


class FSDP2Engine(Engine):
    """`module` was sharded by `shard`, over `mesh`."""

    name = "fsdp2"
    reduction_factor = 1.0

    def __init__(
        self,
        module: ObjectiveModule,
        mesh: DeviceMesh,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        world: World,
        *,
        reduces_once: bool,
        keeps_weights: bool,
        loss_scale: LossScale | None = None,
    ) -> None:
        assert isinstance(module, FSDPModule)
        self.reduces_once = reduces_once
        self._keeps_weights = keeps_weights
        self._loss_scale = loss_scale
        self._root: FSDPModule = module
        self._module = module
        self._group = mesh.get_group(SHARD)
        self._optimizer = build_optimizer(module)
        self._world = world
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if reduces_once:
            # Until they are reduced, each rank holds the gradients of the whole model.
            self.extra_memory_bytes = sum(p.numel() * p.itemsize for p in self._parameters)

    @property
    def module(self) -> ObjectiveModule:
        """The module itself: sharding replaces no module."""
        return self._module

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Tell the shards what to do after this backward."""
        self._root.set_requires_gradient_sync(last or not self.reduces_once)
        self._root.set_reshard_after_backward(last or not self._keeps_weights)
        yield
        if last and self._loss_scale is not None:
            self._loss_scale.remove([shard for _, shard in self.local_gradients()])

    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Gathers each block's weights in turn. Collective."""
        return self._module(batch.to(self._world.device))

    def backward(self, loss: Tensor) -> None:
        """Gathers weights again and reduces gradients. Collective."""
        (loss * (self.loss_scale or 1)).backward()

    def gradients(self) -> dict[str, Tensor]:
        """Gathered on every rank, on the device."""
        return {
            name: self._whole(parameter.grad)
            for name, parameter in self._module.model.named_parameters()
            if parameter.grad is not None
        }

    def local_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's shards, empty where a parameter has fewer rows than there are ranks."""
        for name, parameter in self._module.model.named_parameters():
            if parameter.grad is not None:
                yield name, _local(parameter.grad)

    def update(self, learning_rate: float, max_grad_norm: float | None) -> Update:
        """Each rank clips and steps its shards, by the norm of the whole."""
        square = square_sum(shard for _, shard in self.local_gradients()).to(self._world.device)
        # Over the ranks that share a model; replicas hold the same gradients already.
        dist.all_reduce(square, group=self._group)
        update = clip_and_step(
            self._optimizer,
            self._parameters,
            square.sqrt(),
            learning_rate,
            max_grad_norm,
            self._loss_scale,
        )
        self.discard()
        return update

    def discard(self) -> None:
        """Clear the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batch: MicroBatch) -> dict[str, Tensor]:
        """A forward like any other, after which no rank holds more than its shards."""
        self._module.eval()
        with torch.no_grad():
            sums = self.forward(batch)
        # The root waits for a backward that does not come.
        for unit in _units(self._module):
            unit.reshard()
        self._module.train()
        return sums

    def state_dict(self) -> dict[str, Tensor]:
        """Gathered one tensor at a time; only rank 0 keeps them. Tied weights stay one tensor."""
        whole: dict[int, Tensor] = {}
        named: dict[str, Tensor] = {}
        for name, value in self._module.model.state_dict(keep_vars=True).items():
            if id(value) not in whole:
                gathered = self._whole(value.detach())
                whole[id(value)] = gathered.cpu() if self._world.is_main else gathered.new_empty(0)
            named[name] = whole[id(value)]
        return named if self._world.is_main else {}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Gathered one by one."""
        return named_state(self._module.model, self._optimizer, self._whole)

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Every rank takes its shard."""
        load_named_state(self._module.model, self._optimizer, saved, _shard_like)

    def _whole(self, value: Tensor) -> Tensor:
        """A copy of all shards together. Offloaded ones travel by way of the device."""
        on_device = value.to(self._world.device)
        return on_device.full_tensor() if isinstance(on_device, DTensor) else on_device.clone()


def _local(value: Tensor) -> Tensor:
    assert isinstance(value, DTensor)
    return value.to_local()


def _shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of this rank's part."""
    if not isinstance(parameter, DTensor):
        return copy_like(value, parameter)
    shard = distribute_tensor(
        value.to(parameter.device_mesh.device_type, parameter.dtype),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,  # every rank has read the same file
    )
    return shard.to(parameter.device)


def _units(module: nn.Module) -> Iterator[FSDPModule]:
    return (unit for unit in module.modules() if isinstance(unit, FSDPModule))


def _blocks(model: nn.Module, wrap: Sequence[str] | None) -> list[nn.Module]:
    """The modules to shard one by one: of the classes named, or those that the model names."""
    wanted = set(getattr(model, "_no_split_modules", None) or () if wrap is None else wrap)
    present = {type(inside).__name__ for inside in model.modules()}
    if wrap is not None and wanted - present:
        raise ConfigError(
            f"engine.wrap: {type(model).__name__} has no module of class "
            f"{', '.join(sorted(wanted - present))}; it has {', '.join(sorted(present))}; name the "
            "class of its blocks, or leave it unset (FSDP_TRANSFORMER_CLS_TO_WRAP under accelerate)"
        )
    return [inside for inside in model.modules() if type(inside).__name__ in wanted]


def _mesh(replicas: int, world: World, timeout: timedelta) -> DeviceMesh:
    """Ranks as (replicas, shards), or as one row of shards. Neighbours share a model."""
    form_group_alone(world.device)
    kind = world.device.type
    if replicas == 1:
        everyone = dist.group.WORLD
        assert everyone is not None
        return DeviceMesh.from_group(everyone, kind, mesh_dim_names=(SHARD,))
    ranks = torch.arange(world.ranks).view(replicas, -1)
    # By hand: groups that a mesh makes itself would wait with torch's time limit, not ours.
    across, _ = dist.new_subgroups_by_enumeration(ranks.T.tolist(), timeout=timeout)
    within, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout)
    return DeviceMesh.from_group(
        [across, within], kind, mesh=ranks, mesh_dim_names=("replicate", SHARD)
    )
