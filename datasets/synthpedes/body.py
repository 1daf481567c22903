"""Proportions and joints: positions of the limbs, given build and pose."""

from dataclasses import dataclass

import numpy as np

from .canvas import Point
from .identity import Identity
from .palette import RGB, SKIN_TONES

_SHOULDER = {"slim": 0.094, "average": 0.112, "heavy": 0.134}
_WAIST = {"slim": 0.074, "average": 0.092, "heavy": 0.134}
_HIP = {"slim": 0.080, "average": 0.096, "heavy": 0.128}
_THIGH = {"slim": 0.036, "average": 0.044, "heavy": 0.058}
_ARM = {"slim": 0.025, "average": 0.030, "heavy": 0.037}
_SIDE_DEPTH = 0.74  # width of the trunk in side view, relative to front view

SHOULDER_Y, WAIST_Y, HIP_Y, CROTCH_Y, KNEE_Y, ANKLE_Y = (0.175, 0.40, 0.49, 0.53, 0.73, 0.945)


@dataclass(frozen=True)
class Pose:
    """A person's pose: `view` is front, back or side; `stride` in [-1, 1] the walking phase."""

    view: str
    stride: float
    lean: float
    elbow: float
    mirrored: bool


@dataclass(frozen=True)
class Figure:
    """A person in a pose, with what all drawing functions need: half widths in body heights, and skin colour."""

    who: Identity
    pose: Pose
    shoulder: float
    waist: float
    hip: float
    thigh: float
    arm: float
    skin: RGB

    @property
    def side(self) -> bool:
        """Whether this is a side view (facing right)."""
        return self.pose.view == "side"

    @property
    def front(self) -> bool:
        """Whether the chest is visible."""
        return self.pose.view == "front"

    def legs(self) -> tuple[list[Point], list[Point]]:
        """Hip, knee and ankle of the far and of the near leg."""
        stride = self.pose.stride
        if self.side:
            return self._side_leg(-stride), self._side_leg(stride)
        return self._front_leg(-1, max(0.0, stride)), self._front_leg(1, max(0.0, -stride))

    def _side_leg(self, stride: float) -> list[Point]:
        lift = 0.025 * max(0.0, -stride)
        return [(0.02 * stride, HIP_Y), (0.06 * stride + 0.012, KNEE_Y), (0.12 * stride - 0.012, ANKLE_Y - lift)]

    def _front_leg(self, sign: int, lift: float) -> list[Point]:
        x = sign * (self.hip - self.thigh)
        return [(x, HIP_Y), (x * 1.04, KNEE_Y - 0.012 * lift), (x * 1.06, ANKLE_Y - 0.055 * lift)]

    def arms(self) -> tuple[list[Point], list[Point]]:
        """Shoulder, elbow and hand of the far and of the near arm."""
        swing, bend = self.pose.stride, self.pose.elbow
        top = SHOULDER_Y + self.arm + 0.006
        if self.side:
            return self._side_arm(top, swing), self._side_arm(top, -swing)
        arms = []
        for sign in (-1, 1):
            x = sign * (self.shoulder - 0.35 * self.arm)
            out = max(self.shoulder + 0.012, self.waist + 0.022)
            hand = (sign * (out + 0.006 - 0.05 * bend), 0.485 + 0.02 * sign * swing - 0.04 * bend)
            arms.append([(x, top), (sign * out, 0.338), hand])
        return arms[0], arms[1]

    def _side_arm(self, top: float, swing: float) -> list[Point]:
        bend = 0.05 * self.pose.elbow
        return [(0.0, top), (0.055 * swing - 0.01, 0.335), (0.125 * swing + bend, 0.475 - bend)]

    def trunk(self, hem: float, flare: float = 0.0) -> list[Point]:
        """Outline of a garment from the shoulders to y = `hem`, widened by `flare` at the hem."""
        low = self.hip + 0.006 + flare
        right = [
            (0.038, SHOULDER_Y - 0.028),
            (self.shoulder * 0.82, SHOULDER_Y - 0.012),
            (self.shoulder, SHOULDER_Y + 0.02),
            (self.shoulder * 0.94, 0.27),
            (self.waist, WAIST_Y),
            (self.hip + 0.004, HIP_Y),
            (low, hem),
        ]
        outline = [point for point in right if point[1] <= hem]
        return outline + [(-x, y) for x, y in reversed(outline)]


def build_figure(who: Identity, pose: Pose) -> Figure:
    """Compute a person's proportions in a pose."""
    female = who.gender == "woman"
    depth = _SIDE_DEPTH if pose.view == "side" else 1.0
    return Figure(
        who=who,
        pose=pose,
        shoulder=_SHOULDER[who.build] * depth * (0.93 if female else 1.03),
        waist=_WAIST[who.build] * depth * (0.88 if female else 1.0),
        hip=_HIP[who.build] * depth * (1.06 if female else 0.97),
        thigh=_THIGH[who.build],
        arm=_ARM[who.build] * (0.92 if female else 1.0),
        skin=SKIN_TONES[who.skin],
    )


def draw_pose(rng: np.random.Generator, difficulty: float) -> Pose:
    """Draw a walking pose: always in front view at difficulty 0, in any view and with wide strides at 1."""
    back_or_side = rng.random() < 0.62 * difficulty
    view = str(rng.choice(["back", "side"])) if back_or_side else "front"
    spread = 0.35 + 0.65 * difficulty
    stride = float(rng.uniform(-1, 1)) * spread
    if view == "side":
        stride += float(np.copysign(0.25, stride))  # else one leg hides the other
    return Pose(
        view=view,
        stride=float(np.clip(stride, -1, 1)),
        lean=float(rng.normal(0, 0.022)) * difficulty,
        elbow=float(rng.uniform(0, 1)) * spread,
        mirrored=bool(rng.random() < 0.5),
    )


def slice_limb(joints: list[Point], upto: float) -> list[Point]:
    """The upper part of a limb with three joints: up to the middle one at `upto` = 0.5, all of it at 1."""
    first, middle, last = joints
    if upto <= 0.5:
        return [first, _between(first, middle, upto / 0.5)]
    return [first, middle, _between(middle, last, (upto - 0.5) / 0.5)]


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
