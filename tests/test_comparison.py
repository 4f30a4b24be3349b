"Intervals hold, pairs stay pairs, a store repeats nothing, costs are what was done, and the test split waits for the end"
import json, re, time, warnings, zlib
from dataclasses import replace
from functools import lru_cache
from html.parser import HTMLParser
from itertools import product
from types import SimpleNamespace
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from hypothesis import assume, given, strategies as st
from joblib.parallel import ThreadingBackend
from pandas.testing import assert_frame_equal
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score
from torch.utils.flop_counter import FlopCounterMode
from helpers import find_browser, on_more, run, saying, some, write_folder
from nbtransfer import comparison
from nbtransfer.comparison import (STRATEGIES, Budget, Comparison, as_html, classification_scores, compare, epochs_for, html_page, load_comparison,
    paired_interval, run_one, scores_by_class, wilson_interval)
from nbtransfer.folders import image_folder
from nbtransfer.networks import count_params, create_network, stages, tensors_of
from nbtransfer.pretraining import Quiet
from nbtransfer.sources import read_source
from nbtransfer.tasks import Task, digits
from nbtransfer.weights import pretrained

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def network(kind='resnet9', seed=0, **kwargs):
    "A source whose card asks for the target's own normalisation"
    torch.manual_seed(seed)
    model = create_network(kind, 26, **(dict(width=2) if kind == 'resnet9' else {}) | kwargs)
    model.card = dict(mean=None, std=None, recipe=None)
    return model

def simulated(results, **kwargs):
    "A comparison of `{(strategy, per_class): accuracies}`, seeds from 0"
    rows = [dict(strategy=s, per_class=n, seed=i, accuracy=a) for (s, n), v in results.items() for i, a in enumerate(v)]
    return Comparison(pd.DataFrame(rows), 'made up', **kwargs)

nightly = pytest.mark.nightly

# Intervals

def stretch(m, level=.95):
    "What a bootstrap interval of the mean of `m` numbers lacks"
    return np.sqrt(m / (m - 1)) * stats.t.ppf((1 + level) / 2, m - 1) / stats.norm.ppf((1 + level) / 2)

def students(a, b, level=.95): return stats.ttest_rel(b, a).confidence_interval(level)

def percentiles(d, level=.95):
    return stats.bootstrap((d,), np.mean, confidence_level=level, method='percentile', rng=0).confidence_interval

def test_intervals_known_by_hand():
    "Of three differences all resamples alike have a chance of 1 in 27, of two 1 in 4: both over 2.5 %, so these are the ends"
    wide = np.sqrt(3 / 2) * 4.30265 / 1.95996
    assert np.allclose(paired_interval([70, 70, 70], [71, 72, 73]), (2, 2 - wide, 2 + wide), atol=1e-4)
    assert np.allclose(paired_interval([70, 70, 70], [71, 71, 74]), (2, 2 - wide, 2 + 2 * wide), atol=1e-4)
    wide = np.sqrt(2) * 12.70620 / 1.95996
    assert np.allclose(paired_interval([70, 80], [70, 82]), (1, 1 - wide, 1 + wide), atol=1e-4)

accuracies = st.integers(0, 1000).map(lambda o: o / 10)
pairs = st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=12).map(np.transpose)

@some(15)
@given(pairs, st.floats(.5, .99))
def test_interval_is_scipys_stretched(pair, level):
    a, b = pair
    d = b - a
    mean, low, high = paired_interval(a, b, level)
    assert np.isclose(mean, d.mean())
    if np.ptp(d) < 1e-9: return
    offsets = np.array(percentiles(d - d.mean(), level))
    assert np.allclose((low, high), mean + stretch(len(d), level) * offsets, atol=1e-9)

test_interval_is_scipys_stretched_on_more = on_more(test_interval_is_scipys_stretched, 60, pairs, st.floats(.5, .99))

def test_many_seeds_give_the_intervals_of_scipy():
    "Within 5 % of their width: 9,999 resamples leave 1 or 2 % to chance"
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.random, rng.exponential):
        a, b = 70 + 5 * rng.normal(size=200), 71 + 5 * rng.normal(size=200)
        b = b + 5 * draw(size=200)
        ours = np.array(paired_interval(a, b)[1:])
        for theirs in (percentiles(b - a), students(a, b)): assert np.allclose(ours, theirs, atol=.05 * np.ptp(ours))

@pytest.mark.parametrize('m', [3, *(pytest.param(m, marks=nightly) for m in (4, 5, 8, 12)), 20])
def test_few_seeds_give_students_width_on_average(m):
    rng = np.random.default_rng(m)
    pairs = [rng.normal(70, 3, (2, m)) for _ in range(100)]
    assert np.mean([np.ptp(paired_interval(*o)[1:]) / np.ptp(students(*o)) for o in pairs]) == pytest.approx(1, abs=.1)

@some(100)
@given(st.lists(accuracies, min_size=2, max_size=6), accuracies, st.floats(.01, .99))
def test_equal_differences_leave_no_width(a, shift, level):
    assert np.ptp(paired_interval(a, np.array(a) + shift, level)) < 1e-9

@pytest.mark.parametrize('level', [1e-12, 1e-3, .5, .999, 1 - 1e-12])
def test_no_level_gives_nan(level): assert np.isfinite(paired_interval([1, 2, 4], [3, 5, 9], level)).all()

@pytest.mark.parametrize('level', [0, 1, -.5, 1.5, np.nan, 1e-17])
def test_bad_levels_are_refused(level):
    with saying('paired_interval', 'level', str(level)): paired_interval([1, 2], [3, 5], level)
    with saying('level'): simulated({('scratch', 1): [1, 2], ('tuned', 1): [2, 4]}).differences(level=level)

@pytest.mark.parametrize('a, b', [([1], [2]), ([], []), ([1, 2], [1, 2, 3]), (1, 2), ([[1, 2]], [[1, 2]]), ([1, np.nan], [1, 2]),
    ([1, 2], [np.inf, 2])])
def test_bad_results_are_refused(a, b):
    with saying('paired_interval', '`a` and `b` must', 'got'): paired_interval(a, b)

@some(15)
@given(pairs, st.floats(.01, .99), accuracies)
def test_interval_moves_with_the_results(pair, level, shift):
    a, b = pair
    interval = np.array(paired_interval(a, b, level))
    assert np.allclose(paired_interval(a + shift, b + shift, level), interval, atol=1e-9)
    assert np.allclose(paired_interval(a, b + shift, level), interval + shift, atol=1e-9)
    mean, low, high = interval
    assert np.allclose(paired_interval(b, a, level), (-mean, -high, -low), atol=1e-9)

test_interval_moves_with_the_results_on_more = on_more(test_interval_moves_with_the_results, 100, pairs, st.floats(.01, .99), accuracies)

@some(20)
@given(pairs, st.floats(.6, .99), st.floats(.6, .99))
def test_interval_widens_with_level(pair, one, other):
    "At lower levels the ends are near the median of the resamples, which need not be the mean"
    small, large = sorted([one, other])
    assume(large - small > 1e-3)
    (mean, low, high), (same, lower, higher) = (paired_interval(*pair, level) for level in (small, large))
    assert mean == same and lower <= low <= mean <= high <= higher
    if np.ptp(pair[1] - pair[0]) > 1e-6: assert lower < low < mean < high < higher

test_interval_widens_with_level_on_more = on_more(test_interval_widens_with_level, 100, pairs, st.floats(.6, .99), st.floats(.6, .99))

@pytest.mark.parametrize('a, b', [([1], [2]), ([1, 2], [1, 2, 3]), ([1], [1, 2, 3]), (1, 2)])
def test_pairs_without_partners(a, b):
    with saying('paired_interval', '`a` and `b` must', 'got'): paired_interval(a, b)

# Pairs

def planted(m, difference, n, seed=0):
    "As many comparisons in one: what seeds do to both strategies is much more than the noise of the difference"
    rng = np.random.default_rng(seed)
    shared, noise = rng.normal(60, 10, (n, m)), rng.normal(0, .5, (n, m))
    return shared, shared + difference + noise

def verdicts(one, two):
    names = [('scratch', one), ('tuned', two)]
    return simulated({(s, n): o[n] for s, o in names for n in range(len(o))}).differences().verdict.value_counts(normalize=True)

def welch(a, b): return stats.ttest_ind(b, a, equal_var=False).confidence_interval()

def share_without_0(interval, one, two):
    ends = np.array([interval(a, b) for a, b in zip(one, two)])
    return ((ends[:, 0] > 0) | (ends[:, 1] < 0)).mean()

def students_z(a, b):
    "As if the spread were known: plain bootstrap of the mean, for many resamples"
    d, z = b - a, stats.norm.ppf(.975)
    return d.mean() - z * d.std() / len(d)**.5, d.mean() + z * d.std() / len(d)**.5

each_number_of_seeds = pytest.mark.parametrize('m, n', [(3, 250), *(pytest.param(m, 500, marks=nightly) for m in (3, 5))])

@each_number_of_seeds
def test_no_difference_is_not_found(m, n):
    one, two = planted(m, 0, n)
    assert verdicts(one, two)['not distinguishable'] >= .93
    for plain in (lambda a, b: percentiles(b - a), students_z):   # the line above would notice
        assert share_without_0(plain, one[:150], two[:150]) > .12

