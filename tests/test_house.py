"""The house keeps its rules: environment files agree, rooms import downward, mutations fit the code, notebooks are laid out alike,
`run_all.sh` speaks plainly."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import mutations
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "sos"
PROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
DEPENDENCIES = [Requirement(text) for text in tomllib.loads(PROJECT)["project"]["dependencies"]]
GIVEN = {"jupyterlab", "papermill", "torch", "torchvision", "fastai", "pydicom", "seaborn", "nbval", "pytest"}
MODULES = {"sklearn": "scikit-learn", "PIL": "pillow", "xdist": "pytest-xdist", "openjpeg": "pylibjpeg-openjpeg",
           "jpeg_ls": "pyjpegls", "gdcm": "python-gdcm"}
PEERS = {"pytorch_grad_cam": "grad-cam", "torchdistill": "torchdistill"}  # they made tests/references, and nothing else knows them
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

GROUND = {"stages", "choices", "config", "cores", "errors", "files"}
MAY_IMPORT = {"images": GROUND, "phantom": GROUND | {"images", "cohort.manifest"}, "cohort": GROUND | {"images"}, "method": GROUND,
              "study": GROUND | {"images", "phantom", "cohort", "method"}}


def lock() -> dict[str, Requirement]:
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too: `sos.cohort.manifest`, `numpy`."""
    package = path.relative_to(REPOSITORY).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{name.name}" if is_module(f"{base}.{name.name}") else base for name in node.names}
    return found


def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return name.startswith("sos") and (path.is_dir() or path.with_suffix(".py").is_file())


# ---- the environment -----------------------------------------------------------------------------------------------


def test_lock_holds_exact_versions_and_no_address():
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--|@", text)
    for pin in lock().values():
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin


def test_lock_pins_every_direct_dependency_within_its_range():
    pins = lock()
    for wanted in DEPENDENCIES:
        pin = pins[canonicalize_name(wanted.name)]
        assert pin.marker is None and wanted.specifier.contains(str(pin.specifier).removeprefix("==")), wanted


def test_direct_dependencies_are_the_given_list_and_others_with_a_reason():
    names = {canonicalize_name(wanted.name) for wanted in DEPENDENCIES}
    assert GIVEN < names
    for line in PROJECT.partition("dependencies = [")[2].partition("\n]")[0].splitlines():
        name = re.match(r'\s*"([\w-]+)', line)
        if name and name[1] not in GIVEN:
            assert re.search(r'",  # \w.{9,}', line), f"no reason given for {name[1]}"


def test_everything_imported_is_a_direct_dependency():
    names = {canonicalize_name(wanted.name) for wanted in DEPENDENCIES} | {"sos"}
    for path in [*PACKAGE.rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]:
        peers = PEERS if path.parent.name == "references" else {}
        for module in {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - set(peers):
            local = (path.parent / f"{module}.py").is_file() or (path.parent / module).is_dir()
            assert canonicalize_name(MODULES.get(module, module)) in names or local, f"{path.name} imports {module}"


def test_peers_that_made_the_references_are_no_dependencies():
    names = {canonicalize_name(wanted.name) for wanted in DEPENDENCIES} | set(lock())
    assert not names & set(PEERS.values())


def test_conda_environment_is_thin_and_uses_the_lock():
    lines = [line.strip() for line in (REPOSITORY / "environment.yml").read_text(encoding="utf-8").splitlines()]
    packages = lines[lines.index("dependencies:") + 1:]
    assert re.fullmatch(r"- python=3\.1[12]", packages[0])
    assert packages[1:] == ["- pip", "- pip:", "- -r requirements.lock", "- -e ."]


def test_version_and_pythons_are_said_once():
    project = tomllib.loads(PROJECT)
    assert project["project"]["requires-python"] == ">=3.11,<3.13"
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sos.__version__"}
    import sos

    assert f"version: {sos.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")


# ---- the rooms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_rooms_import_downward_only(wing):
    files = list((PACKAGE / wing).glob("*.py"))
    assert len(files) > 1
    for path in files:
        for name in imports(path):
            if name.startswith("sos."):
                room = name.removeprefix("sos.")
                below = any(room == allowed or room.startswith(f"{allowed}.") for allowed in MAY_IMPORT[wing] | {wing})
                assert below, f"{path.relative_to(REPOSITORY)} imports {name}, which stands above it"


@pytest.mark.parametrize("name", sorted(GROUND))
def test_ground_imports_no_room(name):
    assert {other for other in imports(PACKAGE / f"{name}.py") if other.startswith("sos")} <= {f"sos.{other}" for other in GROUND}


# ---- the notebooks -------------------------------------------------------------------------------------------------


def cells(path: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if kind in (None, cell["cell_type"])]


