"""Staging schemes as data. A scheme is an ordered list of stages; everything else in the package asks it, and knows no number of stages."""

from dataclasses import dataclass

from .errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One stage: the `label` written in manifests, a short `name` for axes, and the reader's `criterion`."""

    label: int
    name: str
    criterion: str


@dataclass(frozen=True)
class StagingScheme:
    """An ordered staging scheme. Networks and metrics count stages from 0 (`index`), manifests and people use `label`."""

    name: str
    source: str
    stages: tuple[Stage, ...]

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels in order of fusion, as written in manifests."""
        return tuple(stage.label for stage in self.stages)

    @property
    def names(self) -> tuple[str, ...]:
        """Short names in order of fusion, for axes and tables."""
        return tuple(stage.name for stage in self.stages)

    def index(self, label) -> int:
        """Position of `label` counted from 0. Raises ConfigError for a label outside the scheme."""
        try:
            return self.labels.index(int(label))
        except (TypeError, ValueError):
            known = ", ".join(map(str, self.labels))
            raise ConfigError(f"stage {label!r} is not in the scheme '{self.name}' (stages {known})") from None


BASSED5 = StagingScheme(
    "bassed5",
    "Bassed et al. 2010; on CBCT Fernández-Pérez et al. 2016",
    (
        Stage(1, "open", "open along its whole length"),
        Stage(2, "endocranial", "endocranial border fused, at most half of the length closed"),
        Stage(3, "mostly", "more than half closed, ectocranial border still open"),
        Stage(4, "scar", "completely fused, a fusion scar still visible"),
        Stage(5, "fused", "completely fused, no scar"),
    ),
)

FRANKLIN4 = StagingScheme(
    "franklin4",
    "four stages, after Franklin & Flavel and Hisham et al. (labels 0–3)",
    (
        Stage(0, "open", "open along its whole length"),
        Stage(1, "fusing", "fusing endocranially, at most half of the length closed"),
        Stage(2, "mostly", "more than half closed, ectocranial border still open"),
        Stage(3, "fused", "completely fused, with or without a scar"),
    ),
)

SCHEMES = {scheme.name: scheme for scheme in (BASSED5, FRANKLIN4)}


def get_scheme(name: str) -> StagingScheme:
    """The scheme called `name`. Raises ConfigError naming the known ones."""
    if name not in SCHEMES:
        raise ConfigError(f"no staging scheme '{name}'; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]
