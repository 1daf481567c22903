"""One image of one person: scene, figure, occluder, camera."""

import numpy as np
from PIL import Image

from .body import draw_pose
from .camera import photograph
from .figure import draw_figure
from .identity import Identity
from .scene import draw_background, draw_occluder, draw_shadow

_SUPERSAMPLING = 2


def render(identity: Identity, rng: np.random.Generator, difficulty: float) -> Image.Image:
    """Draw a person as a surveillance crop, an RGB image of 128x48 to 144x54 pixels (height x width).

    `difficulty` in [0, 1] scales all variation between images of one person: pose, position in the frame, background,
    occlusion, light, blur, noise and JPEG artefacts. Raises ValueError outside that range.
    """
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be in [0, 1], got {difficulty}")
    height = int(rng.integers(128, 145))
    width = round(height * 0.375)
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    scale = size[1] * (0.89 + rng.uniform(-0.1, 0.04) * difficulty)
    slack = size[1] - scale
    top = slack * (0.55 + rng.uniform(-0.3, 0.3) * difficulty)
    crown = (size[0] * (0.5 + rng.uniform(-0.09, 0.09) * difficulty), top)

    scene = draw_background(size, rng, difficulty)
    draw_shadow(scene, (crown[0], top + scale * 0.985), scale)
    figure = draw_figure(identity, draw_pose(rng, difficulty), size, crown, scale)
    scene.paste(figure, mask=figure)
    draw_occluder(scene, crown, scale, rng, difficulty)
    return photograph(scene.reduce(_SUPERSAMPLING), rng, difficulty)
