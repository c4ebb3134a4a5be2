from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from kinds import classification, segmentation
from layouts import make_image, write_all_but_a_mask, write_dataverse, write_mirror, write_own, write_task1
from PIL import Image

from skinmtl.data import cache, file_hashes, lesion_groups, sources, splits, transforms
from skinmtl.data.auxiliary import AuxiliaryData, images_per_source
from skinmtl.data.datamodule import DataModule
from skinmtl.data.images import reading
from skinmtl.data.mask_classes import Trimap
from skinmtl.data.samplers import Shuffle, class_aware, class_balanced
from skinmtl.data.transforms import Transform
from skinmtl.errors import ConfigError, Faults, InputError
from skinmtl.files import digest
from skinmtl.training.tasks import prepare
from skinmtl.types import Batch

SIZE = (20, 28)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """63 images of 42 lesions; the first has no mask."""
    return write_all_but_a_mask(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits and caches go under the test's own folder."""
    monkeypatch.chdir(tmp_path)


def make(root: Path, augment: Transform | None = None, seed: int = 0, **options: object) -> DataModule:
    settings = {"size": SIZE, "batch_size": 4, "workers": 0, "cache": "off"} | options
    settings |= {"columns": {"seg": "mask", "cls": "dx"}}
    data = DataModule(str(root), **settings, augment=augment or transforms.light(), sampler=Shuffle(), seed=seed)
    data.prepare_data()
    data.setup("fit")
    return data


def at(data: DataModule, done: int, limit: float | int = 1.0, rank: int = 0, world: int = 1) -> DataModule:
    """The datamodule as a trainer sees it that has done so many training batches."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(fit_loop=loop, limit_train_batches=limit, global_rank=rank, world_size=world)
    return data


def epochs(data: DataModule, count: int = 2) -> Iterator[Batch]:
    """Batches of some epochs from one loader, as a trainer draws them."""
    loader = data.train_dataloader()
    for epoch in range(count):
        at(data, done=epoch * len(loader))
        yield from loader


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a
    )


def test_a_batch_is_what_the_contract_says(root: Path) -> None:
    data = make(root)
    batch = next(iter(data.train_dataloader()))
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "image": ((4, 3, *SIZE), torch.uint8),
        "mask": ((4, *SIZE), torch.uint8),
        "has_mask": ((4,), torch.bool),
        "dx": ((4,), torch.int64),
        "index": ((4,), torch.int64),
    }
    assert set(batch["mask"].unique().tolist()) <= {0, 1}
    assert data.table["dx"].cat.codes[batch["index"].tolist()].tolist() == batch["dx"].tolist()


def test_attributes_tell_what_the_data_is(root: Path) -> None:
    data = make(root)
    assert data.dx_classes == sources.DX
    assert data.mask_classes == ("skin", "lesion")
    assert data.split_hash == digest(data.split_file)
    assert not data.leaky
    assert np.array_equal(np.sort(np.concatenate([data.rows(stage) for stage in splits.SPLITS])), np.arange(63))
    assert data.class_counts() == [(data.table["dx"].iloc[data.rows("train")] == dx).sum() for dx in data.dx_classes]
    assert make(root, fold=1).rows("test").tolist() != data.rows("test").tolist()
    assert make(root, size=16).size == (16, 16)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kept", ["auto", "off"])
def test_pixels_do_not_depend_on_workers_or_cache(root: Path, workers: int, kept: str) -> None:
    expected = list(epochs(make(root)))
    persistent = list(epochs(make(root, workers=workers, cache=kept)))
    assert same(persistent, expected)

    fresh = make(root, workers=workers, cache=kept)
    steps = len(fresh.train_dataloader())
    assert same([batch for epoch in range(2) for batch in at(fresh, epoch * steps).train_dataloader()], expected)
    assert len(list(Path().glob("outputs/.cache/*.npy"))) == (kept == "auto")


def test_epochs_positions_and_seeds_are_drawn_apart(root: Path) -> None:
    first, second = list(epochs(make(root))), list(epochs(make(root, seed=1)))
    half = len(first) // 2
    order = [tuple(torch.cat([batch["index"] for batch in part]).tolist()) for part in (first[:half], first[half:])]
    assert order[0] != order[1]
    pictures = [image.numpy().tobytes() for batch in first + second for image in batch["image"]]
    assert len(set(pictures)) == len(pictures)
    # Without augmentation the same images come again, so the comparison above can fail.
    plain = [image.numpy().tobytes() for batch in epochs(make(root, transforms.none())) for image in batch["image"]]
    assert len(set(plain)) < len(plain)


def test_an_image_sampled_twice_in_an_epoch_is_not_augmented_alike(root: Path) -> None:
    class Repeat(Shuffle):
        def order(self, dx: np.ndarray, lesion: np.ndarray, seed: int, epoch: int) -> np.ndarray:
            return np.zeros(len(dx), dtype=np.int64)

    data = make(root)
    data.sampler = Repeat()
    pictures = [image.numpy().tobytes() for batch in data.train_dataloader() for image in batch["image"]]
    assert len(pictures) > 20
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("done", [1, 5, 10, 13])
def test_training_goes_on_where_it_stood(root: Path, done: int) -> None:
    data = make(root)
    unbroken = list(epochs(data))
    steps = len(unbroken) // 2
    rest = unbroken[done : steps * (done // steps + 1)]
    assert same(list(at(make(root), done).train_dataloader()), rest)
    limited = at(make(root), done=7, limit=3)  # two epochs of three batches, and one more
    assert next(iter(limited.train_dataloader()))["index"].tolist() == unbroken_order(data, epoch=2)[4:8]


def unbroken_order(data: DataModule, epoch: int) -> list[int]:
    rows = data.rows("train")
    return rows[Shuffle().order(rows, rows, data.seed, epoch)].tolist()


def test_two_ranks_draw_what_one_draws(root: Path) -> None:
    alone = torch.cat(
        [image for batch in at(make(root, batch_size=2), 0).train_dataloader() for image in batch["image"]]
    )
    ranks = [list(at(make(root, batch_size=1), 0, rank=rank, world=2).train_dataloader()) for rank in (0, 1)]
    together = torch.cat([batch["image"][0] for step in zip(*ranks, strict=True) for batch in step])
    assert torch.equal(together, alone)
    shares = [
        [row for batch in at(make(root), 0, rank=rank, world=2).val_dataloader() for row in batch["index"].tolist()]
        for rank in (0, 1)
    ]
    assert sorted(shares[0] + shares[1]) == make(root).rows("val").tolist()


def test_training_batches_are_full_and_too_large_a_batch_is_refused(root: Path) -> None:
    data = make(root)
    sizes = [len(batch["index"]) for batch in data.train_dataloader()]
    assert sizes == [4] * (len(data.rows("train")) // 4)
    assert data.images_per_epoch() == sum(sizes)
    with pytest.raises(ConfigError, match=r"data\.batch_size: 64 is more than"):
        make(root, batch_size=64).train_dataloader()


def test_validation_is_the_images_themselves_in_table_order(root: Path) -> None:
    data = make(root, transforms.strong(), batch_size=5)
    batches = list(data.val_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == data.rows("val").tolist()
    for batch in batches:
        for image, mask, has, row in zip(
            batch["image"], batch["mask"], batch["has_mask"], batch["index"].tolist(), strict=True
        ):
            case = data.table.iloc[row]
            whole = reading.read_image(Path(case["image"]))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), reading.fit_image(whole, SIZE))
            assert bool(has) == (row != 0)
            if has:
                assert np.array_equal(mask.numpy(), reading.fit_mask(reading.read_mask(Path(case["mask"])), SIZE))


@pytest.mark.parametrize("kept", ["auto", "off"])
def test_a_missing_mask_is_said_to_be_missing(root: Path, kept: str) -> None:
    data = make(root, cache=kept)
    samples = data._samples(transforms.none())
    assert samples[0, 0, 0]["has_mask"] is False
    assert samples[0, 0, 1]["has_mask"] is True


def test_masks_that_are_not_of_their_image_stop_the_run_by_name(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_dataverse(root)
    sound = [make(root, workers=workers) for workers in (0, 2)]
    for number in (3, 5):
        path = root / "HAM10000_segmentations_lesion_tschandl" / f"ISIC_{number:07d}_segmentation.png"
        Image.new("L", (7, 7)).save(path)
    for kept in ("auto", "off"):  # before training, with a cache and without
        with pytest.raises(Faults, match=r"ISIC_0000003_segmentation\.png(.|\n)*ISIC_0000005_segmentation\.png"):
            make(root, cache=kept)
    assert not list(Path().glob("outputs/.cache/*.npy"))  # nothing half-written
    for data in sound:  # what is broken only later
        with pytest.raises(InputError, match=r"_segmentation\.png: the mask is 7 x 7 pixels"):
            list(data.train_dataloader())


def test_a_changed_image_makes_a_new_cache(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_dataverse(root)
    expected = list(make(root, cache="auto").val_dataloader())
    (kept,) = Path("outputs/.cache").glob("*.npy")
    began = kept.stat().st_mtime_ns
    assert same(list(make(root, cache="auto").val_dataloader()), expected)
    assert kept.stat().st_mtime_ns == began

    row = int(expected[0]["index"][0])
    path = Path(make(root).table["image"][row])
    Image.new("RGB", (32, 24), (1, 200, 3)).save(path, quality=95)
    assert next(iter(make(root, cache="auto").val_dataloader()))["image"][0, 1].min() > 190
    assert not kept.exists()


def test_without_room_there_is_no_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_free", lambda folder: 63 * SIZE[0] * SIZE[1] * 4)
    data = make(root, cache="auto")
    assert len(list(data.train_dataloader())) > 0
    assert not list(Path("outputs/.cache").glob("*.npy"))


def test_the_dataset_travels_small_to_workers_that_are_spawned(root: Path) -> None:
    data = make(root, cache="auto")
    samples = data._samples(transforms.light())
    first = samples[0, 0, 5]
    sent = pickle.dumps(samples)
    assert len(sent) < 63 * SIZE[0] * SIZE[1]
    assert np.array_equal(pickle.loads(sent)[0, 0, 5]["image"], first["image"])


def test_setup_again_reads_nothing_and_keeps_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(root)
    table = data.table
    monkeypatch.setattr(sources, "read", None)  # nor is anything read
    for stage in ("fit", "validate", "test", "predict", None):
        data.setup(stage)
    assert data.table is table


def test_the_data_hash_knows_content_and_not_place(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        write_dataverse(tmp_path / name)
        hashes.append(make(tmp_path / name).data_hash)
    assert hashes[0] == hashes[1]
    (tmp_path / "b" / "HAM10000_segmentations_lesion_tschandl" / "ISIC_0000007_segmentation.png").unlink()
    assert make(tmp_path / "b").data_hash != hashes[0]


def test_a_given_split_is_used_and_checked(root: Path, tmp_path: Path) -> None:
    drawn = make(root)
    mine = drawn.split.rename(columns={"fold_0": "fold_3", "fold_3": "fold_0"})
    splits.save(mine, tmp_path / "mine.csv")
    assert make(root, split="mine.csv", fold=3).rows("test").tolist() == drawn.rows("test").tolist()
    with pytest.raises(ConfigError, match=r"data\.fold: 7, but"):
        make(root, split="mine.csv", fold=7)
    splits.save(mine.iloc[1:], tmp_path / "short.csv")
    with pytest.raises(Faults, match=r"short\.csv: images of the data that are missing: ISIC_0000000"):
        make(root, split="short.csv")


def test_files_that_are_the_same_are_on_one_side_and_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_dataverse(tmp_path / "data")
    files = {path.stem: path for path in (tmp_path / "data").rglob("*.jpg")}
    lesions = rows.groupby("lesion_id")["image_id"].first()
    copies = list(zip(lesions[0:14:2], lesions[14:28:2], strict=True))  # one of each diagnosis
    for first, second in [*copies, ("ISIC_0000001", "ISIC_0000002")]:  # the last of one lesion
        shutil.copy(files[first], files[second])

    torn, data = make(tmp_path / "data", duplicates="none"), make(tmp_path / "data")
    side = [each.split.set_index("image_id")["fold_0"] for each in (torn, data)]
    assert any(side[0][first] != side[0][second] for first, second in copies)
    assert all(side[1][first] == side[1][second] for first, second in copies)
    assert data.certificate()["duplicates"]["pairs"] == [list(pair) for pair in copies]

    with pytest.raises(Faults, match="groups of duplicates in more than one split"):
        make(tmp_path / "data", split=str(torn.split_file))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert lesion_groups.same_files(data.table.iloc[:0]) == []
    splits.same_files(data.table, next(Path("outputs/splits").glob("same_files_*")))


def test_pairs_of_the_same_file_come_back_by_any_name(tmp_path: Path) -> None:
    ids = ["none", "a", "b ", "unknown"]
    rows = pd.DataFrame({"image_id": ids, "lesion_id": ids, "image_sha256": ["x", "x", "y", "y"]})
    found = [("none", "a"), ("b ", "unknown")]
    for _ in range(2):  # looked for, then read
        assert splits.same_files(rows, tmp_path / "same.csv") == found
    assert lesion_groups.pairs(str(tmp_path / "same.csv"), rows)[0] == found[0]


def test_class_aware_draws_lesions_as_the_split_groups_them(root: Path) -> None:
    plain = make(root, duplicates="none")
    rows = np.arange(len(plain.table))
    nv = plain.table.query("dx == 'nv'").drop_duplicates("lesion_id")["image_id"].tolist()
    Path("pairs.csv").write_text(f"first,second\n{nv[0]},{nv[1]}\n{nv[1]},{nv[2]}\n")
    joined = make(root, duplicates="pairs.csv")
    for data, others in ((plain, 0), (joined, 2)):
        dx, lesion = data._labels(rows)
        weight = pd.Series(class_aware().weights(dx, lesion))
        groups = data.groups
        assert data.table["lesion_id"].nunique() - groups.nunique() == others
        for number in range(len(data.dx_classes)):
            each = weight[dx == number].groupby(groups[dx == number]).sum()
            np.testing.assert_allclose(each, 1 / len(data.dx_classes) / len(each))


@pytest.mark.parametrize("kind", ["shuffle", "class_balanced", "class_aware"])
def test_images_without_any_diagnosis_make_batches(tmp_path: Path, kind: str) -> None:
    write_task1(tmp_path / "task1", images=30)
    (tmp_path / "task1" / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000003_segmentation.png").unlink()
    data = make(tmp_path / "task1", allow_leak=True, layout="isic2018_task1")
    data.sampler = {"shuffle": Shuffle, "class_balanced": class_balanced, "class_aware": class_aware}[kind]()
    assert data.dx_classes == ()
    assert data.class_counts() == data.class_shares() == []
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert all((batch["dx"] == -1).all() for batch in batches)
    for batch in batches:
        assert batch["has_mask"].tolist() == [index != 3 for index in batch["index"].tolist()]
        assert batch["mask"].amax((1, 2)).tolist() == batch["has_mask"].int().tolist()


def test_a_partly_labelled_table_counts_what_is_known(tmp_path: Path) -> None:
    raw = write_own(tmp_path / "own", lesions=30)
    raw.loc[::3, "dx"] = ""
    raw.to_csv(tmp_path / "own" / "mine.csv", index=False)
    data = make(tmp_path / "own", masks=str(tmp_path / "own" / "outlines"))
    assert data.layout == "csv"
    known = raw["dx"][data.rows("train")].value_counts()
    assert data.class_counts() == [known[dx] for dx in data.dx_classes]
    for batch in data.train_dataloader():
        words = [data.dx_classes[dx] if dx >= 0 else "" for dx in batch["dx"].tolist()]
        assert words == raw["dx"][batch["index"].tolist()].tolist()


def test_lesion_ids_are_passed_on(tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    raw = write_own(tmp_path / "own")
    data = make(tmp_path / "mirror", lesions=str(tmp_path / "own" / "mine.csv"))
    assert not data.leaky
    assert data.table["lesion_id"].tolist() == raw["lesion_id"].tolist()


def test_a_leaky_layout_is_stamped(tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror", lesions=42)
    assert make(tmp_path / "mirror", allow_leak=True).leaky


class Recorder(pl.LightningModule):
    """Keeps the pixels that training saw; learns nothing of use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[bytes] = []

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        self.seen.append(batch["image"].numpy().tobytes())
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: DataModule, steps: int, checkpoint: str | None = None) -> tuple[Recorder, pl.Trainer]:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_what_an_unbroken_one_sees(root: Path, workers: int) -> None:
    steps = len(make(root).train_dataloader())
    unbroken, _ = fit(make(root), 2 * steps + 3)
    for stop in (1, steps - 1, steps, steps + 2):
        first, trainer = fit(make(root, workers=workers), stop)
        trainer.save_checkpoint("last.ckpt")
        second, _ = fit(make(root, workers=workers), 2 * steps + 3, "last.ckpt")
        assert first.seen + second.seen == unbroken.seen, stop


