"""Three small data sets drawn by code, in the files and formats of the real ones: for tests and for trying things out.

Every class is a drawing of a few primitives on a unit square; the three tasks differ in background, light, size and
number of objects, so that a network which only sees one of them forgets the others, as with photographs.

An image depends on the seed, its task, its split and its index alone, hence on the order of the random numbers below.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mtl_utils import layout
from mtl_utils.files import UserError
from mtl_utils.progress import progress
from mtl_utils.tasks import COCO_CLASSES, IGNORE, IMAGENETTE_NAMES, SPLITS, TASKS, VOC_CLASSES, Task, voc_palette

COLOURS = {  # RGB of the letters of the drawings; each object varies its own copy
    "k": (32, 32, 36),  # black
    "d": (88, 88, 94),  # dark grey
    "l": (172, 174, 178),  # light grey
    "w": (238, 236, 230),  # white
    "g": (150, 195, 222),  # glass
    "r": (198, 48, 44),  # red
    "o": (226, 128, 46),  # orange
    "y": (236, 202, 62),  # yellow
    "e": (62, 138, 62),  # green
    "u": (58, 96, 182),  # blue
    "n": (118, 76, 46),  # brown
    "t": (206, 168, 124),  # tan
    "s": (228, 182, 152),  # skin
    "p": (226, 142, 156),  # pink
    "v": (104, 108, 52),  # olive
    "c": (76, 92, 116),  # slate
}
# name|colours that its body (b; in shade: B) may have|primitives, back to front. A primitive is its kind, its colour
# and numbers in percent of the unit square, y downwards: R(ectangle) and E(llipse) x0 y0 x1 y1, P(olygon) x y x y ...,
# L(ine) width x y x y ..., O (a ring) width x0 y0 x1 y1.
TABLE = """
aeroplane|wl|Pb 8 46 2 20 14 20 32 44,Eb 4 40 96 58,PB 38 52 60 52 44 84 32 84,PB 46 42 58 42 40 22 32 22,
  Rg 34 45 78 49,Pg 84 43 92 46 84 49
bicycle|ke|Ok 5 2 46 44 88,Ok 5 56 46 98 88,Lb 5 77 67 70 36 36 36 23 67 48 68 70 36 67 22 80 20,Lb 5 48 68 36 36,
  Lk 6 30 31 46 31
bird|ud|Pb 28 48 0 40 4 62 30 62,Eb 18 38 76 72,Eb 60 22 86 48,Po 84 31 100 37 84 41,PB 30 46 64 46 36 74,
  Ek 73 29 79 35,Lo 3 44 70 42 92 52 92,Lo 3 56 70 56 92 66 92
boat|rn|Ln 4 48 68 48 4,Pw 52 6 92 58 52 58,Py 44 16 10 58 44 58,Pb 2 64 98 64 82 90 18 90,RB 6 70 94 74
bottle|eg|Pb 42 8 58 8 58 28 70 42 70 98 30 98 30 42 42 28,Rr 40 1 60 10,Rw 30 54 70 80,RB 38 60 62 66
bus|yr|Rb 2 16 98 80,Rg 6 24 20 44,Rg 24 24 38 44,Rg 42 24 56 44,Rg 60 24 74 44,Rg 80 24 95 72,Rw 2 52 76 58,
  Ek 14 68 36 92,Ek 60 68 82 92
car|rul|Rb 2 48 98 74,Pb 16 50 32 26 68 26 86 50,Pg 24 47 35 31 48 31 48 47,Pg 53 47 53 31 66 31 77 47,
  Ek 12 60 36 86,Ek 64 60 88 86,El 19 67 29 79,El 71 67 81 79,Ry 92 52 98 58
cat|ok|Lb 8 66 90 90 84 92 58,Eb 27 44 73 98,Pb 24 30 26 1 48 16,Pb 76 30 74 1 52 16,Eb 22 12 78 52,Ey 33 24 44 35,
  Ey 56 24 67 35,Ek 37 25 41 34,Ek 59 25 63 34,Pp 46 38 54 38 50 43,LB 3 50 14 50 22,LB 3 30 72 44 75
