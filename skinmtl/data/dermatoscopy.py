"""Dermatoscopic-looking photographs drawn by code: skin, one lesion of a given diagnosis, and what gets in the way.

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
BLACK: Colour = (0.10, 0.06, 0.05)
MELANIN = np.array([0.55, 1.0, 1.35], np.float32)  # absorption, red to blue
BLOOD = np.array([0.10, 0.85, 0.75], np.float32)
TILE = 32  # cells of a noise tile, which repeats


class Lesion:
    """One lesion on one photograph: where its pixels lie in the lesion's own frame, and what is painted on them.

    `x`, `y` (H, W) are lesion coordinates, about 1 at the border, so that a lesion keeps its structures over poses;
    `depth` (H, W) is the distance from the centre as a share of the border's, below 1 inside; `pigment` (H, W) is the
    optical density that structures add to. `traits` draws what belongs to the lesion, `pose` to the photograph.
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
        self.depth = np.hypot(self.x / (1 + long), self.y * (1 + long)) / self._outline(traits, rough)
        self.pigment = np.zeros(size, np.float32)
        self._paints: list[tuple[Colour, Floats]] = []

    def _outline(self, traits: Generator, rough: float) -> Floats:
        """Distance of the border from the centre in each pixel's direction, (H, W), around 1."""
        outline = np.ones(self.size, np.float32)
        for waves in range(2, 10):
            outline += rough * traits.normal() / waves * np.cos(waves * self.angle + traits.uniform(0, 2 * np.pi))
        return np.clip(outline, 0.55, 1.5).astype(np.float32)

    def noise(self, traits: Generator, cells: float) -> Floats:
        """Smooth noise of the lesion, (H, W), about unit variance; `cells` bumps per unit."""
        tile = traits.standard_normal((TILE, TILE)).astype(np.float32)
        x, y = (self.x * cells) % TILE, (self.y * cells) % TILE
        return 1.5 * cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)

    def dots(self, places: NDArray[np.float64], radii: NDArray[np.float64], soft: float = 0.35) -> Floats:
        """Discs at `places` (N, 2) with `radii` (N,) in lesion units, (H, W): 1 inside, falling off over `soft`."""
        places, radii = places.astype(np.float32), radii.astype(np.float32)
        apart = np.hypot(self.x - places[:, 0, None, None], self.y - places[:, 1, None, None])  # (N, H, W)
        nearest = np.min(apart / radii[:, None, None], axis=0)
        return np.clip((1 + soft - nearest) / (2 * soft), 0, 1)

    def line(self, places: NDArray[np.float64], thick: float) -> Floats:
        """A smooth line through `places` (N, 2), `thick` lesion units wide, (H, W) in [0, 1]."""
        pixels = places @ self._turn.T * self._scale + self._centre
        return _line(pixels, thick * self._scale, self.size)

    def paint(self, colour: Colour, cover: Floats) -> None:
        """Lay a colour over what is there, opaque where `cover` (H, W) is 1."""
        self._paints.append((colour, cover))

    def on(self, skin: Floats, pigment: Floats, redness: float, edge: float) -> Floats:
        """The skin (H, W, 3) with the lesion on it; `edge` is how far its border blurs, as a share of the radius."""
        inside = _step((1 - self.depth) / edge)
        density = (np.maximum(pigment + self.pigment, 0) * inside)[..., None]
        image = skin * np.exp(-density * MELANIN - redness * inside[..., None] * BLOOD)
        light = skin.mean()
        for colour, cover in self._paints:
            cover = (cover * inside)[..., None]
            image = image * (1 - cover) + light * 1.25 * np.array(colour, np.float32) * cover
        return image


def _step(value: Floats) -> Floats:
    """0 below -0.5, 1 above 0.5, smooth between."""
    value = np.clip(value + 0.5, 0, 1)
    return value * value * (3 - 2 * value)


