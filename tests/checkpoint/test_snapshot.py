"""Which rank writes which tensor, and the copy that training waits for."""

import pytest
import torch
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from gradacc_dist.checkpoint.snapshot import BLOCK_BYTES, DTYPES, Dealer, HostMemory, Snapshot

CPU = torch.device("cpu")
SIZES = st.lists(st.integers(0, 1000), max_size=60)


@given(SIZES, st.integers(1, 9))
@case([1000, 1] * 10, 2)  # in turn, one rank would get all the large ones
def test_no_rank_gets_more_than_an_equal_share_and_one_tensor(sizes, ranks):
    dealer = Dealer(ranks)
    loads = [0] * ranks
    for size in sizes:
        loads[dealer.owner(size)] += size
    assert sum(loads) == sum(sizes)
    assert max(loads) <= sum(sizes) / ranks + max(sizes, default=0)


def shares(state, ranks):
    """The snapshot of each rank."""
    made = [Snapshot(rank, ranks, CPU) for rank in range(ranks)]
    for snapshot in made:
        snapshot.take(iter(state))
    return made


def example(num=7):
    values = {f"layer.{i}": torch.randn(3, i + 1) for i in range(num)}
    return [*values.items(), *((f"exp_avg/{name}", -value) for name, value in values.items())]


@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
def test_every_tensor_is_with_one_rank(ranks):
    state = example()
    tensors = [tensor for snapshot in shares(state, ranks) for tensor in snapshot.tensors]
    assert sorted(tensor.name for tensor in tensors) == sorted(name for name, _ in state)
    for tensor in tensors:
        expected = dict(state)[tensor.name]
        assert bytes(tensor.data) == expected.numpy().tobytes()
        assert (tensor.dtype, tensor.shape) == ("F32", tuple(expected.shape))


def test_the_whole_size_is_known_to_every_rank():
    state = example()
    total = sum(value.numel() * value.itemsize for _, value in state)
    assert [snapshot.global_bytes for snapshot in shares(state, 3)] == [total] * 3


def test_weights_and_optimizer_go_to_files_of_their_own():
    (snapshot,) = shares(example(2), 1)
    names = {name: [t.name for t in tensors] for name, tensors in snapshot.files()}
    assert names == {
        "weights-00000.safetensors": ["layer.0", "layer.1"],
        "optimizer-00000.safetensors": ["exp_avg/layer.0", "exp_avg/layer.1"],
    }


def test_a_rank_without_a_share_writes_no_file():
    last = shares([("only", torch.ones(1))], 2)[1]
    assert list(last.files()) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_dtype_and_shape_is_copied_bit_by_bit(dtype):
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (24,), dtype=torch.uint8)
    value = bits.view(dtype) if dtype != torch.bool else bits.bool()
    odd = ("odd", torch.zeros(3, dtype=torch.uint8))  # what follows is to be aligned all the same
    state = [odd, ("a", value), ("scalar", value[0]), ("none", value[:0])]
    (snapshot,) = shares(state, 1)
    _, copied, scalar, none = snapshot.tensors
    assert bytes(copied.data) == value.view(torch.uint8).numpy().tobytes()
    assert (scalar.shape, scalar.num_bytes) == ((), value.itemsize)
    assert (none.shape, bytes(none.data)) == ((0,), b"")


def test_a_transposed_tensor_is_written_in_the_order_of_its_shape():
    value = torch.arange(6.0).view(2, 3).T
    (snapshot,) = shares([("a", value)], 1)
    assert bytes(snapshot.tensors[0].data) == value.contiguous().numpy().tobytes()


def test_what_changes_after_the_copy_is_not_saved():
    value = torch.ones(5)
    (snapshot,) = shares([("a", value)], 1)
    value += 1
    assert bytes(snapshot.tensors[0].data) == torch.ones(5).numpy().tobytes()


def test_memory_is_allocated_once():
    memory = HostMemory(pinned=False)
    sizes = [10, BLOCK_BYTES + 1, 100, BLOCK_BYTES - 64]
    first = [memory.take(size).data_ptr() for size in sizes]
    num_bytes = memory.num_bytes
    memory.restart()
    assert [memory.take(size).data_ptr() for size in sizes] == first
    assert memory.num_bytes == num_bytes


def test_pieces_do_not_overlap_and_are_aligned():
    memory = HostMemory(pinned=False)
    pieces = [memory.take(size) for size in (1, 64, 65, 0, 8)]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
        assert piece.data_ptr() % 8 == 0
    assert [set(piece.tolist()) for piece in pieces] == [{0}, {1}, {2}, set(), {4}]
