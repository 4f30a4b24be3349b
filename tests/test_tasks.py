"Tasks: splits and subsets of any labels, what a task answers, and what is refused"
import hashlib, json
from itertools import combinations
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from helpers import PACKAGE, saying, some
from nbtransfer.comparison import compare
from nbtransfer.files import PictureRule
from nbtransfer.folders import FileTask, cifar10, cifar100
from nbtransfer.tasks import SPLITS, Task, digits, drop_repeated, drop_twins, letters, split_per_class

seeds = st.integers(0, 2**31)

def generator(seed): return torch.Generator().manual_seed(seed)

# Splits and subsets

class_sizes = st.lists(st.integers(3, 20), min_size=1, max_size=5)
shares = st.floats(.01, .98)

def shuffled_labels(sizes, seed):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=generator(seed))]

@some(200)
@given(class_sizes, shares, shares, seeds)
def test_parts_are_disjoint_and_complete_and_have_every_class(sizes, test, valid, seed):
    assume(test + valid < .99)
    labels = shuffled_labels(sizes, seed)
    parts = split_per_class(labels, dict(test=test, valid=valid), seed)
    assert list(parts) == ['train', 'test', 'valid']
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(len(labels)))
    for name, part in parts.items():
        assert set(labels[part].tolist()) == set(labels.tolist()), f'{name} lacks a class'
        assert part.tolist() == sorted(part.tolist())

@some(30)
@given(class_sizes, seeds, st.data())
def test_split_takes_only_the_pictures_it_is_given(sizes, seed, data):
    labels = shuffled_labels([3 * size for size in sizes], seed)
    counts = [data.draw(st.integers(3, 3 * size)) for size in sizes]
    idxs = torch.cat([(labels == c).nonzero().flatten()[:n] for c, n in enumerate(counts)])
    parts = split_per_class(labels, dict(test=.2, valid=.1), seed, idxs)
    assert torch.cat(list(parts.values())).sort().values.tolist() == idxs.sort().values.tolist()

@some(200)
@given(st.lists(st.integers(3, 30), min_size=2, max_size=5), st.data(), seeds)
def test_counts_are_kept_exactly_and_every_class_is_in_every_part(sizes, data, seed):
    labels = shuffled_labels(sizes, seed)
    n, n_classes = len(labels), len(sizes)
    test = data.draw(st.one_of(st.just(0), st.integers(n_classes, n)))
    valid = data.draw(st.integers(n_classes, n))
    try: parts = split_per_class(labels, dict(test=test, valid=valid), seed)
    except ValueError as error:
        assert any(words in str(error) for words in ('train would be empty', 'train would have no picture'))
        assert test + valid >= .5 * n, 'there was room'
        return
    assert [len(parts[name]) for name in ('test', 'valid')] == [test, valid]
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(n))
    for name, part in parts.items(): assert len(part) == 0 or set(labels[part].tolist()) == set(range(n_classes)), name
    in_valid = labels[parts['valid']].bincount(minlength=n_classes)
    for size, got in zip(sizes, in_valid.tolist()): assert abs(got - valid * size / n) < n_classes, 'in proportion'

def test_counts_and_shares_together_and_no_test():
    labels = torch.arange(100) % 4
    parts = split_per_class(labels, dict(test=.2, valid=6))
    assert [len(part) for part in parts.values()] == [74, 20, 6] and list(parts) == ['train', 'test', 'valid']
    for none in (0, 0.):
        parts = split_per_class(labels, dict(test=none, valid=.1))
        assert len(parts['test']) == 0 and parts['test'].dtype == torch.int64 and len(parts['valid']) == 8
    assert len(split_per_class(torch.tensor([0, 0, 1, 1]), dict(test=0, valid=2))['train']) == 2, 'two of a class are enough'

@pytest.mark.parametrize('shares, words', [
    (dict(valid=3), ('valid must have a picture of each of the 4 classes', 'got 3')), (dict(valid=100), ('train would be empty', '100')),
    (dict(valid=0), ('valid would be empty', 'got 0')), (dict(test=-5), ('test would be empty', 'got -5')),
    (dict(test=60, valid=38), ('train would have no picture of class', 'which has 25'))], ids=str)
def test_counts_that_cannot_be_kept(shares, words):
    with saying(*words): split_per_class(torch.arange(100) % 4, shares)

