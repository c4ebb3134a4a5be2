from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import ham10000_table

from skinmtl.data import certificate, lesion_groups, splits
from skinmtl.errors import Faults, InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return ham10000_table()


def by_loop(table: pd.DataFrame, pairs: list[tuple[str, str]]) -> dict[str, set[str]]:
    """The images that share a group with each, found by growing sets until nothing changes."""
    lesion = dict(zip(table["image_id"], table["lesion_id"], strict=True))
    together = {name: {name} for name in lesion.values()}
    for _ in pairs:
        for first, second in pairs:
            both = together[lesion[first]] | together[lesion[second]]
            for name in both:
                together[name] = both
    return together


def some_pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Nine pairs: apart, in a chain, in a circle, within one lesion."""
    singles = table.drop_duplicates("lesion_id")["image_id"].tolist()
    chain = [(singles[i], singles[i + 1]) for i in range(20, 24)]
    within = table[table["lesion_id"].duplicated(keep=False)].sort_values("lesion_id")["image_id"].tolist()[:2]
    return [*zip(singles[:3], singles[10:13], strict=True), *chain, (singles[24], singles[20]), (within[0], within[1])]


def test_groups_are_those_of_a_plain_loop(table: pd.DataFrame) -> None:
    pairs = some_pairs(table)
    together = by_loop(table, pairs)
    names = lesion_groups.groups(table, pairs)
    for lesion, group in zip(table["lesion_id"], names, strict=True):
        assert group == "+".join(sorted(together[lesion]))
    assert names.nunique() == table["lesion_id"].nunique() - 3 - 4
    assert lesion_groups.groups(table, []).tolist() == table["lesion_id"].tolist()


def test_an_image_without_a_lesion_id_is_a_lesion_of_its_own() -> None:
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "lesion_id": ["L", None, None]})
    assert lesion_groups.groups(table, [("a", "c")]).tolist() == ["L+c", "b", "L+c"]


def test_the_audits_pairs_are_those_of_its_answer_and_are_known_beside_the_published() -> None:
    answer = pd.read_csv(ROOT / "experiments" / "leak_audit" / "duplicates.csv")
    assert list(zip(answer["first"], answer["second"], strict=True)) == list(lesion_groups.AUDITED)
    published, audited, known = (
        {frozenset(pair) for pair in pairs}
        for pairs in (lesion_groups.PUBLISHED, lesion_groups.AUDITED, lesion_groups.KNOWN)
    )
    assert known == published | audited and len(published & audited) == 11
    assert len(lesion_groups.KNOWN) == len(known) == 18 + 35 - 11


def test_published_pairs_are_18_of_36_images_and_count_where_both_are(table: pd.DataFrame) -> None:
    names = [name for pair in lesion_groups.PUBLISHED for name in pair]
    assert len(lesion_groups.PUBLISHED) == 18 and len(set(names)) == 36
    here = table.assign(image_id=[*names[:3], *table["image_id"][3:]])
    assert lesion_groups.pairs("known", here) == [lesion_groups.PUBLISHED[0]]
    assert lesion_groups.pairs("none", here) == lesion_groups.pairs("known", table) == []


def test_pairs_of_a_file(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("﻿second,kind,first\nISIC_0000001,copy,ISIC_0000000\nelsewhere,copy,ISIC_0000000\n")
    assert lesion_groups.pairs(str(path), table) == [("ISIC_0000000", "ISIC_0000001")]
    path.write_text("first,second,\nISIC_0000000.jpg,ISIC_0000001.JPG,\n")  # with endings, and a comma too many
    assert lesion_groups.pairs(str(path), table) == [("ISIC_0000000", "ISIC_0000001")]
    path.write_text("first,second\n")  # what an audit writes that has found nothing
    assert lesion_groups.pairs(str(path), table) == []
    path.write_text("first,second\n24306,25030\n24306,x\n")
    with pytest.raises(InputError, match=r"none of its 2 pairs is of images at data\.root, the first is 24306"):
        lesion_groups.pairs(str(path), table)
    path.write_text("first,second\nISIC_0000000,ISIC_0000001,\n")
    with pytest.raises(Faults, match=r"not the header's 2 cells: row 2 \(3 cells\)"):
        lesion_groups.pairs(str(path), table)
    path.write_text("one,second\na,b\n")
    with pytest.raises(InputError, match="no column first; fix: give known, none, or a CSV file"):
        lesion_groups.pairs(str(path), table)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        lesion_groups.pairs(str(path), table)
    with pytest.raises(InputError, match=r"data\.duplicates=knwon: no such file"):
        lesion_groups.pairs("knwon", table)


def test_a_split_keeps_duplicates_together_and_one_without_them_does_not(table: pd.DataFrame) -> None:
    singles = table.drop_duplicates("lesion_id")["image_id"].tolist()
    pairs = list(zip(singles[:20], singles[20:40], strict=True))  # 20 planted pairs under two lesion ids
    merged = splits.make_split(table, 5, 0, pairs)
    splits.check(merged, table, pairs=pairs)
    for fold in (f"fold_{number}" for number in range(5)):
        side = dict(zip(merged["image_id"], merged[fold], strict=True))
        assert all(side[first] == side[second] for first, second in pairs)

    with pytest.raises(Faults, match=r"fold_0: \d+ groups of duplicates in more than one split, such as HAM_\d+\+HAM_"):
        splits.check(splits.make_split(table, 5, 0), table, pairs=pairs)


def test_duplicates_make_another_split_file_and_none_the_one_there_was(table: pd.DataFrame, tmp_path: Path) -> None:
    singles = table.drop_duplicates("lesion_id")["image_id"].tolist()
    plain = splits.find_or_make(table, 5, 0, tmp_path)
    assert splits.find_or_make(table, 5, 0, tmp_path, []) == plain
    assert splits.find_or_make(table, 5, 0, tmp_path, [(singles[0], singles[1])]) != plain


def test_a_certificate_counts_what_a_plain_loop_counts(table: pd.DataFrame) -> None:
    singles = table[table["dx"] == "df"].drop_duplicates("lesion_id")["image_id"].tolist()
    other = table[table["dx"] == "mel"].drop_duplicates("lesion_id")["image_id"].tolist()
    pairs = [(singles[0], singles[1]), (singles[2], other[0])]
    split = splits.make_split(table, 5, 0, pairs)
    found = certificate.certificate(split, table, "abc", pairs, "known")

    assert found["split_sha256"] == "abc" and found["lesion_ids"]
    assert (found["images"], found["lesions"], found["groups"]) == (10015, 7470, 7468)
    assert found["duplicates"]["from"] == "known" and len(found["duplicates"]["pairs"]) == 2
    assert sorted(group["dx"] for group in found["duplicates"]["merged"]) == [["df"], ["df", "mel"]]
    assert list(found["folds"]) == [f"fold_{fold}" for fold in range(5)]
    for name, fold in found["folds"].items():
        assert fold["lesions_on_two_sides"] == fold["groups_on_two_sides"] == 0
        assert fold["test_images_with_a_sibling_in_training"]["here"] == 0
        for stage in splits.SPLITS:
            rows = table[split[name] == stage]
            assert fold[stage]["images"] == len(rows)
            assert fold[stage]["lesions"] == rows["lesion_id"].nunique()
            for dx, count in fold[stage]["classes"].items():
                assert count["images"] == (rows["dx"] == dx).sum()
                assert count["share"] == pytest.approx((rows["dx"] == dx).mean(), abs=1e-4)


def test_a_certificate_of_a_torn_split_says_so(table: pd.DataFrame) -> None:
    by_image = splits.make_split(table.assign(lesion_id=table["image_id"]), folds=5, seed=0)
    fold = certificate.certificate(by_image, table, "abc")["folds"]["fold_0"]
    assert fold["lesions_on_two_sides"] > 500
    here = fold["test_images_with_a_sibling_in_training"]["here"]
    dealt = fold["test_images_with_a_sibling_in_training"]["split_by_image"]
    assert here == pytest.approx(dealt["mean"], rel=0.1)  # shuffled singly, as that split was


def test_a_certificate_counts_further_images_as_training(table: pd.DataFrame) -> None:
    split = splits.make_split(table, folds=5, seed=0)
    test = table[split["fold_0"] == "test"].drop_duplicates("lesion_id")
    again, paired = test.iloc[0], test.iloc[1]
    further = pd.DataFrame({"image_id": ["a", "b", "c"], "lesion_id": [again["lesion_id"], "B", None]})
    pairs = [(paired["image_id"], "b")]
    fold = certificate.certificate(split, table, "abc", pairs, "known", further)["folds"]["fold_0"]
    assert (fold["lesions_on_two_sides"], fold["groups_on_two_sides"]) == (1, 2)
    met = table["lesion_id"].isin([again["lesion_id"], paired["lesion_id"]]).sum()
    assert fold["test_images_with_a_sibling_in_training"]["here"] == met


def test_siblings_are_those_that_a_plain_loop_counts(table: pd.DataFrame) -> None:
    groups = table["lesion_id"].tolist()
    ours = certificate.count_siblings(groups, train=7000, test=2000, seeds=3)
    for seed in range(3):
        order = np.random.RandomState(seed).permutation(len(groups))
        trained = {groups[place] for place in order[:7000]}
        assert ours[seed] == sum(groups[place] in trained for place in order[7000:9000])
    assert certificate.count_siblings(range(100), train=80, test=20).max() == 0  # one image a lesion leaves none
