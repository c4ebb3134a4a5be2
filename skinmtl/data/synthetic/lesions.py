"""Synthetic lesions, each diagnosis with structures of its own.

Nothing here is medicine. Colours overlap between diagnoses on purpose, as they do in clinics; what tells them apart is
structure, coarse enough to be seen at 64 pixels: network, streaks, cysts, vessels, strawberry, ring and scar, lacunae.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]  # RGB in [0, 1]

WHITE: Colour = (0.95, 0.90, 0.84)
PINK: Colour = (0.86, 0.50, 0.47)
RED: Colour = (0.66, 0.12, 0.13)
PURPLE: Colour = (0.36, 0.10, 0.22)
BLUE_GREY: Colour = (0.30, 0.33, 0.44)
VEIL: Colour = (0.56, 0.63, 0.78)
BROWN: Colour = (0.34, 0.19, 0.13)
SCAR: Colour = (0.94, 0.80, 0.73)
BLACK: Colour = (0.10, 0.06, 0.05)
MELANIN = np.array([0.55, 1.0, 1.35], np.float32)  # absorption, red to blue
SLATE = np.array([0.95, 1.0, 1.05], np.float32)  # of pigment deep in the skin, which looks grey
BLOOD = np.array([0.10, 0.85, 0.75], np.float32)
TILE = 32  # cells of a noise tile, which repeats


class Lesion:
    """One lesion on one image: where its pixels are in the lesion's own frame, and what is painted on them.

    Args:
        traits: random numbers of what belongs to the lesion.
        pose: random numbers of what belongs to the image.
        size: (height, width) of the image in pixels.
        rough: how far the border strays from an ellipse.
        long: by how much the ellipse is longer than a circle, as a fraction; negative for wider.

    Attributes:
        x: (H, W) lesion coordinates, about 1 at the border, so that a lesion keeps its structures over poses.
        y: as `x`.
        depth: (H, W) distance from the centre as a fraction of the border's, below 1 inside.
        pigment: (H, W) optical density, to which structures add.
    """

    def __init__(self, traits: Generator, pose: Generator, size: tuple[int, int], rough: float, long: float) -> None:
        height, width = size
        self.size = size
        self._scale = height * traits.uniform(0.24, 0.37) * pose.uniform(0.9, 1.1)  # px per unit
        self._centre = np.array([width, height]) / 2 + height * pose.uniform(-0.12, 0.12, 2)
        angle = pose.uniform(0, 2 * np.pi)
        self._turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([columns, rows], axis=-1) - self._centre  # (H, W, 2)
        self.x, self.y = np.moveaxis((pixels @ self._turn / self._scale).astype(np.float32), -1, 0)
        self.angle = np.arctan2(self.y, self.x)
        self.depth = np.hypot(self.x / (1 + long), self.y * (1 + long)) / self._border(traits, rough)
        self.pigment = np.zeros(size, np.float32)
        self._paints: list[tuple[Colour, Floats]] = []

    def _border(self, traits: Generator, rough: float) -> Floats:
        """Return the border's distance from the centre in each pixel's direction, (H, W), around 1."""
        border = np.ones(self.size, np.float32)
        for waves in range(2, 10):
            border += rough * traits.normal() / waves * np.cos(waves * self.angle + traits.uniform(0, 2 * np.pi))
        return np.clip(border, 0.55, 1.5).astype(np.float32)

    def noise(self, traits: Generator, cells: float) -> Floats:
        """Return smooth noise that moves with the lesion.

        Args:
            traits: random numbers of the lesion.
            cells: bumps per lesion unit.

        Returns:
            (H, W), of about unit variance.
        """
        tile = traits.standard_normal((TILE, TILE)).astype(np.float32)
        x, y = (self.x * cells) % TILE, (self.y * cells) % TILE
        return 1.5 * cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)

    def dots(self, places: NDArray[np.float64], radii: NDArray[np.float64], soft: float = 0.35) -> Floats:
        """Return the cover of discs.

        Args:
            places: (N, 2) centres x, y in lesion units.
            radii: (N,) in lesion units.
            soft: the fraction of the radius over which the cover falls off.

        Returns:
            (H, W) in [0, 1], 1 inside.
        """
        places, radii = places.astype(np.float32), radii.astype(np.float32)
        apart = np.hypot(self.x - places[:, 0, None, None], self.y - places[:, 1, None, None])  # (N, H, W)
        nearest = np.min(apart / radii[:, None, None], axis=0)
        cover: Floats = np.clip((1 + soft - nearest) / (2 * soft), 0, 1)
        return cover

    def line(self, places: NDArray[np.float64], thick: float) -> Floats:
        """Return the cover of a line.

        Args:
            places: (N, 2) points x, y in lesion units.
            thick: its width in lesion units.

        Returns:
            (H, W) in [0, 1].
        """
        pixels = places @ self._turn.T * self._scale + self._centre
        return stroke(pixels, thick * self._scale, self.size)

    def paint(self, colour: Colour, cover: Floats) -> None:
        """Lay a colour over what is there.

        Args:
            colour: RGB in [0, 1].
            cover: (H, W), opaque where it is 1.
        """
        self._paints.append((colour, cover))

    def on(self, skin: Floats, pigment: Floats, redness: float, deep: float, edge: float) -> Floats:
        """Render the lesion on skin.

        Args:
            skin: (H, W, 3), RGB in [0, 1].
            pigment: (H, W) optical density.
            redness: optical density of blood.
            deep: the fraction of the pigment that lies deep and looks grey.
            edge: how far the border blurs, as a fraction of the radius.

        Returns:
            (H, W, 3), RGB.
        """
        inside = smooth_step((1 - self.depth) / edge)
        density = (np.maximum(pigment + self.pigment, 0) * inside)[..., None]
        absorption = MELANIN + deep * (SLATE - MELANIN)
        image: Floats = skin * np.exp(-density * absorption - redness * inside[..., None] * BLOOD)
        light = 1.25 * skin.mean()  # paint on dark skin is as dark
        for colour, cover in self._paints:
            image = lay_over(image, light * np.array(colour, np.float32), cover * inside)
        return image


def smooth_step(value: Floats) -> Floats:
    """Map values to 0 below -0.5, 1 above 0.5, smoothly between."""
    share: Floats = np.clip(value + 0.5, 0, 1)
    return share * share * (3 - 2 * share)


def stroke(pixels: NDArray[np.float64], thick: float, size: tuple[int, int]) -> Floats:
    """Return the cover of a line, at least one pixel wide; a thinner one is fainter.

    Args:
        pixels: (N, 2) points x, y.
        thick: its width in pixels.
        size: (height, width) of the image in pixels.

    Returns:
        (H, W) in [0, 1].
    """
    canvas = np.zeros(size, np.uint8)
    points = np.round(pixels * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, 255, max(1, round(thick)), cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) * np.float32(min(1.0, thick) / 255)


def lay_over(image: Floats, colour: Floats, cover: Floats) -> Floats:
    """Lay a colour over an image.

    Args:
        image: (H, W, 3), RGB in [0, 1].
        colour: RGB in [0, 1].
        cover: (H, W), opaque where it is 1.
    """
    return image * (1 - cover[..., None]) + colour * cover[..., None]


def _ring(traits: Generator, count: int, inner: float, outer: float) -> NDArray[np.float64]:
    """Spread places (count, 2) evenly over a ring, whose radii are in lesion units."""
    angles = traits.uniform(0, 2 * np.pi) + np.arange(count) * np.pi * (3 - np.sqrt(5))  # the golden angle
    radii = np.sqrt(np.linspace(inner**2, outer**2, count)) + traits.normal(0, 0.05, count)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _network(lesion: Lesion, traits: Generator, cells: float) -> Floats:
    """Return a honeycomb of lines around holes, (H, W) in [0, 1]; `cells` holes per unit."""
    turn, shift = traits.uniform(0, np.pi), traits.uniform(0, 1, 2)
    x = lesion.x + 0.07 * lesion.noise(traits, 2.2) + shift[0]
    y = lesion.y + 0.07 * lesion.noise(traits, 2.2) + shift[1]
    # Three plane waves 60 degrees apart, in step at the origin, are highest in the middle of the holes.
    waves = [np.cos(2 * np.pi * cells * (x * np.cos(a) + y * np.sin(a))) for a in turn + np.arange(3) * np.pi / 3]
    return smooth_step((-0.2 - (waves[0] + waves[1] + waves[2])) / 1.6)


def _blend(traits: Generator, one: Colour, other: Colour) -> Colour:
    """Choose a colour between two, for no diagnosis has a colour of its own."""
    share = traits.beta(0.8, 0.8)
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(one, other, strict=True))
    return red, green, blue


def _nv(lesion: Lesion, traits: Generator) -> None:
    """Add a regular network that fades outwards, alike all round."""
    fade = np.clip(1.3 - lesion.depth, 0, 1)
    lesion.pigment += fade * (1.25 * _network(lesion, traits, traits.uniform(1.9, 2.5)) - 0.45)


def _mel(lesion: Lesion, traits: Generator) -> None:
    """Add several colours, one side unlike the other, streaks on a part of the rim, a blue-white veil."""
    lesion.pigment += 0.45 * lesion.noise(traits, 1.4) + 0.5 * lesion.x
    lesion.paint(RED, 0.35 * smooth_step(lesion.noise(traits, 1.2) - 0.6))
    towards = traits.uniform(0, 2 * np.pi)
    count = int(traits.integers(11, 15))
    sector = smooth_step(2 * np.cos(lesion.angle - towards) + 0.7)
    bent = count * lesion.angle + 0.5 * lesion.noise(traits, 1.2)
    streaks = (
        smooth_step(2.2 * np.cos(bent))
        * smooth_step((lesion.depth - 0.55 + 0.06 * lesion.noise(traits, 3)) / 0.25)
        * sector
    )
    lesion.pigment += 1.5 * streaks
    place = -0.35 * np.array([[np.cos(towards), np.sin(towards)]]) + traits.normal(0, 0.1, (1, 2))
    veil = lesion.dots(place, np.array([traits.uniform(0.28, 0.45)]), 0.6)
    lesion.paint(_blend(traits, VEIL, BLUE_GREY), 0.7 * veil * np.clip(0.8 + 0.3 * lesion.noise(traits, 3), 0, 1))


def _bkl(lesion: Lesion, traits: Generator) -> None:
    """Add white cysts like milia and dark openings, a moth-eaten edge."""
    bites = int(traits.integers(4, 9))
    lesion.depth += 0.6 * lesion.dots(_ring(traits, bites, 0.95, 1.1), traits.uniform(0.10, 0.2, bites), 0.3)
    count = int(traits.integers(9, 16))
    places = _ring(traits, count, 0.1, 0.85)
    radii = traits.uniform(0.06, 0.12, count)
    dark = traits.random(count) < 0.35
    dark[:2], dark[2:5] = True, False
    lesion.paint(WHITE, 0.8 * lesion.dots(places[~dark], radii[~dark], 0.5))
    lesion.paint(BLACK, 0.6 * lesion.dots(places[dark], radii[dark], 0.5))


def _bcc(lesion: Lesion, traits: Generator) -> None:
    """Add vessels that branch like a tree, and blue-grey to brown nests."""
    count = int(traits.integers(3, 6))
    nests = lesion.dots(_ring(traits, count, 0.35, 0.75), traits.uniform(0.12, 0.24, count), 0.4)
    lesion.paint(_blend(traits, BLUE_GREY, BLACK), 0.65 * nests)
    around = traits.uniform(0, 2 * np.pi)
    trees: list[Floats] = []
    for _ in range(int(traits.integers(2, 4))):
        root = 0.95 * np.array([np.cos(around), np.sin(around)])
        trees += _vessels(lesion, traits, root, around + np.pi + traits.normal(0, 0.35), 0.09, 1.3)
        around += traits.uniform(1.5, 2.5)
    lesion.paint(RED, 0.8 * np.maximum.reduce(trees))


def _vessels(
    lesion: Lesion, traits: Generator, root: NDArray[np.float64], heading: float, thick: float, length: float
) -> list[Floats]:
    """Return a bent vessel from `root`, and thinner ones from its middle and its end, each (H, W) in [0, 1]."""
    headings = heading + np.cumsum(traits.normal(0, 0.25, 6))
    steps = length / 6 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    path = np.vstack([root, root + np.cumsum(steps, axis=0)])
    vessels = [lesion.line(path, thick)]
    if thick > 0.04:
        for at, side in ((3, 1), (5, -1)):
            turned = headings[at] + side * traits.uniform(0.5, 0.9)
            vessels += _vessels(lesion, traits, path[at], turned, thick * 0.6, length * 0.55)
    return vessels


def _akiec(lesion: Lesion, traits: Generator) -> None:
    """Add a strawberry pattern: pale follicles with a plug in a red to brown net, and scale."""
    lesion.pigment -= 0.15
    count = int(traits.integers(15, 23))
    places = _ring(traits, count, 0.05, 0.95)
    radii = traits.uniform(0.10, 0.16, count)
    halo = lesion.dots(places, radii, 0.35) * np.clip(0.85 + 0.25 * lesion.noise(traits, 1.5), 0.4, 1)
    plug = lesion.dots(places, radii * 0.42, 0.5)
    lesion.paint(_blend(traits, RED, BROWN), 0.4 * (1 - halo))
    lesion.paint(WHITE, 0.55 * halo)
    lesion.paint(PINK, 0.8 * plug)
    lesion.paint(WHITE, 0.65 * smooth_step(2.5 * (lesion.noise(traits, 2) - 1.5)))


def _df(lesion: Lesion, traits: Generator) -> None:
    """Add a white scar in the middle, and a ring of fine pigment around it."""
    inner = traits.uniform(0.38, 0.52)
    scar = smooth_step((inner - lesion.depth + 0.06 * lesion.noise(traits, 2.5)) / 0.35)
    ring = np.exp(-(((lesion.depth - 0.8) / 0.18) ** 2))
    lesion.pigment += ring * (0.3 + 0.5 * _network(lesion, traits, 3.2)) - 0.15
    lesion.paint(SCAR, traits.uniform(0.5, 0.8) * scar * np.clip(0.9 + 0.12 * lesion.noise(traits, 5), 0, 1))


def _vasc(lesion: Lesion, traits: Generator) -> None:
    """Add red, purple, brown or near-black lacunae, parted by pale septa."""
    count = int(traits.integers(7, 13))
    places, radii = _ring(traits, count, 0.1, 0.8), traits.uniform(0.17, 0.3, count)
    lesion.paint(_blend(traits, PINK, SCAR), 0.4 * (1 - lesion.dots(places, radii, 0.2)))
    blood = [_blend(traits, *pair) for pair in ((RED, PURPLE), (BROWN, BLACK))]
    first = traits.random(count) < traits.choice([0.15, 0.9])
    first[0], first[1] = True, False
    lesion.paint(blood[0], 0.7 * lesion.dots(places[first], radii[first], 0.2))
    lesion.paint(blood[1], 0.7 * lesion.dots(places[~first], radii[~first], 0.2))


def any_patch(lesion: Lesion, traits: Generator) -> None:
    """Add what any lesion may have: a pale, a blue or a red patch.

    Args:
        lesion: is painted on.
        traits: random numbers of the lesion.
    """
    for colour in (SCAR, BLUE_GREY, RED):
        place, radius = traits.normal(0, 0.45, (1, 2)), traits.uniform(0.2, 0.5, 1)
        if traits.random() < 0.3:
            lesion.paint(colour, traits.uniform(0.2, 0.45) * lesion.dots(place, radius, 0.9))


# structures, roughness of the border, spread of its elongation, how far it blurs
KINDS: dict[str, tuple[Callable[[Lesion, Generator], None], float, float, float]] = {
    "akiec": (_akiec, 0.16, 0.12, 0.22),
    "bcc": (_bcc, 0.12, 0.08, 0.14),
    "bkl": (_bkl, 0.20, 0.10, 0.06),
    "df": (_df, 0.05, 0.05, 0.18),
    "mel": (_mel, 0.32, 0.12, 0.10),
    "nv": (_nv, 0.06, 0.10, 0.14),
    "vasc": (_vasc, 0.08, 0.06, 0.08),
}