@some(200)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*SPLITS, None])), max_size=20))
def test_only_twins_are_dropped_and_all_between_splits(pictures):
    images = torch.tensor([colour for colour, _ in pictures], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    splits = {}
    for split in SPLITS: splits[split] = torch.tensor([i for i, (_, own) in enumerate(pictures) if own == split]).long()
    kept = drop_twins(images, splits)
    colours = {split: {pictures[i][0] for i in idxs.tolist()} for split, idxs in kept.items()}
    for one, other in combinations(SPLITS, 2): assert not colours[one] & colours[other]
    gives_way_to = dict(train=colours['valid'] | colours['test'], valid=colours['test'], test=set())
    for split, others in gives_way_to.items():
        gone = set(splits[split].tolist()) - set(kept[split].tolist())
        assert all(pictures[i][0] in others for i in gone), f'{split} lost a picture without a twin'
        assert kept[split].tolist() == [i for i in splits[split].tolist() if i not in gone]
    by_colour = drop_repeated(splits, [colour for colour, _ in pictures])
    assert all(torch.equal(by_colour[split], kept[split]) for split in SPLITS)

def noise_task(sizes, seed=0, vocab=None):
    "A task of noise with classes of these sizes"
    labels = shuffled_labels(sizes, seed)
    images = torch.randint(256, (len(labels), 8, 8, 3), generator=generator(seed), dtype=torch.uint8)
    splits = split_per_class(labels, dict(test=.2, valid=.2), seed)
    return Task('noise', images, labels, vocab or [f'class {c}' for c in range(len(sizes))], splits=splits)

@some(50)
@given(st.lists(st.integers(3, 30), min_size=2, max_size=5), seeds, st.data())
def test_subset_has_so_many_of_each_class_and_contains_smaller_ones(sizes, seed, data):
    task = noise_task(sizes, seed)
    more = data.draw(st.integers(1, int(task.counts()['train'].min())))
    fewer = data.draw(st.integers(1, more))
    large = task.subset(more, seed)
    small = task.subset(fewer, seed)
    assert (large.counts()['train'] == more).all() and (small.counts()['train'] == fewer).all()
    train = [set(one.splits['train'].tolist()) for one in (small, large, task)]
    assert train[0] <= train[1] <= train[2] and len(large.splits['train']) == len(train[1])
    for split in ('valid', 'test'): assert torch.equal(large.splits[split], task.splits[split])

# What a task answers

def fingerprint_by_hand(task):
    "As comparisons took it when those that ship were made"
    tensors = sorted(dict(task.splits, labels=task.labels, images=task.images).items())
    sha = hashlib.sha256()
    for name, tensor in tensors:
        sha.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        sha.update(tensor.numpy().tobytes())
    return hashlib.sha256(json.dumps([sha.hexdigest(), task.vocab, []]).encode()).hexdigest()

@pytest.mark.parametrize('task', [digits(), digits(3).subset(2, 5), letters(80), noise_task([4, 5])], ids=lambda task: task.name)
def test_fingerprint_is_the_one_that_results_hold(task):
    assert task.fingerprint() == fingerprint_by_hand(task)

@pytest.mark.nightly
@pytest.mark.parametrize('cifar', [cifar10, cifar100])
def test_fingerprint_of_cifar_is_that_of_the_shipped_comparisons(cifar, request):
    if not request.config.getoption('--cifar'): pytest.skip('needs the CIFAR data: --cifar')
    facts = [json.loads(path.read_text(encoding='utf-8')) for path in (PACKAGE/'results').glob('*-*-*.json')]
    held = {one['task']['sha256'] for one in facts if one['task']['name'] == cifar.__name__}
    assert held == {cifar().fingerprint()}

def test_rule_is_of_the_task_and_checked():
    task = noise_task([9, 9])
    assert task.rule == PictureRule(8) and task.replaced(fit='pad', window=(0, 9)).rule == PictureRule(8, 'pad', (0, 9))
    parts = dict(images=task.images, labels=task.labels, vocab=task.vocab, splits=task.splits)
    assert Task('a', fit='squish', window=[0, 7], **parts).rule.window == (0, 7)
    with saying('PictureRule: fit must be one of', "'stretch'"): Task('a', fit='stretch', **parts)
    with saying('PictureRule: window', '5'): Task('a', window=5, **parts)
    assert Task('a', fit='pad', **parts).fingerprint() == task.fingerprint(), 'pictures are what they are'

def test_only_test_may_be_empty():
    task = noise_task([9, 9])
    none = task.splits['test'][:0]
    without = Task('a', task.images, task.labels, task.vocab, splits={**task.splits, 'test': none})
    assert without.counts()['test'].sum() == 0 and 'test 0' in repr(without) and without.fingerprint() != task.fingerprint()
    for split in ('train', 'valid'):
        with saying(f'split {split} has no picture'): Task('a', task.images, task.labels, task.vocab, splits={**task.splits, split: none})
    of_one_class = task.splits['test'][task.labels[task.splits['test']] == 0]
    with saying('split test has no picture of', 'class 1'):
        Task('a', task.images, task.labels, task.vocab, splits={**task.splits, 'test': of_one_class})

@pytest.mark.parametrize('n', [1, 3, 50])
def test_grid_shows_pictures_of_the_class_above_them(n):
    task = noise_task([5, 30, 4], vocab=['cat', 'dog', 'a name that is much too long'])
    axes = task.show(n=n)
    try:
        assert axes.shape == (min(n, task.counts()['train'].max()), 3) and [ax.get_title() for ax in axes[0]] == ['cat', 'dog', 'a name that is m']
        for column, count in enumerate(task.counts()['train']):
            shown = [ax.images[0].get_array() for ax in axes[:, column] if ax.images]
            assert len(shown) == min(n, count), 'the rest stays empty'
            own = task.splits['train'][task.labels[task.splits['train']] == column]
            assert all(any(np.array_equal(one, task.images[i]) for i in own) for one in shown)
        assert '23 pictures' in axes[0, 0].figure.get_suptitle() and '3 of 3 classes' in axes[0, 0].figure.get_suptitle()
    finally: plt.close(axes[0, 0].figure)

def test_grid_of_many_classes_shows_the_first_and_says_so():
    axes = digits().show('valid', 1, n_classes=4)
    assert axes.shape == (1, 4) and '4 of 10 classes' in axes[0, 0].figure.get_suptitle()
    plt.close(axes[0, 0].figure)

def test_a_replaced_part_changes_no_other_task():
    task = noise_task([9, 9])
    darker = task.replaced(images=task.images // 2)
    assert darker.stats[0][0] < .6 * task.stats[0][0] and darker.splits is task.splits
    assert task.replaced(name='again').stats == task.stats and task.name == 'noise'
    few = task.subset(1)   # of other training pictures
    assert few.stats != task.stats and few.images is task.images

class Sounds(Task):
    "A task whose examples are no pictures: rows of numbers"
    def check(self): self.check_labels(len(self.images))
    def picture(self, i): return self.images[i].view(1, -1)

def test_a_task_of_other_examples_needs_no_pictures():
    labels = shuffled_labels([9, 8, 7], 0)
    splits = split_per_class(labels, dict(test=.2, valid=.2))
    sounds = Sounds('sounds', torch.randn(24, 100), labels, 'abc', splits=splits)
    few = sounds.subset(2)
    assert type(few) is Sounds and (few.counts()['train'] == 2).all() and few.picture(0).shape == (1, 100)
    assert len({sounds.fingerprint(), few.fingerprint(), sounds.replaced(vocab=list('abd')).fingerprint()}) == 3
    with saying('Task sounds', 'split valid has no picture of', "['a'"):
        Sounds('sounds', sounds.images, labels, 'abc', splits={**splits, 'valid': splits['valid'][:0]})

# What is refused

def test_fewer_pictures_than_labels_asked_for():
    task = noise_task([6, 6], vocab=['cat', 'dog'])
    with saying('5 per class asked for', 'class cat has 4'): task.subset(5)
    with saying('per_class must be at least 1', 'got 0'): task.subset(0)
    for odd in (1.5, 2., '2', None):
        with saying('per_class must be a whole number', repr(odd)): task.subset(odd)
    assert task.subset(np.int64(2)).splits['train'].tolist() == task.subset(2).splits['train'].tolist()

def test_a_split_that_is_not_there():
    task = noise_task([6, 6])
    no_valid = dict(train=task.splits['train'], test=task.splits['test'])
    for splits, names in (({}, 'train, valid, test'), (dict(train=[0, 1]), 'valid, test'), (no_valid, 'valid')):
        with saying('Task noise', f'splits has no {names}'): Task('noise', task.images, task.labels, task.vocab, splits=splits)
        with saying('Task files', f'splits has no {names}'):
            FileTask('files', [Path(f'{i}.png') for i in range(12)], task.labels, task.vocab, splits=splits, size_px=8)
    with saying('98 per class', 'class 8 has 97'): compare(digits(), 'resnet9-letters', (1, 98))

@pytest.mark.parametrize('call, part', [
    (lambda: letters(77), 'got 77'), (lambda: digits().dls(bs=0), 'got 0'),
    (lambda: split_per_class(torch.tensor([0, 0, 0, 1, 1]), dict(test=.2, valid=.2)), 'class 1 must have at least 3 pictures (got 2)'),
    (lambda: compare(digits(), 'resnet9-letters', seeds=1), 'got 1')])
def test_number_too_small(call, part):
    with saying(part): call()

@pytest.mark.parametrize('shares, words', [
    (dict(test=.5, valid=.5), ('train would be empty', 'the shares must sum to less than 1', '0.5')),
    (dict(test=-.1, valid=.1), ('test would be empty', 'share must be above 0', 'got -0.1')), (dict(test=.1, valid=0), ('valid would be empty', 'share must be above 0', 'got 0')),
    (dict(test=.2, valid=-.1), ('valid would be empty', 'share must be above 0', 'got -0.1'))])
def test_shares_name_the_part_that_would_be_empty(shares, words):
    with saying(*words): split_per_class(torch.arange(40) % 2, shares)
