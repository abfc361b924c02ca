"""Draw the picture of the README with the shipped weights: drawn people, the skeletons found, and one person's heatmaps."""

import cv2
import numpy as np
import torch

from posetutor.data.figures import draw_scene
from posetutor.geometry import pad_boxes
from posetutor.systems.topdown import LESSON_FIGURES, pretrained
from posetutor.viz import draw_poses, heatmap_rgb, image_grid, overlay_heatmap, palette_png

SCENES = (8, 11, 23)  # indices of unseen scenes


def result_picture() -> bytes:
    """PNG: one row of scenes with skeletons, one row of heatmaps of the largest person of the last scene."""
    system = pretrained()
    records = [draw_scene(index, seed=9, people=(2, 3), size=(300, 400), config=LESSON_FIGURES) for index in SCENES]
    top = image_grid([draw_poses(record.load(), system.estimate(record.load(), boxes=record.boxes[record.people])) for record in records], 3)
    record = records[-1]
    largest = record.people[np.argmax(record.areas[record.people])]
    crops, _ = system.crops(record.load(), pad_boxes(torch.from_numpy(record.boxes[[largest]]), system.aspect, system.padding))
    with torch.no_grad():
        maps = system.net(system.prepare(crops))[0]
    crop = crops[0].permute(1, 2, 0).numpy()
    names = ("nose", "left_shoulder", "right_shoulder", "left_wrist", "right_wrist", "left_hip", "left_knee", "right_ankle")
    panels = [overlay_heatmap(crop, maps[record.skeleton.names.index(name)], alpha=0.7, vmax=0.8) for name in names]
    panels.append(heatmap_rgb(maps.max(dim=0).values, vmin=0, vmax=0.8, size=crop.shape[:2]))
    bottom = image_grid(panels, len(panels))
    height = round(bottom.shape[0] * top.shape[1] / bottom.shape[1])

    return palette_png(np.vstack([top, cv2.resize(bottom, (top.shape[1], height), interpolation=cv2.INTER_LINEAR)]))
