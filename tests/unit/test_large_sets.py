"""Sets of millions of images: the list of their files, and its index (data.index)."""

import hashlib
import os
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.configs import configure
from tricklab.data import folder_index
from tricklab.data.file_list import FileList, LabeledFiles, make_list, make_table
from tricklab.data.images import VERSION
from tricklab.data.listing import list_folder
from tricklab.errors import UserError
from tricklab.run.build import build_data

IMAGES = 12  # of each class


def write_image(path, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), 90).save(path)


@pytest.fixture
def photographs(tmp_path):
    root = tmp_path / "photographs"
    for name in ("a", "b", "c"):
        for i in range(IMAGES):
            write_image(root / name / f"{i}.png")
    (root / "b" / "sub").mkdir()
    (root / "b" / "notes.heic").write_bytes(b"")
    return root


@pytest.fixture
def listed(monkeypatch):
    """Record the names of the folders that are listed; trust those that were written just now."""
    names = []

    def record(root, folder):
        names.append(folder.name)
        return list_folder(root, folder)

    monkeypatch.setattr(folder_index, "list_folder", record)
    monkeypatch.setattr(folder_index, "UNSETTLED", -3600.0)
    return names


def build_indexed(root, index=True, **options):
    overrides = ["data=folder", f"data.root='{root}'", "data.size=8", "data.num_workers=0"]
    overrides += ["data.cache=none", "data.batch_size=4"]
    if index:
        overrides.append(f"data.index='{root.parent / 'index'}'")
    return build_data(configure(*overrides, *(f"data.{k}={v}" for k, v in options.items())))


def index_file(root):
    [path] = (root.parent / "index").iterdir()
    return path


def first_list(listed):
    """Return the names that were recorded, and forget them."""
    names = sorted(listed)
    listed.clear()
    return names


# The list of files


def test_file_list_returns_what_it_was_made_of(tmp_path):
    names = ["a/1.png", "ä/猫.png", "b/\udcff.png", "c.png"]  # the third name is not UTF-8
    tables = [make_table([(name, i, 10**18 + i)]) for i, name in enumerate(names)]
    files = make_list(tmp_path, [make_table([]), *tables])
    assert [file.name for file in files] == list(files.names()) == names
    assert [file.path for file in files] == [tmp_path / name for name in names]
    assert [file[2:] for file in files] == [(i, 10**18 + i, "") for i in range(4)]
    chosen = files.with_groups(["y", "x", "y", "x"]).select(torch.tensor([3, 0]))
    assert list(chosen.entries()) == [("c.png", 3, 10**18 + 3, "x"), ("a/1.png", 0, 10**18, "y")]
    part = tables[1].part(0, 1)
    assert part.name(0) == names[1]


def test_file_list_of_a_chunk_and_more_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tricklab.data.file_list.CHUNK", 3)
    names = [f"{i}.png" for i in range(7)]
    files = make_list(tmp_path, [make_table([(name, 1, 2) for name in names])])
    assert list(files.entries()) == [(name, 1, 2) for name in names]


def test_file_list_takes_few_bytes_an_image(tmp_path):
    names = [f"train/n01440764/n01440764_{i:05}.JPEG" for i in range(10_000)]
    files = make_list(tmp_path, [make_table([(name, 1, 2) for name in names])])
    arrays = [*files.table, files.rows]
    assert sum(array.nbytes for array in arrays) <= 10_000 * (len(names[0]) + 4 * 8) + 8
    # also when it is sent to a process that is not forked
    assert len(pickle.dumps(files)) < 10_000 * (len(names[0]) + 4 * 8) + 1000


def test_selected_files_share_their_table(tmp_path):
    labeled = LabeledFiles(make_list(tmp_path, [make_table([("a", 1, 2)] * 9)]), torch.arange(9))
    chosen = labeled.select(torch.tensor([8, 1]))
    assert chosen.files.table is labeled.files.table
    assert chosen.labels.tolist() == [8, 1]


@pytest.mark.parametrize("group", ["null", "'[0-9]+'"])
def test_digest_is_that_of_a_list_of_tuples(photographs, group):
    images = build_indexed(photographs, index=False, group=group).splits.train.images
    assert isinstance(images.files, FileList)
    files = [(*f[1:4], *filter(None, f[4:])) for f in images.files]
    options = (images.resize, "RGB", "white", VERSION)
    expected = hashlib.sha256(repr((files, options)).encode()).hexdigest()[:16]
    assert images.digest == expected


def test_files_are_sorted_as_paths(tmp_path):
    names = ["x/1.png", "x.y/1.png", "x/a/0.png", "10.png", "9.png", "x-1/2.png"]
    for name in random.Random(0).sample(names, len(names)):
        write_image(tmp_path / name)
    files = make_list(tmp_path, [list_folder(tmp_path, tmp_path).images])
    paths = [file.path for file in files]
    assert paths == sorted(paths)
    assert {file.name for file in files} == set(names)


