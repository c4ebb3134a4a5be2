"""Training from the command line and from Python: help, Hydra, one-line errors, exit codes, a table of jobs."""

from __future__ import annotations

import difflib
import math
import os
import re
import secrets
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from skinmtl.config.overrides import readable
from skinmtl.config.reference import default_keys, groups
from skinmtl.config.tasks import CONF, settle
from skinmtl.distributed.signals import Stop, stoppable
from skinmtl.errors import ConfigError, Interrupted, SkinmtlError, answer_to, no_package
from skinmtl.runs.aliases import renamed
from skinmtl.runs.redaction import command_without_paths
from skinmtl.terminal import to_a_reader

if TYPE_CHECKING:  # it reads tables, which the help does not wait for
    from skinmtl.runs.run import Run

# Hydra's own, but for --experimental-rerun.
OPTIONS = {
    *("-m", "--multirun", "-r", "--run", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info", "--version"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-sc", "--shell-completion"),
    "--hydra-help",
}

LISTED = ("experiment", "study")  # groups whose options are the user's first choice
ELSEWHERE = "write elsewhere with hydra.run.dir=, data.cache_dir=, data.split_dir= or data.cache=off"


def main(conf: Path, argv: Sequence[str]) -> int:
    """Run a command line.

    Args:
        conf: the folder of configs.
        argv: the program's name, then the words of the command.

    Returns:
        The exit code: 0 done, 1 our bug, 2 input or config, 3 diverged, 4 resources, 75 interrupted.
    """
    return to_a_reader(lambda: _main(conf, argv))


def fit(*words: str) -> Run:
    """Train, evaluate and report from Python, as `python train.py <words>` does.

    It writes `outputs/<experiment>/<run id>` in the working directory, or what `hydra.run.dir=` says. Ctrl-C, or a
    notebook's interrupt, saves first; `resume=auto` among the words resumes.

    Args:
        words: those of the command, such as `"experiment=demo", "seed=1"`.

    Returns:
        The finished run.

    Raises:
        SkinmtlError: where the command would say so in one line and end with another exit code than 0.
    """
    OmegaConf.register_new_resolver("run_id", _run_id, use_cache=True, replace=True)
    with _hydra_to_itself():
        try:
            if option := next((word for word in words if word.startswith("-")), None):
                fix = f"python train.py {' '.join(words)}"
                if option in ("-m", "--multirun"):
                    fix = "several runs are started by python train.py -m"
                raise ConfigError("skinmtl.fit", f"{option} is an option of the command line", fix)
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = hydra.compose("config", readable(words, sweep=False), return_hydra_config=True)
            if cfg.hydra.mode == RunMode.MULTIRUN:
                fix = f"start them by python train.py {' '.join(words)}"
                raise ConfigError("skinmtl.fit", "these words are several runs", fix)
            HydraConfig.instance().set_config(cfg)
            _refuse_chdir(cfg.hydra.job.chdir)
            _settle(cfg, cfg.hydra)
            given = {str(key): value for key, value in cfg.items() if key != "hydra"}
            folder = Path(cfg.hydra.run.dir)
        except SkinmtlError:
            raise
        except Exception as error:
            raise _refusal(error, CONF) from None

        from skinmtl.training.run import run

        return run(given, folder, command_without_paths("skinmtl.fit", words))


@contextmanager
def _hydra_to_itself() -> Iterator[None]:
    """Hydra holds one config for a whole process: whoever had it before, in a notebook say, has it again afterwards."""
    loader, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = loader, config


@contextmanager
def _words(argv: Sequence[str]) -> Iterator[None]:
    """Let Hydra, which reads the process's own, read these."""
    before = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


