"""The contents of a COCO JSON, read value by value, with every fault that could change a metric.

Training, marking and `data check` all read through `read_set`, so that they cannot disagree. What tools write in
several ways is understood: ids that are text, categories in any order, flags and areas that are null or text.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

from mtl_utils import layout, pictures
from mtl_utils.files import UserError
from mtl_utils.pictures import Size
from mtl_utils.tasks import COCO_NAME_OF_VOC

BOX_TOLERANCE = 1.0  # pixels that a box may reach outside its image: COCO's coordinates are rounded
MAX_COORDINATE = 1e9  # pixels; anything larger counts as infinite
MIN_SIDE = 2.0  # pixels: a shorter box may be flat, as a few of COCO's own are
SLIP_SHARE = 0.001  # of a file's objects that may be listed twice or be too small; COCO's own files hold a few
AREA_SLACK = 1.1  # times its box that an outlined area may measure, by rounding
# what tools write for `iscrowd`
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "none": False}
PERCENT = 100.0  # the largest coordinate of boxes in per cent of their image
MANY_BOXES = 20  # so many do not all lie in one corner of their images by chance

FETCH = "get it with `python -m mtl_utils data fetch ROOT`, or check another folder"
CORRECT_ENTRY = "correct or remove this entry of the JSON"
CORRECT_SIZE = "correct width and height in the JSON or get the file again"
EXPORT_AGAIN = "export the boxes as COCO has them: [left, top, width, height] in pixels"

Key = int | str  # an id as the JSON holds it
Box = tuple[float, float, float, float]  # left, top, width, height in pixels
Entry = dict[str, Any]  # an object of the JSON: its values may be anything
Listed = dict[str, "ListedPhoto"]  # the images of a JSON by the text of their ids


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    path: Path
    text: str
    remedy: str
    photo: Key | None = None  # id of the image that it concerns; None: the whole file, or several images


class Text(NamedTuple):
    """What is wrong with a JSON, in words, and the image that it concerns."""

    text: str
    photo: Key | None = None


class ListedPhoto(NamedTuple):
    """One entry of a JSON's images, with the file that it names."""

    key: Key | None  # None: it has no usable id
    name: str  # "" where the JSON holds no text
    size: Size | None  # as the JSON has it, else as its file has it
    file: Path | None  # None: it is nowhere
    size_is_listed: bool  # else nothing says for which size its boxes were drawn


class CocoObject(NamedTuple):
    """One annotation that can be used."""

    photo: Key  # id of its image
    category: str  # name
    box: Box
    area: float  # square pixels; of the outline where the JSON has it
    crowd: bool  # a group that is outlined as one: neither object nor background


class CocoSet(NamedTuple):
    """What a JSON holds, and what is wrong with it."""

    path: Path
    photos: list[ListedPhoto]
    objects: list[CocoObject]
    category_ids: dict[str, Key]  # by name, of the categories that some object has
    problems: list[Problem]


# ---- the whole file


def read_set(root: Path, split: str, content: Entry) -> CocoSet:
    """The set that the contents of a split's COCO JSON describe. Faults are listed, none is raised."""
    path = layout.json_path(root, split)
    photos = read_photos(root, split, content["images"])
    names = category_names(content["categories"])
    # what an annotation refers to, by the text of its id
    listed = {id_text(photo.key): photo for photo in photos if photo.key is not None}
    objects = read_objects(content["annotations"], listed, names)

    texts: list[Text] = []  # of the problems of the JSON itself
    for list_name in layout.COCO_LISTS:
        texts += id_problems(list_name, content[list_name])
    texts += name_problems(content["categories"], names)
    texts += reference_problems(content["annotations"], listed, names)
    in_other_units = unit_problem(objects, listed)
    if in_other_units is None:  # else one sentence about all boxes is enough
        texts += box_problems(content["annotations"], listed)
        texts += repeated_problem(objects)

    problems = [Problem(path, text, CORRECT_ENTRY, photo) for text, photo in texts]
    if in_other_units is not None:
        problems.append(Problem(path, in_other_units, EXPORT_AGAIN))
    problems += photo_problems(root, split, photos)
    used = {found.category for found in objects}
    return CocoSet(path, photos, objects, categories_named(content["categories"], used), problems)


def without(found: CocoSet, left_out: set[Key]) -> CocoSet:
    """A set without some of its images, by id, and what was listed about them."""
    return found._replace(
        photos=[photo for photo in found.photos if photo.key not in left_out],
        objects=[thing for thing in found.objects if thing.photo not in left_out],
        problems=[problem for problem in found.problems if problem.photo not in left_out],
    )


