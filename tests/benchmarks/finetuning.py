"""What fine-tuning costs, as ratios within one run. Run by hand, on an idle machine:

    python tests/benchmarks/finetuning.py
    python tests/benchmarks/finetuning.py --save    # for the page of benchmarks too
    python tests/benchmarks/finetuning.py --parts photos

All but `photos` needs CIFAR-10 and CIFAR-100, which fastai downloads. A source is trained on CIFAR-10; the target is CIFAR-100 with `--per-class`
labels of each class. Contenders run one after the other within each repeat; ratios are medians over repeats. The aims: ten epochs
of a head on features at least 5 times as fast as fastai's frozen ones for article_cnn and 10 times for resnet9; the accuracy of ten
epochs from scratch in at most a third of the time; the inspector under 5 % of a step; `photos`, an epoch of timm's
resnet18 (random weights, the built-in digits enlarged to 128 px), validation included, at least as fast as plain fastai."""
import argparse, time
from functools import partial
from pathlib import Path
from statistics import median
import pandas as pd
import torch
from fastai.vision.all import (CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, IndexSplitter, Learner, Normalize, PILImage,
    accuracy, aug_transforms, imagenet_stats)
from fastprogress import fastprogress
from loaders import Stop
from nbtransfer.all import (Inspector, Quiet, SkipValid, body_features, cifar10, cifar100, compute_settings, create_network, digits,
    fine_tune, freeze, head_learner, layer_groups, pretrain, read_source, save_weights, stages, transfer_learner)
from report import report

fastprogress.NO_BAR = True

def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def repeated(repeats, runs):
    "Seconds of each run, `name` → list; the first round is to warm up"
    times = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            s = run()
            if i: times[name].append(s)
    return times

def ratio(times, a, b): return median(x / y for x, y in zip(times[a], times[b]))

def head_training(task, source, args):
    "Ten epochs of the head: frozen with fastai, frozen with ours, and on features computed once"
    def learner(*cbs):
        compute = compute_settings(precision=torch.float32)
        return transfer_learner(task, source, compute=compute, cbs=[Quiet(), *cbs])
    def theirs(*cbs):
        learn = learner()
        plain = Learner(learn.dls, learn.model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=layer_groups,
                        cbs=[Quiet(), *cbs])
        plain.freeze()
        return seconds(partial(plain.fit_one_cycle, 10, 1e-2))
    def ours(*cbs):
        learn = learner(*cbs)
        freeze(learn)
        return seconds(partial(learn.fit_one_cycle, 10, 1e-2))
    def cached(*cbs):
        learn = learner()
        return seconds(lambda: head_learner(learn, cbs=[Quiet(), *cbs]).fit_one_cycle(10, 1e-2))
    runs = {'fastai freeze': theirs, 'freeze': ours, 'head_learner': cached}
    runs |= {f'{k}, no validation': partial(f, SkipValid()) for k, f in runs.items()}
    times = repeated(args.repeats, runs)
    learn = learner()
    head_learner(learn, cbs=[Quiet()]).fit_one_cycle(2, 1e-2)
    own = learn.model.head(body_features(learn, 'valid').feats[0]).softmax(1)
    assert (learn.get_preds()[0] - own).abs().max() < 1e-4   # the same network, or the times say nothing
    rows = {name: (median(times[name]), ratio(times, 'fastai freeze' + ', no validation' * name.endswith('validation'), name))
            for name in runs}
    return pd.DataFrame.from_dict(rows, 'index', columns=['s', 'times as fast as fastai']).round(2)

def to_accuracy(task, source, args):
    "Seconds of the shortest fine-tuning that is as good as ten epochs from scratch"
    made = {k: v for k, v in source.card['arch']['kwargs'].items() if k != 'n_classes'}
    rows = []
    for seed in range(args.seeds):
        few = task.subset(args.per_class, seed)
        cbs = [Quiet(), SkipValid()]
        start = time.perf_counter()
        scratch = pretrain(few, source.card['arch']['name'], 10, seed=seed, cbs=cbs, **made)
        time_s, goal = time.perf_counter() - start, scratch.validate(1)[1]
        for n_epochs in range(1, 11):
            learn = transfer_learner(few, source, seed=seed, cbs=cbs)
            own_s = seconds(partial(fine_tune, learn, n_epochs, schedule='together'))
            acc = learn.validate(1)[1]
            if acc >= goal: break
        learn = transfer_learner(few, source, seed=seed, cbs=cbs)
        probe_s = seconds(lambda: head_learner(learn, cbs=cbs).fit_one_cycle(10, 1e-2))
        rows.append((seed, 100 * goal, time_s, n_epochs, 100 * acc, own_s, own_s / time_s, 100 * learn.validate(1)[1],
                     probe_s / time_s))
    columns = ['seed', 'scratch (%)', 'scratch (s)', 'epochs of transfer', 'transfer (%)', 'transfer (s)', 'transfer by scratch',
               'head on features (%)', 'head by scratch']
    return pd.DataFrame(rows, columns=columns).set_index('seed').round(2)

