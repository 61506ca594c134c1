"""The decoders that let go of the interpreter's lock: asked first, equal to pydicom's, and with pydicom's behind them for what they refuse."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms import ct, picture
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from sos.images import decode
from sos.images.codecs import NAME, SYNTAXES, register

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
REPOSITORY = Path(__file__).resolve().parents[1]
COLLECTION = Path(pydicom.__file__).parent / "data/test_files"
LOSSLESS = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}


def compressed(stored: np.ndarray, syntax):
    data = ct(stored, NumberOfFrames=1)
    data.compress(syntax, generate_instance_uid=False, **({"encoding_plugin": "pylibjpeg"} if syntax == JPEG2000Lossless else {}))
    return data


def by(name: str, data, index: int = 0) -> np.ndarray:
    return get_decoder(data.file_meta.TransferSyntaxUID).as_array(data, index=index, decoding_plugin=name)[0]


def test_they_are_asked_before_all_others_and_known_once():
    for _ in range(2):
        register()
    for syntax in SYNTAXES:
        assert get_decoder(syntax).available_plugins[0] == NAME and get_decoder(syntax).available_plugins.count(NAME) == 1


@pytest.mark.parametrize("dtype, bits", [(np.uint16, 16), (np.uint16, 12), (np.uint8, 8), (np.int16, 15)])
@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS.keys())
def test_a_compressed_picture_is_what_was_compressed(syntax, dtype, bits):
    stored = picture(bits=bits).astype(dtype)
    data = compressed(stored, syntax)
    if syntax == JPEGLSLossless and dtype == np.int16:
        with pytest.raises(RuntimeError, match="another kind"):  # JPEG-LS knows no sign; what that means, pydicom says
            by(NAME, data)
    else:
        assert (by(NAME, data) == stored).all() and by(NAME, data).dtype == dtype
    assert (decode._stored(data, 0) == stored).all()


def test_without_imagecodecs_pixels_are_the_same(tmp_path):
    """In a process of its own, where it cannot be imported."""
    stored = [picture(bits=12).astype(np.uint16), picture(bits=8).astype(np.uint8)]
    names = []
    for kind, syntax in LOSSLESS.items():
        for k, one in enumerate(stored):
            names.append(tmp_path / f"{kind} {k}.dcm")
            compressed(one, syntax).save_as(names[-1], enforce_file_format=True)
    code = ("import sys; sys.modules['imagecodecs'] = None\nimport pydicom\nfrom sos.images import codecs, decode, header\n"
            "assert codecs.imagecodecs is None\n"
            "for name in sys.argv[1:]:\n    data = header.read_header(name, pixels=True); data.NumberOfFrames = 1\n"
            "    print(decode._stored(data, 0).tobytes().hex())")
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == [one.tobytes().hex() for _ in LOSSLESS for one in stored]


def test_the_whole_collection_is_decoded_as_by_the_others():
    """Files of pydicom's collection, one and several frames, grey and coloured, some with wrong headers."""
    taken = refused = 0
    for path in sorted(COLLECTION.rglob("*.dcm")):
        try:
            data = pydicom.dcmread(path)
            if data.file_meta.TransferSyntaxUID not in SYNTAXES:
                continue
            ours = by(NAME, data)
        except (pydicom.errors.InvalidDicomError, AttributeError):
            continue
        except RuntimeError:
            refused += 1
            continue
        taken += 1
        for other in get_decoder(data.file_meta.TransferSyntaxUID).available_plugins[1:]:
            try:
                theirs = by(other, data)
            except RuntimeError:
                continue
            assert theirs.dtype == ours.dtype and (theirs == ours).all(), (path.name, other)
    assert taken >= 8 and refused >= 2, (taken, refused)


def test_a_coloured_frame_is_left_to_the_others():
    data = pydicom.dcmread(COLLECTION / "SC_rgb_rle.dcm")
    with pytest.raises(RuntimeError, match="only grey"):
        by(NAME, data)
    assert (decode._stored(data, 0) == data.pixel_array).all()


@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS.keys())
def test_a_frame_of_another_size_or_cut_short_is_refused(syntax):
    stored = picture().astype(np.uint16)
    for rows, cut in ((stored.shape[0] + 1, 0), (stored.shape[0], 200)):
        data = compressed(stored, syntax)
        frame = get_frame(data.PixelData, 0, number_of_frames=1)
        data.PixelData, data.Rows = encapsulate([frame[:len(frame) - cut]]), rows
        with pytest.raises(RuntimeError, match="Unable to decode"):
            by(NAME, data)


@pytest.mark.parametrize("dtype, asked", [(np.uint16, NAME), (np.int16, "pyjpegls")])
def test_damaged_jpeg_ls_is_refused_by_one_decoder_alone(dtype, asked):
    """All are of one library, which can take seconds to refuse."""
    data = compressed(picture(bits=15).astype(dtype), JPEGLSLossless)
    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    data.PixelData = encapsulate([frame[:len(frame) // 2]])
    with pytest.raises(RuntimeError) as refused:
        decode._stored(data, 0)
    assert [name for name in get_decoder(JPEGLSLossless).available_plugins if f"{name}:" in str(refused.value)] == [asked]


def test_run_lengths_cannot_ask_for_more_memory_than_the_header_says():
    data = compressed(picture().astype(np.uint16), RLELossless)
    header, run = get_frame(data.PixelData, 0, number_of_frames=1)[:64], b"\x81\x00" * 50_000  # 6 million zeros
    data.PixelData = encapsulate([header[:8] + (64 + len(run)).to_bytes(4, "little") + header[12:] + run + run])
    with pytest.raises(RuntimeError, match="Unable to decode"):
        by(NAME, data)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=["JPEG 2000", "JPEG-LS"])
def test_another_thread_works_while_a_frame_is_decoded(syntax):
    data, ticks, done = compressed(np.random.default_rng(0).integers(0, 65536, (1024, 1024)).astype(np.uint16), syntax), [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-3)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    by(NAME, data)
    took = time.perf_counter() - start
    done.set()
    thread.join()
    assert any(0.2 * took < at - start < 0.6 * took for at in ticks), f"nothing happened in {took:.2f} s"