def test_real_images_come_as_batches() -> None:
    if "SKINMTL_DATA" not in os.environ:
        pytest.skip("SKINMTL_DATA does not say where the real data is")
    data = make(Path(os.environ["SKINMTL_DATA"]) / "ham10000_256x192", size=(96, 128), batch_size=32)
    assert len(data.rows("test")) == 2004
    assert len(data.rows("val")) == pytest.approx((10_015 - 2004) / 8, rel=0.01)
    assert sum(data.class_counts()) == 10_015 - 2004 - len(data.rows("val"))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].float().mean() > 60
    assert 0.05 < batch["mask"].float().mean() < 0.6


def test_split_by_photograph_leaks_and_is_stamped(root: Path) -> None:
    with pytest.raises(ConfigError, match="data.split_by: images of one lesion would train and test"):
        make(root, split_by="image")
    data = make(root, split_by="image", allow_leak=True)
    lesions = {stage: set(data.table["lesion_id"].iloc[data.rows(stage)]) for stage in ("train", "test")}
    assert data.leaky and lesions["train"] & lesions["test"]
    honest = make(root, allow_leak=True)
    lesions = {stage: set(honest.table["lesion_id"].iloc[honest.rows(stage)]) for stage in ("train", "test")}
    assert not honest.leaky and not lesions["train"] & lesions["test"]


