"""Dermatoscopic-looking images, rendered by code: skin, one lesion, and what gets in the way of seeing it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from skinmtl.data.synthetic.lesions import BLACK, BLOOD, KINDS, Floats, Lesion, any_patch, lay_over, smooth_step, stroke


def render(
    dx: str, traits: Generator, pose: Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a lesion on skin, and its exact mask.

    Args:
        dx: the diagnosis, one of HAM10000's.
        traits: random numbers of what the lesion keeps over its images.
        pose: random numbers of what each image has of its own.
        size: (height, width) in pixels.

    Returns:
        The image (H, W, 3) uint8, RGB, and the mask (H, W) uint8 in {0, 1}.
    """
    structures, rough, long, edge = KINDS[dx]
    tone = traits.beta(1.2, 2.5)
    density = traits.uniform(0.25, 1.0)
    redness, deep = traits.uniform(0.0, 0.55), traits.uniform(0, 1)
    lesion = Lesion(traits, pose, size, rough * traits.uniform(0.7, 1.3), long * traits.normal())
    any_patch(lesion, traits)
    structures(lesion, traits)

    mottle = 0.15 * lesion.noise(traits, 3) + 0.08 * lesion.noise(traits, 8)
    pigment = density * (1 + mottle + 0.25 * traits.normal() * lesion.y)
    edge *= traits.uniform(0.8, 1.3)
    image = lesion.on(_skin(tone, pose, size), pigment.astype(np.float32), redness, deep, edge)
    image = _light(_clutter(image, pose), pose)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), (lesion.depth < 1).astype(np.uint8)


def _skin(tone: float, pose: Generator, size: tuple[int, int]) -> Floats:
    """Render mottled skin (H, W, 3), from pale (tone 0) to dark (1)."""
    pale, dark = np.array([0.90, 0.72, 0.64]), np.array([0.52, 0.35, 0.26])
    base = (pale + (dark - pale) * tone).astype(np.float32)
    mottle = 0.035 * _cloud(pose, size, 5) + 0.02 * _cloud(pose, size, 22) + 0.015 * _cloud(pose, size, 48)
    flush = pose.uniform(0.04, 0.25) * np.abs(_cloud(pose, size, 3))
    skin: Floats = base * (1 + mottle[..., None]) * np.exp(-flush[..., None] * BLOOD)
    return skin


def _cloud(pose: Generator, size: tuple[int, int], cells: int) -> Floats:
    """Return smooth noise of the image, (H, W), of about unit variance, from a grid of `cells` rows."""
    coarse = pose.standard_normal((cells, max(2, round(cells * size[1] / size[0])))).astype(np.float32)
    return 1.2 * np.asarray(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _clutter(image: Floats, pose: Generator) -> Floats:
    """Add hair, a ruler and gel bubbles, each to some images."""
    size = image.shape[0], image.shape[1]
    if pose.random() < 0.5:
        ink = np.array(BLACK, np.float32) * pose.uniform(0.5, 2.5)
        towards = pose.uniform(0, np.pi)
        hairs = [_hair(pose, towards, size) for _ in range(int(pose.integers(2, 11)))]
        image = lay_over(image, ink, 0.85 * np.maximum.reduce(hairs))
    if pose.random() < 0.3:
        image = lay_over(image, np.array(BLACK, np.float32), 0.8 * _ruler(pose, size))
    if pose.random() < 0.35:
        bubbles = [_bubble(pose, size) for _ in range(int(pose.integers(1, 6)))]
        image = lay_over(image, np.ones(3, np.float32), 0.4 * np.maximum.reduce(bubbles))
    return image


def _hair(pose: Generator, towards: float, size: tuple[int, int]) -> Floats:
    height, width = size
    along = np.linspace(-0.5, 0.5, 9)[:, None] * pose.uniform(0.5, 1.6) * height
    heading = towards + pose.normal(0, 0.35)
    forward = np.array([np.cos(heading), np.sin(heading)])
    bend = pose.normal(0, 0.5) / height * along**2 * np.array([-forward[1], forward[0]])
    middle = pose.uniform(0, 1, 2) * [width, height]
    return stroke(middle + along * forward + bend, height * pose.uniform(0.006, 0.014), size)


def _ruler(pose: Generator, size: tuple[int, int]) -> Floats:
    """Return the cover (H, W) of ticks along one side of the image, every fifth longer."""
    height, width = size
    gap = height * pose.uniform(0.06, 0.09)
    level = pose.choice([0.03, 0.97]) * height
    up = 1 if level < height / 2 else -1
    ticks = [stroke(np.array([[0, level], [width, level]]), 1, size)]
    for number in range(int(width / gap)):
        long = height * (0.09 if number % 5 == 0 else 0.05)
        ticks.append(stroke(np.array([[number * gap, level], [number * gap, level + up * long]]), 1, size))
    ruler: Floats = np.maximum.reduce(ticks)
    return ruler


def _bubble(pose: Generator, size: tuple[int, int]) -> Floats:
    """Return the cover (H, W) of a bubble in the gel: a ring, brighter on the lamp's side."""
    height, width = size
    angles = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * height * pose.uniform(0.02, 0.06)
    middle = pose.uniform(0, 1, 2) * [width, height]
    return stroke(middle + ring, 0.4, size) + stroke(middle + ring[13:21], 1, size)


def _light(image: Floats, pose: Generator) -> Floats:
    """Add what the camera does: light from one side, vignette, highlights, white balance, exposure, focus, grain."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    towards = pose.uniform(0, 2 * np.pi)
    shade = 1 + pose.uniform(0, 0.28) * (x * np.cos(towards) + y * np.sin(towards))
    far = np.hypot(x * width / height, y) / np.hypot(width / height, 1)
    shade *= 1 - pose.uniform(0.05, 0.6) * far**3
    if pose.random() < 0.3:
        shade *= 1 - 0.96 * smooth_step((far - pose.uniform(0.80, 0.95)) / 0.06)  # the tube of the dermatoscope
    image = image * shade[..., None]

    place = pose.uniform(-0.8, 0.8, 2)
    shine = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / pose.uniform(0.02, 0.15))
    image = image + pose.uniform(0, 0.16) * shine[..., None]

    warm, tint = pose.normal(0, 0.09), pose.normal(0, 0.025)
    balance = np.exp([warm, tint, -warm]).astype(np.float32)
    image = np.clip(image * balance * pose.uniform(0.78, 1.15), 0, 1) ** pose.uniform(0.8, 1.25)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), height * pose.uniform(0.003, 0.008)), np.float32)
    return image + pose.normal(0, 0.012, (height, width, 1)).astype(np.float32)
