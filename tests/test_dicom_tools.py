"""Our DICOM files before other people's tools: the validator of dicom3tools, GDCM, and dcm2niix. What is not installed is skipped."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest

from sos.cohort.manifest import read_manifest
from sos.phantom import scanner
from sos.phantom.export import COMPRESSED, SHARES, export_patient
from sos.phantom.write import draw_patient

KINDS = [kind for kind in SHARES if kind.startswith("dicom")]


def run(tool: str, package: str, *arguments):
    """What a tool did; skips where it is missing. package: of Debian and Ubuntu."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (apt-get install {package})")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def patients():
    """One patient of a device of 12 bits and one of 16 bits."""
    with pytest.MonkeyPatch.context() as patch:
        drawn = []
        for bits in (12, 16):
            patch.setattr(scanner, "PRESETS", [preset for preset in scanner.PRESETS if preset.bits == bits])
            drawn.append(draw_patient(4, bits))
            patch.undo()
    return drawn


@pytest.fixture(scope="module", params=KINDS)
def files(request, patients, tmp_path_factory):
    """(patient, kind, path) of both patients, for each kind of DICOM."""
    folder = tmp_path_factory.mktemp("files")
    found = []
    for patient in patients:
        patient = replace(patient, export=replace(patient.export, kind=request.param))
        path = folder / f"{patient.exposure.preset.name}.dcm"
        path.write_bytes(export_patient(patient).data)
        found.append((patient, request.param, path))
    return found


def no_error_in(path) -> None:
    done = run("dciodvfy", "dicom3tools", path)
    assert done.returncode == 0 and "Error" not in done.stdout + done.stderr, f"{path.name}: {done.stdout}{done.stderr}"
    assert "CTImage" in done.stderr


def test_the_validator_finds_no_error(files):
    for _, _, path in files:
        no_error_in(path)


def test_the_validator_finds_an_error_that_was_put_in(files, tmp_path):
    dataset = pydicom.dcmread(files[0][2])
    del dataset.ImagePositionPatient
    dataset.save_as(tmp_path / "broken.dcm")
    assert "Error" in run("dciodvfy", "dicom3tools", tmp_path / "broken.dcm").stderr


def test_the_validator_finds_no_error_in_a_cohort(tiny_cohort):
    cohort = read_manifest(tiny_cohort)
    names = [name for name in cohort.table["image"] if name.endswith(".dcm")]
    assert len(names) > len(cohort.table) / 2
    for name in names:
        no_error_in(cohort.root / name)


def test_gdcm_reads_the_same_pixels(files, tmp_path):
    for patient, kind, path in files:
        told = run("gdcminfo", "libgdcm-tools", path)
        assert told.returncode == 0 and "CT Image Storage" in told.stdout
        assert f"Dimensions: ({patient.pixels.shape[1]},{patient.pixels.shape[0]},1)" in told.stdout
        assert run("gdcmconv", "libgdcm-tools", "--raw", path, tmp_path / "raw.dcm").returncode == 0
        stored = pydicom.dcmread(tmp_path / "raw.dcm").pixel_array.astype(int)
        np.testing.assert_array_equal(stored, stored_values(patient, kind))


def test_dcm2niix_reads_the_same_pixels(files, tmp_path):
    for patient, kind, path in files:
        done = run("dcm2niix", "dcm2niix", "-s", "y", "-b", "n", "-f", "slice", "-o", tmp_path, path)
        if "recompile dcm2niix with JPEGLS support" in done.stdout:
            pytest.skip("this dcm2niix was built without JPEG-LS")
        assert done.returncode == 0, done.stdout + done.stderr
        values, voxel_mm = read_nifti(tmp_path / "slice.nii")
        intercept = patient.exposure.preset.intercept
        np.testing.assert_array_equal(values[::-1], stored_values(patient, kind) + intercept)  # its rows run upward
        assert voxel_mm == pytest.approx(patient.exposure.voxel_mm)
        (tmp_path / "slice.nii").unlink()


def stored_values(patient, kind: str) -> np.ndarray:
    """(h, w) int: what the file has to hold of a patient's grey values."""
    preset = patient.exposure.preset
    stored = patient.pixels.astype(int) - preset.intercept
    return 2**preset.bits - 1 - stored if kind == "dicom-monochrome1" else stored


def read_nifti(path) -> tuple[np.ndarray, float]:
    """Values (h, w) float64 of a NIfTI-1 file of one slice, and the width of a pixel in mm."""
    raw = path.read_bytes()
    _, width, height, depth = np.frombuffer(raw, "<i2", 4, 40)
    (code,) = np.frombuffer(raw, "<i2", 1, 70)
    (voxel_mm,) = np.frombuffer(raw, "<f4", 1, 80)
    offset, slope, intercept = np.frombuffer(raw, "<f4", 3, 108).astype(float)
    assert depth == 1
    values = np.frombuffer(raw, {4: "<i2", 512: "<u2"}[int(code)], int(width) * int(height), int(offset))
    return values.reshape(height, width) * slope + intercept, float(voxel_mm)


def test_every_compressed_kind_is_among_those_tested():
    assert set(COMPRESSED) < set(KINDS)
