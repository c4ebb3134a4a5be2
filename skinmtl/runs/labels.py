"""Names of scores and of what runs record, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RECORDED = "not recorded"
HEADLINES = {
    "mean_image_dice": "Dice, mean over images",
    "balanced_accuracy": "Balanced accuracy",
    "macro_auroc": "AUROC, mean over classes",
    "mean_image_iou": "IoU, mean over images",
}
WORDS = {
    "mean_image_dice_input": "Dice at the network's size",
    "mean_image_hd95": "HD95, pixels of the photograph",
    "mean_image_hd95_pooled": "HD95 of both directions pooled, as before version 2",
    "mean_image_assd": "ASSD, pixels of the photograph",
    "median_image_dice": "Dice, median",
    "p5_image_dice": "Dice, 5th percentile",
    "thresholded_jaccard": "IoU, zero below 0.65",
    "failure_rate": "Share of images with IoU below 0.65",
    "mean_image_sensitivity": "Sensitivity of pixels, mean over images",
    "mean_image_specificity": "Specificity of pixels, mean over images",
    "mean_image_precision": "Precision of pixels, mean over images",
    "pooled_dice": "Dice, pixels of all images pooled",
    "pooled_mean_iou": "IoU, mean over mask classes with the background, pixels pooled",
    "pooled_accuracy": "Accuracy of pixels, pooled",
    "pooled_mcc": "MCC of pixels, pooled",
    "macro_precision": "Precision, mean over classes",
    "accuracy": "Accuracy",
    "brier": "Brier score",
    "macro_f1": "F1, mean over classes",
    "macro_average_precision": "Average precision, mean over classes",
    "mcc": "MCC",
    "nll": "Negative log likelihood",
    "ece": "Expected calibration error",
    "ece_rank_bins": "Expected calibration error of bins of equal numbers, as before version 2",
    "malignant_auroc": "AUROC, malignant or precancerous against the rest",
}


def stamps(info: Mapping[str, Any]) -> str:
    """What every score of a run has to be shown with, from its run.json: such as "LEAKY SYNTHETIC", or nothing."""
    return " ".join(name.upper() for name in ("leaky", "synthetic", "shuffled") if info.get(name))


def words(name: str) -> str:
    """A score's name for people."""
    return HEADLINES.get(name, WORDS.get(name, name.replace("_", " ")))


def score_words(score: Mapping[str, Any] | None) -> tuple[str, str]:
    """A score as "0.812" and its interval as "(0.790 to 0.834)"; said in words where there is none."""
    if score is None:
        return NOT_RECORDED, ""
    if score.get("value") is None:
        return "undefined", ""
    places = 1 if abs(score["value"]) >= 10 else 3
    if score.get("low") is None:
        return f"{score['value']:.{places}f}", ""
    return f"{score['value']:.{places}f}", f"({score['low']:.{places}f} to {score['high']:.{places}f})"


def said(value: object) -> str:
    """A value as text; "not recorded" for None, words joined by commas for a list."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
