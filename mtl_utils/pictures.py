"""From the file of a photograph or of a mask to its pixels: the one decoder of the loaders and of `data check`.

A photograph becomes RGB, 8 bits a channel; a mask becomes class indices, 0 to 20 and 255. Both are turned as their EXIF
orientation says, once. What cannot be read without a guess is refused: PictureError names the file, the cause and the
remedy.
"""

import io
import re
import warnings
from collections.abc import Collection
from functools import cache
from pathlib import Path
from reprlib import repr as short

import numpy as np
from PIL import ExifTags, Image

from mtl_utils.files import UserError
from mtl_utils.tasks import IGNORE, VOC_CLASSES, voc_palette

Size = tuple[int, int]  # width, height in pixels
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

MASK_VALUES = (*range(len(VOC_CLASSES)), IGNORE)  # all that a VOC index mask may hold
GREY_16 = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of grey pictures with more than 8 bits
LARGEST_16 = 65535  # the brightest value of 16 bits
STEP_16 = 257  # of 16 bits to one of 8: 65535 = 255 * 257
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises on most damaged pictures
PNG_START = b"\x89PNG"  # how such a file begins
JPEG_START = b"\xff\xd8\xff"
JPEG_SCAN = b"\xff\xda"  # the marker before the coded pixels of a JPEG
JPEG_END = b"\xff\xd9"
MARKER = b"\xff"  # with which every marker of a JPEG begins
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # behind coded pixels, which hold these four kinds alone
JPEG_BLOCK = 8  # pixels of its side
HOLE = bytes(512)  # a sector of a disk that was never written
MORE_PIXELS = b"\x55" * 64  # coded pixels that a complete JPEG has no place for
NO_CLASS = -1  # in the place of a class: the colour belongs to none

# what undoes each EXIF orientation but 1, which is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

UPRIGHT = 1
SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange width and height

# remedies
FETCH_AGAIN = "delete it and get it again with `python -m mtl_utils data fetch ROOT`"
SMALLER = f"scale it down, or {FETCH_AGAIN}"
EIGHT_BITS = "save it as RGB with 8 bits a channel"
PALETTE_PNG = "save it as a palette PNG that holds the class index of each pixel, as VOC does"
ONLY_CLASSES = f"use only 0 to {len(VOC_CLASSES) - 1} and {IGNORE}; never convert a palette mask to greyscale"
OWN_MASK = "take the mask that belongs to this image"


class PictureError(UserError):
    """A picture or mask that cannot be used; its text is one sentence, its parts stand apart for `data check`."""

    def __init__(self, path: Path, problem: str, remedy: str):
        super().__init__(f"{path}: {problem}; {remedy}.")
        self.problem = problem
        self.remedy = remedy


# ---- files


def decode(path: Path, longest: int | None = None) -> tuple[Image.Image, Size]:
    """A picture as its file stores it, decoded to the last pixel and not turned, and its size in the file.

    Where its longer side is at least twice `longest`, fewer pixels are decoded, `longest` of them at least. Raises
    PictureError when the file is missing, damaged, no picture, or so large that Pillow warns of it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF data does no harm
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                raise OSError("it is a folder, a pipe or a device")
            data = path.read_bytes()
            if data.startswith(PNG_START):
                Image.open(io.BytesIO(data)).verify()  # its checksums, which loading alone leaves out
            picture = Image.open(io.BytesIO(data))
            size = picture.size
            if longest is not None and max(size) >= 2 * longest:
                return reduce(picture, longest), size
            picture.load()
            if data.startswith(JPEG_START):
                check_jpeg(data, picture)
            return picture, size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(path, f"the picture cannot be decoded ({reason(error)})", SMALLER) from error
    except Exception as error:  # what PIL raises on garbage is not only OSError
        raise PictureError(path, f"the picture cannot be decoded ({reason(error)})", FETCH_AGAIN) from error


def load(data: bytes) -> Image.Image:
    """The picture that the bytes of a file hold, decoded. Raises whatever Pillow raises on garbage."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def is_reduced(path: Path, longest: int | None) -> bool:
    """Whether a picture would be decoded with fewer pixels than its file has."""
    size = header_size(path) if longest is not None else None
    return size is not None and longest is not None and max(size) >= 2 * longest


