"""Ten training steps of a stage, in one process or in several of torchrun: losses and weights go into a file.

python tests/joint_steps.py ROOT TASK OUT
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from helpers import SETTINGS

from mtl_utils import processes
from mtl_utils.prepare.root import Root
from mtl_utils.remedies.build import make_remedies
from mtl_utils.replay import ReplayBuffer
from mtl_utils.run import Run, build
from mtl_utils.stages import finalize_model
from mtl_utils.training import Trainer
from mtl_utils.weights import load_starting_weights

STEPS = 10
# five images in a batch: two and three processes get unequal shares
JOINT = replace(
    SETTINGS,
    train_size={"seg": 96, "det": 64, "cls": 32},
    batch_size={"seg": 5, "det": 5, "cls": 5},
    epochs={"seg": 20, "det": 20, "cls": 20},
    replay_per_task=6,
    buffer_size=6,
    lwf_weight=0.1,
    derpp_weight=0.1,
    ewc_weight=0.1,
)


def main(root: str, task: str, out: str) -> None:
    torch.set_num_threads(1)
    processes.join("cpu")
    torch.manual_seed(processes.rank())  # what one process has drawn before must not matter
    run = Run(JOINT, Path(out).parent / "run", Root(Path(root), "--data-root"))
    model = build(JOINT, run.classes)
    # with a trunk at random a difference of 1e-6 in the images is one of 2 % in the gradient
    load_starting_weights(model, run.starting_weights)
    buffer = ReplayBuffer(JOINT.buffer_size)
    if task == "det":
        buffer = after_segmentation(run, model)
    trainer = Trainer(model, run.data(task, "train"), buffer, JOINT, "cpu", make_remedies(JOINT, model, task, buffer))
    start = {name: value.clone() for name, value in trainer.ema.module.state_dict().items()}
    while len(trainer.history) < STEPS:  # of one step each
        trainer.epoch()
        if processes.is_first():
            torch.rand(3)  # as an evaluation may
    if processes.is_first():
        losses = [record.loss for record in trainer.history]
        # sums, and how far the weights have moved: differences are measured by that, since a sum may be near 0
        weights, moved = {}, {}
        for name, value in trainer.ema.module.state_dict().items():
            weights[name] = value.double().sum().item()
            moved[name] = (value.double() - start[name].double()).abs().sum().item()
        Path(out).write_text(json.dumps({"losses": losses, "weights": weights, "moved": moved}))
    processes.leave()


def after_segmentation(run: Run, model: torch.nn.Module) -> ReplayBuffer:
    """A full buffer, as segmentation's stage would leave it with these remedies."""
    buffer = ReplayBuffer(JOINT.buffer_size)
    data = run.data("seg", "train")
    trainer = Trainer(model, data, buffer, JOINT, "cpu", make_remedies(JOINT, model, "seg", buffer))
    finalize_model(model, JOINT)
    buffer.store(data, torch.Generator().manual_seed(0))
    for remedy in trainer.remedies:
        remedy.after_stage(trainer, model)
    return buffer


if __name__ == "__main__":
    main(*sys.argv[1:])
