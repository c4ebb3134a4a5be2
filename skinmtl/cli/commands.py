"""`skinmtl`: what one does with finished runs and with images. Training is `python train.py`."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from skinmtl.distributed.signals import ENDS, handled, stoppable
from skinmtl.errors import ConfigError, Faults, InputError, ResourceError, answer_to, check_system, first_line
from skinmtl.terminal import to_a_reader

RESEARCH = "Research use only: not a medical device."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code (0 done, 1 our bug, 2 input, 4 resources, 75 stopped, 141 nobody reads)."""
    return to_a_reader(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    try:
        check_system()
    except ConfigError as refusal:
        print(f"skinmtl: error: {refusal}", file=sys.stderr)
        return refusal.exit_code
    arguments = parser().parse_args(argv)
    act: Callable[[argparse.Namespace], int] = arguments.act
    try:
        return act(arguments)
    except BrokenPipeError:
        raise
    except Exception as error:
        known = answer_to(error, Path.cwd(), "write elsewhere")
        if known is None and isinstance(error, OSError):
            known = ResourceError(
                "the system", error.strerror or first_line(error), "see to the machine, then run the command again"
            )
        if known is None or os.environ.get("SKINMTL_DEBUG"):
            raise
        for line in str(known).splitlines():
            print(f"skinmtl: error: {line}", file=sys.stderr)
        return known.exit_code
    except KeyboardInterrupt:
        print("skinmtl: stopped", file=sys.stderr)
        return 75


def _path(word: str) -> Path:
    """A path as it is typed; a shell leaves `~` alone where it stands behind a `=`."""
    return Path(word).expanduser()


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their arguments."""
    top = argparse.ArgumentParser(prog="skinmtl", description=f"{__doc__} {RESEARCH}")
    top.add_argument("--version", action="version", version=f"skinmtl {version('skinmtl')}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for describe in (_commands_of_data, _commands_of_runs, _commands_of_tables):
        describe(commands)
    return top


def _commands_of_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe what is done with a data set, before any training."""
    command = commands.add_parser("prepare", help="download or import HAM10000, or check what lies there")
    command.add_argument("out", type=_path, help="the folder to write, or with --verify to check")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--from", dest="paths", type=_path, nargs="+", metavar="PATH", help="import folders, zip, tar files"
    )
    what.add_argument("--verify", action="store_true", help="decode every image, compare with manifest.csv")
    what.add_argument("--list", action="store_true", help="say what would be downloaded, and how much it is")
    command.add_argument("--lesions", type=_path, metavar="FILE", help="a table of image_id and lesion_id to join")
    command.add_argument("--server", metavar="URL", help="another Dataverse (default: https://dataverse.harvard.edu)")
    command.set_defaults(act=prepare)

    command = commands.add_parser("audit", help="find lesions under two ids, and check a split, before any training")
    command.add_argument("data_root", metavar="DATA_ROOT", help="what data.root is: a folder in any layout, or a table")
    command.add_argument("--layout", default="auto", help="what data.layout is (default: auto)")
    command.add_argument("--masks", type=_path, metavar="FOLDER", help="what data.masks is")
    command.add_argument("--lesions", type=_path, metavar="FILE", help="what data.lesions is")
    command.add_argument(
        "--with", dest="other", type=_path, metavar="OTHER_ROOT", help="a second data set: its overlap"
    )
    command.add_argument("--split", type=_path, help="a split file of the first, to be checked")
    command.add_argument(
        "--out", type=_path, default=Path("outputs/audit"), help="where to write (default: outputs/audit)"
    )
    command.set_defaults(act=audit)


def _commands_of_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe what is done with runs and studies."""
    command = commands.add_parser("evaluate", help="score a run's best checkpoint again and write its page")
    command.add_argument("run", type=_path, help="a run's folder")
    command.add_argument("data_root", nargs="?", metavar="data.root=FOLDER", help="where the images are now")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    command.set_defaults(act=evaluate)

    command = commands.add_parser("predict", help="masks, probabilities and overlays for new images")
    command.add_argument("run", type=_path, help="a run's folder")
    command.add_argument("images", type=_path, nargs="+", help="images, or folders of them")
    command.add_argument("--out", type=_path, help="where to write (default: RUN/predict)")
    command.add_argument("--replace", action="store_true", help="replace the predictions that are there already")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    command.set_defaults(act=predict)

    command = commands.add_parser("report", help="write the page of a run, or the answer of a study's folder")
    command.add_argument("folder", type=_path, help="a run's folder, or the folder of a sweep")
    command.add_argument("--out", type=_path, help="for a study (default: experiments/<study>)")
    command.set_defaults(act=report)

    command = commands.add_parser("baselines", help="what simple methods reach on a run's own test lesions")
    command.add_argument("run", type=_path, help="a run's folder")
    command.add_argument("data_root", nargs="?", metavar="data.root=FOLDER", help="where the images are now")
    command.set_defaults(act=baselines)

    command = commands.add_parser("runs", help="list the runs below a folder with their scores")
    command.add_argument("folder", type=_path, nargs="?", default=Path("outputs"), help="default: outputs")
    command.set_defaults(act=runs)


def _commands_of_tables(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe what is done with predictions tables, anyone's."""
    command = commands.add_parser("score", help="scores with intervals from a finished predictions.csv, anyone's")
    command.add_argument("predictions", type=_path, help="a predictions table, or a run's folder")
    command.set_defaults(act=score)

    command = commands.add_parser("compare", help="the difference of two predictions tables, paired by lesion")
    command.add_argument("first", type=_path, help="a run's folder or a predictions table")
    command.add_argument("second", type=_path, help="what it is compared with")
    command.add_argument("--out", type=_path, help="write the table to this .csv, too")
    command.set_defaults(act=compare)


