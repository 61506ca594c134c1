"""What the cells of someone else's table say, in the words of a manifest. A cell that cannot be understood keeps its row out, with the reason."""

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date

from ..errors import CohortError
from ..stages import StagingScheme
from .columns import UNITS, plain
from .manifest import BOX, SPLITS
from .sheet import Sheet, letter

SEXES = {"F": "f female woman girl w weiblich frau feminin femme femenino mujer femminile donna",
         "M": "m male man boy mannlich mann masculin homme h masculino hombre maschile uomo"}
SPLIT_WORDS = {"train": "train training", "valid": "valid validation val dev", "test": "test testing"}
EMPTY = {"", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "-", "–", "?"}
ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6}
STAGE = re.compile(r"(?:(?:sos|stage|stadium|stade|estadio|stadio|grade|grad)[\s.:_-]*)*(\d+(?:[.,]0*)?|[ivIV]+)", re.IGNORECASE)
DATE = re.compile(r"(\d{4})[-./]?(\d\d|(?<=\D)\d(?=\D))[-./]?(\d\d|(?<=\D)\d)(?:[T ].*)?")
DOTTED = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?: .*)?")
SLASHED = re.compile(r"(\d{1,2})[/-](\d{1,2})[/-](\d{4})(?: .*)?")
BOXES = ("xyxy", "xywh", "centre")


def spoken(rows: int) -> str:
    """`1 row`, `2 rows`."""
    return f"{rows} row" + "s" * (rows != 1)


def shown(text: str) -> str:
    """A cell as a message quotes it: a long one may hold a name, and dates are not told."""
    return "(not shown)" if len(text) > 20 or any(kind.fullmatch(text) for kind in (DATE, DOTTED, SLASHED)) else f"'{text}'"


class Unmapped(ValueError):
    """Why one row is kept out."""


@dataclass(frozen=True)
class Reading:
    """How cells are understood.

    values: target → {word in the sheet: word in the manifest}; where a target has such a map, no other word counts. months: ages are in
    months. dates: 'dmy' or 'mdy', the order of dates with slashes ('': by the column itself). box: what the four columns hold, 'xyxy'
    edges, 'xywh' left, top, width and height, 'centre' centre, width and height.
    """

    scheme: StagingScheme
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    months: bool = False
    dates: str = ""
    box: str = "xyxy"


def check_values(values: dict[str, dict[str, str]], scheme: StagingScheme) -> None:
    """Raises CohortError where a map of words leads to what no manifest may hold."""
    allowed = {"stage": tuple(map(str, scheme.labels)), "sex": ("F", "M", ""), "split": (*SPLITS, "")}
    for target, words in values.items():
        if target not in allowed:
            raise CohortError(f"--values {target}:…: words are mapped for {', '.join(allowed)} only")
        for old, new in words.items():
            if new not in allowed[target]:
                raise CohortError(f"--values {target}:{old}={new}: {target} is one of {', '.join(filter(None, allowed[target]))}")


