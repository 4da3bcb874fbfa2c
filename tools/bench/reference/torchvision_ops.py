"""What detectron2 takes from torchvision.ops, in PyTorch: for run_expert.py, where torchvision is not there.

They serve to time the rest and were not compared with the compiled operators: boxes are suppressed on one matrix of
overlaps, and a box's bins are two small products on the part of the feature map that it covers.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # boxes of similar size that are pooled at a time


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one overlaps by more than the threshold, best first."""
    order = scores.argsort(descending=True)
    boxes = boxes[order]
    low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlaps = (shared > iou_threshold * (area[:, None] + area - shared)).numpy()
    best, gone = [], torch.zeros(len(boxes), dtype=torch.bool).numpy()
    for i in range(len(boxes)):
        if not gone[i]:
            best.append(i)
            gone |= overlaps[i]
    return order[best]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of each index; best first of all."""
    groups = [(idxs == i).nonzero()[:, 0] for i in idxs.unique()]
    indices = [group[nms(boxes[group], scores[group], iou_threshold)] for group in groups]
    indices = torch.cat([idxs.new_zeros(0, dtype=torch.long), *indices])
    return indices[scores[indices].argsort(descending=True)]


def roi_align(
    features: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, *_: bool
) -> Tensor:
    """Features [B,C,H,W] under the boxes [n,5] (image, x0, y0, x1, y1), averaged in bins: [n,C,h,w].

    Always 'aligned', which is detectron2's: cell centres are half a cell from the edge.
    """
    if sampling_ratio > 0:
        raise NotImplementedError("the detector takes as many samples as a bin has cells")
    rows = features.permute(0, 2, 3, 1).contiguous()
    boxes = rois[:, 1:] * spatial_scale - 0.5
    sizes = boxes[:, 2:] - boxes[:, :2]
    pooled = rois.new_zeros(len(rois), features.shape[1], *output_size)
    for chunk in sizes.amax(1).argsort().split(CHUNK) if len(rois) else ():
        top, vertical = _weights(boxes[chunk, 1], sizes[chunk, 1], output_size[0], features.shape[2])
        left, across = _weights(boxes[chunk, 0], sizes[chunk, 0], output_size[1], features.shape[3])
        y = (top[:, None] + torch.arange(vertical.shape[2])).clamp(max=features.shape[2] - 1)
        x = (left[:, None] + torch.arange(across.shape[2])).clamp(max=features.shape[3] - 1)
        window = rows[rois[chunk, 0].long()[:, None, None], y[:, :, None], x[:, None, :]]  # [n,y,x,C]
        lines = torch.bmm(vertical, window.flatten(2)).unflatten(2, window.shape[2:])  # [n,h,x,C]
        bins = torch.matmul(across[:, None], lines)  # [n,h,w,C]
        pooled[chunk] = bins.permute(0, 3, 1, 2)
    return pooled


def _weights(start: Tensor, size: Tensor, bins: int, length: int) -> tuple[Tensor, Tensor]:
    """Returns along one side of each box the first cell covered and the weight of each cell from there in each bin."""
    samples = (size / bins).ceil().clamp(min=1)
    number = torch.arange(int(samples.max()))
    offset = torch.arange(bins)[:, None] + (number + 0.5) / samples[:, None, None]
    at = start[:, None, None] + size[:, None, None] / bins * offset  # [n,bins,samples]
    counted = (number < samples[:, None, None]) & (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor().long()
    first = low.flatten(1).amin(1)
    weight = counted / samples[:, None, None]
    place = low - first[:, None, None]
    weights = at.new_zeros(len(start), bins, int(place.max()) + 2)
    weights.scatter_add_(2, place, weight * (1 - (at - low)))
    weights.scatter_add_(2, place + 1, weight * (at - low))
    return first, weights
