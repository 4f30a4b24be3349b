"""Build docs/, the site, from the notebooks: no Quarto, no network, the same bytes every time.

    python tools/build_site.py            replace docs/ (needs `nbdev-export` to have run)
    python tools/build_site.py --check    change nothing; exit 1 if that would change anything

nbdev turns the notebooks into pages (running the cells that hold imports and exports, for the signatures), smalldocs
lays them out. What smalldocs leaves to us is done here: names and links as nbdev has them, nothing fetched from other
hosts, mathematics as MathML.
"""
import argparse, contextlib, html, json, os, re, shutil, sys, tempfile, warnings
from base64 import b64decode
from importlib.metadata import entry_points
from pathlib import Path

import yaml
from build_readme import build_readme
from fastcore.nbio import read_nb
from latex2mathml.converter import convert as tex_to_mathml
from nbdev.config import get_config, nbpath2html
from nbdev.serve import proc_nbs
from smalldocs.site import build as build_pages

ROOT = Path(__file__).resolve().parents[1]
STYLE = Path(__file__).with_name('site.css')

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

def stage_page(source, dest):
    nb = json.loads(source.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': cell['source'] = relink(text)
        if cell['cell_type'] == 'raw': cell['source'] = re.sub(r'^output-file:.*\n', '', text, flags=re.M)
    dest.write_text(json.dumps(nb), encoding='utf-8')

def site_config(cfg, names):
    page = dict(theme=dict(light='cosmo', dark='darkly'), css='site.css', toc=True)
    website = {'title': cfg.title, 'description': cfg.description, 'repo-url': cfg.git_url, 'search': True,
        'page-navigation': True, 'llms-txt': True,
        'sidebar': dict(style='docked', contents=[f'{o}.ipynb' for o in names])}
    return dict(project={'type': 'website', 'output-dir': '_site'}, website=website, format=dict(html=page))

# Finishing: what smalldocs wrote

def drawn_sizes(notebooks):
    "The size each saved picture was drawn for (it has twice the pixels): HTML attributes by the picture's bytes"
    sizes = {}
    for nb in map(read_nb, notebooks):
        for output in (o for c in nb.cells for o in c.get('outputs', []) if 'image/png' in o.get('metadata', {})):
            size = output['metadata']['image/png']
            sizes[b64decode(output['data']['image/png'])] = f'width="{size["width"]}" height="{size["height"]}" '
    return sizes

def tidy_page(text, cfg, pictures, sizes):
    "A page with relative links, pictures in files, mathematics as MathML, and nothing from other hosts"
    text = text.replace(cfg.doc_url, '')
    def _picture(m):
        content = b64decode(m[1])
        return f'{sizes.get(content, "")}src="{pictures[content]}"' if content in pictures else m[0]
    text = re.sub(r'src="data:image/png;base64,([^"]+)"', _picture, text)
    text = re.sub(r'<(?:script|link)\b[^>]*(?:src|href)="https?://[^"]*"[^>]*>(?:</script>)?', '', text)
    def _math(m):
        return tex_to_mathml(html.unescape(m[2]), display='block' if m[1] == 'display' else 'inline')
    return re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', _math, text, flags=re.S)

def tidy_style(text): return re.sub(r'@import\s*(?:url\([^)]*\)|"[^"]*"|\'[^\']*\')[^;]*;', '', text)

def read_site(folder, cfg, sizes):
    "The finished files of the site: bytes by path"
    files, paths = {}, sorted(o for o in folder.rglob('*') if o.is_file())
    pictures = {o.read_bytes(): o.relative_to(folder).as_posix() for o in paths if o.suffix == '.png'}
    for path in paths:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix in ('.html', '.md', '.txt', '.json', '.css'):
            text = content.decode().replace('.llms.md', '.html.md')  # nbdev's name for the Markdown copy of a page
            if path.suffix == '.html': text = tidy_page(text, cfg, pictures, sizes)
            if path.suffix == '.css': text = tidy_style(text)
            content = text.encode()
        files[name.replace('.llms.md', '.html.md')] = content
    return files

def build_site():
    "What docs/ should hold: bytes by path below it"
    check_installed()
    warnings.simplefilter('ignore')  # of import cells, for the workers too: they would stand on the page, with this machine's paths
    os.environ['PYTHONWARNINGS'] = 'ignore'
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for o in ('nbs', 'nbtransfer'): shutil.copytree(ROOT/o, tmp/o, ignore=shutil.ignore_patterns('_*.ipynb', '.*', '__pycache__'))
        shutil.copy(ROOT/'pyproject.toml', tmp)
        sys.path.insert(0, str(tmp))  # the workers inherit it
        with contextlib.chdir(tmp):
            cfg, processed, stage = get_config(), proc_nbs(), tmp/'stage'
            shutil.copytree(processed, stage, ignore=shutil.ignore_patterns('*.ipynb'))
            for o in find_notebooks(): stage_page(processed/o.name, stage/f'{page_name(o)}.ipynb')
            shutil.copy(STYLE, stage)
            (stage/'_quarto.yml').write_text(yaml.safe_dump(site_config(cfg, [page_name(o) for o in find_notebooks()])))
            site = build_pages(stage, quiet=True)
            for o in site.warnings: print(f'warning: {o}', file=sys.stderr)
            files = read_site(site.out, cfg, drawn_sizes(find_notebooks()))
    readme_images = {k.removeprefix('docs/'): v for k, v in build_readme(ROOT).items() if k.startswith('docs/')}
    return {**files, **readme_images, '.nojekyll': b''}

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
