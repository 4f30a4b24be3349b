"""Run notebooks top to bottom and keep their outputs: the one way that saved outputs are made.

    python tools/refresh.py                              every notebook, CIFAR cells included
    python tools/refresh.py nbs/09_weights.ipynb ...     these only
    python tools/refresh.py --no-cifar                   where the CIFAR data are not at hand

Each notebook runs in a process of its own, against the exported modules (so run `nbdev-export` first). Its outputs
are cleaned and its metadata stamped with a hash of its code cells, the date, the device and the versions. A notebook
that fails is left as it was. With `--no-cifar` the outputs of unchanged `#| cifar` cells stay, with the stamp of the run
that made them; those of changed cells are removed, and `tests/test_outputs.py` asks for a full run.
"""
import argparse, base64, hashlib, io, os, platform, re, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONED = 'torch', 'fastai', 'nbdev'

# What makes a cell and its outputs what they are

def is_cifar(cell): return bool(re.search(r'^#\|\s*cifar\b', ''.join(cell['source']), re.M))

def code_hash(nb, only_cifar=False):
    "sha256 of the sources of the code cells of the notebook (a dict), or of its `#| cifar` cells alone"
    cells = [c for c in nb['cells'] if c['cell_type'] == 'code' and (is_cifar(c) or not only_cifar)]
    return hashlib.sha256('\0'.join(''.join(c['source']) for c in cells).encode()).hexdigest()

def device_name():
    import torch
    if torch.cuda.is_available(): return torch.cuda.get_device_name()
    if torch.backends.mps.is_available(): return 'Apple GPU'
    return f'CPU, {torch.get_num_threads()} threads'

def run_facts():
    versions = {'python': platform.python_version(), **{o: version(o) for o in VERSIONED}}
    return dict(date=time.strftime('%Y-%m-%d', time.gmtime()), device=device_name(), versions=versions)

# Cleaning, beyond what nbdev-clean does

def last_overwrite(line):
    "What a terminal shows of a line that was written over, as progress bars do"
    return line.removesuffix('\n').removesuffix('\r').split('\r')[-1].rstrip() + '\n' * line.endswith('\n')

def clean_stream(text):
    "Standard output as a terminal shows it: no progress bars, but what was printed behind one"
    lines = [(o, re.sub(r'^.*█.*?\[\d+/\d+ [^\]]*\]', '', last_overwrite(o))) for o in re.split(r'(?<=\n)', ''.join(text))]
    return [new for old, new in lines if '█' not in new and (new.strip() or ('\r' not in old and new))]

def private_paths():
    "What must not be saved of this machine's paths, and what to write instead"
    fastai_home = os.environ.get('FASTAI_HOME')
    pairs = [(fastai_home, '~/.fastai'), (sys.prefix, 'python'), (f'{ROOT}/', ''), (str(ROOT), '.'), (str(Path.home()), '~')]
    return [(old.rstrip('/') if old == fastai_home else old, new) for old, new in pairs if old and len(old) > 1]

def scrub(text):
    "`text` without addresses of objects, home folders and random temporary names"
    if isinstance(text, list): return [scrub(o) for o in text]
    text = re.sub(r' at 0x[0-9a-fA-F]{6,}', '', text)
    for old, new in private_paths(): text = text.replace(old, new)
    return re.sub(re.escape(tempfile.gettempdir()) + r'/tmp\w{8}', 'temporary', text)

def lighter(png, limit=20_000):
    "A figure (base64) of more than `limit` bytes in 256 colours, which plots do not exceed by much"
    from PIL import Image
    content, smaller = base64.b64decode(png), io.BytesIO()
    if len(content) <= limit: return png
    Image.open(io.BytesIO(content)).convert('RGB').quantize(256).save(smaller, 'PNG', optimize=True)
    return min(png, base64.b64encode(smaller.getvalue()).decode(), key=len)