@pytest.fixture
def other(root: Path, tmp_path: Path) -> Path:
    """A second source: 30 images without masks, of which two have ids of the first and one its very bytes."""
    folder = tmp_path / "other"
    write_mirror(folder, lesions=20)
    for path in (folder / "masks").iterdir():
        path.unlink()
    table = pd.read_csv(folder / "GroundTruth.csv")
    new = {old: f"OWN_{number:03d}" for number, old in enumerate(table["image"]) if number > 1}
    for number, (old, name) in enumerate(new.items()):
        (folder / "images" / f"{old}.jpg").unlink()
        Image.fromarray(make_image(1000 + number)[0]).save(folder / "images" / f"{name}.jpg")
    first = root / "HAM10000_images_part_1" / "ISIC_0000004.jpg"
    (folder / "images" / "OWN_009.jpg").write_bytes(first.read_bytes())
    table["image"] = table["image"].replace(new)
    table.to_csv(folder / "GroundTruth.csv", index=False)
    return folder


def test_a_second_source_fills_its_share_of_every_batch_and_never_tests(root: Path, other: Path) -> None:
    also = {"other": AuxiliaryData(str(other), share=0.25, disjoint="drawn anew")}
    alone, data = make(root, batch_size=8), make(root, batch_size=8, auxiliary=also)
    assert data.data_hash == alone.data_hash and data.split_hash == alone.split_hash
    extra = data.table.iloc[data.rows("train", source=1)]
    assert len(extra) == 30 - 3 and extra["image_id"].str.startswith("OWN_").all()
    assert "OWN_009" not in set(extra["image_id"])
    for stage in ("val", "test"):
        assert data.rows(stage).tolist() == alone.rows(stage).tolist()

    batches, plain = list(data.train_dataloader()), list(alone.train_dataloader())
    assert len(batches) == len(alone.rows("train")) // 6 > len(plain)
    for batch in batches:
        second = torch.tensor([int(data.source[row]) == 1 for row in batch["index"]])
        assert second.sum() == 2 and not batch["has_mask"][second].any()
        assert (batch["dx"][second] >= 0).all()
    drawn = [row for batch in batches for row in batch["index"].tolist()]
    first = [row for row in drawn if row < len(alone.table)]
    assert len(set(first)) == len(first), "an epoch passes once over the first source"


