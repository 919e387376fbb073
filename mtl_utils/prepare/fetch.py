"""`data fetch`: rebuild the three mini sets from their official sources, each file verified by data/manifest.json.

VOC and Imagenette come as archives, of which only the files that the manifest names are written, to paths that are
computed here and never taken from an archive. COCO's photographs come one by one; its boxes are picked from the
official annotations. A file is either whole and verified or not there, and a second run takes only what is missing.
A file of yours that has the name of an official one is kept under another name.
"""

import hashlib
import json
import os
import shutil
import ssl
import tarfile
import time
import zipfile
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mtl_utils import files, layout
from mtl_utils.files import UserError
from mtl_utils.progress import progress
from mtl_utils.tasks import SPLITS, TASKS, Task

MANIFEST = files.PROJECT / "data" / "manifest.json"
DOWNLOADS = ".downloads"  # below the data root: archives stay here until everything is there
TRIES = 3
PAUSE = 2.0  # seconds before another try
TIMEOUT = 30.0  # seconds without an answer after which a try has failed
BLOCK = 1 << 20  # bytes that are transferred or hashed at a time
MAX_ARCHIVE = 4 << 30  # bytes of an archive; VOC's, the largest, has 2 GB
MAX_PHOTO = 20 << 20  # bytes of a photograph or mask
MAX_JSON = 1 << 30  # bytes of COCO's annotations once they are unpacked: the official ones have 470 MB
SPARE = 200 << 20  # bytes that are left free on the disk
OTHER = ".{}.other"  # ending of a file that was there under an official name with other contents
MD5_DIGITS = 32  # length of an MD5 in hexadecimal digits; a SHA-256 has 64
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)

# status codes of HTTP
PARTIAL_CONTENT = 206  # the server continues where it was asked to
RANGE_NOT_SATISFIABLE = 416  # nothing is left to send
PERMANENT = (401, 403, 404, 410)  # another try would get the same answer

Source = dict[str, str]  # "url" and, for an archive, "md5"
Coco = dict[str, Any]  # the contents of a COCO JSON
Entry = dict[str, Any]  # one image, annotation or category of it


@dataclass(frozen=True)
class Manifest:
    """What the mini sets consist of and where it comes from."""

    sources: dict[str, Source]  # seg, cls: archives; det: the folder of COCO's photographs; boxes: its annotations
    sha256: dict[Task, dict[str, dict[str, str]]]  # task → split → file name → SHA-256
    boxes: dict[str, str]  # split → `boxes_digest` of its annotations
    categories: list[int]  # COCO's ids of the ten classes


class Item(NamedTuple):
    """A file that the manifest names."""

    split: str
    name: str  # as in the manifest: NAME.jpg, or CLASS/NAME.JPEG in classification
    path: Path  # where it belongs
    sha256: str


def fetch(root: Path, manifest: Path = MANIFEST, sources: dict[str, Source] | None = None) -> None:
    """Build the mini sets below `root`; what is there and verified is left alone.

    `sources` replaces single entries of the manifest's own (seg, cls, det, boxes: each with its url and md5).
    Raises UserError when a source cannot be reached, a file is not the official one or the disk is full.
    """
    root = Path(root)
    plan = read_manifest(manifest)
    used = {**plan.sources, **(sources or {})}
    try:
        fetch_from_tar(root, "seg", plan, used["seg"])
        fetch_from_tar(root, "cls", plan, used["cls"])
        fetch_coco_photographs(root, plan, used["det"])
        fetch_boxes(root, plan, used["boxes"])
        shutil.rmtree(root / DOWNLOADS, ignore_errors=True)
    except ARCHIVE_ERRORS as error:
        raise UserError(f"An archive in {root / DOWNLOADS} is damaged: delete that folder and try again.") from error
    except OSError as error:
        raise UserError(f"{root} cannot be filled ({error}): make room on the disk or name another folder.") from error


# ---- the manifest


def read_manifest(path: Path) -> Manifest:
    """The contents of data/manifest.json.  Raises UserError when it is missing or damaged."""
    content = files.read_json(path, "restore it from the project's repository")
    sha256 = {task: content[task] for task in TASKS}
    return Manifest(content["sources"], sha256, content["boxes"], content["categories"])


def lacking(root: Path, task: Task, plan: Manifest) -> list[Item]:
    """The files of a task that are not there, or are there with other bytes than the manifest's."""
    items = []
    for split in SPLITS:
        folder = layout.split_folder(root, task, split)
        for name, sha256 in plan.sha256[task][split].items():
            items.append(Item(split, name, folder / name, sha256))
    return [item for item in items if not has_checksum(item.path, item.sha256)]


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether a file is there and has this SHA-256, or MD5 if the checksum is that short."""
    if not path.is_file():
        return False
    digest = md5(path) if len(checksum) == MD5_DIGITS else files.sha256(path)
    return digest == checksum


def md5(path: Path) -> str:
    """MD5 of a file's content, in hexadecimal digits: the checksum that the official sources give for archives."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# ---- archives: VOC and Imagenette