@each_number_of_seeds
def test_large_difference_is_found(m, n):
    one, two = planted(m, 5, n // 5)
    assert verdicts(one, two)['better'] > .98 and verdicts(two, one)['worse'] > .98
    assert share_without_0(welch, one, two) < .2   # without pairs it drowns in what seeds have in common

def shuffled(frame, rng): return frame.iloc[rng.permutation(len(frame))]

@some(5)
@given(st.integers(0, 2**31))
def test_order_of_rows_does_not_matter_and_seeds_do(seed):
    rng = np.random.default_rng(seed)
    one, two = planted(5, 1, 1, seed)
    result = simulated({('scratch', 1): one[0], ('tuned', 1): two[0], ('scratch', 5): one[0], ('tuned', 5): two[0]})
    def found(runs):
        rows = Comparison(runs).differences().set_index(['strategy', 'per_class']).sort_index()
        return rows.drop(columns='verdict').astype(float)
    before = found(result.runs)
    assert np.allclose(found(shuffled(result.runs, rng)), before, atol=1e-9)
    mixed, tuned = result.runs.copy(), (result.runs.strategy == 'tuned') & (result.runs.per_class == 5)
    mixed.loc[tuned, 'seed'] = np.roll(mixed.loc[tuned, 'seed'], 1 + seed % 4)
    after = found(mixed)
    assert np.allclose(after.loc['tuned', 1], before.loc['tuned', 1]) and np.allclose(after.difference, before.difference)
    assert abs(after.loc[('tuned', 5), 'high'] - before.loc[('tuned', 5), 'high']) > .1

test_order_of_rows_does_not_matter_and_seeds_do_on_more = on_more(test_order_of_rows_does_not_matter_and_seeds_do, 20, st.integers(0, 2**31))

def test_only_seeds_of_both_are_compared():
    result = simulated({('scratch', 1): [1, 2, 4], ('tuned', 1): [2, 4, 5, 99], ('other', 1): [5]})
    found = result.differences().set_index('strategy')
    assert found.seeds['tuned'] == 3 and np.allclose(found.loc['tuned', ['difference', 'low', 'high']].astype(float),
        paired_interval([1, 2, 4], [2, 4, 5]))
    assert set(found.index) == {'tuned'}   # one seed gives no interval
    for baseline in ('none', None, 1):
        with saying('Comparison.differences', 'scratch', repr(baseline)): result.differences(baseline)

def test_words_say_what_the_numbers_do():
    said = simulated({('scratch', 1): [1, 2, 3], ('up', 1): [11, 12.5, 13], ('down', 1): [0, .5, 1], ('even', 1): [2, 1, 3],
        ('scratch', 5): [5, 6, 7], ('up', 5): [15, 16, 17.5]}).summary()
    heads = ['1 label per class, 3 seeds: better than', '1 label per class, 3 seeds: worse than', '1 label per class, 3 seeds: not '
        'distinguishable from', '5 labels per class, 3 seeds: better than']
    for o, head, name in zip(said, heads, ('up +10.2', 'down -1.5', 'even +0.0', 'up +10.2'), strict=True):
        assert o.startswith(f'{head} scratch: {name} ('), o

# A run that takes no time

def crc(*parts): return zlib.crc32(repr(parts).encode())

class Runs(list):
    "What was asked of `_train`, and made-up rows for it"
    def __init__(self, stop_at=None, error=KeyboardInterrupt, valid=None): self.stop_at, self.error, self.valid = stop_at, error, valid

    def __call__(self, run, how, task, source):
        if self.stop_at == len(self): raise self.error
        lr_max, n_epochs = run.budget.lr_max, run.budget.n_epochs
        o = SimpleNamespace(strategy=run.strategy, per_class=run.per_class, seed=run.seed, lr_max=lr_max, n_epochs=n_epochs, test=run.test, task=task)
        self.append(o)
        rng, points = np.random.default_rng(crc(o.strategy, o.per_class, o.seed, lr_max)), [1, n_epochs]
        curve = np.sort(rng.integers(0, 1000, 2) / 10)
        if self.valid: curve[-1] = self.valid(o.strategy, lr_max)
        row = dict(strategy=o.strategy, per_class=o.per_class, seed=o.seed, accuracy=np.nan, valid_accuracy=curve[-1],
            lr_max=lr_max or .01, n_epochs=n_epochs, n_steps=3 * n_epochs, time_s=rng.random() * n_epochs, cpu_s=1.,
            flops=10**9 * n_epochs, device='cpu', precision='float32', curve_epochs=points, curve_time_s=list(rng.random(2)), curve_cpu_s=[.5, 1.],
            curve_flops=[10**9 * p for p in points], curve_accuracy=list(curve))
        if not run.test: return row
        truth = task.labels[task.splits['test']]
        guess = np.where(rng.random(len(truth)) < .7, truth, rng.integers(0, task.n_classes, len(truth)))
        return dict(row, accuracy=100 * (guess == truth.numpy()).mean(), predicted=guess.astype(np.int16))

    def asked(self, start=0): return [(o.per_class, o.strategy, o.seed) for o in self[start:]]

@pytest.fixture
def runs(monkeypatch):
    made = Runs()
    monkeypatch.setattr(comparison, '_train', made)
    return made

source = lru_cache(network)

@lru_cache
def tiny():
    "Digits with fewer pictures to look at after training"
    splits = digits().splits
    return digits().replaced(splits=dict(splits, valid=splits['valid'][::6].contiguous(), test=splits['test'][::10].contiguous()))

def quick(path=None, per_class=(1,), strategies=('scratch', 'head only'), seeds=2, task=None, src=None, **kwargs):
    kwargs = dict(n_epochs=2, progress=False, path=path) | kwargs
    return compare(task or digits(), src or source(), per_class, strategies, seeds=seeds, **kwargs)

# The store

@pytest.mark.training
def test_a_store_is_written_by_one_at_a_time(monkeypatch, tmp_path):
    def meddles(*args, **kwargs):
        with saying('another process', 'kept', error=RuntimeError): quick(tmp_path/'kept', task=tiny(), strategies=['head only'])
        return STRATEGIES['head only'](*args, **kwargs)
    monkeypatch.setitem(STRATEGIES, 'meddles', meddles)
    assert len(quick(tmp_path/'kept', task=tiny(), strategies=['meddles']).runs) == 2
    assert len(quick(tmp_path/'kept', task=tiny(), strategies=['meddles', 'scratch']).runs) == 4
    assert {o.name for o in tmp_path.iterdir()} == {'kept.json', 'kept.parquet'}

def test_only_what_is_missing_is_run(runs, tmp_path):
    path, have = tmp_path/'a b.c'/'kept', set()
    for options in (dict(), dict(seeds=3), dict(strategies=('head only', 'gradual')), dict(per_class=(5, 1)), dict(per_class=(0,)),
            dict(strategies=('gradual', 'scratch'), seeds=4, per_class=(0, 5)), dict(seeds=2)):
        start, wanted = len(runs), dict(per_class=(1,), strategies=('scratch', 'head only'), seeds=2) | options
        result = quick(path, **options)
        most = int(digits().counts()['train'].max())
        asked = set(product([n or most for n in wanted['per_class']], wanted['strategies'], range(wanted['seeds'])))
        assert sorted(runs.asked(start)) == sorted(asked - have)
        have |= asked
        assert set(zip(result.runs.per_class, result.runs.strategy, result.runs.seed)) == have and len(result.runs) == len(have)
    assert {o.name for o in path.parent.iterdir()} == {'kept.parquet', 'kept.json'}

def test_what_is_asked_twice_is_run_once(runs):
    result = quick(per_class=(1, 1), strategies=('scratch', 'scratch', 'head only'), rates=(1e-3, 1e-3))
    assert len(runs) == len({(o.per_class, o.strategy, o.seed, o.lr_max) for o in runs})
    assert len(result.runs) == 4 and len(result.trials) == 2

@pytest.mark.parametrize('rates', [None, (1e-3, 1e-2)])
@pytest.mark.parametrize('stop_at', [0, 1, 3, 5])
def test_interrupted_comparison_goes_on(runs, tmp_path, rates, stop_at):
    path, runs.stop_at = tmp_path/'kept', stop_at
    with pytest.raises(KeyboardInterrupt): quick(path, seeds=3, rates=rates)
    if stop_at:
        kept = load_comparison(path)
        repr(kept)
        assert len(kept.runs) + len(kept.trials) == stop_at
    runs.stop_at = None
    result, whole = quick(path, seeds=3, rates=rates), quick(seeds=3, rates=rates)
    n = 6 + 2 * len(rates or [])
    assert len(runs) == 2 * n
    assert_frame_equal(result.runs, whole.runs, check_dtype=False)
    if rates: assert_frame_equal(result.choices(), whole.choices())

@pytest.mark.training
def test_interrupted_training_goes_on(monkeypatch, tmp_path):
    calls = []
    def strategy(task, source, budget, *, seed, cbs):
        calls.append(seed)
        if len(calls) == 3: raise KeyboardInterrupt
        return STRATEGIES['head only'](task, source, budget, seed=seed, cbs=cbs)
    monkeypatch.setitem(STRATEGIES, 'mine', strategy)
    with pytest.raises(KeyboardInterrupt): quick(tmp_path/'kept', task=tiny(), strategies=['mine'], seeds=4, n_epochs=1)
    kept = load_comparison(tmp_path/'kept').runs
    result = quick(tmp_path/'kept', task=tiny(), strategies=['mine'], seeds=4, n_epochs=1)
    assert calls == [0, 1, 2, 2, 3] and result.runs.seed.tolist() == [0, 1, 2, 3]
    assert_frame_equal(result.runs[:2], kept)

def other_task(**changes):
    o = digits()
    return Task(**dict(name=o.name, images=o.images, labels=o.labels, vocab=o.vocab, splits=o.splits) | changes)

def other_labels():
    labels = digits().labels.clone()
    i, j = (int((labels == c).nonzero()[0]) for c in (3, 8))
    labels[[i, j]] = labels[[j, i]]
    return labels

others = dict(epochs=dict(n_epochs=3), batch=dict(bs=16), rates=dict(rates=(1e-3,)), trial_epochs=dict(trial_epochs=1),
    source=dict(src=network(seed=1)), width=dict(src=network(width=3)), network=dict(src=network('article_cnn')),
    pictures=dict(task=other_task(images=255 - digits().images)), labels=dict(task=other_task(labels=other_labels())),
    splits=dict(task=digits(1)), name=dict(task=other_task(name='other')), classes=dict(task=other_task(vocab=list('abcdefghij'))))

def bytes_of(folder): return {o.name: o.read_bytes() for o in folder.iterdir()}

@pytest.mark.parametrize('what', others)
def test_store_of_something_else_is_refused(runs, tmp_path, what):
    quick(tmp_path/'kept')
    before, n = bytes_of(tmp_path), len(runs)
    with saying('compare', str(tmp_path/'kept'), 'name another path'): quick(tmp_path/'kept', seeds=3, **others[what])
    assert bytes_of(tmp_path) == before and len(runs) == n

def test_other_numbers_of_labels_may_have_another_budget(runs, tmp_path):
    quick(tmp_path/'kept')
    quick(tmp_path/'kept', per_class=(5,), n_epochs=4)
    result = quick(tmp_path/'kept', per_class=(5,), n_epochs=4)
    assert result.facts['budgets']['1']['n_epochs'] == 2 and result.facts['budgets']['5']['n_epochs'] == 4 and len(runs) == 8

def test_store_is_begun_anew_only_if_all_is_well(runs, tmp_path):
    kept = quick(tmp_path/'kept').runs
    before = bytes_of(tmp_path)
    for wrong in (dict(n_epochs=0), dict(src=torch.nn.Linear(2, 2))):
        with saying('compare'): quick(tmp_path/'kept', resume=False, **wrong)
        assert bytes_of(tmp_path) == before
    again = quick(tmp_path/'kept', n_epochs=3, seeds=3, resume=False)
    assert len(kept) == 4 and again.runs.n_epochs.tolist() == [3] * 6 and again.facts['budgets']['1']['n_epochs'] == 3

def test_store_names_the_versions_of_all_its_runs(runs, tmp_path, monkeypatch):
    now = quick(tmp_path/'kept').facts['versions']
    for new in ('9.9', '9.9'):
        monkeypatch.setattr(comparison, 'version', lambda o: new)
        result = quick(tmp_path/'kept', seeds=3)
    assert result.facts['versions'] == f'{now}; {dict.fromkeys(now, "9.9")}'

def test_source_that_was_built_with_tuples_is_known_again(runs, tmp_path):
    model = network('timm/convnext_atto', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    for _ in range(2): quick(tmp_path/'kept', src=model)
    assert len(runs) == 4

def test_source_is_known_again_as_a_network(runs, tmp_path):
    for src in ('resnet9-letters', pretrained('resnet9-letters')): quick(tmp_path/'kept', src=src)
    assert len(runs) == 4

def spoil_json(edit):
    def f(folder):
        file = folder/'kept.json'
        file.write_text(edit(file.read_text()))
    return f

def spoil_table(edit):
    def f(folder): edit(pd.read_parquet(folder/'kept.parquet')).to_parquet(folder/'kept.parquet')
    return f

def cut(name):
    def f(folder): (folder/name).write_bytes((folder/name).read_bytes()[:-20])
    return f

spoilt = {'no json': lambda o: (o/'kept.json').unlink(),
    'cut json': cut('kept.json'), 'cut parquet': cut('kept.parquet'), 'empty parquet': lambda o: (o/'kept.parquet').write_bytes(b''),
    'no json in it': spoil_json(lambda o: 'runs'), 'a list': spoil_json(lambda o: '[]'), 'null': spoil_json(lambda o: 'null'),
    'no title': spoil_json(lambda o: o.replace('"title"', '"other"')), 'no facts': spoil_json(lambda o: '{"title": "a"}'),
    'bytes': lambda o: (o/'kept.json').write_bytes(b'\xff\xfe{}'), 'no column test': spoil_table(lambda o: o.drop(columns='test')),
    'no strategies': spoil_table(lambda o: o.drop(columns='strategy')), 'no seeds': spoil_table(lambda o: o.drop(columns='seed'))}

@pytest.mark.parametrize('how', spoilt)
def test_damaged_store_is_named(runs, tmp_path, how):
    quick(tmp_path/'kept')
    spoilt[how](tmp_path)
    before, n = bytes_of(tmp_path), len(runs)
    with saying(str(tmp_path/'kept')): quick(tmp_path/'kept', seeds=3)
    if how != 'no facts':   # `Comparison.save` writes that too
        with saying('load_comparison', str(tmp_path/'kept')): load_comparison(tmp_path/'kept')
    assert bytes_of(tmp_path) == before and len(runs) == n

def test_a_store_that_was_cut_off_before_its_first_run_is_begun(runs, tmp_path):
    quick(tmp_path/'kept')
    (tmp_path/'kept.parquet').unlink()
    with saying('load_comparison', 'kept'): load_comparison(tmp_path/'kept')
    assert len(quick(tmp_path/'kept').runs) == 4 and len(load_comparison(tmp_path/'kept').runs) == 4

def test_missing_store_is_named(tmp_path):
    with saying('load_comparison', str(tmp_path/'none')): load_comparison(tmp_path/'none')

def all_tables(o):
    yield from (o.table(), o.costs(), o.differences(), o.differences('head only', .8), o.learning(), o.time_to(), o.time_to(50.))
    yield from (o.by_class('head only', 1), o.confusions('head only', 1), o.runs)
    if len(o.trials): yield from (o.choices(), o.trials.drop(columns='predicted', errors='ignore'))

@pytest.mark.parametrize('rates', [None, (1e-3, 1e-2)])
def test_saved_and_loaded_is_the_same(runs, tmp_path, rates):
    result = quick(per_class=(1, 5), seeds=3, rates=rates)
    loaded = load_comparison(result.save(tmp_path/'kept'))
    for one, two in zip(all_tables(result), all_tables(loaded), strict=True): assert_frame_equal(one, two, check_dtype=False)
    assert (loaded.title, loaded.facts, loaded.summary()) == (result.title, result.facts, result.summary())
    load_comparison(tmp_path/'kept').save(tmp_path/'again')
    assert_frame_equal(load_comparison(tmp_path/'again').runs, loaded.runs)
    assert json.loads((tmp_path/'again.json').read_text()) == json.loads((tmp_path/'kept.json').read_text())

def test_what_others_measured_can_be_saved_too(tmp_path):
    result = simulated({('scratch', 1): [1, 2, 3], ('tuned', 1): [2, 4, 5]})
    assert_frame_equal(load_comparison(result.save(tmp_path/'kept')).differences(), result.differences())

@pytest.mark.filterwarnings('error::FutureWarning')
def test_nothing_that_pandas_will_drop_is_used(runs, tmp_path):
    runs.valid = lambda s, lr: np.nan if lr == 1 else 50.
    for _ in range(2): list(all_tables(quick(tmp_path/'kept', rates=(1e-3, 1), seeds=2 + _)))

@pytest.mark.training
def test_comparison_of_a_source_without_a_recipe():
    "A card may say how to feed a network and not how it was trained"
    result = quick(task=tiny(), strategies=['head only'], n_epochs=1)
    assert source().card['recipe'] is None and result.title == 'source to digits' and len(result.runs) == 2

def test_runs_that_could_not_be_written(runs, tmp_path, monkeypatch):
    quick(tmp_path/'runs', strategies=['head only'], n_epochs=1)
    before = bytes_of(tmp_path)
    def write_half(self, file, **kwargs):
        file.write(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(pd.DataFrame, 'to_parquet', write_half)
    with saying('No space left', error=OSError): quick(tmp_path/'runs', strategies=['head only'], n_epochs=1, seeds=3)
    assert bytes_of(tmp_path) == before

# The search

def test_search_is_the_same_for_all_strategies(runs):
    result = quick(per_class=(1, 5), strategies=list(STRATEGIES), rates=(1e-3, 1e-2, 1e-1), seeds=3, trial_epochs=1)
    trials = [o for o in runs if not o.test]
    assert trials == runs[:len(trials)] and len(trials) == 2 * 3 * len(STRATEGIES)
    assert {(o.per_class, o.strategy, o.lr_max) for o in trials} == set(product((1, 5), STRATEGIES, (1e-3, 1e-2, 1e-1)))
    assert {o.n_epochs for o in trials} == {1} and {o.n_epochs for o in runs if o.test} == {2}
    assert not {o.seed for o in trials} & {o.seed for o in runs if o.test}
    assert result.trials.accuracy.isna().all() and 'predicted' not in result.trials

def test_best_rate_on_valid_is_chosen(runs, tmp_path):
    best = dict(scratch=1e-2, gradual=1e-3)
    runs.valid = lambda s, lr: np.nan if lr == 1 else 90. if lr == best[s] else 80.
    result = quick(tmp_path/'kept', strategies=list(best), rates=(1e-3, 1e-2, 1))
    assert {(o.strategy, o.lr_max) for o in runs if o.test} == set(best.items())
    assert result.choices().chosen.droplevel(0).to_dict() == best
    n = len(runs)
    assert_frame_equal(quick(tmp_path/'kept', strategies=list(best), rates=(1e-3, 1e-2, 1)).runs, result.runs, check_dtype=False)
    assert len(runs) == n   # one that is NaN is not tried again either

cnn = lru_cache(lambda: network('article_cnn'))

@pytest.mark.training
def test_rate_that_diverges_is_not_chosen():
    result = quick(task=tiny(), strategies=['copy and tune'], src=cnn(), rates=(1e6, 1e-3), n_epochs=3)
    assert result.trials.set_index('lr_max').valid_accuracy.isna().to_dict() == {1e6: True, 1e-3: False}
    assert set(result.runs.lr_max) == {1e-3} and result.choices().loc[(1, 'copy and tune'), 'chosen'] == 1e-3

@pytest.mark.training
def test_no_rate_is_chosen_where_all_diverge():
    with saying('compare', 'copy and tune', '1 labels', '1000000.0', error=RuntimeError):
        quick(task=tiny(), strategies=['copy and tune'], src=cnn(), rates=(1e6, 1e7), n_epochs=3)

@pytest.mark.training
def test_rate_that_diverges_leaves_no_trace_in_the_runs(tmp_path):
    quick(tmp_path/'kept', rates=(1e-3, 1e30), task=tiny(), strategies=['scratch'])
    kept = load_comparison(tmp_path/'kept')
    assert kept.runs.notna().all(axis=None) and kept.trials.n_epochs.eq(2).all() and 'bs' not in kept.trials

@pytest.mark.training
def test_run_that_diverges_is_named(monkeypatch):
    def strategy(task, source, budget, *, seed, cbs):
        return STRATEGIES['copy and tune'](task, source, replace(budget, lr_max=1e6 if seed else 1e-3), seed=seed, cbs=cbs)
    monkeypatch.setitem(STRATEGIES, 'mine', strategy)
    with saying('compare', 'strategy mine', 'seed 1', 'StopOnNaN', error=RuntimeError):
        quick(task=tiny(), strategies=['mine'], src=cnn(), n_epochs=3)

# What a run does

class Log(Quiet):
    "Every batch: its split and a hash of pictures and labels; and the FLOPs of all training"
    run_train = run_valid = True
    def __init__(self, who, wait): self.who, self.wait, self.batches, self.trained, self.flops, self.n_steps = who, wait, [], [], 0, 0
    def before_batch(self):
        self.wait(self.learn)
        ds = getattr(self.dl, 'dataset', None)
        seen = zlib.crc32(self.x.contiguous().cpu().numpy().tobytes() + self.y.cpu().numpy().tobytes())
        self.batches.append((getattr(ds, 'split', None), seen))
        if not self.training: return
        self.trained.append(seen)
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()
    def after_step(self):
        self.counter.__exit__(None, None, None)
        self.flops, self.n_steps = self.flops + self.counter.get_total_flops(), self.n_steps + 1
    def of(self, split): return [seen for s, seen in self.batches if s == split]
    def splits(self): return [s for i, (s, _) in enumerate(self.batches) if not i or s != self.batches[i-1][0]]

def logged(monkeypatch, wait=lambda learn: None):
    logs, real = [], comparison._train
    def train(run, *args):
        logs.append(Log(run, wait))
        return real(run, *args)
    monkeypatch.setattr(comparison, '_train', train)
    monkeypatch.setattr(comparison, 'Quiet', lambda: logs[-1])
    return logs

@pytest.fixture(scope='module')
def whole():
    "All strategies, in three epochs of two steps: the comparison, and a log of each run"
    with pytest.MonkeyPatch.context() as m:
        logs = logged(m)
        result = quick(task=tiny(), strategies=list(STRATEGIES), n_epochs=3, bs=4, n_looks=2, rates=(1e-3,), trial_epochs=2)
    return result, logs

def of_runs(logs): return [o for o in logs if o.who.test]

@pytest.mark.training
def test_batches_are_the_same_for_all_strategies(whole):
    own = {seed: [tuple(o.trained) for o in of_runs(whole[1]) if o.who.seed == seed] for seed in (0, 1)}
    for o in own.values(): assert len(o) == len(STRATEGIES) and len(set(o)) == 1 and len(set(o[0])) == 6
    assert not set(own[0][0]) & set(own[1][0])

@pytest.mark.training
def test_every_strategy_trains_for_its_epochs(whole):
    result, logs = whole
    assert [o.n_steps for o in of_runs(logs)] == [6] * 2 * len(STRATEGIES)
    assert set(result.runs.n_epochs) == {3} and set(result.runs.n_steps) == {6}
    assert [o.n_steps for o in logs if not o.who.test] == [4] * len(STRATEGIES)

@pytest.mark.training
def test_test_split_is_looked_at_once_and_last(whole):
    _, logs = whole
    assert len(of_runs(logs)) == 2 * len(STRATEGIES)
    for o in of_runs(logs):
        assert o.splits().count('test') == 1 and o.splits()[-1] == 'test' and len(set(o.of('test'))) == len(o.of('test'))
    for o in logs:
        if not o.who.test: assert set(o.splits()) == {'train', 'valid'}

@pytest.mark.training
def test_valid_is_looked_at_after_the_stated_epochs(whole):
    result, logs = whole
    assert all(o == [2, 3] for o in result.runs.curve_epochs)
    for o in of_runs(logs): assert o.splits() == ['train', 'valid'] * 2 + ['test']
    assert [o[-1] for o in result.runs.curve_accuracy] == result.runs.valid_accuracy.tolist()

@pytest.mark.training
def test_flops_are_those_of_all_training(whole):
    result, logs = whole
    counted = {(o.who.strategy, o.who.seed): o.flops for o in of_runs(logs)}
    metered = result.runs.set_index(['strategy', 'seed']).flops
    assert metered.to_dict() == pytest.approx(counted, rel=1e-3)
    cost = metered.groupby('strategy').first()
    assert cost['head only'] < cost['gradual'] < cost['head first'] < cost['copy and tune'] == cost['discriminative']
    assert cost['scratch'] == cost['partial depth'] == cost['copy and tune']
    assert all(o[-1] == f and o[0] < f for o, f in zip(result.runs.curve_flops, result.runs.flops))

@pytest.mark.training
def test_time_is_that_of_training(monkeypatch):
    "By a clock that each batch of validation moves on by 100 s, then each of training"
    real, passed = time.perf_counter, []
    monkeypatch.setattr(time, 'perf_counter', lambda: real() + 100 * len(passed))
    for training, fits in ((False, lambda s: 0 < s < 100), (True, lambda s: s >= 2 * 2 * 100)):
        with monkeypatch.context() as m:
            logged(m, lambda learn: passed.append(learn) if learn.training == training else None)
            row = run_one('head first', tiny(), source(), Budget(n_epochs=2, bs=5), per_class=1)
        assert fits(row['time_s']) and row['curve_time_s'][-1] == row['time_s']

@pytest.mark.training
@pytest.mark.parametrize('n_epochs, n_looks, at', [(1, 5, [1]), (3, 5, [1, 2, 3]), (5, 5, [1, 2, 3, 4, 5]), (5, 2, [2, 5]), (4, 1, [4])])
def test_looks_are_evenly_spread(n_epochs, n_looks, at):
    row = run_one('gradual', tiny(), source(), Budget(n_epochs=n_epochs, bs=10, n_looks=n_looks), per_class=1)
    assert row['curve_epochs'] == at and row['n_epochs'] == row['n_steps'] == n_epochs and len(row['curve_accuracy']) == len(at)

@pytest.mark.training
def test_looks_change_nothing():
    rows = [run_one('gradual', tiny(), source(), Budget(n_epochs=3, bs=10, n_looks=n), per_class=1) for n in (1, 3)]
    assert rows[0]['accuracy'] == rows[1]['accuracy'] and (rows[0]['predicted'] == rows[1]['predicted']).all()

@some(50)
@given(st.integers(1, 500), st.integers(1, 300), st.integers(1, 600))
def test_epochs_make_at_least_the_steps(n, n_steps, bs):
    task = SimpleNamespace(splits=dict(train=range(n)))
    epochs, steps = epochs_for(task, n_steps, bs), n // min(n, bs)
    assert epochs * steps >= n_steps > (epochs - 1) * steps

@pytest.mark.training
@pytest.mark.parametrize('kind', ['resnet9', 'article_cnn'])
def test_partial_depth_carries_the_first_half(kind):
    src = network(kind)
    src.arch = dict(src.arch)
    learn = STRATEGIES['partial depth'](digits().subset(1), read_source(src), Budget(n_epochs=1, bs=10), seed=0, cbs=[Quiet()])
    rows = learn.record.receipt.rows
    carried = set(rows.tensor[rows.carried > 0])
    n = len(stages(src)) // 2
    assert carried == tensors_of(learn.model, [s.name for s in stages(src)][:n]) - {
        o for o in learn.model.state_dict() if 'num_batches' in o and o not in carried}

@pytest.mark.training
def test_scratch_carries_nothing_and_has_the_same_network():
    train, budget = STRATEGIES['scratch'], Budget(n_epochs=1, bs=10)
    one, two = (train(digits().subset(1), read_source(network(seed=s)), budget, seed=0, cbs=[Quiet()]).model for s in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert count_params(one.body) == count_params(network().body)

@pytest.mark.training
def test_one_run_is_a_row_of_the_comparison(whole):
    row = run_one('gradual', tiny(), source(), Budget(n_epochs=3, bs=4, lr_max=np.float64(1e-3), n_looks=2), per_class=1, seed=1)
    same = whole[0].runs.query('strategy == "gradual" and seed == 1').iloc[0]
    assert set(row) == set(same.index) and row['accuracy'] == same.accuracy and (row['predicted'] == same.predicted).all()
    assert row['curve_accuracy'] == same.curve_accuracy and row['flops'] == same.flops

@pytest.mark.training
@pytest.mark.filterwarnings('ignore:image_folder')
def test_pictures_in_files_are_compared_too(monkeypatch, tmp_path):
    task = image_folder(write_folder(tmp_path/'pets', 30), in_memory=False)
    logs = logged(monkeypatch)
    result = quick(task=task, strategies=['scratch', 'head first'], per_class=(3,), bs=2)
    trained = [[o.trained for o in logs if o.who.seed == s] for s in (0, 1)]
    for one, two in trained: assert one == two and len(one) == 6
    result.show_examples(task, 'head first', 3, n=2)

@pytest.mark.training
def test_batches_of_files_are_the_same_beside_dropout(monkeypatch, tmp_path):
    "Dropout draws from torch's own generator, augmentation must not"
    task = image_folder(write_folder(tmp_path/'pets', 30), in_memory=False)
    source = create_network('timm/convnext_atto', 5, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=.2)
    source.card = dict(mean=None, std=None, recipe=None)
    monkeypatch.setattr('nbtransfer.finetuning.known_input', lambda arch: None)   # all are normalised by the task's own numbers
    logs = logged(monkeypatch)
    quick(task=task, src=source, strategies=['scratch', 'head only'], per_class=(3,), bs=2)
    for seed in (0, 1):
        one, two = [o.trained for o in logs if o.who.seed == seed]
        assert one == two and len(one) == 6

# Several at once

def same(one, two):
    "Runs that may differ in the last digits of a float"
    keys = ['strategy', 'per_class', 'seed', 'n_epochs', 'n_steps', 'flops', 'lr_max']
    assert_frame_equal(one.runs[keys], two.runs[keys])
    agree = [(a == b).mean() for a, b in zip(one.runs.predicted, two.runs.predicted)]
    assert min(agree) > .98 and np.allclose(one.runs.accuracy, two.runs.accuracy, atol=2)

alone = lru_cache(lambda: quick(strategies=('scratch', 'gradual'), rates=(1e-3, 1e-2)))

@pytest.mark.process
@pytest.mark.training
def test_runs_side_by_side_are_the_same(tmp_path):
    same(quick(tmp_path/'kept', strategies=('scratch', 'gradual'), rates=(1e-3, 1e-2), n_jobs=2), alone())
    same(load_comparison(tmp_path/'kept'), alone())

class Elsewhere(ThreadingBackend):
    "Stands for a cluster's"
    used = 0
    def submit(self, func, callback=None):
        Elsewhere.used += 1
        return super().submit(func, callback)

joblib.register_parallel_backend('elsewhere', Elsewhere)

@pytest.mark.training
def test_another_backend_can_be_chosen():
    "Even one of threads, such as Dask's: they share torch's random numbers, the runs must not"
    with joblib.parallel_config(backend='elsewhere', n_jobs=2): same(quick(strategies=('scratch', 'gradual'), rates=(1e-3, 1e-2)), alone())
    assert Elsewhere.used

@pytest.mark.training
def test_backend_that_gives_all_at_the_end():
    "As Ray's does, which is made of that of multiprocessing"
    class AtTheEnd(ThreadingBackend): supports_return_generator = False
    joblib.register_parallel_backend('at the end', AtTheEnd)
    with joblib.parallel_config(backend='at the end', n_jobs=1): same(quick(strategies=('scratch', 'gradual'), rates=(1e-3, 1e-2)), alone())

@pytest.mark.training
def test_failure_elsewhere_is_named_and_what_was_finished_kept(tmp_path, monkeypatch):
    def strategy(task, source, budget, *, seed, cbs):
        if seed == 2: raise RuntimeError('on purpose')
        return STRATEGIES['head only'](task, source, budget, seed=seed, cbs=cbs)
    monkeypatch.setitem(STRATEGIES, 'mine', strategy)
    with joblib.parallel_config(backend='elsewhere', n_jobs=1):
        with saying('compare', 'strategy mine', 'seed 2', 'on purpose', error=RuntimeError):
            quick(tmp_path/'kept', task=tiny(), strategies=['mine'], seeds=3, n_epochs=1)
    assert len(load_comparison(tmp_path/'kept').runs) == 2

# Classes

def guessed(truth, guesses, k, per_class=1):
    "A comparison with these predictions, `{strategy: (seeds,n)}`"
    rows = [dict(strategy=s, per_class=per_class, seed=i, accuracy=100 * (g == truth).mean(), predicted=g.astype(np.int16))
        for s, o in guesses.items() for i, g in enumerate(o)]
    return Comparison(pd.DataFrame(rows), 'made up', None, dict(labels=truth.tolist(), vocab=[f'c{i}' for i in range(k)]))

@st.composite
def predictions(draw):
    k, m, n = draw(st.integers(2, 4)), draw(st.integers(2, 4)), draw(st.integers(5, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    truth = rng.permutation(np.r_[np.arange(k), rng.integers(0, k, n)])
    return truth, {s: rng.integers(0, k, (m, len(truth))) for s in ('scratch', 'tuned')}, k

@some(15)
@given(predictions())
def test_classes_are_those_of_scikit_learn(made):
    truth, guesses, k = made
    result = guessed(*made)
    table = result.by_class('tuned', 1)
    recalls = {s: 100 * np.array([recall_score(truth, g, average=None, labels=range(k)) for g in o]) for s, o in guesses.items()}
    for c in range(k):
        row, (a, b) = table.loc[f'c{c}'], (recalls[s][:, c] for s in ('scratch', 'tuned'))
        assert np.allclose([row.scratch, row.tuned], [a.mean(), b.mean()])
        assert np.allclose([row.difference, row.low, row.high], paired_interval(a, b, step=100 / (truth == c).sum()))
    assert table.difference.is_monotonic_increasing and len(table) == k
    whole = {s: sum(confusion_matrix(truth, g, labels=range(k)) for g in o) / len(o) for s, o in guesses.items()}
    shares = {s: 100 * o / np.bincount(truth)[:, None] for s, o in whole.items()}
    pairs = result.confusions('tuned', 1, n=k * k)
    for o in pairs.itertuples(index=False):
        i, j = int(o[0][1:]), int(o[1][1:])
        if i != j: assert np.allclose(o[2:5], [shares['scratch'][i, j], shares['tuned'][i, j], (shares['tuned'] - shares['scratch'])[i, j]])
    assert (pairs['class'] != pairs['taken for']).all()   # what is right is no mistake
    worst = np.maximum(pairs.scratch, pairs.tuned)
    assert worst.is_monotonic_decreasing and (worst > 0).sum() == (np.maximum(*shares.values()) * (1 - np.eye(k)) > 0).sum()

def test_classes_are_compared_by_seed():
    rng = np.random.default_rng(0)
    result = guessed(np.arange(6) % 2, {s: rng.integers(0, 2, (3, 6)) for s in ('scratch', 'tuned')}, 2)
    mixed = Comparison(shuffled(result.runs, np.random.default_rng(0)), '', None, result.facts)
    assert_frame_equal(mixed.by_class('tuned', 1), result.by_class('tuned', 1))

def test_classes_need_predictions():
    "Of runs that are there, with labels to hold them against: a message each"
    two = {('scratch', 1): [1, 2], ('tuned', 1): [2, 3]}
    for result, fault in ((simulated(two), ('no labels of the test pictures', 'predictions')),
            (guessed(np.arange(4) % 2, dict(scratch=np.zeros((2, 4))), 2), ("no run of 'tuned' with 1 label", "[('scratch', 1)]")),
            (simulated(two, facts=dict(labels=[0, 1], vocab=['a', 'b'])), ('no predictions',))):
        for f in (result.by_class, result.confusions):
            with saying('Comparison', *fault): f('tuned', 1)

def test_examples_need_predictions():
    truth = digits().labels[digits().splits['test']].tolist()
    for facts, fault in ((None, 'no labels of the test pictures'), (dict(labels=truth, vocab=digits().vocab), 'no predictions')):
        result = Comparison(simulated({('scratch', 1): [1, 2], ('tuned', 1): [2, 3]}).runs, '', None, facts)
        with saying('Comparison', fault): result.show_examples(digits(), 'tuned', 1)

def digits_guessed():
    "Of test picture 7 and 11 `tuned` is always right and `scratch` never; of 3 and 4 the other way round"
    truth = digits().labels[digits().splits['test']].numpy()
    wrong, guesses = (truth + 1) % 10, {s: np.tile(truth, (3, 1)) for s in ('scratch', 'tuned')}
    guesses['scratch'][:, [7, 11]] = wrong[[7, 11]]
    guesses['tuned'][:, [3, 4]] = wrong[[3, 4]]
    guesses['scratch'][0, 20] = wrong[20]
    return Comparison(guessed(truth, guesses, 10).runs, '', None, dict(labels=truth.tolist(), vocab=digits().vocab)), truth

def test_examples_are_those_that_differ():
    result, truth = digits_guessed()
    for helped, places in ((True, (7, 11)), (False, (3, 4))):
        axs = result.show_examples(digits(), 'tuned', 1, helped=helped, n=2)
        for ax, i in zip(axs, places, strict=True):
            assert (ax.images[0].get_array() == digits().images[digits().splits['test'][i]].numpy()).all()
            right, wrong = str(truth[i]), str((truth[i] + 1) % 10)
            assert ax.get_title().split('\n') == [right, f'scratch: {wrong if helped else right}', f'tuned: {right if helped else wrong}']

def test_examples_that_differ_equally_are_of_many_classes():
    "Test pictures lie class by class, so the first of those that differ equally would all be of one class"
    task = digits()
    truth = np.sort(task.labels[task.splits['test']].numpy())
    order = torch.cat([task.splits['test'][task.labels[task.splits['test']] == k] for k in range(10)])
    by_class = other_task(images=task.images, labels=task.labels, splits={**task.splits, 'test': order})
    guesses = {'scratch': np.tile((truth + 1) % 10, (3, 1)), 'tuned': np.tile(truth, (3, 1))}
    guesses['tuned'][0, truth < 4] = (truth[truth < 4] + 1) % 10
    result = Comparison(guessed(truth, guesses, 10).runs, '', None, dict(labels=truth.tolist(), vocab=by_class.vocab))
    shown = [ax.get_title().split('\n')[0] for ax in result.show_examples(by_class, 'tuned', 1, n=8) if ax.images]
    assert shown == ['4', '5', '6', '7', '8', '9', '4', '5']

def test_no_example_is_shown_that_does_not_differ():
    "Two pictures are helped in all seeds and one in one; asked for more than differ, the rest are not dressed up as examples"
    result, _ = digits_guessed()
    titles = [ax.get_title().split('\n') for ax in result.show_examples(digits(), 'tuned', 1, n=8) if ax.images]
    assert len(titles) <= 3

def test_examples_of_another_task_are_refused():
    result, _ = digits_guessed()
    for task in (digits(1), other_task(vocab=list('abcdefghij'))):
        with saying('Comparison.show_examples', 'task that was compared on', task.name): result.show_examples(task, 'tuned', 1)

# Costs and curves

def test_time_to_an_accuracy_known_by_hand():
    rows = [dict(strategy=s, per_class=1, seed=i, accuracy=50., valid_accuracy=c[-1], curve_epochs=[1, 2, 3], curve_time_s=[1., 2., 3.], curve_cpu_s=[1., 2., 3.],
        curve_flops=[1e12, 2e12, 3e12], curve_accuracy=c) for s, own in dict(scratch=[[10, 20, 30], [10, 30, 50], [20, 40, 40]],
        fast=[[45, 50, 60], [30, 41, 60], [50, 50, 50]], slow=[[1, 2, 3], [1, 2, 39], [1, 2, 90]]).items() for i, c in enumerate(own)]
    found = Comparison(pd.DataFrame(rows)).time_to().droplevel(0)
    assert found.goal.tolist() == [40] * 3 and found.reached.round(2).to_dict() == dict(scratch=.67, fast=1, slow=.33)
    assert found.epochs.fillna(0).to_dict() == dict(scratch=3, fast=1, slow=0) and found.tflops['fast'] == 1
    with saying('time_to', "'none'"): Comparison(pd.DataFrame(rows)).time_to(baseline='none')
    with saying('plot_learning', "'steps'"): Comparison(pd.DataFrame(rows)).plot_learning(1, 'steps')
    with saying('plot_learning', '7'): Comparison(pd.DataFrame(rows)).plot_learning(7)

def test_table_keeps_the_order_of_strategies_and_labels(runs):
    result = quick(per_class=(5, 1, 20), strategies=('gradual', 'scratch', 'copy and tune'))
    assert list(result.table().index) == ['scratch', 'copy and tune', 'gradual'] and list(result.table()) == [1, 5, 20]
    assert 'nan' not in repr(simulated({('scratch', 1): [70.]}))

@pytest.mark.training
def test_repeated_runs_are_the_same(whole):
    again = quick(task=tiny(), strategies=['head first'], n_epochs=3, bs=4, n_looks=2, rates=(1e-3,), trial_epochs=2)
    own = whole[0].runs[whole[0].runs.strategy == 'head first']
    assert own.accuracy.tolist() == again.runs.accuracy.tolist() and own.curve_accuracy.tolist() == again.runs.curve_accuracy.tolist()

# Bad input

bad = [(dict(bs=0), 'bs'), (dict(bs=-1), 'bs'), (dict(n_epochs=0), 'n_epochs'), (dict(n_epochs=-1), 'epochs'), (dict(n_epochs=1.5), 'epochs'),
    (dict(n_epochs=None, n_steps=0), 'n_steps'), (dict(n_looks=0), 'n_looks'), (dict(per_class=()), 'labels'),
    (dict(per_class=(-1,)), '-1'), (dict(per_class=(1, 98)), '98 per class asked for; class 8 has 97'), (dict(strategies=()), 'strategies'),
    (dict(strategies=('magic',)), "['magic']"), (dict(src='resnet9-lettres'), "'resnet9-lettres'"), (dict(seeds=1), '(got 1)'), (dict(seeds=0), 'seeds'), (dict(seeds=1001, rates=(1e-3,)), 'seeds'),
    (dict(rates=(0.,)), 'rates'),
    (dict(rates=(-1e-3,)), 'rates'), (dict(rates=(np.nan, 1e-3)), 'rates'), (dict(rates=(np.inf,)), 'rates'),
    (dict(rates=(1e-3,), trial_epochs=0), 'trial_epochs'), (dict(rates=(1e-3,), trial_epochs=-1), 'epochs')]

@pytest.mark.parametrize('what, parts', [(dict(strategy='magic'), ['run_one', 'magic']), (dict(per_class=98), ['98']),
    (dict(bs=0), ['run_one', 'bs']), (dict(lr_max=-1.), ['run_one', 'lr_max']), (dict(n_epochs=0), ['run_one', 'n_epochs']),
    (dict(n_steps=0), ['run_one', 'n_steps']), (dict(n_looks=0), ['run_one', 'n_looks'])])
def test_one_run_with_bad_options_is_refused(runs, what, parts):
    asked = dict(strategy='scratch', per_class=1, bs=10) | what
    strategy, per_class = asked.pop('strategy'), asked.pop('per_class')
    with saying(*parts): run_one(strategy, digits(), source(), Budget(**asked), per_class=per_class)
    assert not runs

def test_all_labels_of_uneven_classes_may_be_asked_for_by_number(runs):
    task = digits()
    kept = task.splits['train'][1:]
    uneven = other_task(splits=dict(task.splits, train=kept))
    n = int(uneven.counts()['train'].max())
    assert uneven.counts()['train'].min() < n and quick(task=uneven, per_class=(n,)).runs.per_class.tolist() == [n] * 4

@pytest.mark.parametrize('options, name', [(dict(per_class=1), '`per_class` must be a tuple of numbers, such as (1,)'),
    (dict(per_class='15'), '`per_class`'), (dict(per_class=None), '`per_class`'), (dict(rates=.01), '`rates` must be a tuple of numbers, such as (0.01,)')])
def test_one_number_is_no_tuple(runs, options, name):
    with saying('compare', name, error=TypeError): quick(**options)
    assert not runs

@pytest.mark.parametrize('options, name', bad, ids=lambda o: ', '.join(f'{k} {v}' for k, v in o.items()) if isinstance(o, dict) else o)
def test_bad_options_are_refused_before_anything_runs(runs, tmp_path, options, name):
    runs.stop_at, runs.error = 0, AssertionError('it runs')
    with saying(name): quick(tmp_path/'kept', **options)
    assert not list(tmp_path.iterdir())

def test_arrays_are_as_good_as_tuples(runs, tmp_path):
    quick(tmp_path/'kept', per_class=np.array([1, 5]), rates=np.geomspace(1e-3, 1e-2, 2), n_epochs=np.int64(2), seeds=np.int64(2))
    n = len(runs)
    quick(tmp_path/'kept', per_class=(1, 5), rates=(.001, .01))
    assert n == len(runs) == 16

@pytest.mark.training
@pytest.mark.parametrize('strategy', [
    lambda task, source, budget, seed, cbs: STRATEGIES['head only'](task, source, budget, seed=seed, cbs=[Quiet()]),
    lambda task, source, budget, seed, cbs: None,
    lambda task, source, budget, seed, cbs: STRATEGIES['head only'](task, source, replace(budget, n_epochs=2), seed=seed, cbs=cbs)],
    ids=['without callbacks', 'without a learner', 'fewer epochs'])
def test_strategy_that_does_not_do_its_part_is_named(monkeypatch, strategy):
    monkeypatch.setitem(STRATEGIES, 'mine', strategy)
    with pytest.raises((ValueError, TypeError, RuntimeError), match='mine'): quick(task=tiny(), strategies=['mine'], n_epochs=3)

# The report

class Page(HTMLParser):
    "Tags that were opened and not closed, all tags, and all addresses"
    void = {'meta', 'img', 'br', 'hr', 'link', 'input'}
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ''
        self.feed(text)
        self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'action')]
        if tag not in self.void: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data

hostile = '<script>document.title = "run"</script> & "co" to digits'

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(comparison, '_train', Runs())
        result = quick(per_class=(1, 5), strategies=('scratch', 'head only', 'gradual'), seeds=3, rates=(1e-3, 1e-2))
    result.title, result.facts['vocab'] = hostile, [f'<b>{c}</b>' for c in range(10)]
    result.facts['source']['label'] = '<img src=x onerror="document.title = 1">'
    return result, result.report(tmp_path_factory.mktemp('page')/'folder'/'report.html')

def test_report_is_whole_and_loads_nothing(page):
    result, path = page
    text = path.read_text(encoding='utf-8')
    found = Page(text)
    assert not found.open and text.startswith('<!doctype html>') and not {'script', 'iframe', 'link', 'b'} & set(found.tags)
    assert found.links and all(o.startswith('data:image/png;base64,') for o in found.links)
    assert not re.search(r'https?:|//\w+\.\w|@import|url\(', re.sub('base64,[^"]*', '', text))
    for said in (hostile, *result.summary(), '<b>3</b>', 'not distinguishable'): assert said in found.text
    assert not re.search(r'\b(nan|NaN|None)\b', found.text) and list(path.parent.iterdir()) == [path]

@pytest.mark.browser
def test_report_opens_in_a_browser(page, tmp_path):
    browser = find_browser()
    look = tmp_path/'look.html'
    probe = ('<script>addEventListener("load", () => { const all = [...document.images];'
        'document.body.dataset.seen = all.length + " " + all.filter(o => o.complete && o.naturalWidth > 100).length })</script>')
    look.write_text(page[1].read_text(encoding='utf-8').replace('</body>', f'{probe}</body>'), encoding='utf-8')
    code, said = run([browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--enable-logging=stderr', '--v=0',
        '--host-resolver-rules=MAP * ~NOTFOUND', f'--user-data-dir={tmp_path/"profile"}', '--dump-dom', look.as_uri()], tmp_path)
    assert code == 0 and 'CONSOLE' not in said
    n = page[1].read_text(encoding='utf-8').count('<img ')
    assert n >= 4 and f'data-seen="{n} {n}"' in said and '<title>&lt;script&gt;' in said

def test_report_of_another_baseline(runs, tmp_path):
    result = quick(strategies=('head only', 'gradual'))
    with saying('report', 'scratch'): result.report(tmp_path/'a.html')
    text = result.report(tmp_path/'a.html', 'head only').read_text(encoding='utf-8')
    goal = result.time_to(baseline='head only').goal.iloc[0]
    table = text[text.index('Cost up to the accuracy that head only ends with'):]
    assert f'<td>{goal:.2f}'.rstrip('0') in table[:table.index('</table>')]

def test_report_of_an_interrupted_comparison(runs, tmp_path):
    result = quick(per_class=(1, 5), strategies=('scratch', 'head only', 'gradual'), seeds=3, rates=(1e-3, 1e-2))
    result.runs = result.runs.query('per_class == 1 or strategy != "head only" and seed < 2 or seed == 0')
    text = Page(result.report(tmp_path/'a.html').read_text()).text
    assert 'difference, gradual, 5 labels' in text
    result.runs = result.runs.query('per_class == 1 or seed == 0')
    assert ' difference, ' not in Page(result.report(tmp_path/'a.html').read_text()).text
    result.runs = result.runs.iloc[:0]
    with saying('report', 'no runs', 'scratch'): result.report(tmp_path/'a.html')

def test_report_shows_the_rates_that_were_chosen(page):
    result, path = page
    table = path.read_text(encoding='utf-8').partition('Search for the rate')[2].partition('</table>')[0]
    assert list(map(float, re.findall(r'<td>([^<]*)</td>\s*</tr>', table))) == result.choices().chosen.tolist()

def test_report_of_one_strategy(runs, tmp_path): Page(quick(strategies=['scratch']).report(tmp_path/'a.html').read_text())

def test_report_where_a_strategy_lacks_the_most_labels(runs, tmp_path):
    result = quick(per_class=(1, 5))
    result.runs = result.runs[(result.runs.per_class == 1) | (result.runs.strategy == 'scratch')]
    Page(result.report(tmp_path/'a.html').read_text())

def test_report_of_what_others_measured(tmp_path):
    Page(simulated({('scratch', 1): [1, 2, 3], ('tuned', 1): [2, 4, 5]}).report(tmp_path/'a.html').read_text())

def test_title_with_dollars_is_no_formula(tmp_path):
    result = simulated({('scratch', 1): [1, 2], ('tuned', 1): [2, 4]})
    result.title = 'from $5 to \\frac$'
    for f in (result.plot, result.plot_differences): f().figure.savefig(tmp_path/'a.png')

# Metrics beyond accuracy

@some(40)
@given(st.integers(1, 400), st.data(), st.floats(.5, .999))
def test_wilson_interval_is_that_of_the_formula(n, data, level):
    k = data.draw(st.integers(0, n))
    z, share = stats.norm.ppf((1 + level) / 2), k / n
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(k, n, level)
    assert np.allclose((low, high), np.array([centre - half, centre + half]) / (1 + z**2 / n), atol=1e-9)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1

@pytest.mark.parametrize('k, n, said', [(1, 0, '1 of 0'), (3, 2, '3 of 2'), (-1, 2, '-1 of 2'), (.5, 2, '0.5 of 2'), (np.nan, 2, 'nan of 2')])
def test_a_share_that_was_not_counted_has_no_interval(k, n, said):
    with saying('wilson_interval', said): wilson_interval(k, n)

@st.composite
def guesses_with_chances(draw):
    k, n = draw(st.integers(2, 5)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return rng.integers(0, k, n), rng.dirichlet(np.ones(k), n), [f'c{i}' for i in range(k)]

@some(60)
@given(guesses_with_chances())
def test_scores_are_those_of_scikit_learn(made):
    labels, probs, vocab = made
    predicted, present = probs.argmax(1), np.unique(labels)
    found = classification_scores(torch.tensor(labels), torch.tensor(probs), vocab)
    assert np.isclose(found['accuracy'], 100 * (predicted == labels).mean())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of predicted classes that no picture has
        assert np.isclose(found['balanced_accuracy'], 100 * balanced_accuracy_score(labels, predicted))
    each = confusion_matrix(labels, predicted, labels=range(len(vocab)))
    f1 = 2 * each.diagonal() / np.maximum(each.sum(0) + each.sum(1), 1)
    assert np.isclose(found['macro_f1'], 100 * f1[present].mean())
    assert ('auroc' in found) == (len(vocab) == 2)
    of_classes = classification_scores(labels, predicted, vocab)   # from predictions all but AUROC
    assert of_classes == {name: score for name, score in found.items() if name != 'auroc'}
    if len(vocab) == 2:
        won = [(b > a) + .5 * (b == a) for a in probs[labels == 0, 1] for b in probs[labels == 1, 1]]
        assert np.isclose(found['auroc'], 100 * np.mean(won)) if won else np.isnan(found['auroc'])
    table = scores_by_class(labels, probs, vocab, .9)
    assert list(table.index) == vocab and table.pictures.sum() == len(labels)
    for i in range(len(vocab)):
        row, n = table.iloc[i], (labels == i).sum()
        if not n: assert np.isnan([row.accuracy, row.low, row.high]).all()
        else: assert np.allclose((row.low, row.high), 100 * np.array(wilson_interval(each[i, i], n, .9))) and np.isclose(row.f1, 100 * f1[i])
        if each[:, i].sum(): assert np.isclose(row.precision, 100 * each[i, i] / each[:, i].sum())
        else: assert np.isnan(row.precision)

@pytest.mark.parametrize('labels, probs, said', [([], [], 'at least one'), ([0, 1], np.ones((3, 2)), '(3, 2)'), ([0, 1], np.ones((2, 3)), '(2, 3)'),
    ([0, 2], [0, 1], '`labels` must hold class ids from 0 to 1 (got 2)'), ([0, 1], [0, -1], '(got -1)'), ([0, 1], [[.5, .5], [np.nan, 1]], 'finite'),
    ([[0], [1]], [0, 1], 'labels of (2, 1)'), (3, 3, 'at least one')])
def test_scores_of_what_does_not_fit_are_refused(labels, probs, said):
    for how in (classification_scores, scores_by_class):
        with saying(how.__name__, said): how(labels, probs, ['a', 'b'])

def test_half_precision_on_any_device_is_scored():
    probs = torch.tensor([[.9, .1], [.2, .8]], dtype=torch.bfloat16, requires_grad=True)
    assert set(classification_scores(torch.tensor([0, 1]), probs, ['a', 'b']).values()) == {100.}

def by_metric(result, metric): return result.scores().groupby('strategy')[metric].mean()

def test_metrics_of_a_comparison_come_from_its_predictions():
    truth = np.array([0] * 8 + [1] * 2)
    always, even = np.zeros((2, 10), int), np.array([[0] * 6 + [1] * 4, [0] * 5 + [1] * 5])
    result = guessed(truth, {'scratch': always, 'tuned': even}, 2)
    assert by_metric(result, 'balanced_accuracy')['scratch'] == 50 and by_metric(result, 'accuracy')['scratch'] == 80
    assert list(result.scores()) == ['strategy', 'per_class', 'seed', 'accuracy', 'balanced_accuracy', 'macro_f1']
    assert result.table('balanced_accuracy').loc['scratch', 1] == '50.0 ± 0.0' and result.table().loc['scratch', 1] == '80.0 ± 0.0'
    accuracy, balanced = (result.differences(metric=o).difference.item() for o in ('accuracy', 'balanced_accuracy'))
    assert np.isclose(accuracy, -5) and np.isclose(balanced, 100 * (6 / 8 + 5 / 8) / 4 + 50 - 50)
    assert 'scratch in balanced accuracy: tuned +' in result.summary(metric='balanced_accuracy')[0]
    assert result.plot(metric='macro_f1').get_ylabel() == 'test macro F1 (%)'
    assert 'macro F1' in result.plot_differences(metric='macro_f1').get_xlabel()
    assert_frame_equal(result.class_scores('tuned', 1, 1), scores_by_class(truth, even[1], ['c0', 'c1']))
    with saying('class_scores', '`seed` must be among [0, 1]', 'got 7'): result.class_scores('tuned', 1, 7)
    for ask in (result.table, result.plot, lambda metric: result.differences(metric=metric), lambda metric: result.plot_differences(metric=metric)):
        with saying('Comparison.', 'auroc', "got 'magic'"): ask(metric='magic')
        with saying('Comparison.', 'no AUROC'): ask(metric='auroc')

def test_columns_of_the_runs_go_before_what_is_computed():
    result = guessed(np.arange(10) % 2, {'scratch': np.zeros((2, 10), int)}, 2)
    result.runs['auroc'], result.runs['macro_f1'] = [70., np.nan], [1., np.nan]   # a store that older runs are in
    assert result.scores().macro_f1.tolist() == [1., pytest.approx(100 / 3)] and result.table('auroc').loc['scratch', 1].startswith('70.0')

def test_metrics_without_predictions_are_refused():
    result = simulated({('scratch', 1): [1, 2]})
    assert list(result.scores()) == ['strategy', 'per_class', 'seed', 'accuracy'] and len(result.table()) == 1
    with saying('Comparison.table', 'no balanced accuracy', 'predictions'): result.table('balanced_accuracy')

def test_shipped_comparisons_have_the_new_metrics():
    result = load_comparison('article_cnn-cifar10-cifar100')
    result.runs = result.runs.groupby('strategy').head(1)
    scores = result.scores()
    assert np.allclose(scores.balanced_accuracy, scores.accuracy)   # as many pictures of each class
    assert (scores.macro_f1 > 0).all() and 'auroc' not in scores

def odd_or_even():
    "Two classes, twice as many of one"
    task = tiny()
    labels = (task.labels % 3 == 0).long()
    return task.replaced(name='threes', labels=labels, vocab=['no', 'three'])

@pytest.mark.training
def test_a_run_of_two_classes_has_its_auroc(tmp_path):
    task = odd_or_even()
    result = quick(tmp_path/'kept', task=task, strategies=['head only'], n_epochs=3)
    assert result.runs.auroc.between(0, 100).all() and result.runs.auroc.nunique() == 2
    again = load_comparison(tmp_path/'kept')
    assert_frame_equal(again.scores(), result.scores())
    learn = STRATEGIES['head only'](task.subset(1, 0), read_source(source()), Budget(n_epochs=3), seed=0, cbs=[Quiet()])
    probs, labels = learn.get_preds(ds_idx=2)
    assert result.runs.auroc[0] == pytest.approx(100 * roc_auc_score(labels, probs[:, 1]), abs=1e-3)
    assert 'AUROC' in result.report(tmp_path/'a.html', 'head only').read_text()

# One network to keep

def no_test(task): return task.replaced(splits=dict(task.splits, test=task.splits['test'][:0]))

def test_a_task_without_test_pictures_is_not_compared(runs):
    task = no_test(digits())
    with saying('compare', 'no test pictures', 'choose_strategy'): quick(task=task)
    with saying('run_one', 'no test pictures'): run_one('scratch', task, source())
    assert not runs

three = 'head only', 'copy and tune', 'scratch'

@pytest.fixture(scope='module')
def chosen():
    return comparison.choose_strategy(tiny().subset(5), source(), three, Budget(n_epochs=3, bs=10), verbose=False)

@pytest.mark.training
def test_the_winner_is_kept_with_its_weights(chosen):
    learn, table = chosen
    assert list(table.index) == list(three) and (table.verdict == 'chosen').sum() == 1
    best = table.index[table.verdict == 'chosen'][0]
    assert table.accuracy[best] == table.accuracy.max() == pytest.approx(100 * learn.validate(1)[1], abs=1e-3)
    again = STRATEGIES[best](tiny().subset(5), read_source(source()), Budget(n_epochs=3, bs=10), seed=0, cbs=[Quiet()])
    for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values(), strict=True): assert torch.equal(a.cpu(), b.cpu())
    assert learn.record.recipe['chosen']['valid'] == table.accuracy.to_dict()
    json.dumps(learn.record.recipe)
    low, high = wilson_interval(round(table.accuracy[best] * table.pictures[best] / 100), int(table.pictures[best]))
    assert np.allclose((table.low[best], table.high[best]), (100 * low, 100 * high))

@pytest.mark.training
def test_all_have_one_budget_and_say_what_it_cost(chosen):
    _, table = chosen
    assert set(table.n_epochs) == {3} and table.n_steps.nunique() == 1 and (table.time_s > 0).all()
    assert table.tflops['head only'] < table.tflops['copy and tune'] == table.tflops['scratch']

@pytest.mark.training
def test_the_choice_never_looks_at_test(chosen):
    "Without a test picture, all is the same; and what learns on may look at `valid` each epoch"
    learn, table = comparison.choose_strategy(no_test(tiny().subset(5)), source(), three, Budget(n_epochs=3, bs=10), verbose=False)
    kept = ['accuracy', 'macro_f1', 'tflops', 'verdict']
    assert_frame_equal(table[kept], chosen[1][kept])
    for a, b in zip(learn.model.state_dict().values(), chosen[0].model.state_dict().values(), strict=True): assert torch.equal(a.cpu(), b.cpu())
    n = len(learn.curves.rows)
    with learn.no_bar(): learn.fit(2)
    assert len(learn.curves.rows) == n + 2 and all(row['accuracy'] >= 0 for row in learn.curves.rows[-2:])

def planted_strategies(monkeypatch, scores):
    "Strategies that end with these right of ten on `valid`, or diverge where it is None"
    class Kept:
        def __init__(self, name): self.record, self.name = SimpleNamespace(recipe={}), name
    def fitted(run, how, task, source, cbs=()):
        if scores[run.strategy] is None: raise RuntimeError('StopOnNaN: the loss is nan')
        return Kept(run.strategy), dict(strategy=run.strategy, flops=len(run.strategy))
    def scored(learn, task, row):
        n = scores[row['strategy']]
        found = dict(accuracy=10. * n, balanced_accuracy=100 - 10. * n, pictures=10, n_epochs=1, time_s=1., tflops=row['flops'])
        return found, np.arange(10) < n
    monkeypatch.setattr(comparison, '_fitted', fitted)
    monkeypatch.setattr(comparison, '_scored_on_valid', scored)
    for name in scores: monkeypatch.setitem(STRATEGIES, name, None)

def choose(names, **kwargs): return comparison.choose_strategy(tiny(), source(), names, Budget(n_epochs=1), **kwargs)

def test_ties_go_to_the_cheaper_and_are_said(monkeypatch, capsys):
    planted_strategies(monkeypatch, {'dear one': 8, 'cheap': 8, 'close': 7, 'bad': 0, 'burst': None, 'same!': 8})
    learn, table = choose(['dear one', 'cheap', 'close', 'bad', 'burst', 'same!'])
    assert learn.name == 'cheap'   # as few FLOPs as the last, and named before it
    assert table.verdict.tolist() == ['tied', 'chosen', 'not distinguishable', 'worse', 'not finite', 'tied']
    said = capsys.readouterr().out
    for part in ('cheap is kept, by accuracy on valid', 'tied with it, and no cheaper: dear one, same!', 'not distinguishable: close',
        'burst: ended in numbers', '5.0 s of training'): assert part in said
    assert learn.record.recipe['chosen']['valid']['burst'] is None

def test_another_metric_may_choose(monkeypatch):
    planted_strategies(monkeypatch, {'one': 9, 'two': 1})
    assert choose(['one', 'two'], verbose=False)[0].name == 'one'
    assert choose(['one', 'two'], metric='balanced_accuracy', verbose=False)[0].name == 'two'

def test_where_all_diverge_none_is_chosen(monkeypatch):
    planted_strategies(monkeypatch, {'one': None, 'two': None})
    with saying('choose_strategy', "['one', 'two']", 'lower `lr_max`', error=RuntimeError): choose(['one', 'two'], verbose=False)

@pytest.mark.parametrize('names, options, said', [(['magic'], {}, "got ['magic']"), ([], {}, '`strategies` is empty'), (['scratch'], dict(metric='magic'), "got 'magic'"),
    (['scratch'], dict(metric='auroc'), "got 'auroc' for 10 classes")])
def test_what_cannot_be_chosen_from_is_refused(names, options, said):
    with saying('choose_strategy', said): choose(names, **options)

@pytest.mark.parametrize('asked', [dict(bs=0), dict(n_epochs=0), dict(lr_max=-1.), dict(n_looks=.5)], ids=str)
def test_bad_budgets_of_a_choice_are_refused(asked):
    with saying('choose_strategy', next(iter(asked))): comparison.choose_strategy(tiny(), source(), ['scratch'], Budget(**asked))

@pytest.mark.training
def test_callbacks_are_copied_for_each():
    class Counts(Callback):
        def __init__(self): self.seen = []
        def after_train(self): self.seen.append(id(self.learn))
    mine = Counts()
    learn, _ = comparison.choose_strategy(tiny().subset(1), source(), ['head only', 'copy and tune'], Budget(n_epochs=2), cbs=[mine], verbose=False)
    own = next(cb for cb in learn.cbs if type(cb).__name__ == 'Counts')
    assert not mine.seen and own.seen == [id(learn)] * 2

def test_class_weights_go_with_the_budget(monkeypatch, tmp_path):
    given = []
    def train(run, how, task, source):
        given.append(run.budget.class_weights)
        return Runs()(run, how, task, source)
    monkeypatch.setattr(comparison, '_train', train)
    quick(tmp_path/'kept', class_weights=np.ones(10, np.float32))
    quick(tmp_path/'kept', class_weights=[1] * 10)
    assert given == [[1.] * 10] * 4
    for other in (None, 'balanced'):
        with saying('another budget'): quick(tmp_path/'kept', class_weights=other)
    assert 'class_weights' not in quick().facts['budgets']['1']   # as it was before there were any

@some(10)
@given(predictions())
def test_differences_are_those_of_means_over_runs_and_over_classes(made):
    truth, guesses, k = made
    result = guessed(*made)
    found = result.differences().difference.item()
    means = result.runs.groupby('strategy').accuracy.mean()
    assert np.isclose(found, means['tuned'] - means['scratch'])
    shares = np.bincount(truth, minlength=k) / len(truth)
    each = result.by_class('tuned', 1).difference
    assert np.isclose(found, sum(shares[int(name[1:])] * d for name, d in each.items()))

@pytest.mark.parametrize('level', [0, 1, 95, np.nan])
def test_levels_of_counted_shares_are_checked(level):
    with saying('wilson_interval', '`level`', str(level)): wilson_interval(1, 2, level)
    with saying('`level`'): scores_by_class([0, 1], [0, 1], ['a', 'b'], level)

def test_facts_tell_tasks_apart():
    src = read_source(source())
    facts = comparison._facts(digits(), src, budgets={})
    assert facts['task']['sha256'] == digits().fingerprint() and facts['source']['arch']['name'] == 'resnet9'
    assert comparison._facts(digits().subset(5), src, {})['task'] != facts['task']

@pytest.mark.parametrize('strategy, makes', [('scratch', 'pretrain'), ('head only', 'transfer_learner'), ('gradual', 'transfer_learner')])
def test_strategies_hand_class_weights_on(monkeypatch, strategy, makes):
    "And say nothing of them where there are none"
    class Made(Exception): pass
    asked = []
    def make(*args, **kwargs):
        asked.append(kwargs.get('class_weights', 'unsaid'))
        raise Made
    monkeypatch.setattr(comparison, makes, make)
    for weights in (None, 'balanced', [1., 2.]):
        with pytest.raises(Made): STRATEGIES[strategy](tiny(), read_source(source()), Budget(n_epochs=1, class_weights=weights), seed=0, cbs=[])
    assert asked == ['unsaid', 'balanced', [1., 2.]]

def test_parts_of_a_report_as_html():
    table = as_html(pd.DataFrame(dict(one=[1.234], two=[np.nan])), decimals=2)
    assert '<td>1.23</td>' in table and '<td>–</td>' in table
    assert as_html(['a < b', 'so']) == '<ul><li>a &lt; b</li><li>so</li></ul>'
    ax = plt.subplots()[1]
    assert '<img alt="A &quot;line&quot;"' in as_html(ax, 'A "line"') and not plt.fignum_exists(ax.figure.number)
    page = html_page('1 < 2', [('So & so', table)])
    assert '<title>1 &lt; 2</title>' in page and '<h2>So &amp; so</h2><table' in page and 'http' not in page