def _main(conf: Path, argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(usage(conf))
        return 0
    OmegaConf.register_new_resolver("run_id", _run_id, use_cache=True, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own words and exit 1 whatever went wrong
    failed: list[BaseException] = []
    sweeps: set[Path] = set()

    stop = Stop()

    def task(cfg: DictConfig) -> float:
        running = HydraConfig.get()
        if running.mode == RunMode.MULTIRUN:
            sweeps.add(Path(running.sweep.dir))
        try:
            with _at_once(stop, Path(running.runtime.output_dir)):
                _refuse_chdir(running.job.chdir)
                return _job(cfg, argv)
        except (Exception, KeyboardInterrupt) as error:
            failed.append(error)
            # Hydra's own sweeper would only say once more that a job has failed; another has to know which.
            is_plain = running.sweeper._target_.endswith(".BasicSweeper")
            if isinstance(error, KeyboardInterrupt) or (running.mode == RunMode.MULTIRUN and not is_plain):
                raise
            return math.nan

    try:
        with stoppable(stop), _hydra_to_itself():
            stop.looked_for = True  # Hydra makes a folder, of which only the job knows
            _check_options(argv)
            several = any(word in ("-m", "--multirun") or word.startswith("study=") for word in argv)
            with _words([*argv[:1], *readable(argv[1:], several)]):
                hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(task)()
    except SystemExit as error:
        if not failed:
            return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        # What goes wrong outside a job goes wrong with the command: Hydra composes, and refuses in many ways.
        if not failed:
            failed.append(_refusal(error, conf) if isinstance(error, Exception) else error)
    _print_tables(sweeps)
    return _answer(failed)


@contextmanager
def _at_once(stop: Stop, folder: Path) -> Iterator[None]:
    """Stop a job when it is asked for, which before was Hydra's part; leave no folder where nothing was begun."""
    stop.looked_for = False
    try:
        if stop.asked:
            raise KeyboardInterrupt
        yield
    except BaseException as error:
        if folder.is_dir() and [path.name for path in folder.iterdir()] == [".hydra"]:
            shutil.rmtree(folder)
        if stop.asked and not isinstance(error, SkinmtlError):  # compiled code answers Ctrl-C in ways of its own
            raise KeyboardInterrupt from None
        raise
    finally:
        stop.looked_for = True


def _check_options(argv: Sequence[str]) -> None:
    """Refuse what is no option: Hydra takes `--experiment` for the beginning of one of its own that loads a pickle."""
    for word in argv[1:]:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in OPTIONS:
            fix = f"write {name.lstrip('-')}=<value>, see python train.py --help"
            raise ConfigError("command line", f"there is no option {name}", fix)


def _print_tables(sweeps: Iterable[Path]) -> None:
    for sweep in sorted(sweeps):
        from skinmtl.studies.sweep import print_table

        print_table(sweep)


def _refuse_chdir(chdir: bool | None) -> None:
    """Refuse to work inside the run's folder, where data, splits and caches would be looked for, too."""
    if chdir:
        what = "true would look for data, splits and caches inside each run's folder"
        raise ConfigError(
            "hydra.job.chdir", what, "leave it out: a run knows its folder, and paths are from where you are"
        )


def _job(cfg: DictConfig, argv: Sequence[str]) -> float:
    running = HydraConfig.get()
    cfg = renamed(cfg, warn=True)
    _settle(cfg, running)
    if running.mode == RunMode.MULTIRUN:
        from skinmtl.studies.sweep import job

        return job(cfg, Path(argv[0]).resolve())
    from skinmtl.config import check

    check.check_names(cfg)  # before the next line, which takes seconds
    from skinmtl.training.run import run

    given = {str(key): value for key, value in cfg.items()}
    command = command_without_paths("python train.py", argv[1:])
    return float(run(given, Path(running.runtime.output_dir), command).info()["score"])


def _settle(cfg: DictConfig, hydra: HydraConf | DictConfig) -> None:
    """Settle the tasks of a config that Hydra has composed: what the command chose counts more than any file."""
    chosen = any(word.partition("=")[0] == "tasks" for word in hydra.overrides.task)
    sources = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
    settle(cfg, chosen, [Path(path) for path in sources])


def _run_id() -> str:
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def _answer(failed: Sequence[BaseException]) -> int:
    """Print each different failure as its lines; gives the exit code, 1 where they disagree."""
    codes = set()
    for error in {str(error): error for error in failed}.values():
        if os.environ.get("SKINMTL_DEBUG"):
            traceback.print_exception(error)
        known = _known(error)
        if known is not None:
            codes.add(known.exit_code)
            for line in str(known).splitlines():
                print(f"skinmtl: error: {line}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            codes.add(Interrupted.exit_code)
            print("skinmtl: stopped", file=sys.stderr)
        else:
            codes.add(1)
            if not os.environ.get("SKINMTL_DEBUG"):
                traceback.print_exception(error)
            print(f"skinmtl: error: our bug: {type(error).__name__}: {error}; fix: please report it", file=sys.stderr)
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _known(error: BaseException) -> SkinmtlError | None:
    """The answer that an exception of a job stands for; None for our own mistakes."""
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("skinmtl"):
        fix = "make setup, then .venv/bin/python train.py"
        what = f"{error.name} is not installed for {sys.executable}" if error.name else " ".join(str(error).split())
        return ConfigError("environment", what, fix)
    return answer_to(error, Path.cwd(), ELSEWHERE)


def _refusal(error: Exception, conf: Path) -> Exception:
    """Hydra's refusal of a command in our words; an error of another kind as it is."""
    text = str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        place = Path(error.problem_mark.name)
        where = f"{os.path.relpath(place) if place.is_file() else place}, line {error.problem_mark.line + 1}"
        if found := re.fullmatch(r"found duplicate key (.*)", error.problem or ""):
            return ConfigError(where, f"the key {found[1]!r} is there a second time", "keep one of the two")
        return ConfigError(where, f"no YAML that a config is made of: {error.problem}", "mend this line")
    if isinstance(error, UnicodeDecodeError):
        files = [str(os.path.relpath(file)) for file in conf.rglob("*.yaml") if not _is_text(file)]
        return ConfigError(", ".join(files) or "config files", "not written in UTF-8", "save it as UTF-8")
    if found := re.search(r"Could not override '[^'@]+@(\w+)\.[^']*'", text):
        return no_package(found[1])
    if found := re.search(r"Could not (?:find|load) '([\w/.]+)/([^'/]+)'", text):
        group, name = found.groups()
        names = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        if not names:
            return ConfigError(f"{group}={name}", "there is no such group", _guess(group, _all_keys(conf)))
        return ConfigError(f"{group}={name}", "there is none of this name", _guess(name, names))
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1].lstrip("+~").partition("@")[0]
        keys, last = _all_keys(conf), key.rpartition(".")[2]
        if key in keys:
            what = "there is no such key beside the other words of this command"
            return ConfigError(key, what, "leave out one of them: another choice, or null, takes this key away")
        return ConfigError(key, "there is no such key", _guess(last if last in keys else key, keys))
    if isinstance(error, (HydraException, OmegaConfBaseException, ValueError, TypeError)):
        return ConfigError("command line", " ".join(text.partition("See https")[0].split()), _readable_as(text))
    return error


def _readable_as(refusal: str) -> str:
    """How a word that Hydra refuses is written, where its grammar is why."""
    if "Lexer" not in refusal and "no viable alternative" not in refusal:
        return "see python train.py --help"
    quotes = "put words with other characters than a to z, digits, - and _ in quotes; "
    return quotes + "keys within {} take no quotes: give plain ones, or write them in a YAML file of yours"


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except ValueError:
        return False
    return True


def _guess(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return guess + (f"there are {', '.join(names)}" if len(names) < 30 else "see python train.py --help")


def _all_keys(conf: Path) -> list[str]:
    """Every key and group of the default config."""
    with _hydra_to_itself(), hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose("config")
    keys: list[str] = []

    def walk(node: object, where: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                keys.append(f"{where}{key}")
                walk(value, f"{where}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    groups = [str(folder.relative_to(conf)) for folder in conf.rglob("*") if folder.is_dir()]
    return keys + groups


def usage(conf: Path) -> str:
    """The help: experiments and studies, the other groups with their options, the keys of the default config."""
    known = groups(conf)
    lines = ["python train.py experiment=<name> [key=value ...]", ""]
    lines += ["Trains one network for segmentation and diagnosis, evaluates it and writes a report.", ""]
    for name in LISTED:
        (options,) = (group.options for group in known if group.name == name)
        lines += [f"{name}=", *_column((option.name, option.headline) for option in options), ""]
    others = [group for group in known if group.name not in LISTED]
    words = (f"{group.meaning} ({', '.join(option.name for option in group.options)})" for group in others)
    lines += ["groups", *_column(zip((f"{group.name}=" for group in others), words, strict=True)), ""]
    lines += ["keys", *_column((f"{key.name}=", key.meaning) for key in default_keys(conf)), ""]
    lines += [
        "Several values, in processes of their own: python train.py -m experiment=a,b weighting.seg=0.5,1 seed=0,1",
        "The whole config of a command: add --cfg job. A new key, say of Lightning's Trainer: +trainer.<key>=<value>.",
        "Exit codes: 0 done, 1 our bug, 2 input or config, 3 diverged, 4 disk or memory, 75 interrupted.",
        "Research use only: not a medical device.",
    ]
    return "\n".join(lines)


def _column(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names and what they mean, in lines of at most 120 characters."""
    for name, meaning in rows:
        yield textwrap.fill(meaning, 120, initial_indent=f"  {name:35} ", subsequent_indent=" " * 38)