class Rows:
    """Reads the rows of a sheet; counts in `told` what it had to understand in a way worth telling.

    Raises CohortError for what would make every row doubtful: stages that count from 0, sexes or dates that can be read in two ways.
    """

    def __init__(self, sheet: Sheet, chosen: dict[str, int], reading: Reading):
        self.sheet, self.chosen, self.reading = sheet, chosen, reading
        self.told = defaultdict(int)
        columns = {target: [cells[place] for _, cells in sheet.rows] for target, place in chosen.items()}
        scheme = reading.scheme
        if "stage" not in reading.values and scheme.labels[0] > 0 and (zeros := sum(_stage(text) == 0 for text in columns["stage"])):
            example = ",".join(f"{i}={label}" for i, label in enumerate(scheme.labels))
            raise CohortError(f"{sheet.path}: stage 0 occurs ({spoken(zeros)}), but '{scheme.name}' counts from {scheme.labels[0]}; "
                              f"say what they mean, for instance --values stage:{example}")
        if "sex" not in reading.values and {"h", "m"} <= {plain(text) for text in columns.get("sex", ())}:
            raise CohortError(f"{sheet.path}: sex holds both H and M, which mean different things in different languages; "
                              f"say for instance --values sex:h=M,m=F")
        self.order = reading.dates or _date_order(sheet, columns.get("birth_date", []) + columns.get("exam_date", []))

    def read(self, number: int, cells: tuple[str, ...]) -> dict[str, str]:
        """The row in the manifest's words, `image` as the sheet has it. Raises Unmapped with the reason to keep it out."""
        for target, place in self.chosen.items():
            if reason := self.sheet.faults.get((number, place)):
                raise Unmapped(f"{target} (cell {letter(place)}{number}) {reason}")
        text = {target: "" if cells[place].casefold() in EMPTY else cells[place] for target, place in self.chosen.items()}
        patient = unicodedata.normalize("NFC", text["patient_id"])
        if not patient:
            raise Unmapped("patient_id is empty")
        if not patient.isprintable() or patient[0] in "=@" or (patient[0] in "+-" and not _is_number(patient)):
            raise Unmapped("patient_id begins like a formula or cannot be printed; give a plain identifier")
        if "image" in text and not text["image"]:
            raise Unmapped("the image's name is empty")
        row = {"patient_id": patient, "image": text.get("image", ""), "stage": self._stage(text["stage"]), "age_y": self._age(text),
               "sex": self._word("sex", text.get("sex", ""), SEXES), **self._box(text),
               "split": self._word("split", text.get("split", ""), SPLIT_WORDS)}
        return row

    def _replaced(self, target: str, text: str) -> str | None:
        """The word that `values` has for `text`; None where no map was given."""
        words = self.reading.values.get(target)
        if words is None:
            return None
        for look in (str.strip, str.casefold, _value, _without_accents):  # signs count always: 2, 2+ and 2- are three words
            same = [old for old in words if look(old) == look(text)]
            if len({words[old] for old in same}) == 1:
                self.told[f"{target}: {same[0]} read as {words[same[0]] or 'unknown'}"] += 1
                return words[same[0]]
        raise Unmapped(f"{target} {shown(text)} is not among the words of --values")

    def _word(self, target: str, text: str, known: dict[str, str]) -> str:
        if not text:
            self.told[f"{target} is empty"] += target in self.chosen
            return ""
        if (mapped := self._replaced(target, text)) is not None:
            return mapped
        for word, names in known.items():
            if plain(text) in names.split():
                if text != word:
                    self.told[f"{target}: '{text}' read as {word}"] += 1
                return word
        raise Unmapped(f"{target} {shown(text)} is not understood; say --values {target}:OLD=NEW, with NEW from {', '.join(known)}")

    def _stage(self, text: str) -> str:
        if not text:
            raise Unmapped("stage is empty")
        if (mapped := self._replaced("stage", text)) is not None:
            return mapped
        stage = _stage(text)
        if stage is None:
            stage = next((known.label for known in self.reading.scheme.stages if plain(known.name) == plain(text)), None)
        if stage not in self.reading.scheme.labels:
            known = ", ".join(map(str, self.reading.scheme.labels))
            raise Unmapped(f"stage {shown(text)} is not understood; stages are {known}, as numbers or Roman numerals, or say --values stage:…")
        if text != str(stage):
            self.told[f"stage: '{text}' read as {stage}"] += 1
        return str(stage)

    def _age(self, text: dict[str, str]) -> str:
        if "birth_date" in text:
            if not (text["birth_date"] and text["exam_date"]):
                self.told["age_y is empty, for want of a date"] += 1
                return ""
            days = (self._date(text["exam_date"], "exam_date") - self._date(text["birth_date"], "birth_date")).days
            if not 0 <= days < 120 * 365.25:
                raise Unmapped("the exam is not within 120 years after birth")
            self.told["age_y computed from two dates, which are not written out"] += 1
            return f"{days / 365.25:.2f}"
        if not text.get("age_y"):
            self.told["age_y is empty"] += "age_y" in self.chosen
            return ""
        found = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*(\D*)", text["age_y"])
        unit = plain(found[2]) if found else "?"
        if unit in ("m", "mo", "months", "monate") or (not unit and self.reading.months):
            self.told["age_y: months read as years"] += 1
            return f"{self._number(found[1], 'age_y') / 12:.2f}"
        if unit and unit not in UNITS:
            raise Unmapped(f"age_y {shown(text['age_y'])} is not a number of years")
        return f"{self._number(found[1], 'age_y'):.10g}"

    def _box(self, text: dict[str, str]) -> dict[str, str]:
        cells = [text.get(name, "") for name in BOX]
        if not any(cells):
            return dict.fromkeys(BOX, "")
        if not all(cells):
            raise Unmapped("the box is incomplete; fill in all four cells or none")
        a, b, c, d = (self._number(cell, name) for cell, name in zip(cells, BOX, strict=True))
        edges = {"xyxy": (a, b, c, d), "xywh": (a, b, a + c, b + d), "centre": (a - c / 2, b - d / 2, a + c / 2, b + d / 2)}[self.reading.box]
        if not (edges[2] > edges[0] and edges[3] > edges[1]):
            raise Unmapped("the box has no extent; does --box say what its columns hold?")
        return {name: f"{edge:.10g}" for name, edge in zip(BOX, edges, strict=True)}

    def _number(self, text: str, target: str) -> float:
        if not _is_number(text):
            raise Unmapped(f"{target} {shown(text)} is not a number")
        self.told[f"{target}: a comma read as the decimal point"] += "," in text
        return _float(text)

    def _date(self, text: str, target: str) -> date:
        """A date; no message quotes it."""
        if found := DATE.fullmatch(text):
            year, month, day = found.groups()
        elif found := DOTTED.fullmatch(text):
            day, month, year = found.groups()
        elif found := SLASHED.fullmatch(text):
            (day, month) = found.groups()[:2] if self.order == "dmy" else found.groups()[1::-1]
            year = found[3]
        else:
            raise Unmapped(f"{target} is not a date with a year of four digits")
        try:
            return date(int(year), int(month), int(day))
        except ValueError:
            raise Unmapped(f"{target} is no day of the calendar") from None


def _stage(text: str) -> int | None:
    """The number of a stage written as 3, 3.0, 3,0, III, Ⅲ or 'Stage 3'."""
    found = STAGE.fullmatch(unicodedata.normalize("NFKC", text).strip())
    if not found:
        return None
    return int(_float(found[1])) if found[1][0].isdigit() else ROMAN.get(found[1].lower())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(?:[.,]\d*)?(?:[eE][+-]?\d{1,2})?", text, re.ASCII) is not None


def _float(text: str) -> float:
    return float(text.replace(",", "."))


def _value(text: str) -> float | str:
    return _float(text) if _is_number(text) else text


def _without_accents(text: str) -> str:
    """`text` in small letters, without accents and white space."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not (c.isspace() or unicodedata.combining(c)))


def _date_order(sheet: Sheet, texts: list[str]) -> str:
    pairs = [(int(found[1]), int(found[2])) for text in texts if (found := SLASHED.fullmatch(text))]
    day_first, month_first = any(a > 12 for a, _ in pairs), any(b > 12 for _, b in pairs)
    if pairs and day_first == month_first:
        what = "are written in two orders" if day_first else "can be read in two orders"
        raise CohortError(f"{sheet.path}: dates with slashes {what}; say --dates dmy or --dates mdy")
    return "dmy" if day_first else "mdy"