def reduce(picture: Image.Image, longest: int) -> Image.Image:
    """An opened picture, decoded to a whole part of its size whose longer side is `longest` pixels or a few more."""
    width, height = picture.size
    # a JPEG decodes an eighth of its pixels much faster than all; the method does nothing for other kinds
    scale = longest / max(width, height)
    picture.draft(None, (max(1, int(scale * width)), max(1, int(scale * height))))
    picture.load()
    factor = max(picture.size) // longest
    can_be_averaged = picture.mode in ("L", "RGB")  # not palette indices
    return picture.reduce(factor) if factor > 1 and can_be_averaged else picture


def check_jpeg(data: bytes, picture: Image.Image) -> None:
    """Raise OSError where coded pixels of a JPEG are missing, or where a baseline JPEG was overwritten with zeros.

    The decoder warns of the first, and Pillow does not pass it on: the rest of the picture is grey, or less sharp. Not
    noticed are zeros in a progressive JPEG, and whole scans that it lacks.
    """
    place = last_scan(data)
    if place is None:  # of an unusual kind, which Pillow can read all the same
        return
    start, end = place
    progressive = "progressive" in picture.info
    # what an early end leaves: a coarse picture, or flat pixels
    if progressive or is_flat(last_block(picture)):
        longer = load(data[:end] + MORE_PIXELS + data[end:])
        if longer.tobytes() != picture.tobytes():
            raise OSError("the JPEG ends before its last pixels")
    if not progressive and HOLE in data[start:end]:
        # zeros may be the code of a flat area: then zeros alone give a flat picture
        zeros = load(data[:start] + bytes(end - start) + JPEG_END)
        if not is_flat(np.array(zeros)):
            raise OSError("a part of the JPEG was overwritten with zeros")


def last_scan(data: bytes) -> tuple[int, int] | None:
    """Where the coded pixels of the last scan of a file's first JPEG begin and end; None where markers are missing.

    A phone's file may hold a second JPEG behind the first, and a small one before its pixels.
    """
    place = len(JPEG_END)  # behind the first marker, which has no content
    found = None
    while data[place : place + 1] == MARKER and data[place : place + 2] != JPEG_END:
        if data[place + 1 : place + 2] == MARKER:  # a byte of padding
            place += 1
            continue
        is_scan = data[place : place + 2] == JPEG_SCAN
        length = int.from_bytes(data[place + 2 : place + 4], "big")  # of what the marker is followed by
        place += 2 + length
        if is_scan:
            following = NEXT_MARKER.search(data, place)
            if following is None:
                return None
            found = (place, following.end() - 2)
            place = following.end() - 2
    return found


def last_block(picture: Image.Image) -> np.ndarray:
    """The pixels of the block that a JPEG decodes last, (up to 8, up to 8) or with channels behind."""
    width, height = picture.size
    left = (width - 1) // JPEG_BLOCK * JPEG_BLOCK
    top = (height - 1) // JPEG_BLOCK * JPEG_BLOCK
    return np.array(picture.crop((left, top, width, height)))


def is_flat(pixels: np.ndarray) -> bool:
    """Whether all pixels, (H, W) or (H, W, C), are the same."""
    return bool((pixels == pixels[0, 0]).all())


def reason(error: Exception) -> str:
    """What an error of Pillow says, without Python's address of the buffer and without the full stop."""
    return str(error).split(" <")[0].rstrip(".")


def upright(picture: Image.Image) -> Image.Image:
    """A decoded picture as viewers show it: turned as its EXIF orientation says.

    Without that tag, with one that makes no sense, or with EXIF data that cannot be read it stays as it is.
    """
    # not ImageOps.exif_transpose, which writes all other tags anew and fails where one of them is broken
    turn = TURNS.get(orientation_of(picture))
    return picture if turn is None else picture.transpose(turn)


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 (upright) where it has none that makes sense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF data raises errors of many kinds
        return UPRIGHT
    # looked up in a list, since a broken tag may hold what no dict can look up
    known = [value for value in TURNS if value == orientation]
    return known[0] if known else UPRIGHT


def as_labelled(picture: Image.Image, stored: Size, size: Size | None) -> tuple[Image.Image, Size]:
    """A decoded picture as those saw it who labelled it, and the size that it had for them.

    stored: its size in the file. size: what their labels say of it, None: nothing. The picture is upright, as viewers
    show it, unless `size` is only that of the stored pixels: then it is not turned.
    """
    turned = upright(picture)
    # not by their sizes: a reduced picture may be a square
    turned_size = stored[::-1] if orientation_of(picture) in SIDEWAYS else stored
    if turned_size != size and stored == size:
        return picture, stored
    return turned, turned_size


