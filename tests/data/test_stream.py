"""Images streamed from disk: the same pixels, results and runs as from memory, and nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.lines import timeless
from torch import Tensor

import trainonce
from trainonce.data import DataSet, Split, load_dataset
from trainonce.data.stream import BATCHES_AHEAD, ImageFiles, default_workers
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.records import count_file
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

MakeNet = Callable[..., MobileNetV3]
CLASSES, EACH = ("ant", "bee", "cat"), 32
TRAIN = 67  # images that are left for training; 8 batches of 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures of several sizes and formats, some transparent; noise so that no two are alike."""
    root = tmp_path_factory.mktemp("pictures") / "pets"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name / "deeper").mkdir(parents=True)
        for i in range(EACH):
            kind = ("png", "jpg", "webp", "bmp", "tiff", "jpg")[i % 6]
            pixels = rng.integers(0, 256, (12 + i % 3, 14 + i % 5, 3 if kind in ("jpg", "bmp") else 4), dtype=np.uint8)
            place = f"deeper/é {i}.{kind}" if i % 4 == 0 else f"{i}.{kind}"
            Image.fromarray(pixels).save(root / name / place)
    return root


def load(pictures: Path, *, stream: bool, workers: int = 0, grey: bool = True) -> DataSet:
    return load_dataset(str(pictures), image_size=8, grey=grey, stream=stream, workers=workers)


def splits(data: DataSet) -> tuple[Split, ...]:
    return data.train, data.calibrate, data.validate, data.test


def rows_of(split: Split, size: int = 8) -> tuple[Tensor, ...]:
    return torch.split(torch.randperm(len(split), generator=torch.Generator().manual_seed(1)), size)


def break_file(data: DataSet, row: int) -> Path:
    """Cut off the file of a training image."""
    assert isinstance(data.train.pixels, ImageFiles)
    path = Path(data.train.pixels.paths(torch.tensor([row]))[0])
    path.write_bytes(path.read_bytes()[:60])
    return path


@pytest.fixture
def copied(pictures: Path, tmp_path: Path) -> Path:
    for file in pictures.rglob("*.*"):
        new = tmp_path / "copy" / file.relative_to(pictures)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(file.read_bytes())
    return tmp_path / "copy"


class TestSameImages:
    @pytest.mark.parametrize(("grey", "workers"), [(True, 0), (False, 0), (False, 2)])
    def test_every_split_bit_for_bit_and_in_order(self, pictures: Path, grey: bool, workers: int) -> None:
        memory = load(pictures, stream=False, grey=grey)
        disk = load(pictures, stream=True, workers=workers, grey=grey)
        assert [split.streamed for split in splits(memory) + splits(disk)] == [False] * 4 + [True] * 4
        for held, streamed in zip(splits(memory), splits(disk), strict=True):
            assert streamed.shape == held.shape == (len(held), 1 if grey else 3, 8, 8)
            found = list(streamed.batches(rows_of(held)))
            for expected, batch in zip(held.batches(rows_of(held)), found, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(expected, batch, strict=True))
                assert batch.images_BCHW.is_contiguous()
            ordered = list(streamed.in_order(7))
            assert torch.equal(torch.cat([batch.images_BCHW for batch in ordered]), held.images)
            assert torch.equal(torch.cat([batch.labels_B for batch in ordered]), held.labels)
            some = torch.tensor([3, 0, 3])
            assert torch.equal(streamed.batch(some).images_BCHW, held.images[some])

    def test_one_fingerprint_and_one_description(self, pictures: Path) -> None:
        memory, disk = (load(pictures, stream=stream) for stream in (False, True))
        assert disk.fingerprint() == memory.fingerprint()
        assert (disk.image_size, disk.channels, disk.class_names) == (8, 1, CLASSES)
        assert disk.decoded_bytes == memory.decoded_bytes == 96 * 64
        assert disk.streamed
        assert not memory.streamed
        assert disk.source.stream is True

    def test_all_at_once_is_refused(self, pictures: Path) -> None:
        with pytest.raises(AssertionError, match="streamed: take them by batch"):
            _ = load(pictures, stream=True).train.images

    def test_the_global_generator_is_left_alone(self, pictures: Path) -> None:
        before = torch.get_rng_state()
        list(load(pictures, stream=True).train.in_order(8))
        assert torch.equal(torch.get_rng_state(), before)

    def test_published_splits(self, pictures: Path, tmp_path: Path) -> None:
        for name in ("train", "val"):
            (tmp_path / name).symlink_to(pictures)
        memory, disk = (load(tmp_path, stream=stream) for stream in (False, True))
        assert disk.fingerprint() == memory.fingerprint()
        assert torch.equal(next(disk.validate.in_order(99)).images_BCHW, memory.validate.images)


