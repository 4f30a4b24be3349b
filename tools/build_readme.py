"""Make README.md from nbs/index.ipynb: no Quarto, nothing run.

    python tools/build_readme.py            write README.md, and its figures to docs/readme/
    python tools/build_readme.py --check    change nothing; exit 1 if that would change anything

Saved outputs are taken as they are. Cells marked `#| hide` are left out, `#| echo: false` leaves out the code.
"""
import argparse, base64, json, os.path, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE_DIR = 'docs/readme'
WARNING = '<!-- Made from nbs/index.ipynb by tools/build_readme.py: edit that, not this. -->'

def relink(text):
    "Links of a page in nbs/ as seen from the root of the repository"
    def _root(m): return f"]({os.path.normpath('nbs/' + m[1]).replace(os.sep, '/')}"
    return re.sub(r'\]\((?![a-z]+:|[#/])([^)#\s]+)', _root, text)

def github_callouts(text):
    "Quarto's callouts as GitHub writes them"
    def _quote(m): return '\n'.join(f'> {o}'.rstrip() for o in [f'[!{m[1].upper()}]', *m[2].strip().splitlines()])
    return re.sub(r'^:::+ *\{\.callout-(\w+)[^}]*\}\n(.*?)^:::+ *$', _quote, text, flags=re.M | re.S)

def split_directives(source):
    "Directives of a code cell as a dict, and its code"
    lines = source.splitlines()
    directives = [o for o in lines if re.match(r'#\|\s*\S', o)]
    pairs = (re.match(r'#\|\s*([\w-]+)\s*:?\s*(.*)', o).groups() for o in directives)
    return dict(pairs), '\n'.join(o for o in lines if o not in directives).strip()

def fence(text, lang=''): return f'```{lang}\n{text.rstrip()}\n```'

def render_output(output, alt, image_name):
    "Markdown of a saved output, and the image in it: a dict of at most one name and its bytes"
    data = {k: ''.join(v) for k, v in output.get('data', {}).items() if isinstance(v, (str, list))}
    if 'text' in output: return fence(''.join(output['text'])), {}
    if 'text/markdown' in data: return data['text/markdown'], {}
    if 'image/png' in data:
        path = f'{IMAGE_DIR}/{image_name}.png'
        return f'![{alt}]({path})', {path: base64.b64decode(data['image/png'])}
    if 'text/html' in data:  # GitHub shows tables, but not style sheets, and a blank line would end the block
        html = re.sub(r'<style.*?</style>', '', data['text/html'], flags=re.S)
        return '\n'.join(o for o in html.splitlines() if o.strip()), {}
    return (fence(data['text/plain']), {}) if data.get('text/plain') else ('', {})

def render(nb):
    "README text of the notebook (a dict), and its images: bytes by path"
    parts, images = [], {}
    for cell in nb['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown': parts.append(github_callouts(relink(source)))
        if cell['cell_type'] != 'code': continue
        directives, code = split_directives(source)
        if {'hide', 'export', 'default_exp'} & directives.keys() or directives.get('include') == 'false': continue
        if code and directives.get('echo') != 'false': parts.append(fence(code, 'python'))
        if directives.get('output') == 'false': continue
        for output in cell['outputs']:
            text, found = render_output(output, directives.get('fig-alt', '').strip('"\''), f'figure-{len(images) + 1}')
            parts.append(text)
            images.update(found)
    text = '\n\n'.join(o for o in [parts[0], WARNING, *parts[1:]] if o)
    return text + '\n', images

def build_readme(root=ROOT):
    "What README.md and its images should hold: bytes by path below `root`"
    text, images = render(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')))
    return {'README.md': text.encode(), **images}

def find_changes(files, root=ROOT):
    "Paths of which `root` holds something else than `files` says"
    old = {f'{IMAGE_DIR}/{o.name}' for o in (root/IMAGE_DIR).glob('*')} - files.keys()
    return sorted(old | {k for k, v in files.items() if not (root/k).is_file() or (root/k).read_bytes() != v})

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if something would change')
    args = parser.parse_args()
    files = build_readme()
    changes = find_changes(files)
    if args.check: sys.exit(f"not as nbs/index.ipynb says, run python tools/build_readme.py: {', '.join(changes)}" if changes else 0)
    for path in changes:
        if path not in files: (ROOT/path).unlink()
        else:
            (ROOT/path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT/path).write_bytes(files[path])
    print(f"written: {', '.join(changes) or 'nothing, all is as it should be'}")

if __name__ == '__main__': main()
