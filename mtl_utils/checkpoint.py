"""Checkpoints: tensors and plain values in a file that is whole or not there.

A file from somebody else can neither run code nor take the machine's memory: what is in it is looked at before it is
unpickled, and unpickled with weights_only=True. A byte that has changed on the disk is found by the checksums that
torch.save writes and torch.load leaves alone.
"""

import os
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mtl_utils.files import UserError, write_atomically

FORMAT = 3  # raised whenever files of an older version can no longer be read

# what a file may hold: the largest, the state of a run, has some hundred MB in some thousand members
MAX_BYTES = 4 << 30  # of the file, and of its members together
MAX_MEMBERS = 10_000  # one a tensor, and a few more
MAX_DIRECTORY = 2 << 20  # bytes of the list of members
PICKLE_BYTES = 256 << 10  # of names and plain values
PICKLE_BYTES_PER_MEMBER = 256  # a tensor's name and shape take about 150
INSTRUCTIONS = 50_000  # of a pickle: an empty dict takes one byte in the file and a hundred in memory
INSTRUCTIONS_PER_MEMBER = 50  # a tensor takes about 40
MAX_TUPLE = 1000  # values in a tuple, inner tuples counted out: hashing one that is nested deeper ends the process
MAX_DEPTH = 100  # of dicts, lists and tuples in one another
MAX_NAME = 100  # characters of a name that are shown

ZIP_START = b"PK\x03\x04"  # how a file of torch.save begins
MARK = 0  # on the stack of a pickle, in place of a size
TUPLES = {"EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"}
# all that the pickle of a checkpoint calls; torch.load would allow more, such as a bytearray of any length
DTYPES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
STORAGES = {f"torch {dtype}Storage" for dtype in DTYPES}
REBUILDERS = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"}
CALLED = STORAGES | REBUILDERS


