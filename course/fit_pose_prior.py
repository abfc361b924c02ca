"""Fit the pose prior of the drawn figures to real 2-D annotations, and store it as posetutor/assets/pose_prior.npz.

    POSETUTOR_DATA=... python course/fit_pose_prior.py

Reads lspet_joints.npz (Leeds Sports Pose Extended, 10 000 people, 14 joints), lifts every complete pose to 3-D by foreshortening
(Taylor, 2000) with anatomical preferences for the sign of each depth, and summarises the lifted poses by a mixture of Gaussians with
diagonal covariance. Also stores histograms of the annotated poses, so that the comparison in chapter 11 runs without the data.
Only these summaries enter the package, never a pose of the data set. About 20 s on one core.
"""

import itertools
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from posetutor.data.figures import POSE_STATISTICS, pose_histograms  # noqa: E402

# LSP joints: ankle, knee, hip (right, left), wrist, elbow, shoulder (right, left), neck, head top. Bones as (from, to), in the order of the prior.
BONES = {
    "shoulders": (8, 9), "hips": (2, 3), "head": (12, 13),
    "left_upper_arm": (9, 10), "right_upper_arm": (8, 7), "left_forearm": (10, 11), "right_forearm": (7, 6),
    "left_thigh": (3, 4), "right_thigh": (2, 1), "left_shank": (4, 5), "right_shank": (1, 0),
}
LENGTHS = np.array([0.200, 0.150, 0.185, 0.175, 0.175, 0.155, 0.155, 0.245, 0.245, 0.240, 0.240])  # in body heights, joint centre to joint centre
COMPONENTS = 384
TORSO = 0.285  # pelvis centre to neck


