"""Build docs/, the site, from the notebooks: no Quarto, no network, the same bytes every time.

    python tools/build_site.py            replace docs/ (needs `nbdev-export` to have run)
    python tools/build_site.py --check    change nothing; exit 1 if that would change anything

nbdev turns the notebooks into pages (running the cells that hold imports and exports, for the signatures), smalldocs
lays them out. What smalldocs leaves to us is done here: names and links as nbdev has them, parts of the book, what a
chapter costs, a page of each module's names, mathematics, and nothing that is fetched from other hosts.
"""
import argparse, contextlib, html, json, re, shutil, sys, tempfile, warnings
from base64 import b64decode
from importlib.metadata import entry_points
from math import ceil
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import quickjs
import yaml
from build_readme import build_readme
from fastcore.nbio import mk_cell, read_nb
from nbdev.config import get_config, nbpath2html
from nbdev.serve import proc_nbs
from PIL import Image
from smalldocs.site import build as build_pages

ROOT = Path(__file__).resolve().parents[1]
STYLE, ICON, KATEX = (Path(__file__).with_name(o) for o in ('site.css', 'favicon.svg', 'katex'))
PARTS = {'The road': range(6), 'Carrying': range(6, 10), 'Fine-tuning': range(10, 14), 'Evidence': range(14, 16),
    'Open problems': range(16, 23), 'In practice': range(23, 90), 'Cellar': range(90, 100)}   # numbers of chapters
LOOK_UP = 'results', 'benchmarks', 'glossary', 'bibliography'
WORDS_A_MINUTE, LINES_A_MINUTE = 220, 40   # of prose, and of code

def page_name(notebook): return nbpath2html(notebook).stem

def check_installed():
    "nbdev finds the names to link through the installed package"
    if not any(o.name == 'nbtransfer' for o in entry_points(group='nbdev')):
        sys.exit("build_site: nbtransfer is not installed here, so names would not be linked; run pip install -e '.[dev]'")

def find_notebooks():
    found = sorted(o for o in (ROOT/'nbs').glob('*.ipynb') if o.name[0] not in '_.' and o.stem != 'index')
    return [ROOT/'nbs/index.ipynb', *found]

# Staging: what smalldocs reads

def relink(text):
    "Links to other notebooks by the names of their pages; other files of the repository are on GitHub"
    text = re.sub(r'\]\((\w+\.ipynb)', lambda m: f'](./{page_name(m[1])}.ipynb', text)
    return re.sub(r'\]\(\.\./([^)\s]+)', lambda m: f']({get_config().git_url}/blob/{get_config().branch}/{m[1]}', text)

def source_of(cell): return ''.join(cell['source'])

def minutes_to_read(nb):
    "Of a notebook as nbdev processed it, which leaves hidden cells out"
    words = sum(len(source_of(c).split()) for c in nb['cells'] if c['cell_type'] == 'markdown')
    lines = sum(len(source_of(c).splitlines()) for c in nb['cells'] if c['cell_type'] == 'code')
    return round(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE)

def chapter_facts(name, nb, cost, cfg):
    "The line below the title: what a chapter costs, and where else it can be had"
    colab = f'https://colab.research.google.com/github/{cfg.git_url.partition("github.com/")[2]}/blob/{cfg.branch}/nbs/{name}'
    links = [f'<a href="{colab}">Open in Colab</a>', f'<a href="notebooks/{name}" download>Download the notebook</a>']
    if names_of(nb): links.append(f'<a href="{api_name(name)}.html">API</a>')
    facts = [f'{minutes_to_read(nb)} minutes to read', *([f'to run: {cost}'] if cost else []), *links]
    return f'<p class="chapter-facts">{" · ".join(facts)}</p>'

