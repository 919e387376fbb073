"""Files that are whole or not there, whenever their writer is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mtl_utils import files

of_unix = pytest.mark.skipif(os.name == "nt", reason="Windows stops processes in other ways")

PREFIX = "import os, signal, sys, time; from pathlib import Path; from mtl_utils import files\n"


def stop_while_writing(path, number, times=1):
    """Write a file; after half of its content the process gets a signal, `times` times."""

    def write(file):
        file.write(b"first ")
        for _ in range(times):
            signal.raise_signal(number)
        file.write(b"second")

    files.write_atomically(path, write)


def test_ctrl_c_while_a_file_is_written_stops_after_it(tmp_path):
    path = tmp_path / "file"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop_while_writing(path, signal.SIGINT)
    assert path.read_bytes() == b"first second" and os.listdir(tmp_path) == ["file"]
    assert signal.getsignal(signal.SIGINT) is before


def run_script(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREFIX + lines, *arguments], capture_output=True, text=True, check=False
    )


@of_unix
def test_a_second_signal_while_a_file_is_written_ends_the_process_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    lines = """
def write(file):
    file.write(b"half")
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    print("still there")
files.write_atomically(Path(sys.argv[1]), write)
"""
    done = run_script(lines, str(path))
    assert done.returncode == -signal.SIGINT and done.stdout == ""
    assert path.read_bytes() == b"old"
    files.remove_parts(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


@of_unix
def test_a_signal_that_is_ignored_stays_ignored_while_a_file_is_written(tmp_path):
    lines = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
files.write_atomically(Path(sys.argv[1]), lambda file: signal.raise_signal(signal.SIGHUP))
print("went on")
"""
    assert run_script(lines, str(tmp_path / "file")).stdout == "went on\n"


COMMAND = """
from mtl_utils.cli.guard import guarded
def work():
    print("ready", flush=True)
    time.sleep(30)
sys.exit(guarded(work, "run again to continue"))
"""


@of_unix
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_every_signal_to_stop_ends_a_command_alike(name, status):
    """Ctrl-C, a batch system's end of time, and a closed terminal."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREFIX + COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors == "\nstopped; run again to continue\n"


@of_unix
def test_a_second_signal_ends_a_command_at_once():
    lines = """
from mtl_utils.cli.guard import guarded
def work():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("tidying up", flush=True)
        time.sleep(30)
sys.exit(guarded(work))
"""
    process = subprocess.Popen([sys.executable, "-c", PREFIX + lines], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "tidying up\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT and time.monotonic() - started < 10


@of_unix
def test_under_nohup_a_closed_terminal_does_not_stop_a_command():
    lines = """
from mtl_utils.cli.guard import guarded
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.exit(guarded(lambda: signal.raise_signal(signal.SIGHUP) or print("went on")))
"""
    assert run_script(lines).stdout == "went on\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_json_holds_names_that_are_no_utf_8(tmp_path):
    """As os.listdir gives them on Linux."""
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    files.write_json(tmp_path / "file.json", {"names": [name, "äöü 圖"]})
    assert files.read_json(tmp_path / "file.json", "") == {"names": [name, "äöü 圖"]}
    assert os.fsencode(name) == b"caf\xe9 \xff.jpg"