def test_without_lesion_ids_a_second_source_is_refused_or_leaks_or_is_vouched_for(
    root: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def ways(allow_leak: bool = False, **grounds: str) -> tuple[DataModule, dict[str, Any]]:
        data = make(
            root,
            batch_size=8,
            allow_leak=allow_leak,
            auxiliary={"other": AuxiliaryData(str(other), share=0.25, **grounds)},
        )
        return data, data.certificate()

    with pytest.raises(InputError, match=r"no lesion ids.*lesions=<table>.*disjoint=<why>.*data\.allow_leak=true"):
        ways()
    data, told = ways(allow_leak=True)
    assert data.leaky and "LEAKY" in caplog.text
    assert told["also"]["other"]["leaky"] and not told["also"]["other"]["lesion_ids"]
    assert told["folds"]["fold_0"]["test_images_with_a_sibling_in_training"]["here"] is None

    data, told = ways(disjoint="drawn anew")
    assert not data.leaky and "taken to share no lesion with data.root: drawn anew" in caplog.text
    assert told["also"]["other"]["disjoint"] == "drawn anew" and not told["also"]["other"]["leaky"]
    assert told["folds"]["fold_0"]["lesions_on_two_sides"] == 0

    # With lesion ids it leaves out HAM_0000001, of which data.root has other images.
    ids = pd.read_csv(other / "GroundTruth.csv")["image"]
    lesions = ["HAM_0000001" if name == "OWN_005" else f"OWN_{number}" for number, name in enumerate(ids)]
    pd.DataFrame({"image_id": ids, "lesion_id": lesions}).to_csv("lesions.csv", index=False)
    data, told = ways(lesions="lesions.csv")
    assert not data.leaky and told["also"]["other"]["lesion_ids"]
    assert (data.source == 1).sum() == 30 - 4 and "OWN_005" not in set(data.table["image_id"])


def test_two_processes_draw_of_each_source_what_one_with_their_batch_draws(root: Path, other: Path) -> None:
    def rows(batch_size: int, world: int) -> list[list[int]]:
        also = {"other": AuxiliaryData(str(other), share=0.25, disjoint="drawn anew")}
        data = make(root, augment=transforms.none(), batch_size=batch_size, auxiliary=also)
        steps = [list(at(data, 0, rank=rank, world=world).train_dataloader()) for rank in range(world)]
        return [sorted(row for b in step for row in b["index"].tolist()) for step in zip(*steps, strict=True)]

    assert rows(6, world=2) == rows(12, world=1)


def test_files_of_both_sources_are_read_once(
    root: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = file_hashes._digest
    monkeypatch.setattr(file_hashes, "_digest", lambda path: read.append(path) or digest(path))
    monkeypatch.setattr(file_hashes, "SETTLED", -(10**9))
    first, source = sources.read(root), AuxiliaryData(str(other), share=0.25, disjoint="drawn anew")
    for _ in range(2):
        table = source.read(file_hashes.with_digests(first, tmp_path / "kept"), keep=tmp_path / "kept")
        assert "OWN_009" not in set(table["image_id"])
    assert len(read) == len(set(read)) > 0
    os.utime(read[0])
    source.read(file_hashes.with_digests(first, tmp_path / "kept"), keep=tmp_path / "kept")
    assert len(read) == len(set(read)) + 1


def test_lesions_that_sources_share_by_known_duplicates_are_left_out_whole(root: Path, tmp_path: Path) -> None:
    rows = [("OWN_0", "A"), ("OWN_1", "A"), ("OWN_2", "B"), ("OWN_3", "C"), ("OWN_4", "D"), ("OWN_5", "D")]
    for number, (name, _) in enumerate(rows):
        Image.fromarray(make_image(2000 + number)[0]).save(tmp_path / f"{name}.jpg")
    shutil.copy(root / "HAM10000_images_part_1" / "ISIC_0000002.jpg", tmp_path / "OWN_4.jpg")
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id"])
    table.assign(image=table["image_id"] + ".jpg", dx="nv").to_csv("own.csv", index=False)
    Path("pairs.csv").write_text("first,second\nISIC_0000000,ISIC_0000001\nISIC_0000000,OWN_0\nOWN_2,OWN_1\n")
    data = make(root, auxiliary={"own": AuxiliaryData("own.csv", share=0.25)}, duplicates="pairs.csv")
    assert data.table["image_id"][data.source == 1].tolist() == ["OWN_3"]
    assert data.certificate()["folds"]["fold_0"]["groups_on_two_sides"] == 0


@pytest.mark.parametrize("choice", ["known", "none", "pairs.csv"])
def test_one_file_on_two_sides_of_a_split_is_warned_of(
    root: Path, tmp_path: Path, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(root, tmp_path / "data")
    table = sources.read(root).set_index("image_id")
    folds = make(root, duplicates="none").split.set_index("image_id")["fold_0"]
    same = table.index[table["dx"] == "nv"]
    train, test = (next(name for name in same if folds[name] == stage) for stage in ("train", "test"))
    assert "one file in two splits" not in caplog.text
    shutil.copy(table.loc[train, "image"], table.loc[test, "image"])
    Path("pairs.csv").write_text(f"first,second\n{same[0]},{same[-1]}\n")
    make(root, duplicates=choice, masks=None)
    assert ("1 pairs of images are one file in two splits" in caplog.text) == (choice != "known")


def test_a_lesion_that_the_other_source_spells_otherwise_does_not_train(root: Path, tmp_path: Path) -> None:
    lesion = sources.read(root)["lesion_id"].iloc[0]
    for number in range(3):
        Image.fromarray(make_image(3000 + number)[0]).save(tmp_path / f"OWN_{number}.jpg")
    table = pd.DataFrame({"image": [f"OWN_{number}.jpg" for number in range(3)], "dx": "nv"})
    table.assign(lesion_id=["A", "A", "B"]).to_csv("own.csv", index=False)
    assert len(AuxiliaryData("own.csv", share=0.25).read(sources.read(root))) == 3
    for name in (lesion.lower(), f"{lesion}\u200b", f" {lesion}"):
        table.assign(lesion_id=[name, name, "B"]).to_csv("own.csv", index=False)
        assert AuxiliaryData("own.csv", share=0.25).read(sources.read(root))["image_id"].tolist() == ["OWN_2"]


@pytest.mark.slow
def test_diagnoses_are_counted_as_often_as_an_epoch_shows_them(root: Path, other: Path) -> None:
    data = make(root, batch_size=8, auxiliary={"other": AuxiliaryData(str(other), share=0.25, disjoint="drawn anew")})
    rows = [row for epoch in range(40) for batch in epochs_of(data, epoch) for row in batch]
    drawn = np.bincount(data.table["dx"].cat.codes.to_numpy()[rows], minlength=len(data.dx_classes))
    np.testing.assert_allclose(data.class_shares(), drawn / drawn.sum(), atol=0.02)
    counts = np.array(data.class_counts())
    np.testing.assert_allclose(counts / counts.sum(), data.class_shares())
    assert not np.allclose(data.class_shares(), make(root, batch_size=8).class_shares(), atol=0.005)


def epochs_of(data: DataModule, epoch: int) -> list[list[int]]:
    loader = data.train_dataloader()
    at(data, done=epoch * len(loader))
    return [batch["index"].tolist() for batch in loader]


def test_a_second_source_with_strange_diagnoses_or_nothing_of_its_own_is_refused(root: Path, other: Path) -> None:
    table = sources.read(root)
    with pytest.raises(InputError, match="every image is one of data.root, too"):
        AuxiliaryData(str(root), share=0.5).read(table)
    fewer = table[table["dx"] != "mel"].assign(dx=lambda t: t["dx"].cat.remove_unused_categories())
    with pytest.raises(InputError, match="diagnoses that the images at data.root do not have: mel"):
        AuxiliaryData(str(other), share=0.5).read(fewer)


def test_shares_have_to_leave_room_and_to_hold_an_image(root: Path) -> None:
    assert images_per_source({}, 8) == [8]
    assert images_per_source({"a": AuxiliaryData("a", 0.25), "b": AuxiliaryData("b", 0.5)}, 8) == [2, 2, 4]
    with pytest.raises(ConfigError, match=r"data.auxiliary.a.share: 0.05 of a batch of 8 is no image"):
        images_per_source({"a": AuxiliaryData("a", 0.05)}, 8)
    with pytest.raises(ConfigError, match="data.auxiliary: together they fill all 8 places"):
        images_per_source({"a": AuxiliaryData("a", 0.5), "b": AuxiliaryData("b", 0.5)}, 8)


GROUPS = {"benign": "rest", "malignant": ["mel", "bcc", "akiec"]}


@pytest.mark.parametrize("kept", ["auto", "off"])
def test_mask_classes_are_derived_at_the_images_size_with_a_cache_and_without(root: Path, kept: str) -> None:
    trimap = Trimap(0.2)
    data = make(root, transforms.none(), mask_classes=trimap, cache=kept)
    assert data.mask_classes == ("skin", "border", "lesion")
    seen = set()
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        for mask, has, row in zip(batch["mask"], batch["has_mask"], batch["index"].tolist(), strict=True):
            seen |= set(mask.unique().tolist())
            if has:
                lesion = reading.read_mask(Path(data.table["mask"][row]))
                assert np.array_equal(mask.numpy(), reading.fit_mask(trimap.of(lesion), SIZE))
    assert seen == {0, 1, 2}


def test_groups_of_diagnoses_are_the_classes_everywhere(root: Path) -> None:
    apart, data = make(root), make(root, diagnoses=GROUPS)
    assert data.dx_classes == ("benign", "malignant")
    ill = apart.table["dx"].isin(GROUPS["malignant"]).to_numpy()
    assert np.array_equal(data.table["dx"].cat.codes.to_numpy(), ill.astype(int))
    assert data.table["dx_original"].tolist() == apart.table["dx"].tolist()
    train = ill[data.rows("train")]
    assert data.class_counts() == [(~train).sum(), train.sum()]
    for batch in data.train_dataloader():
        assert batch["dx"].tolist() == ill[batch["index"].tolist()].astype(int).tolist()
    data.sampler = class_balanced()
    assert data.class_shares() == pytest.approx([0.5, 0.5])


def test_groups_leave_split_hash_data_hash_and_certificate_as_they_are(root: Path) -> None:
    apart, data = make(root), make(root, diagnoses=GROUPS, mask_classes=Trimap())
    assert (data.split_hash, data.data_hash) == (apart.split_hash, apart.data_hash)
    for stage in splits.SPLITS:
        assert np.array_equal(data.rows(stage), apart.rows(stage))
    assert data.certificate() == apart.certificate()
    # A table that has only the groups is another table, of which another split is drawn.
    relabelled = apart.table.assign(dx=data.table["dx"])
    assert splits.find_or_make(relabelled, 5, 0, Path("other")).name != data.split_file.name


def test_groups_hold_for_a_second_source_too(root: Path, other: Path) -> None:
    data = make(
        root,
        diagnoses=GROUPS,
        auxiliary={"more": AuxiliaryData(str(other), share=0.5, disjoint="drawn anew")},
        batch_size=6,
    )
    further = data.table[data.source == 1]
    known = further["dx_original"].dropna()
    assert len(known)
    assert further["dx"].dropna().tolist() == ["malignant" if dx in GROUPS["malignant"] else "benign" for dx in known]


def test_groups_that_do_not_fit_are_one_line(root: Path) -> None:
    with pytest.raises(
        Faults, match=r"^data\.diagnoses\.a: the data have no diagnosis mell; fix: did you mean 'mel'\?$"
    ):
        make(root, diagnoses={"a": ["mell"], "b": "rest"})
    with pytest.raises(Faults, match=r"^data\.diagnoses: 1 groups; fix: "):
        DataModule(str(root), diagnoses={"a": "rest"}, augment=transforms.none(), sampler=Shuffle(), seed=0)


# --- shuffled targets -------------------------------------------------------------------------------------------------


def targets(data: DataModule, part: str) -> dict[int, tuple[int, bytes]]:
    """Diagnosis and mask by row, as an epoch without augmentation shows them."""
    loader = data.train_dataloader() if part == "train" else data.val_dataloader()
    batches = [batch for batch in loader]
    return {
        int(row): (int(dx), mask.numpy().tobytes())
        for batch in batches
        for row, dx, mask in zip(batch["index"], batch["dx"], batch["mask"], strict=True)
    }


@pytest.mark.parametrize(("task", "place"), [("cls", 0), ("seg", 1)])
def test_shuffled_targets_are_those_of_other_training_images(root: Path, task: str, place: int) -> None:
    own = make(root, transforms.none(), batch_size=1)
    mixed = make(root, transforms.none(), batch_size=1, shuffled=task)
    before, after = targets(own, "train"), targets(mixed, "train")
    assert before.keys() == after.keys()
    moved = [row for row in before if before[row][place] != after[row][place]]
    assert len(moved) > len(before) / 2
    assert sorted(value[place] for value in before.values()) == sorted(value[place] for value in after.values())
    assert all(before[row][1 - place] == after[row][1 - place] for row in before), "the other task's stay"
    assert targets(own, "val") == targets(mixed, "val")
    assert mixed.class_counts() == own.class_counts() and mixed.certificate() == own.certificate()


def test_targets_are_shuffled_by_the_seed(root: Path) -> None:
    one, same, other = (make(root, transforms.none(), seed, batch_size=1, shuffled="cls") for seed in (0, 0, 1))
    assert targets(one, "train") == targets(same, "train") != targets(other, "train")


def test_an_image_without_a_mask_stays_without_one(root: Path) -> None:
    mixed = make(root, transforms.none(), batch_size=1, shuffled="seg")
    without = {row for row in range(len(mixed.table)) if not isinstance(mixed.table["mask"][row], str)}
    given = {
        int(row)
        for batch in epochs(mixed, 1)
        for row, has in zip(batch["index"], batch["has_mask"], strict=True)
        if not has
    }
    assert given == without & set(mixed.rows("train").tolist())
    shuffled = mixed._target_rows("mask")
    assert shuffled is not None and mixed._target_rows("dx") is None
    assert all(shuffled[row] == row for row in without) and not without & set(np.delete(shuffled, list(without)))


def test_groups_of_each_row_are_those_of_the_split_also_where_duplicates_are_not_asked_for_again(
    root: Path, other: Path
) -> None:
    Path("pairs.csv").write_text("first,second\nISIC_0000000,ISIC_0000004\nISIC_0000004,ISIC_0000012\n")
    data = make(
        root, duplicates="pairs.csv", auxiliary={"own": AuxiliaryData(str(other), share=0.25, disjoint="drawn anew")}
    )
    assert len(data.groups) == len(data.table) > len(data.split)
    first = data.groups[data.source == 0]
    assert list(first) == list(data.split.set_index("image_id")["group"].loc[data.table["image_id"][data.source == 0]])
    assert first.nunique() == data.table["lesion_id"][data.source == 0].nunique() - 2
    again = make(root, split=str(data.split_file), duplicates="none")  # as evaluation reads a run's split
    assert list(again.groups) == list(first)
    assert make(root, duplicates="none").groups.nunique() == first.nunique() + 2


def test_class_aware_counts_joined_lesions_as_one(root: Path) -> None:
    Path("pairs.csv").write_text("first,second\nISIC_0000000,ISIC_0000004\n")
    data = make(root, duplicates="pairs.csv")
    labels = data._labels(np.arange(len(data.table)))[1]
    places = [int(np.flatnonzero(data.table["image_id"] == f"ISIC_{number:07d}")[0]) for number in (0, 4)]
    assert labels[places[0]] == labels[places[1]]
    assert len(np.unique(labels)) == data.table["lesion_id"].nunique() - 1


def test_why_scores_leak_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(root, split_by="image", allow_leak=True)
    assert "LEAKY: images of one lesion may train and test (data.split_by=image puts them there)" in caplog.text
    assert "no lesion ids" not in caplog.text


def test_one_diagnosis_alone_is_refused_for_cls_and_trains_seg(tmp_path: Path) -> None:
    table = write_own(tmp_path / "own")
    table.assign(dx="nv").to_csv(tmp_path / "own" / "mine.csv", index=False)
    data = make(tmp_path / "own", folds=3)
    prepare([segmentation()], data)
    with pytest.raises(InputError, match=r"every training image is nv.*leave cls out of tasks"):
        prepare([segmentation(), classification()], data)
    table.to_csv(tmp_path / "own" / "mine.csv", index=False)
    prepare([segmentation(), classification()], make(tmp_path / "own", folds=3))


def test_an_augmentation_that_changes_the_size_is_refused(root: Path) -> None:
    import albumentations as A

    data = make(root, Transform([A.RandomCrop(12, 12)]))
    said = r"augment: it makes \(12, 12, 3\) of an image of shape .*; fix: keep the size"
    with pytest.raises(ConfigError, match=said):
        next(iter(at(data, 0).train_dataloader()))
