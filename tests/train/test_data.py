"""Data by name and by path, and everything that can be wrong with it."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from p2pfl_train.datasets.examples import Examples, LabelledData, relabel
from p2pfl_train.datasets.images import read_image
from p2pfl_train.datasets.load import load, parse_classes, parse_image_size, parse_numbers
from p2pfl_train.datasets.preprocess import preprocess_function
from p2pfl_train.errors import DataError, UsageError

torch.set_num_threads(1)


def read(path: Path | str, **options: Any) -> LabelledData:
    return load(str(path), data_dir=Path("unused"), download=False, **options)


def save_image(path: Path, value: int | tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if isinstance(value, int) else "RGB"
    Image.new(mode, size, value).save(path)


def pets(folder: Path) -> Path:
    for index, name in enumerate(["cat", "dog", "horse"]):
        for number in range(2):
            save_image(folder / name / f"{number}.png", 50 * index + number)
    return folder


def write_mnist(root: Path, count: int = 20) -> None:
    """The four files of MNIST in their real format, small."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = np.arange(count * 784, dtype=np.int64).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">iiii", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 0x801, count) + labels.tobytes()
        )


# --- by name


def test_digits_need_no_network() -> None:
    data = read("digits")
    assert data.input_shape == (1, 8, 8)
    assert len(data.examples) == 1797
    assert data.classes == tuple("0123456789")
    assert data.examples.x.dtype == torch.uint8
    assert int(data.examples.x.max()) == 255


def test_fixed_constants_normalise_the_named_data() -> None:
    data = read("digits")
    x = preprocess_function(data.preprocessing, data.input_shape)(data.examples.x)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01


def test_mnist_is_read_without_a_network(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = load("mnist", data_dir=tmp_path, download=True)
    assert data.examples.x.shape == (20, 1, 28, 28)
    assert data.examples.y.tolist() == [i % 10 for i in range(20)]
    assert data.examples.x[1].flatten().tolist() == [i % 256 for i in range(784, 1568)]


def test_a_damaged_copy_says_what_to_do(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        load("mnist", data_dir=tmp_path, download=True)


def test_missing_data_without_a_download(tmp_path: Path) -> None:
    for name in ("mnist", "fashion-mnist", "cifar10"):
        with pytest.raises(DataError, match="--data-dir"):
            load(name, data_dir=tmp_path, download=False)


def test_a_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_url: str
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [unused_url])
    monkeypatch.setattr(datasets.CIFAR10, "url", unused_url + "cifar.tar.gz")
    for name in ("mnist", "cifar10"):
        with pytest.raises(DataError, match="could not be downloaded") as caught:
            load(name, data_dir=tmp_path, download=True)
        assert "\n" not in str(caught.value)


@pytest.fixture
def unused_url() -> str:
    return "http://127.0.0.1:1/"  # nobody listens on port 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no such file or folder, nor one of digits, mnist"):
        read("mnits")


# --- folders of images


def test_classes_are_the_sorted_folders(tmp_path: Path) -> None:
    pets(tmp_path)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"not an image")
    (tmp_path / ".git").mkdir()
    data = read(tmp_path)
    assert data.classes == ("cat", "dog", "horse")
    assert data.input_shape == (1, 4, 6)
    assert data.examples.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.examples.x[:, 0, 0, 0].tolist() == [0, 1, 50, 51, 100, 101]


def test_a_missing_class_folder_shifts_no_label(tmp_path: Path) -> None:
    pets(tmp_path)
    for path in (tmp_path / "dog").iterdir():
        path.unlink()
    (tmp_path / "dog").rmdir()
    data = read(tmp_path, classes=("cat", "dog", "horse"))
    assert data.classes == ("cat", "dog", "horse")
    assert data.examples.y.tolist() == [0, 0, 2, 2]
    (tmp_path / "classes.txt").write_text("horse\ndog\n\ncat\n")
    data = read(tmp_path)
    assert data.classes == ("horse", "dog", "cat")
    assert data.examples.y.tolist() == [2, 2, 0, 0]


