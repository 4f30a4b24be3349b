import os, shutil, subprocess, tempfile
import pytest

# Tests run side by side: none asks for more cores than its share, or their threads wait for each other. Before numpy and torch are there.
n_workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
own_threads = {o: str(max(1, (os.cpu_count() or 1) // n_workers)) for o in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')}
if n_workers > 1: os.environ.update(own_threads)

from helpers import ROOT, find_browser, run_ok   # noqa: E402

cache_key = pytest.StashKey[tempfile.TemporaryDirectory]()
SLOW = 'chapter', 'browser', 'process', 'training', 'nightly'   # what `pytest -m quick` leaves out

def pytest_addoption(parser):
    parser.addoption('--cifar', action='store_true', help='run the cells marked #| cifar too (needs the CIFAR data)')

def pytest_configure(config):
    "Decoded pictures of this session go to a folder of its own, shared by the processes that run tests"
    if 'PYTEST_XDIST_WORKER' in os.environ: return
    config.stash[cache_key] = tempfile.TemporaryDirectory()
    os.environ['NBTRANSFER_CACHE'] = config.stash[cache_key].name

def pytest_unconfigure(config):
    if cache_key in config.stash: config.stash[cache_key].cleanup()

@pytest.hookimpl(tryfirst=True)   # before `-m quick` chooses
def pytest_collection_modifyitems(items):
    """Mark what is quick; put first what takes longest

    Of two processes, which get half of the tests each, both begin with some of it."""
    for item in items:
        if not any(map(item.get_closest_marker, SLOW)): item.add_marker('quick')
    slow = sorted((o for o in items if not o.get_closest_marker('quick')), key=how_soon)
    quick = [o for o in items if o.get_closest_marker('quick')]
    half = len(quick) // 2
    items[:] = [*slow[::2], *quick[:half], *slow[1::2], *quick[half:]]

def how_soon(item):
    "Chapters come first; the tests of one file stay together"
    return not item.get_closest_marker('chapter'), item.path.name

@pytest.fixture(scope='session')
def one_thread():
    "Environment that keeps torch from asking for more cores than its share"
    return own_threads

@pytest.fixture(scope='session')
def clean_copy(tmp_path_factory):
    "A copy of what git has or would add, committed: what a fresh clone holds. Commands that write run there."
    copy = tmp_path_factory.mktemp('clone')/'nbtransfer'
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
        check=True, stdout=subprocess.PIPE, text=True).stdout.split('\0')
    for name in listed:
        if not name or not (ROOT/name).is_file(): continue
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, copy/name)
    for command in ('git init -q', 'git add -A', 'git -c user.name=test -c user.email=test@localhost commit -q -m all'):
        run_ok(command.split(), copy)
    return copy

@pytest.fixture(scope='module')
def browser():
    "Chromium or Chrome, without a page"
    path = find_browser()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield browser
        browser.close()
