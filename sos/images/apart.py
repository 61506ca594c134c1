"""A process apart for decoders that can end the process they run in."""

import atexit
import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGExtended12Bit

from ..errors import ImageError
from .header import DAMAGE, read_header
from .pixels import describe

MAX_START_S = 60.0  # to load Python and its libraries, on a busy machine
MAX_DECODE_S = 4.0  # for one frame: a large one takes a second
MAX_BYTES = 2**30  # of memory, in all
CRASHING = ("gdcm",)  # decoders that end the whole process on some damaged files (5 in 1,000 mutated ones); used last, and here


class Apart:
    """A child process that decodes what could end the process it is decoded in. Started when first needed, again when it died."""

    def __init__(self):
        self.child, self.owner, self.lock = None, 0, threading.Lock()
        atexit.register(self.close)

    def decode(self, path: str, index: int) -> np.ndarray:
        """Stored pixels of frame `index` of a file. Raises RuntimeError where the child could not, died or took too long."""
        with self.lock:
            if self.owner != os.getpid():  # a fork of the owner must not read its answers
                self.child = None
            if self.child is None or self.child.poll() is not None:
                self._start()
            self.child.stdin.write(json.dumps([os.path.abspath(path), index]).encode() + b"\n")
            self.child.stdin.flush()
            answer = self._line(MAX_DECODE_S)
            if answer["size"] == 0:
                raise RuntimeError("the decoder refused the data")
            return np.frombuffer(self.child.stdout.read(answer["size"]), answer["dtype"]).reshape(answer["shape"])

    def _line(self, seconds: float) -> dict:
        ready, _, _ = select.select([self.child.stdout], [], [], seconds)
        answer = json.loads(self.child.stdout.readline() or b"{}") if ready else {}
        if not answer:
            self.close()
            raise RuntimeError("the decoder died or took too long")
        return answer

    def _start(self) -> None:
        package = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-c", "from sos.images.apart import serve; serve()"]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                      env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"})
        self.owner = os.getpid()
        self._line(MAX_START_S)

    def close(self) -> None:
        """End the child, if it is this process's."""
        if self.child is not None and self.owner == os.getpid():
            self.child.kill()
            self.child.communicate()
        self.child = None


APART = Apart()


def serve() -> None:
    """What the process apart does: tell that it is there; then for each line `[path, frame]` on standard input, one line about the pixels,
    and the pixels."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES if most == resource.RLIM_INFINITY else min(MAX_BYTES, most), most))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints is no answer
    answers.write(json.dumps({"ready": time.time()}).encode() + b"\n")
    answers.flush()
    held, dataset = "", None
    for line in sys.stdin.buffer:
        path, index = json.loads(line)
        try:
            if path != held:
                held, dataset = path, read_header(path, pixels=True)
                describe(dataset, Path(path))
            array = _decode(dataset, path, index)
        except (*DAMAGE, ImageError):
            held, array = "", np.empty(0, np.uint8)
        head = {"size": array.nbytes, "dtype": array.dtype.str, "shape": array.shape}
        answers.write(json.dumps(head).encode() + b"\n" + array.tobytes())
        answers.flush()


def _decode(dataset, path: str, index: int) -> np.ndarray:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax != JPEGExtended12Bit:
        return get_decoder(syntax).as_array(dataset, index=index)[0]
    import gdcm  # itself: pydicom hands it no frames of 12 bits

    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    if not reader.Read() or dataset.SamplesPerPixel != 1 or dataset.BitsAllocated != 16:
        raise ValueError("not readable by gdcm")
    pixels = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    frames = np.frombuffer(pixels, "<i2" if dataset.PixelRepresentation else "<u2")
    return frames.reshape(-1, dataset.Rows, dataset.Columns)[index]
