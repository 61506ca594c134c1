"""Exported networks: onnxruntime gives the probabilities of `sos predict`, and so does the code beside them, which knows neither sos nor torch."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from dicoms import ct, picture, save
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from sos import cli, export, standalone
from sos.cohort.cameras import frame_camera, normalise, reduce_to, still_scene
from sos.config import RunConfig
from sos.errors import RunError
from sos.images.reader import read_image
from sos.method.models import build
from sos.predict import Stager, load_stager
from sos.stages import FRANKLIN4

BESIDE = {"model.onnx", "preprocessing.json", "README.md", "stage.py"}


@pytest.fixture(scope="module")
def images(tiny_cohort):
    return sorted((tiny_cohort.parent / "images").iterdir())


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The student that ships with sos, which looks twice, exported."""
    folder = tmp_path_factory.mktemp("export") / "new" / "released"
    assert cli.main(["export", "released", "--out", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == BESIDE and list(folder.parent.iterdir()) == [folder]
    return folder


@pytest.fixture(scope="module")
def one_look():
    """The paper's kind of student, untrained, of four stages, at a temperature that shows."""
    torch.manual_seed(3)
    config = RunConfig(frame_px=96)
    return Stager(build(config, 4).eval(), config, FRANKLIN4, "untrained", 0.4)


@pytest.fixture(scope="module")
def one_look_folder(one_look, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "look"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load_stager", lambda weights: one_look)
        return export.export_onnx("run", folder)


def session(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def frame_of(path, stager):
    """(1, n, n) as `Stager.look` has it before normalisation."""
    native, _, _ = reduce_to(read_image(path), stager.native_px)
    return (frame_camera(torch.from_numpy(native)[None, None].float(), still_scene(torch.tensor([native.shape])), stager.config) / 255)[0].numpy()


def test_onnxruntime_gives_the_probabilities_of_predict(released, images):
    """24 virtual images, DICOM and screenshots, none of them square, as one batch and one by one."""
    stager, network = load_stager("released"), session(released)
    assert len(images) >= 20 and all(h != w for h, w in (read_image(path).pixels.shape for path in images))
    frames = np.stack([frame_of(path, stager) for path in images])
    probabilities, windows = network.run(["probabilities", "window"], {"frame": frames})
    assert probabilities.shape == (len(images), 5) and windows.shape == (len(images), 4)
    told = np.array([stager.look(read_image(path))["probabilities"] for path in images])
    assert abs(probabilities - told).max() <= 1e-4 and np.ptp(told, axis=0).max() > 0.8
    for k in (0, 7):
        np.testing.assert_allclose(network.run(["probabilities"], {"frame": frames[k:k + 1]})[0][0], probabilities[k], atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(windows, stager.net.where(normalise(torch.from_numpy(frames))).numpy(), atol=1e-4)


def test_a_one_look_student_gives_its_too(one_look, one_look_folder, images):
    network = session(one_look_folder)
    assert [output.name for output in network.get_outputs()] == ["probabilities"]
    frames = np.stack([frame_of(path, one_look) for path in images])
    told = np.array([one_look.look(read_image(path))["probabilities"] for path in images])
    assert abs(network.run(None, {"frame": frames})[0] - told).max() <= 1e-4
    mirrored = network.run(None, {"frame": np.ascontiguousarray(frames[..., ::-1])})[0]
    np.testing.assert_allclose(mirrored, network.run(None, {"frame": frames})[0], atol=1e-5)


@pytest.mark.parametrize("which", ["released", "one_look"])
def test_the_code_beside_it_follows_the_description_to_the_same_probabilities(which, released, one_look, one_look_folder, images, tmp_path):
    """From the file on, without sos and torch: DICOM of all kinds, PNG, JPEG, and a picture larger than is looked at, with transparent pixels."""
    folder, stager = (released, load_stager("released")) if which == "released" else (one_look_folder, one_look)
    large = np.asarray(Image.open(next(path for path in images if path.suffix == ".png")).convert("L").resize((1700, 1500)))
    Image.fromarray(np.stack([large, 255 * (np.indices(large.shape)[0] > 99).astype(np.uint8)], -1), "LA").save(tmp_path / "large.png")
    paths = [*images, tmp_path / "large.png"]
    done = subprocess.run([sys.executable, folder / "stage.py", *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row, path in zip(rows, paths, strict=True):
        told = stager.look(read_image(path))
        assert row["probabilities"] == pytest.approx(told["probabilities"], abs=5e-4), path.name
        assert row["stage"] == told["stage"] and row["use"] == "research use only"


def test_the_code_beside_it_needs_neither_sos_nor_torch(released):
    tree = ast.parse((released / "stage.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "pathlib", "numpy", "PIL", "onnxruntime", "pydicom"}


STORED = picture().astype(np.uint16)
SIGNED = picture().astype(np.int16) - 1000
CORNERED = np.where(np.indices(STORED.shape).sum(0) < 40, 63536, STORED).astype(np.uint16)  # as signed 16 bit: -2000


def stated_unsigned(data):
    """Signed pixels with a padding value of another kind, as many writers have it."""
    data.add_new("PixelPaddingValue", "US", 63536)
    return data


def grey_by_both(path):
    """Grey values of an image by sos and by the code beside an export."""
    return read_image(path).pixels, standalone.grey(standalone.read(path), {"dark": export.DARK, "bright": export.BRIGHT})


@pytest.mark.parametrize("data", [
    ct(STORED, bits=12, RescaleSlope=0.5, RescaleIntercept=-1000), ct(STORED, bits=12, RescaleSlope="", RescaleIntercept=""),
    ct(STORED, bits=12, RescaleSlope=0), ct(SIGNED, bits=12, PhotometricInterpretation="MONOCHROME1"),
    ct(STORED, bits=12, PhotometricInterpretation="MONOCHROME1", RescaleIntercept=-1000),
    ct(STORED, PixelPaddingValue=0, PixelPaddingRangeLimit=1300),
    ct(STORED, PixelPaddingValue=1300, PixelPaddingRangeLimit=0), ct(CORNERED.view(np.int16), PixelPaddingValue=-2000),
    stated_unsigned(ct(CORNERED.view(np.int16))), ct(CORNERED.view(np.int16), PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1),
    ct(CORNERED, PixelPaddingValue=63536)], ids=lambda data: "")
def test_dicom_is_read_by_both_alike(data, tmp_path):
    told, given = grey_by_both(save(data, tmp_path / "slice.dcm"))
    np.testing.assert_allclose(given, told, atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_dicom_is_read_by_both_alike(syntax, tmp_path):
    data = ct(STORED, bits=12, RescaleIntercept=-1000)
    data.compress(syntax)
    told, given = grey_by_both(save(data, tmp_path / "slice.dcm"))
    np.testing.assert_allclose(given, told, atol=1e-6)


@pytest.mark.parametrize("mode, kind, options", [
    ("L", "PNG", {}), ("I;16", "PNG", {}), ("LA", "PNG", {}), ("RGB", "PNG", {}), ("RGBA", "PNG", {}), ("P", "PNG", {}), ("1", "PNG", {}),
    ("L", "PNG", {"transparency": 90}), ("I;16", "PNG", {"transparency": 23130}), ("L", "JPEG", {}), ("RGB", "JPEG", {}), ("L", "TIFF", {}),
    ("I;16", "TIFF", {}), ("F", "TIFF", {}), ("RGB", "TIFF", {})])
def test_pictures_are_read_by_both_alike(mode, kind, options, tmp_path):
    grey = picture(8).astype(np.uint8)
    image = (Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else
             Image.merge("RGB", [Image.fromarray(np.roll(grey, 9 * k)) for k in range(3)]) if mode == "RGB" else Image.fromarray(grey).convert(mode))
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.where(np.indices(grey.shape)[0] < 20, 100, 255).astype(np.uint8)))
    image.save(tmp_path / "image", kind, **options)
    told, given = grey_by_both(tmp_path / "image")
    np.testing.assert_allclose(given, told, atol=1e-6)


VOI = Dataset()
VOI.LUTDescriptor, VOI.LUTData = [2, 0, 16], b"\1\0\0\0"


@pytest.mark.parametrize("data", [
    ct(np.stack([STORED] * 2)), ct(np.stack([STORED.astype(np.uint8)] * 3, -1)), ct(STORED << 4, bits=12, HighBit=15),
    ct(STORED, VOILUTSequence=[VOI]), ct(STORED, ModalityLUTSequence=[VOI]), ct(STORED, bits=12, PixelPaddingValue=63536),
    ct(STORED, SharedFunctionalGroupsSequence=[Dataset()]), ct(np.full_like(STORED, 7)),
    ct(STORED, PixelPaddingValue=0, PixelPaddingRangeLimit=65535)], ids=lambda data: "")
def test_what_takes_more_is_refused(data, tmp_path):
    path = save(data, tmp_path / "slice.dcm")
    with pytest.raises(standalone.Refused):
        standalone.grey(standalone.read(path), {"dark": export.DARK, "bright": export.BRIGHT})


def test_what_is_not_read_has_a_line_of_its_own_and_stops_nothing(released, images, tmp_path):
    save(ct(np.stack([STORED] * 2), PatientName="Doe"), tmp_path / "volume.dcm")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    paths = [tmp_path / "volume.dcm", tmp_path / "broken.png", tmp_path / "absent.png", images[0]]
    done = subprocess.run([sys.executable, released / "stage.py", *paths], capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and not done.stderr and "Doe" not in done.stdout
    assert [row.get("error") for row in rows] == ["not a single grey image; stage it with `sos predict`", "not readable (UnidentifiedImageError)",
                                                  "not readable (FileNotFoundError)", None]
    assert rows[3]["stage"] in range(1, 6) and all(row["use"] == "research use only" for row in rows)


def test_the_model_describes_itself_and_names_no_file_of_this_machine(released):
    model = onnx.load(released / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    told = {item.key: item.value for item in model.metadata_props}
    assert told["use"] == "research use only" and json.loads(told["labels"]) == [1, 2, 3, 4, 5] and told["virtual"] == "true"
    assert told["weights"].startswith("released student-") and "not for clinical decisions" in model.doc_string
    assert [item.version for item in model.opset_import if item.domain == ""] == [20]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 384, 384]
    raw = (released / "model.onnx").read_bytes()
    for text in (b"site-packages", b"zoom.py", b"cameras.py", str(Path(export.__file__).parents[1]).encode()):
        assert text not in raw


def test_words_and_numbers_agree(released, one_look_folder):
    for folder, n, samples in ((released, 384, 1), (one_look_folder, 96, 2)):
        how, text = json.loads((folder / "preprocessing.json").read_text()), (folder / "README.md").read_text()
        assert (how["frame_px"], how["samples"], how["input"]["frame"][2:]) == (n, samples, [n, n])
        assert how["largest_difference"] < 1e-4 and "**Research use only.**" in text
        assert f"{n * samples} × {n * samples} places" in text and ("mean of its 2 × 2 samples" in text) == (samples == 2)
        for label, name in zip(how["labels"], how["names"], strict=True):
            assert re.search(rf"\| {label} \| {name} \|", text)
    assert "virtual patients only" in (released / "README.md").read_text()
    assert "virtual patients only" not in (one_look_folder / "README.md").read_text()


# what is refused


def test_a_teacher_is_refused_as_predict_refuses_it(tmp_path, capsys):
    run = tmp_path / "teacher-0"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": {"role": "teacher"}, "scheme": "bassed5", "virtual": True}))
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "a teacher reads crops" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        export.export_onnx("released", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_network_that_differs_is_not_exported(one_look, one_look_folder, tmp_path, monkeypatch):
    """onnxruntime is given the network of another temperature."""
    other = Stager(one_look.net, one_look.config, one_look.scheme, "other", 1.0)
    monkeypatch.setattr(export, "load_stager", lambda weights: other)
    monkeypatch.setattr(export, "write_network", lambda stager, path, how: shutil.copy(one_look_folder / "model.onnx", path))
    with pytest.raises(RunError, match="nothing was exported"):
        export.export_onnx("run", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
