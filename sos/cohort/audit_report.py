"""What an audit found, as a table, as JSON and as text; the page is made in `audit_page`."""

import json
from dataclasses import asdict, dataclass, field

import pandas as pd

from .audit_files import FileFacts

SHOWN = 10  # lines of one kind in the text, unless all are asked for


@dataclass(frozen=True)
class Finding:
    """One doubt. `severity` is 'error' (this row cannot be used as it is) or 'warning'; `row` counts as a spreadsheet does
    (header = 1); `kind` is what findings are counted by."""

    severity: str
    row: int | None
    patient_id: str
    file: str
    what: str
    advice: str
    kind: str


@dataclass(frozen=True)
class AuditReport:
    """Findings on one manifest. `usable` is False where not one row could be used; `counts` sums up.

    `table`: the manifest's cells as text, its index the row of a spreadsheet (None where it could not be read); `files`: image → what was
    found out about it. Both are for pictures and charts, and not in the JSON.
    """

    manifest: str
    findings: list[Finding]
    counts: dict
    usable: bool
    table: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    files: dict[str, FileFacts] = field(default_factory=dict, repr=False, compare=False)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 with findings, 2 unusable."""
        return 2 if not self.usable else 1 if self.findings else 0

    @property
    def virtual(self) -> bool:
        """True where every row says `cohort_kind = virtual`."""
        return self.table is not None and "cohort_kind" in self.table and bool((self.table["cohort_kind"] == "virtual").all())

    def to_frame(self) -> pd.DataFrame:
        """One row a finding: severity, row, patient_id, file, what, advice, kind; errors first, then by row."""
        frame = pd.DataFrame([asdict(finding) for finding in self.findings], columns=list(Finding.__dataclass_fields__))
        frame["row"] = frame["row"].astype("Int64")
        return frame.sort_values(["severity", "row"], kind="stable", na_position="first", ignore_index=True)

    def kinds(self) -> list[dict]:
        """How many findings there are of each kind: severity, kind, count; errors first, then the most frequent."""
        counts = self.to_frame().value_counts(["severity", "kind"], sort=False).reset_index(name="count")
        return counts.sort_values(["severity", "count", "kind"], ascending=[True, False, True]).to_dict("records")

    def to_json(self) -> str:
        """The same as JSON: manifest (its name), usable, counts, kinds, findings."""
        findings = [finding | {"row": None if pd.isna(finding["row"]) else int(finding["row"])}
                    for finding in self.to_frame().to_dict("records")]
        return json.dumps({"manifest": self.manifest, "usable": self.usable, "counts": self.counts, "kinds": self.kinds(),
                           "findings": findings}, indent=2, ensure_ascii=False)

    def summary(self) -> str:
        """One line: what was looked at and how much was found."""
        counts = self.counts
        patients = "virtual patients" if self.virtual else "patients"
        return (f"{self.manifest}: {counts['rows']} rows, {counts['patients']} {patients}, {counts['images_readable']} of "
                f"{counts['images']} images readable; {counts['errors']} errors, {counts['warnings']} warnings"
                + ("" if self.usable else "; this cohort cannot be used"))

    def to_text(self, everything: bool = False) -> str:
        """The summary; how often each kind was found; then what was found and what to do, the same words once with all their rows, and of
        one kind at most SHOWN lines. With `everything` one line a finding, with its file."""
        lines, frame = [self.summary()], self.to_frame()
        for kind in self.kinds():
            lines.append(f"{kind['count']:6d}  {kind['severity']}: {kind['kind']}")
        for kind in self.kinds():
            of_kind = frame[(frame["severity"] == kind["severity"]) & (frame["kind"] == kind["kind"])]
            told = [self._line(kind["severity"], group)
                    for _, group in of_kind.groupby(of_kind.index if everything else ["what", "advice"], sort=False)]
            left = 0 if everything else len(told) - SHOWN
            lines += ["", *(told[:SHOWN] if left > 0 else told)]
            if left > 0:
                lines.append(f"… and {left} more of this kind; --all lists them")
        return "\n".join(lines)

    @staticmethod
    def _line(severity: str, group: pd.DataFrame) -> str:
        first, rows = group.iloc[0], group["row"].dropna().astype(int).tolist()
        place = f"rows {row_list(rows)}" if len(rows) > 1 else f"row {rows[0]}, {first['file']}" if rows else first["file"]
        return f"{severity}: {place}: {first['what']}; {first['advice']}"


def row_list(rows: list[int]) -> str:
    """`2–5, 9` for ascending row numbers."""
    spans = []
    for row in rows:
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in spans)