def is_number(value: object) -> bool:
    """Whether a value of a JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- ids


def usable_key(value: object) -> Key | None:
    """An id as the JSON holds it, None where it is neither a whole number nor text."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return None


def id_text(value: object) -> str:
    """An id as text: 12, 12.0 and "12" are one id."""
    if type(value) is int:  # nearly all are; COCO's own file asks four million times
        return str(value)
    key = usable_key(value)
    return str(value if key is None else key).strip()


def id_problems(list_name: str, entries: Sequence[Entry]) -> list[Text]:
    """Ids of a list that stand twice or are none. Annotations need no id: nothing refers to them."""
    keys = [usable_key(entry.get("id")) for entry in entries]
    texts = []
    # an annotation without an id does no harm
    nameless = keys.count(None)
    if nameless and list_name != "annotations":
        texts.append(Text(f"{nameless} of its {list_name} have no id"))
    counts = Counter(id_text(key) for key in keys if key is not None)
    for key, times in counts.items():
        if times > 1:
            texts.append(Text(f"the id {key} stands {times} times among its {list_name}"))
    return texts


# ---- categories


def category_names(entries: Sequence[Entry]) -> dict[str, str]:
    """The name of each category by the text of its id."""
    names = {}
    for entry in entries:
        key = usable_key(entry.get("id"))
        name = entry.get("name")
        if key is not None and isinstance(name, str) and name.strip():
            names[id_text(key)] = name
    return names


def name_problems(entries: Sequence[Entry], names: dict[str, str]) -> list[Text]:
    """Categories without a name, and names that two of them have."""
    keys = {usable_key(entry.get("id")) for entry in entries} - {None}
    nameless = [key for key in keys if id_text(key) not in names]
    texts = [Text(f"the category of id {key} has no name") for key in nameless]
    counts = Counter(plain_name(name) for name in names.values())
    for name, times in counts.items():
        if times > 1:
            texts.append(Text(f"the name {name!r} stands {times} times among its categories"))
    return texts


def plain_name(name: str) -> str:
    """A class name without what tools change: capitals, joining signs, VOC's names for COCO's classes."""
    words = name.strip().lower().replace("_", " ").replace("-", " ")
    return COCO_NAME_OF_VOC.get(words, words)


def categories_named(entries: Sequence[Entry], names: set[str]) -> dict[str, Key]:
    """The id of each category whose name is in `names`, by name, in the order of the JSON."""
    ids = {}
    for entry in entries:
        key = usable_key(entry.get("id"))
        name = str(entry.get("name"))  # a JSON may hold anything there
        if key is not None and name in names:
            ids[name] = key
    return ids


def categories_of(root: Path, split: str) -> list[tuple[Key, str]]:
    """Id and name of each of COCO's categories, sorted by id.

    A category without any object that is only the others' supercategory, as some tools write, is no class.
    """
    path = layout.coco_json(root, split)
    content = layout.read_coco(path)
    # what others name as theirs is a group of classes
    parents = {str(category.get("supercategory")) for category in content["categories"]}
    names = set(category_names(content["categories"]).values())
    used: set[str] = set()  # asked for only where it decides something
    if not parents.isdisjoint(names):
        used = {id_text(annotation.get("category_id")) for annotation in content["annotations"]}
    table = []
    for name, key in categories_named(content["categories"], names).items():
        if name not in parents or id_text(key) in used:
            table.append((key, name))
    if not table:  # a detector needs a class
        raise UserError(f"{path} has no valid list of categories: `data check` says what is wrong.")
    return sorted(table, key=by_id)  # the order of the output channels


def by_id(category: tuple[Key, str]) -> tuple[bool, Key]:
    """By what categories are sorted: numbers come before text, with which they do not compare."""
    key, _ = category
    return isinstance(key, str), key


# ---- images


def read_photos(root: Path, split: str, entries: Sequence[Entry]) -> list[ListedPhoto]:
    """The images of a JSON with the files that they name."""
    finder = layout.PhotoFinder(root, split)  # lists the folders once
    photos = []
    for entry in entries:
        value = entry.get("file_name")
        name = value if isinstance(value, str) else ""
        file = finder.find(name)
        listed = claimed_size(entry)
        size = listed
        if listed is None and file is not None:  # else nothing would tell whether a box lies inside
            size = pictures.header_size(file)
        photos.append(ListedPhoto(usable_key(entry.get("id")), name, size, file, listed is not None))
    return photos


def claimed_size(entry: Entry) -> Size | None:
    """Width and height of an image as the JSON has them, None where it does not hold two numbers."""
    width, height = entry.get("width"), entry.get("height")
    if not (is_side(width) and is_side(height)):
        return None
    return int(width), int(height)  # type: ignore[arg-type]  # both are numbers