def names_of(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code' and 'show_doc(' in source_of(c)]

def api_name(notebook): return f'api-{page_name(Path(notebook))}'

def slug(word): return word.lower().replace('.', '').replace(' ', '-')

def anchors(page): return re.findall(r'\{#([\w-]+)\}', (ROOT/f'nbs/{page}.md').read_text(encoding='utf-8'))

def linked(nb):
    "Words in italics lead to the glossary, once a chapter; what the Sources cite, to the bibliography"
    terms, works, met = anchors('glossary'), re.findall(r'- \[(.+?)\]\{#', (ROOT/'nbs/bibliography.md').read_text(encoding='utf-8')), set()
    for cell in (c for c in nb['cells'] if c['cell_type'] == 'markdown'):
        def _term(m):
            if slug(m[1]) not in terms or slug(m[1]) in met: return m[0]
            met.add(slug(m[1]))
            return f'[{m[0]}](./glossary.md#{slug(m[1])})'
        text, *sources = re.split(r'(?m)^(?=## Sources)', source_of(cell))
        text = re.sub(r'(?<![*\w\[])\*([A-Za-z][\w -]+)\*(?!\*)', _term, text)
        for work in works: sources = [o.replace(work, f'[{work}](./bibliography.md#{slug(work)})', 1) for o in sources]
        cell['source'] = ''.join([text, *sources])

def processed_nb(path): return json.loads(path.read_text(encoding='utf-8').replace('__main__.', ''))  # of types of the same cell

def stage_page(source, dest, cfg):
    nb, cost = processed_nb(source), None
    linked(nb)
    for cell in nb['cells']:
        text = source_of(cell)
        if cell['cell_type'] == 'raw': cell['source'] = re.sub(r'^output-file:.*\n', '', text, flags=re.M)
        if cell['cell_type'] != 'markdown': continue
        if not cost and (found := re.search(r'\s*Cost: (.+?)\.(?=\s|$)', text)): cost, text = found[1], text.replace(found[0], '')
        cell['source'] = relink(text)
    if source.stem != 'index':
        nb['cells'].insert(1, mk_cell(chapter_facts(source.name, nb, cost, cfg), 'markdown'))
    dest.write_text(json.dumps(nb), encoding='utf-8')

def stage_names(source, dest):
    "A page of the names that a chapter defines, as they stand in it"
    nb, chapter = processed_nb(source), page_name(source)
    front = f'---\ntitle: nbtransfer.{chapter}\ndescription: The names of chapter {source.stem[:2]}\nsearch: false\n---'
    back = f'What they are for, with examples: [{chapter}](./{chapter}.ipynb).'
    cells = [mk_cell(front, 'raw'), mk_cell(back, 'markdown'), *names_of(nb)]
    dest.write_text(json.dumps(dict(nb, cells=cells)).replace('"### ', '"## '), encoding='utf-8')

def results_page():
    "The tables of the comparisons that ship, from their saved runs"
    from nbtransfer.comparison import load_comparison
    said = ['---', 'title: Results', 'description: The comparisons that ship, from their saved runs.', '---',
        'What was measured, how, and what it does not say: [The article\'s case](./article.ipynb).', '']
    for path in sorted((ROOT/'nbtransfer/results').glob('*.json')):
        case = load_comparison(path.stem)
        facts = case.facts
        n_all = ceil(facts['task']['sizes']['train'] / len(facts['vocab']))
        said_all = {n_all: f'{n_all} (all)'}
        def by_labels(frame): return as_html(frame.rename(columns=said_all).rename_axis(columns='labels per class').fillna(''))
        rows = case.differences().assign(text=lambda o: o.apply(in_points, axis=1))
        differences = rows.pivot(index='strategy', columns='per_class', values='text').loc[rows.strategy.unique()]
        costs = case.costs().rename(index=said_all).round(1)
        said += [f'## {facts["source"]["arch"]["name"]}, {case.title}', '',
            f"`load_comparison('{path.stem}')`: {facts['machine']}; {listed(facts['versions'])}.", '',
            'Test accuracy (%), mean ± standard deviation over seeds, by labels per class.', '', by_labels(case.table()), '',
            'Difference from scratch in points (95 % interval), by labels per class.', '', by_labels(differences), '',
            '<details><summary>What a run cost: epochs, steps, seconds, CPU seconds, 10¹² FLOPs</summary>', as_html(costs), '</details>', '']
    return '\n'.join(said)

def in_points(o): return f'{o.difference:+.1f} ({o.low:.1f} to {o.high:.1f})'

def benchmarks_page():
    "The tables that the scripts of tests/benchmarks kept"
    said = ['---', 'title: Benchmarks', 'description: What the library costs beside the bare arithmetic and plain fastai.', '---',
        'Measured by hand, contenders one after the other on one machine that did nothing else. Ratios were taken within a repeat; '
        'seconds are of that machine alone.', '']
    for title, kept in json.loads((ROOT/'tests/benchmarks/results.json').read_text(encoding='utf-8')).items():
        said += [f'## {title}', '', f'{kept["note"]}.', '', as_html(pd.DataFrame.from_dict(kept['table'], 'tight')), '',
            f'`{kept["command"]}` on {kept["date"]}: {kept["device"]}; {listed(kept["versions"])}.', '']
    return '\n'.join(said)

def as_html(frame): return f'<div class="cell-output cell-output-display">{frame.to_html(border=0)}</div>'.replace('\n', '')

def site_config(cfg, chapters, with_names):
    "What smalldocs reads, as Quarto would"
    parts = [dict(section=part, contents=[f'{page_name(o)}.ipynb' for o in chapters if int(o.stem[:2]) in numbers])
        for part, numbers in PARTS.items()]
    found = dict(section='To look up', contents=[f'{o}.md' for o in LOOK_UP])
    names = dict(section='API', contents=[f'{api_name(o)}.ipynb' for o in with_names])
    page = dict(theme=dict(light='cosmo', dark='darkly'), css='site.css', toc=True, **{'toc-depth': 2})
    website = {'title': cfg.title, 'description': cfg.description, 'repo-url': cfg.git_url, 'search': True, 'favicon': ICON.name,
        'page-navigation': True, 'llms-txt': True, 'page-footer': dict(left=footer(chapters)),
        'sidebar': dict(style='docked', contents=['index.ipynb', *(o for o in parts if o['contents']), found, names])}
    return dict(project={'type': 'website', 'output-dir': '_site'}, website=website, format=dict(html=page))

def footer(chapters):
    "Versions, and the day of the newest output"
    stamps = [o.metadata.get('nbtransfer', {}) for o in map(read_nb, chapters)]
    made = max(stamps, key=lambda o: o.get('date', ''))
    return f'nbtransfer {nbtransfer_version()}, Apache-2.0. Outputs of {made.get("date")} with {listed(made.get("versions", {}))}.'

def listed(versions): return ', '.join(f'{k} {v}' for k, v in versions.items())

def nbtransfer_version(): return re.search(r"__version__ = .([\d.]+)", (ROOT/'nbtransfer/__init__.py').read_text())[1]

# Finishing: what smalldocs wrote

NEEDED = {'<th></th>': '<td></td>', '<pre>': '<pre tabindex="0">',   # by those who do not see or use no mouse
    '<pre class=': '<pre tabindex="0" class=', 'role="navigation"': 'role="button"', '<span class="katex-display">': '<span class="katex-display" tabindex="0">',
    '<nav id="TOC"': '<nav id="TOC" aria-label="On this page"', '<nav id="quarto-sidebar"': '<nav id="quarto-sidebar" aria-label="Chapters"'}

def drawn_sizes(notebooks):
    "The size each saved picture was drawn for (it has twice the pixels): HTML attributes by the picture's bytes"
    sizes = {}
    for nb in map(read_nb, notebooks):
        for output in (o for c in nb.cells for o in c.get('outputs', []) if 'image/png' in o.get('metadata', {})):
            size = output['metadata']['image/png']
            sizes[b64decode(output['data']['image/png'])] = f'width="{size["width"]}" height="{size["height"]}" '
    return sizes

def image_size(path):
    "HTML attributes of an image of a chapter; pixels are twice as many as it is drawn for"
    if path.suffix == '.svg': return re.search(r'width=.+?height=\S+', path.read_text(encoding='utf-8'))[0] + ' '
    width, height = Image.open(path).size
    return f'width="{width // 2}" height="{height // 2}" '

def tex_renderer():
    "KaTeX, run here and not in the reader's browser: pages need no script for it, and nothing moves while they load"
    js = quickjs.Context()
    js.eval((KATEX/'katex.min.js').read_text(encoding='utf-8'))
    def render(tex, display):
        call = f'JSON.stringify(katex.renderToString({json.dumps(tex)}, {{displayMode: {json.dumps(display)}}}))'
        return re.sub(r'<annotation.*?</annotation>', '', json.loads(js.eval(call)), flags=re.S)
    return render

def tidy_page(text, cfg, pictures, sizes, tex):
    "A page with relative links, pictures in files, mathematics, and nothing from other hosts"
    text = text.replace(cfg.doc_url, '')
    def _picture(m):
        content = b64decode(m[1])
        return f'{sizes.get(content, "")}src="{pictures[content]}"' if content in pictures else m[0]
    text = re.sub(r'src="data:image/png;base64,([^"]+)"', _picture, text)
    text = re.sub(r'src="(images/[\w-]+\.(?:svg|png))"', lambda m: image_size(ROOT/'nbs'/m[1]) + m[0], text)
    text = re.sub(r'https://[^"]*/katex.min.css', 'site_libs/katex/katex.min.css', text)
    text = re.sub(r'<(?:script|link)\b[^>]*(?:src|href)="https?://[^"]*"[^>]*>(?:</script>)?', '', text)
    def _math(m): return tex(html.unescape(m[2]), m[1] == 'display')
    text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', _math, text, flags=re.S)
    text = re.sub(r'<a href="[^"]*#_\w+">(<code>[^<]*</code>)</a>', r'\1', text)   # a private name has no entry to lead to
    for old, new in NEEDED.items(): text = text.replace(old, new)
    text = re.sub(r'\.<strong>(\w+)</strong>(?=</h)', r'.__\1__', text)   # a method's name is not bold
    text = re.sub(r'(<div class="cell-output cell-output-display")(?=>(?!\s*<div class="quarto-figure))', r'\1 tabindex="0"', text)
    return text

FETCHED = 'const r = await fetch(offset + "search.json");\n      index = await r.json();'
LOADED = '''await new Promise((found, failed) => document.head.append(Object.assign(document.createElement("script"),
        { src: offset + "search.js", onload: found, onerror: failed })));
      index = window.searchIndex;'''

def tidy_script(text):
    "A script may be loaded where nothing may be fetched: from a file"
    assert FETCHED in text, 'smalldocs loads its index of the search in another way now'
    return text.replace(FETCHED, LOADED)

def tidy_style(text):
    "Nothing from other hosts, and no font in a format that every browser has a better one for"
    text = re.sub(r'@import\s*(?:url\([^)]*\)|"[^"]*"|\'[^\']*\')[^;]*;', '', text)
    return re.sub(r',url\("[^")]*\.woff\?[^")]*"\) format\("woff"\)', '', text)

def read_site(folder, cfg, sizes):
    "The finished files of the site: bytes by path"
    files, paths, tex = {}, sorted(o for o in folder.rglob('*') if o.is_file() and o.suffix != '.woff'), tex_renderer()
    pictures = {o.read_bytes(): o.relative_to(folder).as_posix() for o in paths if o.suffix == '.png'}
    for path in paths:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix in ('.html', '.md', '.txt', '.json', '.css') or path.name == 'smalldocs.js':
            text = content.decode().replace('.llms.md', '.html.md')  # nbdev's name for the Markdown copy of a page
            if path.suffix == '.html': text = tidy_page(text, cfg, pictures, sizes, tex)
            if path.suffix == '.md': text = re.sub(r'\[(`_\w+`)\]\([^)]*#_\w+\)', r'\1', text)
            if path.suffix == '.css': text = tidy_style(text)
            if name == 'search.json': name, text = 'search.js', f'window.searchIndex = {text}'
            if path.name == 'smalldocs.js': text = tidy_script(text)
            content = text.encode()
        files[name.replace('.llms.md', '.html.md')] = content
    return files

def build_site():
    "What docs/ should hold: bytes by path below it"
    check_installed()
    warnings.simplefilter('ignore')  # of import cells: they would stand on the page, with this machine's paths
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for o in ('nbs', 'nbtransfer'): shutil.copytree(ROOT/o, tmp/o, ignore=shutil.ignore_patterns('_*.ipynb', '.*', '__pycache__'))
        shutil.copy(ROOT/'pyproject.toml', tmp)
        sys.path.insert(0, str(tmp))
        with contextlib.chdir(tmp):
            cfg, stage, chapters = get_config(), tmp/'stage', find_notebooks()[1:]
            with patch('nbdev.processors.get_config', lambda: cfg):   # or it is read again for each cell
                processed = proc_nbs(n_workers=0)   # here, where torch and fastai are imported once: most of the time goes there
            shutil.copytree(processed, stage, ignore=shutil.ignore_patterns('*.ipynb'))
            for o in find_notebooks(): stage_page(processed/o.name, stage/f'{page_name(o)}.ipynb', cfg)
            for o in (ROOT/'nbs').glob('*.md'): (stage/o.name).write_text(relink(o.read_text(encoding='utf-8')), encoding='utf-8')
            for name, page in (('results', results_page()), ('benchmarks', benchmarks_page())):
                (stage/f'{name}.md').write_text(page, encoding='utf-8')
            with_names = [o for o in chapters if names_of(read_nb(processed/o.name))]
            for o in with_names: stage_names(processed/o.name, stage/f'{api_name(o)}.ipynb')
            for o in (STYLE, ICON): shutil.copy(o, stage)
            (stage/'_quarto.yml').write_text(yaml.safe_dump(site_config(cfg, chapters, with_names)))
            site = build_pages(stage, quiet=True)
            for o in site.warnings: print(f'warning: {o}', file=sys.stderr)
            files = read_site(site.out, cfg, drawn_sizes(find_notebooks()))
    readme_images = {k.removeprefix('docs/'): v for k, v in build_readme(ROOT).items() if k.startswith('docs/')}
    notebooks = {f'notebooks/{o.name}': o.read_bytes() for o in chapters}
    katex = {f'site_libs/katex/{o.relative_to(KATEX)}': o.read_bytes() for o in KATEX.rglob('*') if o.suffix in ('.css', '.woff2')}
    return {**files, **readme_images, **notebooks, **katex, '.nojekyll': b''}

def find_changes(files, docs):
    "Paths of which `docs` holds something else than `files` says"
    found = {o.relative_to(docs).as_posix(): o.read_bytes() for o in docs.rglob('*') if o.is_file()} if docs.is_dir() else {}
    return sorted(k for k in files.keys() | found.keys() if files.get(k) != found.get(k))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if something would change')
    args = parser.parse_args()
    files, docs = build_site(), ROOT/'docs'
    changes = find_changes(files, docs)
    if args.check: sys.exit(f"docs/ is not as the notebooks say, run python tools/build_site.py: {', '.join(changes)}" if changes else 0)
    shutil.rmtree(docs, ignore_errors=True)
    for name, content in files.items():
        (docs/name).parent.mkdir(parents=True, exist_ok=True)
        (docs/name).write_bytes(content)
    print(f'docs/: {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB, {len(changes)} changed')

if __name__ == '__main__': main()
