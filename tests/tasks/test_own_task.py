"""A task of a kind that the package does not know, several yes or no questions at once, from a module of the user's."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import SMALL, train

from skinmtl.cli import commands
from skinmtl.runs import checkpoints

PACKAGE = Path(__file__).parents[2] / "skinmtl"

KIND = '''
"""Several yes or no questions about an image, each a column of the table; some cells are blank."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric as Counter

from skinmtl.losses import mean_over_labelled
from skinmtl.tasks.base import Task
from skinmtl.tasks.resampling import mean
from skinmtl.tasks.scoring import Metric, Scoring


class Questions(Task):
    score = "share_right"
    logged = {"share_right": "max"}

    def __init__(self, columns: list[str], *, name: str) -> None:
        super().__init__(name=name)
        self.columns = columns

    column = property(lambda self: self.columns[0])
    keys = property(lambda self: (self.name,))
    outputs = property(lambda self: len(self.columns))

    def learn(self, data):
        self.facts = {"classes": list(self.columns)}

    def target(self, table):
        answers = table[self.columns].apply(lambda cells: cells.map({"yes": 1, "no": 0}))
        return {self.name: answers.fillna(-1).to_numpy(dtype=np.int64)}

    def truth(self, case, shape, data):
        answers = {name: case[name] for name in self.columns}
        return None if any(not isinstance(answer, str) for answer in answers.values()) else answers

    def labelled(self, batch):
        return (batch[self.name] >= 0).any(1)

    def seen(self, batch):
        return {**batch, "answers": batch[self.name]}

    def metric(self):
        return ShareRight()

    def count(self, metric, logits, batch):
        answers = batch[self.name]
        metric.update(((logits > 0) == (answers > 0))[answers >= 0])

    def probabilities(self, logits):
        return logits.double().sigmoid()

    def read(self, values, shape):
        return Answers(dict(zip(self.columns, values.tolist(), strict=True)))

    def scoring(self):
        return QuestionsScoring(self.name, self.columns)


@dataclass(frozen=True)
class Answers:
    probabilities: dict


class ShareRight(Counter):
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "all"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, right):
        self.right += right.sum()
        self.all += right.numel()

    def compute(self):
        return {"share_right": self.right / self.all.clamp(min=1)}


class YesNo(nn.Module):
    def forward(self, logits, batch):
        has = batch["answers"] >= 0
        costs = F.binary_cross_entropy_with_logits(logits, batch["answers"].clamp(min=0).float(), reduction="none")
        return mean_over_labelled((costs * has).sum(1) / has.sum(1).clamp(min=1), has.any(1))


def right(read):
    truth, p = read
    return mean(np.where(np.isfinite(truth), (p > 0.5) == (truth > 0.5), np.nan).mean(1))


class QuestionsScoring(Scoring):
    short = "accuracy"
    metrics = {"mean_share_right": Metric("Questions answered right", right, headline=3)}

    def __init__(self, name: str, columns: list[str], title: str | None = None) -> None:
        super().__init__(name, title)
        self.columns = list(columns)

    def arguments(self):
        return {"name": self.name, "columns": self.columns}

    @property
    def truth(self):
        return f"{self.name}_{self.columns[0]}_true_value"

    def row(self, prediction, truth):
        cells = {}
        for name in self.columns:
            cells[f"{self.name}_{name}_true_value"] = np.nan if truth is None else float(truth[name] == "yes")
            cells[f"{self.name}_prob_{name}"] = prediction.probabilities[name]
        return cells

    def is_in(self, table):
        return self.truth in table

    def needed(self, table):
        return []

    def numbers(self, table):
        ours = (f"{self.name}_{name}_true_value" for name in self.columns)
        return [*ours, *(f"{self.name}_prob_{name}" for name in self.columns)]

    def read(self, table):
        of = lambda form: table[[form.format(self.name, name) for name in self.columns]].to_numpy(dtype=float)
        return of("{}_{}_true_value"), of("{}_prob_{}")

    def predicted(self):
        return [f"{self.name}_{name}" for name in self.columns]

    def write(self, prediction, image, stem, out):
        return {f"{self.name}_{name}": "yes" if p > 0.5 else "no" for name, p in prediction.probabilities.items()}
'''


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_a_task_of_a_kind_of_ones_own_is_trained_scored_reported_and_predicted(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(PACKAGE)
    (tmp_path / "questions_of_mine.py").write_text(KIND)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SKINMTL_ALLOW", "questions_of_mine")
    monkeypatch.chdir(tmp_path)

    table = pd.read_csv(synthetic_root / "HAM10000_metadata.csv", dtype=str).drop(columns="dataset")
    table["image"] = table["image_id"].map({path.stem: str(path) for path in synthetic_root.rglob("*.jpg")})
    table["mask"] = table["image_id"].map({p.stem.split("_seg")[0]: str(p) for p in synthetic_root.rglob("*.png")})
    draw = np.random.default_rng(0)
    for name in ("network", "streaks", "veil"):
        table[name] = draw.choice(["yes", "no", ""], len(table), p=[0.5, 0.4, 0.1])
    table.to_csv(tmp_path / "mine.csv", index=False)

    task = "+task.marks={_target_:questions_of_mine.Questions,columns:[network,streaks,veil]}"
    words = [task, "+loss.marks._target_=questions_of_mine.YesNo", "+weighting.marks=0.5", "gradients=pcgrad"]
    run = train(tmp_path / "run", tmp_path / "mine.csv", [*SMALL, *words])
    facts = checkpoints.load(run.checkpoint())["skinmtl"]
    assert (
        facts["tasks"] == ["seg", "cls", "marks"]
        and "network.marks_head.3.weight" in checkpoints.load(run.checkpoint())["state_dict"]
    )
    metrics = pd.read_csv(run.path / "metrics.csv")
    assert metrics["val/marks/share_right"].notna().any() and (metrics["weight/marks"].dropna() == 0.5).all()

    rows = run.predictions()
    test = rows[(rows["split"] == "test") & rows["marks_network_true_value"].notna()]
    p = test[[f"marks_prob_{name}" for name in ("network", "streaks", "veil")]].to_numpy()
    true = test[[f"marks_{name}_true_value" for name in ("network", "streaks", "veil")]].to_numpy()
    said = json.loads((run.path / "scores.json").read_text())["parts"]["test"]["scores"]["marks"]["mean_share_right"]
    assert said["value"] == pytest.approx(((p > 0.5) == (true > 0.5)).mean())
    assert 0 < len(test) < (rows["split"] == "test").sum() and said["low"] <= said["value"] <= said["high"]
    assert "Questions answered right" in (run.path / "report.html").read_text(encoding="utf-8")

    image = next(synthetic_root.rglob("*.jpg"))
    assert commands.main(["predict", str(run.path), str(image), "--out", "new"]) == 0
    answers = pd.read_csv("new/predictions.csv")
    assert set(answers.loc[0, ["marks_network", "marks_streaks", "marks_veil"]]) <= {"yes", "no"}
    assert digest(PACKAGE) == before
    sys.modules.pop("questions_of_mine", None)
