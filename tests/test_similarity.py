"Scores of sources: each against a slow one written from its formula, what must not change it, and what it refuses"
from itertools import permutations
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import minimize, minimize_scalar
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from helpers import saying, some
from nbtransfer.finetuning import transfer_learner
from nbtransfer.networks import create_network
from nbtransfer.pretraining import Quiet
from nbtransfer.similarity import (_ranks, SCORES, fitness, gbc, h_score, knn_score, leep, logme, nce, probe_score, rank_sources, source_outputs, transrate)
from nbtransfer.tasks import digits
from nbtransfer.weights import pretrained, save_weights

OF_PROBS = leep, nce
OF_FEATS = [f for f in SCORES.values() if f not in OF_PROBS]
each_score = pytest.mark.parametrize('score', SCORES.values(), ids=lambda o: o.__name__)

def features(n, d, k, rank=None, seed=0):
    "Rectified features that know a little of `k` classes; of a smaller rank if asked"
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    if rank: return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)), y
    x = np.maximum(rng.normal(size=(n, d)), 0)
    x[np.arange(n), y % d] += 1
    return x, y

def probabilities(n, z, k, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(z, .3), n), rng.permutation(np.arange(n) % k)

# Against the formulas, step by step

def slow_leep(p, y):
    n, z = p.shape
    joint = {(c, j): sum(p[i, j] for i in range(n) if y[i] == c) / n for c in set(y) for j in range(z)}
    mass = [sum(joint[c, j] for c in set(y)) for j in range(z)]
    return np.mean([np.log(sum(joint[y[i], j] / mass[j] * p[i, j] for j in range(z))) for i in range(n)])

def slow_nce(p, y):
    seen, total = p.argmax(1), 0.
    for z in set(seen):
        for c in set(y):
            both = np.mean((seen == z) & (y == c))
            if both: total += both * np.log(both / np.mean(seen == z))
    return total

def slow_h_score(x, y):
    fitted = LedoitWolf().fit(x)
    stand_in = np.array([x[y == c].mean(0) for c in y])
    between = np.cov(stand_in, rowvar=False, bias=True)
    return (1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ between)

def slow_gbc(x, y, most=64):
    x = x - x.mean(0)
    x = x @ np.linalg.svd(x)[2][:min(most, np.linalg.matrix_rank(x))].T
    total, d = 0., x.shape[1]
    for a, b in permutations(sorted(set(y)), 2):
        one, two = x[y == a], x[y == b]
        s1, s2 = (((o - o.mean(0))**2).mean() * np.eye(d) for o in (one, two))
        gap, s = one.mean(0) - two.mean(0), (s1 + s2) / 2
        logs = [np.linalg.slogdet(o)[1] for o in (s, s1, s2)]
        total += np.exp(-(gap @ np.linalg.inv(s) @ gap / 8 + .5 * (logs[0] - (logs[1] + logs[2]) / 2)))
    return -total

def slow_transrate(x, y, eps=1e-4):
    x = x - x.mean(0)
    def rate(z): return .5 * np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * eps))[1]
    return rate(x) - np.mean([rate(x[y == c]) for c in set(y)])

def slow_knn(x, y, k=5):
    right = 0
    for i in range(len(x)):
        cosines = [-np.inf if j == i else x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(len(x))]
        near = np.argsort(cosines)[::-1][:k]
        votes = {c: sum(y[near] == c) + 1e-3 * sum(k - 1 - r for r, j in enumerate(near) if y[j] == c) for c in set(y)}
        right += max(votes, key=votes.get) == y[i]
    return right / len(x)

def slow_probe(x, y):
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=.1))
    return (cross_val_predict(probe, x, y, cv=StratifiedKFold(5, shuffle=True, random_state=0)) == y).mean()

SLOW = {leep: slow_leep, nce: slow_nce, h_score: slow_h_score, gbc: slow_gbc, transrate: slow_transrate, knn_score: slow_knn,
    probe_score: slow_probe}

@pytest.mark.parametrize('score', SLOW, ids=lambda o: o.__name__)
@pytest.mark.parametrize('n, d, k', [(60, 12, 3), (40, 70, 4), (200, 8, 10)])
def test_equals_its_formula(score, n, d, k):
    x, y = (probabilities if score in OF_PROBS else features)(n, d, k)
    assert score(torch.tensor(x), torch.tensor(y)) == pytest.approx(SLOW[score](x, y), abs=1e-9)

