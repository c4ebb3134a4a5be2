"""What of Lightning and of torch's optimisers works in a run, by name; and of the rest why not, and what to use.

Both lists together are everything that the versions we stand on have; `tests/config/test_allowlist.py` trains with each
of the first, and fails for a class or an argument that is new and in neither.
"""

from __future__ import annotations

from collections.abc import Mapping

Reason = tuple[str, str]  # what is wrong with it, and what to do instead

CALLBACKS = ("EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor", "RichModelSummary")
OPTIMISERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"),
    "SGD",
)
TRAINER = (
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "max_epochs", "min_epochs"),
    *("limit_train_batches", "limit_val_batches", "check_val_every_n_epoch", "log_every_n_steps"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm"),
    *("deterministic", "benchmark", "inference_mode", "profiler", "detect_anomaly"),
)
# The trainer's arguments that the run itself gives.
GIVEN = (
    *("callbacks", "logger", "plugins", "use_distributed_sampler", "num_sanity_val_steps", "enable_model_summary"),
    *("default_root_dir", "enable_progress_bar", "enable_checkpointing"),
)
PRECISIONS = ("auto", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")
NOT_PRECISIONS = dict.fromkeys(("16-true", "bf16-true"), "would round losses and scores, too")
NOT_PRECISIONS |= dict.fromkeys(("64", "64-true"), "does not resume to the same weights")
PROFILERS = ("simple", "advanced")

_LOOK = "for a first look use trainer.max_epochs=1 trainer.limit_train_batches=2 trainer.limit_val_batches=2"
_LENGTH = "use trainer.max_epochs, and trainer.limit_train_batches for shorter epochs"
_BAR: Reason = ("a run has its own progress bar", "remove it")
_ABSTRACT: Reason = ("it does nothing by itself", "write a class on it, and admit its package with SKINMTL_ALLOW")
_KEPT: Reason = ("a run keeps its best and its last checkpoint itself", "use keep=best or keep=last")
_EVALUATED: Reason = ("evaluation reads every image, without the trainer", "remove it")
_SEARCH = "a run and its record have one value from the first step to the last"

NOT_TRAINER: Mapping[str, Reason] = {
    "fast_dev_run": ("it switches off checkpoints and loggers, without which there is no run", _LOOK),
    "overfit_batches": (
        "it validates on training images, and in an order of its own",
        "to see a few images learnt by heart give a table of them, data=csv data.root=<few.csv>, and augment=none",
    ),
    "max_steps": ("the learning rate's schedule ends with the last epoch, not before", _LENGTH),
    "max_time": ("the learning rate's schedule ends with the last epoch, not before", _LENGTH),
    "min_steps": ("it would stop a run within an epoch", "use trainer.min_epochs"),
    "val_check_interval": ("a run validates between epochs", "use trainer.check_val_every_n_epoch"),
    "limit_test_batches": _EVALUATED,
    "limit_predict_batches": _EVALUATED,
    "barebones": ("it switches off checkpoints and loggers, without which there is no run", "use +trainer.profiler"),
    "reload_dataloaders_every_n_epochs": ("the order of images follows from seed and epoch already", "remove it"),
    "enable_autolog_hparams": ("the whole config is kept in .hydra/config.yaml", "remove it"),
    "model_registry": ("a run's checkpoints stay in its folder", "remove it"),
}
NOT_CALLBACKS: Mapping[str, Reason] = {
    "BackboneFinetuning": ("it adds parameters behind the schedule's back", "use callbacks.freeze.encoder_epochs"),
    "BaseFinetuning": _ABSTRACT,
    "BasePredictionWriter": _ABSTRACT,
    "BatchSizeFinder": (_SEARCH, "find it by trying, then give data.batch_size"),
    "Callback": _ABSTRACT,
    "Checkpoint": _ABSTRACT,
    "DeviceStatsMonitor": (
        "it adds tens of columns to metrics.csv",
        "use logger=wandb, which records the device, or +trainer.profiler=simple",
    ),
    "GradientAccumulationScheduler": (
        "the schedule of the learning rate counts on as many steps in each epoch",
        "use +trainer.accumulate_grad_batches",
    ),
    "LambdaCallback": ("it takes functions, which a config cannot hold", _ABSTRACT[1].replace("on it", "on Callback")),
    "LearningRateFinder": (_SEARCH, "sweep it: -m optim.lr=1e-4,3e-4,1e-3"),
    "ModelCheckpoint": _KEPT,
    "ModelPruning": ("the weights it masks are not those of a checkpoint that others load", "use a smaller encoder"),
    "ModelSummary": ("a run does not show what it says", "use pytorch_lightning.callbacks.RichModelSummary"),
    "OnExceptionCheckpoint": ("a run that is stopped saves last.ckpt itself", "use save_every, and resume=auto"),
    "ProgressBar": _BAR,
    "RichProgressBar": _BAR,
    "SpikeDetection": ("a run skips steps that are not finite itself", "use trainer.gradient_clip_val for spikes"),
    "StochasticWeightAveraging": (
        "it takes the learning rate from the schedule and trains an epoch more",
        "use callbacks=ema",
    ),
    "TQDMProgressBar": _BAR,
    "ThroughputMonitor": ("it takes a function, which a config cannot hold", "see images_per_second in run.json"),
    "Timer": ("the learning rate's schedule ends with the last epoch, not before", _LENGTH),
    "WeightAveraging": ("it averages from the untrained weights on", "use callbacks=ema"),
}
NOT_OPTIMISERS: Mapping[str, Reason] = {
    "LBFGS": ("it runs each batch several times, which would be counted as several", "use optim=adamw"),
    "Muon": ("it takes matrices alone, and a network has other weights, too", "use optim=adamw"),
    "Optimizer": _ABSTRACT,
    "SparseAdam": ("it takes sparse gradients alone", "use optim=adamw"),
}
NOT_OPTIM: Mapping[str, Reason] = {
    "maximize": ("it would make the loss as large as can be", "remove it"),
    "differentiable": ("a run does not differentiate through its steps", "remove it"),
    "capturable": ("it is for CUDA graphs, which a run does not capture", "remove it"),
}
NOT_ARGUMENTS: Mapping[tuple[str, str], Reason] = {
    ("EMAWeightAveraging", "update_starting_at_step"): (
        "until that step the untrained weights would be validated, saved and evaluated",
        "remove it; the average begins with the weights after the first step",
    ),
    ("EMAWeightAveraging", "update_starting_at_epoch"): (
        "it delays no update, but adds one at the end of each epoch from then on",
        "remove it; the average begins with the weights after the first step",
    ),
    ("EarlyStopping", "verbose"): ("a run does not show what it says", "remove it; each epoch's line has the scores"),
}
# The least that Lightning's arguments may be, which their hints do not say.
LEAST: Mapping[tuple[str, str], float] = {
    ("EarlyStopping", "patience"): 0,
    ("EarlyStopping", "min_delta"): 0,
    ("EMAWeightAveraging", "update_every_n_steps"): 1,
    ("RichModelSummary", "max_depth"): -1,
    ("Trainer", "min_epochs"): 1,
    ("Trainer", "check_val_every_n_epoch"): 1,
}


def refusal(home: str, name: str) -> Reason | None:
    """Give the reason why a class of Lightning or torch is not for a run.

    Args:
        home: the module that defines it.
        name: of the class.

    Returns:
        What is wrong with it and what to do instead; None for one that is admitted, or is not theirs.
    """
    if home.startswith("pytorch_lightning.callbacks"):
        return None if name in CALLBACKS else NOT_CALLBACKS.get(name, _unknown(CALLBACKS))
    if home.startswith("pytorch_lightning.loggers"):
        return (
            "Lightning's loggers know nothing of a run's folder",
            "use logger=csv, which is metrics.csv, or logger=wandb",
        )
    if home.startswith("torch.optim"):
        return None if name in OPTIMISERS else NOT_OPTIMISERS.get(name, _unknown(OPTIMISERS))
    return None


def argument_refusal(home: str, owner: str, name: str) -> Reason | None:
    """Give the reason why an argument of such a class is left at its default.

    Args:
        home: the module that defines the class.
        owner: the class.
        name: of the argument.

    Returns:
        What is wrong with it and what to do instead; None for one that may be given, or whose class is not theirs.
    """
    if home.startswith("torch.optim"):
        return NOT_OPTIM.get(name)
    if home.startswith("pytorch_lightning.callbacks"):
        return NOT_ARGUMENTS.get((owner, name))
    if home != "pytorch_lightning.trainer.trainer" or name in (*TRAINER, *GIVEN):
        return None
    return NOT_TRAINER.get(name, _unknown(TRAINER))


def _unknown(known: tuple[str, ...]) -> Reason:
    return "it is not known to work in a run", f"use one that is: {', '.join(known)}"
