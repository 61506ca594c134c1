"""The review tool: page through a cohort in JupyterLab, draw or correct boxes, give, confirm or dispute stages, leave notes.

    from sos.panels.review import review
    review("cohort/manifest.csv", who="AB")
"""

import html

import ipywidgets as w
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..cohort.reviews import BOX
from ..errors import SOSError
from ..stages import BASSED5, StagingScheme
from .base import Still, as_png, told
from .canvas import Canvas, grey_png
from .session import ReviewSession

FEW = 12  # reviews of an image that are listed; the file holds all


def review(manifest, who: str, *, blind: bool = False, scheme: StagingScheme = BASSED5, suspects=None) -> w.DOMWidget:
    """The tool for one person, to stand last in a cell. What cannot be used is told in its place, in one line.

    who: initials, written beside each review. blind: hide stages, reasons and other people's reviews, and write stages as readings, which count for
    the agreement of readers and change no label. suspects: table of `sos suspects`; default: `suspects.csv` beside the manifest, where there is one.
    """
    try:
        return ReviewPanel(ReviewSession(manifest, who, blind=blind, scheme=scheme, suspects=suspects))
    except SOSError as error:
        return w.HTML(told("error", error))


class ReviewPanel(Still, w.VBox):
    """Widgets round a ReviewSession: each control calls one of its methods and shows what came of it."""

    def __init__(self, session: ReviewSession):
        self.session, self._filling = session, False
        labels = session.scheme.stages
        self.canvas = Canvas(hotkeys=["ArrowLeft", "ArrowRight", "Enter", "Escape", "c", "C", *(str(stage.label) for stage in labels)])
        wide = {"description_width": "52px"}
        self.where, self.history, self.message = w.HTML(), w.HTML(), w.HTML()
        sliding = {"step": 0.01, "readout_format": ".2f", "style": wide, "layout": {"width": "100%"}}
        self.level = w.FloatSlider(0.5, min=0, max=1, description="Level", **sliding)
        self.width = w.FloatSlider(1.0, min=0.05, max=1.5, description="Width", **sliding)
        for slider, name in ((self.level, "level"), (self.width, "width")):
            w.jslink((slider, "value"), (self.canvas, name))
        self.stages = w.ToggleButtons(options=[(str(stage.label), stage.label) for stage in labels], value=None, description="Stage", style=wide | {
            "button_width": "38px"}, tooltips=[f"{stage.name}: {stage.criterion}" for stage in labels])
        self.criterion = w.HTML()
        line, half = {"width": "97%"}, {"width": "48%"}
        self.edges = [w.FloatText(description=name, step=1, style={"description_width": "22px"}, layout={"width": "46%"}) for name in BOX]
        self.note = w.Textarea(description="Note", placeholder="seen by everybody", rows=2, style=wide, layout=line, continuous_update=True)
        self.dispute = w.ToggleButton(description="Dispute", icon="question", tooltip="the stage is doubtful; others see it first", layout=half)
        self.exclude = w.ToggleButton(description="Exclude", icon="ban", tooltip="leave this image out of training and testing", layout=half)
        self.confirm = self._button("Confirm", "check", "the stage that stands is right (key C)", session.confirm)
        self.save = self._button("Save", "save", "write what is drafted (Enter: save and go on)", session.save, "primary")
        self.discard = self._button("Discard", "undo", "forget what is drafted (key Esc)", session.discard)
        self.previous = self._button("Previous", "arrow-left", "save, then the image before (key ←)", session.previous)
        self.next = self._button("Next", "arrow-right", "save, then the image after (key → or Enter)", session.next)
        self.suspicious = self._button("Next unread" if session.blind else "Most suspicious", "search", "save, then what waits first: in "
                                       "dispute, incomplete, or least believed by the networks", session.next_suspicious)
        self.refresh = self._button("Refresh", "refresh", "read what others have written since", session.refresh)
        names = session.written["patient_id"].tolist()
        self.jump = w.Combobox(options=list(dict.fromkeys(names)), placeholder="patient or file, then Enter", description="Go to", style=wide,
                               layout=line, continuous_update=False)
        self._listen()
        grown = {"flex_flow": "row wrap"}
        judge = [] if session.blind else [w.HBox([self.confirm, self.dispute])]
        side = w.VBox([self.where, w.HBox([self.previous, self.next]), w.HBox([self.suspicious, self.refresh]), self.jump, self.stages,
                       self.criterion, *judge, w.HBox([w.Label("Box, in pixels of the image", layout=line), *self.edges], layout=grown),
                       self.note, w.HBox([self.exclude]),
                       w.HBox([self.save, self.discard]), self.message, self.history], layout={"width": "372px", "margin": "0 0 0 12px"})
        picture = w.VBox([self.canvas, self.level, self.width], layout={"flex": "1 1 420px", "min_width": "320px"})
        super().__init__([w.HBox([picture, side], layout=grown)])
        self.add_class("sos-tool")
        self.show(new=True)

    # ---- what controls do ------------------------------------------------------------------------------------------

    def _button(self, name: str, icon: str, tip: str, act, style: str = "") -> w.Button:
        button = w.Button(description=name, icon=icon, tooltip=tip, button_style=style, layout={"width": "48%"})
        button.on_click(lambda _: self.do(act))
        return button

    def _listen(self) -> None:
        draft = lambda name, value: setattr(self.session.draft, name, value)  # noqa: E731
        self._on(self.stages, lambda value: self.session.set_stage(value))
        self._on(self.dispute, lambda value: draft("dispute", None if value == self.session.case.disputed else value))
        self._on(self.exclude, lambda value: draft("exclude", None if value == self.session.case.excluded else value))
        self._on(self.note, lambda value: draft("note", value), show=False)
        self._on(self.canvas, lambda box: self.session.set_box(box), "box")
        for edge in self.edges:
            self._on(edge, lambda _: self._typed(), show=False)
        self._on(self.jump, lambda name: self.session.go_to(name) if name else None)
        self.canvas.on_msg(lambda _, content, __: self.press(content.get("key", "")))

    def _on(self, widget, act, trait: str = "value", show: bool = True) -> None:
        """Call `act` with what a person set, not with what we fill in ourselves."""
        widget.observe(lambda change: None if self._filling else self.do(lambda: act(change["new"]), show), trait)

    def _typed(self) -> None:
        """Four numbers are typed one after the other; they are a box once they are one."""
        x0, y0, x1, y1 = (edge.value for edge in self.edges)
        if x1 > x0 and y1 > y0:
            self.session.set_box((x0, y0, x1, y1))
            self.message.value = ""
            self.show()
        else:
            self.message.value = told("plain", "no box yet: x1 must exceed x0, and y1 must exceed y0")

    def press(self, key: str) -> None:
        """A key of the picture: arrows and Enter move, digits give a stage, c confirms, Escape discards."""
        session = self.session
        acts = {"ArrowLeft": session.previous, "ArrowRight": session.next, "Enter": session.next, "Escape": session.discard, "c": session.confirm}
        if key.isdecimal():
            self.do(lambda: session.set_stage(int(key)))
        elif key.lower() == "c" or key in acts:
            self.do(acts.get(key, session.confirm))

    def do(self, act, show: bool = True) -> None:
        """Call a method of the session, then show what it wrote or why it could not; a person's error never is a traceback."""
        before, case = self.session.row, self.session.case
        try:
            said = act()
            if said:
                self.message.value = told("done", f"{pd.Timestamp.now():%H:%M:%S} written for {case.patient_id}: {', '.join(said)}")
            elif show:
                self.message.value = ""
        except (SOSError, OSError) as error:
            self.message.value, show = told("error", error), True
        if show or self.session.row != before:
            self.show(new=self.session.row != before)
        self._drafts()

    # ---- what they show --------------------------------------------------------------------------------------------

    def show(self, new: bool = False) -> None:
        """Fill all controls from the session. new: another image."""
        session, case, draft = self.session, self.session.case, self.session.draft
        self._filling = True
        try:
            if new:
                self._picture(case)
                self.jump.value = ""
            box = draft.box or case.box
            with self.canvas.hold_sync():
                self.canvas.box, self.canvas.drafted = list(box or ()), draft.box is not None
            for edge, value in zip(self.edges, box or (0, 0, 0, 0), strict=True):
                edge.value = value
            self.stages.value = case.stage if draft.stage is None else draft.stage
            self.note.value = draft.note
            self.dispute.value = case.disputed if draft.dispute is None else draft.dispute
            self.exclude.value = case.excluded if draft.exclude is None else draft.exclude
            self.confirm.disabled = case.stage is None
            self.where.value = self._where(case)
            self.history.value = self._history(case)
            stage = self.stages.value
            self.criterion.value = told("plain", "not staged" if stage is None else session.scheme.stages[session.scheme.index(stage)].criterion)
        finally:
            self._filling = False
        self._drafts()

    def _picture(self, case) -> None:
        self.canvas.title = f"{case.patient_id}, {case.number} of {len(self.session)}"
        try:
            self.canvas.picture = grey_png(self.session.image().pixels)
        except (SOSError, OSError) as error:
            self.canvas.picture = b""
            self.message.value = told("error", error)

    def _drafts(self) -> None:
        self.save.disabled = self.discard.disabled = self.session.draft.empty

    def _where(self, case) -> str:
        session = self.session
        done = len(session.reviewed)
        state = [f"<b>{html.escape(case.patient_id)}</b>", f"{case.number} of {len(session)}",
                 f"{done} {'read' if session.blind else 'reviewed'} by {html.escape(session.who)}"]
        flags = {"virtual patient": session.virtual, "blind reading": session.blind, "excluded": case.excluded,
                 "in dispute": case.disputed and not session.blind, "no box yet": case.box is None}
        lines = [" · ".join(state), ", ".join(flag for flag, holds in flags.items() if holds),
                 html.escape(case.suspicion and f"suspicious: {case.suspicion}")]
        return '<div class="sos-where" style="line-height: 1.4">' + "<br>".join(line for line in lines if line) + "</div>"

    def _history(self, case) -> str:
        rows = [f"{when:%Y-%m-%d %H:%M} <b>{html.escape(who)}</b> {html.escape(' '.join(filter(None, [name, value])))}"
                f"{'<br><i>' + html.escape(note) + '</i>' if note else ''}"
                for when, who, name, value, note in case.reviews[["when", "who", "field", "value", "note"]].tail(FEW)[::-1].itertuples(index=False)]
        head = f"what was said of this image (UTC), {len(case.reviews)} in all" if rows else "nothing was said of this image yet"
        said = "".join(f"<div>{row}</div>" for row in [head, *rows])
        return f'<div class="sos-history" style="font-size: 12px; line-height: 1.35">{said}</div>'

    def still(self) -> bytes:
        """The image in front of us with its box, as PNG."""
        case = self.session.case
        fig = Figure(figsize=(4.2, 4.4), layout="constrained")
        ax = fig.subplots()
        try:
            ax.imshow(self.session.image().pixels, cmap="gray", vmin=0, vmax=1)
        except (SOSError, OSError):
            ax.imshow(np.zeros((3, 4)), cmap="gray", vmin=0, vmax=1)
            ax.text(1.5, 1, "not readable", color="white", ha="center")
        if case.box:
            x0, y0, x1, y1 = case.box
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="#00e5ff"))
        ax.set(xticks=[], yticks=[])
        stage = "blind" if self.session.blind else "not staged" if case.stage is None else f"stage {case.stage}"
        ax.set_title(f"{case.patient_id}, {case.number} of {len(self.session)}, {stage}", fontsize=9)
        fig.supxlabel("run the cell to review; research use only", fontsize=7, color="0.4")
        return as_png(fig)