def test_a_class_that_the_task_does_not_know_is_refused(tmp_path: Path) -> None:
    pets(tmp_path)
    with pytest.raises(DataError, match=r"'horse'.*not among cat, dog"):
        read(tmp_path, classes=("cat", "dog"))


def test_a_palette_of_grays_is_gray(tmp_path: Path) -> None:
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for name, palette in (("gray", None), ("coloured", [255, 0, 0] * 256)):
        image = gray.convert("P")
        if palette is not None:
            image.putpalette(palette)
        (tmp_path / name / "a").mkdir(parents=True)
        image.save(tmp_path / name / "a" / "1.png")
    assert read(tmp_path / "gray").input_shape == (1, 8, 8)
    assert read(tmp_path / "gray").examples.x[0, 0].tolist() == np.asarray(gray).tolist()
    assert read(tmp_path / "coloured").input_shape == (3, 8, 8)


def test_one_coloured_image_makes_all_of_them_rgb(tmp_path: Path) -> None:
    pets(tmp_path)
    save_image(tmp_path / "dog" / "9.png", (255, 0, 10))
    data = read(tmp_path)
    assert data.input_shape == (3, 4, 6)
    assert data.examples.x[4, :, 0, 0].tolist() == [255, 0, 10]
    assert data.examples.x[0, :, 0, 0].tolist() == [0, 0, 0]
    assert read(tmp_path, channels=1).input_shape == (1, 4, 6)


def test_images_are_brought_to_one_size(tmp_path: Path) -> None:
    pets(tmp_path)
    save_image(tmp_path / "horse" / "big.jpg", 200, size=(50, 40))
    assert read(tmp_path).input_shape == (1, 4, 6)
    data = read(tmp_path, image_size=(10, 12))
    assert data.input_shape == (1, 10, 12)
    assert abs(int(data.examples.x[-1].float().mean()) - 200) <= 1


def test_deep_and_turned_images_are_read_as_seen(tmp_path: Path) -> None:
    deep = np.full((4, 6), 128 * 256, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", (1, 4, 6)).flatten().tolist() == [128] * 24
    turned = Image.new("L", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    turned.save(tmp_path / "a" / "turned.png", exif=exif)
    assert read(tmp_path).input_shape == (1, 6, 4)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    pets(tmp_path)
    broken = tmp_path / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"dog/1\.png is a broken image"):
        read(tmp_path)
    broken.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"dog/1\.png is a broken image file \(not an image\)"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "none.png", (1, 4, 6))


