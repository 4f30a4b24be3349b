"What holds for any labels, networks, weights and rates, tried on many that hypothesis draws"
import math
from functools import lru_cache
from itertools import combinations
import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from helpers import some
from nbtransfer.comparison import compare, paired_interval
from nbtransfer.finetuning import lrs_by_group
from nbtransfer.networks import article_cnn, resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.tasks import Task, digits, drop_twins, split_per_class
from nbtransfer.weights import TransferError, load_weights, save_weights, transfer_weights

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
    labels = shuffled_labels([3 * o for o in sizes], seed)
    counts = [data.draw(st.integers(3, 3 * o)) for o in sizes]
    idxs = torch.cat([(labels == c).nonzero().flatten()[:n] for c, n in enumerate(counts)])
    parts = split_per_class(labels, dict(test=.2, valid=.1), seed, idxs)
    assert torch.cat(list(parts.values())).sort().values.tolist() == idxs.sort().values.tolist()

@some(200)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(['train', 'valid', 'test', None])), max_size=20))
def test_only_twins_are_dropped_and_all_between_splits(pictures):
    names = 'train', 'valid', 'test'
    images = torch.tensor([colour for colour, _ in pictures], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    splits = {s: torch.tensor([i for i, (_, o) in enumerate(pictures) if o == s]).long() for s in names}
    kept = drop_twins(images, splits)
    colours = {s: {pictures[i][0] for i in idxs.tolist()} for s, idxs in kept.items()}
    for one, other in combinations(names, 2): assert not colours[one] & colours[other]
    gives_way_to = dict(train=colours['valid'] | colours['test'], valid=colours['test'], test=set())
    for s, others in gives_way_to.items():
        gone = set(splits[s].tolist()) - set(kept[s].tolist())
        assert all(pictures[i][0] in others for i in gone), f'{s} lost a picture without a twin'
        assert kept[s].tolist() == [i for i in splits[s].tolist() if i not in gone]

def noise_task(sizes, seed=0, size_px=8):
    "A task of noise with classes of these sizes"
    labels = shuffled_labels(sizes, seed)
    images = torch.randint(256, (len(labels), size_px, size_px, 3), generator=generator(seed), dtype=torch.uint8)
    splits = split_per_class(labels, dict(test=.2, valid=.2), seed)
    return Task('noise', images, labels, [f'class {c}' for c in range(len(sizes))], splits)

@some(50)
@given(st.lists(st.integers(3, 30), min_size=2, max_size=5), seeds, st.data())
def test_subset_has_so_many_of_each_class_and_contains_smaller_ones(sizes, seed, data):
    task = noise_task(sizes, seed)
    more = data.draw(st.integers(1, int(task.counts()['train'].min())))
    fewer = data.draw(st.integers(1, more))
    large, small = task.subset(more, seed), task.subset(fewer, seed)
    assert (large.counts()['train'] == more).all() and (small.counts()['train'] == fewer).all()
    train = [set(o.splits['train'].tolist()) for o in (small, large, task)]
    assert train[0] <= train[1] <= train[2] and len(large.splits['train']) == len(train[1])
    for s in ('valid', 'test'): assert torch.equal(large.splits[s], task.splits[s])

# Networks, files and transfers

networks = st.one_of(st.builds(lambda k: article_cnn(k), st.integers(2, 9)),
    st.builds(lambda k, width: resnet9(k, width), st.integers(2, 9), st.integers(1, 6)))

def bits(t): return t.shape, t.dtype, t.contiguous().numpy().tobytes()

def state_bits(model): return {n: bits(t) for n, t in model.state_dict().items()}

def scramble(model, seed):
    "Fill all parameters and buffers with random bits, NaN and infinity among them"
    rng = np.random.default_rng(seed)
    for t in model.state_dict().values():
        t.copy_(torch.from_numpy(np.frombuffer(rng.bytes(t.nbytes), t.numpy().dtype).copy()).view(t.shape))
    return model

noise_task_32 = lru_cache(lambda n_classes: noise_task([3] * n_classes, size_px=32))

@some(15)
@given(networks, seeds)
def test_loaded_network_is_the_saved_one_bit_for_bit(tmp_path_factory, network, seed):
    learn = task_learner(noise_task_32(network.head.out_features), scramble(network, seed))
    loaded = load_weights(save_weights(learn, tmp_path_factory.mktemp('saved')/'w.safetensors'))
    assert state_bits(loaded) == state_bits(network) and loaded.arch == network.arch and not loaded.training

@some(10)
@given(networks, seeds)
def test_half_precision_rounds_the_floats_once(tmp_path_factory, network, seed):
    torch.manual_seed(seed)
    for p in network.parameters(): torch.nn.init.normal_(p)
    learn = task_learner(noise_task_32(network.head.out_features), network)
    loaded = load_weights(save_weights(learn, tmp_path_factory.mktemp('saved')/'w.safetensors', half=True))
    expected = {n: t.half().float() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    assert state_bits(loaded) == {n: bits(t) for n, t in expected.items()}

def build_again(model):
    make = dict(article_cnn=article_cnn, resnet9=resnet9)[model.arch['name']]
    return make(**model.arch['kwargs'])

@some(15)
@given(networks, seeds)
def test_transfer_to_the_same_network_copies_every_bit(source, seed):
    target = build_again(scramble(source, seed))
    receipt = transfer_weights(source, target, head=True)
    assert state_bits(target) == state_bits(source) and receipt.share == 1
    assert set(receipt.rows.status) == {'copied'} and len(receipt.rows) == len(source.state_dict())

@st.composite
def partial_states(draw):
    "A small network, and a state dict that has some of its tensors, some of another shape, and some of its own"
    target = build_again(resnet9(3, width=2))
    fates = draw(st.lists(st.sampled_from(['same', 'same', 'other shape', 'absent']), min_size=50, max_size=50))
    state = {}
    for (n, t), fate in zip(scramble(build_again(target), draw(seeds)).state_dict().items(), fates):
        if fate == 'same': state[n] = t
        if fate == 'other shape': state[n] = torch.stack([t, t])
    for n in draw(st.lists(st.sampled_from(['body.more', 'head.more', 'x']), unique=True)): state[n] = torch.ones(2)
    return target, dict(draw(st.permutations(list(state.items()))))

def fits(theirs, ours, head):
    "Names of the tensors that are to be copied"
    same = {n for n, t in theirs.items() if n in ours and t.shape == ours[n].shape}
    return {n for n in same if head or not n.startswith('head.')}

def share_of(names, model):
    params = {n: p.numel() for n, p in model.named_parameters() if n.startswith('body.')}
    return sum(params[n] for n in names if n in params) / sum(params.values())

@some(40)
@given(partial_states(), st.booleans())
def test_receipt_accounts_for_every_tensor_once(drawn, head):
    target, theirs = drawn
    before, ours = state_bits(target), target.state_dict()
    fit = fits(theirs, ours, head)
    receipt = transfer_weights(theirs, target, head, min_share=0)
    expected = [(n, 'copied' if n in fit else 'initialised', t.numel()) for n, t in ours.items()]
    expected += [(n, 'left behind', t.numel()) for n, t in theirs.items() if n not in fit]
    rows = receipt.rows
    assert sorted(zip(rows.tensor, rows.status, rows.numbers)) == sorted(expected)
    assert rows.carried.tolist() == [n if s == 'copied' else 0 for s, n in zip(rows.status, rows.numbers)]
    assert receipt.summary().tensors.sum() == len(expected) and receipt.summary().numbers.sum() == rows.numbers.sum()
    assert math.isclose(receipt.share, share_of(fit, target))
    after = state_bits(target)
    assert after == {n: bits(theirs[n]) if n in fit else o for n, o in before.items()}

@some(40)
@given(partial_states(), st.booleans(), st.floats(0, 1, exclude_min=True))
def test_too_small_a_share_is_refused_and_changes_nothing(drawn, head, min_share):
    target, theirs = drawn
    before, share = state_bits(target), share_of(fits(theirs, target.state_dict(), head), target)
    assume(share < min_share)
    with pytest.raises(TransferError, match=f'only {share:.1%}'): transfer_weights(theirs, target, head, min_share)
    assert state_bits(target) == before

# Rates and intervals

rates, group_counts = st.floats(1e-8, 10), st.integers(2, 20)

@some(100)
@given(rates, rates, group_counts)
def test_slice_of_rates_is_monotone_from_first_to_last(first, last, n_groups):
    lrs = lrs_by_group(slice(first, last), n_groups)
    assert len(lrs) == n_groups and np.allclose([lrs[0], lrs[-1]], [first, last], rtol=1e-9, atol=0)
    steps = np.diff(np.log(lrs))
    assert np.allclose(steps, math.log(last / first) / (n_groups - 1), rtol=0, atol=1e-9)   # equal factors

@some(50)
@given(rates, rates, group_counts, st.data())
def test_there_is_a_rate_for_each_group(body, head, n_groups, data):
    assert lrs_by_group(body, n_groups) == [body] * n_groups
    assert lrs_by_group((body, head), n_groups) == [body] * (n_groups - 1) + [head]
    each = data.draw(st.lists(rates, min_size=n_groups, max_size=n_groups))
    assert lrs_by_group(each, n_groups) == each == lrs_by_group(np.array(each), n_groups)

@some(10)
@given(rates, rates)
def test_a_slice_for_one_group_is_the_rate_of_the_head(first, last):
    assert lrs_by_group(slice(first, last), 1) == [last]

accuracies = st.integers(0, 1000).map(lambda o: o / 10)
pairs = st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=10).map(np.transpose)
levels = st.floats(.01, .99)

@some(100)
@given(pairs, levels, accuracies)
def test_interval_moves_with_the_results(pair, level, shift):
    a, b = pair
    interval = np.array(paired_interval(a, b, level))
    assert np.allclose(paired_interval(a + shift, b + shift, level), interval, atol=1e-9)
    assert np.allclose(paired_interval(a, b + shift, level), interval + shift, atol=1e-9)
    mean, low, high = interval
    assert np.allclose(paired_interval(b, a, level), (-mean, -high, -low), atol=1e-9)

@some(100)
@given(pairs, st.floats(.6, .99), st.floats(.6, .99))
def test_interval_widens_with_level(pair, one, other):
    "At lower levels the ends are near the median of the resamples, which need not be the mean"
    small, large = sorted([one, other])
    assume(large - small > 1e-3)
    (mean, low, high), (same, lower, higher) = (paired_interval(*pair, level) for level in (small, large))
    assert mean == same and lower <= low <= mean <= high <= higher
    if np.ptp(pair[1] - pair[0]) > 1e-6: assert lower < low < mean < high < higher

def test_comparison_of_a_source_without_a_recipe():
    "A card may say how to feed a network and not how it was trained"
    model = resnet9(26, width=2)
    model.card = dict(mean=None, std=None, recipe=None)
    result = compare(digits(), model, (1,), ['head only'], 2, n_epochs=1, progress=False)
    assert result.title == 'source to digits' and len(result.runs) == 2