def is_side(value: object) -> bool:
    """Whether a value of a JSON can be the side of a picture, in pixels."""
    return is_number(value) and 0 < value < MAX_COORDINATE  # type: ignore[operator]  # it is a number


def count_unsized(photos: Sequence[ListedPhoto]) -> int:
    """How many images have no size in their JSON: boxes drawn for another size of them could not be noticed."""
    return sum(not photo.size_is_listed for photo in photos)


def photo_problems(root: Path, split: str, photos: Sequence[ListedPhoto]) -> list[Problem]:
    """Files that are missing, and files that two entries name."""
    json_name = layout.json_path(root, split).name
    folder = layout.split_folder(root, "det", split)
    # one sentence where the whole folder is missing
    if photos and not any(photo.file for photo in photos):
        return [Problem(folder, f"holds none of the {len(photos)} images that {json_name} lists", FETCH)]
    problems = []
    # an entry that is there twice has an id that is there twice: one problem is enough
    entries = {(photo.file, photo.key) for photo in photos if photo.file}
    times = Counter(file for file, _ in entries)
    for photo in photos:
        if photo.file is None:
            missing = folder / layout.path_parts(photo.name or "nameless")[-1]
            text = f"the image is missing, but {json_name} lists it"
            problems.append(Problem(missing, text, FETCH, photo.key))
    for file, count in times.items():
        if count > 1:
            text = f"the image stands for {count} entries of {json_name}"
            problems.append(Problem(file, text, "give every entry its own file, in folders as its file_name says"))
    return problems


def size_problem(photo: ListedPhoto, sizes: Sequence[Size], json_name: str) -> Problem | None:
    """What is wrong where a decoded photograph has none of these sizes in the JSON; None where nothing is.

    sizes: upright, then as its pixels are stored.
    """
    if photo.file is None or photo.size in (None, *sizes):
        return None
    text = f"the image has the size {sizes[0]}, but {json_name} says {photo.size}"
    return Problem(photo.file, text, CORRECT_SIZE, photo.key)


# ---- annotations


def read_objects(entries: Sequence[Entry], listed: Listed, names: dict[str, str]) -> list[CocoObject]:
    """The annotations that can be used; those that reach out of their image are among them."""
    objects = []
    for entry in entries:
        found = read_object(entry, listed, names)
        if found is not None:
            objects.append(found)
    return objects


def read_object(entry: Entry, listed: Listed, names: dict[str, str]) -> CocoObject | None:
    """One annotation; None where its image, category, flag or box cannot be used."""
    photo = listed.get(id_text(entry.get("image_id")))
    category = names.get(id_text(entry.get("category_id")))
    crowd = read_flag(entry.get("iscrowd", 0))
    box = read_box(entry.get("bbox"))
    if photo is None or photo.key is None:
        return None
    if category is None or crowd is None or box is None:
        return None
    area = read_area(entry.get("area"), box)
    return CocoObject(photo.key, category, box, area, crowd)


def reference_problems(entries: Sequence[Entry], listed: Listed, names: dict[str, str]) -> list[Text]:
    """Annotations whose image or category is unknown, or whose flag is none."""
    texts = []
    for entry in entries:
        image, category = entry.get("image_id"), entry.get("category_id")
        flag = entry.get("iscrowd", 0)
        photo = listed.get(id_text(image))
        key = photo.key if photo else None
        if photo is None:
            texts.append(Text(f"{title_of(entry)} names the unknown image id {short(image)}"))
        if id_text(category) not in names:
            texts.append(Text(f"{title_of(entry)} names the unknown category id {short(category)}", key))
        if read_flag(flag) is None:
            texts.append(Text(f"{title_of(entry)} has iscrowd {short(flag)}, which must be 0 or 1", key))
    return texts


def box_problems(entries: Sequence[Entry], listed: Listed) -> list[Text]:
    """Annotations whose box is none, or reaches out of its image."""
    texts = []
    for entry in entries:
        photo = listed.get(id_text(entry.get("image_id")))
        box = entry.get("bbox")
        problem = box_problem(box, photo.size if photo else None)
        if problem:
            key = photo.key if photo else None
            texts.append(Text(f"{title_of(entry)} has the box {short(box)}, which {problem}", key))
    return texts


def title_of(entry: Entry) -> str:
    """What messages call an annotation."""
    return f"annotation {short(entry.get('id'))}"


def read_flag(value: object) -> bool | None:
    """`iscrowd` as a flag, None where it is neither 0 nor 1."""
    return FLAGS.get(str(value).strip().lower())