# What is half-done has to go, however the command is asked to stop.
@handled(ENDS, signal.default_int_handler)
def prepare(arguments: argparse.Namespace) -> int:
    """Write HAM10000 to a folder, decoded once and with a manifest; or check that folder again."""
    from skinmtl.data.prepare import command, dataverse, verify
    from skinmtl.errors import Faults

    out: Path = arguments.out.resolve()  # a link to an empty folder is filled where it leads
    if arguments.verify:
        report = verify.check(out)
        print("\n".join(report.notes))
        if report.faults:
            raise Faults(report.all_faults())
        print(f"{arguments.out}: nothing wrong")
        return 0

    if arguments.lesions and not arguments.lesions.is_file():
        raise InputError(str(arguments.lesions), "no such file", "give a table of image_id and lesion_id")
    paths, fetched = arguments.paths, None
    if not paths:
        remotes = dataverse.files(arguments.server or dataverse.SERVER)
        size = sum(remote.size or 0 for remote in remotes)
        print(f"HAM10000, {dataverse.DOI}, licence {dataverse.LICENCE}: {len(remotes)} files, {size / 1e9:.2f} GB")
        for remote in remotes:
            print(f"  {remote.name}  {'size not listed' if remote.size is None else f'{remote.size:,} bytes'}")
        if arguments.list:
            return 0
        paths, fetched = command.download(remotes, out), command.downloads(out)
    report = command.bring(paths, out, arguments.lesions)
    print("\n".join(report.notes))
    leak = " data.allow_leak=true, which stamps every score LEAKY" if report.leaky else ""
    print(f"{arguments.out}: {len(report.sums):,} files, decoded and in its manifest.")
    print(f"Use it: data.root={arguments.out}{leak}")
    if fetched:
        shutil.rmtree(fetched)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Write predictions table, scores, figures and page of a run again."""
    from skinmtl.evaluation.evaluate import evaluate as evaluate_run
    from skinmtl.reports.run import write_run_report
    from skinmtl.runs.run import Run

    run = Run.open(arguments.run)
    with run.held():
        evaluate_run(run, _data_root(arguments.data_root), arguments.device)
        print(write_run_report(run.path))
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Predict masks and diagnoses; images that cannot be read are listed in errors.csv, and the exit code is 2."""
    from skinmtl.data.images.listing import list_images, summarise_skipped
    from skinmtl.evaluation.prediction_folder import write_predictions
    from skinmtl.runs.run import Run

    images, skipped = list_images(arguments.images)
    status = Run.open(arguments.run).status
    if status != "finished":
        print(f"{arguments.run}: this run is not finished ({status}): its best weights so far", file=sys.stderr)
    if skipped:
        print(f"passed over, not predicted: {summarise_skipped(skipped)}")
    out = arguments.out or arguments.run / "predict"
    with stoppable() as stop:
        stop.looked_for = True
        failed = write_predictions(
            arguments.run,
            images,
            out,
            arguments.device,
            passed_over=skipped,
            replace=arguments.replace,
            stopped=lambda: stop.asked,
        )
    count = len(images) - failed
    others = f", {len(skipped)} passed over (skipped.csv)" if skipped else ""
    print(f"{out}: {count} image{'' if count == 1 else 's'} predicted{others}. {RESEARCH}")
    if failed:
        what = f"{failed} image{'' if failed == 1 else 's'} could not be read"
        print(f"skinmtl: error: {out / 'errors.csv'}: {what}; fix: see the file", file=sys.stderr)
    return 2 if failed else 0


def report(arguments: argparse.Namespace) -> int:
    """Write a run's page, or a study's results.csv, table and figures."""
    from skinmtl.reports.run import study_report, write_run_report

    folder: Path = arguments.folder
    if (folder / "run.json").is_file():
        print(write_run_report(folder))
    elif (folder / "sweep.csv").is_file() or next(folder.glob("*/run.json"), None):
        print(study_report(folder, arguments.out or Path("experiments") / folder.resolve().parent.name))
    else:
        raise InputError(
            str(folder), "neither a run nor a study", "give a folder with run.json, or one of such folders"
        )
    return 0


