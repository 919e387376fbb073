"""`data fetch`: rebuild the three mini sets from their official sources, each file verified by data/manifest.json.

VOC and Imagenette come as archives, of which only the files that the manifest names are written, to paths that are
computed here and never taken from an archive. COCO's photographs come one by one; its boxes are picked from the
official annotations. A file is either whole and verified or not there, and a second run takes only what is missing.
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
from collections.abc import Container
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from mtl_utils import files, layout
from mtl_utils.files import UserError
from mtl_utils.tasks import SPLITS

MANIFEST = files.PROJECT / "data" / "manifest.json"
DOWNLOADS = ".downloads"  # below the data root: archives stay here until everything is there
TRIES = 3
PAUSE = 2.0  # seconds before another try
TIMEOUT = 30.0  # seconds without an answer after which a try has failed
BLOCK = 1 << 20  # bytes that are transferred or hashed at a time
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)


class Item(NamedTuple):
    """A file that the manifest names."""

    split: str
    name: str  # as in the manifest: NAME.jpg, or CLASS/NAME.JPEG in classification
    path: Path  # where it belongs
    sha256: str


def fetch(root: Path, manifest: Path = MANIFEST, sources: dict | None = None) -> None:
    """Build the mini sets below `root`; what is there and verified is left alone.

    `sources` replaces single entries of the manifest's own (seg, cls, det, boxes: each with its url and md5).
    Raises UserError when a source cannot be reached, a file is not the official one or the disk is full.
    """
    root, plan = Path(root), read_manifest(manifest)
    sources = {**plan["sources"], **(sources or {})}
    try:
        for task in ("seg", "cls"):
            fetch_from_tar(root, task, plan, sources[task])
        for item in tqdm(lacking(root, "det", plan), desc="COCO photographs", unit="image", delay=1):
            download(f"{sources['det']['url']}/{item.split}2017/{item.name}", item.path, item.sha256)
        fetch_boxes(root, plan, sources["boxes"])
        shutil.rmtree(root / DOWNLOADS, ignore_errors=True)
    except ARCHIVE_ERRORS as error:
        raise UserError(f"An archive in {root / DOWNLOADS} is damaged: delete that folder and try again.") from error
    except OSError as error:
        raise UserError(f"{root} cannot be filled ({error}): make room on the disk or name another folder.") from error


def read_manifest(path: Path) -> dict:
    """The contents of data/manifest.json."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from the project's repository.") from error


