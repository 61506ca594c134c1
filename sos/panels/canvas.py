"""A picture to look at and draw a box on, as a widget: windowing, magnifying and drawing happen in the browser, at once."""

import io
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image

_HERE = Path(__file__).parent


def grey_png(pixels: np.ndarray) -> bytes:
    """(h, w) grey values in [0, 1] as an 8-bit PNG."""
    file = io.BytesIO()
    Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(file, "PNG", compress_level=3)
    return file.getvalue()


class Canvas(anywidget.AnyWidget):
    """Shows `picture` in a window of grey values and lets a person drag `box`.

    level, width: centre and width of the grey values shown from black to white, 1 is the brightest stored. box: x0, y0, x1, y1 in pixels of the
    picture, empty for none; set by dragging. drafted: the box is drawn as not yet written. hotkeys: keys that the browser reports by a message
    {"key": name} while the focus is in the tool and not in a field.
    """

    _esm = _HERE / "canvas.js"
    _css = _HERE / "canvas.css"
    picture = traitlets.Bytes(b"").tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)  # what a screen reader says of the picture
    box = traitlets.List(traitlets.Float(), []).tag(sync=True)
    drafted = traitlets.Bool(False).tag(sync=True)
    level = traitlets.Float(0.5).tag(sync=True)
    width = traitlets.Float(1.0).tag(sync=True)
    hotkeys = traitlets.List(traitlets.Unicode(), []).tag(sync=True)