chair|nt|Rb 24 2 76 11,Rb 24 2 31 56,Rb 69 2 76 56,RB 38 10 44 54,RB 56 10 62 54,RB 30 60 35 88,RB 65 60 70 88,
  Pb 20 50 80 50 90 64 10 64,Rb 11 62 19 98,Rb 81 62 89 98
cow|w|Lk 3 18 38 6 44 8 66,RB 28 58 35 92,RB 62 58 69 92,Rb 18 32 80 66,Rb 18 60 26 95,Rb 72 60 80 95,
  Pb 74 24 92 22 98 46 84 54 76 46,Pp 86 40 98 42 96 54 84 54,Lt 4 90 24 95 12,Ek 24 34 42 52,Ek 50 44 66 62,
  Ep 54 62 66 72
diningtable|n|RB 24 50 29 82,RB 71 50 76 82,Pb 22 28 78 28 99 44 1 44,RB 1 44 99 52,RB 5 52 12 97,RB 88 52 95 97,
  Ew 28 32 46 40,Ew 56 32 74 40,Pe 46 16 54 16 52 34 48 34,Er 45 8 55 18
dog|nt|Lb 7 20 50 3 24,RB 28 60 35 90,RB 56 60 63 90,Eb 15 40 72 68,Rb 18 56 26 94,Rb 62 54 70 94,
  Pb 56 46 64 22 84 24 76 58,Eb 60 14 88 42,Pb 80 24 100 28 98 40 82 42,PB 60 16 73 16 70 44 58 40,Ek 93 25 101 33,
  Ek 78 22 83 27,Lr 5 60 45 78 50
horse|n|Lk 7 18 42 7 52 5 78,RB 28 54 34 92,RB 56 54 62 92,Eb 15 34 70 62,Rb 19 52 26 98,Rb 62 52 69 98,
  Pb 54 42 68 8 84 14 72 54,Pb 66 6 80 4 99 28 92 36 76 26,Lk 7 68 3 62 20 53 36,Pb 70 8 73 -2 77 7
motorbike|ro|Ek 0 52 38 90,Ek 62 52 100 90,El 11 63 27 79,El 73 63 89 79,Ll 5 20 71 46 64,Ll 6 64 28 81 71,
  Rd 38 52 62 78,Pb 34 36 64 30 70 48 38 54,Pk 4 34 36 36 38 46 12 48,Lk 4 56 22 68 30,Ll 6 10 80 50 78,Ey 68 30 78 42
person|ruwe|Lb 9 36 28 24 56,Lb 9 64 28 76 56,Es 20 52 29 62,Es 71 52 80 62,Ru 36 54 49 94,Ru 51 54 64 94,
  Rk 33 92 49 99,Rk 51 92 67 99,Rb 34 23 66 58,Es 39 2 61 25,Pn 38 12 40 1 60 1 62 12 50 7
pottedplant|e|Pb 50 64 4 46 12 28,Pb 50 64 22 6 38 6,Pb 50 64 60 2 76 8,Pb 50 64 90 28 97 46,PB 46 64 48 8 56 24,
  PB 50 64 10 60 20 48,Po 30 66 70 66 63 99 37 99,Ro 26 60 74 69
sheep|w|Rk 24 64 32 96,Rk 38 64 45 92,Rk 56 64 63 92,Rk 66 64 74 96,Eb 8 30 40 66,Eb 24 22 58 58,Eb 44 22 78 60,
  Eb 12 42 48 76,Eb 38 42 76 76,EB 26 38 50 60,Ek 70 26 96 56,Pk 72 32 62 40 72 42,Eb 70 20 88 36,Ew 85 36 90 41
sofa|rp|Rn 8 84 16 94,Rn 84 84 92 94,Rb 10 28 90 66,Lw 2 50 30 50 60,Rb 10 60 90 84,LB 4 12 62 88 62,
  LB 3 50 62 50 84,EB 0 40 20 60,RB 0 50 20 86,EB 80 40 100 60,RB 80 50 100 86