# ---- photographs


def read_photo(path: Path, size: Size | None = None) -> Image.Image:
    """A photograph in mode RGB, upright; not turned where the labels' `size` fits the stored pixels alone.

    Raises PictureError when it cannot be decoded or its pixels are no 8 or 16 bits a channel.
    """
    photo, _ = read_reduced(path, size)
    return photo


def read_reduced(path: Path, size: Size | None = None, longest: int | None = None) -> tuple[Image.Image, Size]:
    """`read_photo` with no more pixels than needed (see `decode`), and the size of the whole photograph."""
    picture, stored = decode(path, longest)
    photo, whole = as_labelled(picture, stored, size)
    return to_rgb(path, photo), whole


def photo_sizes(path: Path) -> tuple[Size, Size]:
    """The size of a photograph upright and that of its stored pixels. Raises PictureError where read_photo does."""
    picture, stored = decode(path)
    to_rgb(path, picture)
    return upright(picture).size, stored


def header_size(path: Path) -> Size | None:
    """The upright size of a photograph by its header alone; None where that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the decoder judges size and EXIF data later
            with Image.open(path) as picture:
                orientation = picture.getexif().get(ExifTags.Base.Orientation)
                width, height = picture.size
    except Exception:  # what PIL raises on garbage is not only OSError; the decoder names the fault
        return None
    return (height, width) if orientation in SIDEWAYS else (width, height)


def to_rgb(path: Path, picture: Image.Image) -> Image.Image:
    """A decoded picture in mode RGB: grey values are repeated, alpha is dropped, 16 bits are scaled to 8.

    Raises PictureError for pixels that have no fixed range (mode F) or that Pillow cannot convert.
    """
    if picture.mode in GREY_16:
        picture = to_8_bits(path, picture)
    try:
        if picture.mode == "F":  # Pillow would clip it: nothing says which values are black and white
            raise ValueError("floating point")
        return picture.convert("RGB")
    except ValueError as error:
        problem = f"the picture has pixels of an unsupported kind (mode {picture.mode})"
        raise PictureError(path, problem, EIGHT_BITS) from error


def to_8_bits(path: Path, picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits in mode L: 65535 becomes 255. Raises PictureError for values beyond 16 bits."""
    values = np.array(picture).astype(np.int64)
    lowest = values.min()
    highest = values.max()
    if lowest < 0 or highest > LARGEST_16:
        problem = f"the picture has values from {lowest} to {highest}, beyond 16 bits"
        raise PictureError(path, problem, EIGHT_BITS)
    # Pillow's own conversion would clip everything above 255
    scaled = np.rint(values / STEP_16)
    return Image.fromarray(scaled.astype(np.uint8))


# ---- masks


def read_mask(path: Path) -> np.ndarray:
    """The class index of each pixel of a VOC mask, (H, W) uint8 of 0 to 20 and 255, upright.

    Indices are taken from palette and grey pictures; colours of VOC's palette are mapped to their classes. Raises
    PictureError when the file cannot be decoded or holds anything else.
    """
    decoded, _ = decode(path)
    mask = without_alpha(path, upright(decoded))
    if mask.mode == "P":
        indices = palette_indices(path, mask)
    elif mask.mode == "RGB":
        indices = colour_indices(path, mask)
    elif mask.mode in ("L", *GREY_16):  # the grey values themselves
        indices = np.array(mask)
    else:
        problem = f"the mask holds no class indices (mode {mask.mode})"
        raise PictureError(path, problem, PALETTE_PNG)
    check_values(path, indices)
    return indices.astype(np.uint8)


def without_alpha(path: Path, mask: Image.Image) -> Image.Image:
    """A mask without its alpha channel. Raises PictureError where that one hides anything."""
    plain_modes = {"RGBA": "RGB", "LA": "L"}
    if mask.mode not in plain_modes:
        return mask
    least, _ = mask.getchannel("A").getextrema()
    if least != 255:  # nobody can say whether what is hidden counts
        raise PictureError(path, "the mask has transparent pixels", PALETTE_PNG)
    return mask.convert(plain_modes[mask.mode])