def score(arguments: argparse.Namespace) -> int:
    """Print the scores of a finished table as JSON."""
    from skinmtl.evaluation.scores import evaluate_file

    result = evaluate_file(_table_file(arguments.predictions))
    for note in result["notes"]:
        print(f"skinmtl: {note}", file=sys.stderr)
    print(json.dumps(result, indent=1, allow_nan=False))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Compare two predictions tables, first minus second, on the images that both have; what is left out is said."""
    import pandas as pd

    from skinmtl.evaluation.scores import paired, uncompared
    from skinmtl.files import write_text
    from skinmtl.runs.labels import stamps
    from skinmtl.runs.predictions import is_leaky, marks
    from skinmtl.tasks.tables import read, scorings_beside

    first, second = (_table_file(path) for path in (arguments.first, arguments.second))
    tables = {file: read(file) for file in (first, second)}
    scorings = [scorings_beside(file, tables[file]) for file in (first, second)]
    differences = paired(tables[first], tables[second], scorings=scorings)
    leaky = [str(file) for file, predictions in tables.items() if is_leaky(predictions)]
    warning = f"LEAKY: one lesion may have trained and been tested in {' and '.join(leaky)}" if leaky else None
    said = [marks(predictions) for predictions in tables.values()]
    stamp = stamps({name: any(one[name] for one in said) for name in said[0]})
    title = f"{first} - {second} {stamp}".rstrip()
    table = Table("score", "first", "second", "difference", "95% interval", title=title, caption=warning)
    for name, row in differences.items():
        cells = (row["first"], row["second"], row["difference"])
        interval = "none" if math.isnan(row["low"]) else f"{row['low']:+.4f} to {row['high']:+.4f}"
        table.add_row(name, *(f"{value:+.4f}" for value in cells), interval)
    _print(table)
    for note in uncompared(tables[first], tables[second], scorings=scorings):
        print(note)
    if arguments.out is not None:
        rows = pd.DataFrame.from_dict(differences, orient="index").round(6).assign(stamp=stamp)
        write_text(arguments.out, rows.to_csv(index_label="score"))
    return 0


def baselines(arguments: argparse.Namespace) -> int:
    """Print what colour histograms with logistic regression, and Otsu's threshold, reach beside the run."""
    from skinmtl.evaluation.baselines import compare_run
    from skinmtl.runs.labels import stamps
    from skinmtl.runs.run import Run

    run = Run.open(arguments.run)
    title = f"held-out test lesions of this run {stamps(run.info())}".rstrip()
    table = Table("method", "task", "score", "value", title=title)
    for row in compare_run(run, _data_root(arguments.data_root)).itertuples():
        table.add_row(str(row.method), str(row.task), str(row.score), f"{row.value:.3f}")
    _print(table)
    return 0


def audit(arguments: argparse.Namespace) -> int:
    """Write tables and a page of the pairs found; the exit code is 2 where the given split tears a lesion or a pair."""
    from skinmtl.audit.leaks import audit as look
    from skinmtl.audit.leaks import lines
    from skinmtl.data.sources import Layout
    from skinmtl.reports.audit import write_audit

    layout, out = arguments.layout, arguments.out
    if layout not in (layouts := ("auto", *get_args(Layout))):
        raise InputError(f"--layout={layout}", "there is no such layout", f"use {', '.join(layouts)}")
    if out.exists() and not out.is_dir():  # said now, not after an hour
        raise InputError(str(out), "is no folder", "give another --out")
    root = _data_root(arguments.data_root)
    assert root is not None
    findings, paths = look(root, arguments.other, arguments.split, layout, arguments.masks, arguments.lesions)
    page = write_audit(findings, paths, out, f"Audit of {root.resolve().name}")
    for line in lines(findings):
        print(line)
    print(f"{page}: it shows images of the data set; {out / 'duplicates.csv'} fits data.duplicates=")
    if findings.faults:
        raise Faults(findings.faults)
    return 0


def runs(arguments: argparse.Namespace) -> int:
    """Print a line for each run, in the order of their folders."""
    from skinmtl.runs.labels import stamps
    from skinmtl.runs.run import find

    table = Table("run", "experiment", "status", "seed", "validation score", "stamp")
    for run in find(arguments.folder):
        try:
            info = run.info() | {"status": run.status}
        except InputError:
            info = {"status": "run.json cannot be read"}
        value = info.get("score")
        words = (str(info.get(key, "")) for key in ("name", "status", "seed"))
        table.add_row(os.path.relpath(run.path), *words, "" if value is None else f"{value:.4f}", stamps(info))
    _print(table)
    return 0


def _print(table: Table) -> None:
    """Print a table with nothing cut short, however narrow the terminal: folders are what other commands take."""
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def _data_root(word: str | None) -> Path | None:
    """`data.root=FOLDER`, spelt as on the training command, or a bare folder; a table of one's own, too."""
    if word is None:
        return None
    key, equals, value = word.partition("=")
    if key != "data.root" and Path(word).expanduser().exists():
        value, equals = word, ""  # a folder with = in its name
    if equals and key != "data.root":
        raise InputError(key, "is not known here", "write data.root=FOLDER")
    root = Path(value if equals else word).expanduser()
    if not root.exists():
        what = "no such folder, and no such table"
        raise InputError(f"data.root={root}", what, "give the folder that holds the images, or a table of your own")
    return root


def _table_file(path: Path) -> Path:
    return path / "predictions.csv" if path.is_dir() else path
