"JupyterLab and the playground for tests: servers that touch nothing of the user, and notebooks opened, run and watched in a browser"
import json, os, secrets, shlex, shutil, socket, subprocess, time, urllib.request
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from urllib.parse import quote
import psutil, pytest
from helpers import ROOT, find_script, read_notebook

SETTINGS = {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),
    'notebook-extension/tracker': dict(windowingMode='none')}   # all cells are in the page, wherever it is scrolled to

TIMEOUT = 90_000   # milliseconds: other tests run beside

# Notebooks

CHAPTER = '25_playground.ipynb'
SHOWN = {'lab', 'look-show', 'pad-show', 'map-widget-show'}   # cells that show a widget
READERS = """readers = {}
for name, n_carried in (('from scratch', 0), ('from letters', None)):
    readers[name] = Choices(per_class=3, n_carried=n_carried).start([Quiet()])"""   # networks for the drawing pad, not yet trained

def write_book(folder):
    "Write the chapter without what it trains and draws itself: its text, its imports and definitions, its widgets"
    nb, cells = read_notebook(ROOT/'nbs'/CHAPTER), []
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        imports = all(line.startswith(('from ', 'import ', '#|')) for line in text.splitlines())
        if cell['id'] == 'pad-train-both': cells.append(dict(cell, source=READERS, outputs=[]))
        elif cell['cell_type'] == 'markdown' or text.startswith('#| export') or imports or cell['id'] in SHOWN: cells.append(cell)
    assert SHOWN | {'pad-train-both'} <= {cell['id'] for cell in cells}
    (folder/CHAPTER).write_text(json.dumps(dict(nb, cells=cells)), encoding='utf-8')
    shutil.copytree(ROOT/'nbs/images', folder/'images')

# Servers

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def write_files(home):
    for name, settings in SETTINGS.items():
        path = home/f'settings/@jupyterlab/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding='utf-8')

def environment(home, package=ROOT):
    "Jupyter, IPython, and whatever looks for a home, stay inside of the folder `home`; `package` holds our package"
    folders = dict(HOME='', JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', IPYTHONDIR='ipython',
        JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces')
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('JUPYTER', 'JPY_', 'VOILA', 'XDG_'))}
    return {**kept, **{k: str(home/v) for k, v in folders.items()}, 'PYTHONPATH': str(package)}

def answers(url):
    try: return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).status == 200
    except OSError: return False