def palette_indices(path: Path, mask: Image.Image) -> np.ndarray:
    """The class indices (H, W) of a palette mask: its colours decide, unless they are a grey ramp.

    A tool that saves a mask anew may order the palette as it likes: the colours stay, the indices do not. Raises
    PictureError where the palette is neither VOC's nor a grey ramp.
    """
    indices = np.array(mask)  # (H, W) uint8
    pixels_of_index = np.bincount(indices.ravel(), minlength=256)
    used = pixels_of_index.nonzero()[0]  # (N,)
    palette = np.array(mask.getpalette("RGB")).reshape(-1, 3)  # as many colours as the file stores
    highest = used.max()
    if highest >= len(palette):
        raise PictureError(
            path, f"the mask holds the index {highest}, for which its palette has no colour", FETCH_AGAIN
        )
    colours = palette[used]  # (N, 3)
    if (colours == used[:, None]).all():  # a grey ramp says nothing: the indices are meant
        return indices
    classes = classes_of_colours(colours)
    refuse_unknown(path, colours, classes, pixels_of_index[used])
    class_of_index = np.zeros(256, dtype=np.int64)
    class_of_index[used] = classes
    mapped: np.ndarray = class_of_index[indices]
    return mapped


def colour_indices(path: Path, mask: Image.Image) -> np.ndarray:
    """The class indices (H, W) of a mask in VOC's colours. Raises PictureError where one is no colour of VOC."""
    channels = np.array(mask).astype(np.int64)  # (H, W, 3)
    codes = channels @ (1 << 16, 1 << 8, 1)  # each colour as one number
    used, places, pixels = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1)  # (N, 3)
    classes = classes_of_colours(colours)
    refuse_unknown(path, colours, classes, pixels)
    mapped: np.ndarray = classes[places]
    return mapped.reshape(codes.shape)


@cache
def class_of_colour() -> dict[Colour, int]:
    """The class index that each colour of VOC means."""
    palette = np.array(voc_palette()).reshape(256, 3)
    classes = {}
    for value in MASK_VALUES:
        red, green, blue = palette[value].tolist()
        classes[red, green, blue] = value
    return classes


def classes_of_colours(colours: np.ndarray) -> np.ndarray:
    """The class index (N,) of each colour (N, 3) by VOC's palette; NO_CLASS for a colour that is not in it."""
    known = class_of_colour()
    classes = [known.get((red, green, blue), NO_CLASS) for red, green, blue in colours.tolist()]
    return np.array(classes, dtype=np.int64)


def refuse_unknown(path: Path, colours: np.ndarray, classes: np.ndarray, pixels: np.ndarray) -> None:
    """Raise PictureError where a colour (N, 3) has no class; it names the one that most of the pixels (N,) have."""
    unknown = classes == NO_CLASS
    if not unknown.any():
        return
    most = np.argmax(np.where(unknown, pixels, 0))
    colour = tuple(colours[most].tolist())
    problem = f"the mask holds the colour {colour} in {pixels[most]} pixel(s), which is no class of VOC"
    raise PictureError(path, problem, PALETTE_PNG)


def check_values(path: Path, indices: np.ndarray) -> None:
    """Raise PictureError where a mask holds values that are neither a class nor IGNORE."""
    values = np.unique(indices).tolist()
    unknown = [value for value in values if value not in MASK_VALUES]
    if unknown:
        raise PictureError(path, f"the mask holds values that are no class: {short(unknown)}", ONLY_CLASSES)


def check_size(path: Path, size: Size, sizes: Collection[Size]) -> None:
    """Raise PictureError where the `size` of a mask is none of the `sizes` that its photograph may have."""
    if size in sizes:
        return
    width, height = next(iter(sizes))
    problem = f"the mask has {size[0]} x {size[1]} pixels, its image {width} x {height}"
    raise PictureError(path, problem, OWN_MASK)


def read_pair(path: Path, mask_path: Path, longest: int | None = None) -> tuple[Image.Image, np.ndarray]:
    """A photograph in mode RGB, reduced as by `decode`, and its mask, (H, W) uint8 of class indices in the whole size.

    Raises PictureError when one cannot be read, or when their sizes differ however the photograph is turned.
    """
    mask = read_mask(mask_path)
    height, width = mask.shape
    photo, whole = read_reduced(path, (width, height), longest)
    check_size(mask_path, (width, height), [whole])
    return photo, mask