train|ue|Ld 3 30 32 40 16 52 32,Rd -4 86 104 91,Pb 0 32 78 32 99 60 99 78 0 78,Rw 0 60 98 65,Rg 4 40 32 53,
  Rg 36 40 64 53,Pg 70 40 80 40 91 55 70 55,Ek 4 74 18 88,Ek 20 74 34 88,Ek 62 74 76 88,Ek 78 74 92 88
tvmonitor|ug|Pd 44 74 56 74 60 88 40 88,Rd 26 87 74 94,Rk 2 10 98 76,Rb 8 16 92 69,Pw 14 20 40 20 18 52 14 52,
  PB 8 69 36 44 56 60 72 48 92 69
truck|wl|Rk 2 68 98 76,Rb 0 12 62 70,RB 0 20 62 24,RB 0 58 62 62,Pr 65 34 84 34 97 54 97 74 65 74,
  Pg 70 39 82 39 90 54 70 54,Ek 6 66 26 88,Ek 30 66 50 88,Ek 72 66 92 88
tench|vn|Pb 22 50 0 28 6 50 0 74,PB 34 34 46 18 64 30,PB 40 66 48 82 58 68,Eb 12 28 92 72,PB 58 50 46 42 46 60,
  LB 2 72 34 68 50 72 66,Ey 78 40 86 49,Ek 80 42 84 47,Lk 2 84 60 92 56
English springer|n|Pw 26 60 74 60 90 100 10 100,Ew 26 8 74 68,Pn 24 34 28 8 46 6 45 50,Pn 76 34 72 8 54 6 55 50,
  En 8 14 30 70,En 70 14 92 70,Ew 36 40 64 72,Ek 34 30 43 40,Ek 57 30 66 40,Ek 42 44 58 56,Pp 44 64 56 64 54 80 46 80
cassette player|dl|LB 5 16 26 16 10 84 10 84 26,Rb 2 24 98 84,Ed 4 42 34 76,Ed 66 42 96 76,Ek 11 50 27 68,
  Ek 73 50 89 68,Rw 38 46 62 66,Ek 41 51 49 61,Ek 51 51 59 61,Ry 6 29 94 37,Rk 38 70 62 77
chain saw|or|Lk 5 28 44 36 22 54 26 50 46,Ll 11 44 56 94 56,El 88 50 100 62,Lk 2 44 50 96 50,Lk 2 44 62 96 62,
  Pb 2 40 40 36 52 48 50 70 6 74,Lk 6 4 44 0 60 10 70,Pk 14 50 34 48 34 56 14 58,Lw 3 12 64 42 62
church|wtl|Ly 2 22 10 22 -4,Ly 2 17 0 27 0,Rb 34 54 96 98,Pn 28 56 64 32 102 56,Rb 8 38 36 98,Pd 4 40 22 6 40 40,
  Ek 16 46 28 58,Pg 46 66 52 60 58 66 58 82 46 82,Pg 72 66 78 60 84 66 84 82 72 82,Pn 14 98 14 78 22 70 30 78 30 98
French horn|yo|Lb 4 30 22 4 4,Ob 6 12 18 66 72,OB 5 24 30 54 60,Lb 5 24 44 54 44,Lb 5 36 30 36 62,
  Pb 42 66 54 54 98 70 72 100,PB 74 98 96 72 92 86 84 94,El 38 40 46 48
garbage truck|eou|Rk 4 70 98 77,Pb 18 14 66 18 66 72 18 72,PB 0 40 18 14 18 72 6 72,Rw 22 40 64 45,LB 4 34 18 34 72,
  LB 4 50 18 50 72,Pw 68 32 90 32 98 52 98 74 68 74,Pg 74 37 88 37 93 52 74 52,Ek 14 66 36 90,Ek 70 66 92 90
