"""`data fetch` against a server on this machine: whole, verified and resumable, or a sentence that says what to do."""

import hashlib
import io
import json
import random
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtl_utils import layout
from mtl_utils.files import UserError
from mtl_utils.prepare import fetch as fetch_module
from mtl_utils.prepare.fetch import fetch
from mtl_utils.tasks import FOLDERS, SPLITS, TASKS

SEG, CLS, DET = "/VOCtrainval.tar", "/imagenette2-160.tgz", "/train2017/000000000009.jpg"
BOXES = "/annotations.zip"


class Server(ThreadingHTTPServer):
    """Serves bytes by path, with ranges; keeps a log and can break off, refuse ranges or fail."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[str, str | None]] = []  # path and Range of every request
        self.breaks: dict[str, int] = {}  # path → bytes after which the next answers end, each a little later
        self.failures = 0  # how many of the next answers are 503
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.log.append((self.path, wanted))
        data = server.files.get(self.path)
        if data is None or server.failures:
            server.failures = max(0, server.failures - 1)
            self.send_error(404 if data is None else 503)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop = server.breaks.pop(self.path, len(data))
        self.wfile.write(data[start:stop])

    def log_message(self, *args):
        pass


def make_tar(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    """An archive of files; a TarInfo stands for itself (a link, say)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if info is content else len(content)
            tar.addfile(info, None if info is content else io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def official_json(split: str) -> dict:
    """A small stand-in for instances_{split}2017.json: three images, of which the mini set has two (7 and 9)."""

    def annotation(number, image, category, bbox, crowd=0):
        outline = {"counts": [1, 2], "size": [9, 9]} if crowd else [[1.0, 2.0, 3.0]]
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
        return dict(zip(keys, (number, image, category, bbox, 7, crowd, outline), strict=True))

    image = {"license": 1, "height": 30, "width": 40, "date_captured": "2013", "flickr_url": "f"}
    url = f"http://images.cocodataset.org/{split}2017"
    return {
        "info": {"description": "COCO 2017 Dataset"},
        "licenses": [{"id": 1}],
        "images": [
            image | {"id": i, "file_name": f"{i:012d}.jpg", "coco_url": f"{url}/{i:012d}.jpg"} for i in (9, 8, 7)
        ],
        "annotations": [
            annotation(50, 9, 18, [1.5, 2, 3, 4]),
            annotation(60, 8, 1, [1, 2, 3, 4]),  # another image
            annotation(70, 7, 5, [1, 2, 3, 4]),  # another category
            annotation(90, 7, 1, [5, 6, 7, 8], crowd=1),
            annotation(80, 7, 18, [0.25, 0, 1, 1]),
            annotation(40, 9, 1, [1, 1, 2, 2]),
        ],
        "categories": [
            {"supercategory": "person", "id": 1, "name": "person"},
            {"supercategory": "vehicle", "id": 5, "name": "airplane"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
        ],
    }


def expected_json(split: str) -> dict:
    url = f"http://images.cocodataset.org/{split}2017"
    rows = [(7, 18, [0.25, 0.0, 1.0, 1.0], 0), (7, 1, [5.0, 6.0, 7.0, 8.0], 1)]
    rows += [(9, 1, [1.0, 1.0, 2.0, 2.0], 0), (9, 18, [1.5, 2.0, 3.0, 4.0], 0)]
    return {
        "info": {"description": f"Mini-COCO {split}: 2 COCO 2017 images, 2 classes"},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 30, "coco_url": f"{url}/{i:012d}.jpg"}
            for i in (7, 9)
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "area": 7.0, "iscrowd": crowd}
            for n, (i, c, box, crowd) in enumerate(rows, 1)
        ],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
        ],
    }