def svd_logme(x, y):
    "By all n directions of a full SVD, at the best of a grid that is refined"
    n = len(x)
    u, s, _ = np.linalg.svd(x, full_matrices=True)
    lam = np.zeros(n)
    lam[:len(s)] = s**2
    def lowest(indicator):
        z2 = (u.T @ indicator)**2
        def minus(log_t):
            v = 1 + lam / np.exp(log_t)
            return .5 * (np.log(2 * np.pi * (z2 / v).sum() / n) + 1) + .5 * np.log(v).sum() / n
        grid = np.linspace(-20, 30, 400) + np.log(lam.max())
        i = np.argmin([minus(o) for o in grid])
        ends = grid[max(i - 1, 0)], grid[min(i + 1, 399)]
        return min(minus(grid[i]), minimize_scalar(minus, bounds=ends, method='bounded', options=dict(xatol=1e-9)).fun)
    return -np.mean([lowest((y == c).astype(float)) for c in set(y)])

@pytest.mark.parametrize('n, d, k, rank', [(300, 20, 5, None), (60, 40, 3, None), (30, 80, 3, None), (120, 40, 4, 9), (50, 40, 4, 9),
    (30, 60, 3, 9)])
def test_logme_equals_a_direct_svd_whatever_the_rank(n, d, k, rank):
    x, y = features(n, d, k, rank)
    assert logme(x, y) == pytest.approx(svd_logme(x, y), abs=1e-10)

def test_logme_finds_the_higher_of_two_maxima():
    rng = np.random.default_rng(190)
    x, y = rng.normal(size=(36, 32)) * np.exp(-.2 * np.arange(32)) + 2, np.arange(36) % 3
    assert logme(x, y) == pytest.approx(svd_logme(x, y), abs=1e-10)

def test_logme_equals_the_evidence_of_the_paper():
    "Equations of the paper with whole matrices, alpha and beta found by a general optimiser"
    x, y = features(80, 6, 3)
    n, d = x.shape
    def minus_evidence(logs, target):
        alpha, beta = np.exp(logs)
        a = alpha * np.eye(d) + beta * x.T @ x
        m = beta * np.linalg.solve(a, x.T @ target)
        return -(n / 2 * np.log(beta) + d / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi) - beta / 2 * ((x @ m - target)**2).sum()
            - alpha / 2 * (m**2).sum() - np.linalg.slogdet(a)[1] / 2) / n
    best = [min(minimize(minus_evidence, start, ((y == c).astype(float),), 'Nelder-Mead', options=dict(xatol=1e-9, fatol=1e-13)).fun
        for start in ((0, 0), (5, 2))) for c in range(3)]
    assert logme(x, y) == pytest.approx(-np.mean(best), abs=1e-8)

def test_logme_does_not_count_columns_that_are_not_there():
    "300 × 512: the width must not enter, and an absent class must change nothing"
    x, y = features(300, 512, 10)
    assert logme(np.concatenate([x, np.zeros((300, 100))], 1), y) == pytest.approx(logme(x, y), abs=1e-10)
    assert logme(x, np.where(y > 4, y + 7, y)) == logme(x, y)

# What must not change a score

@pytest.mark.parametrize('score', [logme, h_score, gbc, transrate, knn_score], ids=lambda o: o.__name__)
def test_rotation_changes_nothing(score):
    x, y = features(90, 12, 4)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    assert score(x @ turn, y) == pytest.approx(score(x, y), abs=1e-9)

@each_score
def test_other_names_and_another_order_change_nothing(score):
    x, y = (probabilities if score in OF_PROBS else features)(90, 12, 4)
    order = np.random.default_rng(1).permutation(90)
    assert score(x, np.array([30, 10, 20, 0])[y]) == pytest.approx(score(x, y), abs=1e-9)
    moved = score(x[order], y[order])   # the probe draws its folds anew
    assert moved == pytest.approx(score(x, y), abs=.1 if score is probe_score else 1e-9)

@pytest.mark.parametrize('score', [leep, nce, gbc, transrate], ids=lambda o: o.__name__)
def test_every_row_twice_changes_nothing(score):
    x, y = (probabilities if score in OF_PROBS else features)(90, 12, 4)
    assert score(np.tile(x, (2, 1)), np.tile(y, 2)) == pytest.approx(score(x, y), abs=1e-9)

