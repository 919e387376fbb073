"""Photographs and masks of every kind give the pixels and the classes that their makers meant, or are refused."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mtl_utils.files import UserError
from mtl_utils.pictures import TURNS, check_size, photo_sizes, read_mask, read_pair, read_photo, read_reduced
from mtl_utils.tasks import voc_palette

ORIENTATION = 0x112  # EXIF's number of the tag
CLASSES = [[0, 1, 20], [255, 15, 7]]  # of the pixels of a small mask
COLOURS = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    7: (128, 128, 128),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "picture.png"


def noise(mode: str = "RGB") -> Image.Image:
    """A picture of 7 x 5 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def orientation(value: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif.tobytes()


def colour_mask() -> Image.Image:
    """The small mask in VOC's colours, which stand here as its authors give them."""
    pixels = [[COLOURS[value] for value in row] for row in CLASSES]
    return Image.fromarray(np.array(pixels, dtype=np.uint8))


def palette_mask(indices: list[list[int]], palette: list[int]) -> Image.Image:
    mask = Image.fromarray(np.array(indices, dtype=np.uint8))
    mask.putpalette(palette)
    return mask


# ---------------------------------------------------------------- damaged JPEGs


def jpeg(flat_from: int = 128, **options) -> bytes:
    """A JPEG of 128 x 128 pixels, noise above the row `flat_from` and mid grey from there on."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    pixels[flat_from:] = 128
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_jpeg_that_was_cut_off_and_closed_is_refused(tmp_path, progressive, share):
    """Pillow reads most of them without a word: the missing part is grey, or less sharp."""
    path = tmp_path / "photo.jpg"
    whole = jpeg(progressive=progressive)
    path.write_bytes(whole)
    read_photo(path)
    damaged = whole[: int(share * len(whole))] + whole[-2:]
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"the JPEG ends before its last pixels|image file is truncated"):
        read_photo(path)


def test_a_jpeg_with_a_sector_of_zeros_is_refused(tmp_path):
    path = tmp_path / "photo.jpg"
    whole = jpeg(quality=95)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(600) + whole[middle + 600 :])
    with pytest.raises(UserError, match="a part of the JPEG was overwritten with zeros"):
        read_photo(path)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("side", [64, 1000])
def test_a_flat_part_of_a_whole_jpeg_is_no_damage(tmp_path, progressive, optimize, side):
    """A grey border at the end, as a letterbox has; on a large flat area the code is a long run of zeros."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(flat_from=100, progressive=progressive, optimize=optimize) + b"more bytes behind the end")
    read_photo(path)
    Image.new("RGB", (side, side), "white").save(path, progressive=progressive, optimize=optimize)
    assert side == 64 or not optimize or progressive or bytes(512) in path.read_bytes()
    read_photo(path)


@pytest.mark.parametrize("second", ["flat", "whole"])
def test_a_second_jpeg_behind_the_first_is_not_looked_at(tmp_path, second):
    """As phones write them; damage of the first one is found all the same."""
    path = tmp_path / "photo.jpg"
    first = jpeg(quality=95)
    flat = io.BytesIO()
    Image.new("RGB", (1000, 1000), "white").save(flat, "JPEG", optimize=True)
    behind = flat.getvalue() if second == "flat" else jpeg()
    path.write_bytes(first + behind)
    read_photo(path)
    middle = len(first) // 2
    path.write_bytes(first[:middle] + first[-2:] + behind)
    with pytest.raises(UserError, match="the JPEG ends before its last pixels"):
        read_photo(path)
    path.write_bytes(first[:middle] + bytes(600) + first[middle + 600 :] + behind)
    with pytest.raises(UserError, match="a part of the JPEG was overwritten with zeros"):
        read_photo(path)


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000)])
def test_a_very_narrow_jpeg_is_reduced(tmp_path, size):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", size).save(path)
    photo, whole = read_reduced(path, longest=1000)
    assert whole == size and 1000 <= max(photo.size) < 2000


