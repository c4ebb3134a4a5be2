"""From a folder on disk to batches: table, split, images, order, augmentation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from annotated_types import Ge, Interval
from numpy.typing import NDArray

from skinmtl.config.diagnosis_groups import Groups, check_groups
from skinmtl.data import cache, lesion_groups, sources, splits
from skinmtl.data.auxiliary import AuxiliaryData, images_per_source
from skinmtl.data.cache import Images
from skinmtl.data.certificate import certificate
from skinmtl.data.dataset import HANGS, Loader, Mix, Samples, _one_thread, collate
from skinmtl.data.diagnosis_groups import group_diagnoses, named_diagnoses
from skinmtl.data.file_hashes import with_digests
from skinmtl.data.mask_classes import BINARY, MaskClasses
from skinmtl.data.mixing import Mixing, Partners
from skinmtl.data.samplers import EpochSampler, Portion, SequentialSampler, Shuffle, Weigh
from skinmtl.data.splits import Split
from skinmtl.data.synthetic.generator import Synthetic
from skinmtl.data.transforms import Transform, none
from skinmtl.distributed import collectives
from skinmtl.errors import ConfigError
from skinmtl.files import digest

logger = logging.getLogger(__name__)
Pixels = Annotated[int, Ge(1)]


class DataModule(pl.LightningDataModule):
    """HAM10000, or any data set in its layouts, as batches.

    Args:
        root: the folder that holds the data set, or a table of the user's own.
        layout: which layout lies there; auto looks.
        masks: a folder of masks from elsewhere, instead of the layout's own.
        lesions: a table of `image_id` and `lesion_id`, for a layout that has no lesion ids.
        synthetic: the synthetic data set that is written at `root` first.
        size: (height, width) in pixels, or one number for a square.
        batch_size: images of a step on each device.
        workers: processes that load images, for each device; 0 loads in the training process. The pixels do not depend
            on it.
        folds: how many folds a split has that is made here.
        fold: which fold is trained and tested.
        split: a split file; None for one that is made from `split_seed` the first time and kept in `split_dir`.
        split_seed: of the split, not of the training.
        split_dir: where splits are kept.
        split_by: image puts images of a lesion in several splits, to show what that does to scores; it wants
            `allow_leak`.
        duplicates: which ids are joined because they are of one lesion: those of files that are the same and of
            HAM10000's pairs, published or found by our audit (known), none, or those of a CSV file with the
            columns first and second.
        allow_leak: whether a layout without lesion ids is read at all.
        cache: auto decodes images once into `cache_dir` where the disk has room.
        cache_dir: where decoded images are kept.
        auxiliary: auxiliary data sets by name, which only train.
        mask_classes: what a pixel can be, as the group mask_classes chooses; null is skin or lesion.
        diagnoses: groups of diagnoses by the group's name, as the group diagnoses chooses: lists of diagnoses, or the
            word rest for all others; null tells all apart. Splits are made by the diagnoses themselves, so that runs
            with other groups share them, and their hash.
        mixing: what mixes two training images into one, as the group mixing chooses; null mixes none.
        shuffled: for negative controls, a task's name: the targets of the training images that have any are shuffled
            among them, by `seed`; those of validation and test stay.
        columns: the column of each task by its name, for `shuffled`; not needed where nothing is trained.
        augment: the augmentation of training images.
        sampler: which training images an epoch has, and in which order.
        seed: of order, augmentation and mixing.
    """

    def __init__(
        self,
        root: str = "data/ham10000",
        layout: Literal["auto"] | sources.Layout = "auto",
        masks: str | None = None,
        lesions: str | None = None,
        synthetic: Synthetic | None = None,
        size: Pixels | tuple[Pixels, Pixels] = (192, 256),
        batch_size: Annotated[int, Ge(1)] = 32,
        workers: Annotated[int, Ge(0)] = 2,
        folds: Annotated[int, Ge(2)] = 5,
        fold: Annotated[int, Ge(0)] = 0,
        split: str | None = None,
        split_seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0,
        split_dir: str = "outputs/splits",
        split_by: Literal["lesion", "image"] = "lesion",
        duplicates: Literal["known", "none"] | str = "known",
        allow_leak: bool = False,
        cache: Literal["auto", "off"] = "auto",
        cache_dir: str = "outputs/.cache",
        auxiliary: Mapping[str, AuxiliaryData] | None = None,
        mask_classes: MaskClasses | None = None,
        diagnoses: Groups | None = None,
        mixing: Mixing | None = None,
        shuffled: str | None = None,
        *,
        augment: Transform,
        sampler: Shuffle,
        seed: int,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.root, self.layout, self.synthetic = Path(root).expanduser(), layout, synthetic
        self.masks, self.lesions = (Path(path).expanduser() if path else None for path in (masks, lesions))
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.batch_size, self.workers = batch_size, workers
        self.folds, self.fold, self.split_seed, self.allow_leak = (folds, fold, split_seed, allow_leak)
        self.cache = cache
        self.cache_dir, self.split_dir = (Path(path).expanduser() for path in (cache_dir, split_dir))
        self.augment, self.sampler, self.seed = augment, sampler, seed
        self.split_by = split_by
        if split_by == "image" and not allow_leak:
            what = "images of one lesion would train and test"
            raise ConfigError("data.split_by", what, "set data.allow_leak=true, too, and have scores marked LEAKY")
        self.auxiliary = dict(auxiliary or {})
        self.duplicates = duplicates
        self.mask_rule = mask_classes or BINARY
        self.mask_classes = tuple(self.mask_rule.names)
        self.dx_groups, self.mixing, self.shuffled = diagnoses, mixing, shuffled
        if diagnoses is not None:
            check_groups(diagnoses)
        self._columns = dict(columns or {})
        self._targets: dict[str, NDArray[Any]] = {}
        self._given = Path(split).expanduser() if split else None
        self._images: Images | None = None

    def prepare_data(self) -> None:
        """Write synthetic data, the split and the cache, once; one process of many runs this.

        Where no cache is kept, every file is decoded once all the same: a broken one is named before training.
        """
        self.write_synthetic()
        self.setup()
        if not self._is_cached:
            self.check_files()

    def check_files(self) -> None:
        """Decode every file, once for each content; Faults names those that cannot be used."""
        cache.check(self.table, self.cache_dir)

    def write_synthetic(self) -> None:
        """Write the synthetic data set, where `synthetic` asks for one."""
        if self.synthetic is not None:
            self.synthetic.write(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the table, the split and where the pixels are; the second call costs nothing."""
        if self._images is not None:
            return
        names = named_diagnoses(self.dx_groups)
        first = sources.read(self.root, self.layout, self.allow_leak, self.masks, self.lesions, names)
        first = with_digests(first, self.cache_dir)
        self.layout = first.attrs["layout"]
        rules = self.duplicates, self.allow_leak, self.cache_dir, names
        auxiliary = {name: source.read(first, *rules) for name, source in self.auxiliary.items()}
        self.auxiliary_facts = {name: source.facts(auxiliary[name]) for name, source in self.auxiliary.items()}
        self.auxiliary_hashes = {name: cache.fingerprint(cases) for name, cases in auxiliary.items()}
        self.leaky = sources.is_leaky(first) or self.split_by == "image"
        self.leaky |= any(facts["leaky"] for facts in self.auxiliary_facts.values())
        if self.leaky:
            why = "there are no lesion ids" if sources.is_leaky(first) else "data.split_by=image puts them there"
            if not sources.is_leaky(first) and self.split_by == "lesion":
                why = "an auxiliary data set has no lesion ids"
            logger.warning("LEAKY: images of one lesion may train and test (%s); scores are too good", why)
        self.data_hash = cache.fingerprint(first)

        self.pairs = lesion_groups.pairs(self.duplicates, first)
        if self.duplicates == "known":
            self.pairs += splits.same_files(first, self.split_dir / f"same_files_{self.data_hash[:12]}.csv")
        grouped, joined = first, self.pairs
        if self.split_by == "image":
            grouped, joined = first.assign(lesion_id=first["image_id"]), []
        if joined:
            logger.info("%d pairs of duplicates (%s) keep their lesions in one split", len(joined), self.duplicates)
        self.split_file = self._given or splits.find_or_make(
            grouped, self.folds, self.split_seed, self.split_dir, joined
        )
        self.split = splits.load(self.split_file)
        splits.check(self.split, grouped, self.split_file, joined, given=self._given is not None)
        self.split_hash = digest(self.split_file)

        tables = [first, *auxiliary.values()]
        self.table = pd.concat(tables, ignore_index=True)
        self.table.attrs = dict(first.attrs)
        self._across = lesion_groups.pairs(self.duplicates, self.table) if self.auxiliary else []
        # What another split file joins counts, too: its duplicates when a run is evaluated, or its patients.
        joins = [*self.pairs, *self._across, *splits.joined(self.split, grouped)]
        # Of each row of the table: its lesion, or the lesions that show one skin, by + in order of name.
        self.groups = lesion_groups.groups(self.table, joins)
        if self.dx_groups is not None:
            self.table = group_diagnoses(self.table, self.dx_groups)
        self.dx_classes: tuple[str, ...] = tuple(self.table["dx"].cat.categories)
        self.source = np.repeat(np.arange(len(tables)), list(map(len, tables)))  # (N,), 0 is data.root
        of_image = self._splits_of_fold(first)
        self._warn_of_identical_files(first, of_image)
        self._split_of_row = np.append(of_image, np.full(len(self.table) - len(first), "train"))
        counts = ", ".join(f"{name} {len(self.rows(name)):,}" for name in splits.SPLITS)
        logger.info("fold %d of %s (sha256 %s): %s", self.fold, self.split_file, self.split_hash[:12], counts)

        self._shuffled_name = self._shuffled_column()
        self._shuffled_rows = self._shuffle()
        known = self.table, self.size
        pixels = cache.get(*known, self.cache_dir, self.mask_rule) if self.cache == "auto" else None
        self._is_cached = pixels is not None
        self._images = Images.of(*known, pixels, self.mask_rule)

    def _warn_of_identical_files(self, first: pd.DataFrame, of_image: NDArray[np.object_]) -> None:
        """Warn of one file in two splits under two lesion ids, where data.duplicates joins no such lesions."""
        split_of = dict(zip(first["image_id"], of_image, strict=True))
        if apart := [pair for pair in lesion_groups.same_files(first) if split_of[pair[0]] != split_of[pair[1]]]:
            what = "%d pairs of images are one file in two splits, such as %s and %s; data.duplicates=%s"
            logger.warning(f"{what} does not join their lesions", len(apart), *apart[0], self.duplicates)

    def is_of(self, data_hash: str) -> bool:
        """Tell whether a data hash, which may be of an older version, is that of the images at data.root."""
        return data_hash == self.data_hash or cache.is_of(data_hash, self._as_read(source=0))

    def _as_read(self, source: int) -> pd.DataFrame:
        """Return the case table of data.root (0) or of all auxiliary data (1), with its own diagnoses."""
        table: pd.DataFrame = self.table[self.source.clip(max=1) == source].reset_index(drop=True)
        return table.assign(dx=table["dx_original"]) if "dx_original" in table else table

    def _shuffled_column(self) -> str | None:
        """The column of `shuffled`; None where nothing is."""
        if self.shuffled is None:
            return None
        column = self._columns.get(self.shuffled)
        if column is None or column not in self.table:
            what = f"there is no task {self.shuffled} whose targets could be shuffled"
            raise ConfigError("data.shuffled", what, f"use one of {', '.join(self._columns)}, or null")
        return column

    def _shuffle(self) -> NDArray[np.int64] | None:
        """For each row, the one whose shuffled target it comes with, (N,); None where nothing is shuffled."""
        column = self._shuffled_name
        if column is None:
            return None
        rows_of = np.arange(len(self.table))
        rows = np.flatnonzero((self._split_of_row == "train") & self.table[column].notna().to_numpy())
        rows_of[rows] = np.random.default_rng(self.seed).permutation(rows)
        what = {"dx": "diagnosis"}.get(column, column)
        logger.info("SHUFFLED: each training image has the %s of another: a negative control", what)
        return rows_of

    def _target_rows(self, column: str) -> NDArray[np.int64] | None:
        """As `_shuffle`, for the targets of one column: None where they stay where they are."""
        return self._shuffled_rows if self._shuffled_name == column else None

    def carry(self, targets: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Have samples carry further targets; `setup` comes first.

        Args:
            targets: by the column that they were made of, then by batch key, (N, ...) for the N rows of the table.
        """
        for column, arrays in targets.items():
            rows_of = self._target_rows(column)
            self._targets |= {key: array if rows_of is None else array[rows_of] for key, array in arrays.items()}

    def _dx(self) -> NDArray[np.int64]:
        """The diagnosis that each row comes with, counted from 0, (N,); none is -1."""
        codes = np.asarray(self.table["dx"].cat.codes, dtype=np.int64)
        rows_of = self._target_rows("dx")
        return codes if rows_of is None else codes[rows_of]

    def rows(self, split: Split, source: int | None = None) -> NDArray[np.int64]:
        """Return the rows of a split in the chosen fold, ascending.

        Args:
            split: train, val or test.
            source: 0 for data.root, 1 and on for auxiliary data sets in their order, None for all.
        """
        wanted = self._split_of_row == split
        return np.flatnonzero(wanted if source is None else wanted & (self.source == source))

    def certificate(self) -> dict[str, Any]:
        """Describe the split, as a run keeps it; see `certificate`."""
        origin = self.duplicates if self.duplicates in ("known", "none") else Path(self.duplicates).name
        first, auxiliary = self._as_read(source=0), self._as_read(source=1)
        pairs = list(dict.fromkeys([*self.pairs, *self._across]))
        return certificate(self.split, first, self.split_hash, pairs, origin, auxiliary, self.auxiliary_facts)

    def class_counts(self, key: str = "dx", classes: int | None = None) -> list[float]:
        """Count the training images of each class, (K,); those of auxiliary data as often as they are seen.

        Args:
            key: the batch key that holds the classes, counted from 0, -1 where missing.
            classes: how many there are; None for those of the diagnosis.
        """
        return [float(count) for count in self._per_epoch(lambda dx, lesion: np.ones(len(dx)), key, classes)]

    def images_per_epoch(self) -> int:
        """Count the images of data.root in an epoch: as many as train, cut to whole batches."""
        first = self._places()[0]
        return len(self.rows("train", source=0)) // first * first

    def class_shares(self, key: str = "dx", classes: int | None = None) -> list[float]:
        """Return the expected share of each class in an epoch, (K,); arguments as `class_counts` has them."""
        counts = self._per_epoch(lambda dx, lesion: self.sampler.weights(dx, lesion) * len(dx), key, classes)
        return [float(share) for share in counts / max(counts.sum(), np.finfo(float).tiny)]

    def _per_epoch(self, weigh: Weigh, key: str, classes: int | None) -> NDArray[np.float64]:
        """Return how often each class comes while data.root is passed once, (K,); `weigh` says it of each image."""
        parts, count = self._parts(), self._places()
        target = self._dx() if key == "dx" else self._targets[key]
        total = np.zeros(len(self.dx_classes) if classes is None else classes)
        for rows, fills in zip(parts, count, strict=True):
            dx, lesion = self._labels(rows)
            passes = (len(parts[0]) / count[0]) / (len(rows) / fills)
            own = target[rows]
            known = own >= 0
            total += passes * np.bincount(own[known], weigh(dx, lesion)[known], minlength=len(total))
        return total

    def _parts(self) -> list[NDArray[np.int64]]:
        """Return the training rows of each source."""
        return [self.rows("train", source) for source in range(1 + len(self.auxiliary))]

    def _places(self) -> list[int]:
        """Return how many images of each source a step takes, on all processes together."""
        return images_per_source(self.auxiliary, self.batch_size * self._world())

    def _labels(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return diagnosis and lesion of some rows, both counted from 0; no diagnosis is -1, joined lesions are one."""
        lesions = np.unique(self.groups.iloc[rows], return_inverse=True)[1]
        return self._dx()[rows], lesions.astype(np.int64)

    def train_dataloader(self) -> Loader:
        """Return augmented batches in the epoch's order, from where training stands; all of the full size."""
        portions = [
            Portion(rows, partial(self.sampler.order, *self._labels(rows)), count)
            for rows, count in zip(self._parts(), self._places(), strict=True)
        ]
        sampler = EpochSampler(portions, self.seed, self._start, self._rank(), self._world())
        self._train_batches = sampler.batches
        if sampler.batches == 0:
            # A batch of another size than the rest would disturb batch norm, so the last partial one is left out.
            each = len(portions[0].rows) // self._world()
            what = f"{self.batch_size} is more than the {each} training images of a process"
            raise ConfigError("data.batch_size", what, "use a smaller one")
        return self._loader(self._samples(self.augment, self._mix()), sampler)

    def val_dataloader(self) -> Loader:
        """Return validation images as they are, each once, in table order."""
        sampler = SequentialSampler(self.rows("val"), self._rank(), self._world(), self.batch_size)
        return self._loader(self._samples(none()), sampler)

    def _mix(self) -> Mix | None:
        if self.mixing is None:
            return None
        rows = self.rows("train", source=0)
        dx, lesion = self._labels(rows)
        known = dx >= 0
        if not known.any():
            raise ConfigError("data.mixing", "no training image has a diagnosis to be mixed", "use mixing=none")
        edges = np.cumsum(self.sampler.weights(dx, lesion)[known])
        return Mix(self.mixing, Partners(rows[known], edges), sum(self._places()))

    def _samples(self, transform: Transform, mix: Mix | None = None) -> Samples:
        assert self._images is not None, "setup() comes first"
        rows_of = self._target_rows("mask")
        return Samples(self._images, self._dx(), transform, self.seed, mix, rows_of, self._targets)

    def _loader(self, samples: Samples, sampler: EpochSampler | SequentialSampler) -> Loader:
        return Loader(
            samples,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            persistent_workers=self.workers > 0,
            timeout=HANGS if self.workers else 0,
        )

    def _start(self) -> tuple[int, int]:
        """Return epoch and batches of it already done, from the trainer's own count, which a checkpoint restores."""
        if self.trainer is None:
            return 0, 0
        limit = self.trainer.limit_train_batches
        # Counted here: the trainer's own number of batches is infinite when the first epoch begins.
        each = self._train_batches if limit is None else _limited(self._train_batches, limit)
        done: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return divmod(done, max(each, 1))

    def _rank(self) -> int:
        return collectives.rank() if self.trainer is None else self.trainer.global_rank

    def _world(self) -> int:
        return collectives.world_size() if self.trainer is None else self.trainer.world_size

    def _splits_of_fold(self, first: pd.DataFrame) -> NDArray[np.object_]:
        """Return the split of each image at data.root in the chosen fold."""
        folds = [name for name in self.split.columns if name.startswith("fold_")]
        if f"fold_{self.fold}" not in folds:
            raise ConfigError(
                "data.fold", f"{self.fold}, but {self.split_file} has {', '.join(folds)}", "take one of them"
            )
        of_image = self.split.set_index("image_id")[f"fold_{self.fold}"]
        if empty := [name for name in splits.SPLITS if name not in set(of_image)]:
            what = f"fold_{self.fold} has no {' and no '.join(empty)} images"
            raise ConfigError("data.split", f"{self.split_file}: {what}", "mark some train, some val, some test")
        return of_image.reindex(first["image_id"]).to_numpy(dtype=object)


def _limited(batches: int, limit: float) -> int:
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