def inspector(task, source, args):
    "A step with and without the inspector"
    def run(*cbs):
        learn = transfer_learner(task, source, cbs=[Quiet(), SkipValid(), Stop(args.steps), *cbs])
        return seconds(partial(learn.fit_one_cycle, 1, 1e-3))
    times = repeated(args.repeats, {'without': run, 'with': partial(run, Inspector())})
    return pd.DataFrame({'a step by one without': {'with the inspector': ratio(times, 'with', 'without')}}).round(3)

def frozen(task, source, args):
    "A step with more and more stages frozen"
    names = [s.name for s in stages(transfer_learner(task, source).model)]
    def run(upto):
        learn = transfer_learner(task, source, cbs=[Quiet(), SkipValid(), Stop(args.steps)])
        freeze(learn, upto)
        return seconds(partial(learn.fit_one_cycle, 1, 1e-3))
    times = repeated(args.repeats, {i: partial(run, i) for i in range(len(names))})
    shares = {f'up to {n}' if i else 'none': ratio(times, i, 0) for i, n in enumerate(names)}
    return pd.DataFrame({'a step by one with none frozen': shares}).round(2)

def photos(args):
    "An epoch at 128 px, all in memory, with plain fastai and with ours, in the precision of each device's rule and in float32"
    few = digits().subset(args.per_class)
    large = few.images.repeat_interleave(4, 1).repeat_interleave(4, 2)
    splits = {**few.splits, 'valid': few.splits['valid'][:100], 'test': few.splits['test'][:1]}
    task = few.replaced(images=large, splits=splits)
    train, valid = splits['train'].tolist(), splits['valid'].tolist()
    arrays, labels = [large[i].numpy() for i in train + valid], [task.vocab[task.labels[i]] for i in train + valid]
    def theirs(augments):
        tfms = [*(aug_transforms() if augments else []), Normalize.from_stats(*imagenet_stats)]
        block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: PILImage.create(arrays[i]), get_y=lambda i: labels[i],
            splitter=IndexSplitter(range(len(train), len(arrays))), batch_tfms=tfms)
        dls = block.dataloaders(range(len(arrays)), bs=args.bs, num_workers=0)
        learn = Learner(dls, create_network('timm/resnet18', 10), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[Quiet()])
        return seconds(partial(learn.fit_one_cycle, 1, 1e-3))
    def ours(augments, compute):
        source = create_network('timm/resnet18', 10)
        learn = transfer_learner(task, source, bs=args.bs, augment=augments, compute=compute, cbs=[Quiet()])
        return seconds(partial(fine_tune, learn, 1, 1e-3, 'together'))
    plain = compute_settings(precision=torch.float32)
    runs = {}
    for name, augments in {'augmented': True, 'as they are': False}.items():
        runs[f'fastai, {name}'] = partial(theirs, augments)
        runs[f'ours, {name}'] = partial(ours, augments, None)
        runs[f'ours in float32, {name}'] = partial(ours, augments, plain)
    times = repeated(args.repeats, runs)
    rows = {name: (median(times[name]), ratio(times, 'fastai, ' + name.split(', ')[1], name)) for name in runs}
    return pd.DataFrame.from_dict(rows, 'index', columns=['s', 'times as fast as fastai']).round(2)

PARTS = {'head_training': (head_training, 'Ten epochs of a head'), 'to_accuracy': (to_accuracy, 'As good as ten epochs from scratch'),
    'inspector': (inspector, 'The inspector'), 'frozen': (frozen, 'Frozen stages')}

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['article_cnn', 'resnet9'])
    parser.add_argument('--sources', type=Path, help='folder to keep the sources in, and to find them')
    parser.add_argument('--parts', nargs='+', default=['photos', *PARTS], choices=['photos', *PARTS])
    parser.add_argument('--save', action='store_true')
    for name, default in dict(per_class=50, repeats=3, seeds=3, steps=20, source_epochs=3, bs=16).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default)
    args = parser.parse_args()
    if 'photos' in args.parts:
        note = f'{10 * args.per_class} training pictures of 128 px, batches of {args.bs}'
        report('An epoch of timm/resnet18', note, photos(args), args.save)
        args.parts.remove('photos')
    for arch in args.arch if args.parts else []:
        file = args.sources and args.sources/f'src_{arch}.safetensors'
        if file and file.exists(): source = read_source(file)
        else:
            learn = pretrain(cifar10(), arch, args.source_epochs, cbs=[Quiet(), SkipValid()])
            if file: save_weights(learn, file)
            source = read_source(learn)
        few = cifar100().subset(args.per_class)
        for part, title in (PARTS[o] for o in args.parts):
            note = f'From {source.label} to cifar100, with {args.per_class} labels per class'
            report(f'{title}, {arch}', note, part(cifar100() if part is to_accuracy else few, source, args), args.save)
