"""Which of someone else's columns is which of a manifest's. What is found by its name is said; what is not clear is an error."""

import difflib
import re
import unicodedata

from ..errors import CohortError
from .manifest import BOX
from .sheet import Sheet, letter

#: Names under which each column is found without being told; case, accents, spaces, punctuation and a unit of years or pixels do not count.
SYNONYMS = {
    "patient_id": "patient_id patient pat_id pat_nr pat_no pid id subject subject_id case case_id case_no patient_no patient_number patienten_id "
                  "patientennummer patient_nr fall fallnummer proband probanden_id id_patient id_paciente paciente id_paziente paziente",
    "image": "image image_file file filename file_name path dicom dicom_file scan scan_file bild bilddatei datei dateiname fichier imagen archivo "
             "immagine",
    "stage": "stage sos_stage fusion_stage sos_fusion_stage stadium sos_stadium fusionsstadium stade estadio stadio",
    "age_y": "age age_y age_years age_in_years alter alter_jahre alter_in_jahren lebensalter age_ans edad edad_anos eta",
    "sex": "sex gender geschlecht sexe sexo sesso genere genero",
    "x0": "x0 xmin x_min box_x0 bbox_x0 left",
    "y0": "y0 ymin y_min box_y0 bbox_y0 top",
    "x1": "x1 xmax x_max box_x1 bbox_x1 right",
    "y1": "y1 ymax y_max box_y1 bbox_y1 bottom",
    "split": "split subset partition",
    "birth_date": "birth_date date_of_birth dob birthday geburtsdatum geburtstag date_de_naissance fecha_de_nacimiento data_di_nascita",
    "exam_date": "exam_date date_of_exam scan_date date_of_scan study_date acquisition_date untersuchungsdatum aufnahmedatum date_examen "
                 "fecha_de_examen data_esame",
}
UNITS = ("years", "year", "y", "yr", "yrs", "jahre", "j", "ans", "anos", "anni", "px", "pixel", "pixels")
NAMING = "name vorname nachname nom prenom nombre apellido nome cognome patient_name first_name last_name surname address adresse phone email mrn"


def plain(text: str) -> str:
    """Letters and digits of `text` alone, small and without accents."""
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if c.isalnum())


def _names(target: str) -> set[str]:
    return {plain(name) for name in SYNONYMS[target].split()}


def _without_unit(name: str) -> str:
    found = re.fullmatch(r"(.*?)\s*[(\[]\s*([^()\[\]]*)[)\]]\s*", name)
    return found[1] if found and plain(found[2]) in UNITS else name


def identifying(name: str) -> bool:
    """Whether a column of this name is likely to tell who people are."""
    return plain(name) in {plain(known) for known in NAMING.split()} | _names("birth_date") | _names("exam_date")


def find_column(sheet: Sheet, name: str) -> int:
    """The column called `name`, also by its letter as 'column C'. Raises CohortError naming the nearest ones and all there are."""
    if by_letter := re.fullmatch(r"column ([A-Z]{1,3})", name.strip(), re.IGNORECASE):
        places = [i for i in range(len(sheet.columns)) if letter(i) == by_letter[1].upper()]
    else:
        places = [i for i, column in enumerate(sheet.columns) if column == " ".join(name.split())]
        places = places or [i for i, column in enumerate(sheet.columns) if column and plain(column) == plain(name) != ""]
    if len(places) == 1:
        return places[0]
    if places:
        twice = " and ".join(f"'column {letter(i)}'" for i in places)
        raise CohortError(f"{sheet.path}: the column '{name}' is there {len(places)} times; write {twice.replace(' and ', ' or ')} for the one meant")
    named = [column or f"column {letter(i)}" for i, column in enumerate(sheet.columns)]
    near = difflib.get_close_matches(plain(name), [plain(column) for column in named], n=2, cutoff=0.5)
    meant = " or ".join(f"'{column}'" for column in named if plain(column) in near)
    raise CohortError(f"{sheet.path}: no column '{name}'" + (f"; did you mean {meant}?" if meant else "") + f"; it has: {', '.join(named)}")


def choose_columns(sheet: Sheet, given: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """Which column each of the manifest's is read from, and lines that say so.

    given: target → name of a column of the sheet, '' to leave the target out; other targets are looked for by `SYNONYMS`. Raises
    CohortError where a column is missing, where two fit, or where age is given in two ways.
    """
    if unknown := [target for target in given if target not in SYNONYMS]:
        near = difflib.get_close_matches(unknown[0], SYNONYMS, n=1)
        raise CohortError(f"--columns {unknown[0]}=…: the manifest has no such column"
                          + (f"; did you mean {near[0]}?" if near else f"; it knows {', '.join(SYNONYMS)}"))
    chosen = {target: find_column(sheet, name) for target, name in given.items() if name}
    taken = set(chosen.values())
    for target in SYNONYMS:
        if target in given:
            continue
        places = [i for i, name in enumerate(sheet.columns) if i not in taken and plain(_without_unit(name)) in _names(target)]
        if len(places) > 1:
            named = " and ".join(f"'{sheet.columns[i]}' (column {letter(i)})" for i in places)
            raise CohortError(f"{sheet.path}: {named} could both be {target}; say which by --columns {target}=NAME, or {target}= for none")
        if places:
            chosen[target] = places[0]
    for target in ("birth_date", "exam_date"):  # guessed dates are of use together, and only where there is no age
        if target in chosen and target not in given and ("age_y" in chosen or not {"birth_date", "exam_date"} <= set(chosen)):
            del chosen[target]
    dates = {"birth_date", "exam_date"} & set(chosen)
    if "age_y" in chosen and dates and "age_y" not in given:
        del chosen["age_y"]
    if "age_y" in chosen and dates:
        raise CohortError("--columns: age_y and dates are given; leave one of them out")
    if len(dates) == 1:
        raise CohortError("--columns: birth_date and exam_date are needed both, to compute the age")
    for target in ("patient_id", "stage"):
        if target not in chosen:
            named = ", ".join(name or f"column {letter(i)}" for i, name in enumerate(sheet.columns))
            raise CohortError(f"{sheet.path}: which column is {target}? Say --columns {target}=NAME; it has: {named}")
    if 0 < len(found := [name for name in BOX if name in chosen]) < 4:
        raise CohortError(f"{sheet.path}: of the box only {', '.join(found)} is there; give all of {', '.join(BOX)} or none ({found[0]}= for none)")
    lines = [f"{target} ← '{sheet.columns[place]}' (column {letter(place)}{'' if target in given else ', found by its name'})"
             for target, place in sorted(chosen.items(), key=lambda item: list(SYNONYMS).index(item[0]))]
    return chosen, lines