def complete_poses(joints: np.ndarray) -> np.ndarray:
    """The poses with all 14 joints labelled, without degenerate ones."""
    xy = joints[(joints[..., 2] > 0).all(1), :, :2].astype(np.float64)
    spread = np.sqrt(((xy - xy.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
    return xy[spread > 15]


def body_scale(xy: np.ndarray) -> np.ndarray:
    """Pixels per body height: the third largest ratio of a drawn to a true bone length (the largest would follow the annotation noise)."""
    bones = np.stack([np.linalg.norm(xy[:, b] - xy[:, a], axis=-1) for a, b in list(BONES.values())[2:]], 1) / LENGTHS[2:]
    torso = np.linalg.norm(xy[:, 12] - (xy[:, 2] + xy[:, 3]) / 2, axis=-1) / TORSO
    return np.sort(np.concatenate([bones, torso[:, None]], 1), 1)[:, -3]


def out_of_plane(flat: np.ndarray, length) -> np.ndarray:
    """Depth |dz| that a bone of this length needs for its drawn vector (N, 2); directions come out as unit vectors (N, 3) with dz >= 0."""
    share = flat / length
    inside = (share**2).sum(-1, keepdims=True)
    share = share / np.sqrt(np.maximum(inside, 1))
    return np.concatenate([share, np.sqrt(np.maximum(0, 1 - (share**2).sum(-1, keepdims=True)))], -1)


def limb_penalty(upper, lower, forward, up, left, side, leg):
    """How unlikely a limb is, from the directions of its two bones (N, 3) in camera axes and the torso's axes. side: +1 left, -1 right."""
    f, d, o = (upper * forward).sum(-1), -(upper * up).sum(-1), side * (upper * left).sum(-1)
    bend = (upper * lower).sum(-1)
    hinge = lower - bend[:, None] * upper
    normal = forward - (forward * upper).sum(-1, keepdims=True) * upper  # the front of the upper bone
    if leg:
        swing = np.arctan2(f, d)  # 0 straight down, positive to the front
        cost = 3.0 * np.maximum(0, -swing - 0.3) + 1.0 * np.maximum(0, swing - 2.2) + 2.0 * np.maximum(0, -o - 0.25)
        front = normal * np.maximum(d, 0)[:, None] + up * np.maximum(f, 0)[:, None]  # front of the thigh turns up as the thigh rises
        return cost + 4.0 * np.maximum(0, (hinge * front).sum(-1)) - 0.3 * f
    cost = 1.5 * np.maximum(0, -f - 0.45) + 1.5 * np.maximum(0, -o - 0.4) - 0.25 * f
    return cost - 0.7 * (lower * forward).sum(-1)


def lift(xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Torso axes and bone directions (N, 13, 3): left and up in camera axes, then the 11 bones in body axes (left, up, front)."""
    scale = body_scale(xy)[:, None]
    hip, n = (xy[:, 2] + xy[:, 3]) / 2, len(xy)
    flat = {name: (xy[:, b] - xy[:, a]) / scale for name, (a, b) in BONES.items()}
    unit = {name: out_of_plane(flat[name], length) for (name, length) in zip(BONES, LENGTHS)}
    torso = out_of_plane((xy[:, 12] - hip) / scale, TORSO)
    best, answer = np.full(n, np.inf), np.zeros((n, 13, 3))
    mirror = np.array([1.0, 1.0, -1.0])
    for torso_sign, across_sign in itertools.product((1, -1), repeat=2):
        up = torso * (mirror if torso_sign < 0 else 1)
        across = unit["shoulders"] + unit["hips"]
        across = across * (mirror if across_sign < 0 else 1)
        left = across - (across * up).sum(-1, keepdims=True) * up
        size = np.linalg.norm(left, axis=-1, keepdims=True)
        left = left / np.maximum(size, 1e-6)
        front = np.cross(left, up)
        cost = 1.2 * np.abs((across * up).sum(-1)) + 0.02 * rng.standard_normal(n)
        cost = cost + 0.4 * np.maximum(0, torso_sign * torso[:, 2] * front[:, 2])  # people lean to the front rather than to the back
        chosen = {name: unit[name] * (mirror if across_sign < 0 else 1) for name in ("shoulders", "hips")}
        head = np.stack([unit["head"], unit["head"] * mirror], 1)  # (N, 2, 3)
        bent = np.stack([np.abs((h * front).sum(-1) - 0.15) + 0.5 * np.maximum(0, 0.3 - (h * up).sum(-1)) for h in (head[:, 0], head[:, 1])], 1)
        chosen["head"] = head[np.arange(n), bent.argmin(1)]
        cost = cost + 0.3 * bent.min(1)
        for side_name, side in (("left", 1), ("right", -1)):
            for top, low, leg in (("upper_arm", "forearm", False), ("thigh", "shank", True)):
                tops, lows = unit[f"{side_name}_{top}"], unit[f"{side_name}_{low}"]
                options = [(tops * (mirror if a else 1), lows * (mirror if b else 1)) for a in (0, 1) for b in (0, 1)]
                prices = np.stack([limb_penalty(t, w, front, up, left, side, leg) for t, w in options], 1) + 0.05 * rng.standard_normal((n, 4))
                pick = prices.argmin(1)
                cost = cost + prices[np.arange(n), pick]
                for name, which in ((f"{side_name}_{top}", 0), (f"{side_name}_{low}", 1)):
                    chosen[name] = np.stack([o[which] for o in options], 1)[np.arange(n), pick]
        axes = np.stack([left, up, front], 1)  # rows: body axes in camera axes
        bones = np.stack([chosen[name] for name in BONES], 1)
        found = np.concatenate([left[:, None], up[:, None], np.einsum("nbc,nac->nba", bones, axes)], 1)
        better = (cost < best) & (size[:, 0] > 1e-6)
        best[better], answer[better] = cost[better], found[better]
    return answer[np.isfinite(best)]


def mixture(poses: np.ndarray, components: int, rng: np.random.Generator, rounds: int = 25):
    """k-means centres (C, 13, 3), spreads (C, 13, 3) and weights (C,) of the lifted poses; lower bones relative to upper ones."""
    data = poses.copy()
    data[:, 7:9] -= data[:, 5:7]  # forearms and shanks relative to the bone above: stretched limbs stay stretched when noise is added
    data[:, 11:13] -= data[:, 9:11]
    data = data.reshape(len(poses), -1).astype(np.float32)
    centres = data[rng.choice(len(data), components, replace=False)]
    for _ in range(rounds):
        distance = (centres**2).sum(1)[None] - 2 * data @ centres.T
        label = distance.argmin(1)
        for c in range(components):
            if (label == c).any():
                centres[c] = data[label == c].mean(0)
    spread = np.stack([data[label == c].std(0) if (label == c).sum() > 3 else data.std(0) * 0.3 for c in range(components)])
    weight = np.bincount(label, minlength=components) / len(data)
    return centres.reshape(-1, 13, 3), spread.reshape(-1, 13, 3), weight


def mirrored(poses: np.ndarray) -> np.ndarray:
    """The mirror image of lifted poses: image x negated, left and right bones exchanged."""
    order = [0, 1, 2, 3, 4, 6, 5, 8, 7, 10, 9, 12, 11]
    out = poses[:, order].copy()
    out[:, 0] *= [-1, 1, 1]  # camera axes: the mirrored left axis is the mirror of -left
    out[:, 0] *= -1
    out[:, 1] *= [-1, 1, 1]
    out[:, 2:] *= [-1, 1, 1]  # body axes: left negated
    out[:, 2:4] *= -1  # the shoulder and hip lines run from right to left
    return out


def main() -> None:
    folder = os.environ.get("POSETUTOR_DATA")
    if not folder:
        sys.exit("set POSETUTOR_DATA to the folder that holds lspet_joints.npz")
    joints = np.load(Path(folder) / "lspet_joints.npz")["joints"]
    rng = np.random.default_rng(0)
    xy = complete_poses(joints)
    lifted = lift(xy, rng)
    centres, spreads, weights = mixture(lifted, COMPONENTS, rng)
    order = np.argsort(-weights)
    histograms = pose_histograms(xy)
    half = rng.permutation(len(xy))
    floor = {name: 0.5 * np.abs(a - b).sum() for (name, a), b in zip(pose_histograms(xy[half[::2]]).items(), pose_histograms(xy[half[1::2]]).values())}
    target = ROOT / "posetutor" / "assets" / "pose_prior.npz"
    target.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        target,
        centres=centres[order].astype(np.float16), spreads=spreads[order].astype(np.float16), weights=weights[order].astype(np.float32),
        bones=np.array(list(BONES)), histogram_names=np.array(list(POSE_STATISTICS)), histograms=np.stack([histograms[n] for n in POSE_STATISTICS]).astype(np.float32),
        floor=np.array([floor[n] for n in POSE_STATISTICS], np.float32), poses=np.int64(len(xy)),
    )
    print(f"{len(xy)} poses, {len(lifted)} lifted, {len(weights)} components, {target.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
