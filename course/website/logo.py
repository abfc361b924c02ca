"""The logo: a running person of seventeen joints in the course's own colours, as SVG."""

from posetutor.skeletons import COCO_17
from posetutor.viz import joint_colors

POSE = {  # x right, y down, in a square of 100
    "nose": (60, 13), "left_eye": (62, 10), "right_eye": (57, 10), "left_ear": (66, 12), "right_ear": (52, 12),
    "left_shoulder": (64, 30), "right_shoulder": (43, 30), "left_elbow": (80, 42), "right_elbow": (25, 41), "left_wrist": (93, 29), "right_wrist": (12, 55),
    "left_hip": (57, 57), "right_hip": (45, 58), "left_knee": (74, 69), "right_knee": (39, 77), "left_ankle": (69, 92), "right_ankle": (17, 87),
}  # fmt: skip
BODY = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def logo_svg() -> str:
    """The picture as text: limbs in the colours of their side on a disc that reads on light and on dark pages."""
    joints, limbs = joint_colors(COCO_17, on_photo=True)
    places = [POSE[name] for name in COCO_17.names]
    body = [any(part in name for part in BODY) for name in COCO_17.names]
    lines = "".join(
        f'<line x1="{places[i][0]}" y1="{places[i][1]}" x2="{places[j][0]}" y2="{places[j][1]}" stroke="{colour}"/>'
        for (i, j), colour in zip(COCO_17.limbs, limbs, strict=True)
        if body[i] and body[j]
    )
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3.6" fill="{colour}"/>' for (x, y), colour, shown in zip(places, joints, body, strict=True) if shown)
    head = '<circle cx="58" cy="14" r="9" fill="none" stroke="#f4f4f4" stroke-width="4.5"/>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 104 104" role="img" aria-label="posetutor: a running person drawn as joints and limbs">'
        f'<rect width="104" height="104" rx="22" fill="#17212b"/><g transform="translate(5 5) scale(0.9)" stroke-width="5.5" stroke-linecap="round">{lines}{dots}{head}</g></svg>\n'
    )