gas pump|rw|Lk 4 70 34 92 30 92 72 76 74,Pk 70 28 84 22 84 34 74 42,Rb 24 6 74 92,Rd 18 90 80 99,Rw 32 14 66 40,
  Rk 36 18 62 24,Rk 36 30 62 36,RB 32 48 66 52,Ey 40 56 58 74
golf ball|w|Pr 44 86 56 86 52 102 48 102,Eb 8 4 92 88,El 44 10 54 19,El 26 20 36 29,El 64 20 74 29,El 45 28 54 37,
  El 16 38 26 48,El 34 42 44 52,El 56 42 66 52,El 75 38 85 48,El 20 60 30 70,El 45 60 55 70,El 70 60 80 70,
  El 46 76 55 84
parachute|ruo|Lk 1 4 42 50 84 96 42,Lk 1 27 44 50 84 73 44,
  Pb 2 44 6 24 24 8 50 2 76 8 94 24 98 44 80 38 62 44 38 44 20 38,Pw 20 38 27 16 42 3 36 43,Pw 80 38 73 16 58 3 64 43,
  Ru 45 84 55 100
"""


class ImageStyle(NamedTuple):
    """What the images of one task have in common."""

    short: tuple[int, int]  # pixels of the shorter side, end excluded; the longer one has up to 4/3 of it
    objects: int  # the most objects in an image
    centre: tuple[float, float]  # where the objects' centres lie, as a fraction of the image's sides
    side: tuple[float, float]  # of an object's unit square, as a fraction of the shorter side
    upper: str  # letters of the colours above the horizon
    lower: str  # letters of the colours below the horizon
    clutter: str  # letters of the colours of shapes that mean nothing
    light: tuple[float, float]  # the background's colours are multiplied by a number in this range
    noise: float  # strength of the background's texture
    blur: float  # radius of the background's blur in pixels


STYLES: dict[Task, ImageStyle] = {
    # fields in the sun
    "seg": ImageStyle(
        short=(128, 145),
        objects=3,
        centre=(0.2, 0.8),
        side=(0.5, 0.8),
        upper="gwyt",
        lower="evyto",
        clutter="evtyon",
        light=(0.9, 1.2),
        noise=0.2,
        blur=0.5,
    ),
    # streets at dusk
    "det": ImageStyle(
        short=(128, 145),
        objects=6,
        centre=(0.15, 0.85),
        side=(0.2, 0.5),
        upper="cd",
        lower="dcl",
        clutter="kdlc",
        light=(0.6, 1.0),
        noise=0.12,
        blur=0.5,
    ),
    # one thing before a colourful blur
    "cls": ImageStyle(
        short=(112, 129),
        objects=1,
        centre=(0.45, 0.55),
        side=(0.6, 0.8),
        upper="rpue",
        lower="yopu",
        clutter="rouyewp",
        light=(0.9, 1.3),
        noise=0.05,
        blur=4.0,
    ),
}
CROWD = "crowd"  # the name of a group of small persons, beside those of the classes
CROWD_SIZE = 9  # persons in it
DRAWN_AS = {"motorcycle": "motorbike", "tv": "tvmonitor", CROWD: "person"}
CROWD_EVERY = 16  # detection images: one of so many has a crowd
MIN_PIXELS = 36  # of an object in an image
STAYS_VISIBLE = 0.6  # the least fraction of an object's pixels that later objects leave uncovered
FIRST_NUMBER = {"train": 1, "val": 100_001}  # of a split's images; it is part of their names

Size = tuple[int, int]  # height, width in pixels
CocoRecord = dict[str, Any]  # of an image or an object, with COCO's keys
CocoImage = tuple[CocoRecord, list[CocoRecord]]  # an image and its objects
Pose = tuple[float, float, float]  # x and y of an object's centre and the side of its unit square, in pixels


class Primitive(NamedTuple):
    """One shape of a drawing."""

    kind: str  # its letter, see TABLE
    colour: str  # a letter of COLOURS, or b or B for the body's colour
    numbers: np.ndarray  # in percent of the unit square, see TABLE


class Drawing(NamedTuple):
    """How a class is drawn."""

    body: str  # letters of the colours that its body may have
    primitives: list[Primitive]  # back to front


def parse_table() -> dict[str, Drawing]:
    """TABLE as drawings by class name."""
    drawings = {}
    for row in re.split(r"\n(?! )", TABLE.strip()):  # lines that begin with a space go on with the row
        name, body, parts = row.split("|")
        primitives = [parse_primitive(part) for part in parts.split(",")]
        drawings[name] = Drawing(body, primitives)
    return drawings


def parse_primitive(text: str) -> Primitive:
    """A primitive from "Pb 8 46 2 20": kind and colour, then numbers."""
    letters, *numbers = text.split()
    return Primitive(letters[0], letters[1], np.array(numbers, float))


DRAWINGS = parse_table()


# ---- one object


def outline(kind: str, numbers: np.ndarray) -> np.ndarray:
    """The corners (K, 2) of a primitive in percent of the unit square; those of a line or ring without its width."""
    if kind in "PL":
        first = len(numbers) % 2  # a line's width stands before its corners
        return numbers[first:].reshape(-1, 2)
    x0, y0, x1, y1 = numbers[-4:]
    if kind == "R":
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    turn = np.linspace(0, 2 * np.pi, 25)
    x = x0 + x1 + (x1 - x0) * np.cos(turn)
    y = y0 + y1 + (y1 - y0) * np.sin(turn)
    return np.stack([x, y], axis=1) / 2


def draw_object(brush: ImageDraw.ImageDraw, rng: np.random.Generator, drawing: Drawing, pose: Pose) -> None:
    """Draw one object, a little turned, stretched and recoloured, and mirrored half of the time."""
    x, y, side = pose
    colours = vary_colours(rng, drawing.body)
    to_pixels = vary_shape(rng) * side / 100
    for kind, letter, numbers in drawing.primitives:
        red, green, blue = colours[letter].astype(int).tolist()
        fill = (red, green, blue, 255)
        corners = (outline(kind, numbers) - 50) @ to_pixels + (x, y)  # (K, 2), pixels
        points = corners.ravel().tolist()
        if kind in "LO":
            width = max(2, round(numbers[0] * side / 100))
            brush.line(points, fill, width, joint="curve")
        else:
            brush.polygon(points, fill)


def vary_colours(rng: np.random.Generator, body: str) -> dict[str, np.ndarray]:
    """One object's own copy of COLOURS, as (3,) float64, and its body's colour under b, in shade under B."""
    means = list(COLOURS.values())
    varied = rng.normal(means, 14).clip(0, 255)  # (16, 3)
    colours = dict(zip(COLOURS, varied, strict=True))
    colours["b"] = colours[rng.choice(list(body))]
    colours["B"] = 0.7 * colours["b"]
    return colours


def vary_shape(rng: np.random.Generator) -> np.ndarray:
    """A random matrix (2, 2) that turns an object a little, stretches it and mirrors it half of the time."""
    angle = rng.normal(0, 0.12)
    stretch = rng.uniform(0.85, 1.15)
    mirror = rng.choice([-1, 1])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([(cos, sin), (-sin, cos)])
    return np.diag([mirror * stretch, 1 / stretch]) @ turn


def soft_noise(rng: np.random.Generator, size: Size, cell: int) -> np.ndarray:
    """Smooth random values (H, W, 1), float32, around 0 with bumps of about `cell` pixels."""
    height, width = size
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)[..., None]


def paint(rng: np.random.Generator, drawing: Drawing, size: Size, poses: list[Pose]) -> tuple[np.ndarray, np.ndarray]:
    """Draw an object at each pose, all in the same light.

    Returns colours (H, W, 3) in 0..255 and how much of each pixel they cover, (H, W, 1) in 0..1; both float32.
    """
    height, width = size
    layer = Image.new("RGBA", (2 * width, 2 * height))  # twice the size, for smooth edges
    brush = ImageDraw.Draw(layer)
    for x, y, side in poses:
        draw_object(brush, rng, drawing, (2 * x, 2 * y, 2 * side))
    rgba = np.asarray(layer.reduce(2), dtype=np.float32)
    brightness = rng.uniform(0.75, 1.15)
    falloff = soft_noise(rng, size, max(size))  # of the light, in a random direction
    grain = soft_noise(rng, size, 3)
    light = brightness + 0.12 * falloff
    colours = rgba[..., :3] * (light + 0.1 * grain)
    cover = rgba[..., 3:] / 255
    return colours, cover


# ---- one image


def background(rng: np.random.Generator, style: ImageStyle, size: Size) -> np.ndarray:
    """A ground with a horizon, stripes, a texture and shapes that mean nothing: (H, W, 3) in 0..255, float32."""
    height, width = size
    pixels = np.mgrid[:height, :width].astype(np.float32)
    y, x = pixels[..., None] / height  # each (H, W, 1), in units of the height
    ground = draw_horizon(rng, style, y)
    stripes = draw_stripes(rng, y, x)
    bumps = soft_noise(rng, size, 2) + soft_noise(rng, size, 8) + soft_noise(rng, size, 32)
    texture = stripes + bumps
    brightness = rng.uniform(*style.light)
    image = ground * brightness * (1 + style.noise * texture / 2)
    colours, cover = draw_clutter(rng, style, size)
    image += 0.8 * cover * (colours * style.light[0] - image)
    return blurred(image, style.blur)


def draw_horizon(rng: np.random.Generator, style: ImageStyle, y: np.ndarray) -> np.ndarray:
    """Two colours with a soft or sharp border at a random height: (H, W, 3) float32."""
    upper = np.array(COLOURS[rng.choice(list(style.upper))], np.float32)
    lower = np.array(COLOURS[rng.choice(list(style.lower))], np.float32)
    height = rng.uniform(0.3, 0.6)
    sharpness = rng.uniform(4, 40)
    return upper + (lower - upper) / (1 + np.exp((height - y) * sharpness))


def draw_stripes(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Soft stripes in a random direction, (H, W, 1) around 0."""
    strength = rng.uniform(0, 0.8)
    frequency = rng.uniform(10, 50)
    slant = rng.uniform(-1, 1)
    return strength * np.sin(frequency * (y + slant * x))