def lacking(root: Path, task: str, plan: dict) -> list[Item]:
    """The files of a task that are not there, or are there with other bytes than the manifest's."""
    items = [
        Item(split, name, layout.split_folder(root, task, split) / name, sha256)
        for split in SPLITS
        for name, sha256 in plan[task][split].items()
    ]
    return [item for item in items if not has_checksum(item.path, item.sha256)]


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether a file is there and has this SHA-256, or MD5 if the checksum is that short."""
    if not path.is_file():
        return False
    digest = hashlib.md5(usedforsecurity=False) if len(checksum) == 32 else hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == checksum


def fetch_from_tar(root: Path, task: str, plan: dict, source: dict) -> None:
    """Write the missing files of segmentation or classification from the official archive."""
    items = lacking(root, task, plan)
    if not items:
        return
    archive = fetch_archive(root, source)
    members = {member: item for item in items for member in member_names(task, item.name)}
    with tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=f"reading {archive.name}", unit="file", delay=1):
            item = members.get(member.name.removeprefix("./"))
            if item and member.isfile():  # a link is not a file
                write(item.path, tar.extractfile(member).read(), item.sha256)
    if rest := lacking(root, task, plan):
        raise UserError(
            f"{source['url']} lacks {rest[0].name} and {len(rest) - 1} more files of {MANIFEST.name}, or has others of "
            f"their names: delete {archive} and try again."
        )


def member_names(task: str, name: str) -> list[str]:
    """The paths under which the official archive may hold a file."""
    if task == "cls":
        return [f"imagenette2-160/{half}/{name}" for half in SPLITS]
    folder = "SegmentationClass" if name.endswith(".png") else "JPEGImages"
    return [f"VOCdevkit/VOC2012/{folder}/{name}"]


def write(path: Path, data: bytes, sha256: str | None = None) -> None:
    """Write a whole file or, if the bytes have another SHA-256 than they should, none."""
    if sha256 in (None, hashlib.sha256(data).hexdigest()):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        os.replace(part, path)


def fetch_archive(root: Path, source: dict) -> Path:
    """Download an archive to the folder of downloads; it has the name that it has at its source."""
    archive = root / DOWNLOADS / PurePosixPath(urlsplit(source["url"]).path).name
    download(source["url"], archive, source["md5"])
    return archive


def download(url: str, path: Path, checksum: str) -> None:
    """Fetch `url` to `path` by way of PATH.part, which a later try or run continues; verified, then renamed."""
    if has_checksum(path, checksum):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for left in reversed(range(TRIES)):
        try:
            transfer(url, part)
            break
        except NETWORK_ERRORS as error:
            status = getattr(error, "code", None)
            if status == 416:  # nothing is left to send: the part is whole, or wrong, as its checksum will show
                break
            if not left or status in (401, 403, 404, 410):
                raise UserError(f"{url} cannot be fetched ({error}): check the network and try again.") from error
            time.sleep(PAUSE)
    if not has_checksum(part, checksum):
        part.unlink(missing_ok=True)
        raise UserError(f"{url} sent other bytes than the official ones (checksum {checksum}): try again.")
    os.replace(part, path)


def transfer(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`; start anew where the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=TIMEOUT) as answer:
        have = have if answer.status == 206 else 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, leave=False, delay=1)
        with bar, open(part, "ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if part.stat().st_size < total:
        raise ConnectionError("the connection broke off")


def fetch_boxes(root: Path, plan: dict, source: dict) -> None:
    """Rebuild the mini annotations from the official ones (which take about 1 GB of memory while they are read)."""
    paths = {split: layout.json_path(root, split) for split in SPLITS}
    missing = [split for split in SPLITS if not has_boxes(paths[split], plan["boxes"][split])]
    if not missing:
        return
    with zipfile.ZipFile(fetch_archive(root, source)) as archive:
        for split in missing:
            names = plan["det"][split]
            wanted = {None, *(int(PurePosixPath(name).stem) for name in names)}  # None: an entry that is no annotation
            official = json.loads(
                archive.read(f"annotations/instances_{split}2017.json"),
                object_hook=lambda entry, wanted=wanted: entry if entry.get("image_id") in wanted else None,
            )
            write(paths[split], json.dumps(mini_coco(official, split, names, plan["categories"])).encode())
            if not has_boxes(paths[split], plan["boxes"][split]):
                print(f"Note: the boxes in {paths[split]} differ from those that the results were measured with.")


def mini_coco(official: dict, split: str, names: Container[str], categories: Container[int]) -> dict:
    """The part of COCO's official annotations that shows these images and categories; boxes are numbered from 1.

    Entries of other images may already have been replaced by None.
    """
    images = sorted((i for i in official["images"] if i["file_name"] in names), key=lambda i: i["id"])
    ids = {image["id"] for image in images}
    boxes = [a for a in official["annotations"] if a and a["image_id"] in ids and a["category_id"] in categories]
    boxes.sort(key=lambda a: (a["image_id"], a["id"]))
    kept = [category for category in official["categories"] if category["id"] in categories]
    return {
        "info": {"description": f"Mini-COCO {split}: {len(images)} COCO 2017 images, {len(kept)} classes"},
        "licenses": [],
        "images": [{key: i[key] for key in ("id", "file_name", "width", "height", "coco_url")} for i in images],
        "annotations": [
            {
                "id": number,
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": [float(v) for v in a["bbox"]],
                "area": float(a["area"]),
                "iscrowd": a["iscrowd"],
            }
            for number, a in enumerate(boxes, 1)
        ],
        "categories": [{key: c[key] for key in ("id", "name", "supercategory")} for c in kept],
    }


def boxes_digest(coco: dict) -> str:
    """SHA-256 of images and boxes, whatever the order of the boxes and the rounding errors below 0.005 pixels."""
    images = sorted([i["id"], i["file_name"], i["width"], i["height"]] for i in coco["images"])
    boxes = sorted(
        [a["image_id"], a["category_id"], a["iscrowd"], *(round(float(v), 2) for v in a["bbox"])]
        for a in coco["annotations"]
    )
    return hashlib.sha256(json.dumps([images, boxes]).encode()).hexdigest()


def has_boxes(path: Path, digest: str) -> bool:
    """Whether a COCO JSON is there and holds the boxes of this digest."""
    try:
        return boxes_digest(json.loads(path.read_bytes())) == digest
    except (OSError, ValueError, KeyError, TypeError):
        return False
