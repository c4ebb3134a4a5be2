"""Groups of diagnoses: what becomes of a case table, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest
from omegaconf import OmegaConf
from small_runs import compose

from skinmtl.config.diagnosis_groups import Groups, check_groups
from skinmtl.data.diagnosis_groups import group_diagnoses
from skinmtl.data.sources import DX
from skinmtl.errors import Faults


def table(*dx: str | None) -> pd.DataFrame:
    ids = [f"i{i}" for i in range(len(dx))]
    return pd.DataFrame({"image_id": ids, "dx": pd.Categorical(dx, categories=DX)})


def test_groups_are_the_classes_in_their_order_and_rest_is_all_others() -> None:
    of = group_diagnoses(table(*DX, None), {"benign": "rest", "malignant": ["mel", "bcc", "akiec"]})
    assert of["dx"].cat.categories.tolist() == ["benign", "malignant"]
    assert of["dx"].tolist()[:7] == [
        "malignant" if dx in ("akiec", "bcc", "mel") else "benign"
        for dx in ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    ]
    assert of["dx_original"].tolist()[:7] == list(DX)
    assert of["dx"].isna().tolist() == of["dx_original"].isna().tolist() == [False] * 7 + [True]


def test_three_named_groups_need_no_rest() -> None:
    groups = {"b": ["bkl", "df", "vasc"], "a": ["akiec", "bcc"], "c": ["mel", "nv"]}
    of = group_diagnoses(table("nv", "df"), groups)
    assert of["dx"].cat.categories.tolist() == ["b", "a", "c"]
    assert of["dx"].cat.codes.tolist() == [2, 0]


def test_a_number_is_no_name_and_in_quotes_it_is_one() -> None:
    of = pd.DataFrame({"image_id": ["a", "b"], "dx": pd.Categorical(["0", "1"])})
    assert group_diagnoses(of, {"well": ["0"], "sick": ["1"]})["dx"].tolist() == ["well", "sick"]
    for groups, where in (
        ({"well": [0], "sick": ["1"]}, "well: 0"),
        ({"well": ["True"], "sick": [True]}, "sick: True"),
    ):
        with pytest.raises(Faults, match=f"data.diagnoses.{where} is no text.*put it in quotes"):
            check_groups(groups)  # type: ignore[arg-type]
    with pytest.raises(Faults, match="1 is no text, and groups have names; fix: call it by a word, such as class_1"):
        check_groups({1: ["a"], "b": "rest"})  # type: ignore[dict-item]
    check_groups(compose(['data.diagnoses={class_1:["1"],b:rest}']).data.diagnoses)
    check_groups(OmegaConf.create('{"1": ["1"], b: rest}'))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        (
            {"a": ["mel"], "b": ["nv", "mel"]},
            "data.diagnoses.b: mel stands in a already; fix: keep it in one group, once",
        ),
        ({"a": ["mel", "mel"], "b": "rest"}, "data.diagnoses.a: mel twice; fix: keep it in one group, once"),
        ({"a": "rest", "b": "rest"}, "data.diagnoses.b: rest stands in a already; fix: keep it in one group, once"),
        ({"a": "rest"}, "data.diagnoses: 1 groups; fix: name at least two classes, such as benign: rest"),
        ({}, "data.diagnoses: 0 groups; fix: name at least two classes, such as benign: rest"),
        (
            {"a": "mel", "b": "rest"},
            "data.diagnoses.a: 'mel' is no list of diagnoses; fix: give one, such as [mel, bcc]",
        ),
        ({"a": [], "b": "rest"}, "data.diagnoses.a: [] is no list of diagnoses; fix: give one, such as [mel, bcc]"),
    ],
)
def test_groups_that_no_data_could_have_are_refused_in_one_line(groups: Groups, line: str) -> None:
    with pytest.raises(Faults) as caught:
        check_groups(groups)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ({"a": ["mela"], "b": "rest"}, "data.diagnoses.a: the data have no diagnosis mela; fix: did you mean 'mel'?"),
        (
            {"a": ["xyz"], "b": "rest"},
            f"data.diagnoses.a: the data have no diagnosis xyz; fix: the data have {', '.join(DX)}",
        ),
        ({"a": ["mel"], "b": ["nv", "df"]}, "data.diagnoses: in no group: akiec, bcc, bkl, vasc; fix: name them, or"),
    ],
)
def test_groups_that_do_not_fit_the_data_are_refused_in_one_line(groups: Groups, line: str) -> None:
    with pytest.raises(Faults) as caught:
        group_diagnoses(table("mel", "nv"), groups)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
