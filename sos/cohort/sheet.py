"""A spreadsheet as rows of text: CSV in any usual dialect, or one sheet of an XLSX workbook, read for its values and never computed."""

import codecs
import csv
import io
import re
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from ..errors import CohortError

MAX_BYTES = 2**26  # of a text file, and of a workbook when inflated: 64 MiB, far above any cohort
MAX_ROWS, MAX_COLUMNS = 100_000, 500
OLE = b"\xd0\xcf\x11\xe0"  # old .xls, or a workbook under a password
MARKS = "\t;,"
# what openpyxl raises on damaged workbooks; it has no base class
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, ArithmeticError, RuntimeError, MemoryError,
          zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Sheet:
    """columns: their names from left to right, '' where there is none. rows: (row number as a spreadsheet counts, cells as stripped text,
    one a column); empty rows are left out. faults: (row number, column) → why this cell has no value. notes: what was read, and how."""

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, tuple[str, ...]]]
    faults: dict[tuple[int, int], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def letter(column: int) -> str:
    """`A` for column 0, `AA` for column 26, as spreadsheets name columns."""
    name = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        name = chr(65 + rest) + name
    return name


def read_sheet(path, sheet: str = "", header: int = 0) -> Sheet:
    """Read a table: XLSX, or text with commas, semicolons or tabs in UTF-8, UTF-16 or Windows-1252, told apart by content.

    sheet: which of a workbook, by name (default: the first that is not hidden). header: the row with the names of the columns (default:
    the first with two cells or more). Of formulas the stored values are read. Raises CohortError with a one-line reason.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CohortError(f"{path}: not a file; give a spreadsheet as XLSX or CSV")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CohortError(f"{path}: no such spreadsheet; give an XLSX or CSV file") from None
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.strip():
        raise CohortError(f"{path}: the file is empty; save the spreadsheet again")
    if len(data) > MAX_BYTES:
        raise CohortError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no table of a cohort is; keep only the cohort's rows and columns")
    if data.startswith(OLE):
        raise CohortError(f"{path}: an old .xls workbook, or one under a password; save it as .xlsx without a password, or as CSV")
    faults, notes = {}, []
    if data.startswith(b"PK"):
        table = _workbook(path, data, sheet, faults, notes)
    elif sheet:
        raise CohortError(f"{path}: has no sheets, it is a text file; leave --sheet out")
    else:
        table = _text(path, data, notes)
    faulty = {number for number, _ in faults}
    table = [(number, cells) for number, cells in table if any(cells) or number in faulty]
    heads = [number for number, cells in table if (number == header if header else sum(map(bool, cells)) > 1)]
    if not heads:
        raise CohortError(f"{path}: row {header} is empty; give the row that names the columns" if header else
                          f"{path}: no row with names of columns; a table needs two columns or more, separated by commas, semicolons or tabs")
    width = max(len(cells) for _, cells in table)
    columns = next(cells for number, cells in table if number == heads[0])
    columns = tuple(" ".join(name.split()) for name in columns + ("",) * (width - len(columns)))
    rows = [(number, cells + ("",) * (width - len(cells))) for number, cells in table if number > heads[0]]
    if not rows:
        raise CohortError(f"{path}: no row below the names of the columns in row {heads[0]}")
    notes.append(f"row {heads[0]} names the columns; {len(rows)} rows below")
    return Sheet(path, columns, rows, faults, notes)


# --- text -----------------------------------------------------------------------------------------------------------------------
def _text(path: Path, data: bytes, notes: list[str]) -> list[tuple[int, tuple[str, ...]]]:
    text, encoding = _decoded(data)
    if "\0" in text:
        raise CohortError(f"{path}: neither XLSX nor text; save the spreadsheet as .xlsx or as CSV")
    lines = io.StringIO(text, newline="")
    if hint := re.match(r"sep=(.)\r?\n", text):  # what Excel writes for itself
        mark = hint[1]
    else:
        mark = _mark(text)
    rows = []
    try:
        for number, cells in enumerate(csv.reader(lines, delimiter=mark), 1):
            if hint and number == 1:
                continue
            while cells and not cells[-1].strip():
                cells.pop()
            _within(path, number, len(cells))
            rows.append((number, tuple(cell.strip() for cell in cells)))
    except csv.Error as error:
        raise CohortError(f"{path}, row {len(rows) + 1}: not readable as CSV ({error}); save the spreadsheet again") from None
    notes.append(f"text in {encoding}, separated by {({',': 'commas', ';': 'semicolons', chr(9): 'tabs'}).get(mark, repr(mark))}")
    return rows


def _decoded(data: bytes) -> tuple[str, str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace"), "UTF-16"
    for encoding, name in (("utf-8-sig", "UTF-8"), ("cp1252", "Windows-1252")):
        try:
            return data.decode(encoding), name
        except UnicodeDecodeError:
            pass  # the next one, Latin-1 at last, which has no wrong byte
    return data.decode("latin-1"), "Latin-1"


def _mark(text: str) -> str:
    """What separates the cells: the mark that cuts most of the first lines into the same number of cells, and that number the largest."""
    lines = [line for line in text[:20_000].splitlines()[:20] if line.strip()][:10]

    def score(mark):
        widths = [len(cells) for cells in csv.reader(lines, delimiter=mark)]
        usual = max(widths, key=lambda width: (widths.count(width), width))
        return usual > 1, widths.count(usual), usual

    return max(MARKS, key=score)


def _within(path: Path, row: int, columns: int) -> None:
    if row > MAX_ROWS and columns:
        raise CohortError(f"{path}: more than {MAX_ROWS} rows; keep only those of the cohort")
    if columns > MAX_COLUMNS:
        raise CohortError(f"{path}, row {row}: more than {MAX_COLUMNS} columns; keep only those of the cohort")


# --- workbooks ------------------------------------------------------------------------------------------------------------------
def _workbook(path: Path, data: bytes, sheet: str, faults: dict, notes: list[str]) -> list[tuple[int, tuple[str, ...]]]:
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # no member gives more bytes than it declares
            inflated = sum(member.file_size for member in archive.infolist())
        if inflated > MAX_BYTES:
            raise CohortError(f"{path}: inflates to more than {MAX_BYTES >> 20} MiB; keep only the cohort's rows and columns")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that are of no interest here
            values, formulas = (load_workbook(io.BytesIO(data), read_only=True, data_only=stored, keep_links=False) for stored in (True, False))
            at = _choose(path, values, sheet, notes)
            return list(_cells(path, values.worksheets[at], formulas.worksheets[at], faults))
    except DAMAGE as error:
        raise CohortError(f"{path}: not a readable XLSX workbook ({type(error).__name__}); save it again as .xlsx, or as CSV") from None


def _choose(path: Path, book, name: str, notes: list[str]) -> int:
    names = [sheet.title for sheet in book.worksheets]
    if name and name not in names:
        raise CohortError(f"{path}: no sheet '{name}'; it has {', '.join(names)}")
    shown = [i for i, sheet in enumerate(book.worksheets) if sheet.sheet_state == "visible"]
    if not names:
        raise CohortError(f"{path}: the workbook has no sheet with cells; save it again")
    at = names.index(name) if name else (shown or [0])[0]
    notes.append(f"sheet '{names[at]}'" + (f" of {len(names)} (--sheet chooses: {', '.join(names)})" if len(names) > 1 else ""))
    return at


def _cells(path: Path, values, formulas, faults: dict):
    """(row number, texts) of each row; cells without a value that should have one are noted in `faults`."""
    for sheet in (values, formulas):
        sheet.reset_dimensions()  # what a file says of its size is often wrong
    before = None
    limit = {"max_col": MAX_COLUMNS + 1}
    for number, (cells, written) in enumerate(zip(values.iter_rows(**limit), formulas.iter_rows(**limit), strict=True), 1):
        if cells is before:  # the same empty tuple stands for every row of a gap
            continue
        before = cells
        texts = []
        for column, (cell, formula) in enumerate(zip(cells, written, strict=True)):
            texts.append("" if cell.data_type == "e" else _cell_text(cell))
            if cell.data_type == "e":
                faults[number, column] = "holds an error of the spreadsheet; mend its formula"
            elif cell.value is None and formula.data_type == "f":
                faults[number, column] = "holds a formula without a stored value; open the workbook in a spreadsheet program and save it"
        while texts and not texts[-1]:
            texts.pop()
        _within(path, number, len(texts))
        yield number, tuple(texts)


def _cell_text(cell) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, (datetime, date)):
        return value.isoformat()[:10]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and re.fullmatch("0+", cell.number_format or ""):
        return f"{value:0{len(cell.number_format)}d}"  # 7 shown as 0007 is 0007 to people and in names of files
    return str(value).strip()
