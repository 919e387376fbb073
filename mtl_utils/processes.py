"""Several processes that train together, started by torchrun: each computes a share of every batch.

All take the steps that one process would take: outputs are gathered before the losses, gradients averaged after them.
Without torchrun there is one process, and shares, gathering and averages leave their arguments as they are.
"""

import datetime
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_utils import environment
from mtl_utils.files import UserError

PATIENCE = datetime.timedelta(hours=3)  # the others wait so long while the first one evaluates

PARTED = "Another process of this training has ended, so all end: run the same line with --resume ({})."
SPOKEN = "spoken"  # counts the processes that wanted to say why they end
LETTING_GO = 1.0  # seconds
SHORT = datetime.timedelta(seconds=5)  # for torchrun's answer to that

together = False  # whether the processes of torchrun have one work in common


def expect_others() -> None:
    """To be called first by what several processes do together."""
    global together
    together = True


def stand_alone() -> None:
    """Raise UserError where torchrun has started a command that several processes cannot share."""
    if environment.process_count() > 1:
        raise UserError("torchrun can start the commands train and study alone: run this one without it.")


def join(device: str) -> None:
    """Find the other processes that torchrun has started; to be called once, before training."""
    if environment.process_count() == 1:
        return
    if device == "mps":
        raise UserError("torchrun cannot share a Mac's GPU: take --device cpu, or train without torchrun.")
    # NCCL knows GPUs alone, and gives each process one of its own
    backend, own_gpu = "gloo", None
    if device == "cuda":
        present = torch.cuda.device_count()
        if environment.local_count() > present:
            raise UserError(f"There are {present} GPUs: start torchrun with --nproc-per-node {present} or less.")
        choose_gpu()  # before anything is put on one
        backend, own_gpu = "nccl", torch.device("cuda", torch.cuda.current_device())
    try:
        dist.init_process_group(backend, timeout=PATIENCE, device_id=own_gpu)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of torchrun do not find one another: {first_line(error)}") from error


def leave() -> None:
    """The end of what `join` began, when all has gone well."""
    if count() > 1:
        # gloo's threads need Python's lock to let go of the last sums, and torch 2.6 would hold it and wait for them
        time.sleep(LETTING_GO)
        dist.destroy_process_group()


def speaks_first() -> bool:
    """Whether no other process has asked this before, so that one of many says why all end."""
    if not together or environment.process_count() == 1:
        return True
    address, port = environment.meeting_place()
    try:
        # torchrun itself keeps the numbers, and outlives the processes of its machine
        store = dist.TCPStore(address, port, is_master=False, timeout=SHORT)  # type: ignore[attr-defined]  # it is public
        number: int = store.add(SPOKEN, 1)
        return number == 1
    except RuntimeError:
        return True


def choose_gpu() -> None:
    """Let the processes of a machine take its GPUs in turn."""
    if torch.cuda.is_available():
        number = environment.local_rank() % torch.cuda.device_count()
        torch.cuda.set_device(number)  # what "cuda" means from here on


def count() -> int:
    """How many processes train together; 1 without torchrun, and while each of them has work of its own."""
    # a study's processes are never joined
    is_joined = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if is_joined else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and messages."""
    return rank() == 0


def first_line(error: Exception) -> str:
    """The first line of an error of torch, which may be long."""
    return str(error).strip().partition("\n")[0]


# ---- what all do at the same time


def wait_for_all() -> None:
    """Return when every process has come here. Raises UserError where one has ended."""
    if count() == 1:
        return
    # torch waits for PATIENCE
    try:
        dist.barrier()
    except RuntimeError as error:
        raise UserError(PARTED.format(first_line(error))) from error


def add_up(x: Tensor) -> Tensor:
    """Replace a tensor by the sum of the processes' tensors of this name, in place. Raises UserError as above."""
    # gloo's peers of a process that ends get an error at once; those of NCCL are ended by torchrun
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        raise UserError(PARTED.format(first_line(error))) from error
    return x