def fetch_from_tar(root: Path, task: Task, plan: Manifest, source: Source) -> None:
    """Write the missing files of segmentation or classification from the official archive."""
    items = lacking(root, task, plan)
    if not items:
        return
    archive = fetch_archive(root, source)
    unpack(archive, task, items)
    rest = lacking(root, task, plan)
    if rest:
        raise UserError(
            f"{source['url']} lacks {rest[0].name} and {len(rest) - 1} more files of {MANIFEST.name}, or has others of "
            f"their names: delete {archive} and try again."
        )


def fetch_archive(root: Path, source: Source) -> Path:
    """Download an archive to the folder of downloads; it has the name that it has at its source."""
    name = PurePosixPath(urlsplit(source["url"]).path).name
    archive = root / DOWNLOADS / name
    download(source["url"], archive, source["md5"], MAX_ARCHIVE)
    return archive


def unpack(archive: Path, task: Task, items: list[Item]) -> None:
    """Write those files that an archive holds with the right bytes."""
    item_of_member = {}
    for item in items:
        for member_name in member_names(task, item.name):
            item_of_member[member_name] = item
    with tarfile.open(archive) as tar:
        for member in progress(tar, desc=f"reading {archive.name}", unit="file", delay=1):
            wanted = item_of_member.get(member.name.removeprefix("./"))
            if wanted is None or not member.isfile() or member.size > MAX_PHOTO:  # a link is not a file
                continue
            content = tar.extractfile(member)
            assert content is not None, "tarfile gives None for folders and devices alone"
            write_verified(wanted, content.read())


def member_names(task: Task, name: str) -> list[str]:
    """The paths under which the official archive may hold a file."""
    if task == "cls":
        return [f"imagenette2-160/{half}/{name}" for half in SPLITS]
    folder = "SegmentationClass" if name.endswith(".png") else "JPEGImages"
    return [f"VOCdevkit/VOC2012/{folder}/{name}"]


def write_verified(item: Item, content: bytes) -> None:
    """Write a file, unless its bytes have another SHA-256 than the manifest's."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == item.sha256:
        keep_other(item.path)
        files.write_atomically(item.path, lambda file: file.write(content))


def keep_other(path: Path) -> None:
    """Rename a file that has the name of an official one and other contents: it may be somebody's work."""
    if not path.exists():
        return
    kept = files.move_aside(path, OTHER)
    print(f"Note: {path} was not the official file: it is kept as {kept.name}")


# ---- downloads


def download(url: str, path: Path, checksum: str, limit: int) -> None:
    """Fetch `url` to `path` by way of PATH.part, which a later try or run continues; verified, then renamed.

    Raises UserError for more than `limit` bytes, and where the disk has no room for them.
    """
    if has_checksum(path, checksum):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    transfer_with_retries(url, part, limit)
    if not has_checksum(part, checksum):
        part.unlink(missing_ok=True)
        raise UserError(f"{url} does not match the official checksum ({checksum}): try again.")
    keep_other(path)
    os.replace(part, path)


def transfer_with_retries(url: str, part: Path, limit: int) -> None:
    """Complete `part`, in several tries if the network fails.  Raises UserError when it fails for good."""
    for number in range(1, TRIES + 1):
        try:
            transfer(url, part, limit)
            return
        except NETWORK_ERRORS as error:
            status = error.code if isinstance(error, HTTPError) else None
            if status == RANGE_NOT_SATISFIABLE:  # the part is whole, or wrong, as its checksum will show
                return
            if number == TRIES or status in PERMANENT:
                raise UserError(f"{url} cannot be fetched ({error}): check the network and try again.") from error
            time.sleep(PAUSE)


def transfer(url: str, part: Path, limit: int) -> None:
    """Append to `part` what it lacks of `url`, at most `limit` bytes in all; start anew where the server does."""
    present = part.stat().st_size if part.exists() else 0  # bytes
    headers = {"Range": f"bytes={present}-"} if present else {}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != PARTIAL_CONTENT:
            present = 0
        total = present + int(response.headers.get("Content-Length") or 0)
        ask_for_room(url, part, total - present, limit - present)
        append(response, part, present, total, limit)
    if part.stat().st_size < total:
        raise ConnectionError("the connection broke off")


def ask_for_room(url: str, part: Path, wanted: int, allowed: int) -> None:
    """Raise UserError where a server announces more bytes than are allowed, or than the disk has free."""
    if wanted > allowed:
        raise UserError(f"{url} is larger than the official file can be: try again, or look at the address.")
    free = shutil.disk_usage(part.parent).free
    if wanted + SPARE > free:
        needed = (wanted + SPARE) >> 20
        raise UserError(
            f"{part.parent} needs {needed} MB and has {free >> 20} MB free: make room or name another folder."
        )


def append(response: HTTPResponse, part: Path, present: int, total: int, limit: int) -> None:
    """Write what a server sends after the first `present` bytes of a file, which is to have `total`."""
    bar = progress(desc=part.stem, total=total, initial=present, unit="B", unit_scale=True, leave=False, delay=1)
    with bar, open(part, "ab" if present else "wb") as file:
        while block := response.read(BLOCK):
            if file.tell() + len(block) > limit:  # a server may send more than it announced
                raise UserError(f"{part.stem} is larger than the official file can be: delete {part} and try again.")
            file.write(block)
            bar.update(len(block))