class TestChoice:
    @pytest.mark.parametrize(("memory", "streamed"), [(4 * 96 * 64, False), (4 * 96 * 64 - 1, True)])
    def test_what_takes_more_than_a_quarter_of_memory(
        self, pictures: Path, monkeypatch: pytest.MonkeyPatch, memory: int, streamed: bool
    ) -> None:
        monkeypatch.setattr("trainonce.data.folder.memory_bytes", lambda: memory)
        data = load_dataset(str(pictures), image_size=8, grey=True)
        assert data.streamed is streamed
        assert data.source.stream is None
        assert load(pictures, stream=not streamed).streamed is not streamed

    def test_images_beyond_memory_are_refused_where_they_are_to_be_held(
        self, pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainonce.limits.memory_bytes", lambda: 2 * 96 * 64 - 1)
        with pytest.raises(UserError, match=r"the images of .*pets, .* would take 12,288 bytes of memory"):
            load(pictures, stream=False)
        data = load(pictures, stream=True)
        assert data.train.drawn(67, seed=0).shape == (67, 1, 8, 8)
        monkeypatch.setattr("trainonce.limits.memory_bytes", lambda: 67 * 64 - 1)
        assert len(data.fingerprint()) == 16, "image by image"
        with pytest.raises(UserError, match=r"67 images of 8 x 8 pixels would take 4,288 bytes"):
            data.train.drawn(67, seed=0)

    def test_only_folders(self, tmp_path: Path) -> None:
        for name in ("digits", str(tmp_path / "x.npz")):
            with pytest.raises(UserError, match="only a folder of images can be streamed"):
                load_dataset(name, stream=True)
        with pytest.raises(UserError, match="worker processes must be 0 or more, not -1"):
            load_dataset("digits", workers=-1)
        assert load_dataset("digits", stream=False).source.stream is False

    def test_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cores, workers in ((None, 1), (1, 1), (2, 1), (8, 7), (96, 16)):
            monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
            assert default_workers() == workers


class TestAhead:
    def test_rows_are_read_only_a_little_ahead(self, pictures: Path) -> None:
        drawn = 0

        def rows() -> Iterator[Tensor]:
            nonlocal drawn
            while True:
                drawn += 1
                yield torch.arange(4)

        data = load(pictures, stream=True, workers=2)
        batches = data.train.batches(rows())
        assert drawn == 0
        for taken in range(1, 20):
            next(batches)
            assert drawn <= taken + 2 * BATCHES_AHEAD
        assert drawn > 19
        batches.close()

    def test_memory_does_not_grow_with_the_number_of_images(self, pictures: Path) -> None:
        split = load_dataset(str(pictures), image_size=32, stream=True, workers=0).train

        def peak(images: int) -> int:
            some = split.take(np.arange(images, dtype=np.int64) % len(split))
            tracemalloc.start()
            try:
                for _ in some.in_order(8):
                    pass
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(8)
        few, many = peak(80), peak(640)
        assert many - few < 560 * 3 * 32 * 32 / 20  # a twentieth of what the further images would take

    def test_file_names_are_compact(self, pictures: Path) -> None:
        split = load(pictures, stream=True).train
        assert isinstance(split.pixels, ImageFiles)
        assert split.pixels.names.nbytes <= len(split) * len("ant/deeper/é 28.tiff".encode())


class TestBroken:
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_sentence_when_its_batch_is_due(self, copied: Path, workers: int) -> None:
        data = load(copied, stream=True, workers=workers)
        path = break_file(data, 20)
        batches = data.train.in_order(8)
        assert [len(next(batches).rows_B) for _ in range(2)] == [8, 8]
        with pytest.raises(UserError) as caught:
            next(batches)
        assert str(caught.value).startswith(f"{path} cannot be read as a JPEG, PNG, WebP, BMP or TIFF image")
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="cannot be read as a JPEG"):
            data.train.batch(torch.tensor([20]))
        with pytest.raises(UserError, match="cannot be read as a JPEG"):
            load(copied, stream=False)
        path.unlink()
        with pytest.raises(UserError, match="does not exist"):
            data.train.batch(torch.tensor([20]))
        assert multiprocessing.active_children() == []

    def test_a_worker_that_dies(self, pictures: Path) -> None:
        batches = load(pictures, stream=True, workers=1).train.batches(torch.arange(4) for _ in range(10**6))
        next(batches)
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RunError, match=r"a process that decodes images died \(.+\); what the run has saved is"):
            for _ in batches:
                pass
        assert multiprocessing.active_children() == []

    def test_an_iterator_that_is_abandoned(self, pictures: Path) -> None:
        batches = load(pictures, stream=True, workers=2).train.in_order(8)
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        del batches
        assert multiprocessing.active_children() == []


