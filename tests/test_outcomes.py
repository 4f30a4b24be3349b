"Sub-tasks, pairs of a task and a source that were scored and tried, and what judges the scores"
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import saying, write_folder
from nbtransfer.folders import image_folder
from nbtransfer.outcomes import correlations, judge_scores, subtask, try_pairs
from nbtransfer.similarity import SCORES, mean_discrepancy
from nbtransfer.tasks import digits

def test_subtask_has_the_pictures_of_its_classes():
    whole = digits()
    few = subtask(whole, 3, (4, 4), (5, 5))
    assert few.n_classes == 4 and (few.counts()['train'] == 5).all() and few.name == 'digits-sub3-5'
    for split, idxs in few.splits.items():
        own = [whole.vocab[i] for i in whole.labels[idxs]]
        assert own == [few.vocab[i] for i in few.labels[idxs]]
        if split != 'train': assert len(idxs) == sum(o in few.vocab for o in (whole.vocab[i] for i in whole.labels[whole.splits[split]]))
    assert subtask(whole, 3, (4, 4), (5, 5)).vocab == few.vocab

@pytest.mark.training
@pytest.mark.filterwarnings('ignore:image_folder')
def test_pictures_in_files_are_scored_and_tried_as_those_in_memory(tmp_path):
    folder = write_folder(tmp_path/'pets', 40)
    sources, tables = {o: o for o in ('resnet9-letters', 'article_cnn-cifar10')}, []
    for in_memory in (True, False):
        task = subtask(image_folder(folder, size_px=32, in_memory=in_memory), 1, (2, 2), (4, 4))
        seen = torch.randint(256, (9, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
        if in_memory: means = -mean_discrepancy(*(o.flatten(1) / 255 for o in (seen, task.images[task.splits['train']])))
        tables.append(try_pairs([task], sources, n_steps=2, bs=4, pixels=dict.fromkeys(sources, seen), progress=False))
    files = tables[1]
    for name in (*SCORES, 'colours', 'means'): assert files[name].to_numpy() == pytest.approx(tables[0][name].to_numpy(), rel=1e-4, abs=1e-4)
    assert files.means.to_numpy() == pytest.approx(means, rel=1e-4) and files[['head only', 'copy and tune']].notna().all().all()

# Judging

PUBLISHED = {   # thuml/Transfer-Learning-Library, examples/model_selection/README.md: accuracy, H-score, LEEP, LogME, NCE of ten networks
    'cifar10': ([(96.2, 5.911, -1.385, .293, -1.139), (97.5, 6.363, -1.259, .349, -1.060), (96.8, 6.567, -1.010, .388, -1.007),
        (97.7, 6.901, -.829, .463, -.838), (97.9, 6.945, -.838, .469, -.851), (97.2, 6.210, -1.035, .302, -1.006),
        (97.4, 6.547, -.934, .343, -.946), (97.4, 6.706, -.888, .369, -.866), (95.7, 5.928, -1.100, .291, -1.089),
        (96.8, 6.018, -1.066, .304, -1.086)], (.839, .604, .733, .786), (.800, .638, .785, .714)),
    'cifar100': ([(83.2, 29.33, -3.234, 1.037, -2.751), (86.6, 36.47, -2.995, 1.070, -2.615), (84.5, 40.20, -2.612, 1.099, -2.516),
        (87.0, 43.80, -2.365, 1.130, -2.285), (87.6, 44.19, -2.410, 1.133, -2.369), (84.8, 32.13, -2.665, 1.029, -2.504),
        (85.0, 37.51, -2.494, 1.051, -2.418), (86.0, 39.75, -2.470, 1.061, -2.305), (80.8, 30.36, -2.800, 1.039, -2.653),
        (83.9, 32.05, -2.732, 1.051, -2.643)], (.815, .513, .698, .705), (.775, .659, .790, .654))}

@pytest.mark.parametrize('name', PUBLISHED)
def test_published_correlations(name):
    rows, pearson, weighted = PUBLISHED[name]
    accuracy, *scores = np.array(rows).T
    for score, p, w in zip(scores, pearson, weighted):
        found = correlations(score, accuracy)
        assert found['pearson'] == pytest.approx(p, abs=.02) and found['weighted'] == pytest.approx(w, abs=.02)

@pytest.mark.parametrize('n_studies, most', [(2, 0), pytest.param(8, 2, marks=pytest.mark.nightly)])
def test_scores_of_one_worth_are_seldom_called_worse(n_studies, most):
    "Six scores that know equally much, 40 tasks and six sources, in 8 studies, or in the first two of them"
    called = 0
    for seed in range(n_studies):
        rng = np.random.default_rng(seed)
        pairs = pd.DataFrame([(t, s) for t in range(40) for s in range(6)], columns=['task', 'source']).assign(outcome=rng.normal(size=240))
        scores = [f's{i}' for i in range(6)]
        pairs = pairs.assign(**{s: pairs.outcome + rng.normal(size=240) for s in scores})
        table = judge_scores(pairs, 'outcome', scores).query('measure == "kendall"')
        called += 'worse' in set(table.verdict)
    assert called <= most

def test_a_score_that_knows_is_told_from_noise():
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame([(t, s) for t in range(30) for s in range(6)], columns=['task', 'source']).assign(outcome=rng.normal(size=180))
    pairs = pairs.assign(good=pairs.outcome + .3 * rng.normal(size=180), noise=rng.normal(size=180))
    table = judge_scores(pairs, 'outcome', ['good', 'noise']).set_index(['score', 'measure'])
    assert (table.verdict['good'] == 'best').all() and (table.verdict['noise'] == 'worse').all()
    with saying('each pair once'): judge_scores(pairs[:-1], 'outcome', ['good'])
    with saying("'outcome' has NaN"): judge_scores(pairs.assign(outcome=pairs.outcome.where(pairs.outcome > 0)), 'outcome', ['good'])

def test_regret_by_hand():
    pairs = pd.DataFrame([('a', 'x', .9, 80), ('a', 'y', .5, 90), ('a', 'z', .1, 60), ('b', 'x', .9, 70), ('b', 'y', .9, 50), ('b', 'z', .1, 75),
        ('c', 'x', .2, 80), ('c', 'y', .3, 80), ('c', 'z', .4, 80)], columns=['task', 'source', 'LogME', 'copy and tune'])
    table = judge_scores(pairs).set_index(['score', 'measure'])
    regret = table['mean'].xs('regret', level='measure')
    assert regret['LogME'] == pytest.approx((10 + 15 + 0) / 3)   # of two that tie in b, either
    assert regret['any'] == pytest.approx((40 / 3 + 10 + 0) / 3)
    assert regret['always the same'] == pytest.approx((30 + 25 + 0) / 3)   # z for a, y for b
    assert table.tasks['LogME', 'kendall'] == 2   # in c all outcomes are equal
