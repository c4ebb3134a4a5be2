"""Mixed images: their masks, their shares, their losses, and that they are functions of seed, epoch and place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kinds import classification
from layouts import make_image, write_all_but_a_mask
from scipy.stats import beta
from small_runs import SMALL, compose, train
from test_datamodule import at, here, make, same  # noqa: F401  (`here` is a fixture that every test uses)
from torch.nn import functional as F

from skinmtl.data import transforms
from skinmtl.data.mask_classes import Trimap
from skinmtl.data.mixing import CutMix, Mixing, Mixup, Partners
from skinmtl.data.samplers import class_balanced
from skinmtl.errors import Faults
from skinmtl.losses import CrossEntropy
from skinmtl.training.dry_run import checked
from skinmtl.types import Sample

KINDS: dict[str, type[Mixup] | type[CutMix]] = {"mixup": Mixup, "cutmix": CutMix}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """63 images of 42 lesions; the first has no mask."""
    return write_all_but_a_mask(tmp_path_factory.mktemp("data"))


def sample(seed: int, dx: int, size: tuple[int, int] = (24, 32), has_mask: bool = True) -> Sample:
    """An image whose red shows its mask: lesion below 128."""
    image, mask = make_image(seed, size)
    return Sample(image=image, mask=mask // 255 * has_mask, has_mask=has_mask, dx=dx, index=seed)


def drawn(mixing: Mixing, own: Sample, other: Sample, seed: int) -> tuple[Sample, float]:
    height, width = own["mask"].shape
    share = mixing.share((height, width), seed, 0, 0)
    return mixing.pair(own, other, share, mixing.rng(seed, 0, 0)), share


def test_a_pasted_mask_lies_where_the_pasted_image_lies() -> None:
    own, other = sample(1, dx=2), sample(2, dx=5)
    torn = 0
    for seed in range(40):
        mixed, share = drawn(CutMix(), own, other, seed)
        assert np.array_equal(mixed["mask"] == 1, mixed["image"][..., 0] < 128)
        pasted = (mixed["image"] != own["image"]).any(2)
        rows, columns = np.nonzero(pasted)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert np.array_equal(mixed["image"][box], other["image"][box])
        assert np.array_equal(mixed["mask"][box], other["mask"][box])
        # Noise may be equal at a pixel of the rectangle's rim, no more.
        assert 1 - pasted[box].size / pasted.size == pytest.approx(share, abs=0.02)
        assert (mixed["dx"], mixed["dx_other"], mixed["has_mask"]) == (2, 5, True)
        torn += not np.array_equal(own["mask"] == 1, mixed["image"][..., 0] < 128)
    assert torn > 20, "with the image's own mask kept most images would be torn from their masks"


def test_a_share_of_pixels_is_the_share_of_the_diagnosis() -> None:
    own = Sample(image=np.zeros((37, 53, 3), np.uint8), mask=np.zeros((37, 53), np.uint8), has_mask=True, dx=0, index=0)
    other: Sample = {**own, "image": np.full((37, 53, 3), 9, np.uint8), "dx": 1}
    shares = []
    for seed in range(60):
        mixed, share = drawn(CutMix(), own, other, seed)
        assert (mixed["image"] == 0).all(2).mean() == pytest.approx(share, abs=1e-12)
        shares.append(share)
    assert min(shares) < 0.6 and max(shares) > 0.9


def test_mixup_is_the_weighted_mean_and_leaves_no_mask() -> None:
    own, other = sample(1, dx=2), sample(2, dx=5)
    mixed, share = drawn(Mixup(), own, other, 3)
    expected = share * own["image"].astype(float) + (1 - share) * other["image"]
    assert np.abs(mixed["image"] - expected).max() <= 0.5 + 1e-4
    assert (mixed["dx"], mixed["dx_other"], mixed["has_mask"]) == (2, 5, False)
    assert not mixed["mask"].any()


def test_a_share_that_no_pixel_would_show_keeps_the_mask() -> None:
    own, other = sample(1, dx=2), sample(2, dx=5)
    assert Mixup().pair(own, other, 1 - 0.4 / 255, np.random.default_rng(0)) is own
    mixed = Mixup().pair(own, other, 1 - 2 / 255, np.random.default_rng(0))
    assert not mixed["has_mask"] and not np.array_equal(mixed["image"], own["image"])


def test_a_mask_is_not_mixed_with_a_missing_one() -> None:
    own, blank = sample(1, dx=2), sample(2, dx=5, has_mask=False)
    for first, second in ((own, blank), (blank, own)):
        assert drawn(CutMix(), first, second, 0)[0] is first
    assert drawn(CutMix(), blank, sample(3, dx=1, has_mask=False), 0)[0]["dx_other"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_stay_as_they_are(kind: str) -> None:
    own, other = sample(1, dx=2), sample(2, dx=5)
    for one in (own, other):
        one["image"].setflags(write=False)
        one["mask"].setflags(write=False)
    mixed, _ = drawn(KINDS[kind](), own, other, 0)
    assert "dx_other" not in own and "dx_other" in mixed


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_those_of_a_folded_beta_distribution(alpha: float) -> None:
    shares = [
        Mixup(alpha).share((8, 8), seed, epoch, step) for seed in range(10) for epoch in range(10) for step in range(20)
    ]
    assert len(set(shares)) > 0.99 * len(shares)
    assert min(shares) >= 0.5
    for q in (0.6, 0.75, 0.95):
        expected = beta.cdf(q, alpha, alpha) - beta.cdf(1 - q, alpha, alpha)
        assert np.mean(np.array(shares) <= q) == pytest.approx(expected, abs=0.04)
    assert np.median(shares) != pytest.approx(
        np.median([Mixup(3.0).share((8, 8), s, 0, 0) for s in range(500)]), abs=0.05
    )


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_the_loss_of_mixed_diagnoses_is_torchs_for_soft_targets(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((9, 4), generator=draw)
    dx, other = (torch.randint(0, 4, (9,), generator=draw) for _ in range(2))
    task = classification(CrossEntropy(class_counts=[3, 1, 5, 2]), "abcd")
    batch = {"dx": dx, "dx_other": other, "share": torch.tensor(share)}
    soft = share * F.one_hot(dx, 4) + (1 - share) * F.one_hot(other, 4)
    assert float(task(logits, batch)) == pytest.approx(float(F.cross_entropy(logits, soft)), rel=1e-6)
    hard = float(task(logits, {"dx": dx}))
    assert hard == pytest.approx(float(F.cross_entropy(logits, dx)), rel=1e-6)
    assert (float(task(logits, batch)) == pytest.approx(hard, rel=1e-4)) == (share == 1)


def test_the_gradient_of_mixed_diagnoses_is_right_and_missing_ones_count_nothing() -> None:
    task = classification(CrossEntropy(class_counts=[3, 1, 5, 2], class_weights="balanced"), "abcd")
    batch = {
        "dx": torch.tensor([0, -1, 3]),
        "dx_other": torch.tensor([2, -1, 3]),
        "share": torch.tensor(0.7, dtype=torch.float64),
    }
    logits = torch.randn((3, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    task(logits, batch).backward()
    assert logits.grad is not None
    assert not logits.grad[1].any() and logits.grad[0].any()
    step = 1e-2
    for place in ((0, 0), (0, 2), (2, 3)):
        up, down = (logits.detach().clone() for _ in range(2))
        up[place] += step
        down[place] -= step
        slope = (float(task(up, batch)) - float(task(down, batch))) / (2 * step)
        assert float(logits.grad[place]) == pytest.approx(slope, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batches_are_functions_of_seed_epoch_and_place(root: Path, kind: str) -> None:
    options = {"mixing": KINDS[kind](p=0.7), "batch_size": 2}
    whole = list(at(make(root, **options), 0).train_dataloader())
    assert same(list(at(make(root, **options, workers=2), 0).train_dataloader()), whole)
    assert same(list(at(make(root, **options), 5).train_dataloader()), whole[5:])
    ranks = [list(at(make(root, **options | {"batch_size": 1}), 0, rank=r, world=2).train_dataloader()) for r in (0, 1)]
    for ours, *parts in zip(whole, *ranks, strict=True):
        for key in ("image", "mask", "has_mask", "dx", "dx_other", "index"):
            assert torch.equal(torch.cat([part[key] for part in parts]), ours[key]), key
        assert all(part["share"] == ours["share"] for part in parts)
    later = list(at(make(root, **options), len(whole)).train_dataloader())
    assert [float(batch["share"]) for batch in later] != [float(batch["share"]) for batch in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_mixed_is_said_and_nothing_else_changes(root: Path, kind: str) -> None:
    off = list(make(root, transforms.none()).train_dataloader())
    data = make(root, transforms.none(), mixing=KINDS[kind](p=0.5), mask_classes=Trimap(0.1))
    bare = list(make(root, transforms.none(), mask_classes=Trimap(0.1)).train_dataloader())
    assert all("share" not in batch and "dx_other" not in batch for batch in off)
    mixed = kept = 0
    for ours, theirs in zip(data.train_dataloader(), bare, strict=True):
        assert torch.equal(ours["dx"], theirs["dx"]) and torch.equal(ours["index"], theirs["index"])
        assert set(ours["mask"].unique().tolist()) <= {0, 1, 2}
        for i in range(4):
            if torch.equal(ours["image"][i], theirs["image"][i]):
                assert torch.equal(ours["mask"][i], theirs["mask"][i]) and ours["has_mask"][i] == theirs["has_mask"][i]
                kept += 1
            else:
                assert bool(ours["has_mask"][i]) == (kind == "cutmix" and bool(theirs["has_mask"][i]))
                mixed += 1
    assert mixed > 8 and kept > 8
    assert same(list(data.val_dataloader()), list(make(root, mask_classes=Trimap(0.1)).val_dataloader()))


def test_partners_are_drawn_as_the_sampler_draws() -> None:
    partners = Partners(np.array([4, 7, 9]), np.cumsum([0.5, 0.0, 0.25]))
    rng = np.random.default_rng(0)
    rows = [partners.sample(rng) for _ in range(3000)]
    assert set(rows) == {4, 9}
    assert np.mean(np.array(rows) == 4) == pytest.approx(2 / 3, abs=0.03)


def test_a_balanced_sampler_balances_what_is_mixed_in(root: Path) -> None:
    data = make(root, diagnoses={"rest": "rest", "mel": ["mel"]}, mixing=Mixup(p=1.0))
    data.sampler = class_balanced()
    mix = data._mix()
    assert mix is not None
    dx = data.table["dx"].cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    drawn_dx = [dx[mix.partners.sample(rng)] for _ in range(2000)]
    assert np.mean(drawn_dx) == pytest.approx(0.5, abs=0.04)
    assert set(mix.partners.rows) <= set(data.rows("train"))


def test_a_run_trains_with_mixed_images(synthetic_root: Path, tmp_path: Path) -> None:
    done = train(
        tmp_path / "run", synthetic_root, [*SMALL, "mixing=cutmix", "mask_classes=trimap", "data.mixing.p=1.0"]
    )
    assert done.info()["status"] == "finished"


@pytest.mark.slow
def test_mixing_is_refused_where_there_is_nothing_to_mix() -> None:
    for words, line in (
        (
            ["mixing=mixup", "tasks=[seg]", "loss/cls=none"],
            r"data\.mixing: tasks are \['seg'\], without targets to mix",
        ),
        (["mixing=mixup", "data.mixing.p=0"], r"data\.mixing\.p: 0 does not fit; fix: it should be greater than 0"),
        (["mixing=cutmix", "data.mixing.alpha=0"], r"data\.mixing\.alpha: 0 does not fit"),
    ):
        with pytest.raises(Faults, match=line):
            checked(compose(words))
    checked(compose(["mixing=mixup"]))