class TestRuns:
    SETTINGS = TrainSettings(checkpoint_every_s=0, log_every=3)

    def go(
        self, make_net: MakeNet, data: DataSet, path: Path, *, resume: bool = False, stop: int | None = None
    ) -> dict[str, Tensor]:
        """Train 12 steps, 8 an epoch, in several phases; or stop early."""
        recipe = RECIPES["ps"].with_batch_size(8)
        recipe = recipe.scaled(1.5 / recipe.epochs)
        net, steps = make_net(seed=7 if resume else 0), iter(range(1, 100))
        finished = train_supernet(
            net,
            recipe,
            data,
            RunDirectory(path),
            resume=resume,
            settings=self.SETTINGS,
            should_stop=lambda: next(steps) == stop,
        )
        assert finished == (stop is None)
        return net.state_dict()

    def test_trained_and_resumed_in_mid_epoch_bit_for_bit(
        self, make_net: MakeNet, pictures: Path, tmp_path: Path
    ) -> None:
        memory = load(pictures, stream=False)
        assert len(memory.train) == TRAIN
        expected = self.go(make_net, memory, tmp_path / "memory")
        self.go(make_net, load(pictures, stream=True, workers=2), tmp_path / "disk", stop=3)
        assert multiprocessing.active_children() == []
        self.go(make_net, load(pictures, stream=True), tmp_path / "disk", resume=True, stop=2)
        self.go(make_net, memory, tmp_path / "disk", resume=True, stop=4)
        found = self.go(make_net, load(pictures, stream=True), tmp_path / "disk", resume=True)
        assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []
        runs = [RunDirectory(tmp_path / name) for name in ("memory", "disk")]
        straight, resumed = (timeless(run.metrics()) for run in runs)
        assert straight == resumed
        assert runs[0].config().identity() == runs[1].config().identity()
        assert [run.load_data().streamed for run in runs] == [False, True]
        assert not runs[1].load_data(stream=False).streamed

    def test_scores(self, make_net: MakeNet, pictures: Path) -> None:
        net = make_net()
        settings = EvaluateSettings(calibration_images=20, calibration_batch=8, score_batch=4)
        for arch in (net.space.smallest(), net.space.largest()):
            scores = [
                Evaluator(load(pictures, stream=stream, workers=workers), "test", settings)(net, arch)
                for stream, workers in ((False, 0), (True, 0), (True, 1))
            ]
            assert scores[0] == scores[1] == scores[2]


def processes_of_session(session: int) -> list[int]:
    """Every process that belongs to a session and is not a zombie."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
class TestCommand:
    """The command in a session of its own, so that every process it starts can be found."""

    OPTIONS = ("--image-size", "8", "--width", "0.25", "--batch-size", "8", "--threads", "1", "--device", "cpu")

    def start(self, *arguments: str, folder: Path) -> subprocess.Popen[str]:
        environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(Path(trainonce.__file__).parents[1])}
        return subprocess.Popen(
            [sys.executable, "-m", "trainonce", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def trained_until(self, run: RunDirectory, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60
        while not run.metrics_file.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def gone(self, session: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while processes_of_session(session) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not processes_of_session(session)

    @pytest.mark.long
    def test_stopped_with_all_its_processes_and_killed(self, pictures: Path, tmp_path: Path) -> None:
        """SIGTERM to every process saves cleanly; a killed run leaves neither a process nor the lock behind."""
        run = RunDirectory(tmp_path / "run")
        arguments = ("train", str(pictures), *self.OPTIONS, "--stream", "--decode-workers", "2", "--out", "run")
        first = self.start(*arguments, "--recipe", "spos", "--epochs", "1000", folder=tmp_path)
        self.trained_until(run, first)
        os.killpg(first.pid, signal.SIGTERM)
        _, said = first.communicate(timeout=30)
        assert first.returncode == 143, said
        assert "pets: streaming; the images stay on disk" in said
        assert "Stopped and saved. Go on with: trainonce train --resume run" in said
        assert "Traceback" not in said
        assert self.gone(first.pid, 15)

        run.metrics_file.unlink()
        count_file(run.metrics_file).unlink()
        second = self.start("train", "--resume", "run", "--decode-workers", "2", "--device", "cpu", folder=tmp_path)
        self.trained_until(run, second)
        assert len(processes_of_session(second.pid)) >= 4
        second.kill()
        second.communicate(timeout=30)
        with run.lock():
            pass
        assert self.gone(second.pid, 15)

    def test_a_broken_image_is_a_sentence(self, copied: Path, tmp_path: Path) -> None:
        path = break_file(load(copied, stream=True), 20)
        result = self.start(
            "train", str(copied), *self.OPTIONS, "--stream", "--epochs", "1", "--out", "run", folder=tmp_path
        )
        _, said = result.communicate(timeout=60)
        assert result.returncode == 2, said
        assert "Traceback" not in said
        assert f"trainonce: {path} cannot be read as a JPEG, PNG" in said
        assert self.gone(result.pid, 15)
