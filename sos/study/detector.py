"""The competitor that distillation makes unnecessary: a detector finds the expert's box in the whole image, and the crop teacher stages what it
found. Two networks, and no answer where nothing is found.

The detector is torchvision's FCOS (Tian et al. 2019, "FCOS: fully convolutional one-stage object detection") of one class and one level on the
backbone of `config`, trained on the expert's boxes of the training images under the same cameras, augmentation and schedule as all networks.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from ..cohort.cameras import camera, frame_camera, normalise, square_window, still_scene
from ..cohort.manifest import Cohort
from ..cohort.views import PixelStore
from ..config import RunConfig
from ..method.models import StagingNet, build

CHANNELS = 128  # of the head; FCOS's 256 serve eighty classes
CONVS = 2  # layers of each branch before its answer, of FCOS's four
RADIUS = 1.5  # cells round a box's centre that must find it; FCOS's own
FIRST_SIDE = 2.0  # cells from a cell to each side of its box before training: from 0, where the ReLU behind it is flat, half of them never move


class Found(NamedTuple):
    """The best box of each image, (b, 4) in frame coordinates, and its score (b,); nan and 0 where none is good enough."""

    boxes: torch.Tensor
    scores: torch.Tensor

    @property
    def there(self) -> torch.Tensor:
        """(b,) whether a box was found."""
        return self.scores > 0


class Detector(nn.Module):
    """FCOS on a StagingNet's backbone. `forward` takes frames (b, 1, h, w), normalised, and returns what FCOS's head says of each cell."""

    def __init__(self, config: RunConfig, *, pretrained: bool = False, bf16: bool = False):
        super().__init__()
        net = build(config, 1, pretrained=pretrained, bf16=bf16)
        backbone = Backbone(net)
        head = FCOSHead(CHANNELS, num_anchors=1, num_classes=1, num_convs=CONVS)
        nn.init.constant_(head.regression_head.bbox_reg.bias, FIRST_SIDE)
        anchors = AnchorGenerator(sizes=((config.output_stride,),), aspect_ratios=((1.0,),))
        self.fcos = FCOS(backbone, 1, anchor_generator=anchors, head=head, center_sampling_radius=RADIUS, score_thresh=config.min_score,
                         detections_per_img=1)
        self.px = config.frame_px
        self.to(memory_format=torch.channels_last)

    @property
    def body(self) -> nn.Module:
        """The backbone itself, of which progressive training asks."""
        return self.fcos.backbone.net.body

    @property
    def bf16(self) -> bool:
        """Whether the backbone runs in bfloat16; the head and all that follows stay float32."""
        return self.fcos.backbone.net.bf16

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """cls_logits (b, n, 1), bbox_regression (b, n, 4) and bbox_ctrness (b, n, 1) of the n cells, and anchors (n, 4) in pixels.

        FCOS's own `forward` would resize each image and gives either losses or boxes; here both are asked of one pass.
        """
        features = self.fcos.backbone(frames)
        images = ImageList(frames, [frames.shape[2:]] * len(frames))
        return self.fcos.head([features]) | {"anchors": self.fcos.anchor_generator(images, [features])[0]}

    def loss(self, cells: dict[str, torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """FCOS's loss of a batch: focal loss of "here it is", GIoU of the box, and cross-entropy of the cell's centredness.

        boxes: (b, 4) the expert's, in frame coordinates.
        """
        targets = [{"boxes": box[None] * self.px, "labels": torch.zeros(1, dtype=torch.int64, device=box.device)} for box in boxes]
        anchors = cells["anchors"]
        losses = self.fcos.compute_loss(targets, {key: value for key, value in cells.items() if key != "anchors"}, [anchors] * len(boxes),
                                        [len(anchors)])
        return sum(losses.values())

    def best(self, cells: dict[str, torch.Tensor]) -> Found:
        """The best box of each image, where its score is above the `min_score` of the configuration."""
        parts = {key: [value] for key, value in cells.items() if key != "anchors"}
        images = len(cells["cls_logits"])
        found = self.fcos.postprocess_detections(parts, [[cells["anchors"]]] * images, [(self.px, self.px)] * images)
        boxes, scores = cells["anchors"].new_full((images, 4), torch.nan), cells["anchors"].new_zeros(images)
        for i, one in enumerate(found):
            if len(one["scores"]):
                boxes[i], scores[i] = one["boxes"][0] / self.px, one["scores"][0]
        return Found(boxes, scores)

    def find(self, frames: torch.Tensor) -> Found:
        """The best box in each frame (b, 1, h, w)."""
        return self.best(self(frames))

    def iou(self, cells: dict[str, torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Mean IoU of the found boxes and the expert's (b, 4), 0 for a miss: what training reports of the validation images."""
        return agreement(self.best(cells).boxes, boxes)["iou"].mean()


