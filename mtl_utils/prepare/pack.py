"""`data pack` and `data fetch --from`: the mini sets as one verified zip that a teacher puts anywhere.

A pack holds the files that are read of the three sets, under their paths below the data root, and before them an index
with the SHA-256 of each. Nothing of a pack is trusted: names and sizes are looked at before a file is written, and
a set appears below the root only when all of it is there.
"""

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from mtl_utils import files, layout
from mtl_utils.files import UserError
from mtl_utils.prepare.check import first_fault
from mtl_utils.prepare.fetch import BLOCK, DOWNLOADS, MAX_JSON, SPARE, fetch, transfer_with_retries
from mtl_utils.progress import progress
from mtl_utils.tasks import FOLDERS, SPLITS, TASKS

INDEX = "index.json"  # a pack's first member: SHA-256 by path
ADDRESS = files.PROJECT / "data" / "pack.txt"  # where a project keeps its pack: address and SHA-256 of the zip
TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # of every member, so that equal sets give equal packs
MAX_PACK = 4 << 30  # bytes of a pack, and of all that it holds
MAX_MEMBERS = 200_000
WEB = ("http://", "https://")
KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of compression
ENCRYPTED = 1  # a flag of a zip's member
# what zipfile raises on damaged archives
DAMAGE = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error)
# names that Windows gives to devices
DEVICES = ("con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10)))


# ---- to make a pack


def write_pack(root: Path, path: Path) -> str:
    """Write the mini sets below `root` to a zip; returns its SHA-256.

    Raises UserError where a set is missing or has a fault, and where the file is there already.
    """
    if path.exists():
        raise UserError(f"{path} is there already: delete it or name another file.")
    sources = packed_files(root)
    digests = {}
    for name, file in progress(sources.items(), desc="hashing", unit="file", leave=False, delay=1):
        digests[name] = files.sha256(file)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # photographs are compressed already
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            add_member(archive, INDEX, json.dumps(digests, indent=0).encode())
            for name in progress(digests, desc="packing", unit="file", leave=False, delay=1):
                add_member(archive, name, sources[name].read_bytes())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return files.sha256(path)


def packed_files(root: Path) -> dict[str, Path]:
    """The files that are read of all three sets, by their paths in a pack, where each set has the project's own name.

    Raises UserError where a set is missing or has a fault, and where `fetch_pack` would not take them.
    """
    sources: dict[str, Path] = {}
    for task in TASKS:
        if not layout.has_set(root, task):
            raise UserError(f"{root} has no {FOLDERS[task]}: a pack holds all three sets.")
        fault = first_fault(root, task)
        if fault is not None:
            raise UserError(fault)
        home = layout.set_folder(root, task)
        for split in SPLITS:
            for path in layout.used_files(root, task, split):
                below = path.relative_to(home).as_posix()
                sources[f"{FOLDERS[task]}/{below}"] = path
    check_packable(sources)
    return sources


def check_packable(sources: dict[str, Path]) -> None:
    """Raise UserError where a name cannot be a file on every system, or where the sets are too large for a pack."""
    for name, path in sources.items():
        if not is_safe(name):
            raise UserError(f"{path} has a name that other systems cannot have: rename it before the sets are packed.")
    total = sum(path.stat().st_size for path in sources.values())
    if total > MAX_PACK or len(sources) >= MAX_MEMBERS:
        raise UserError(f"The sets are larger than a pack can be ({len(sources)} files, {total} bytes): take fewer.")


def add_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to a zip, the same bytes at any time and on any machine."""
    member = zipfile.ZipInfo(name, TIMESTAMP)
    archive.writestr(member, content)


# ---- to take one


def read_address() -> tuple[str, str] | None:
    """Address and SHA-256 of the pack that the project names in data/pack.txt, None where it names none.

    Raises UserError where the file holds anything else.
    """
    if not ADDRESS.exists():
        return None
    words = ADDRESS.read_text(encoding="utf-8").split()
    if len(words) != 2:
        raise UserError(f"{ADDRESS} must hold an address and a SHA-256: write the line that `data pack` prints.")
    return words[0], words[1]


def version() -> str:
    """What tells the sets that the project names from those that it named before: other labels, another pack."""
    address = read_address()
    return "official" if address is None else address[1][:12]


def fetch_sets(root: Path) -> None:
    """Build the sets from the pack that the project names, else from the official sources."""
    address = read_address()
    if address is None:
        fetch(root)
    else:
        fetch_pack(root, *address)


def fetch_pack(root: Path, source: str, sha256: str | None = None) -> None:
    """Put the sets of a pack, a file or a web address, below `root`; sets that are there with these bytes stay.

    Raises UserError where the pack cannot be fetched, has another SHA-256 or is damaged, where the disk is full, and
    where a set of the root differs from the pack's: no file of a user is replaced.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    path = download_pack(root, source) if source.startswith(WEB) else Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"{path} is no file: name a pack or a web address of one.")
    if sha256 is not None and files.sha256(path) != sha256.lower():
        if source.startswith(WEB):
            path.unlink()  # else the next try would find it again
        raise UserError(f"{source} has another SHA-256 than {sha256}: get the pack anew, or ask who made it.")
    try:
        with zipfile.ZipFile(path) as archive:
            unpack(archive, root, source)
    except DAMAGE as error:
        if source.startswith(WEB):
            path.unlink()
        raise UserError(f"{source} is no pack or is damaged ({error}): get it anew.") from error
    shutil.rmtree(root / DOWNLOADS, ignore_errors=True)


def download_pack(root: Path, url: str) -> Path:
    """A pack from the web, in the folder of downloads; a download that broke off is continued."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = root / DOWNLOADS / f"{name}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        part = path.with_name(path.name + ".part")
        transfer_with_retries(url, part, MAX_PACK)
        os.replace(part, path)
    return path


def unpack(archive: zipfile.ZipFile, root: Path, source: str) -> None:
    """Write the sets of an opened pack: first beside the root's own folders, then each in its place."""
    digests = read_index(archive, source)
    needed = sum(member.file_size for member in archive.infolist())
    free = shutil.disk_usage(root).free
    if needed + SPARE > free:
        raise UserError(f"{root} needs {(needed + SPARE) >> 20} MB and has {free >> 20} MB free: make room.")
    missing = absent_sets(root, digests)
    waiting = root / DOWNLOADS / "unpacked"
    shutil.rmtree(waiting, ignore_errors=True)  # of a process that was stopped
    wanted = [name for name in digests if set_of(name) in missing]
    for name in progress(wanted, desc="unpacking", unit="file", leave=False, delay=1):
        target = waiting / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_member(archive, name, target)
        if files.sha256(target) != digests[name]:
            raise zipfile.BadZipFile(f"{name} fails its checksum")
    for folder in missing:
        os.replace(waiting / folder, root / folder)


def read_index(archive: zipfile.ZipFile, source: str) -> dict[str, str]:
    """The SHA-256 of each file of a pack by its path. Raises UserError where it is no pack of this project."""
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or total > MAX_PACK:
        raise UserError(f"{source} is larger than a pack can be ({len(members)} files, {total} bytes): get it anew.")
    for member in members:
        if member.flag_bits & ENCRYPTED or member.compress_type not in KINDS:
            raise UserError(f"{source} is compressed in a way that a pack is not: make it with `data pack`.")
    names = [member.filename for member in members]
    if INDEX not in names or archive.getinfo(INDEX).file_size > MAX_JSON:
        raise UserError(f"{source} is no pack: make one with `python -m mtl_utils data pack`.")
    digests = parse_index(archive.read(INDEX))
    if sorted(names) != sorted([INDEX, *digests]):
        raise UserError(f"{source} holds other files than its index says: get it anew.")
    for name in names:
        if name != INDEX and not is_safe(name):
            raise UserError(f"{source} holds the path {name!r}, which belongs to no set: do not use this file.")
    folders: set[str] = set()
    for name in digests:
        folders.update(map(str, PurePosixPath(name).parents))
    if not folders.isdisjoint(digests):
        raise UserError(f"{source} holds a file and a folder of one name: do not use this file.")
    return digests


def parse_index(content: bytes) -> dict[str, str]:
    """The entries of an index, as far as they are text. Damaged JSON is an empty index, which no pack has."""
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: digest for name, digest in values.items() if isinstance(digest, str)}


