"""A real JupyterLab in a real Chromium for tests of the panels. With the fixture `lab`, which conftest hands to all tests,

    page = lab("from sos.panels.review import review\\nreview('manifest.csv', who='AB')", folder)

opens a notebook with that one cell in a copy of `folder`, runs it, and returns the page (playwright's), whose `folder` is that copy. A selector is
waited for, never a time. Server and browser are started once for all tests of a process.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
         "--disable-quic", "--disable-dev-shm-usage")
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
            "notebook-extension/tracker": {"autoStartDefaultKernel": True}}
START_S, STOP_S = 60, 15  # of the server, on a busy machine
STEP_MS = 30_000  # the longest that a page may take for one step


def find_browser() -> str:
    """The browser's path; without one the test is skipped, but in continuous integration it fails."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        why = f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    return found


@pytest.fixture(scope="session")
def chromium():
    """A running browser."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """A JupyterLab server of our own, with settings of its own: (its address, its token, its root folder)."""
    home = tmp_path_factory.mktemp("jupyter")
    root, runtime, token = home / "root", home / "runtime", secrets.token_hex(16)
    root.mkdir()
    for name, value in SETTINGS.items():
        file = home / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.open_browser": False, "ServerApp.root_dir": root,
                "ServerApp.allow_root": True, "IdentityProvider.token": token, "LabApp.news_url": None, "LabApp.extension_manager": "readonly",
                "LabApp.check_for_updates_class": "jupyterlab.handlers.announcements.NeverCheckForUpdate"}
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
                                "JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTERLAB_SETTINGS_DIR": str(home / "lab"),
                                "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"), "MPLCONFIGDIR": str(home / "mpl"), "JUPYTER_PREFER_ENV_PATH": "1",
                                "PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with open(home / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in settings.items())], cwd=root,
                                  env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _address(server, runtime, token, home / "log"), token, root
    finally:
        server.terminate()  # it ends its kernels before itself
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: subprocess.Popen, runtime: Path, token: str, log: Path) -> str:
    """The server's address, once it answers; it may have taken another port than asked for."""
    known = runtime / f"jpserver-{server.pid}.json"
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            address = json.loads(known.read_text())["url"].rstrip("/")
            with urllib.request.urlopen(f"{address}/api?token={token}", timeout=5):
                return address
        except (OSError, ValueError):
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def lab(chromium, jupyter):
    """A function that runs a cell in a notebook and returns the page; `folder`, where the cell runs, is copied into the server's root."""
    address, token, root = jupyter
    contexts = []
    import nbformat

    def run(cell: str, folder: Path):
        here = Path(shutil.copytree(folder, root / f"{folder.name}-{secrets.token_hex(3)}"))
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, here / "test.ipynb")
        session = {"path": f"{here.name}/test.ipynb", "type": "notebook", "name": "test.ipynb", "kernel": {"name": "python3"}}
        asked = urllib.request.Request(f"{address}/api/sessions", json.dumps(session).encode(), {"Authorization": f"token {token}"})
        urllib.request.urlopen(asked, timeout=START_S).close()  # the kernel starts while the page loads
        context = chromium.new_context(viewport={"width": 1280, "height": 960})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(STEP_MS)
        page.folder = here
        page.goto(f"{address}/lab/workspaces/{here.name}/tree/{here.name}/test.ipynb?token={token}")
        page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
        page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True).click()
        return page

    yield run
    for context in contexts:
        context.close()
