"""The page that runs networks in a browser: what it holds, what is refused, and its logits against torch's."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.export.conftest import Exported
from tests.support.chromium import chromium, needs_chromium
from tests.support.command_line import trainonce

from trainonce.errors import UserError
from trainonce.export import web
from trainonce.export.predict import open_classifier
from trainonce.nn.native.library import CACHE
from trainonce.pipeline import demo
from trainonce.subnets import read_subnet

FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
FAKE = {web.SCRIPT: b"export const env = 1;</script>", web.PROGRAM: b"\0asm"}


class TestPage:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder of a runtime, whose hashes are those that are pinned, and an empty cache."""
        monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
        monkeypatch.setattr(web, "SHA256", {name: sha256(content).hexdigest() for name, content in FAKE.items()})
        folder = tmp_path / "package" / "dist"
        folder.mkdir(parents=True)
        for name, content in FAKE.items():
            (folder / name).write_bytes(content)
        return folder.parent

    def test_the_runtime_is_named_once(self, package: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"needs onnxruntime-web 1\.30\.0, once: --runtime npm fetches it"):
            web.runtime_files()
        with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
            tar.add(package, "package")
        assert web.runtime_files(tmp_path / "package.tgz") == FAKE
        assert web.runtime_files() == FAKE, "it is kept"
        (tmp_path / "cache" / "onnxruntime-web-1.30.0" / web.PROGRAM).write_bytes(b"damaged")
        with pytest.raises(UserError, match="once"):
            web.runtime_files()
        assert web.runtime_files(package) == web.runtime_files(package / "dist") == FAKE

    def test_another_runtime_is_refused(self, package: Path, tmp_path: Path) -> None:
        (package / "dist" / web.PROGRAM).write_bytes(b"another")
        with pytest.raises(
            UserError, match=r"its ort-wasm-simd-threaded\.wasm is not that of onnxruntime-web 1\.30\.0"
        ):
            web.runtime_files(package)
        for content in (b"no tarball", io.BytesIO().getvalue()):
            (tmp_path / "x.tgz").write_bytes(content)
            with pytest.raises(UserError, match=r"x\.tgz is not npm's tarball of onnxruntime-web"):
                web.runtime_files(tmp_path / "x.tgz")
        with pytest.raises(UserError, match=r"gone\.tgz"):
            web.runtime_files(tmp_path / "gone.tgz")

    def test_it_holds_all_that_it_needs(
        self, package: Path, exported: Callable[[int], Exported], tmp_path: Path
    ) -> None:
        one = exported(0)
        names = (one.subnet, shutil.copy(one.place / "model.onnx", tmp_path / "1.onnx"))
        said = trainonce("demo", *names, "--out", tmp_path / "a.html", "--runtime", package, "--title", "<A>", "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert [model["name"] for model in found["models"]] == ["0", "1"]
        assert found["models"][0]["top1"] == one.certificate.top1["exported"]
        assert found["models"][0]["macs"] == read_subnet(one.subnet)[1].macs
        assert found["models"][1]["top1"] is None, "no certificate lies beside it"
        page = (tmp_path / "a.html").read_text(encoding="utf-8")
        assert len(page.encode()) == found["bytes"]
        assert "<title>&lt;A&gt;</title>" in page
        assert page.count("</script>") == page.count("<script") == 6, "what is inside ends none"
        assert "default-src 'none'" in page
        assert demo(one.subnet, runtime=package).path == one.subnet.parent / "demo.html"

    def test_what_is_no_model_is_a_sentence(
        self, package: Path, exported: Callable[[int], Exported], tmp_path: Path
    ) -> None:
        file = tmp_path / "model.onnx"
        whole = (exported(0).place / "model.onnx").read_bytes()
        file.write_bytes(whole[:-1] + b"x")
        trainonce("demo", file, "--runtime", package).refused(r"model\.onnx is damaged")
        file.write_bytes(b"foreign")
        trainonce("demo", file, "--runtime", package).refused(r"model\.onnx is damaged or foreign")
        trainonce("demo", tmp_path / "gone", "--runtime", package).refused("gone")
        trainonce("demo", package, "--runtime", package).refused("config.json")
        with pytest.raises(UserError, match="name a subnet's directory"):
            demo([], runtime=package)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), *FAKE_CAMERA) as driver:
        yield driver


