"The playground as people have it, in JupyterLab and as an app, in a real browser; and what its controls do to each other"
import os, re, threading
from pathlib import Path
from urllib.parse import unquote
import psutil, pytest
from ipywidgets import HTML
from helpers import ROOT, write_folder
from jupyter_servers import CHAPTER, choose_file, drag, lab, open_lab, open_voila, playground, tab, wait_until, write_book
from nbtransfer.finetuning import transfer_learner
from nbtransfer.folders import image_folder
from nbtransfer.networks import resnet9
from nbtransfer.playground import Choices, TransferLab, _errors_said_in, plot_nearest, plot_training
from nbtransfer.tasks import digits
from PIL import Image
import torch
from safetensors.torch import save_file

KEPT = os.environ.get('NBTRANSFER_SCREENSHOTS')

@pytest.fixture(scope='module', params=['lab', 'app'])
def opened(request, tmp_path_factory):
    "Opens the chapter, without what it trains, all cells run, and says where"
    if request.param == 'lab':
        folder = tmp_path_factory.mktemp('book')
        write_book(folder)   # JupyterLab saves by itself
        address = request.getfixturevalue('lab')(folder)
        def open_it(tab): open_lab(tab, address, CHAPTER, 400)
    else:
        address = request.getfixturevalue('playground').address
        def open_it(tab): open_voila(tab, address, 400)
    open_it.where = request.param
    return open_it

def said(tab, words): return tab.locator('.widget-html-content', has_text=re.compile(words)).first

def press(tab, name): tab.get_by_role('button', name=name, exact=True).click()

def type_into(tab, label, text):
    box = tab.get_by_label(label, exact=True).first
    box.fill(text)
    box.press('Enter')
    box.press('Tab')

def code_says(tab, words):
    tab.wait_for_function("o => [...document.querySelectorAll('textarea')].some(box => box.value.includes(o))", arg=words)

def screenshot(tab, name, part):
    "Of a widget, from its first element on"
    if not KEPT: return
    size = tab.viewport_size
    tab.set_viewport_size(dict(width=1000, height=1300))
    part.evaluate('o => o.scrollIntoView()')
    tab.wait_for_timeout(500)
    box = part.bounding_box()
    clip = dict(x=box['x'], y=box['y'], width=box['width'], height=min(box['height'], 1290 - box['y']))
    tab.screenshot(path=str(Path(KEPT)/f'playground-{name}.png'), clip=clip)
    tab.set_viewport_size(size)

def widget_of(o): return o.locator('xpath=ancestor::*[contains(concat(" ", @class, " "), " jp-OutputArea-output ")]')

INK = "([x, y]) => document.querySelector('canvas[width=\"224\"]')?.getContext('2d').getImageData(x, y, 1, 1).data[0] > 100"
SEVEN = [[(60, 40), (160, 40), (140, 90), (110, 190)], [(85, 115), (150, 115)]]

