"The committed site, as files and in a real browser: links, search, themes, phones, accessibility"
import functools, http.server, os, re, threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest
from helpers import CHAPTERS, ROOT, read_notebook

docs = ROOT/'docs'
pages = sorted(docs.glob('*.html'))
each_page = pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
KEPT = os.environ.get('NBTRANSFER_SCREENSHOTS')   # a folder for what people want to see
LOOKED_UP = 'results', 'benchmarks', 'glossary', 'bibliography'

# As files

def test_every_notebook_has_its_page_and_every_module_its_names():
    chapters = {c.stem[3:] for c in CHAPTERS}
    modules = {o.stem for o in (ROOT/'nbtransfer').glob('*.py')} & chapters
    assert {o.stem for o in pages} == {'index', *chapters, *LOOKED_UP, *(f'api-{o}' for o in modules)}

@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding='utf-8')):
        if re.match(r'[a-z]+:', link): continue
        path, _, anchor = unquote(link).partition('#')
        target = docs/path if path else page
        assert target.exists(), link
        if anchor and target.suffix == '.html':
            assert f'id="{anchor}"' in target.read_text(encoding='utf-8'), link

OTHER_SITES = {'arxiv.org', 'colab.research.google.com', 'docs.python.org', 'doi.org', 'github.com', 'huggingface.co', 'jmlr.org', 'joblib.readthedocs.io', 'pytorch.org',
    'voila.readthedocs.io', 'www.deeplearningbook.org'}

def test_links_to_other_sites_are_listed():
    "They are not fetched: their hosts are known, what they name of this repository exists, and CI keeps the list"
    links = {o: page.name for page in pages for o in re.findall(r'href="([a-z]+:[^"]+)"', page.read_text(encoding='utf-8'))}
    if KEPT: (Path(KEPT)/'links.txt').write_text(''.join(f'{link} {page}\n' for link, page in sorted(links.items())))
    assert {urlsplit(o).netloc for o in links} == OTHER_SITES and {urlsplit(o).scheme for o in links} == {'https'}
    for place, line in (re.findall(r'/nbtransfer/nbtransfer/blob/main/([^#]+)(?:#L(\d+))?$', o)[0] for o in links if '/blob/' in o):
        lines = (ROOT/place).read_text(encoding='utf-8').splitlines()
        if line: assert re.match(r'\s*(@|def |class |async |\w+ ?=)', lines[int(line) - 1]), (place, line)

@each_page
def test_page_loads_nothing_from_elsewhere(page):
    loading = re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text(encoding='utf-8'))
    assert not loading

def test_styles_load_nothing_from_elsewhere():
    for style in docs.rglob('*.css'):
        text = style.read_text(encoding='utf-8')
        assert not re.search(r'@import|url\(["\']?https?:', text), style
        for link in re.findall(r'url\(["\']?([^)"\']+)', text):
            if not link.startswith('data:'): assert (style.parent/link.partition('?')[0].partition('#')[0]).exists(), (style, link)

@each_page
def test_pictures_have_words_and_a_size(page):
    for img in re.findall(r'<img\b[^>]*>', page.read_text(encoding='utf-8')):
        assert re.search(r'alt="[^"]{8,}"', img) and re.search(r'width="\d+" height="\d+"', img), img

@each_page
def test_ids_are_unique(page):
    ids = Counter(re.findall(r'\sid="([^"]+)"', page.read_text(encoding='utf-8')))
    assert not [k for k, n in ids.items() if n > 1]

@each_page
def test_no_raw_mathematics(page):
    text = re.sub(r'<(pre|code|script)\b.*?</\1>', '', page.read_text(encoding='utf-8'), flags=re.S)
    assert not re.search(r'class="math (inline|display)"|\\(frac|sum|theta|log|sqrt|bar)\b|\$\$', text)

def test_no_path_of_a_machine_is_shown():
    for path in [*docs.rglob('*.html'), *docs.rglob('*.md')]:
        assert not re.search(r'site-packages|Warning:', path.read_text(encoding='utf-8')), path.name

