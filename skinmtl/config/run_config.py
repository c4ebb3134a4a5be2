"""The whole config of a run as one typed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval
from omegaconf import DictConfig, OmegaConf

from skinmtl.config.build import Node
from skinmtl.config.tasks import settle

BESIDE = ("resume", "init_from", "allow_change")  # how a run begins, which is no part of what it is


@dataclass(frozen=True)
class RunConfig:
    """What a run is told: the fields are the top-level keys of every config, their types say what fits.

    A field added here is a key from then on. A `Node` is a part of the run, built by `skinmtl.config.build`; all values
    are plain and resolved.

    Attributes:
        name: the experiment's name.
        seed: the only source of chance: weights, order, augmentation and dropout follow from it.
        tasks: names of what is learned.
        task: the node of each by its name; of a name without one, that of conf/tasks.
        data: the data module; `augment` and `sampler` are handed to it.
        model: the network.
        loss: the loss of each task, by its name; null where the task is not trained.
        weighting: what makes one loss of the tasks' losses.
        gradients: what makes one gradient of the tasks' gradients.
        optim: the optimiser, which lacks its parameters.
        schedule: how the learning rate moves.
        trainer: Lightning's trainer.
        callbacks: Lightning's callbacks by name; null is none.
        logger: a logger beside metrics.csv.
        class_weights: how far cross-entropy, label smoothing and focal loss bring up rare diagnoses; `auto` is `sqrt`
            where neither the sampler nor the loss itself does, else `none`.
        resume: the folder of a run to resume from its last checkpoint, or `auto`: the newest unfinished run of this
            experiment with the same config, else a new one.
        init_from: the folder of a run whose best weights this run starts from.
        keep: which weights are evaluated and used: those of the best validation, or of the last epoch.
        save_every: minutes between saves within an epoch.
        allow_change: resume although values differ that the result depends on.
        test_time_flips: evaluate and predict with test-time augmentation: the mean over an image's four mirror images.
            The validation while training takes the image as it is.
        evaluate: end with scores of the test images; false leaves them, whole, to `skinmtl evaluate`.
    """

    name: str
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    tasks: list[str]
    task: Node
    data: Node
    augment: Node
    sampler: Node
    model: Node
    loss: Node
    weighting: Node
    gradients: Node
    optim: Node
    schedule: Node
    trainer: Node
    callbacks: Node
    logger: Node | None = None
    class_weights: Literal["auto", "none", "sqrt", "balanced"] = "auto"
    resume: str | None = None
    init_from: str | None = None
    keep: Literal["best", "last"] = "best"
    save_every: Annotated[float, Gt(0)] = 10
    allow_change: bool = False
    test_time_flips: bool = False
    evaluate: bool = True

    @classmethod
    def of(cls, cfg: DictConfig) -> RunConfig:
        """Take the values of a composed config, resolved; nothing is checked (see `skinmtl.config.check`)."""
        cfg = cfg.copy()
        settle(cfg)
        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        return cls(**{str(key): value for key, value in plain.items()})

    def as_dict(self) -> dict[str, Any]:
        """Give all values by key, as `.hydra/config.yaml` keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def recorded(self) -> Mapping[str, Any]:
        """Give what the run is, without how it begins: what its checkpoints and loggers carry."""
        return {key: value for key, value in self.as_dict().items() if key not in BESIDE}
