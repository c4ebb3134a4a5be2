"""Images and masks that are broken or odd, through every door that decodes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from kinds import classification
from layouts import make_image, write_dataverse
from nobody import as_nobody
from PIL import Image
from small_runs import CONF, SHORT, SMALL, train

from skinmtl.cli import commands
from skinmtl.cli import train as cli_train
from skinmtl.data import transforms
from skinmtl.data.cache import Images
from skinmtl.data.datamodule import DataModule
from skinmtl.data.dataset import collate
from skinmtl.data.images import reading
from skinmtl.data.images.reading import read_image
from skinmtl.data.samplers import Shuffle
from skinmtl.errors import InputError, SkinmtlError
from skinmtl.evaluation.predict import Predictor
from skinmtl.runs.run import Run

SIZE = (24, 32)
IMAGE, MASK = make_image(0, SIZE)
NUMBER = 5  # of the image that is broken, among 21


def picture(kind: str = "JPEG", pixels: np.ndarray = IMAGE, mode: str = "RGB", **options: object) -> Callable:
    return lambda path: Image.fromarray(pixels).convert(mode).save(path, kind, **options)


def cut(make: Callable, left: float | int) -> Callable:
    """A file that lost its end: `left` is the share that is kept, or the bytes to drop where negative."""

    def act(path: Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[:left] if isinstance(left, int) else data[: int(left * len(data))])

    return act


def patched(make: Callable, start: float, data: bytes | None = None) -> Callable:
    """A file whose bytes are others, or zeros, from some share of it on."""

    def act(path: Path) -> None:
        make(path)
        whole = path.read_bytes()
        at = int(start * len(whole))
        new = bytes(len(whole) - at) if data is None else data
        path.write_bytes(whole[:at] + new + whole[at + len(new) :])

    return act


def bomb(side: int) -> Callable:
    """A small PNG of side x side black pixels, 1 bit each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def act(path: Path) -> None:
        packer, line = zlib.compressobj(1), bytes(1 + side // 8)
        data = b"".join(packer.compress(line * 100) for _ in range(side // 100)) + packer.flush()
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))

    return act


def deep(kind: str) -> Callable:
    """An RGB picture of 16 bits a channel."""
    return lambda path: path.write_bytes(cv2.imencode(kind, IMAGE.astype(np.uint16) * 257)[1].tobytes())


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[reading.ORIENTATION] = orientation
    return exif


def frames(kind: str) -> Callable:
    second = Image.new("RGB", SIZE[::-1], "red")
    return lambda path: Image.fromarray(IMAGE).save(path, kind, save_all=True, append_images=[second])


THREE = np.where(np.arange(SIZE[0])[:, None] < 3, 7, MASK).astype(np.uint8)
BROKEN_IMAGES: dict[str, Callable[[Path], object]] = {
    "empty.jpg": lambda path: path.write_bytes(b""),
    "page.jpg": lambda path: path.write_text("<html>404</html>"),
    "half.jpg": cut(picture(), 0.5),
    "most.jpg": cut(picture(), 0.99),
    "endless.jpg": cut(picture(), -2),
    "zeros.jpg": patched(picture(), 0.5),
    "hole.jpg": patched(picture(), 0.8, bytes(100)),
    "torn.png": cut(picture("PNG"), 0.5),
    "header.jpg": patched(picture(), 0.0, b"\xff\xd8\x00\x00"),
    "folder.jpg": lambda path: path.mkdir(),
    "pipe.jpg": os.mkfifo,
    "enormous.png": bomb(30_000),
    "huge.png": bomb(12_000),
    "deep.png": lambda path: Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 256).save(path, "PNG"),
    "deeper.png": deep(".png"),
    "wide.tif": deep(".tif"),
    "glass.png": lambda path: Image.new("RGBA", SIZE[::-1], (1, 2, 3, 128)).save(path, "PNG"),
    "film.png": frames("PNG"),
    "drawing.jpg": lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "pages.tif": frames("TIFF"),
    "two\nlines.jpg": cut(picture(), 0.5),
    "dangling.jpg": lambda path: path.symlink_to("nowhere"),
    "missing.jpg": lambda path: None,
}
# Name: how the image is written, and how its mask is.
BROKEN_PAIRS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "turned with a mask": (picture(exif=turned(6)), picture("PNG", MASK, "L")),
    "mask of another size": (picture(), picture("PNG", MASK[:-1], "L")),
    "mask as JPEG": (picture(), picture("JPEG", MASK, "L")),
    "mask of three values": (picture(), picture("PNG", THREE, "L")),
    "empty mask": (picture(), lambda path: path.write_bytes(b"")),
}
NOT_IN_TABLES = {"two\nlines.jpg"}  # an image id with a line's end is refused where tables are read
ODD: dict[str, Callable[[Path], object]] = {
    "grey": picture("JPEG", mode="L"),
    "CMYK": picture("JPEG", mode="CMYK"),
    "opaque RGBA": picture("PNG", mode="RGBA"),
    "palette": picture("PNG", mode="P"),
} | {f"EXIF {orientation}": picture(exif=turned(orientation), quality=95) for orientation in range(1, 9)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """31 images; splits and caches go beside them."""
    monkeypatch.chdir(tmp_path)
    write_dataverse(tmp_path / "data", lesions=21, size=SIZE)
    return tmp_path / "data"


def replace(root: Path, photo: Callable[[Path], object], mask: Callable[[Path], object] | None) -> tuple[Path, Path]:
    """Write image and mask of `NUMBER` anew; without a mask its mask is removed."""
    places = [next(root.glob(f"*/ISIC_{NUMBER:07d}{suffix}")) for suffix in (".jpg", "_segmentation.png")]
    for place, write in zip(places, (photo, mask), strict=True):
        place.unlink()
        if write is not None:
            write(place)
    return places[0], places[1]


def data_module(root: Path, cache: str, size: tuple[int, int] = SIZE) -> DataModule:
    data = DataModule(
        str(root), size=size, batch_size=1, workers=0, folds=2, cache=cache, augment=transforms.none(),
        sampler=Shuffle(), seed=0,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def lines(said: str) -> list[str]:
    """What is said on stderr; a progress bar leaves a blank line."""
    return [line for line in said.splitlines() if line.strip()]


@pytest.mark.parametrize("name", [*sorted(BROKEN_IMAGES.keys() - NOT_IN_TABLES), *BROKEN_PAIRS])
def test_cache_and_decoding_stop_with_one_line_that_names_the_file(root: Path, name: str) -> None:
    pair = BROKEN_PAIRS.get(name) or (BROKEN_IMAGES[name], picture("PNG", MASK, "L"))
    places = replace(root, *pair)
    for door_ in ("the cache", "decoding"):
        with pytest.raises(SkinmtlError) as caught:
            data = data_module(root, "auto" if door_ == "the cache" else "off")
            samples = data._samples(transforms.none())
            for row in range(len(data.table)):
                if isinstance(sample := samples[0, 0, row], SkinmtlError):
                    raise sample
        (line,) = str(caught.value).splitlines()
        assert (places[0].stem in line) and "; fix: " in line, line
        assert caught.value.exit_code == 2
    assert not any(path.suffix in (".npy", ".tmp") for path in files(Path()))


def test_whole_images_go_through_the_same_doors(root: Path) -> None:
    replace(root, picture(), picture("PNG", MASK, "L"))
    for cache in ("auto", "off"):
        data = data_module(root, cache)
        assert len(list(data.train_dataloader())) == len(data.rows("train"))


@pytest.mark.slow
def test_the_training_command_lists_all_of_them_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in BROKEN_IMAGES if name not in NOT_IN_TABLES | {"missing.jpg"}]
    broken = sorted(root.glob("*/*.jpg"))[: len(names)]
    for path, name in zip(broken, names, strict=True):
        path.unlink()
        BROKEN_IMAGES[name](path)
    argv = ["train.py", "experiment=resnet18_unet", *SHORT, f"data.root={root}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert cli_train.main(CONF, argv) == 2
    said = capsys.readouterr().err
    faults = [line for line in lines(said) if line.startswith("skinmtl: error: ")]
    assert len(faults) == len(broken) and "Traceback" not in said
    assert all(any(str(path) in line for line in faults) for path in broken)
    assert all("; fix: " in line for line in faults)
    written = {path.suffix for path in files(Path("outputs"))}
    assert not written & {".npy", ".tmp", ".ckpt", ".png"}


@pytest.fixture(scope="module")
def run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("malformed") / "run", synthetic_root, [*SMALL, "trainer.precision=32-true"])


def test_prediction_lists_all_of_them_and_predicts_the_others(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given").mkdir()
    given = [tmp_path / "given" / name for name in BROKEN_IMAGES]
    for path in given:
        BROKEN_IMAGES[path.name](path)
    picture()(tmp_path / "whole.jpg")
    # A folder that is called like an image is given by the folder around it.
    (tmp_path / "around").mkdir()
    shutil.move(tmp_path / "given" / "folder.jpg", tmp_path / "around")
    words = [str(path) for path in [*given, tmp_path / "whole.jpg"] if path.name != "folder.jpg"]
    out = tmp_path / "out"
    assert commands.main(["predict", str(run.path), *words, str(tmp_path / "around"), "--out", str(out)]) == 2
    assert len(lines(capsys.readouterr().err)) == 1
    errors = pd.read_csv(out / "errors.csv")
    assert sorted(errors["file"]) == sorted(path.name for path in given)
    assert errors["error"].str.len().gt(3).all() and errors["fix"].str.len().gt(3).all()
    assert list(pd.read_csv(out / "predictions.csv")["file"]) == ["whole.jpg"]
    assert {path.stem for folder in ("masks", "overlays") for path in (out / folder).iterdir()} == {"whole"}


def test_evaluation_stops_where_an_image_has_rotted(
    run: Run, synthetic_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(synthetic_root, tmp_path / "data")
    test = run.predictions().query("split == 'test'")["image_id"].iloc[0]
    (path,) = (tmp_path / "data").glob(f"*/{test}.jpg")
    patched(lambda _: None, 0.5)(path)  # as many bytes, so that only decoding can tell
    before = {file: file.read_bytes() for file in files(run.path)}
    assert commands.main(["evaluate", str(run.path), f"data.root={tmp_path / 'data'}"]) == 2
    (line,) = lines(capsys.readouterr().err)
    assert line.startswith(f"skinmtl: error: {path}: ") and "; fix: " in line
    assert {file: file.read_bytes() for file in files(run.path)} == before


def test_a_files_name_cannot_break_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "two\nlines\u2028and \x1b[31mred.jpg")
    assert len(str(caught.value).splitlines()) == 1
    assert r"two\nlines\u2028and \x1b[31mred.jpg: No such file" in str(caught.value)
    picture()(path := tmp_path / "Läsion 病变.jpg")
    assert read_image(path).shape == (*SIZE, 3)


def _read_or_said(folder: Path) -> list[str]:
    """What each door says of an image that may not be read."""
    said = []
    for name in ("open.jpg", "closed.jpg"):
        for read in (lambda path: read_image(path), lambda path: Images([str(path)], [None], SIZE).read(0)):
            try:
                read(folder / name)
                said.append("read")
            except InputError as error:
                said.append(str(error))
    return said


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_an_image_that_may_not_be_read_is_named(public: Path) -> None:
    for name, rights in (("open.jpg", 0o644), ("closed.jpg", 0)):
        picture()(public / name)
        (public / name).chmod(rights)
    if os.geteuid() != 0:
        if os.access(public / "closed.jpg", os.R_OK):
            pytest.skip("this user reads everything and may not become another")
        with pytest.raises(InputError, match=r"closed\.jpg: Permission denied; fix: "):
            read_image(public / "closed.jpg")
        return
    opened, closed = np.array(as_nobody(lambda: _read_or_said(public))).reshape(2, 2)
    assert list(opened) == ["read", "read"]
    assert all(f"{public / 'closed.jpg'}: Permission denied; fix: " in line for line in closed)


PEAK = """
import re, sys, warnings
from pathlib import Path
from PIL import Image
from skinmtl.data.images.reading import read_image
from skinmtl.errors import InputError
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
try:
    Image.open(sys.argv[1]).load() if sys.argv[2] == "bare" else read_image(Path(sys.argv[1]))
except InputError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of memory")
def test_enormous_images_are_refused_by_their_header(tmp_path: Path) -> None:
    rises = {}
    for name, reader in (("enormous.png", "ours"), ("huge.png", "ours"), ("huge.png", "bare")):
        path = tmp_path / name
        if not path.exists():
            BROKEN_IMAGES[name](path)
        assert path.stat().st_size < 2e6
        command = [sys.executable, "-c", PEAK, str(path), reader]
        paths = os.pathsep.join([str(CONF.parent), os.environ["PYTHONPATH"]])
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
        )
        *said, rise = done.stdout.splitlines()
        rises[name, reader] = float(rise)
        if reader == "ours":
            assert done.stderr == ""
            assert len(said) == 1 and str(path) in said[0] and "50,000,000 pixels" in said[0]
    assert rises["enormous.png", "ours"] < 20 and rises["huge.png", "ours"] < 20  # MB; 600 are allowed
    assert rises["huge.png", "bare"] > 100  # so the measure sees what decoding takes


class Listening(torch.nn.Module):
    """A network that keeps what it is given."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        self.heard = image.clone()
        return {"cls": torch.zeros(len(image), 2)}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_the_same_pixels_in_training_and_prediction(root: Path, name: str) -> None:
    path, _ = replace(root, ODD[name], None)
    network = Listening()
    Predictor(network, [classification(classes=["mel", "nv"])], (16, 20), "cpu").predict(path)
    for cache in ("auto", "off"):
        samples = data_module(root, cache, (16, 20))._samples(transforms.none())
        seen, other = (collate([samples[0, 0, row]])["image"] for row in (NUMBER, NUMBER + 1))
        assert torch.equal(seen, network.heard), cache
        assert not torch.equal(other, network.heard)
