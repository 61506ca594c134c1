"""What is doubtful about one row of a manifest and its image: each rule yields (kind, severity, what, advice)."""

from collections.abc import Iterator

import numpy as np

from ..stages import StagingScheme
from .audit_files import FileFacts
from .audit_headers import HeaderFacts
from .manifest import BOX, SPLITS

Told = tuple[str, str, str, str]

COARSEST_MM = 0.6  # pixels above that do not resolve a joint of 1 to 3 mm
FEWEST_BOX_PX = 70  # along the longer side of the expert's box, where no spacing is known: 42 mm (median of the virtual cohort) at COARSEST_MM
FEWEST_PX = 512  # along the shorter side of the image, where there is no box either
BOX_SHARE = (0.05, 0.60)  # of the image's width; 12 to 27 % is usual
CLIPPED_SHARE = {"bright": 0.03, "dark": 0.85}  # of pixels at the end of the grey scale
AGES_Y = (2.0, 90.0)
# Mean age in years (male, female) at four stages in 741 orthodontic patients (PMC5565182), and the larger standard deviation of
# transition ages of Hisham et al. 2018. A stage "contradicts" an age that lies more than four of those away; open joints have no
# lower end, fused no upper.
AGE_AT = {"open": (11.07, 9.75), "partial": (12.95, 11.67), "mostly": (14.44, 13.25), "fused": (16.41, 15.25)}
AGE_SD_Y, AGE_SDS = 1.72, 4
PHASE = {"open": "open", "endocranial": "partial", "fusing": "partial", "mostly": "mostly", "scar": "fused", "fused": "fused"}


def check_row(row, file: FileFacts | None, scheme: StagingScheme, absent: set[str]) -> Iterator[Told]:
    """Doubts about a row (a named tuple of texts) and its file, None where it names none; `absent`: required columns that are missing."""
    for name in ("patient_id", "image"):
        if not getattr(row, name) and name not in absent:
            yield f"{name} missing", "error", f"{name} is empty", "fill it in or take the row out"
    stage = number(row.stage)
    known = stage is not None and stage in scheme.labels
    if not known and "stage" not in absent:
        labels = ", ".join(map(str, scheme.labels))
        yield ("stage outside the scheme", "error", f"stage '{row.stage}' is not in the scheme '{scheme.name}'",
               f"use one of {labels}, or choose another scheme")
    age_y = number(row.age_y)
    if age_y is None and row.age_y:
        yield "age no number", "error", f"age_y '{row.age_y}' is not a number", "give the age in years, or leave it empty"
    elif age_y is None and "age_y" not in absent:
        yield ("age missing", "warning", "age_y is empty",
               "fill in the age in years; tables and plots by age leave this patient out")
    elif age_y is not None and not AGES_Y[0] <= age_y <= AGES_Y[1]:
        yield "implausible age", "warning", f"an age of {age_y:g} years is implausible", "check the age; it is counted in years"
    elif age_y is not None and known and (doubt := _contradiction(age_y, row.sex, scheme.stages[scheme.index(stage)])):
        yield "age contradicts stage", "warning", doubt, "look at the image again and check age and stage"
    if row.sex not in ("F", "M") and "sex" not in absent:
        yield "sex unknown", "warning", f"sex '{row.sex}' is neither F nor M", "use F or M"
    if row.split and row.split not in SPLITS:
        yield "unknown split", "error", f"split '{row.split}' is unknown", f"use {', '.join(SPLITS)}, or leave the column empty"
    box = [number(getattr(row, name)) for name in BOX]
    if not absent & set(BOX):
        yield from _check_box(box, [getattr(row, name) for name in BOX], file)
    if file is None:
        return
    if file.error:
        yield "unreadable file", "error", f"unreadable: {file.error}", "mend or export the file again, or take the row out"
        return
    yield from _check_resolution(file, number(getattr(row, "spacing_mm", "")), None if None in box else box)
    yield from _check_grey(file)
    if file.header is not None:
        yield from _check_header(file.header)


