#!/usr/bin/env bash
# From a bare Linux machine with Python 3.11 or 3.12 to all results: makes the environment if there is none, then runs what is missing or
# stale.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./run_all.sh [options]
  --profile NAME               smoke, quick, quick5, ablations, paper3, paper or networks: size of the study
                               (default: paper with a CUDA device, else quick)
  --cohort MANIFEST            your own cohort in place of the virtual one
  --only NN                    one notebook alone, for instance 04
  --force                      run also what is unchanged; finished trainings are still found
  --stop-after MINUTES         end cleanly after this time; the same command goes on from there
  --site                       make the same environment, then build the pages to read without running: runs/site/html
  --test                       make the same environment, then run all tests and validate the notebooks
  --help                       this text
example: ./run_all.sh --profile smoke
EOF
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
log=$here/runs/environment.log
unfinished=$here/runs/environment.unfinished  # there while .venv is being made or renewed
needed="torch torchvision fastai pydicom papermill jupytext nbformat ipykernel numpy pandas scipy sklearn matplotlib seaborn PIL safetensors
  openjpeg jpeg_ls gdcm dask distributed ipywidgets anywidget threadpoolctl tqdm"
needed_by_tests="pytest xdist hypothesis nbval nbconvert imagecodecs"
free_gb_needed=9
test=no
site=no
args=()

die() { echo "run_all: $*" >&2; exit 1; }

[[ $OSTYPE == linux* ]] || die "this needs Linux; use a container, a virtual machine or, on Windows, WSL"

while [ $# -gt 0 ]; do
  case $1 in
    --test) test=yes ;;
    --site) site=yes ;;
    --force) args+=("$1") ;;
    --profile | --cohort | --only | --stop-after)
      [ $# -ge 2 ] || die "$1 needs a value; see ./run_all.sh --help"
      args+=("$1" "$2"); shift ;;
    --profile=* | --cohort=* | --only=* | --stop-after=*) args+=("$1") ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
[ $test = no ] || { needed="$needed $needed_by_tests"; [ $site = no ] && [ ${#args[@]} -eq 0 ] || die "--test takes no other option"; }
[ $site = no ] || { needed="$needed sphinx myst_nb sphinx_book_theme"; [ ${#args[@]} -eq 0 ] || die "--site takes no other option"; }

# ---- the environment -----------------------------------------------------------------------------------------------

# Python 3.11 or 3.12 that finds every needed package; asks the import system only, imports nothing.
usable() {
  "$1" -c 'import sys; from importlib.util import find_spec
sys.exit(not ((3, 11) <= sys.version_info < (3, 13) and all(map(find_spec, sys.argv[1].split()))))' "$needed" >/dev/null 2>&1
}

# Hash of what the environment is made from; its copy in .venv is written last, and only into an environment of our making.
wanted() { cat "$here/requirements.lock" "$here/pyproject.toml" "$here/environment.yml" | cksum; }

# The first Python 3.11 or 3.12 on PATH that has the modules named in $1, if any.
find_python() {
  local name
  for name in python3 python3.12 python3.11; do
    "$name" -c "import sys $1; sys.exit(not (3, 11) <= sys.version_info < (3, 13))" >/dev/null 2>&1 && { echo "$name"; return; }
  done
  return 0
}

logged() {
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1 && return
  echo >&2
  tail -n 15 "$log" >&2
  if [ -f "$unfinished" ]; then rm -rf "$venv"; rm "$unfinished"; fi  # half made; what is put there from now on is somebody else's
  die "the environment could not be made (above: the end of $log); mend the cause, then the same command goes on from here"
}

make_environment() {
  local conda="" tool base start=$SECONDS free_gb
  free_gb=$(df -Pk "$here" | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free_gb" -ge $free_gb_needed ] || die "only $free_gb GB free in $here; the environment needs $free_gb_needed GB"
  mkdir -p "$here/runs"
  exec 9>"$here/runs/environment.lock"
  ! command -v flock >/dev/null || flock -n 9 || die "the environment is being made by another call; wait for its end, then start again"
  : >"$log"
  for tool in micromamba mamba conda; do
    command -v $tool >/dev/null 2>&1 && { conda=$tool; break; }
  done
  base=$(find_python ", venv, ensurepip")
  if [ -z "$conda$base" ]; then
    base=$(find_python "")
    [ -z "$base" ] || die "$base has no venv module; install it (Debian, Ubuntu: apt-get install $base-venv) and start again"
    die "no Python 3.11 or 3.12 found, and no conda; install one of them and start again"
  fi
  printf 'environment in .venv, once, some minutes ... '
  cd "$here"
  [ ! -f "$unfinished" ] || rm -rf "$venv"  # packages may be half installed
  if [ ! -d "$venv" ] || [ -f "$venv/made-from" ]; then : >"$unfinished"; fi  # else it is not ours: only add what it lacks
  rm -f "$venv/made-from"
  if [ -n "$conda" ] && [ -d "$venv/conda-meta" ]; then
    logged "$conda" env update -q -p "$venv" -f environment.yml
  elif [ "$conda" = micromamba ] && [ ! -d "$venv" ]; then
    logged micromamba create -y -q -p "$venv" -f environment.yml
  elif [ -n "$conda" ] && [ ! -d "$venv" ]; then
    logged "$conda" env create -q -p "$venv" -f environment.yml
  else
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || logged "$base" -m venv "$venv"
    logged "$venv/bin/python" -m pip install --disable-pip-version-check -r requirements.lock
    logged "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
  fi
  usable "$venv/bin/python" || die "the environment in $venv is still not complete; delete it and start again"
  if [ -f "$unfinished" ]; then wanted >"$venv/made-from"; rm "$unfinished"; fi
  cd - >/dev/null
  exec 9>&-
  echo "$((SECONDS - start)) s"
}

# The environment in .venv as it should be: ours and up to date, or somebody's own with all that is needed.
ready() {
  [ ! -f "$unfinished" ] && usable "$venv/bin/python" && { [ ! -f "$venv/made-from" ] || [ "$(cat "$venv/made-from")" = "$(wanted)" ]; }
}

python=""
for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
  [ -n "$active" ] && usable "$active/bin/python" && { python=$active/bin/python; break; }
done
if [ -z "$python" ] && [ ! -d "$venv" ] && usable python3; then python=python3; fi
if [ -z "$python" ]; then
  ready || make_environment
  python=$venv/bin/python
fi
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" JUPYTER_PREFER_ENV_PATH=1 PYDEVD_DISABLE_FILE_VALIDATION=1

# ---- the site ------------------------------------------------------------------------------------------------------

[ $site = no ] || exec "$python" -P -m sos.site

# ---- the road ------------------------------------------------------------------------------------------------------

[ $test = yes ] || exec "$python" -P -u -m sos.steps ${args[@]+"${args[@]}"}

# ---- the tests -----------------------------------------------------------------------------------------------------

cd "$here"
mkdir -p runs
status=0
OMP_NUM_THREADS=1 "$python" -m pytest -o addopts= -n 2 --dist loadfile --nbval-lax --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks/*.ipynb 2>&1 |
  tee runs/nbval.log || status=1  # first: it makes the runs that the tests of the exercises read
OMP_NUM_THREADS=1 "$python" -m pytest tests -n 2 --dist loadscope 2>&1 | tee runs/tests.log || status=1
tail -qn 1 runs/tests.log runs/nbval.log  # the two closing lines together
exit $status
