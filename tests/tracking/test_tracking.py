"""Weights & Biases gets scores and no image, and never stops a training."""

from __future__ import annotations

import getpass
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hangs import HANGS
from small_runs import SMALL, train
from wandb.proto.wandb_internal_pb2 import Record

from skinmtl.runs.run import Run
from skinmtl.tracking import wandb

BLOCK = 32768


def records(folder: Path) -> Iterator[Record]:
    """What an offline run holds: LevelDB log blocks of protobuf records behind a header of 7 bytes."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if kind == 0 or place + 7 + size > len(data):  # not written yet
            break
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def written(folder: Path) -> str:
    """All records in words, once the service, a process of its own, has written the last."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        found = list(records(folder))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return "\n".join(str(record) for record in found)
        time.sleep(0.1)
    raise AssertionError("no record of the end")


@pytest.fixture(scope="module")
def run(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was followed offline."""
    return train(tmp_path_factory.mktemp("followed") / "run", synthetic_root, [*SMALL, "logger=wandb"], figures=True)


def test_an_offline_run_holds_config_history_scores_and_confusion(run: Run, synthetic_root: Path) -> None:
    said = written(run.path)
    for name in ("val/seg/mean_image_dice", "train/loss", "test/cls/balanced_accuracy", "test/confusion", "optim.lr"):
        assert name in said
    assert "figures/confusion" in said
    # data.synthetic is null in the tests, so these count as somebody's images.
    assert not run.info()["synthetic"]
    assert "figures/gallery" not in said
    assert str(synthetic_root) not in said


@pytest.mark.parametrize("asked", [False, True])
def test_images_go_along_only_when_asked(run: Run, tmp_path: Path, asked: bool) -> None:
    board = wandb.WandB(folder=tmp_path, run_id="x", mode="offline", images=asked)
    board.start({})
    board.log_run(run)
    board.finish(0)
    assert ("figures/gallery" in written(tmp_path)) == asked
    assert bool(list(tmp_path.glob("wandb/offline-run-*/files/media/images/figures/gallery*"))) == asked


def test_secrets_folders_and_the_machine_are_left_out(tmp_path: Path) -> None:
    board = wandb.WandB(folder=tmp_path, run_id="x", mode="offline")
    board.start({"model": {"api_token": "canary-5e1f", "arch": "unet"}, "roots": ["/home/somebody/ham"]})
    board.finish(0)
    said = written(tmp_path)
    assert "unet" in said
    assert "somebody" not in said
    assert str(tmp_path) not in said
    for word in (socket.gethostname(), getpass.getuser()):
        assert f'"{word}"' not in said
    assert "canary-5e1f" not in said


def test_an_error_of_the_dashboard_is_said_once_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log(self, values: object) -> None:
            raise RuntimeError("server on fire")

    board = wandb.WandB(folder=tmp_path, run_id="x", mode="offline")
    board._run = Broken()
    board.log_metrics({"a": 1.0}, 1)
    board.log_metrics({"a": 2.0}, 2)
    board.finish(0)
    assert caplog.text.count("server on fire") == 1


def test_a_server_that_refuses_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert not wandb._answers()


def test_a_server_that_hangs_is_left_after_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(wandb, "PATIENCE", 0.5)
        assert not wandb._answers()


def test_a_server_that_answers_anything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        assert wandb._answers()


@pytest.fixture
def troubled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that answers every question with 401, and a key for it."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield
        server.shutdown()


@pytest.mark.usefixtures("troubled")
@pytest.mark.slow
def test_a_server_that_takes_no_run_leaves_it_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "PATIENCE", 2)
    board = wandb.WandB(folder=tmp_path, run_id="x")
    board.start({"arch": "unet"})
    board.finish(0)
    assert [entry.levelname for entry in caplog.records if entry.name == "skinmtl.tracking.wandb"] == ["WARNING"]
    assert "kept offline" in caplog.text
    assert "unet" in written(tmp_path)


@pytest.mark.usefixtures("troubled")
def test_offline_in_the_environment_is_heeded_although_there_is_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    board = wandb.WandB(folder=tmp_path, run_id="x")
    assert board._online()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not board._online()


@pytest.mark.parametrize(
    ("name", "value", "off"),
    [
        ("WANDB_MODE", "disabled", True),
        ("WANDB_DISABLED", "true", True),
        ("WANDB_DISABLED", "1", True),
        ("WANDB_DISABLED", "false", False),
        ("WANDB_MODE", "offline", False),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_switched_off_in_the_environment_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, off: bool,
    mode: Literal["auto", "offline"],
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    board = wandb.WandB(folder=tmp_path, run_id="x", mode=mode)
    board.start({})
    board.log_metrics({"a": 1.0}, 1)
    board.finish(0)
    assert (list(tmp_path.iterdir()) == []) == off
    assert (f"W&B is switched off by {name}={value}" in caplog.text) == off


def test_project_and_tags_of_the_environment_stand_in_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_TAGS", "ward,pilot")
    assert wandb.WandB(folder=tmp_path, run_id="x")._place == {
        "project": "ours", "entity": None, "tags": ["ward", "pilot"],
    }  # fmt: skip
    own = wandb.WandB("mine", tags=["a"], folder=tmp_path, run_id="x")
    assert own._place == {"project": "mine", "entity": None, "tags": ["a"]}


def test_online_without_a_key_asks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not wandb.WandB(folder=tmp_path, run_id="x", mode="online")._online()
    assert "no key" in caplog.text


def test_a_server_that_does_not_speak_http_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1024)
                client.sendall(b"hello world\r\n")

        threading.Thread(target=babble, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not wandb._answers()


def test_a_key_is_found_in_the_environment_or_in_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wandb._has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password canary\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb._has_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", "canary")
    assert wandb._has_key()


def test_a_job_of_a_sweep_is_grouped_by_the_sweep(tmp_path: Path) -> None:
    board = wandb.WandB(folder=tmp_path / "2026_study" / "3", run_id="3", mode="offline")
    assert (board._id, board._group) == ("2026_study-3", "2026_study")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("demo/2026-11-21_09-12-33_a1f0", "2026-11-21_09-12-33_a1f0"), ("mine/best of #3", "mine-best-of-3")],
)
def test_an_id_is_its_runs_alone_and_one_that_the_server_takes(tmp_path: Path, folder: str, name: str) -> None:
    place = tmp_path / folder
    assert wandb.WandB(folder=place, run_id=place.name)._id == name


def test_stamps_become_tags(tmp_path: Path) -> None:
    board = wandb.WandB(folder=tmp_path, run_id="x", mode="offline", tags=["pilot"])
    board.start({}, "LEAKY")
    board.finish(0)
    said = written(tmp_path)
    assert "LEAKY" in said and "pilot" in said