def test_site_is_small():
    "It grows with the book: each chapter stands there as pages and as a notebook, figures in both"
    assert sum(o.stat().st_size for o in docs.rglob('*') if o.is_file()) < 0.7e6 * len(CHAPTERS)

def test_downloads_are_the_chapters():
    assert {o.name: o.read_bytes() for o in (docs/'notebooks').iterdir()} == {o.name: o.read_bytes() for o in CHAPTERS}

# What the chapters cite, and the words they use

def sources(text): return text.partition('## Sources')[2]

WORK = r'[A-Z][\w-]+(?: et al\.| and [A-Z]\w+)? (?:19|20)\d\d'

def test_every_work_that_is_cited_is_in_the_bibliography_and_none_else():
    known = re.findall(r'^- \[(.+?)\]\{#', (ROOT/'nbs/bibliography.md').read_text(encoding='utf-8'), re.M)
    cited = {o for c in CHAPTERS for o in re.findall(WORK, sources(markdown(c)))}
    documented = {o for p in (ROOT/'nbtransfer').glob('*.py') for o in re.findall(WORK, ' '.join(re.findall(r'Source: ([^"]+)', p.read_text())))}
    assert known == sorted(known, key=str.lower) and cited == set(known) and documented <= set(known)

def markdown(chapter):
    return '\n'.join(''.join(c['source']) for c in read_notebook(chapter)['cells'] if c['cell_type'] == 'markdown')

# In a browser

@pytest.fixture(scope='module')
def address():
    handler = functools.partial(type('Quiet', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None)), directory=str(docs))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

@pytest.fixture
def tab(browser, address):
    "A page that fails the test on an error of the console, or a request to another host"
    context = browser.new_context(viewport=dict(width=1280, height=900), base_url=address)
    tab, said = context.new_page(), []
    tab.on('console', lambda o: said.append(o.text) if o.type in ('error', 'warning') else None)
    tab.on('pageerror', lambda o: said.append(str(o)))
    tab.on('request', lambda o: said.append(o.url) if not o.url.startswith((address, 'file:', 'data:')) else None)
    yield tab
    context.close()
    assert not said

@pytest.fixture(scope='module')
def axe():
    import axe_playwright_python
    return (Path(axe_playwright_python.__file__).parent/'axe.min.js').read_text(encoding='utf-8')

def is_sampled(page):
    "Of the pages of names, which one template makes of signatures, three are looked at each time, all of them nightly"
    return not page.stem.startswith('api-') or page.stem in ('api-transfer', 'api-comparison', 'api-playground')

@pytest.mark.browser
@pytest.mark.parametrize('page', [pytest.param(o, id=o.stem, marks=[] if is_sampled(o) else pytest.mark.nightly) for o in pages])
def test_page_in_a_browser(tab, axe, page):
    "No error, no sideways scrolling at three widths, no violation of accessibility in either theme, and nothing moves while it loads"
    tab.add_init_script("new PerformanceObserver(o => { for (const e of o.getEntries()) window.moved = (window.moved || 0) + e.value })"
        ".observe({type: 'layout-shift', buffered: true})")
    for width in (390, 768, 1280):
        tab.set_viewport_size(dict(width=width, height=900))
        tab.goto(f'/{page.name}', wait_until='load')
        assert tab.evaluate('document.documentElement.scrollWidth') <= width
        assert tab.evaluate('window.moved || 0') < .05
    wide = tab.evaluate("[...document.querySelectorAll('main pre')].filter(o => o.scrollWidth > o.clientWidth + 1).map(o => o.innerText.slice(0, 80))")
    assert not wide, 'code scrolls sideways at 1280 px'
    pictures = tab.evaluate("[...document.querySelectorAll('main img')].map(o => [o.src, +o.getAttribute('width'), o.clientWidth, o.naturalWidth])")
    for picture, drawn, shown, pixels in pictures: assert shown >= min(drawn, 700) and (pixels > 1.9 * shown or picture.endswith('.svg')), picture
    for scheme in ('light', 'dark'):
        tab.emulate_media(color_scheme=scheme)
        tab.goto(f'/{page.name}', wait_until='load')
        tab.evaluate(axe)
        found = tab.evaluate("axe.run({resultTypes: ['violations']})")['violations']
        assert not [(o['id'], o['nodes'][0]['html']) for o in found if o['impact'] in ('serious', 'critical', 'moderate')]

