"""What one person does while paging through a cohort: where they are, what they have drafted, what was written. No widget here."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..cohort.manifest import read_rows
from ..cohort.reviews import BOX, REVIEWS, SUSPECTS, about, add_review, apply_reviews, matched, read_reviews
from ..errors import CohortError, ImageError
from ..files import leads_out
from ..images.reader import GreyImage, read_image
from ..stages import BASSED5, StagingScheme


@dataclass
class Draft:
    """What was changed on an image and is not written yet; None where nothing was."""

    stage: int | None = None
    box: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 in pixels of the decoded image
    dispute: bool | None = None
    exclude: bool | None = None
    note: str = ""

    @property
    def empty(self) -> bool:
        return self == Draft()


@dataclass(frozen=True)
class Case:
    """An image as it stands: the manifest's row, corrected by all reviews so far. In a blind session nothing of what others said."""

    number: int  # from 1, in the order of the manifest
    patient_id: str
    image: str
    stage: int | None
    box: tuple[float, float, float, float] | None
    disputed: bool
    excluded: bool
    suspicion: str  # in words; empty where none is known
    reviews: pd.DataFrame = field(repr=False)  # of this image, oldest first


class ReviewSession:
    """Pages through a manifest and appends what `who` says to the `reviews.csv` beside it.

    The manifest may leave stages and boxes empty. In a blind session the stage, the reasons for suspicion and other people's reviews are hidden,
    and stages are written as readings, which count for the agreement of readers and change no label. What is drafted is written by `save`, and by
    each move to another image before it moves. Raises CohortError for a manifest or reviews that cannot be read, and for an empty `who`.
    """

    def __init__(self, manifest, who: str, *, blind: bool = False, scheme: StagingScheme = BASSED5, suspects=None):
        self.manifest, self.who, self.blind, self.scheme = Path(manifest), " ".join(str(who).split()), blind, scheme
        if not self.who:
            raise CohortError("who must not be empty; give the initials of the person who reviews")
        self.path = self.manifest.with_name(REVIEWS)
        self.written = read_rows(self.manifest)
        self.virtual = "cohort_kind" in self.written and bool((self.written["cohort_kind"] == "virtual").all())
        self._rows_of = self.written.groupby("patient_id").groups
        given = self.manifest.with_name(SUSPECTS) if suspects is None else Path(suspects)
        self.suspects = read_suspects(given) if suspects is not None or given.is_file() else None
        self.row, self.draft, self._pixels = 0, Draft(), (None, None)
        self.refresh()
        self.row = self.queue()[0] if self.queue() else 0

    def __len__(self) -> int:
        return len(self.written)

    def refresh(self) -> None:
        """Read the reviews again, other people's too."""
        reviews = read_reviews(self.path)
        visible = reviews[reviews["who"] == self.who] if self.blind else reviews
        visible.attrs = reviews.attrs
        self.corrected, self.changes = apply_reviews(self.written, reviews, self.scheme)
        self.reviews = matched(visible, self.written)

    # ---- looking ---------------------------------------------------------------------------------------------------

    @property
    def case(self) -> Case:
        """The image in front of us."""
        written = self.written.loc[self.row]
        reviews = about(self.reviews, written["patient_id"], written["image"])
        excluded = self.row not in self.corrected.index
        now = written if excluded else self.corrected.loc[self.row]
        box = None if now[BOX].isna().any() else tuple(float(edge) for edge in now[BOX])
        stage = self._own_reading(reviews) if self.blind else int(now["stage"]) if now["stage"] in self.scheme.labels else None
        return Case(self.row + 1, written["patient_id"], written["image"], stage, box, self._disputed(reviews), excluded,
                    "" if self.blind or self.suspects is None else self.suspects["reasons"].get(written["image"], ""), reviews)

    def _own_reading(self, reviews: pd.DataFrame) -> int | None:
        mine = reviews.loc[reviews["field"].isin(["reading", "stage"]), "value"]
        return int(mine.iloc[-1]) if len(mine) else None

    def _disputed(self, reviews: pd.DataFrame) -> bool:
        """Whether the stage stands in doubt: nobody has given or confirmed one since somebody disputed it."""
        last = reviews[reviews["field"].isin(["dispute", "stage"])].tail(1)
        return bool(len(last)) and last["field"].iloc[0] == "dispute" and last["value"].iloc[0] == "yes"

    def image(self) -> GreyImage:
        """The pixels of the image in front of us. Raises ImageError for a file that cannot be read, or that lies outside the manifest's folder."""
        if self._pixels[0] != self.row:
            path = self.manifest.parent / self.written.at[self.row, "image"]
            if leads_out(path, self.manifest.parent):
                raise ImageError(f"{path.name}: lies outside the manifest's folder and was not opened; move it there")
            self._pixels = self.row, read_image(path)
        return self._pixels[1]

    @property
    def reviewed(self) -> set[int]:
        """Rows on which this person has said anything but a note; of a blind session, those they have read."""
        fields = ["reading", "stage"] if self.blind else ["stage", "box", "dispute", "exclude"]
        return set(self._rows(self.reviews[(self.reviews["who"] == self.who) & self.reviews["field"].isin(fields)]))

    def _rows(self, reviews: pd.DataFrame) -> list[int]:
        """The rows that reviews are about, in the order of the reviews."""
        return [row for patient, image in reviews[["patient_id", "image"]].itertuples(index=False) for row in self._rows_of.get(patient, ())
                if image in ("", self.written.at[row, "image"])]

    def queue(self) -> list[int]:
        """Rows that this person has still to look at: those in dispute first, then those without stage or box, then by suspicion.

        A blind session goes by the manifest alone, whose order tells nothing.
        """
        left = self.written.index.difference(self.reviewed)
        if self.blind:
            return left.tolist()
        left = left.intersection(self.corrected.index)  # what is excluded can rest
        rows = self.corrected.loc[left]
        doubted = set(self._rows(self.reviews[self.reviews["field"] == "dispute"]))
        disputed = [row in doubted and self._disputed(about(self.reviews, *self.written.loc[row, ["patient_id", "image"]])) for row in left]
        score = rows["image"].map(self.suspects["score"]).fillna(0) if self.suspects is not None else 0
        order = pd.DataFrame({"settled": [not d for d in disputed], "whole": rows[["stage", *BOX]].notna().all(axis=1), "calm": -score}, index=left)
        return order.sort_values(["settled", "whole", "calm"], kind="stable").index.tolist()

    # ---- saying ----------------------------------------------------------------------------------------------------

    def set_stage(self, label: int | None) -> None:
        """Draft a stage; None takes the draft back. Raises ConfigError for a label outside the scheme."""
        if label is not None:
            self.scheme.index(label)
        self.draft.stage = label

    def confirm(self) -> None:
        """Draft the stage that stands: two people who agree are two readings. Raises CohortError where none is to be seen."""
        stage = self.case.stage
        if self.blind or stage is None:
            raise CohortError("there is no stage to confirm here; give one")
        self.draft.stage, self.draft.dispute = stage, None

    def set_box(self, box) -> None:
        """Draft a box (x0, y0, x1, y1) in pixels, its corners in any order, cut to the image. Raises CohortError for one without extent."""
        height, width = self.image().pixels.shape
        (x0, x1), (y0, y1) = sorted((float(box[0]), float(box[2]))), sorted((float(box[1]), float(box[3])))
        x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if x1 - x0 < 1 or y1 - y0 < 1:
            raise CohortError(f"this box holds no pixel of the image, which is {width} by {height}; draw it inside")
        self.draft.box = tuple(round(edge, 2) for edge in (x0, y0, x1, y1))

    def discard(self) -> None:
        """Forget the draft."""
        self.draft = Draft()

    def save(self) -> list[str]:
        """Write the draft; returns what was written, in words. What could not be written stays drafted, and CohortError says why."""
        case, said = self.case, []
        draft = self.draft
        lines = [("box", draft.box), ("reading" if self.blind else "stage", draft.stage),
                 ("dispute", None if draft.dispute is None else "yes" if draft.dispute else "no"),
                 ("exclude", None if draft.exclude is None else "yes" if draft.exclude else "no")]
        lines = [(name, value) for name, value in lines if value is not None]
        note = draft.note.strip()
        for name, value in lines or ([("note", None)] if note else []):
            add_review(self.path, self.who, case.patient_id, name, value, note, image=case.image)
            text = "" if value is None else " ".join(f"{edge:g}" for edge in value) if name == "box" else value
            said.append(f"{name} {text} {f'“{note}”' if note else ''}".replace("  ", " ").strip())
            if name != "note":
                setattr(draft, "stage" if name == "reading" else name, None)
            draft.note = note = ""  # goes with the first line
        if said:
            self.refresh()
        return said

    # ---- moving ----------------------------------------------------------------------------------------------------

    def go(self, number: int) -> list[str]:
        """Save, then move to the image of that number, counted from 1 and held within the cohort. Returns what was written."""
        said = self.save()
        self.row = min(max(int(number), 1), len(self)) - 1
        self.refresh()
        return said

    def next(self) -> list[str]:
        return self.go(self.row + 2)

    def previous(self) -> list[str]:
        return self.go(self.row)

    def go_to(self, name: str) -> list[str]:
        """Save, then move to an image by its patient's id or its file's name. Raises CohortError where there is none."""
        found = self.written.index[(self.written["patient_id"] == name) | (self.written["image"] == name)]
        if not len(found):
            raise CohortError(f"no patient and no image '{name}' in this cohort")
        return self.go(found[0] + 1)

    def next_suspicious(self) -> list[str]:
        """Save, then move to the first of the queue. Raises CohortError where this person has been through all."""
        said = self.save()
        queue = self.queue()
        if not queue:
            raise CohortError("you have been through all images of this cohort")
        return said + self.go((next((row for row in queue if row != self.row), queue[0])) + 1)


def read_suspects(path) -> pd.DataFrame:
    """What `sos suspects` wrote: score and reasons by image. Raises CohortError for another file."""
    try:
        table = pd.read_csv(path, dtype={"patient_id": str, "image": str, "reasons": str}, keep_default_na=False)
        table = table.astype({"score": float}).drop_duplicates("image").set_index("image")[["score", "reasons"]]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise CohortError(f"{path}: not a table of suspects ({type(error).__name__}); make it with `sos suspects`, or move it away") from None
    return table