@pytest.mark.parametrize("side", [9000, 12000, 60000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    pets(tmp_path)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match=r"bomb\.png would decode to"):
        read(tmp_path)


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders"):
        read(tmp_path)
    save_image(tmp_path / "loose.png", 1)
    with pytest.raises(DataError, match="no class folders"):
        read(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images in cat"):
        read(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"no folder, \.npz or \.csv"):
        read(path)


# --- arrays


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    data = read(npz(tmp_path / "a.npz", x=np.array([[1.5, 2], [3, 4]]), y=np.array([1, 0])))
    assert data.examples.x.tolist() == [[1.5, 2], [3, 4]]
    assert data.classes == ("0", "1")
    assert data.preprocessing == {}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 8, 9), (1, 8, 9)), ((5, 3, 8, 9), (3, 8, 9)), ((5, 8, 9, 3), (3, 8, 9)), ((5, 7), (7,))],
)
def test_bytes_with_a_height_and_a_width_are_images(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    data = read(npz(tmp_path / "a.npz", x=x, y=np.zeros(5, dtype=int)))
    assert data.input_shape == expected
    assert data.examples.x.dtype == (torch.uint8 if len(expected) == 3 else torch.float32)
    if shape == (5, 8, 9, 3):
        assert data.examples.x[1, 2, 3, 4] == x[1, 3, 4, 2]


def test_labels_as_texts_and_names_in_the_file(tmp_path: Path) -> None:
    x = np.zeros((3, 2))
    data = read(npz(tmp_path / "a.npz", x=x, y=np.array(["b", "a", "b"])))
    assert (data.classes, data.examples.y.tolist()) == (("a", "b"), [1, 0, 1])
    data = read(npz(tmp_path / "b.npz", x=x, y=np.array([[1], [0], [1]]), classes=np.array(["no", "yes"])))
    assert (data.classes, data.examples.y.tolist()) == (("no", "yes"), [1, 0, 1])


def test_names_in_the_file_keep_their_labels_whatever_order_is_given(tmp_path: Path) -> None:
    y, own = np.array([1, 0, 1]), np.array(["dog", "fox"])
    path = npz(tmp_path / "a.npz", x=np.zeros((3, 2)), y=y, classes=own)
    assert read(path, classes=("cat", "dog", "fox")).examples.y.tolist() == [2, 1, 2]
    with pytest.raises(DataError, match="has the class 'dog', which is not among cat, fox"):
        read(path, classes=("cat", "fox"))


def test_numbers_are_positions_in_the_classes_that_the_file_brings_also_where_these_are_numbers(
    tmp_path: Path,
) -> None:
    own = np.array(["1", "0"])
    path = npz(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.array([0, 1, 1]), classes=own)
    assert (read(path).classes, read(path).examples.y.tolist()) == (("1", "0"), [0, 1, 1])
    assert read(path, classes=("0", "1")).examples.y.tolist() == [1, 0, 0]
    path = npz(tmp_path / "b.npz", x=np.zeros((2, 2)), y=np.array([0, 5]), classes=np.array(["5", "7"]))
    with pytest.raises(DataError, match="label 5 of example 1 is out of range for the classes 5, 7"):
        read(path)


def test_a_home_of_nobody_is_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read(Path("~nobody-of-that-name/data.npz"))


def test_numbers_name_classes_or_count_them(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.array([3, 1, 3]))
    assert read(path).classes == ("0", "1", "2", "3")
    assert read(path, classes=("3", "2", "1")).examples.y.tolist() == [0, 2, 0]
    assert read(path, classes=tuple("abcd")).examples.y.tolist() == [3, 1, 3]
    for classes in (("0", "1", "2"), tuple("abc")):
        with pytest.raises(DataError, match="label 3 of example 0 is out of range"):
            read(path, classes=classes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 2))}, "no array 'y'"),
        ({"y": np.zeros(2)}, "no array 'x'"),
        ({"x": np.zeros(2), "y": np.zeros(2)}, r"x has shape \(2,\)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, r"x has shape \(0, 2\)"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(3)}, r"y has shape \(3,\)"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, -1])}, "label -1 of example 1 is negative"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, 10**6])}, "label 1000000 .*out of range"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, 2**63], dtype=np.uint64)}, "out of range"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, 0.5])}, "label 0.5 of example 1 is not a whole"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, np.nan])}, "label nan of example 1"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(2, dtype=complex)}, "labels have type complex"),
        ({"x": np.array([[1, 2], [3, np.nan]]), "y": np.zeros(2)}, "NaN or infinite.* example 1"),
        ({"x": np.array([[1, 2], [3, 1e300]]), "y": np.zeros(2)}, "NaN or infinite.* example 1"),
        ({"x": np.array([["a"], ["b"]]), "y": np.zeros(2)}, "it needs numbers"),
        ({"x": np.zeros((2, 5, 5, 7), dtype=np.uint8), "y": np.zeros(2)}, "1 or 3 channels"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(npz(tmp_path / "a.npz", **arrays))


class Exploding:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["x", "y", "classes"])
def test_pickled_arrays_are_never_unpickled(tmp_path: Path, name: str) -> None:
    trap = tmp_path / "executed"
    arrays: dict[str, Any] = {"x": np.zeros((1, 2)), "y": np.zeros(1)}
    arrays[name] = np.array([Exploding(trap)], dtype=object)
    with pytest.raises(DataError, match="never unpickled"):
        read(npz(tmp_path / "a.npz", **arrays))
    assert not trap.exists()


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read(path)
    good = npz(tmp_path / "b.npz", x=np.zeros((9, 9)), y=np.zeros(9)).read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(10))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
        archive.infolist()[0].file_size = 1 << 40  # what the directory at the end will say
    with pytest.raises(DataError, match="unpacks to more than"):
        read(path)