def read_area(value: object, box: Box) -> float:
    """The area of an object; its box's where the JSON has none."""
    try:
        area = float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    if math.isfinite(area) and area > 0:
        return area
    return box[2] * box[3]


def read_box(value: object) -> Box | None:
    """Four finite numbers of a sensible box, None where they are not."""
    if box_problem(value, None):
        return None
    left, top, width, height = map(float, value)  # type: ignore[call-overload]  # four numbers, as box_problem found
    return left, top, width, height


def box_problem(value: object, size: Size | None) -> str | None:
    """What is wrong with a COCO box (left, top, width, height) in an image of `size`; None if nothing is.

    Without a size (None) it is not asked whether the box lies inside.
    """
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return "is not four numbers"
    if not all(abs(number) < MAX_COORDINATE for number in value):  # false for NaN too
        return "is not finite"
    left, top, width, height = value
    # a box without height is none, unless it is as short as COCO's own few
    if min(width, height) < 0:
        return "is of negative size"
    is_flat = min(width, height) == 0
    has_no_area = is_flat and (width == height or max(width, height) >= MIN_SIDE)
    if has_no_area:
        return "is empty"
    if size is None:
        return None
    inside = lies_inside(left, width, size[0]) and lies_inside(top, height, size[1])
    return None if inside else f"reaches outside its image of the size {size}"


def lies_inside(start: float, length: float, limit: float) -> bool:
    """Whether a side of a box lies between 0 and `limit`, but for the tolerance."""
    return start >= -BOX_TOLERANCE and start + length <= limit + BOX_TOLERANCE


def repeated_problem(objects: Sequence[CocoObject]) -> list[Text]:
    """Objects that are listed more than once, where there are more of them than COCO's own files hold."""
    # ids aside, since two merged exports have two ids for one object; to a pixel, since one of them may be rounded
    counts = Counter((found.photo, found.category, *map(round, found.box)) for found in objects)
    repeated = len(objects) - len(counts)
    if repeated <= SLIP_SHARE * len(objects):
        return []
    text = f"{repeated} of its {len(objects)} annotations repeat another one: image, category and box are the same"
    return [Text(text)]


# ---- boxes in other units


def unit_problem(objects: Sequence[CocoObject], listed: Listed) -> str | None:
    """What is wrong with all boxes together: parts of the image, corners, or another unit; None if nothing is."""
    if not objects:
        return None
    if all(max(found.box) <= 1 for found in objects):
        return "gives all boxes as parts of the image, not in pixels"
    in_parts = [found for found in objects if max(found.box) <= 1]
    slips = max(1, SLIP_SHARE * len(objects))  # of the mouse: that many may be
    if len(in_parts) > slips:  # two exports in one file
        return f"gives {len(in_parts)} of its {len(objects)} boxes as parts of the image, the others in pixels"
    if all_within(objects, listed, PERCENT):
        return "gives all boxes in per cent of the image, or in a corner of 100 x 100 pixels"
    if only_fit_as_corners(objects, listed):
        return "has boxes that reach outside their images, and all of them fit as corners [left, top, right, bottom]"
    # an outline lies inside its box, so it cannot be larger
    too_large = [found for found in objects if found.area > largest_area(found.box)]
    if len(too_large) > len(objects) / 2:
        return "gives boxes that are smaller than the areas beside them"
    return None


def all_within(objects: Sequence[CocoObject], listed: Listed, limit: float) -> bool:
    """Whether many boxes all end within `limit` pixels, in images of which every side is more than twice as long."""
    if len(objects) < MANY_BOXES:
        return False
    for found in objects:
        left, top, width, height = found.box
        size = listed[id_text(found.photo)].size
        if size is None or min(size) <= 2 * limit or max(left + width, top + height) > limit:
            return False
    return True


def largest_area(box: Box) -> float:
    """Square pixels that an outline inside a box can have, with some slack for rounding."""
    _, _, width, height = box
    return AREA_SLACK * (width + 1) * (height + 1)


def only_fit_as_corners(objects: Sequence[CocoObject], listed: Listed) -> bool:
    """Whether some box reaches out of its image, and every box lies inside when its numbers are read as corners."""
    some_outside = False
    for found in objects:
        size = listed[id_text(found.photo)].size
        if size is None:
            continue
        if not is_corners(found.box, size):
            return False
        if box_problem(list(found.box), size):
            some_outside = True
    return some_outside


def is_corners(box: Box, size: Size) -> bool:
    """Whether the four numbers would be a box inside the image if they were left, top, right and bottom."""
    left, top, right, bottom = box
    as_corners = [left, top, right - left, bottom - top]
    return right > left and bottom > top and box_problem(as_corners, size) is None
