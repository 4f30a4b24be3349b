"""What a folder of photographs costs until its first batch, against a pass of fastai's `DataBlock` over it. Run by hand, on an idle machine:

    python tests/benchmarks/folders.py            # 20,000 JPEGs of 300 px become 224 px
    python tests/benchmarks/folders.py --n 2000   # fewer
    python tests/benchmarks/folders.py --save     # for the page of benchmarks too

The photographs are clouds of colour with some grain, so that they take as many bytes as real ones of their size. Each
contender runs in a new process, the files having been read once before; they take turns. `--n` of 20,000 needs 6 GB of disk."""
import argparse, json, os, subprocess, sys, tempfile
from pathlib import Path
import numpy as np
import pandas as pd
from PIL import Image
from report import report

ours = '''
import json, sys, time
from nbtransfer.folders import image_folder
start = time.perf_counter()
task = image_folder(sys.argv[1], 224, verbose=False, in_memory=True)
made = time.perf_counter()
task.dls(64).one_batch()
print()
print(json.dumps([made - start, time.perf_counter() - start]))
'''

theirs = '''
import json, os, sys, time
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Resize, get_image_files, parent_label
start = time.perf_counter()
block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(224))
dls = block.dataloaders(sys.argv[1], bs=64, num_workers=os.cpu_count())
made = time.perf_counter()
for dl in (dls.train.new(shuffle=False, drop_last=False), dls.valid):
    for batch in dl: pass
print()
print(json.dumps([made - start, time.perf_counter() - start]))
'''

def write_photographs(folder, n, size_px=300):
    rng = np.random.default_rng(0)
    for i in range(n):
        clouds = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((size_px, size_px), Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 13, (size_px, size_px, 3))
        path = folder/f'class{i % 10}'/f'{i:06}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(clouds) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    for path in folder.rglob('*.jpg'): path.read_bytes()

def seconds(code, folder, cache):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(folder)], check=True, text=True, stdout=subprocess.PIPE,
        env={**os.environ, 'NBTRANSFER_CACHE': str(cache)})
    return json.loads(done.stdout.splitlines()[-1])

def folders(n, repeats):
    "Seconds to the loaders or the task, and to the end: a whole pass for `DataBlock`, the first batch for ours"
    rows = []
    with tempfile.TemporaryDirectory() as place:
        photographs = Path(place)/'photographs'
        write_photographs(photographs, n)
        for i in range(repeats):
            cache = Path(place)/f'cache{i}'
            rows.append(('DataBlock, one pass', *seconds(theirs, photographs, cache)))
            rows.append(('image_folder, decoding', *seconds(ours, photographs, cache)))
            seconds(ours, photographs, cache)   # now all times are old enough to be trusted
            rows.append(('image_folder, from the cache', *seconds(ours, photographs, cache)))
    columns = ['contender', 's to the task', 's to the end']
    frame = pd.DataFrame(rows, columns=columns).groupby('contender', sort=False).median()
    frame['as fast as DataBlock'] = frame['s to the end'].iloc[0] / frame['s to the end']
    return frame.round(2)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=20_000)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--save', action='store_true')
    args = parser.parse_args()
    report('Folders of photographs', f'{args.n:,} JPEGs of 300 px to 224 px, median of {args.repeats}', folders(args.n, args.repeats), args.save)