def _line(pixels: NDArray[np.float64], thick: float, size: tuple[int, int]) -> Floats:
    """A line through pixels (N, 2) x, y, at least one pixel wide; a thinner one is fainter."""
    canvas = np.zeros(size, np.uint8)
    points = np.round(pixels * 16).astype(np.int32).reshape(1, -1, 1, 2)
    cv2.polylines(canvas, points, False, 255, max(1, round(thick)), cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255 * min(1.0, thick)


def _ring(traits: Generator, count: int, inner: float, outer: float) -> NDArray[np.float64]:
    """Places (count, 2) spread evenly over a ring of lesion units."""
    angles = traits.uniform(0, 2 * np.pi) + np.arange(count) * np.pi * (3 - np.sqrt(5))  # the golden angle
    radii = np.sqrt(np.linspace(inner**2, outer**2, count)) + traits.normal(0, 0.05, count)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _network(lesion: Lesion, traits: Generator, cells: float) -> Floats:
    """A honeycomb of lines around holes, (H, W) in [0, 1]; `cells` holes per unit."""
    turn, phase = traits.uniform(0, np.pi), traits.uniform(0, 6, 2)
    bend = 0.12 * lesion.noise(traits, 1.5)
    waves = [
        np.cos(2 * np.pi * cells * ((lesion.x + bend) * np.cos(a) + (lesion.y - bend) * np.sin(a)) + phase[0])
        for a in turn + np.arange(3) * np.pi / 3
    ]
    return _step(0.4 - (waves[0] + waves[1] + waves[2]) / 1.5)


def _nv(lesion: Lesion, traits: Generator) -> None:
    """A regular network that fades outwards, alike all round."""
    fade = np.clip(1.25 - lesion.depth, 0, 1)
    lesion.pigment += fade * (1.3 * _network(lesion, traits, traits.uniform(2.0, 2.6)) - 0.4)


def _mel(lesion: Lesion, traits: Generator) -> None:
    """Several colours, one side unlike the other, streaks on a part of the rim, a blue-white veil."""
    lesion.pigment += 0.55 * lesion.noise(traits, 1.3) + 0.5 * lesion.x
    towards = traits.uniform(0, 2 * np.pi)
    count = int(traits.integers(11, 15))
    sector = _step(2 * np.cos(lesion.angle - towards) + 0.6)
    streaks = _step(2.5 * np.cos(count * lesion.angle)) * _step((lesion.depth - 0.55) / 0.2) * sector
    lesion.pigment += 1.5 * streaks
    place = 0.35 * np.array([[np.cos(towards + np.pi), np.sin(towards + np.pi)]]) + traits.normal(0, 0.1, (1, 2))
    veil = lesion.dots(place, np.array([traits.uniform(0.25, 0.45)]), 0.5)
    lesion.paint(VEIL, 0.75 * veil * np.clip(0.8 + 0.3 * lesion.noise(traits, 3), 0, 1))


def _bkl(lesion: Lesion, traits: Generator) -> None:
    """White cysts like milia and dark openings, on an even ground with a moth-eaten edge."""
    count = int(traits.integers(9, 16))
    places = _ring(traits, count, 0.1, 0.85)
    radii = traits.uniform(0.07, 0.12, count)
    dark = traits.random(count) < 0.35
    dark[:2], dark[2:5] = True, False
    lesion.paint(WHITE, 0.85 * lesion.dots(places[~dark], radii[~dark]))
    lesion.paint(BLACK, 0.6 * lesion.dots(places[dark], radii[dark]))


def _bcc(lesion: Lesion, traits: Generator) -> None:
    """Vessels that branch like a tree, and blue-grey nests."""
    count = int(traits.integers(3, 6))
    places = _ring(traits, count, 0.35, 0.75)
    nests = lesion.dots(places, traits.uniform(0.14, 0.24, count), 0.3)
    lesion.paint(BLUE_GREY, 0.75 * nests)
    start = traits.uniform(0, 2 * np.pi)
    root = 0.95 * np.array([np.cos(start), np.sin(start)])
    for _ in range(int(traits.integers(2, 4))):
        _branch(lesion, traits, root, start + np.pi + traits.normal(0, 0.35), 0.11, 1.3)
        start = start + traits.uniform(1.5, 2.5)
        root = 0.9 * np.array([np.cos(start), np.sin(start)])


def _branch(
    lesion: Lesion, traits: Generator, root: NDArray[np.float64], heading: float, thick: float, length: float
) -> None:
    """A bent vessel from `root`, and thinner ones from its middle and end."""
    steps = length / 6 * np.ones(6)
    headings = heading + np.cumsum(traits.normal(0, 0.25, 6))
    path = root + np.cumsum(np.stack([steps * np.cos(headings), steps * np.sin(headings)], 1), axis=0)
    path = np.vstack([root, path])
    lesion.paint(RED, 0.85 * lesion.line(path, thick))
    if thick < 0.05:
        return
    for at, side in ((3, 1), (5, -1)):
        _branch(lesion, traits, path[at], headings[at] + side * traits.uniform(0.5, 0.9), thick * 0.6, length * 0.55)


def _akiec(lesion: Lesion, traits: Generator) -> None:
    """Strawberry: white-rimmed follicles in a red net, and scale."""
    lesion.pigment -= 0.25
    count = int(traits.integers(16, 24))
    places = _ring(traits, count, 0.05, 0.95)
    radius = traits.uniform(0.12, 0.15)
    halo = lesion.dots(places, np.full(count, radius), 0.3)
    plug = lesion.dots(places, np.full(count, radius * 0.4), 0.4)
    lesion.paint(RED, 0.5 * (1 - halo))
    lesion.paint(WHITE, 0.55 * halo)
    lesion.paint(PINK, 0.8 * plug)
    lesion.paint(WHITE, 0.8 * _step(3 * (lesion.noise(traits, 2) - 1.4)))


def _df(lesion: Lesion, traits: Generator) -> None:
    """A white scar in the middle, a ring of fine pigment around it."""
    inner = traits.uniform(0.4, 0.55)
    scar = _step((inner - lesion.depth) / 0.2 + 0.12 * lesion.noise(traits, 3))
    ring = np.exp(-(((lesion.depth - 0.8) / 0.17) ** 2))
    lesion.pigment += ring * (0.4 + 0.4 * _network(lesion, traits, 3.5)) - 0.2
    lesion.paint(WHITE, 0.65 * scar)


def _vasc(lesion: Lesion, traits: Generator) -> None:
    """Red, purple and near-black lacunae, parted by pale septa."""
    count = int(traits.integers(7, 13))
    places = _ring(traits, count, 0.1, 0.8)
    lacunae = lesion.dots(places, traits.uniform(0.2, 0.3, count), 0.12)
    lesion.pigment -= 0.3
    lesion.paint(PINK, 0.5 * (1 - lacunae))
    blood = (RED, PURPLE, BLACK)[traits.choice(3, p=[0.4, 0.4, 0.2])]
    lesion.paint(blood, 0.8 * lacunae)


# structures, roughness of the border, share by which it is long, how far it blurs
KINDS: dict[str, tuple[Callable[[Lesion, Generator], None], float, float, float]] = {
    "akiec": (_akiec, 0.16, 0.12, 0.22),
    "bcc": (_bcc, 0.12, 0.08, 0.14),
    "bkl": (_bkl, 0.20, 0.10, 0.06),
    "df": (_df, 0.05, 0.05, 0.18),
    "mel": (_mel, 0.32, 0.12, 0.10),
    "nv": (_nv, 0.06, 0.10, 0.14),
    "vasc": (_vasc, 0.08, 0.06, 0.08),
}


def photograph(
    dx: str, traits: Generator, pose: Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photograph (H, W, 3) uint8 RGB and its exact mask (H, W) uint8 in {0, 1}, at `size` (height, width) px.

    `traits` draws what the lesion keeps over its photographs, `pose` what each photograph has of its own.
    """
    structures, rough, long, edge = KINDS[dx]
    tone = traits.beta(1.2, 2.5)
    density = traits.uniform(0.25, 1.0)
    redness = traits.uniform(0.0, 0.55)
    lesion = Lesion(traits, pose, size, rough * traits.uniform(0.7, 1.3), long * traits.normal())
    structures(lesion, traits)

    pigment = density * (1 + 0.18 * lesion.noise(traits, 3) + 0.25 * traits.normal() * lesion.y)
    image = lesion.on(_skin(tone, pose, size), pigment.astype(np.float32), redness, edge * traits.uniform(0.8, 1.3))
    image = _light(_clutter(image, pose), pose)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), (lesion.depth < 1).astype(np.uint8)


def _skin(tone: float, pose: Generator, size: tuple[int, int]) -> Floats:
    """Skin (H, W, 3) from pale (tone 0) to dark (1), mottled."""
    pale, dark = np.array([0.90, 0.72, 0.64]), np.array([0.52, 0.35, 0.26])
    base = (pale + (dark - pale) * tone).astype(np.float32)
    mottle = 0.035 * _cloud(pose, size, 5) + 0.02 * _cloud(pose, size, 22)
    flush = 0.04 * _cloud(pose, size, 3)
    return base * (1 + mottle[..., None]) * np.exp(-np.abs(flush)[..., None] * BLOOD)


def _cloud(pose: Generator, size: tuple[int, int], cells: int) -> Floats:
    """Smooth noise of the photograph, (H, W), about unit variance."""
    coarse = pose.standard_normal((cells, max(2, round(cells * size[1] / size[0])))).astype(np.float32)
    return cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) * 1.2


def _clutter(image: Floats, pose: Generator) -> Floats:
    """Hair, ruler and gel bubbles, on some photographs each."""
    height, width = size = image.shape[:2]
    if pose.random() < 0.5:
        ink = np.array(BLACK, np.float32) * pose.uniform(0.5, 2.5)
        towards = pose.uniform(0, np.pi)
        for _ in range(int(pose.integers(2, 11))):
            image = _over(image, ink, 0.85 * _hair(pose, towards, size))
    if pose.random() < 0.3:
        image = _over(image, np.array(BLACK, np.float32), 0.8 * _ruler(pose, size))
    if pose.random() < 0.35:
        for _ in range(int(pose.integers(1, 6))):
            x, y = pose.uniform(0, width), pose.uniform(0, height)
            shine = np.zeros(size, np.uint8)
            cv2.circle(
                shine, (round(x * 16), round(y * 16)), round(height * pose.uniform(0.2, 0.9)), 255, 1, cv2.LINE_AA, 4
            )
            image = _over(image, np.ones(3, np.float32), 0.45 / 255 * shine.astype(np.float32))
    return image


def _over(image: Floats, colour: Floats, cover: Floats) -> Floats:
    return image * (1 - cover[..., None]) + colour * cover[..., None]


def _hair(pose: Generator, towards: float, size: tuple[int, int]) -> Floats:
    height, width = size
    along = np.linspace(-0.5, 0.5, 9)[:, None] * pose.uniform(0.5, 1.6) * height
    heading = towards + pose.normal(0, 0.35)
    forward = np.array([np.cos(heading), np.sin(heading)])
    bend = pose.normal(0, 0.5) / height * along**2 * np.array([-forward[1], forward[0]])
    middle = pose.uniform(0, 1, 2) * [width, height]
    return _line(middle + along * forward + bend, height * pose.uniform(0.006, 0.014), size)


def _ruler(pose: Generator, size: tuple[int, int]) -> Floats:
    """Ticks along one side of the photograph, every fifth longer."""
    height, width = size
    gap = height * pose.uniform(0.06, 0.09)
    level = pose.choice([0.03, 0.97]) * height
    up = 1 if level < height / 2 else -1
    ticks = [_line(np.array([[0, level], [width, level]]), 1, size)]
    for number in range(int(width / gap)):
        long = height * (0.09 if number % 5 == 0 else 0.05)
        ticks.append(_line(np.array([[number * gap, level], [number * gap, level + up * long]]), 1, size))
    return np.max(ticks, axis=0)


def _light(image: Floats, pose: Generator) -> Floats:
    """The camera's share: light from one side, vignette, highlights, white balance, exposure, focus, grain."""
    height, width = size = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    towards = pose.uniform(0, 2 * np.pi)
    shade = 1 + pose.uniform(0, 0.28) * (x * np.cos(towards) + y * np.sin(towards))
    far = np.hypot(x * width / height, y) / np.hypot(width / height, 1)
    shade *= 1 - pose.uniform(0.05, 0.6) * far**3
    if pose.random() < 0.3:
        shade *= 1 - 0.96 * _step((far - pose.uniform(0.80, 0.95)) / 0.06)  # the tube of the dermatoscope
    image = image * shade[..., None]

    place = pose.uniform(-0.8, 0.8, 2)
    shine = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / pose.uniform(0.02, 0.15))
    image = image + pose.uniform(0, 0.16) * shine[..., None]

    balance = np.exp(pose.normal(0, [0.07, 0.04, 0.11])).astype(np.float32)
    image = np.clip(image * balance * pose.uniform(0.78, 1.15), 0, 1) ** pose.uniform(0.8, 1.25)
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), height * pose.uniform(0.003, 0.008))
    return image + pose.normal(0, 0.012, (*size, 1)).astype(np.float32)