def number(text: str) -> float | None:
    """The finite number that a cell holds, None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _contradiction(age_y: float, sex: str, stage) -> str:
    """Why `age_y` is out of reach for `stage`, or an empty text."""
    phase = PHASE.get(stage.name)
    if phase is None:
        return ""
    means = [AGE_AT[phase][i] for i, name in enumerate("MF") if sex == name or sex not in ("M", "F")]
    low = -np.inf if phase == "open" else min(means) - AGE_SDS * AGE_SD_Y
    high = np.inf if phase == "fused" else max(means) + AGE_SDS * AGE_SD_Y
    return "" if low <= age_y <= high else f"an age of {age_y:g} years contradicts stage {stage.label} ({stage.name})"


def _check_box(box: list[float | None], texts: list[str], file: FileFacts | None) -> Iterator[Told]:
    if None in box:
        yield ("box incomplete", "error", f"the box ({', '.join(texts)}) is incomplete or no number",
               "draw it: x0, y0, x1, y1 in pixels of the image")
        return
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        yield "box without extent", "error", "the box has no extent", "x1 must exceed x0 and y1 exceed y0, in pixels of the image"
    elif file is not None and not file.error:
        width, height = file.size
        if min(x0, y0) < -0.5 or x1 > width + 0.5 or y1 > height + 0.5:
            yield ("box outside the image", "error", f"the box reaches outside the image ({width}×{height} px)",
                   "draw it again in pixels of the image as decoded")
        elif not BOX_SHARE[0] <= (x1 - x0) / width <= BOX_SHARE[1]:
            yield ("box of unlikely size", "warning",
                   f"the box covers {100 * (x1 - x0) / width:.0f} % of the image's width (12 to 27 % is usual)", "look at the box again")


def _check_resolution(file: FileFacts, stated_mm: float | None, box: list[float] | None) -> Iterator[Told]:
    """What matters is the size of a pixel; where it is unknown, how many there are across the expert's box, and without one in the image."""
    kind, known_mm = "resolution too low", file.spacing_mm if file.spacing_mm is not None else stated_mm
    if known_mm is not None:
        if known_mm > COARSEST_MM:
            yield (kind, "warning", f"pixels of {known_mm:.2g} mm are too coarse to see the joint",
                   f"export at {COARSEST_MM} mm or finer")
    elif box is not None and box[2] > box[0] and box[3] > box[1]:
        across = max(box[2] - box[0], box[3] - box[1])
        if across < FEWEST_BOX_PX:
            yield (kind, "warning", f"{across:.0f} px across the box are few to see the joint in",
                   f"export larger, so that the box has {FEWEST_BOX_PX} px or more, and draw it again")
    elif min(file.size) < FEWEST_PX:
        yield (kind, "warning", f"{file.size[0]}×{file.size[1]} px are few to see the joint in",
               f"export at {FEWEST_PX}×{FEWEST_PX} px or more")
    if file.spacing_mm is not None and stated_mm is not None and abs(stated_mm - file.spacing_mm) > 0.05 * file.spacing_mm:
        yield ("spacing contradicts the file", "warning", f"spacing_mm says {stated_mm:g}, the file {file.spacing_mm:.3g}",
               "correct the manifest or the file")


def _check_grey(file: FileFacts) -> Iterator[Told]:
    for end, most in CLIPPED_SHARE.items():
        if (share := getattr(file, end)) > most:
            yield ("clipped window", "warning", f"{100 * share:.0f} % of the pixels are clipped at the {end} end",
                   "export with a wider grey-value window")
    for warning in file.warnings:
        yield "odd file", "warning", warning, "look at the image, or export it again"
    if file.text:
        places = ", ".join(f"({x0}, {y0}, {x1}, {y1})" for x0, y0, x1, y1 in file.text)
        yield ("burned-in text suspected", "warning", f"text is suspected in the pixels at {places}",
               "look there (x0, y0, x1, y1 in pixels); where it is text, export the image without it")


def _check_header(header: HeaderFacts) -> Iterator[Told]:
    if header.identifying:
        yield ("identifying header fields", "warning", f"identifying header fields: {', '.join(header.identifying)}",
               "de-identify the file (DICOM PS3.15, basic profile), or save a picture again without its metadata")
    if header.unmarked:
        yield ("not marked as de-identified", "warning", "the header does not say that it was de-identified",
               "de-identify it and set PatientIdentityRemoved to YES" + (", beside the method that it names" if header.method else ""))
    elif not header.method:
        yield ("method of de-identification missing", "warning", "the header says that it was de-identified, and not how",
               "fill in DeidentificationMethod or DeidentificationMethodCodeSequence, as the standard demands")
    if header.burned_in:
        yield ("burned-in text stated", "warning", "the header says that text is burned into the pixels",
               "look for names in the image and export it without")