# ---- COCO


def fetch_coco_photographs(root: Path, plan: Manifest, source: Source) -> None:
    """Download the missing photographs of detection, one by one."""
    items = lacking(root, "det", plan)
    for item in progress(items, desc="COCO photographs", unit="image", delay=1):
        download(f"{source['url']}/{item.split}2017/{item.name}", item.path, item.sha256, MAX_PHOTO)


def fetch_boxes(root: Path, plan: Manifest, source: Source) -> None:
    """Rebuild the mini annotations from the official ones (which take about 1 GB of memory while they are read)."""
    paths = {split: layout.json_path(root, split) for split in SPLITS}
    missing = [split for split in SPLITS if not has_boxes(paths[split], plan.boxes[split])]
    if not missing:
        return
    with zipfile.ZipFile(fetch_archive(root, source)) as archive:
        for split in missing:
            names = plan.sha256["det"][split]
            official = read_official(archive, split, names)
            keep_other(paths[split])
            layout.write_coco(paths[split], mini_coco(official, split, names, plan.categories))
            if not has_boxes(paths[split], plan.boxes[split]):
                print(f"Note: the boxes in {paths[split]} differ from those that the results were measured with.")


def read_official(archive: zipfile.ZipFile, split: str, names: Iterable[str]) -> Coco:
    """COCO's official annotations, of which those of all but the named images are replaced by None to save memory."""
    image_ids = {int(PurePosixPath(name).stem) for name in names}  # 000000000009.jpg has the id 9

    def without_other_images(entry: Entry) -> Entry | None:
        is_annotation = "image_id" in entry
        return None if is_annotation and entry["image_id"] not in image_ids else entry

    member = archive.getinfo(f"annotations/instances_{split}2017.json")
    if member.file_size > MAX_JSON:
        raise zipfile.BadZipFile(f"{member.filename} is too large")
    text = archive.read(member)
    official: Coco = json.loads(text, object_hook=without_other_images)
    return official


def mini_coco(official: Coco, split: str, names: Container[str], categories: Container[int]) -> Coco:
    """The part of COCO's official annotations that shows these images and categories; boxes are numbered from 1.

    Entries of other images may already have been replaced by None.
    """
    images = [image for image in official["images"] if image["file_name"] in names]
    images.sort(key=lambda image: image["id"])
    kept_categories = [category for category in official["categories"] if category["id"] in categories]
    return {
        "info": {"description": f"Mini-COCO {split}: {len(images)} COCO 2017 images, {len(kept_categories)} classes"},
        "licenses": [],
        "images": [pick(image, ("id", "file_name", "width", "height", "coco_url")) for image in images],
        "annotations": mini_annotations(official["annotations"], images, categories),
        "categories": [pick(category, ("id", "name", "supercategory")) for category in kept_categories],
    }


def mini_annotations(official: list[Entry | None], images: list[Entry], categories: Container[int]) -> list[Entry]:
    """The official annotations of these images and categories, in the order of images, with ids from 1."""
    image_ids = {image["id"] for image in images}
    kept = []
    for annotation in official:
        if annotation and annotation["image_id"] in image_ids and annotation["category_id"] in categories:
            kept.append(annotation)
    kept.sort(key=lambda annotation: (annotation["image_id"], annotation["id"]))
    return [mini_annotation(annotation, number) for number, annotation in enumerate(kept, 1)]


def mini_annotation(official: Entry, number: int) -> Entry:
    """An official annotation without its outline, under another id."""
    return {
        "id": number,
        "image_id": official["image_id"],
        "category_id": official["category_id"],
        "bbox": [float(value) for value in official["bbox"]],
        "area": float(official["area"]),
        "iscrowd": official["iscrowd"],
    }


def pick(entry: Entry, keys: Iterable[str]) -> Entry:
    """An entry with these keys alone, in this order."""
    return {key: entry[key] for key in keys}


def boxes_digest(coco: Coco) -> str:
    """SHA-256 of images and boxes, whatever the order of the boxes and the rounding errors below 0.005 pixels."""
    images = []
    for image in coco["images"]:
        images.append([image["id"], image["file_name"], image["width"], image["height"]])
    boxes = []
    for annotation in coco["annotations"]:
        rounded = [round(float(value), 2) for value in annotation["bbox"]]
        boxes.append([annotation["image_id"], annotation["category_id"], annotation["iscrowd"], *rounded])
    text = json.dumps([sorted(images), sorted(boxes)])
    return hashlib.sha256(text.encode()).hexdigest()


def has_boxes(path: Path, digest: str) -> bool:
    """Whether a COCO JSON is there and holds the boxes of this digest."""
    try:
        return boxes_digest(layout.read_coco(path)) == digest
    except (UserError, ValueError, KeyError, TypeError):
        return False