@pytest.mark.browser
def test_by_hand(tab, opened, tmp_path):
    "Train, see it move, stop, read the receipt, save the runs, make a mistake, send pictures, draw"
    opened(tab)
    type_into(tab, 'Epochs', '500')
    code_says(tab, 'fine_tune(learn, 500')
    handle = tab.locator('.widget-slider', has_text='Stages frozen').get_by_role('slider')
    handle.focus()
    handle.press('ArrowRight')
    code_says(tab, "only=['stage1', ")
    press(tab, 'Train')
    steps = "n => [...document.querySelectorAll('img')].some(o => +(o.alt.match(/updates after (\\d+) steps/)?.[1] ?? 0) > n)"
    tab.wait_for_function(steps, arg=0, timeout=120_000)
    seen = int(re.search(r'after (\d+) steps', tab.locator('img[alt*="updates after"]').first.get_attribute('alt'))[1])
    tab.wait_for_function(steps, arg=seen, timeout=120_000)   # the plot changes while it trains
    press(tab, 'Stop')
    said(tab, r'^Stopped: \d+/500 epochs').wait_for(timeout=60_000)
    said(tab, 'Transfer from resnet9 trained on letters').wait_for()
    screenshot(tab, f'lab-{opened.where}', widget_of(tab.get_by_label('As code').first))
    with tab.expect_download() as download: tab.get_by_role('link', name='Save as CSV').first.click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert download.value.suggested_filename == 'runs.csv' and len(rows) == 2 and '/500' in rows[1]

    press(tab, 'Look at the last run')
    said(tab, r'^Picture 0 of valid is a \d').wait_for()
    tab.locator('img[alt*="before and after, picture 0"]').wait_for()
    screenshot(tab, f'inside-{opened.where}', widget_of(tab.get_by_role('button', name='Look at the last run')))

    type_into(tab, 'Target, or a folder', 'digtis')
    press(tab, 'Train')
    alert = said(tab, 'Not done:.*digtis')
    alert.wait_for()
    assert alert.get_by_role('alert').count() == 1

    task, files = digits(), []
    for c in range(2):
        for i, n in enumerate((task.labels == c).nonzero().flatten()[:8]):
            files.append(tmp_path/f'{"zero one".split()[c]}-{i}.png')
            Image.fromarray(task.images[n].numpy()).save(files[-1])
    choose_file(tab, tab.get_by_role('button', name='Pictures: cat-1.png').first, files)
    said(tab, '^16 pictures in ').wait_for()
    type_into(tab, 'Epochs', '2')
    press(tab, 'Train')
    said(tab, r'^Done: 2/2 epochs').wait_for(timeout=60_000)

    canvas = tab.locator('canvas[width="224"]').first
    for stroke in SEVEN: drag(tab, canvas, stroke)
    said(tab, r'from scratch: \d; from letters: \d').wait_for()
    tab.wait_for_function(INK, arg=[110, 40])
    screenshot(tab, f'pad-{opened.where}', widget_of(canvas))
    if opened.where == 'lab':   # the page is loaded again, the kernel is the same: the canvas still draws
        tab.evaluate("jupyterapp.commands.execute('docmanager:save')")
        tab.reload()
        tab.wait_for_selector('canvas[width="224"]')
        press(tab, 'Clear')
        drag(tab, canvas, [(40, 200), (180, 200)])
        tab.wait_for_function(INK, arg=[110, 200])
    assert not tab.elsewhere and not tab.said

@pytest.mark.browser
def test_app_is_read_at_200_percent(tab, playground):
    "At twice the size a page of 1280 pixels has room for 640; its controls are named"
    tab.set_viewport_size(dict(width=640, height=450))
    open_voila(tab, playground.address, 400)
    controls = tab.locator('.widget-text, .widget-dropdown, .widget-slider, .jupyter-button')
    for o in controls.all():
        box = o.bounding_box()
        assert box is None or box['x'] + box['width'] <= 640, o.inner_text()
    for label in ('Target, or a folder', 'Source', 'Network', 'Labels a class (0: all)', 'Epochs', 'Seed', 'As code'):
        assert tab.get_by_label(label, exact=True).count() >= 1, label

@pytest.mark.process
def test_app_opens_the_browser(playground):
    assert wait_until(playground.opened.exists, 30)
    page = Path(unquote(playground.opened.read_text().removeprefix('file://'))).read_text()
    assert playground.address in page

@pytest.mark.browser
@pytest.mark.nightly   # the server looks for pages that were left once a minute
def test_app_ends_the_kernel_of_a_page_that_was_left(tab, playground):
    def is_kernel(process):
        try: return 'ipykernel' in ' '.join(process.cmdline())
        except psutil.NoSuchProcess: return False   # one of an earlier page, that has just ended
    open_voila(tab, playground.address, 400)
    kernels = list(filter(is_kernel, playground.server.children(recursive=True)))
    assert kernels
    tab.goto('about:blank')
    assert not psutil.wait_procs(kernels, timeout=180)[1]

# Without a browser

def test_controls_write_the_code():
    chosen = Choices(n_carried=1, n_frozen=1, lr_max=(.001, .002, .002, .002, .016), n_epochs=3)
    lab = TransferLab(chosen)
    assert lab.choices() == chosen and lab.code.value == chosen.code()
    lab.spread.click()
    assert [o.value for o in lab.rates.children] == [.001, .002, .004, .008, .016] and '0.008' in lab.code.value

