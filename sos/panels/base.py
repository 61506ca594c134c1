"""What all panels share: controls, one picture, and one sentence that says what the picture shows; without a kernel the picture is still there."""

import base64
import html
import io
from contextlib import contextmanager

import anywidget
import ipywidgets as w
from matplotlib.figure import Figure

from ..errors import SOSError

DPI = 100


def told(kind: str, text) -> str:
    """A line of text as HTML: an `error` stands out and is read out at once, `done` and `plain` are quiet."""
    colour = {"error": "--jp-error-color1, #c62828", "done": "--jp-success-color1, #2e7d32", "plain": "--jp-ui-font-color2, #616161"}[kind]
    role = "alert" if kind == "error" else "status"
    return f'<div role="{role}" class="sos-{kind}" style="color: var({colour}); line-height: 1.4">{html.escape(str(text))}</div>'


def as_png(fig: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    file = io.BytesIO()
    fig.savefig(file, dpi=DPI, metadata={"Software": None})
    return file.getvalue()


class Still:
    """Mixin of a widget: beside it goes the PNG of `kept`, by default that of `still`, for those who read the notebook without a kernel."""

    def kept(self) -> bytes:
        return self.still()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, rest = bundle if isinstance(bundle, tuple) else (bundle, None)
        data = {**data, "image/png": base64.b64encode(self.kept()).decode()}
        return data if rest is None else (data, rest)


class Access(anywidget.AnyWidget):
    """Not seen: gives the sliders of the panel that it lies in their names, which screen readers say, and leaves arrows and letters to the controls,
    which JupyterLab would take for commands: move to another cell, delete one."""

    _esm = """
    const keep = (event) => event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter") || event.stopPropagation();
    export default { render({ el }) {
      let panel = null;
      const waiting = requestAnimationFrame(() => {
        panel = el.closest(".sos-panel");
        panel?.addEventListener("keydown", keep);
        for (const slider of panel?.querySelectorAll(".widget-slider") ?? [])
          for (const handle of slider.querySelectorAll("[role=slider]")) handle.setAttribute("aria-label", slider.querySelector("label").textContent);
        panel?.setAttribute("data-keys", "kept");
      });
      return () => { cancelAnimationFrame(waiting); panel?.removeEventListener("keydown", keep); };
    } };"""


class Panel(Still, w.VBox):
    """Controls above a picture. A subclass makes its controls, hands them over, and draws.

    `figure` returns the picture and `words` one sentence that says what it shows: it stands below the picture and is what a screen reader says of
    it. Both look at the controls' values only. Whatever a control is moved to, the panel shows the picture, or in one line why there is none.
    """

    _filling = False

    def __init__(self, *rows: list[w.Widget]):
        """rows: controls, a list for each line; those with a value redraw the panel when it changes."""
        self.picture, self.message = w.HTML(), w.HTML()
        super().__init__([*(w.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows), self.picture, self.message,
                          Access(layout={"display": "none"})])
        self.add_class("sos-panel")
        for control in (control for row in rows for control in row):
            if control.has_trait("value"):
                control.observe(lambda _: self.show(), "value")
        self.show()

    @contextmanager
    def filling(self):
        """Within it controls are set without being drawn: by a control that offers others their values and is followed by a drawing of its own."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False

    def figure(self) -> Figure:
        raise NotImplementedError

    def words(self) -> str:
        raise NotImplementedError

    def show(self) -> None:
        """Draw again."""
        if self._filling:
            return
        try:
            words, png = self.words(), base64.b64encode(self.still()).decode()
        except (SOSError, OSError) as error:
            self.picture.value, self.message.value = "", told("error", error)
            return
        self.picture.value = f'<img alt="{html.escape(words)}" src="data:image/png;base64,{png}" style="max-width: 100%">'
        self.message.value = told("plain", words)

    def still(self) -> bytes:
        return as_png(self.figure())