@contextmanager
def serving(command, home, ready, package=ROOT):
    "Run a server until it answers at the address `ready`; at the end it is gone, with its kernels, whatever happened"
    write_files(home)
    with open(home/'server.log', 'w') as log:
        server = psutil.Popen(command, env=environment(home, package), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not answers(ready):
            ok = server.poll() is None and time.monotonic() < until
            assert ok, f"{' '.join(command)} does not answer:\n{(home/'server.log').read_text()[-3000:]}"
            time.sleep(.2)
        yield server
    finally: stop(server)

def stop(server):
    "Each kernel leads a session of its own, so that ending the server's group would leave them"
    family = [server] + (server.children(recursive=True) if server.poll() is None else [])
    if server.poll() is None: server.terminate()
    for o in psutil.wait_procs(family, timeout=3)[1]:
        with suppress(psutil.NoSuchProcess): o.kill()
    psutil.wait_procs(family, timeout=5)

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A function that starts JupyterLab in a folder, and returns its address (with its token)"
    with ExitStack() as stack:
        def start(folder, *options):
            port, token = free_port(), secrets.token_hex(16)
            command = [find_script('jupyter-lab'), '--no-browser', f'--ServerApp.root_dir={folder}', '--ServerApp.ip=127.0.0.1',
                f'--ServerApp.port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', '--expose-app-in-browser',
                '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
                '--LabApp.extension_manager=readonly', '--LanguageServerManager.autodetect=False', *options]
            if hasattr(os, 'getuid') and os.getuid() == 0: command.append('--allow-root')
            stack.enter_context(serving(command, tmp_path_factory.mktemp('lab'), f'http://127.0.0.1:{port}/api'))
            return f'http://127.0.0.1:{port}/?token={token}'
        yield start

@pytest.fixture(scope='module')
def playground(tmp_path_factory):
    "The address of `nbtransfer playground`, which the browser of the system, a script that notes what it is given, opened"
    port, home = free_port(), tmp_path_factory.mktemp('playground')
    (home/'clone'/'nbs').mkdir(parents=True)   # the command serves the chapter that stands beside its package
    write_book(home/'clone'/'nbs')
    (home/'clone'/'nbtransfer').symlink_to(ROOT/'nbtransfer')
    script = home/'browser'
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {shlex.quote(str(home))}/opened\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as env:
        env.setenv('BROWSER', str(script))
        command = [find_script('nbtransfer'), 'playground', f'--port={port}']
        with serving(command, home, f'http://127.0.0.1:{port}/voila/static/voila.js', home/'clone') as server:
            yield SimpleNamespace(address=f'http://127.0.0.1:{port}/', opened=home/'opened', server=server)

# Pages

@pytest.fixture
def tab(browser):
    "A page that reaches this machine only; in `tab.elsewhere` is what it asked of others, in `tab.said` the errors of its console"
    context = browser.new_context(viewport=dict(width=1280, height=900), device_scale_factor=2, accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(TIMEOUT)
    tab.elsewhere, tab.said = [], []
    def refuse(route):
        tab.elsewhere.append(route.request.url)
        route.fulfill(status=200, content_type='text/css', body='')   # an abort would be an error in the console
    context.route(lambda url: not url.startswith(('http://127.0.0.1:', 'ws://127.0.0.1:', 'data:', 'blob:')), refuse)
    tab.on('console', lambda o: tab.said.append(o.text) if o.type == 'error' else None)
    tab.on('pageerror', lambda o: tab.said.append(str(o)))
    yield tab
    context.close()

IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"
OUTPUTS = "jupyterapp.shell.currentWidget.content.widgets.flatMap(o => o.outputArea ? o.outputArea.model.toJSON() : [])"
VIEW = 'application/vnd.jupyter.widget-view+json'
ALIVE = "n => { const all = [...document.querySelectorAll('.jp-OutputArea-output.lm-Panel')];" \
    " return all.length >= n && all.every(o => o.querySelector('.jupyter-widgets, canvas')) }"

def wait_for_widgets(tab, n, seconds):
    tab.wait_for_function(ALIVE, arg=n, timeout=seconds * 1000)
    assert not tab.locator('.jupyter-widgets-error-widget').count(), tab.said

def open_lab(tab, address, notebook, seconds=120):
    "Open a notebook in JupyterLab with a new kernel, run all cells, and wait until they are done and their widgets are shown"
    site, token = address.split('?token=')
    headers = dict(Authorization=f'token {token}')
    for o in tab.request.get(f'{site}api/sessions', headers=headers).json():
        if o['path'] == notebook: tab.request.delete(f"{site}api/sessions/{o['id']}", headers=headers)
    tab.goto(f'{site}doc/tree/{quote(notebook)}?token={token}')
    tab.wait_for_function(IDLE, timeout=seconds * 1000)
    tab.set_default_timeout(seconds * 1000)
    tab.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")   # what the menu Run does; ends when the last cell has
    outputs = tab.evaluate(OUTPUTS)
    failed = ['\n'.join(o['traceback']) for o in outputs if o['output_type'] == 'error']
    assert not failed, failed[0]
    wait_for_widgets(tab, sum(VIEW in o.get('data', ()) for o in outputs), seconds)
    tab.set_default_timeout(TIMEOUT)

def open_voila(tab, address, seconds=120):
    "Open a notebook in Voilà, and wait until all cells have run and their widgets are shown"
    page = tab.goto(address, timeout=seconds * 1000).text()
    tab.wait_for_selector('#rendered_cells', state='visible', timeout=seconds * 1000)
    failed = tab.locator(', '.join(f'[data-mime-type="application/vnd.jupyter.{o}"]' for o in ('error', 'stderr'))).all_inner_texts()
    assert not failed, failed[0]
    wait_for_widgets(tab, page.count(f'"{VIEW}":'), seconds)

def drag(tab, canvas, places):
    "Draw a line through `places` (in pixels of the canvas), with the mouse"
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    scale = box['width'] / int(canvas.get_attribute('width'))
    places = [(box['x'] + x * scale, box['y'] + y * scale) for x, y in places]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for o in places[1:]: tab.mouse.move(*o)
    tab.mouse.up()

def wait_until(true, seconds):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until: time.sleep(.5)
    return true()

def choose_file(tab, button, path):
    "A FileUpload has no input in the page: it opens the browser's dialog"
    with tab.expect_file_chooser() as dialog: button.click()
    dialog.value.set_files(path)