def test_frozen_stages_stay_and_carried_ones_come_from_the_source():
    lab = TransferLab(Choices(n_carried=2, n_frozen=1, n_epochs=1))
    lab.train.click()
    lab.thread.join()
    carried = lab.learn.record.receipt.rows
    assert set(carried[carried.part == 'body'].status) >= {'copied', 'initialised'}
    now, then = (o.body.stem.conv.weight for o in (lab.learn.model, lab.before))
    assert now.equal(then) and not lab.learn.model.head.weight.equal(lab.before.head.weight)

def test_stop_keeps_what_was_learned():
    lab = TransferLab(Choices(n_epochs=1000))
    begun = threading.Event()
    def look(change):
        if 'Training' in change.new: begun.set()
    lab.status.observe(look, 'value')
    lab.train.click()
    assert begun.wait(30)
    lab.stop.click()
    lab.thread.join(30)
    assert not lab.thread.is_alive() and lab.status.value.startswith('<p role="status">Stopped') and 'nan' not in lab.status.value
    assert len(lab.rows) == 1 and not lab.train.disabled and lab.stop.disabled
    plot_training(lab.learn)

def test_second_press_does_not_start_a_second_run():
    lab = TransferLab(Choices(n_epochs=1))
    lab.train.click()
    first = lab.thread
    lab._start()
    assert lab.thread is first
    first.join()

def test_source_that_is_not_there_is_said(tmp_path):
    lab = TransferLab()
    lab.source.value = str(tmp_path/'nothing.safetensors')
    assert 'role="alert"' in lab.status.value and 'nothing' in lab.status.value

def test_error_goes_when_the_mistake_does():
    lab = TransferLab(Choices(source='resnet99'))
    lab.seed.value = 1   # no network yet, so no slider and no code
    assert 'role="alert"' in lab.status.value and not lab.code.value
    lab.source.value = 'resnet9-letters'
    assert not lab.status.value and 'seed=1' in lab.code.value and len(lab.rates.children) == 5

def test_source_that_does_not_say_its_network_asks_for_one(tmp_path):
    save_file(resnet9(10).state_dict(), tmp_path/'bare.safetensors')
    lab = TransferLab()
    lab.source.value = str(tmp_path/'bare.safetensors')
    assert 'role="alert"' in lab.status.value and 'choose one' in lab.status.value
    lab.arch.value = 'resnet9'
    assert "arch='resnet9'" in lab.code.value

def test_text_in_the_panel_is_text():
    lab = TransferLab()
    lab.target.value = '<img src=x onerror=alert(1)>'
    lab.train.click()
    lab.thread.join()
    assert '<img' not in lab.status.value and '&lt;img' in lab.status.value

def test_an_error_of_our_own_is_said_and_raised():
    "What a choice can cause is a sentence and no more"
    panel = HTML()
    for kind in (ValueError, RuntimeError, OSError, ImportError):
        with _errors_said_in(panel): raise kind('no such <target>')
        assert 'role="alert"' in panel.value and 'no such &lt;target&gt;' in panel.value
    with pytest.raises(KeyError), _errors_said_in(panel): raise KeyError('our own')
    assert 'role="alert"' in panel.value and 'our own' in panel.value

def test_pictures_that_stay_in_files_are_looked_into(tmp_path):
    "As those in memory are: the task is asked for them"
    folder = write_folder(tmp_path, 20)
    titles = []
    for in_memory in (True, False):
        task = image_folder(folder, size_px=16, in_memory=in_memory)
        axs = plot_nearest(transfer_learner(task, 'resnet9-letters', bs=4), 0)
        titles.append([ax.get_title() for ax in axs])
        shown = torch.as_tensor(axs[0].images[0].get_array())
        assert shown.equal(task.picture(int(task.splits['valid'][0])))
    assert titles[0] == titles[1] and titles[0][0].startswith('valid: ')