class Backbone(nn.Module):
    """The features of a StagingNet's body, float32, in the channels that FCOS's head works in."""

    def __init__(self, net: StagingNet):
        super().__init__()
        classifier = net.head.classifier
        self.out_channels = CHANNELS
        self.dropout, self.reduce = net.head.dropout, nn.Conv2d(classifier.in_channels, CHANNELS, 1)
        net.head = nn.Identity()  # the stages are the teacher's to tell
        self.net = net

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.dropout(self.net.features(frames)))


def agreement(found: torch.Tensor, expert: torch.Tensor) -> dict[str, torch.Tensor]:
    """How well found boxes (b, 4) agree with the expert's (b, 4), each (b,) and 0 for a miss (nan): pointing, the found box's centre lies in
    the expert's box; energy, the share of the found box inside it; iou."""
    there = found.isfinite().all(1)
    box = torch.where(there[:, None], found, 0.0)
    x, y = ((box[:, :2] + box[:, 2:]) / 2).T
    corner = torch.maximum(box[:, :2], expert[:, :2]), torch.minimum(box[:, 2:], expert[:, 2:])
    shared = (corner[1] - corner[0]).clamp_min(0).prod(1)
    inside = (x >= expert[:, 0]) & (x < expert[:, 2]) & (y >= expert[:, 1]) & (y < expert[:, 3])
    values = {"pointing": inside.float(), "energy": shared / (box[:, 2:] - box[:, :2]).prod(1).clamp_min(1e-12),
              "iou": box_iou(box, expert).diagonal()}
    return {name: torch.where(there, value, 0.0) for name, value in values.items()}


def no_answer(target: np.ndarray, stages: int) -> np.ndarray:
    """(n, stages) probabilities that stand for a missing answer to images of stages `target` (n,), counted from 0.

    They count as wrong in every metric and cannot be right by luck: none for the true stage, equal ones for the others, but twice as much for
    the one nearest to the middle of the scale. That is the decided one: what would cost the least on average if nothing were known.
    """
    order = np.argsort(np.abs(np.arange(stages) - (stages - 1) / 2), kind="stable")  # the middle first
    weights = np.ones((len(target), stages))
    weights[np.arange(len(target)), np.where(target == order[0], order[1], order[0])] = 2
    weights[np.arange(len(target)), target] = 0
    return weights / weights.sum(1, keepdims=True)


@torch.no_grad()
def stage_found(detector, teacher: StagingNet, window: RunConfig, store: PixelStore, cohort: Cohort, rows: np.ndarray, config: RunConfig,
                device: str = "cpu", mirrored: bool = False):
    """Predictions of *detector, then teacher* for the images in `rows`, seen still and whole, or `mirrored`: one row an image.

    detector: anything with `find`. window: the teacher's own configuration; it sees the square window of the found box, cut from the native
    pixels by the camera that cut its training windows. Columns as for a full-image network (see training.evaluate), of the found box in
    place of a heat map: peak_x, peak_y its centre, pointing, energy and iou as in `agreement`; and found (0 or 1), score, box_x0 … box_y1 in
    frame coordinates. A miss gets the probabilities of `no_answer` and stays in the table.
    """
    founds, logits, experts = [], [], []
    for i in range(0, len(rows), 2 * config.batch_size):
        batch = np.asarray(rows[i:i + 2 * config.batch_size])
        native = store.native_on(batch, device).float()
        scene = still_scene(torch.from_numpy(store.sizes[batch]).to(device), mirrored)
        found = detector.find(normalise(frame_camera(native, scene, config) / 255))
        # a miss shows the teacher the middle of the frame, so that the batch stays whole; what it says there is thrown away
        shown = torch.where(found.there[:, None], found.boxes, found.boxes.new_tensor([0.25, 0.25, 0.75, 0.75]))
        crop = camera(native, scene, window.window_px, square_window(shown, window.window_scale))
        logits.append(teacher(normalise(crop / 255)).cpu())
        founds.append(Found(found.boxes.cpu(), found.scores.cpu()))
        experts.append(scene.box_to_frame(torch.from_numpy(store.boxes[batch]).to(device)).cpu())
    boxes, scores = (torch.cat(part) for part in zip(*founds, strict=True))
    table = cohort.table.loc[rows, ["patient_id", "image", "split", "stage", "target"]].reset_index(drop=True)
    there = (scores > 0).numpy()
    probabilities = torch.cat(logits).softmax(1).numpy().astype(float)
    probabilities[~there] = no_answer(table["target"].to_numpy()[~there], probabilities.shape[1])
    for k in range(probabilities.shape[1]):
        table[f"p{k + 1}"] = probabilities[:, k]
    table["decided"] = np.array(cohort.scheme.labels)[probabilities.argmax(1)]
    x0, y0, x1, y1 = boxes.numpy().astype(float).T
    values = {name: value.numpy().astype(float) for name, value in agreement(boxes, torch.cat(experts)).items()}
    return table.assign(peak_x=(x0 + x1) / 2, peak_y=(y0 + y1) / 2, **values, found=there.astype(int), score=scores.numpy().astype(float),
                        box_x0=x0, box_y0=y0, box_x1=x1, box_y1=y1)
