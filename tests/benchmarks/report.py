"""What a benchmark found: printed, and kept in `results.json` for the page of benchmarks."""
import json, platform, shlex, sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
import torch
from nbtransfer.all import compute_settings
from nbtransfer.files import write_whole

RESULTS = Path(__file__).with_name('results.json')

def report(title, note, frame, save):
    "Print a table with what it was measured at; with `save`, it replaces the kept one of that title"
    print(f'\n{title}: {note}\n{frame.to_string()}', flush=True)
    if not save: return
    kept = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.exists() else {}
    compute = compute_settings()
    typed = [f'tests/benchmarks/{Path(sys.argv[0]).name}', *(o for o in sys.argv[1:] if o != '--save')]
    kept[title] = dict(note=note, command=shlex.join(['python', *typed]), date=date.today().isoformat(),
        device=f'{compute.device}, {str(compute.precision)[6:]}, {torch.get_num_threads()} threads, {platform.machine()}',
        versions={o: version(o) for o in ('nbtransfer', 'torch', 'fastai', 'torchvision')}, table=frame.to_dict('tight'))
    with write_whole(RESULTS) as f: f.write(json.dumps(kept, indent=1).encode())