# --- tables


def csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1,2,cat\n3,4,ant\n5,6,cat\n",
        "\ufeffwidth,height,kind\n1,2,cat\n3,4,ant\n5,6,cat\n",
        "Label,w,h\ncat,1,2\nant,3,4\n\ncat,5,6",
        "0,1,label\n1,2,cat\n3,4,ant\n5,6,cat\n",
    ],
)
def test_tables_with_and_without_a_header(tmp_path: Path, text: str) -> None:
    data = read(csv(tmp_path, text))
    assert data.classes == ("ant", "cat")
    assert data.examples.y.tolist() == [1, 0, 1]
    assert data.examples.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.examples.x.dtype == torch.float32


def test_number_labels_of_a_table(tmp_path: Path) -> None:
    path = csv(tmp_path, "1.5,10\n2.5,2\n")
    assert read(path).examples.y.tolist() == [10, 2]
    assert len(read(path).classes) == 11
    assert read(path, classes=("2", "10")).examples.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no examples"),
        ("a,b,label\n", "no examples"),
        ("1\n2\n", "line 1 has 1 column"),
        ("1,2,a\n1,2\n", "line 2 has 2 columns"),
        ("1,2,a\n1,x,b\n", "line 2, column 2: 'x'"),
        ("1,2,a\n1,,b\n", "line 2, column 2: ''"),
        (",2,a\n1,3,b\n", "line 1, column 1: ''"),
        ("1,2,a\nnan,2,b\n", "line 2, column 1: 'nan'"),
        ("1,2,a\n1e39,2,b\n", "line 2, column 1: '1e39'"),
        ("1,2,a\n1,2,\n", "line 2: the label"),
        ("1,2,-1\n1,2,0.5\n1,2,\x07\n", "class name"),
        ('1,2,"a\n', "not a readable .csv"),
    ],
)
def test_wrong_tables_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(csv(tmp_path, text))


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00\x01,2\n")
    with pytest.raises(DataError, match=r"not a readable \.csv"):
        read(path)


# --- labels, options


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True), st.randoms())
def test_relabelling_keeps_every_examples_name(own: list[str], random: Any) -> None:
    order = list("abcdef")
    random.shuffle(order)
    y = torch.arange(len(own))
    data = LabelledData(Examples(torch.zeros(len(own), 2), y), tuple(own), "test")
    again = relabel(data, order)
    assert [again.classes[i] for i in again.examples.y.tolist()] == own


@pytest.mark.parametrize("classes", [[], ["a", "a"], ["a", ""], ["a", "b\x1b[31m"], ["x" * 300]])
def test_class_lists_are_checked(classes: list[str]) -> None:
    with pytest.raises(DataError, match="class"):
        read("digits", classes=classes)


def test_options_as_they_are_typed() -> None:
    assert parse_classes("cat, dog,horse") == ("cat", "dog", "horse")
    assert parse_image_size("32") == (32, 32)
    assert parse_image_size("32x48") == (32, 48)
    for text in ("", "0", "axb", "1x2x3", "-4", "99999"):
        with pytest.raises(UsageError, match="--image-size"):
            parse_image_size(text)
    for text in ("", "a,,b", "a,a"):
        with pytest.raises(UsageError, match="--classes"):
            parse_classes(text)


@pytest.mark.parametrize(("text", "numbers"), [("0.5", (0.5,)), ("0.49, 1e-3,-2", (0.49, 0.001, -2.0))])
def test_numbers_between_commas(text: str, numbers: tuple[float, ...]) -> None:
    assert parse_numbers("--mean", text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1,,2", "nan", "1,inf"])
def test_what_is_no_number_names_its_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--std "):
        parse_numbers("--std", text)