class Source:
    """The official sources in small, on a server, with the manifest of a mini set of two or four files a split."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.manifest = server, folder / "manifest.json"
        rng = random.Random(0)
        names = {
            "seg": ["2007_{s}.jpg", "2007_{s}.png", "2008_{s}.jpg", "2008_{s}.png"],
            "det": ["000000000007.jpg", "000000000009.jpg"],
            "cls": ["n01440764/n01440764_{s}.JPEG", "n02102040/n02102040_{s}.JPEG"],
        }
        self.content = {
            (task, split, name.format(s=split)): rng.randbytes(5000)
            for task in TASKS
            for split in SPLITS
            for name in names[task]
        }
        self.members = {"seg": {}, "cls": {}}
        for (task, split, name), data in self.content.items():
            if task == "det":
                server.files[f"/{split}2017/{name}"] = data
            elif task == "cls":
                self.members["cls"][f"imagenette2-160/{split}/{name}"] = data
            else:
                kind = "SegmentationClass" if name.endswith("png") else "JPEGImages"
                self.members["seg"][f"VOCdevkit/VOC2012/{kind}/{name}"] = data
        self.members["seg"]["VOCdevkit/VOC2012/JPEGImages/2009_other.jpg"] = b"not wanted"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for split in SPLITS:
                archive.writestr(f"annotations/instances_{split}2017.json", json.dumps(official_json(split)))
        server.files[BOXES] = buffer.getvalue()
        self.publish()

    def publish(self) -> None:
        """Pack the members, and write the manifest that fits them."""
        files = self.server.files
        files[SEG], files[CLS] = make_tar(self.members["seg"]), make_tar(self.members["cls"], "w:gz")
        paths = {"seg": SEG, "cls": CLS, "boxes": BOXES, "det": ""}
        sources = {
            key: {"url": self.server.url + path, "md5": hashlib.md5(files.get(path, b"")).hexdigest()}
            for key, path in paths.items()
        }
        plan = {"sources": sources, "categories": [1, 18]}
        plan["boxes"] = {split: fetch_module.boxes_digest(expected_json(split)) for split in SPLITS}
        for (task, split, name), data in self.content.items():
            plan.setdefault(task, {}).setdefault(split, {})[name] = hashlib.sha256(data).hexdigest()
        self.manifest.write_text(json.dumps(plan))

    def expected_files(self) -> dict[str, bytes]:
        return {f"{FOLDERS[task]}/{split}/{name}": data for (task, split, name), data in self.content.items()}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "PAUSE", 0)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield Source(server, tmp_path)
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "new" / "data"


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def complaint(source: Source, root: Path, sources: dict | None = None) -> str:
    """The text of the UserError that fetching ends with: one sentence."""
    with pytest.raises(UserError) as caught:
        fetch(root, source.manifest, sources)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_everything_is_built_and_nothing_else(source, root):
    fetch(root, source.manifest)
    found = files_below(root)
    for split in SPLITS:
        name = layout.json_path(root, split).relative_to(root).as_posix()
        assert found.pop(name) == json.dumps(expected_json(split)).encode()
    assert found == source.expected_files()
    assert not (root / ".downloads").exists()


def test_second_run_downloads_nothing(source, root):
    fetch(root, source.manifest)
    source.server.log.clear()
    fetch(root, source.manifest)
    assert source.server.log == []


def test_second_run_fetches_what_is_missing_or_different_and_keeps_what_was_there(source, root, capsys):
    """A file under an official name may be somebody's own: it stays beside the official one."""
    fetch(root, source.manifest)
    expected = files_below(root)
    mine = {
        root / "mini_coco_det/train/000000000009.jpg": b"my own photograph",
        layout.json_path(root, "val"): b"{}",
        root / "mini_voc_seg/val/2007_val.png": b"my own mask",
    }
    for path, content in mine.items():
        path.write_bytes(content)
    source.server.log.clear()
    fetch(root, source.manifest)
    found, printed = files_below(root), capsys.readouterr().out
    for path, content in mine.items():
        kept = f"{path.relative_to(root).as_posix()}.1.other"
        assert found.pop(kept) == content
        assert f"Note: {path} was not the official file" in printed
    assert found == expected
    assert source.server.log == [(SEG, None), (DET, None), (BOXES, None)]


@pytest.mark.parametrize("path", [SEG, DET])
def test_a_file_that_is_announced_too_large_is_refused_before_it_is_written(path, source, root, monkeypatch):
    """The photographs here have 5,000 bytes, the archive more than 6,000."""
    monkeypatch.setattr(fetch_module, "MAX_ARCHIVE" if path == SEG else "MAX_PHOTO", 6000)
    if path == DET:
        source.server.files[DET] = bytes(7000)
    assert "larger than the official file can be" in complaint(source, root)
    assert not any(name.endswith(Path(path).name) for name in files_below(root))


def test_a_server_that_sends_more_than_it_announced_is_stopped(source, root, monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_ARCHIVE", 6000)
    monkeypatch.setattr(fetch_module, "BLOCK", 1000)
    monkeypatch.setattr(fetch_module, "ask_for_room", lambda *_: None)  # as if the header were missing
    text = complaint(source, root)
    part = root / ".downloads/VOCtrainval.tar.part"
    assert "larger than the official file can be" in text and str(part) in text
    assert part.stat().st_size <= 6000


def test_room_on_the_disk_is_asked_for_first(source, root, monkeypatch):
    usage = fetch_module.shutil.disk_usage
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: usage(path)._replace(free=100 << 20))
    assert re.search(r"needs 200 MB and has 100 MB free: make room or name another folder\.", complaint(source, root))
    assert sum(len(data) for data in files_below(root).values()) == 0