class Refused(Exception):
    """An archive that is not unpacked: the text is a clause that says why."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors and plain values under string keys."""
    stored = {"format": FORMAT, **content}  # first, so that a reader sees it at once
    write_atomically(path, lambda file: torch.save(stored, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises UserError when it is missing, damaged, hostile or of another version."""
    content = read(path)
    # a bare state dict, or any other tensor file, has no format
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        version = None  # a number compares and prints without surprises, which a tensor or a nested list does not
    if version != FORMAT:
        raise UserError(f"{path} has checkpoint format {version}, this version reads {FORMAT}: train it again.")
    return dict(content)


def read(path: Path) -> Any:
    """What a file of torch.save holds. Raises UserError when it is missing, damaged or hostile."""
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist: train first, or name another file.")
        if not path.is_file():  # opening a pipe would wait for ever
            raise Refused("it is a folder, a pipe or a device")
        with open(path, "rb") as file:
            return unpack(file)
    except Refused as error:
        raise UserError(f"{path} is not a checkpoint of this project: {error}; take an intact file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable, or name another file.") from error


def unpack(file: BinaryIO) -> Any:
    """What an archive of torch.save holds, on the CPU, once nothing in it is left that could do harm.

    Raises Refused for an archive that is damaged, is too large, calls anything, or holds a value that is not finite.
    """
    try:
        size = check_archive(file)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Refused:
        raise
    except Exception as error:  # what zipfile, pickletools and torch raise on garbage is of many kinds
        raise Refused("it is damaged or holds more than weights, so it was not opened") from error
    check_tensors(content, size)
    return content


# ---- before anything is unpacked


class LimitedReads:
    """A file that refuses to read much at once: zipfile reads the list of members, however long, in one piece."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def read(self, size: int = -1) -> bytes:
        """Read bytes. Raises Refused for too many."""
        if size > MAX_DIRECTORY:
            raise Refused(f"its list of members is longer than {MAX_DIRECTORY} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self.file.tell()

    def seekable(self) -> bool:
        """Whether one can go to any place."""
        return True


def check_archive(file: BinaryIO) -> int:
    """Look at an archive's members, its checksums and its pickle; returns the bytes of all members together.

    Raises Refused for the first fault, or what zipfile and pickletools raise on garbage.
    """
    length = file.seek(0, os.SEEK_END)
    if length > MAX_BYTES:
        raise Refused(f"it is larger than {MAX_BYTES} bytes")
    file.seek(0)
    if file.read(len(ZIP_START)) != ZIP_START:  # torch.load would take it for a file of before 2020
        raise Refused("it is no archive of torch.save, or has lost its beginning")
    with zipfile.ZipFile(LimitedReads(file)) as archive:
        members = archive.infolist()
        size = check_members(members, length)
        faulty = archive.testzip()  # None where all is as it was written
        if faulty is not None:
            raise Refused(f"it is damaged, since {shown(faulty)} fails its checksum")
        pickled = pickle_member(members)
        check_pickle(archive.read(pickled), len(members))
    return size


def check_members(members: list[zipfile.ZipInfo], length: int) -> int:
    """The bytes of all members of an archive of this length. Raises Refused where unpacking could take too much."""
    if len(members) > MAX_MEMBERS:
        raise Refused(f"it has {len(members)} members, more than {MAX_MEMBERS}")
    for member in members:
        # torch.save compresses nothing: what is small when packed and large when unpacked is no checkpoint
        is_compressed = member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size
        if is_compressed:
            raise Refused(f"{shown(member.filename)} in it is compressed")
    size = sum(member.file_size for member in members)
    if size > length:  # members that share their bytes, or end behind the file's end
        raise Refused(f"its members have {size} bytes, more than the file")
    # torch tells names in capitals from others no better than this
    names = {member.filename.lower() for member in members}
    if len(names) < len(members):
        raise Refused("two of its members have one name")
    return size


def pickle_member(members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """The member with the names and plain values. Raises Refused when there is not one, or it is too large."""
    found = [member for member in members if member.filename.lower().endswith("data.pkl")]
    if len(found) != 1:
        raise Refused(f"it has {len(found)} members data.pkl instead of one")
    largest = PICKLE_BYTES + PICKLE_BYTES_PER_MEMBER * len(members)
    if found[0].file_size > largest:
        raise Refused(f"its data.pkl has {found[0].file_size} bytes, more than {largest}")
    return found[0]


def check_pickle(data: bytes, members: int) -> None:
    """Follow the pickle of an archive with so many members without executing it.

    Raises Refused for what it may not call, for too many instructions and for a tuple nested deeply.
    """
    most = INSTRUCTIONS + INSTRUCTIONS_PER_MEMBER * members
    stack: list[int] = []  # sizes of values: the number of values in a tuple, 1 for all else
    memo: dict[Any, int] = {}
    for number, (code, argument, _) in enumerate(pickletools.genops(data)):
        if number >= most:
            raise Refused(f"its data.pkl has more than {most} instructions")
        if code.name == "GLOBAL" and argument not in CALLED:
            raise Refused(f"it holds more than weights ({shown(str(argument))})")
        if code.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            taken = take(stack, code)
            size = 1 + taken if code.name in TUPLES else 1
            if size > MAX_TUPLE:
                raise Refused(f"it has a tuple of more than {MAX_TUPLE} values")
            result = MARK if code.name == "MARK" else size
            stack.extend([result] * len(code.stack_after))


def take(stack: list[int], code: pickletools.OpcodeInfo) -> int:
    """Remove from the stack what an instruction of a pickle takes; returns the sizes together."""
    total = 0
    count = len(code.stack_before)
    if pickletools.markobject in code.stack_before:
        while (size := stack.pop()) != MARK:
            total += size
        count -= 2  # the mark and what lay above it
    for _ in range(count):
        total += stack.pop()
    return total


# ---- after unpacking


def check_tensors(content: object, size: int) -> None:
    """Raise Refused for a tensor that holds a value that is not finite, or for tensors that share their bytes."""
    total = 0
    for name, tensor in tensors_in(content):
        total += tensor.numel() * tensor.element_size()
        if total > size:  # one number, repeated along a large shape, would fill the memory when it is copied
            raise Refused(f"its tensors, to {shown(name)}, are larger than what the file holds")
        has_fractions = tensor.is_floating_point() or tensor.is_complex()
        if has_fractions and not tensor.isfinite().all():
            raise Refused(f"its tensor {shown(name)} holds values that are not finite")


def tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts, lists and tuples, with the keys that lead to them.

    Raises Refused where they are nested without end.
    """
    waiting: list[tuple[int, str, object]] = [(0, "", content)]  # a list, since recursion would end in a traceback
    seen: set[int] = set()
    while waiting:
        depth, name, value = waiting.pop()
        if id(value) in seen:  # a list may hold itself
            continue
        seen.add(id(value))
        if depth > MAX_DEPTH:
            raise Refused(f"its values are nested more than {MAX_DEPTH} deep")
        if isinstance(value, Tensor):
            yield name.removeprefix("."), value
        for key, inner in entries(value):
            text = str(key) if isinstance(key, str | int) else "?"
            inner_name = f"{name}.{text[:MAX_NAME]}"
            waiting.append((depth + 1, inner_name[-MAX_NAME:], inner))


def entries(value: object) -> list[tuple[object, object]]:
    """What a dict, list or tuple holds, with the keys or the places; nothing for another value."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return []


def shown(name: str) -> str:
    """A name out of a file for a message: short, on one line, in quotation marks."""
    return repr(name[-MAX_NAME:])


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights on the CPU in half precision: half the size, and the metrics change by no more than rounding."""
    smaller = {}
    for name, value in state.items():
        value = value.cpu()
        # counters stay whole numbers
        smaller[name] = value.half() if value.is_floating_point() else value
    return smaller