def draw_clutter(rng: np.random.Generator, style: ImageStyle, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Random shapes that mean nothing, one to three times: colours and cover as paint returns them."""
    height, width = size
    shapes = []
    for kind, count in (("R", 4), ("E", 4), ("P", 6)):
        colour = rng.choice(list(style.clutter))
        shapes.append(Primitive(kind, colour, rng.uniform(0, 100, count)))
    times = rng.integers(1, 4)
    low = (0, 0, 0.2 * height)
    high = (width, height, 0.8 * height)
    poses = [(x, y, side) for x, y, side in rng.uniform(low, high, (times, 3))]
    return paint(rng, Drawing("k", shapes), size, poses)


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """An image (H, W, 3) in 0..255 after rounding down and a Gaussian blur, float32."""
    pixels = image.clip(0, 255).astype(np.uint8)
    smooth = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(smooth, dtype=np.float32)


def choose_size(rng: np.random.Generator, style: ImageStyle) -> Size:
    """Height and width of an image, portrait or landscape."""
    short = rng.integers(*style.short)
    longer = short * rng.uniform(1, 4 / 3)
    height, width = rng.permutation([short, longer])
    return int(height), int(width)


def choose_poses(rng: np.random.Generator, style: ImageStyle, size: Size, name: str) -> list[Pose]:
    """Where an object goes; nine small ones side by side for a crowd."""
    short = min(size)
    y, x = rng.uniform(*style.centre, 2) * size
    side = rng.uniform(*style.side) * short
    if name != CROWD:
        return [(x, y, side)]
    low = (x - side / 2, y - 5, 0.2 * short)
    high = (x + side / 2, y + 5, 0.24 * short)
    persons = rng.uniform(low, high, (CROWD_SIZE, 3))
    return [(x, y, side) for x, y, side in persons]


def compose(rng: np.random.Generator, style: ImageStyle, names: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Put objects on a background, back to front; those that would hide much of an earlier one are left out.

    Returns the image (H, W, 3) uint8, the number of the object seen at each pixel (H, W) uint8 (0: none, 1: the first,
    ...) and the names of the objects in the picture. "crowd" stands for a group of small persons.
    """
    size = choose_size(rng, style)
    image = background(rng, style, size)
    seen = np.zeros(size, np.uint8)
    placed: list[str] = []
    least: list[float] = []  # pixels of each placed object that must stay visible
    light = sum(style.light) / 2
    for name in names:
        drawing = DRAWINGS[DRAWN_AS.get(name, name)]
        poses = choose_poses(rng, style, size, name)
        colours, cover = paint(rng, drawing, size, poses)
        solid = cover[..., 0] > 0.5
        number = len(placed) + 1
        after = np.where(solid, number, seen).astype(np.uint8)
        visible = np.bincount(after.ravel(), minlength=number + 1)[1:]  # pixels of each object
        if (visible < [*least, MIN_PIXELS]).any():
            continue
        image += cover * (colours * light - image)
        seen = after
        placed.append(name)
        least.append(STAYS_VISIBLE * solid.sum())
    noise = rng.standard_normal(image.shape, dtype=np.float32)  # the camera's
    pixels = (image + 4 * noise).clip(0, 255).astype(np.uint8)
    return pixels, seen, placed


def choose_objects(rng: np.random.Generator, style: ImageStyle, names: tuple[str, ...], index: int) -> list[str]:
    """The objects of image `index`: the first in turn, so that no class is missing, the others often persons."""
    first = names[index % len(names)]
    persons = ["person"] * (len(names) // 2)
    count = rng.integers(0, style.objects)
    others = rng.choice([*names, *persons], count).tolist()
    return [first, *others]


# ---- the files


def write_seg(folder: Path, number: int, index: int, rng: np.random.Generator) -> None:
    """An image and its palette mask: class indices, and IGNORE in a line one pixel wide around every object."""
    style = STYLES["seg"]
    names = choose_objects(rng, style, VOC_CLASSES[1:], index)
    image, seen, placed = compose(rng, style, names)
    indices = [0]  # the class of each object number; 0 is the background
    indices += [VOC_CLASSES.index(name) for name in placed]
    mask = np.array(indices, np.uint8)[seen]
    grown = np.asarray(Image.fromarray(seen).filter(ImageFilter.MaxFilter(3)))
    mask[grown != seen] = IGNORE
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette())
    picture.save(folder / f"2007_{number:06d}.png")
    save_photo(image, folder / f"2007_{number:06d}.jpg")


def save_photo(image: np.ndarray, path: Path) -> None:
    """Save an image (H, W, 3) uint8 as JPEG."""
    Image.fromarray(image).save(path, quality=90)


def write_det(folder: Path, number: int, index: int, rng: np.random.Generator) -> CocoImage:
    """An image; returns its COCO record and the annotations of its objects. Every 16th image has a crowd."""
    style = STYLES["det"]
    names = choose_objects(rng, style, tuple(COCO_CLASSES), index)
    if index % CROWD_EVERY == 7:
        names.insert(1, CROWD)
    image, seen, placed = compose(rng, style, names)
    file_name = f"{number:012d}.jpg"
    save_photo(image, folder / file_name)
    height, width = seen.shape
    record = {"id": number, "file_name": file_name, "width": width, "height": height}
    annotations = []
    for i, name in enumerate(placed):
        annotations.append(annotation(10 * number + i, number, name, seen == i + 1))
    return record, annotations


def annotation(identifier: int, image: int, name: str, visible: np.ndarray) -> CocoRecord:
    """COCO's record of an object: the box, the area and the run lengths of its visible pixels (H, W), bool."""
    return {
        "id": identifier,
        "image_id": image,
        "category_id": COCO_CLASSES["person" if name == CROWD else name],
        "bbox": enclosing_box(visible),
        "area": float(visible.sum()),
        "iscrowd": int(name == CROWD),
        "segmentation": {"size": list(visible.shape), "counts": run_lengths(visible)},
    }


def enclosing_box(visible: np.ndarray) -> list[float]:
    """Left, top, width and height of the smallest box around the pixels of a mask (H, W), bool."""
    columns = np.flatnonzero(visible.any(axis=0))
    rows = np.flatnonzero(visible.any(axis=1))
    left, top = columns[0], rows[0]
    width = columns[-1] + 1 - left
    height = rows[-1] + 1 - top
    return [float(left), float(top), float(width), float(height)]


def run_lengths(visible: np.ndarray) -> list[int]:
    """COCO's uncompressed code of a mask (H, W), bool: lengths of runs of equal pixels, the first of unset ones."""
    pixels = visible.ravel(order="F")  # COCO goes down the columns
    changes = np.diff(pixels, prepend=False).nonzero()[0]
    ends = [0, *changes, pixels.size]
    return np.diff(ends).tolist()


def write_cls(folder: Path, number: int, index: int, rng: np.random.Generator) -> None:
    """An image of one large object in the folder of its class."""
    classes = list(IMAGENETTE_NAMES.items())
    wnid, name = classes[index % len(classes)]
    image, _, _ = compose(rng, STYLES["cls"], [name])
    (folder / wnid).mkdir(exist_ok=True)
    save_photo(image, folder / wnid / f"{wnid}_{number}.JPEG")


def all_images(counts: dict[str, int]) -> list[tuple[Task, str, int]]:
    """Every image of the three sets as task, split and index; counts: images of each split."""
    images = []
    for task in TASKS:
        for split in SPLITS:
            images += [(task, split, index) for index in range(counts[split])]
    return images


def write_all(root: Path, counts: dict[str, int], seed: int) -> None:
    """Write every file; an image depends on the seed, its task, its split and its index alone."""
    records: dict[str, list[CocoImage]] = {split: [] for split in SPLITS}
    for task, split, index in progress(all_images(counts), desc="Drawing synthetic images"):
        folder = layout.split_folder(root, task, split)
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, TASKS.index(task), SPLITS.index(split), index])
        number = FIRST_NUMBER[split] + index
        if task == "seg":
            write_seg(folder, number, index, rng)
        elif task == "det":
            records[split].append(write_det(folder, number, index, rng))
        else:
            write_cls(folder, number, index, rng)
    for split in SPLITS:
        write_annotations(layout.json_path(root, split), records[split])