def test_there_are_six_notebooks():
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_", "06_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_opens_and_closes_as_all_do(self, path):
        every = cells(path)
        first, last = every[0], every[-1]
        assert first["cell_type"] == last["cell_type"] == "markdown"
        assert first["source"].startswith("# ")
        for part in ("question", "you will be able to", "paper", "run time"):
            assert part in first["source"].lower(), f"the opening says nothing of: {part}"
        for part in ("what we learned", "questions", "further reading"):
            assert part in last["source"].lower(), f"the close says nothing of: {part}"
        assert len(re.findall(r"^\d\. ", last["source"], re.MULTILINE)) >= 3

    def test_has_one_parameters_cell_of_literals_before_all_other_code(self, path):
        code = cells(path, "code")
        tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
        assert tagged == code[:1]
        names = set()
        for node in ast.parse(tagged[0]["source"]).body:
            assert isinstance(node, ast.Assign)
            ast.literal_eval(node.value)
            names |= {target.id for target in node.targets}
        assert names >= {"profile", "cohort"}

    def test_cells_are_short(self, path):
        for cell in cells(path, "code"):
            assert len(cell["source"].splitlines()) <= 15, cell["source"].splitlines()[0]

    def test_holds_no_path_of_a_machine_and_no_error(self, path):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt|opt)/", text)
        outputs = [out for cell in cells(path, "code") for out in cell["outputs"]]
        assert not [out for out in outputs if out["output_type"] == "error"]
        assert not [out for out in outputs if out.get("name") == "stderr"]

    def test_every_code_cell_is_whole_python(self, path):
        for cell in cells(path, "code"):
            ast.parse(re.sub(r"^[%!].*$", "pass", cell["source"], flags=re.MULTILINE))


# ---- the mutations of the method -----------------------------------------------------------------------------------


def test_every_mutation_still_fits_the_code():
    assert len({mutant.name for mutant in mutations.MUTANTS}) == len(mutations.MUTANTS) > 60
    for mutant in mutations.MUTANTS:
        text = (REPOSITORY / mutations.METHOD / mutant.file).read_text(encoding="utf-8")
        ast.parse(mutant.applied(text))


# ---- run_all.sh ----------------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path):
    """A copy of the checkout's top level, and a PATH with the usual tools but without any Python."""
    for name in ("run_all.sh", "requirements.lock", "pyproject.toml", "environment.yml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "df", "awk", "mkdir", "rm", "tail", "cksum"):
        script(tools / name, f'exec {shutil.which(name)} "$@"')  # no links, which a test that replaces a tool would write through

    def run(*args, **environment):
        return subprocess.run([shutil.which("bash"), str(tmp_path / "run_all.sh"), *args], env={"PATH": str(tools), **environment},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)

    run.tools = tools
    return run


def test_run_all_without_python_says_what_to_install(bare):
    done = bare("--profile", "smoke")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "run_all: no Python 3.11 or 3.12 found, and no conda; install one of them and start again\n"


def test_run_all_without_venv_module_says_what_to_install(bare):
    python = f'exec {sys.executable} -S "$@"'  # -S: sees no installed package
    script(bare.tools / "python3", f'case "$*" in *venv*) exit 1;; esac\n{python}')
    done = bare()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "python3 has no venv module" in done.stderr


def test_run_all_on_a_full_disk_says_so(bare):
    script(bare.tools / "df", "echo Filesystem; echo disk 1000 900 100 90% /")
    done = bare()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "0 GB free" in done.stderr


def test_run_all_shows_the_end_of_a_failed_installation(bare):
    python = f'exec {sys.executable} -S "$@"'
    script(bare.tools / "python3", f'case "$*" in *"-m venv"*) echo no room for a venv; exit 1;; esac\n{python}')
    done = bare()
    assert done.returncode == 1
    assert "no room for a venv" in done.stderr and "the same command goes on from here" in done.stderr
    assert not (bare.tools.parent / ".venv" / "made-from").exists()


def test_run_all_uses_the_environment_that_is_there(bare):
    script(bare.tools / "python3", f'exec {sys.executable} "$@"')
    (bare.tools.parent / "sos").mkdir()
    (bare.tools.parent / "sos" / "__init__.py").touch()
    (bare.tools.parent / "sos" / "steps.py").write_text("import sys; print(sys.argv[1:])")
    options = ["--profile", "smoke", "--cohort", "my cohort/m.csv", "--only", "04", "--force", "--stop-after=3"]
    done = bare(*options)
    assert (done.returncode, done.stderr) == (0, "")
    assert ast.literal_eval(done.stdout) == options
    assert not (bare.tools.parent / ".venv").exists()


def test_run_all_refuses_unknown_options(bare):
    done = bare("--profle", "smoke")
    assert done.returncode == 1 and "unknown option --profle" in done.stderr
    assert bare("--help").returncode == 0
    assert bare("--profile").returncode == 1


def test_ci_runs_what_everybody_runs():
    lines = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    assert lines[-1].endswith("./run_all.sh --test")
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK) and os.access(REPOSITORY / "run_all.sh", os.X_OK)
