"""What stage 0 knows is not forgotten either: learning without forgetting, against stage 0's network.

Z. Li and D. Hoiem, "Learning without Forgetting", ECCV 2016: on the images of the new task, the network goes on saying
what the old network said, so that no image of the old task is needed. Here the old task is stage 0's classification:
a frozen copy of the network that stage 0 left reads every new image and says how much it looks like each of its
classes, and the same linear classifier has to read the same off the features of the network that learns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_utils import pretrained
from mtl_utils.model import UnifiedModel
from mtl_utils.settings import Settings

TEMPERATURE = 2.0  # of the soft targets, as in the paper
SIZE = 160  # pixels at most that the teacher sees: near the size that stage 0 has learned at, and cheap


class Teacher(nn.Module):
    """Stage 0's network and its classifier; nothing in it learns."""

    def __init__(self, content: dict):
        super().__init__()
        self.model = UnifiedModel(content["widths"], num_det=0, num_cls=0)
        pretrained.load_stage0(self.model, content)
        self.classifier = pretrained.classifier(content)
        self.requires_grad_(False).eval()

    def read(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (B, C) of stage 0's classes, softened, from hidden features (B, width, h, w)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return (self.classifier(hidden.float().mean((2, 3))) / TEMPERATURE).log_softmax(dim=1)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """What stage 0 says of images (B, 3, H, W) in [0, 1], as `read` gives it."""
        size = [min(side, SIZE) for side in images.shape[-2:]]
        return self.read(self.model.hidden(F.interpolate(images, size, mode="bilinear", antialias=True)))

    def loss(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Divergence of what the network's hidden features of the images say from what stage 0 says of them."""
        divergence = F.kl_div(self.read(hidden), self.targets(images), log_target=True, reduction="batchmean")
        return TEMPERATURE**2 * divergence  # its gradient then does not depend on the temperature (Hinton et al. 2015)


def find_teacher(settings: Settings) -> Teacher | None:
    """The teacher that belongs to the starting weights; None where they are not stage 0's, or by the settings."""
    path = pretrained.find_start(settings.widths)
    if not settings.distill or path is None or pretrained.label(settings.widths) == pretrained.NOTHING:
        return None
    content = pretrained.read(path)
    return Teacher(content) if "classifier" in content else None
