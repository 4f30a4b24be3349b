"The committed site: every link within it leads somewhere, and nothing comes from another host"
import re
from urllib.parse import unquote
import pytest
from helpers import CHAPTERS, ROOT

docs = ROOT/'docs'
pages = sorted(docs.glob('*.html'))
each_page = pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)

def test_every_notebook_has_its_page():
    assert {o.stem for o in pages} == {'index', *(c.stem[3:] for c in CHAPTERS)}

@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding='utf-8')):
        if re.match(r'[a-z]+:', link): continue
        path, _, anchor = unquote(link).partition('#')
        target = docs/path if path else page
        assert target.exists(), link
        if anchor and target.suffix == '.html':
            assert f'id="{anchor}"' in target.read_text(encoding='utf-8'), link

@each_page
def test_page_loads_nothing_from_elsewhere(page):
    loading = re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text(encoding='utf-8'))
    assert not loading

def test_styles_load_nothing_from_elsewhere():
    for style in docs.rglob('*.css'):
        assert not re.search(r'@import|url\(["\']?https?:', style.read_text(encoding='utf-8')), style

@each_page
def test_no_raw_mathematics(page):
    assert not re.search(r'class="math (inline|display)"', page.read_text(encoding='utf-8'))

def test_no_path_of_a_machine_is_shown():
    for path in [*docs.rglob('*.html'), *docs.rglob('*.md')]:
        assert not re.search(r'site-packages|Warning:', path.read_text(encoding='utf-8')), path.name
