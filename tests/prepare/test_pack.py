"""`data pack` and `data fetch --from`: the same sets come out, or a sentence says why not and nothing was written."""

import hashlib
import json
import os
import shutil
import zipfile

import pytest
from test_fetch import Server

from mtl_utils.cli.main import main
from mtl_utils.files import UserError
from mtl_utils.prepare import pack
from mtl_utils.prepare.check import check_root
from mtl_utils.prepare.root import fingerprint
from mtl_utils.tasks import FOLDERS, TASKS


@pytest.fixture(scope="module")
def packed(tiny_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "sets.zip"
    return path, pack.write_pack(tiny_root, path)


@pytest.fixture
def server():
    import threading

    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def below(root):
    """Every file below a folder with its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def changed(packed, tmp_path, change) -> str:
    """A pack whose members, by name, `change` has altered."""
    path, _ = packed
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(other)


def with_index(members, **more) -> None:
    index = json.loads(members[pack.INDEX]) | more
    members[pack.INDEX] = json.dumps(index).encode()


def test_what_was_packed_comes_out(packed, tiny_root, tmp_path):
    path, digest = packed
    pack.fetch_pack(tmp_path / "root", str(path), digest.upper())
    assert below(tmp_path / "root") == below(tiny_root)
    assert all(fingerprint(tmp_path / "root", task) == fingerprint(tiny_root, task) for task in TASKS)
    assert [fault for fault in check_root(tmp_path / "root") if "same photograph" not in fault.problem] == []
    pack.fetch_pack(tmp_path / "root", str(path), digest)  # what is there stays
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_sets_give_equal_packs(packed, own_root, tmp_path):
    (own_root / ".DS_Store").touch()
    (own_root / FOLDERS["det"] / "notes.txt").write_text("not read")
    for path in own_root.rglob("*"):
        os.utime(path, (1, 1))
    assert pack.write_pack(own_root, tmp_path / "again.zip") == packed[1]


def test_a_pack_from_the_web_by_the_line_in_the_project(packed, tiny_root, server, tmp_path, monkeypatch, capsys):
    path, digest = packed
    server.files["/sets.zip"] = path.read_bytes()
    server.breaks["/sets.zip"] = 5000  # the download breaks off and is continued
    monkeypatch.setattr(pack, "ADDRESS", tmp_path / "pack.txt")
    monkeypatch.setattr("mtl_utils.prepare.fetch.PAUSE", 0)
    (tmp_path / "pack.txt").write_text(f"{server.url}/sets.zip {digest}\n")
    assert main(["data", "fetch", str(tmp_path / "root")]) == 0
    assert below(tmp_path / "root") == below(tiny_root), "and no download is left"
    assert server.log[0][1] is None and len(server.log) == 2


def test_the_commands(own_root, tmp_path, capsys):
    out = tmp_path / "sets.zip"
    assert main(["data", "pack", str(out), str(own_root)]) == 0
    digest = capsys.readouterr().out.split()[-1]
    assert main(["data", "fetch", str(tmp_path / "new"), "--from", str(out), "--sha256", digest]) == 0
    assert below(tmp_path / "new") == below(own_root)
    assert main(["data", "fetch", str(tmp_path / "new"), "--from", str(out), "--sha256", 64 * "0"]) == 1
    assert "has another SHA-256" in capsys.readouterr().err
    assert main(["data", "pack", str(out), str(own_root)]) == 1 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.pop(pack.INDEX), "is no pack: make one"),
        (lambda m: m.update({pack.INDEX: b"["}), "holds other files than its index says"),
        (lambda m: m.update({"mini_voc_seg/train/x.jpg": b""}), "holds other files than its index says"),
        (lambda m: m.pop(sorted(m)[-1]), "holds other files than its index says"),
        (lambda m: m.update({sorted(m)[-1]: b"other bytes"}), "fails its checksum"),
        (lambda m: (m.update({"../evil": b""}), with_index(m, **{"../evil": "0"})), "which belongs to no set"),
        (lambda m: (m.update({"/evil": b""}), with_index(m, **{"/evil": "0"})), "which belongs to no set"),
        (lambda m: (m.update({"evil/x": b""}), with_index(m, **{"evil/x": "0"})), "which belongs to no set"),
        (
            lambda m: (m.update({"mini_voc_seg/../../x": b""}), with_index(m, **{"mini_voc_seg/../../x": "0"})),
            "which belongs to no set",
        ),
    ],
)
def test_a_foreign_pack_writes_nothing(packed, tmp_path, change, sentence):
    source = changed(packed, tmp_path, change)
    root = tmp_path / "deep" / "root"
    with pytest.raises(UserError, match=sentence):
        pack.fetch_pack(root, source)
    assert not any((root / folder).exists() for folder in FOLDERS.values())
    assert not (tmp_path / "evil").exists() and not (tmp_path / "x").exists()


def test_damage_of_any_kind_ends_in_a_sentence(packed, tmp_path):
    """A deflated pack with flipped bits, one that is compressed in an unusual way, and a file that is a folder too."""
    path, _ = packed
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for number, kind in enumerate((zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)):
        other = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(other, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        whole = other.read_bytes()
        for place in range(200, len(whole), len(whole) // 40):
            flipped = bytearray(whole)
            flipped[place] ^= 16
            other.write_bytes(flipped)
            try:
                pack.fetch_pack(tmp_path / f"root {number} {place}", str(other))
            except UserError as error:
                assert str(other) in str(error)
            else:
                assert below(tmp_path / f"root {number} {place}") == {
                    k: v for k, v in members.items() if k != pack.INDEX
                }

    def both(contents):
        contents["mini_voc_seg/a"] = contents["mini_voc_seg/a/b"] = b""
        with_index(contents, **{"mini_voc_seg/a": "0", "mini_voc_seg/a/b": "0"})

    with pytest.raises(UserError, match="a file and a folder of one name"):
        pack.fetch_pack(tmp_path / "both", changed(packed, tmp_path, both))


def test_a_set_under_another_name_is_packed_under_the_projects(own_root, tmp_path, packed):
    (own_root / FOLDERS["cls"]).rename(own_root / "imagenette2-160")
    assert pack.write_pack(own_root, tmp_path / "again.zip") == packed[1]
    with pytest.raises(UserError, match="imagenette2-160 is another set of the same task"):
        pack.fetch_pack(own_root, str(packed[0]))


@pytest.mark.parametrize("name", ["12:30.jpg", "con.jpg", "a .jpg ", "a\nb.jpg", "a*.jpg"])
def test_a_name_that_other_systems_cannot_have_is_not_packed(own_root, tmp_path, name):
    folder = next((own_root / FOLDERS["cls"] / "train").iterdir())
    path = next(folder.iterdir())
    path.rename(folder / name.replace(" ", "x") if name.endswith(" ") else folder / name)
    if name.endswith(" "):
        assert not pack.is_safe("mini_voc_seg/a .jpg ")
        return
    with pytest.raises(UserError, match="has a name that other systems cannot have"):
        pack.write_pack(own_root, tmp_path / "x.zip")


def test_what_is_no_zip_or_cut_off_is_said(packed, tmp_path):
    path, _ = packed
    for name, content in (("page.zip", b"<html>"), ("cut.zip", path.read_bytes()[:-100])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="is no pack or is damaged"):
            pack.fetch_pack(tmp_path / "root", str(tmp_path / name))
    with pytest.raises(UserError, match="is no file: name a pack"):
        pack.fetch_pack(tmp_path / "root", str(tmp_path / "missing.zip"))


def test_no_file_of_a_user_is_replaced(packed, own_root, tmp_path):
    path, _ = packed
    shutil.rmtree(own_root / FOLDERS["cls"])
    own = next((own_root / FOLDERS["seg"] / "val").glob("*.jpg"))
    own.write_bytes(b"mine")
    before = below(own_root)
    with pytest.raises(UserError, match=f"differs from the pack in mini_voc_seg/val/{own.name}"):
        pack.fetch_pack(own_root, str(path))
    assert below(own_root) == before


def test_too_large_a_pack_and_a_full_disk_are_said_before_anything_is_written(packed, tmp_path, monkeypatch):
    path, _ = packed
    monkeypatch.setattr(pack, "SPARE", 1 << 60)
    with pytest.raises(UserError, match="MB free: make room"):
        pack.fetch_pack(tmp_path / "root", str(path))
    monkeypatch.setattr(pack, "MAX_PACK", 1000)
    with pytest.raises(UserError, match="larger than a pack can be"):
        pack.fetch_pack(tmp_path / "root", str(path))


def test_a_root_with_a_fault_or_without_a_set_is_not_packed(own_root, tmp_path):
    next((own_root / FOLDERS["seg"] / "val").glob("*.png")).unlink()
    with pytest.raises(UserError, match="is missing"):
        pack.write_pack(own_root, tmp_path / "x.zip")
    shutil.rmtree(own_root / FOLDERS["seg"])
    with pytest.raises(UserError, match="has no mini_voc_seg: a pack holds all three sets"):
        pack.write_pack(own_root, tmp_path / "x.zip")
    assert not list(tmp_path.glob("x.zip*"))


def test_a_wrong_line_in_the_project_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "ADDRESS", tmp_path / "pack.txt")
    assert pack.read_address() is None
    (tmp_path / "pack.txt").write_text("https://example.org/sets.zip")
    with pytest.raises(UserError, match="must hold an address and a SHA-256"):
        pack.read_address()
