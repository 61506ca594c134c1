"""Decoders for pydicom that let go of the interpreter's lock, so that other threads compute while a frame is decoded; its own do not.

They take the ordinary frame alone, grey and of the kind that the header says. Whatever else they refuse, and pydicom's own decoders are asked
after them (they stand behind in the alphabet); of JPEG-LS the room `decode` asks the one that fits alone. Where imagecodecs is not installed,
pydicom's do all of it.
"""

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless

try:
    import imagecodecs
except ImportError:  # an environment that somebody put together: slower, and the same pixels
    imagecodecs = None

NAME = "abreast"
SYNTAXES = (JPEG2000, JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless)
DECODER_DEPENDENCIES = {syntax: ("imagecodecs",) for syntax in SYNTAXES}


def is_available(uid: str) -> bool:
    return imagecodecs is not None and uid in SYNTAXES


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytearray:
    """The pixels of one frame as pydicom wants them. Raises ValueError for one that is coloured or not as its header says, and what a decoder
    raises for damage; pydicom catches either."""
    if runner.samples_per_pixel != 1:
        raise ValueError("only grey frames")
    if runner.transfer_syntax == RLELossless:
        frame = bytearray(runner.rows * runner.columns * runner.bits_allocated // 8)
        done = imagecodecs.dicomrle_decode(stream, np.dtype(f"<u{runner.bits_allocated // 8}"), out=frame)
        if len(done) != len(frame):
            raise ValueError(f"{len(done)} bytes of {len(frame)}")
        return frame
    decode = imagecodecs.jpeg2k_decode if runner.transfer_syntax in (JPEG2000, JPEG2000Lossless) else imagecodecs.jpegls_decode
    array = decode(stream)
    if array.shape != (runner.rows, runner.columns) or (array.dtype.kind == "i") != bool(runner.pixel_representation):
        raise ValueError(f"pixels {array.dtype} {array.shape}, another kind than the header says")
    runner.set_option("bits_allocated", 8 * array.itemsize)
    return bytearray(array)


def register() -> None:
    """Make them known to pydicom, once a process."""
    for syntax in SYNTAXES:
        if is_available(syntax) and NAME not in (decoder := get_decoder(syntax)).available_plugins:
            decoder.add_plugin(NAME, (__name__, decode_frame.__name__))