def test_annotations_that_unpack_to_more_than_coco_has_are_refused(source, root, monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_JSON", 100)
    assert "is damaged: delete that folder and try again" in complaint(source, root)


def test_interrupted_archive_is_resumed(source, root):
    data = source.server.files[SEG]
    (root / ".downloads").mkdir(parents=True)
    (root / ".downloads/VOCtrainval.tar.part").write_bytes(data[:3000])
    fetch(root, source.manifest)
    assert source.server.log[0] == (SEG, "bytes=3000-")
    assert source.expected_files().items() <= files_below(root).items()


def test_broken_connection_is_tried_again_from_where_it_broke(source, root):
    source.server.breaks = {SEG: 4000, DET: 1}
    fetch(root, source.manifest)
    assert source.server.log[:2] == [(SEG, None), (SEG, "bytes=4000-")]
    assert (DET, "bytes=1-") in source.server.log
    assert source.expected_files().items() <= files_below(root).items()


def test_server_without_ranges_sends_the_whole_file(source, root):
    source.server.ranges = False
    source.server.breaks = {SEG: 4000}
    fetch(root, source.manifest)
    assert source.expected_files().items() <= files_below(root).items()


def test_part_that_is_already_whole_is_taken(source, root):
    part = root / "mini_coco_det/train/000000000009.jpg.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(source.server.files[DET])
    fetch(root, source.manifest)
    assert source.server.log.count((DET, "bytes=5000-")) == 1
    assert not part.exists()


def test_failing_server_gets_three_tries(source, root):
    source.server.failures = 2
    fetch(root, source.manifest)
    assert [path for path, _ in source.server.log[:3]] == [SEG, SEG, SEG]
    source.server.failures = 3
    (root / "mini_coco_det/train/000000000009.jpg").unlink()
    assert DET in complaint(source, root)


def test_corrupt_archive_is_refused(source, root):
    source.server.files[SEG] = source.server.files[SEG][:-1] + b"x"
    text = complaint(source, root)
    assert SEG in text
    assert "does not match the official checksum" in text
    assert "try again" in text
    assert files_below(root) == {}


def test_corrupt_photograph_is_refused_and_can_be_fetched_again(source, root):
    good = source.server.files[DET]
    source.server.files[DET] = good[::-1]
    assert "train2017/000000000009.jpg does not match" in complaint(source, root)
    assert not [name for name in files_below(root) if "000000000009" in name]
    source.server.files[DET] = good
    source.server.log.clear()
    fetch(root, source.manifest)
    assert SEG not in [path for path, _ in source.server.log]
    assert source.expected_files().items() <= files_below(root).items()


def test_archives_are_kept_until_everything_is_there(source, root):
    photograph = source.server.files.pop(DET)
    complaint(source, root)
    assert (root / ".downloads/VOCtrainval.tar").is_file()
    source.server.files[DET] = photograph
    (root / "mini_voc_seg/train/2007_train.jpg").unlink()
    source.server.log.clear()
    fetch(root, source.manifest)
    assert SEG not in [path for path, _ in source.server.log]
    assert source.expected_files().items() <= files_below(root).items()
    assert not (root / ".downloads").exists()


def test_missing_address_is_one_sentence_and_one_try(source, root):
    del source.server.files[DET]
    text = complaint(source, root)
    assert f"{DET} cannot be fetched (HTTP Error 404" in text
    assert source.server.log.count((DET, None)) == 1


def test_no_network_is_one_sentence(source, root):
    sources = {"seg": {"url": "http://127.0.0.1:1/VOC.tar", "md5": "0" * 32}}
    text = complaint(source, root, sources)
    assert "http://127.0.0.1:1/VOC.tar cannot be fetched" in text
    assert "check the network" in text


def test_full_disk_is_one_sentence(source, root, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module.os, "replace", full)
    text = complaint(source, root)
    assert str(root) in text
    assert "No space left on device" in text
    assert "make room" in text


def test_disk_that_fills_up_while_an_archive_is_unpacked_is_one_sentence(source, root, monkeypatch):
    replace = fetch_module.os.replace

    def full_but_for_archives(part, path):
        if ".downloads" not in str(path):
            raise OSError(28, "No space left on device")
        replace(part, path)

    monkeypatch.setattr(fetch_module.os, "replace", full_but_for_archives)
    text = complaint(source, root)
    assert str(root / "mini_voc_seg/train") in text
    assert "No space left on device" in text
    assert "make room" in text
    assert list(files_below(root)) == [".downloads/VOCtrainval.tar"]  # no half of a file either


def test_root_that_is_a_file_is_one_sentence(source, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be filled" in complaint(source, tmp_path / "file")


def test_missing_manifest_is_one_sentence(source, root):
    source.manifest.write_text("{")
    assert str(source.manifest) in complaint(source, root)


def test_damaged_archive_with_the_right_checksum_is_one_sentence(source, root):
    source.server.files[SEG] = b"no archive"
    sources = {"seg": {"url": source.server.url + SEG, "md5": hashlib.md5(b"no archive").hexdigest()}}
    assert f"{root / '.downloads'} is damaged" in complaint(source, root, sources)


def test_malicious_members_are_never_written(source, root, tmp_path):
    photo = "VOCdevkit/VOC2012/JPEGImages/2007_train.jpg"
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(source.members["seg"].pop(photo))
    source.members["seg"] |= {
        "../evil.jpg": b"evil",
        "../../evil.jpg": b"evil",
        "/tmp/../evil.jpg": b"evil",
        str(tmp_path / "evil.jpg"): b"evil",
        f"../{photo}": b"evil",
        photo: link(photo, str(secret)),
        "VOCdevkit/VOC2012/JPEGImages/out": link("VOCdevkit/VOC2012/JPEGImages/out", str(tmp_path)),
        "VOCdevkit/VOC2012/JPEGImages/out/evil.jpg": b"evil",
    }
    source.publish()
    before = set(tmp_path.rglob("*"))
    assert "lacks 2007_train.jpg" in complaint(source, root)
    written = {p for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert not any("evil" in p.name or p.is_symlink() for p in written)
    assert all(p.is_relative_to(root) for p in written)
    assert not (root / "mini_voc_seg/train/2007_train.jpg").exists()


def test_member_with_other_bytes_is_refused(source, root):
    source.members["cls"]["imagenette2-160/val/n01440764/n01440764_val.JPEG"] = b"another photograph"
    source.publish()
    assert "lacks n01440764/n01440764_val.JPEG" in complaint(source, root)
    assert not (root / "imagenette_160/val/n01440764/n01440764_val.JPEG").exists()


def test_images_may_lie_in_either_half_of_imagenette(source, root):
    halves = {"train": "val", "val": "train"}
    source.members["cls"] = {
        re.sub("train|val", lambda m: halves[m[0]], name, count=1): data for name, data in source.members["cls"].items()
    }
    source.publish()
    fetch(root, source.manifest)
    assert source.expected_files().items() <= files_below(root).items()


def test_other_boxes_than_the_manifests_are_pointed_out(source, root, capsys):
    plan = json.loads(source.manifest.read_text())
    plan["boxes"]["train"] = "0" * 64
    source.manifest.write_text(json.dumps(plan))
    fetch(root, source.manifest)
    out = capsys.readouterr().out
    assert "Note: the boxes in" in out
    assert "mini_instances_train2017.json" in out
    assert "mini_instances_val2017.json" not in out


def test_digest_of_boxes_sees_content_only():
    coco = expected_json("train")
    digest = fetch_module.boxes_digest(coco)
    coco["annotations"].reverse()
    coco["annotations"][0]["bbox"][2] += 1e-9
    assert fetch_module.boxes_digest(coco) == digest
    coco["annotations"][0]["bbox"][2] += 0.01
    assert fetch_module.boxes_digest(coco) != digest


@pytest.mark.real
def test_committed_manifest_names_the_real_files(real_root):
    plan = fetch_module.read_manifest(fetch_module.MANIFEST)
    assert fetch_module.MANIFEST.stat().st_size < 150_000
    for task in TASKS:
        assert fetch_module.lacking(real_root, task, plan) == []
        for split, count in zip(SPLITS, (240, 60), strict=True):
            folder = layout.split_folder(real_root, task, split)
            assert len(plan.sha256[task][split]) == count * (2 if task == "seg" else 1)
            assert set(plan.sha256[task][split]) == {
                p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
            }
    assert all(fetch_module.has_boxes(layout.json_path(real_root, s), plan.boxes[s]) for s in SPLITS)


@pytest.mark.real
@pytest.mark.parametrize("split", SPLITS)
def test_real_annotations_are_rebuilt_byte_by_byte(split, real_root):
    """From a stand-in for the official file: shuffled, with outlines, and with an image and a category too many."""
    plan, path = fetch_module.read_manifest(fetch_module.MANIFEST), layout.json_path(real_root, split)
    official = json.loads(path.read_bytes())
    official["images"].append(official["images"][0] | {"id": 1, "file_name": "000000000001.jpg"})
    official["annotations"] += [
        official["annotations"][0] | {"image_id": 1},
        official["annotations"][0] | {"category_id": 5},
    ]
    official["categories"].insert(4, {"supercategory": "vehicle", "id": 5, "name": "airplane"})
    for annotation in official["annotations"]:
        annotation["id"] = 3 * annotation["id"] + 1000
        annotation["segmentation"] = [[1.0, 2.0]]
    for key in ("images", "annotations"):
        random.Random(0).shuffle(official[key])
    rebuilt = fetch_module.mini_coco(official, split, plan.sha256["det"][split], plan.categories)
    assert json.dumps(rebuilt).encode() == path.read_bytes()