def share_random_state(generator: torch.Generator) -> None:
    """Let all processes go on with the first one's random numbers: the first alone evaluates, which may draw some."""
    if count() == 1:
        return
    # of augmentation; of order and replay
    states = [torch.get_rng_state(), generator.get_state()]
    try:
        dist.broadcast_object_list(states, src=0)
    except RuntimeError as error:
        raise UserError(PARTED.format(first_line(error))) from error
    torch.set_rng_state(states[0])
    generator.set_state(states[1])


# ---- shares of a batch


def own_rows(x: Tensor) -> Tensor:
    """The rows of a batch (B, ...) that this process computes. Raises UserError for fewer rows than processes."""
    if len(x) < count():
        raise UserError(too_many(count(), len(x)))
    return x[rank() :: count()]  # every count-th one, so that shares differ by one row at most


def too_many(processes: int, images: int) -> str:
    """The sentence for more processes than images in a batch."""
    remedy = f"start torchrun with --nproc-per-node {images} or less, or raise batch_size in settings.py"
    return f"{processes} processes cannot share a batch of {images} images: {remedy}."


def gather_rows(own: Tensor, total: int) -> Tensor:
    """The whole batch (total, ...) from the rows that each process has computed, in the batch's order."""
    if count() == 1:
        return own  # the batch itself
    whole: Tensor = GatherRows.apply(own, total)
    return whole


class GatherRows(torch.autograd.Function):
    """All processes' rows; backward, a process takes the gradient of its own.

    Every process computes the whole loss, so it knows the whole gradient of its rows, which is a part of that of the
    weights. `average_gradients` divides the sum of these parts by the number of processes: hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, total: int) -> Tensor:
        whole = own.new_zeros(total, *own.shape[1:])  # (total, ...)
        whole[rank() :: count()] = own
        return add_up(whole)  # each row is 0 but in one process

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # None: `total` has no gradient
        return count() * own_rows(gradient), None


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if count() == 1:
        return
    # frozen layers have none
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # (N,)
    mean = add_up(flat) / count()
    sizes = [gradient.numel() for gradient in gradients]
    parts = torch.split(mean, sizes)
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


# ---- BatchNorm over the whole batch


class SumOverProcesses(torch.autograd.Function):
    """The sum of the processes' tensors; backward, the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return add_up(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return add_up(gradient.clone())


class JointBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of all processes' rows together, on any device.

    torch's own SyncBatchNorm does the same on GPUs alone. (B, C, H, W) to the same shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or count() == 1:
            return super().forward(x)
        x32 = x.float()  # half precision would leave a variance three digits
        channels = x.shape[1]
        values = x32.new_tensor(x.numel() / channels)  # (), in a channel of this process's rows
        values = add_up(values)  # and of all rows
        mean = self.mean_over_all(x32, values)  # (C,)
        centred = x32 - mean.view(1, -1, 1, 1)  # (B, C, H, W)
        variance = self.mean_over_all(centred.square(), values)  # (C,)
        self.update_statistics(mean.detach(), variance.detach(), values)
        scale = self.weight * (variance + self.eps).rsqrt()  # (C,)
        y = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)

    def mean_over_all(self, x: Tensor, values: Tensor) -> Tensor:
        """The mean (C,) of each channel over all processes' rows, which hold so many values in a channel."""
        own = x.sum((0, 2, 3))  # (C,)
        total: Tensor = SumOverProcesses.apply(own)
        return total / values

    def update_statistics(self, mean: Tensor, variance: Tensor, values: Tensor) -> None:
        """Move the running statistics by `momentum`, as torch does: the variance is the unbiased one."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        unbiased = variance * values / (values - 1)  # (C,)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def join_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm below a module by one that several processes share; weights and names stay."""
    if count() == 1:
        return
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            joint = JointBatchNorm(child.num_features, child.eps, child.momentum)
            joint.load_state_dict(child.state_dict())
            joint.to(child.weight.device)
            module.add_module(name, joint)  # in the other's place
        else:
            join_batchnorm(child)