@each_score
def test_tensors_of_any_kind(score):
    x, y = (probabilities if score in OF_PROBS else features)(60, 6, 3)
    x = torch.tensor(x, dtype=torch.float32)
    assert score(x.requires_grad_(), torch.tensor(y, dtype=torch.int32)) == score(x.detach().double(), torch.tensor(y))
    if score not in OF_PROBS: assert np.isfinite(score(x.bfloat16(), y))

# Degenerate input: a value, or an error of ours

numbers = st.sampled_from([0., 1., -1., 2., 1e-9, 1e9, 1e-200, 1e90, .5, 3.7])

@st.composite
def matrices(draw):
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    row = st.lists(numbers, min_size=d, max_size=d)
    x = np.array(draw(st.lists(row, min_size=n, max_size=n)))
    if draw(st.booleans()): x[:, draw(st.integers(0, d - 1))] = draw(numbers)
    if draw(st.booleans()): x[draw(st.integers(0, n - 1))] = x[0]
    if draw(st.integers(0, 9)) == 0: x[0, 0] = draw(st.sampled_from([np.nan, np.inf]))
    return x, np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))

def has_a_value_or_says_why(name, drawn):
    x, y = drawn
    score = SCORES[name]
    if score in OF_PROBS and np.isfinite(x).all():
        x = np.minimum(np.abs(x), 9)
        x = x / np.maximum(x.sum(1, keepdims=True), 1e-300)
    try: found = fitness(name, x, y, 5, n_boot=40)
    except ValueError as error:
        assert str(error).startswith(f'{score.__name__}: '), error
        return
    assert np.isfinite(found.value)
    if np.isnan(found.low): assert '40 of 40 halves cannot be scored' in found.reasons
    else: assert found.low <= found.value <= found.high
    if len(set(y)) < 5: assert any('have no row' in reason for reason in found.reasons)

@pytest.mark.parametrize('name', SCORES)
@some(6)
@given(drawn=matrices())
def test_a_value_with_reasons_or_an_error_of_ours(name, drawn): has_a_value_or_says_why(name, drawn)

@pytest.mark.nightly
@pytest.mark.parametrize('name', SCORES)
@some(100)
@given(drawn=matrices())
def test_a_value_with_reasons_or_an_error_of_ours_in_many_draws(name, drawn): has_a_value_or_says_why(name, drawn)

@pytest.mark.nightly
@pytest.mark.parametrize('score', [logme, h_score], ids=lambda score: score.__name__)
def test_intervals_cover_the_mean_score_of_fresh_samples(score):
    "As the chapter tries it for k-NN and GBC: about 95 of 100"
    def sample(i, n=25):
        rng = np.random.default_rng(i)
        groups = np.repeat(range(4), n)
        return rng.normal(size=(4 * n, 8)) + 1.5 * np.eye(8)[groups], groups
    true_mean = np.mean([score(*sample(1000 + i)) for i in range(200)])
    tried = [fitness(score, *sample(i), n_boot=40) for i in range(100)]
    assert sum(o.low <= true_mean <= o.high for o in tried) >= 88

@each_score
def test_an_interval_ends_where_the_score_does(score):
    "Rows without doubt, or nearly: what is added to the halves may carry them out of range"
    low, high = {h_score: (0, 2), knn_score: (0, 1), probe_score: (0, 1)}.get(score, (-np.inf, 0 if score in (leep, nce, gbc) else np.inf))
    rng = np.random.default_rng(0)
    for spread in (.01, .5, 2):
        y = np.repeat(range(3), 8)
        x = np.eye(3)[y] + spread * rng.random((24, 3))
        if score in OF_PROBS: x = x / x.sum(1, keepdims=True)
        found = fitness(score, x, y, n_boot=40)
        assert low <= found.low <= found.value <= found.high <= high

def test_too_few_rows_to_halve_give_no_certainty():
    table = rank_sources(['resnet9-letters', 'article_cnn-cifar10'], digits().subset(2), ('k-NN', 'probe'), progress=False)
    assert 'worse' not in set(table.verdict) and table.reasons.str.contains('too few to halve').all()
    assert table[table.score == 'probe'].reasons.str.contains('50 of 50 halves cannot be scored').all()