@pytest.fixture(scope="module")
def subnets(exported: Callable[[int], Exported]) -> list[Path]:
    return [exported(number).subnet for number in range(3)]


@pytest.fixture(scope="module")
def opened(browser: Any, subnets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page of three subnets, one of which takes smaller images, opened from the disk."""
    try:
        web.runtime_files()
    except UserError as missing:
        pytest.skip(str(missing))
    page = demo(subnets, out=tmp_path_factory.mktemp("page") / "demo.html").path
    browser.get(page.as_uri())
    wait(browser, "return document.documentElement.dataset.ready")
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    return browser


@pytest.mark.browser
@needs_chromium
class TestBrowser:
    @pytest.mark.parametrize(("width", "height"), [(8, 8), (37, 21), (5, 9), (300, 401)])
    def test_the_logits_are_torchs(
        self, opened: Any, subnets: list[Path], tmp_path: Path, width: int, height: int
    ) -> None:
        """Through the page's own way from a file to the input, whatever the size of the picture."""
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
        path = tmp_path / "picture.png"
        Image.fromarray(pixels).save(path)
        opened.execute_script("results = [];")
        opened.find_element("id", "file").send_keys(str(path))
        wait(opened, "return results.filter((one) => one).length === told.models.length")
        given = opened.execute_script("return told.models.map((model, i) => [model.name, results[i].logits])")
        for name, logits in given:
            classifier = open_classifier(next(place for place in subnets if place.name == name))
            with torch.inference_mode():
                expected = classifier.run(classifier.prepared(path))[0]
            assert torch.allclose(torch.tensor(logits), expected, rtol=0, atol=1e-4)
        assert opened.get_log("browser") == []

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(("side", "size"), [(8, 8), (5, 16), (37, 8), (300, 96)])
    def test_pixels_are_pillows(self, opened: Any, side: int, size: int, interpolation: str) -> None:
        pixels = np.random.default_rng(side).integers(0, 256, (side, side)).astype(np.uint8)
        how = Image.Resampling[interpolation.upper()]
        filter_ = {"bilinear": "TRIANGLE", "bicubic": "CUBIC"}[interpolation]
        script = f"return Array.from(resized(arguments[0], {side}, {side}, {size}, true, {filter_}))"
        found = opened.execute_script(script, pixels.flatten().tolist())
        assert found == np.asarray(Image.fromarray(pixels).resize((size, size), how)).flatten().tolist()

    def test_the_slider_and_the_table_choose(self, opened: Any, tmp_path: Path) -> None:
        set_slider = (
            "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
        )
        for number in (0, 2, 1):
            opened.execute_script(set_slider, number)
            name = opened.execute_script("return told.models[arguments[0]].name", number)
            assert opened.find_element("id", "name").text == name
            assert opened.find_element("css selector", "tr.chosen td").text == name
        assert "M MACs" in opened.find_element("id", "facts").text

    def test_one_can_draw_and_use_the_camera(self, opened: Any) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        opened.find_element("id", "draw").click()
        opened.execute_script("results = []")
        pad = opened.find_element("id", "pad")
        ActionChains(opened).move_to_element(pad).click_and_hold().move_by_offset(20, 30).release().perform()
        wait(opened, "return results.filter((one) => one).length === told.models.length")
        seen = opened.execute_script("return Array.from(results[0].planes[0])")
        assert min(seen) == 0, "light ink on dark paper, as these images are dark"
        assert max(seen) > 200
        opened.execute_script("results = []")
        opened.find_element("id", "camera").click()
        wait(opened, "return results.filter((one) => one).length === told.models.length")
        opened.find_element("id", "camera").click()
        assert opened.find_element("id", "camera").get_attribute("aria-pressed") == "false"
        assert opened.get_log("browser") == []

    def test_what_is_no_image_is_said(self, opened: Any, tmp_path: Path) -> None:
        (tmp_path / "note.png").write_text("not an image")
        opened.find_element("id", "file").send_keys(str(tmp_path / "note.png"))
        wait(opened, "return document.getElementById('state').textContent.startsWith('This is not an image')")

    def test_a_phone_shows_it_whole(self, opened: Any) -> None:
        metrics = {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        wide = opened.execute_script("return document.documentElement.scrollWidth")
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert wide <= 360


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120).until(lambda b: b.execute_script(script))