# Its index


def test_index_lists_no_folder_again(photographs, listed):
    first = build_indexed(photographs)
    assert first_list(listed) == ["a", "b", "c"]
    again = build_indexed(photographs)
    assert listed == []
    plain = build_indexed(photographs, index=False)
    assert first.fingerprint == again.fingerprint == plain.fingerprint


def test_index_counts_skipped_files_as_a_listing_does(photographs, listed, capsys):
    build_indexed(photographs)
    line = capsys.readouterr().err
    assert "1 of 37 files are left out" in line
    build_indexed(photographs)
    assert listed == ["a", "b", "c"]  # of the first time
    assert capsys.readouterr().err == line


def add(root):
    write_image(root / "b" / "new.png")


def add_below(root):
    write_image(root / "b" / "sub" / "new.png")


def remove(root):
    (root / "b" / "0.png").unlink()


def rename(root):
    (root / "b" / "0.png").rename(root / "b" / "new.png")


def replace(root):
    write_image(root / "new.png", side=9)
    (root / "new.png").replace(root / "b" / "7.png")


def add_with_old_time(root):
    status = (root / "b").stat()
    write_image(root / "b" / "new.png")
    os.utime(root / "b", ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite_all(root):
    for path in (root / "b").glob("*.png"):
        write_image(path, side=9)


CHANGES = [add, add_below, remove, rename, replace, add_with_old_time, rewrite_all]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_index_notices_a_change(photographs, listed, change):
    before = build_indexed(photographs).fingerprint
    listed.clear()
    change(photographs)
    data = build_indexed(photographs)
    assert first_list(listed) == ["b"]  # and the others are taken from the index
    assert data.fingerprint == build_indexed(photographs, index=False).fingerprint != before
    build_indexed(photographs)
    assert listed == []


def test_index_notices_classes_that_come_and_go(photographs, listed):
    build_indexed(photographs)
    (photographs / "a").rename(photographs / "d")
    listed.clear()
    assert build_indexed(photographs).classes == ["b", "c", "d"]
    assert first_list(listed) == ["d"]


def test_index_does_not_notice_a_file_that_is_rewritten_in_place(photographs, listed):
    # as conf/data/README.md says; one of the sample would be noticed
    before = build_indexed(photographs).fingerprint
    names = sorted(path.name for path in (photographs / "b").glob("*.png"))
    write_image(photographs / "b" / names[1], side=9)
    assert build_indexed(photographs).fingerprint == before


def test_index_does_not_trust_folders_that_changed_just_now(photographs, listed, monkeypatch):
    monkeypatch.setattr(folder_index, "UNSETTLED", 3600.0)
    build_indexed(photographs)
    build_indexed(photographs)
    assert first_list(listed) == ["a", "a", "b", "b", "c", "c"]


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"a/0.png")] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def write_text(path):
    path.write_text("no index")


def write_pickle(path):
    np.savez(path, header=np.array([{"of": 1}], dtype=object))


def drop_a_name(path):
    with np.load(path) as arrays:
        parts = dict(arrays)
    np.savez(path, **parts | {"text": parts["text"][:-1]})


DAMAGES = [flip_a_byte, cut, write_text, write_pickle, drop_a_name]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_index_is_made_again(photographs, listed, damage, capsys):
    before = build_indexed(photographs).fingerprint
    damage(index_file(photographs))
    listed.clear()
    capsys.readouterr()
    assert build_indexed(photographs).fingerprint == before
    assert first_list(listed) == ["a", "b", "c"]
    assert "is damaged; the folders are listed again" in capsys.readouterr().err
    build_indexed(photographs)
    assert listed == []


def test_index_of_another_set_is_not_used(photographs, listed):
    build_indexed(photographs)
    other = photographs.with_name("other")
    for name in ("a", "b", "c"):
        for i in range(4):
            write_image(other / name / f"{i}.png")
    path = index_file(photographs)
    path.rename(folder_index.open_index(str(path.parent), other).path)
    assert build_indexed(other).splits.files == 12


def test_index_in_a_folder_that_can_not_be_made_is_refused(photographs):
    (photographs.parent / "index").write_text("")
    with pytest.raises(UserError, match=r"data\.index=.*index: .*File exists"):
        build_indexed(photographs)


def test_order_after_a_resume_from_the_index_is_the_same(photographs, listed):
    def batches(start, **options):
        data = build_indexed(photographs, **options)
        return [(batch[2].tolist(), batch[0]) for batch in data.training_batches(lambda: start)]

    whole = batches((3, 0), index=False)
    build_indexed(photographs)
    listed.clear()
    resumed = batches((3, 2))
    assert listed == []
    assert [order for order, _ in resumed] == [order for order, _ in whole[2:]]
    for (_, ours), (_, theirs) in zip(resumed, whole[2:], strict=True):
        assert torch.equal(ours, theirs)