@pytest.mark.browser
@pytest.mark.parametrize('words, page', [('receipt', 'transfer'), ('bootstrap', 'comparison'), ('transfer_weights', 'transfer'), ('BatchNorm', 'finetuning'),
    ('cutout', 'augmentation'), ('one-cycle', 'pretraining'), ('splitter', 'networks'), ('nbtransfer demo', 'cli'), ('not distinguishable', 'comparison'),
    ('discriminative', 'finetuning')])
def test_search_finds(tab, words, page):
    tab.goto('/index.html')
    tab.fill('.smalldocs-search input', words)
    tab.wait_for_selector('.search-result')
    found = [o.get_attribute('href').removeprefix('./').partition('#')[0] for o in tab.query_selector_all('.search-result')]
    assert f'{page}.html' in found
    tab.keyboard.press('ArrowDown')
    tab.keyboard.press('Enter')
    tab.wait_for_url(lambda url: not url.endswith('/index.html'))

def is_dark(tab): return tab.evaluate("document.documentElement.classList.contains('quarto-dark')")

@pytest.mark.browser
def test_theme_is_chosen_and_stays(tab):
    tab.goto('/tasks.html')
    assert not is_dark(tab)
    tab.click('.quarto-color-scheme-toggle')
    tab.wait_for_timeout(200)
    assert is_dark(tab)
    tab.goto('/weights.html')
    assert is_dark(tab)

@pytest.mark.browser
def test_lines_have_65_to_75_characters(tab):
    tab.goto('/tasks.html')
    lines = tab.evaluate("""[...document.querySelectorAll('main p')].flatMap(p => {
        const range = document.createRange(), texts = []; let top = null, text = '';
        const walker = document.createTreeWalker(p, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) for (let i = 0; i < walker.currentNode.length; i++) {
            range.setStart(walker.currentNode, i); range.setEnd(walker.currentNode, i + 1);
            const y = Math.round(range.getBoundingClientRect().bottom / 12);
            if (top !== null && y > top) { texts.push(text.length); text = '' }
            top = y; text += walker.currentNode.data[i] }
        return texts })""")
    lines = sorted(o for o in lines if o > 20)
    assert 60 <= lines[len(lines) // 2] <= 75 and lines[int(.95 * len(lines))] <= 80

@pytest.mark.browser
def test_pages_can_be_read_from_files(tab):
    tab.goto((docs/'weights.html').as_uri())
    assert tab.evaluate("getComputedStyle(document.querySelector('main')).display") and tab.inner_text('h1') == 'Weights'
    tab.click('#quarto-sidebar a[href$="finetuning.html"]')
    tab.wait_for_url('**/finetuning.html')
    tab.fill('.smalldocs-search input', 'bootstrap')
    tab.wait_for_selector('.search-result')

@pytest.mark.browser
def test_keyboard_reaches_the_chapters(tab):
    tab.goto('/tasks.html')
    met = []
    for _ in range(12):
        tab.keyboard.press('Tab')
        met.append(tab.evaluate("document.activeElement.getAttribute('href')"))
    assert {'index.html', 'loaders.html'} <= set(met)

@pytest.mark.browser
def test_screenshots_are_kept(tab):
    if not KEPT: pytest.skip('NBTRANSFER_SCREENSHOTS names no folder')
    for name in ('index', 'weights', 'article'):
        for scheme in ('light', 'dark'):
            tab.emulate_media(color_scheme=scheme)
            tab.goto(f'/{name}.html')
            tab.wait_for_timeout(200)
            tab.screenshot(path=f'{KEPT}/{name}-{scheme}.png')
