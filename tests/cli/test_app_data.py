"""The command line on images as people have them: too large, broken, of few classes, with names that are not UTF-8."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.command_line import trainonce

from trainonce.data import DataSet
from trainonce.models import MobileNetV3
from trainonce.run.directory import RunDirectory
from trainonce.subnets import describe_subnet, write_subnet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
BRIEF = ("--recipe", "spos", "--epochs", "1", "--width", "0.25", "--device", "cpu", "--probes", "0")
SHORT = (*BRIEF, "--batch-size", "8")
LATIN = os.fsdecode(b"caf\xe9")
NEXT = "=== next"
ONE_AFTER_THE_OTHER = f"""
import json, os, sys
from trainonce.__main__ import main
for number, words in enumerate(json.loads(sys.argv.pop())):
    if number:
        for stream in (sys.stdout, sys.stderr):
            print({NEXT!r}, file=stream, flush=True)
    sys.argv = ["trainonce", *(os.fsdecode(word.encode()) for word in words)]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""


def pictures(root: Path, *classes: str, each: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


class TestSizes:
    def test_images_that_would_not_fit(self) -> None:
        said = r"the images of digits, while .* would take 1\.44 TB of memory, and .* are there"
        trainonce("train", "digits", "--image-size", "20000", "--dry-run").refused(said)

    def test_a_network_of_a_huge_resolution(self) -> None:
        said = r"a batch of 64 images of 8 x 8 pixels, in the network 100000 x 100000, would take .* TB of memory"
        trainonce("train", "digits", "--resolutions", "100000", "--dry-run").refused(said)
        trainonce("train", "digits", "--resolutions", "100000").refused(said)

    def test_a_streamed_folder_of_huge_images(self, tmp_path: Path) -> None:
        folder = pictures(tmp_path, "a", "b")
        said = r"a batch of 11 images of 100000 x 100000 pixels, .* would take .* TB of memory"
        trainonce("train", folder, "--image-size", "100000", "--dry-run").refused(said)
        said = r"the images of .*, while they are divided into splits, would take 960 GB of memory"
        trainonce("train", folder, "--image-size", "100000", "--no-stream", "--dry-run").refused(said)

    @pytest.mark.parametrize(
        "exhaust",
        [
            lambda *_, **__: np.zeros(2**50, np.uint8),
            lambda *_, **__: torch.empty(2**50, dtype=torch.uint8),
            lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
            lambda *_, **__: (_ for _ in ()).throw(MemoryError),
        ],
        ids=["numpy", "torch", "GPU", "Python"],
    )
    def test_what_no_comparison_foresaw_is_a_sentence(
        self, monkeypatch: pytest.MonkeyPatch, exhaust: Callable[..., object]
    ) -> None:
        monkeypatch.setattr("trainonce.pipeline.training.load_dataset", exhaust)
        trainonce("train", "digits").refused("the memory is full; what was saved is safe", code=1)

    def test_other_errors_keep_their_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr("trainonce.pipeline.training.load_dataset", fail)
        with pytest.raises(RuntimeError, match="a fault of ours"):
            trainonce("train", "digits")


class TestBroken:
    @pytest.mark.filterwarnings("always::UserWarning")
    @pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
    def test_skipped_files_are_recorded_and_skipped_again(self, tmp_path: Path, stream: str) -> None:
        folder, run = pictures(tmp_path / "pets", "ant", "bee", each=16), tmp_path / "run"
        broken = folder / "ant" / "3.png"
        whole = broken.read_bytes()
        broken.write_bytes(whole[:60])
        train = ("train", folder, "--image-size", "8", *SHORT, stream, "--decode-workers", "0", "--out", run)
        if stream == "--no-stream":
            trainonce(*train).refused(r"ant/3\.png cannot be read .*: repair or remove it, or leave it out with")
        result = trainonce(*train, "--skip-broken")
        assert result.code == 0, result.err
        assert "left out as broken (1): ant/3.png" in result.err
        assert json.loads((run / "run.json").read_text())["data"]["skipped"] == ["ant/3.png"]
        broken.write_bytes(whole)  # repaired: the run goes on with the images that it had
        evaluate = ("evaluate", run, "--per-bucket", "1", "--calibration-images", "8", "--decode-workers", "0")
        for command in (("train", "--resume", run), (*evaluate, "--workers", "1")):
            result = trainonce(*command)
            assert result.code == 0, result.err
        trainonce("train", "--resume", run, "--skip-broken").refused("--skip-broken cannot be given together with")

    def test_a_study_skips_too(self, tmp_path: Path) -> None:
        folder = pictures(tmp_path / "pets", "ant", "bee", each=16)
        (folder / "ant" / "3.png").write_bytes(b"")
        study = ("study", "baseline", folder, "--image-size", "8", "--scale", "0.001", "--out", tmp_path / "s")
        trainonce(*study, "--dry-run").refused(r"ant/3\.png cannot be read")


class TestClasses:
    def test_counts_are_said_and_what_is_few_or_uneven_is_warned_of(self, tmp_path: Path) -> None:
        pictures(tmp_path, "ant", each=60)
        pictures(tmp_path, "bee", each=5)
        pictures(tmp_path, "cat", each=40)
        result = trainonce("train", tmp_path, "--image-size", "8", *SHORT, "--dry-run")
        assert result.code == 0, result.err
        assert "Training images: ant 43, bee 3, cat 28" in result.err
        assert "Warning: train has fewer than 5 images of 1 of 3 classes (bee 3): what is learnt" in result.err
        assert "Warning: validate has fewer than 5 images of 2 of 3 classes (bee 1, cat 4): what" in result.err
        assert "Warning: test has fewer than 5 images of 1 of 3 classes (bee 1): what" in result.err
        assert "Warning: the classes are uneven: ant has 43 training images, bee 3;" in result.err

    def test_nothing_to_warn_of(self) -> None:
        result = trainonce("train", "digits", *SHORT, "--dry-run")
        assert "Training images: 0 106, 1 109" in result.err
        assert "Warning" not in result.err


class TestNames:
    def test_a_class_folder_that_is_not_utf8(self, tmp_path: Path) -> None:
        pictures(tmp_path, "ant", LATIN)
        said = r"the class folder .*/caf\\xe9 has a name that is not UTF-8, as old archives have: rename it"
        trainonce("train", tmp_path, "--dry-run").refused(said)

    @pytest.mark.filterwarnings("always::UserWarning")
    def test_a_file_that_is_not_utf8_is_read_and_named(self, tmp_path: Path) -> None:
        pictures(tmp_path, "ant", "bee")
        (tmp_path / "ant" / "0.png").rename(tmp_path / "ant" / f"{LATIN}.png")
        assert trainonce("train", tmp_path, "--image-size", "8", *SHORT, "--dry-run").code == 0
        (tmp_path / "ant" / f"{LATIN}.png").write_bytes(b"")
        trainonce("train", tmp_path, "--dry-run").refused(r"ant/caf\\xe9\.png cannot be read")
        train = ("train", tmp_path, "--image-size", "8", *SHORT, "--skip-broken", "--out", tmp_path.with_name("run"))
        result = trainonce(*train)
        assert result.code == 0, result.err
        assert RunDirectory(tmp_path.with_name("run")).config().data.skipped == (r"ant/caf\xe9.png",)
        assert trainonce("train", "--resume", tmp_path.with_name("run")).code == 0

    @pytest.mark.parametrize("kind", ["folder", "npz"])
    def test_a_data_path_that_is_not_utf8(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / LATIN
        pictures(path, "ant", "bee")
        if kind == "npz":
            path = path / "x.npz"
            np.savez(path, train_images=np.zeros((40, 8, 8), np.uint8), train_labels=np.arange(40) % 2)
        said = r"the path of the images, .*/caf\\xe9.*, has a name in it that is not UTF-8"
        trainonce("train", path, "--dry-run").refused(said)

    def test_class_names_in_an_archive(self, tmp_path: Path) -> None:
        images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2
        for name in (LATIN, "caf\ud800"):
            np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, class_names=["a", name])
            said = r"the class name 'caf\\(xe9|ud800)' is not text that UTF-8 can hold"
            trainonce("train", tmp_path / "x.npz", "--dry-run").refused(said)

    def test_a_run_whose_directory_is_not_utf8(self, tmp_path: Path) -> None:
        """It is supported: its records are UTF-8, and what they say of the path is the path."""
        run = tmp_path / LATIN / "run"
        result = trainonce("train", "digits", *BRIEF, "--batch-size", "512", "--out", run)
        assert result.code == 0, result.err
        assert r"caf\xe9/run'" in str(RunDirectory(run).config().provenance["command"])
        (run / "run.json").read_bytes().decode()
        commands = (
            ("evaluate", run, "--per-bucket", "1", "--calibration-images", "32", "--workers", "1"),
            ("extract", run, "smallest"),
            ("report", run),
            ("draw", run, "--out", tmp_path / LATIN / "x.png"),
        )
        for command in commands:
            result = trainonce(*command)
            assert result.code == 0, result.err
        [subnet] = (run / "subnets").iterdir()
        assert json.loads((subnet / "config.json").read_text(encoding="utf-8"))["trained"]["run"] == str(run)

    @pytest.mark.parametrize(
        "terminal",
        [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
        ids=["ascii", "C"],
    )
    def test_a_terminal_of_ascii(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, terminal: dict[str, str]
    ) -> None:
        net, data = make_net(), make_data(class_names=("café", "猫", "b"))
        arch = net.space.smallest()
        write_subnet(tmp_path / "subnet", net.eval().extract(arch), describe_subnet(net, arch, data))
        pictures(tmp_path / "bilder", "café", "猫")
        commands = (
            ("predict", "subnet", "bilder/café/0.png", "--top", "3"),
            ("train", "bilder", "--image-size", "8", *SHORT, "--dry-run"),
        )
        done = subprocess.run(
            [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands)],
            cwd=tmp_path,
            env=os.environ | terminal,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = [stream.decode("ascii").split(NEXT) for stream in (done.stdout, done.stderr)]
        for out, err in zip(*said, strict=True):
            assert r"caf\xe9" in out + err
            assert r"\u732b" in out + err
