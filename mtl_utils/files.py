"""Paths of the project, and files that are either whole or not there.

Uses the standard library only, so that every other module may import it.
"""

import contextlib
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

PROJECT = Path(__file__).resolve().parents[1]  # the folder that holds README.md, notebooks/ and data/
COMMITTED_METRICS = PROJECT / "figures" / "metrics.json"  # of the committed run on real photographs
COMMITTED_SIZES = PROJECT / "figures" / "sizes.json"  # its model at several sizes of the input
WEIGHTS_FOLDER = PROJECT / "data" / "weights"  # weights to start from, and the committed model
START_WEIGHTS = WEIGHTS_FOLDER / "efficientnet_lite0.pt"  # public ImageNet weights that new models start from
COMMITTED_WEIGHTS = WEIGHTS_FOLDER / "three_tasks.pt"  # the committed run's model after stage 3
STUDY_RESULTS = PROJECT / "figures" / "study"  # one folder a profile, one JSON a run
SIZES_ON_FOLDS = PROJECT / "figures" / "sizes_on_folds.json"  # of models trained on folds of the training sets
RUN_LOG = PROJECT / "figures" / "runs.csv"  # one line a run: how the recipe was found
NOTEBOOKS = PROJECT / "notebooks"
HASH_BLOCK = 1 << 20  # bytes that are hashed at a time, so that an archive of gigabytes takes no memory
PART = ".part"  # ending of a file that is being written
# what asks a process to stop: Ctrl-C, a batch system or a notebook server, a closed terminal
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class UserError(Exception):
    """A mistake that the user can mend: its text is one sentence that names the file and the remedy."""


def user_path(value: str | Path) -> Path:
    """A path that a user gave: relative ones count from the current folder, or else from the project's."""
    path = Path(os.path.expanduser(value))  # which leaves a user that there is not as it is
    if path.exists():
        return path.resolve()
    return (PROJECT / path).resolve()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file; `path` holds either its whole new content or what it held before.

    The temporary name holds the process id, so that two processes never write into one file. Whoever presses Ctrl-C
    meanwhile stops the process afterwards. Raises UserError when the disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with stop_later():
            with open(part, "wb") as file:
                write(file)
                file.flush()  # what waits in Python's own buffer would miss the sync
                os.fsync(file.fileno())  # the content is on the disk before the name points to it
            os.replace(part, path)
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(f"{path} could not be saved ({cause}): make room on the disk, then run again.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def stop_later() -> Iterator[None]:
    """Let the first signal to stop wait until the block is done; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return
    arrived: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {}
    for number in STOP_SIGNALS:
        if callable(signal.getsignal(number)):  # what is ignored, as under nohup, or ends the process stays as it is
            before[number] = signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)


def remove_parts(folder: Path) -> None:
    """Delete what processes that were killed have left half-written in a folder that no other process writes to."""
    for part in folder.glob(f"*{PART}"):
        with contextlib.suppress(OSError):
            part.unlink()


def move_aside(path: Path, ending: str) -> Path:
    """Rename a file or folder to the first free of its name with `ending`, "{}" being 1, 2 and so on; the new path."""
    for number in count(1):
        aside = path.with_name(path.name + ending.format(number))
        if not aside.exists():
            break
    return path.rename(aside)


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, so that a rename survives a power cut."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder: the file itself is synced
            os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """Write JSON, readable for people unless `indent` is None, which makes it small."""
    separators = None if indent else (",", ":")
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    # a file's name that is no UTF-8 holds characters that only an escape can write; JSON's is Python's
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(data))


def read_json(path: Path, remedy: str) -> Any:
    """The contents of a JSON file. Raises UserError with this remedy when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}.") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
