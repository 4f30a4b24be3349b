"""What data and `Learner` cost beside the arithmetic, and against what others do. Run by hand, on an idle machine:

    python tests/benchmarks/loaders.py            # training steps: ours, the bare arithmetic, and peers
    python tests/benchmarks/loaders.py --cache    # 60,000 PNG files: first decoding, and from the cache
    python tests/benchmarks/loaders.py --save     # for the page of benchmarks too

Needs CIFAR-10, which fastai downloads. All contenders train on the same files with the article's augmentation (turn, shift,
mirror), one after the other within each repeat; the table has medians, ratios within a repeat. The first row trains on one constant batch: the limit."""
import argparse, json, os, subprocess, sys, tempfile, time
from functools import partial
from itertools import cycle
from statistics import median
import pandas as pd
import torch
from fastai.vision.all import (Callback, CancelTrainException, CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, Learner,
    Normalize, URLs, aug_transforms, get_image_files, parent_label, untar_data)
from fastprogress import fastprogress
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2
from nbtransfer.all import Quiet, SkipValid, cifar10, compute_settings, create_network, task_learner
from report import report

fastprogress.NO_BAR = True

class Stop(Callback):
    "End an epoch after `n` steps"
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.iter + 1 >= self.n: raise CancelTrainException

def synchronize(device):
    module = torch.get_device_module(device)
    if hasattr(module, 'synchronize'): module.synchronize()

def stepper(model, compute):
    "A function that trains one step, without any framework"
    model = model.to(compute.device, memory_format=compute.layout).train()
    opt, loss_func = torch.optim.AdamW(model.parameters(), 1e-4, fused=compute.fused), nn.CrossEntropyLoss()
    def step(x, y):
        with torch.autocast(compute.device.type, compute.precision, compute.precision != torch.float32): logits = model(x)
        loss_func(logits.float(), y).backward()
        opt.step()
        opt.zero_grad()
    return step

def bare(model, compute, batch, n_steps):
    step = stepper(model, compute)
    x, y = (o.as_subclass(torch.Tensor) for o in batch)
    x = x.contiguous(memory_format=compute.layout)
    def run():
        for _ in range(n_steps): step(x, y)
    return run

def ours(task, model, compute, bs, n_steps):
    learn = task_learner(task, model, bs, compute=compute, cbs=[Quiet(), SkipValid(), Stop(n_steps)])
    return lambda: learn.fit_one_cycle(1, 1e-4)

def plain_fastai(path, model, bs, n_steps, num_workers, stats):
    augment = aug_transforms(max_rotate=15, min_zoom=1, max_zoom=1, max_lighting=0, max_warp=0, pad_mode='reflection')
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      batch_tfms=[*augment, Normalize.from_stats(*stats)])
    dls = block.dataloaders(path, bs=bs, num_workers=num_workers, persistent_workers=num_workers > 0)
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[Quiet(), SkipValid(), Stop(n_steps)])
    return lambda: learn.fit_one_cycle(1, 1e-4)

def torchvision(task, model, compute, bs, n_steps, num_workers):
    augment = [v2.ToImage(), v2.RandomHorizontalFlip(), v2.RandomAffine(15, (.1, .1), interpolation=v2.InterpolationMode.BILINEAR)]
    data = CIFAR10.__new__(CIFAR10)   # its pixels are those of the files; its own download is a pickle
    data.data, data.targets, data.target_transform = task.images.numpy(), task.labels.tolist(), None
    data.transform = v2.Compose([*augment, v2.ToDtype(torch.float32, scale=True), v2.Normalize(*task.stats)])
    loader = DataLoader(data, bs, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=num_workers > 0,
                        pin_memory=torch.cuda.is_available())
    step, batches = stepper(model, compute), cycle(loader)
    def run():
        for _ in range(n_steps):
            x, y = next(batches)
            step(x.to(compute.device, memory_format=compute.layout, non_blocking=True), y.to(compute.device, non_blocking=True))
    return run

def training_steps(arch, args):
    "Images a second of each contender, a row each"
    task, path = cifar10(), untar_data(URLs.CIFAR)/'train'
    new, chosen = partial(create_network, arch, 10), compute_settings()
    plain = compute_settings(precision=torch.float32)
    batch = task.dls(args.bs, device=chosen.device).one_batch()
    runs = {'bare arithmetic, constant batch': bare(new(), plain, batch, args.steps),
            'nbtransfer': ours(task, new(), plain, args.bs, args.steps)}
    for n in (0, args.workers):
        runs[f'fastai DataBlock over files, {n} workers'] = plain_fastai(path, new(), args.bs, args.steps, n, task.stats)
        runs[f'torch DataLoader, torchvision v2, {n} workers'] = torchvision(task, new(), plain, args.bs, args.steps, n)
    if chosen.precision != plain.precision:
        kind = str(chosen.precision).removeprefix('torch.')
        runs[f'bare arithmetic in {kind}'] = bare(new(), chosen, batch, args.steps)
        runs[f'nbtransfer in {kind}, its default here'] = ours(task, new(), chosen, args.bs, args.steps)
    times = {name: [] for name in runs}
    for i in range(args.repeats + 1):   # the first is to warm up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronize(chosen.device)
            if i: times[name].append(time.perf_counter() - start)
    speed = pd.Series({name: args.steps * args.bs / median(o) for name, o in times.items()})
    def by(name): return {o: round(median(a / b for a, b in zip(times[name], times[o])), 3) for o in runs}   # repeat by repeat
    if torch.cuda.is_available():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            start = time.perf_counter()
            runs['nbtransfer']()
            synchronize(chosen.device)
            wall = time.perf_counter() - start
        busy = sum(o.self_device_time_total for o in profile.key_averages()) / 1e6
        print(f'the GPU was idle for {1 - busy / wall:.0%} of the time of nbtransfer')
    return pd.DataFrame({'images/s': speed.round(), 'of the arithmetic': by('bare arithmetic, constant batch'),
        'nbtransfer by it': {o: round(1 / r, 2) for o, r in by('nbtransfer').items()}})

from_cache = '''
import json, sys, time, psutil
from nbtransfer.folders import image_folder
memory = lambda: psutil.Process().memory_info().rss
before, start = memory(), time.perf_counter()
task = image_folder(sys.argv[1], name='cifar10')
made = time.perf_counter()
dls = task.dls(128)
dls.one_batch()
first = time.perf_counter()
for batch in dls.train: pass
print()   # below the bar
print(json.dumps([made - start, first - start, (memory() - before) / task.images.nbytes]))
'''

def cache():
    "Of the first time and of two more: seconds to the task and to its first batch, and memory after an epoch of batches"
    path, rows = untar_data(URLs.CIFAR), []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            done = subprocess.run([sys.executable, '-W', 'ignore', '-c', from_cache, str(path)], check=True, text=True,
                stdout=subprocess.PIPE, env={**os.environ, 'NBTRANSFER_CACHE': folder})
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return pd.DataFrame(rows, ['decoding', 'from the cache', 'from the cache, again'],
                        ['s to the task', 's to the first batch', 'memory by that of the uint8 data']).round(2)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['article_cnn', 'resnet9'])
    parser.add_argument('--bs', type=int, default=256)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--cache', action='store_true')
    parser.add_argument('--save', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cache: report('60,000 PNG files', 'CIFAR-10, each row in a new process', cache(), args.save)
    for arch in [] if args.cache else args.arch:
        note = f'Batches of {args.bs}, {args.steps} steps, median of {args.repeats}'
        report(f'Training steps, {arch}', note, training_steps(arch, args), args.save)