@pytest.mark.parametrize("size", [(2050, 2049), (2049, 2050)])
def test_a_photograph_that_becomes_a_square_is_turned_as_it_was_labelled(tmp_path, size):
    path = tmp_path / "photo.jpg"
    left_half = Image.new("RGB", size)
    left_half.paste("white", (0, 0, size[0] // 2, size[1]))
    left_half.save(path, exif=orientation(6))
    for labelled in (size, size[::-1]):
        photo, whole = read_reduced(path, labelled, longest=1024)
        assert whole == labelled and photo.width == photo.height
        whole_photo = read_photo(path, labelled).resize(photo.size)
        assert np.abs(np.array(photo, float) - np.array(whole_photo, float)).mean() < 3


# ---------------------------------------------------------------- turned pictures


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_orientation_is_applied_once(tmp_path, value, suffix):
    """Pillow's own function is the oracle; Pillow turns a TIFF on its own."""
    path = tmp_path / f"picture{suffix}"
    more = {"lossless": True} if suffix == ".webp" else {}
    noise().save(path, exif=orientation(value), **more)
    expected = ImageOps.exif_transpose(Image.open(path))
    assert np.array_equal(read_photo(path), expected)
    assert photo_sizes(path)[0] == expected.size == ((7, 5) if value < 5 else (5, 7))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_makes_no_sense_turns_nothing(path, value):
    noise().save(path, exif=orientation(value))
    assert np.array_equal(read_photo(path), noise())


def test_broken_exif_data_does_no_harm(path):
    noise().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(read_photo(path), noise())


def test_a_broken_tag_beside_it_leaves_the_orientation(path):
    text_as_number = b"\x01\x00\x00\x05\x00\x00\x00\x01\x00\x00\xff\xff"  # a fraction that lies beyond the end
    orientation_6 = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    noise().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + orientation_6 + text_as_number + b"\0\0\0\0")
    assert read_photo(path).size == (5, 7)


def test_labels_of_the_stored_pixels_leave_a_picture_unturned(path):
    noise().save(path, exif=orientation(6))
    assert photo_sizes(path) == ((5, 7), (7, 5))
    assert np.array_equal(read_photo(path, (7, 5)), noise())
    turned = noise().transpose(Image.Transpose.ROTATE_270)
    for size in (None, (5, 7), (70, 50)):
        assert np.array_equal(read_photo(path, size), turned)


def test_half_a_turn_is_undone_whatever_the_size_says(path):
    noise().save(path, exif=orientation(3))
    assert np.array_equal(read_photo(path, (7, 5)), noise().transpose(Image.Transpose.ROTATE_180))


def test_a_mask_is_turned_too(path):
    mask = palette_mask(CLASSES, voc_palette())
    mask.save(path, exif=orientation(6))
    assert read_mask(path).tolist() == [[255, 0], [15, 1], [7, 20]]


def test_a_mask_may_be_drawn_on_the_picture_as_shown_or_as_stored(tmp_path):
    photo, mask = tmp_path / "a.png", tmp_path / "b.png"
    noise().save(photo, exif=orientation(8))
    for size in ((7, 5), (5, 7)):
        Image.new("L", size, 3).save(mask)
        picture, values = read_pair(photo, mask)
        assert picture.size == size and values.shape == size[::-1]
    Image.new("L", (6, 6), 3).save(mask)
    with pytest.raises(UserError, match=r"b\.png.*6 x 6 pixels, its image 5 x 7; take the mask"):
        read_pair(photo, mask)


def test_turns_are_pillows():
    assert {value: turn.name for value, turn in TURNS.items()} == {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
        7: "TRANSVERSE", 8: "ROTATE_90",
    }  # fmt: skip


# ---------------------------------------------------------------- kinds of pixels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    values = np.array([[0, 128, 129, 257], [1000, 32896, 65406, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    expected = [[0, 0, 1, 1], [4, 128, 254, 255]]  # divided by 257, rounded
    assert np.array(read_photo(path)).tolist() == np.repeat(np.array(expected)[:, :, None], 3, axis=2).tolist()


@pytest.mark.parametrize(
    ("mode", "values", "text"), [("F", [0.5], "mode F"), ("I", [70000], "70000"), ("I", [-1], "-1")]
)
def test_pixels_without_a_known_range_are_refused(tmp_path, mode, values, text):
    path = tmp_path / "picture.tif"
    Image.fromarray(np.array([values], dtype=np.float32 if mode == "F" else np.int32)).save(path)
    with pytest.raises(UserError, match=rf"picture\.tif.*{text}.*8 bits"):
        read_photo(path)
    with pytest.raises(UserError, match=r"picture\.tif"):
        photo_sizes(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_pictures_become_rgb(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    noise(mode).save(path)
    picture = read_photo(path)
    assert picture.mode == "RGB" and np.array_equal(picture, noise(mode).convert("RGB"))


# ---------------------------------------------------------------- damaged and huge files


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("megapixels", [100, 200])  # Pillow warns of the first and refuses the second
def test_a_huge_picture_is_refused_in_one_sentence(path, megapixels):
    header = (10**4).to_bytes(4, "big") + (100 * megapixels).to_bytes(4, "big") + b"\x01\0\0\0\0"
    rows = zlib.compress(bytes(100 * megapixels * 1251))  # of one bit a pixel: a whole black picture
    content = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for read in (read_photo, read_mask, photo_sizes):
        with pytest.raises(UserError, match=r"picture\.png.*exceeds limit.*scale it down"):
            read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_a_truncated_picture_is_refused(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    for read in (read_photo, read_mask, photo_sizes):
        with pytest.raises(UserError, match=rf"picture\{suffix}.*cannot be decoded"):
            read(path)


def test_a_missing_picture_is_named(path):
    with pytest.raises(UserError, match=r"picture\.png.*No such file"):
        read_photo(path)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("palette", [voc_palette(), [value // 3 for value in range(768)]])
def test_indices_stay_under_vocs_palette_and_under_a_grey_ramp(path, palette):
    palette_mask(CLASSES, palette).save(path)
    assert read_mask(path).tolist() == CLASSES


def test_a_palette_in_another_order_gives_the_same_classes(path):
    colour_mask().quantize(6).save(path)
    assert np.array(Image.open(path)).tolist() != CLASSES
    assert read_mask(path).tolist() == CLASSES


def test_a_web_palette_gives_the_same_classes_where_its_colours_are_vocs(path):
    colour_mask().convert("P", palette=Image.Palette.ADAPTIVE).save(path, optimize=True)
    assert read_mask(path).tolist() == CLASSES


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_mask_in_vocs_colours_gives_their_classes(path, mode):
    colour_mask().convert(mode).save(path)
    assert read_mask(path).tolist() == CLASSES
    assert read_mask(path).dtype == np.uint8


def test_a_transparent_mask_is_refused(path):
    mask = colour_mask()
    mask.putalpha(254)
    mask.save(path)
    with pytest.raises(UserError, match=r"picture\.png.*transparent"):
        read_mask(path)


def test_the_colour_of_no_class_is_named_with_its_pixels(path):
    mask = colour_mask()
    mask.putpixel((0, 0), (1, 2, 3))
    mask.putpixel((1, 0), (1, 2, 3))
    mask.putpixel((2, 0), (9, 9, 9))
    for picture in (mask, mask.quantize(8)):
        picture.save(path)
        with pytest.raises(UserError, match=r"picture\.png.*\(1, 2, 3\) in 2 pixel.*no class"):
            read_mask(path)


def test_indices_of_a_palette_that_means_nothing_are_refused(path):
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    palette_mask(CLASSES, palette).save(path)
    with pytest.raises(UserError, match=r"no class of VOC"):
        read_mask(path)


def test_colours_that_no_pixel_has_do_not_matter(path):
    palette = voc_palette()
    palette[15:18] = [1, 2, 3]  # of class 5
    palette_mask(CLASSES, palette).save(path)
    assert read_mask(path).tolist() == CLASSES


def test_a_mask_of_sixteen_bits_holds_indices(path):
    Image.fromarray(np.array(CLASSES, dtype=np.uint16)).save(path)
    assert Image.open(path).mode.startswith("I")
    assert read_mask(path).tolist() == CLASSES


@pytest.mark.parametrize(("kind", "value"), [(np.uint16, 257), (np.uint16, 21), (np.uint8, 21), (np.uint8, 254)])
def test_values_of_no_class_are_refused(path, kind, value):
    Image.fromarray(np.array([[0, value]], dtype=kind)).save(path)
    with pytest.raises(UserError, match=rf"no class: \[{value}\]"):
        read_mask(path)


def test_a_mask_of_255_alone_is_read(path):
    Image.new("L", (3, 2), 255).save(path)
    assert read_mask(path).tolist() == [[255] * 3] * 2


@pytest.mark.parametrize("mode", ["1", "CMYK"])
def test_masks_of_other_modes_are_refused(tmp_path, mode):
    path = tmp_path / "mask.tif"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(UserError, match=rf"mask\.tif.*mode {mode}"):
        read_mask(path)


def test_sizes_are_compared_with_all_that_may_be(path):
    check_size(path, (3, 4), [(4, 3), (3, 4)])
    with pytest.raises(UserError, match=r"3 x 5 pixels, its image 4 x 3"):
        check_size(path, (3, 5), [(4, 3), (3, 4)])