def write_annotations(path: Path, records: list[CocoImage]) -> None:
    """COCO's JSON file from each image's record and annotations."""
    images = []
    annotations = []
    for image, of_image in records:
        images.append(image)
        annotations += of_image
    content = {
        "info": {"description": "Images drawn by code"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in COCO_CLASSES.items()],
    }
    layout.write_coco(path, content)


def write_synthetic(root: Path, train: int = 120, val: int = 40, seed: int = 0) -> None:
    """Write the three data sets to `root`, `train` and `val` images of each; nothing if they are there already.

    Raises UserError when `root` holds other files.
    """
    if is_complete(root):
        return
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} holds something other than the three data sets: empty it or name another folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    # drawn beside the root, then renamed: a stop half way leaves nothing behind
    with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        draft = Path(temporary) / root.name
        write_all(draft, {"train": train, "val": val}, seed)
        move_into_place(draft, root)


def move_into_place(draft: Path, root: Path) -> None:
    """Move the drawn sets to `root`, unless another process (torchrun, a second notebook) drew them there meanwhile."""
    try:
        if root.exists():
            root.rmdir()  # raises OSError unless it is empty
        draft.rename(root)
    except OSError:
        if not is_complete(root):
            raise


def is_complete(root: Path) -> bool:
    """Whether all three data sets are in `root`."""
    return all(layout.has_set(root, task) for task in TASKS)