def clean_outputs(outputs, where):
    "`outputs` of a cell fit to be saved; says on the terminal what it drops"
    res = []
    for o in outputs:
        data = o.get('data', {})
        if o.get('name') == 'stderr':
            text = ''.join(clean_stream(o['text'])).strip()
            if text and '%|' not in text: print(f'  {where}: dropped from the saved outputs:\n{text}', file=sys.stderr)
            continue
        if any('widget' in mime for mime in data): continue
        if '<progress' in ''.join(data.get('text/html', [])): continue
        if 'text' in o: o['text'] = clean_stream(scrub(o['text']))
        for mime in data:
            if mime.startswith('text/'): data[mime] = scrub(data[mime])
            if mime == 'image/png': data[mime] = lighter(''.join(data[mime]))
        if data or o.get('text'): res.append(o)
    return res

# Running

def run_cells(path, nb, with_cifar):
    "Run the code cells of `nb` in place as nbdev-test does"
    from execnb.shell import CaptureShell
    from fastcore.xtras import working_directory
    sys.path.insert(0, str(ROOT))
    os.environ['IN_TEST'] = '1'
    shell = CaptureShell(path, profile=False)
    skip = lambda cell: cell.cell_type != 'code' or (is_cifar(cell) and not with_cifar)
    try:
        with working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception: sys.exit(shell.prettytb(fname=path.name) or f'{path.name}: {sys.exc_info()[1]}')

def refresh(path, with_cifar=True):
    "Run the notebook at `path` and write it back with new outputs and a stamp"
    from fastcore.nbio import read_nb, write_nb
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    path, start = path.resolve(), time.time()
    nb = read_nb(path)
    stamp = dict(nb.metadata.get('nbtransfer', {}))
    cifar = [c for c in nb.cells if c.cell_type == 'code' and is_cifar(c)]
    run_cells(path, nb, with_cifar)
    for i, cell in enumerate(nb.cells):
        if 'outputs' in cell: cell.outputs = clean_outputs(cell.outputs, f'{path.name}, cell {i}')
    facts, old_cifar = run_facts(), stamp.get('cifar')
    stamp = dict(code_sha256=code_hash(nb), **facts)
    if cifar:
        cifar_sha256 = code_hash(nb, only_cifar=True)
        if with_cifar: stamp['cifar'] = dict(code_sha256=cifar_sha256, **facts)
        elif (old_cifar or {}).get('code_sha256') == cifar_sha256: stamp['cifar'] = old_cifar
        else:
            for cell in cifar: cell.outputs = []
            stamp['cifar'] = dict(code_sha256=None)
            print(f'  {path.name}: CIFAR cells are new or changed and were not run; their outputs are removed', file=sys.stderr)
    nb.metadata['nbtransfer'] = stamp
    cfg = get_config(path.parent)
    clean_nb(nb, allowed_metadata_keys=cfg.allowed_metadata_keys, allowed_out_metadata_keys=cfg.allowed_out_metadata_keys)
    part = path.with_name(f'.{path.name}.part')
    write_nb(nb, part)
    os.replace(part, path)
    print(f'{path.name}: {time.time() - start:.0f} s')

def find_notebooks(): return sorted(o for o in (ROOT/'nbs').glob('*.ipynb') if o.name[0] not in '_.')

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path, help='notebooks to run (default: all of nbs/)')
    parser.add_argument('--no-cifar', action='store_true', help='leave out the cells marked #| cifar')
    args = parser.parse_args()
    missing = [str(o) for o in args.notebooks if not o.is_file()]
    if missing: parser.error(f"no such notebook: {', '.join(missing)}")
    paths = args.notebooks or find_notebooks()
    if len(paths) == 1: return refresh(paths[0], with_cifar=not args.no_cifar)
    flags = ['--no-cifar'] if args.no_cifar else []
    failed = [o.name for o in paths if subprocess.run([sys.executable, __file__, str(o), *flags]).returncode]
    if failed: sys.exit(f"failed, and left as they were: {', '.join(failed)}")

if __name__ == '__main__': main()
