"""What scores of sources cost, beside the public implementation of LogME's authors. Run by hand, on an idle machine:

    python tests/benchmarks/similarity.py --theirs LogME.py
    python tests/benchmarks/similarity.py --theirs LogME.py --save    # for the page of benchmarks too

`--theirs` is the file of that name in the repository thuml/LogME, which needs numba; without it only our own times are measured.
Needs CIFAR-100, which fastai downloads: its pictures as features of article_cnn-cifar100, 512 of each, and as probabilities of
its 100 classes. With the fewest rows all scores are measured, with more only those that have an aim.
Contenders run one after the other within each repeat, after a round to warm up; ratios are medians over repeats.
The aims: LogME at least 2 times as fast as theirs with 5,000 rows and 4 times with 20,000; LEEP and NCE within 10 ms."""
import argparse, importlib.util
from functools import partial
from statistics import median
import pandas as pd
from finetuning import ratio, repeated, seconds
from nbtransfer.all import SCORES, cifar100, source_outputs
from pathlib import Path
from report import report

def load(path):
    spec = importlib.util.spec_from_file_location('theirs', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LogME

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--theirs', type=Path, help="LogME.py of the authors")
    parser.add_argument('--rows', type=int, nargs='+', default=[5_000, 20_000])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--save', action='store_true')
    args = parser.parse_args()
    theirs = args.theirs and load(args.theirs)
    for n in args.rows:
        out = source_outputs(cifar100().subset(n // 100), 'article_cnn-cifar100')
        inputs = {name: out.probs if name in ('LEEP', 'NCE') else out.feats for name in SCORES}
        runs = {name: partial(seconds, partial(f, inputs[name], out.labels)) for name, f in SCORES.items()
                if n == min(args.rows) or name in ('LogME', 'LEEP', 'NCE')}
        if theirs: runs["LogME, its authors'"] = lambda: seconds(lambda: theirs().fit(out.feats.numpy(), out.labels.numpy()))
        times = repeated(args.repeats, runs)
        table = pd.DataFrame({'ms': {name: 1000 * median(o) for name, o in times.items()},
            'times our LogME': {name: ratio(times, name, 'LogME') for name in times}}).round(2)
        report(f'Scores of {n:,} rows', f'{out.feats.shape[1]} features, {out.probs.shape[1]} source classes, 100 classes', table, args.save)