def is_safe(name: str) -> bool:
    """Whether a path in a pack leads to a file of a set, and nowhere else on any system."""
    parts = PurePosixPath(name).parts
    is_plain = name == "/".join(parts) and not set(name) & set('\\:*?"<>|')
    if not is_plain or len(parts) < 2 or parts[0] not in FOLDERS.values():
        return False
    return all(is_plain_name(part) for part in parts)


def is_plain_name(part: str) -> bool:
    """Whether a file or folder can have this name on every system."""
    stem = part.split(".")[0].lower()
    return part == part.rstrip(". ") and stem not in DEVICES and part.isprintable()


def set_of(name: str) -> str:
    """The folder of the set that a path in a pack belongs to."""
    return PurePosixPath(name).parts[0]


def absent_sets(root: Path, digests: dict[str, str]) -> list[str]:
    """The sets of a pack that the root does not have. Raises UserError for one that it has with other contents."""
    missing = []
    for task in TASKS:
        there = layout.set_folder(root, task)
        if there.is_dir() and there.name != FOLDERS[task]:  # the pack's would be read in its place
            raise UserError(f"{there} is another set of the same task: rename it or name another root.")
    for folder in sorted({set_of(name) for name in digests}):
        if not (root / folder).exists():
            missing.append(folder)
            continue
        for name, digest in digests.items():
            path = root / name
            if set_of(name) == folder and not (path.is_file() and files.sha256(path) == digest):
                raise UserError(f"{root / folder} differs from the pack in {name}: rename it or name another root.")
    return missing


def copy_member(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Write a member of a zip to a file. Raises BadZipFile where it is damaged."""
    with archive.open(name) as member, open(target, "wb") as file:
        shutil.copyfileobj(member, file, BLOCK)