@each_score
def test_unusable_input_is_refused(score):
    x, y = (probabilities if score in OF_PROBS else features)(20, 4, 2)
    for bad_x, bad_y, words in ((x, y[:9], 'got shapes (20, 4) and (9,)'), (x[:, 0], y, 'a matrix'), (x, y * 0, 'two classes or more'),
            (np.where(x == x[3, 3], np.nan, x), y, 'finite numbers'), (x * 1e200, y, 'finite numbers')):
        with saying(words): score(bad_x, bad_y)

# Ranking

@pytest.fixture(scope='module')
def target(): return digits().subset(4)

def test_sources_of_every_kind(target, tmp_path):
    learn = transfer_learner(target, 'resnet9-letters', cbs=[Quiet()])
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    net = create_network('article_cnn', 10)
    sources = ['resnet9-letters', save_weights(learn, tmp_path/'net.safetensors'), learn, net]
    table = rank_sources(sources, target, ('k-NN', 'LEEP'), n_boot=40, progress=False)
    assert table.source.nunique() == 4 and not table.value.isna().any()
    assert all(v.equal(learn.model.state_dict()[k]) for k, v in before.items())
    letters = table[(table.score == 'k-NN') & table.source.isin(['resnet9-letters', table.source[table.source.str.startswith('2')].iloc[0]])]
    assert letters.value.nunique() == 1   # the learner has the body of the letters

def test_features_are_those_of_the_network_itself(target):
    net = pretrained('resnet9-letters').eval()
    out = source_outputs(target, 'resnet9-letters')
    mean, std = (torch.tensor(net.card[k]).view(3, 1, 1) for k in ('mean', 'std'))
    x = (target.images[target.splits['train']].permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad(): feats, probs = net.body(x), net(x).softmax(1)
    assert torch.allclose(out.feats, feats, atol=1e-4) and torch.allclose(out.probs, probs, atol=1e-4)

def test_a_copy_is_not_distinguishable_and_a_network_that_knows_nothing_is_worse(target):
    sources = dict(letters='resnet9-letters', again=pretrained('resnet9-letters'), random=create_network('resnet9', 10, width=16))
    table = rank_sources(sources, digits().subset(20), ('k-NN', 'LogME'), n_boot=40, progress=False)
    for _, rows in table.groupby('score'):
        rows = rows.set_index('source')
        assert {rows.verdict['letters'], rows.verdict['again']} == {'best', 'not distinguishable'}
        assert rows.verdict['random'] == 'worse' and rows['rank_low']['random'] == 3

def test_a_source_that_cannot_be_scored_has_no_rank_and_says_why(target, monkeypatch):
    def refuse(x, labels):
        if x.shape[1] == 512: raise ValueError('h_score: no')
        return 1.
    monkeypatch.setitem(SCORES, 'H-score', refuse)
    table = rank_sources(['resnet9-letters', 'article_cnn-cifar10'], target, ('H-score',), n_boot=40, progress=False)
    none = table[table.value.isna()]
    assert len(none) and (none.verdict == 'no score').all() and none['rank'].isna().all() and none.reasons.str.startswith('h_score: no').all()

def test_equal_sources_are_seldom_called_worse():
    "Ten sources of one worth, whose scores differ by chance alone, in 200 rankings"
    called, rng = 0, np.random.default_rng(0)
    for _ in range(200):
        values = rng.normal(size=10)
        called += 'worse' in set(_ranks(values, values[:, None] + rng.normal(size=(10, 50)), .95).verdict)
    assert called <= 20
    clear = _ranks(np.array([0, 9., 1.]), np.array([[0], [9.], [1.]]) + rng.normal(size=(3, 50)), .95)
    assert clear.verdict.tolist() == ['worse', 'best', 'worse'] and clear.rank_high.tolist() == [3, 1, 3]

def test_sources_need_names_of_their_own(target):
    for sources, words in ((['resnet9-letters'] * 2, 'resnet9-letters twice'), ('resnet9-letters', 'a list or a dict'), ([], 'two sources or more')):
        with saying('rank_sources', words): rank_sources(sources, target)
    with saying('resnet9', 'RGB pictures of 32 px'): source_outputs(target, create_network('resnet9', 10, n_in=1))

def test_strict_stops_at_a_reason(target):
    with saying('resnet9-letters', 'fewer rows'): rank_sources(['resnet9-letters', 'article_cnn-cifar10'], target, ('LogME',), strict=True, progress=False)
