"Predictions, evaluation, calibration and export, on every kind of input and against independent implementations"
import contextlib, io, json, os, tracemalloc, warnings
from pathlib import Path
import numpy as np
import psutil
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from hypothesis import given, strategies as st
from helpers import saying, some, write_folder
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from torch import nn
from nbtransfer.folders import image_folder
from nbtransfer.inference import (Evaluation, PictureNetwork, Predictor, calibration_error, evaluate, export_network, fit_temperature,
    found_pictures, predict, reliability)
from nbtransfer.networks import create_network
from nbtransfer.pretraining import Quiet, task_learner
from nbtransfer.tasks import Task
from nbtransfer.weights import save_weights

SIZE = 16
NAMES = ['cat', 'dog', 'eel']

def made_task(vocab=NAMES, n=60, **kwargs):
    "Noise in colours, some of each class in each split"
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8))
    labels = torch.arange(n) % len(vocab)
    splits = dict(zip(('train', 'valid', 'test'), torch.arange(n).split(n // 3)))
    return Task('noise', images, labels, list(vocab), splits=splits, **kwargs)

def made_network(n_classes=3, name='resnet9', **kwargs):
    "Random weights, with statistics of BatchNorm that are not those of the beginning"
    torch.manual_seed(0)
    model = create_network(name, n_classes, **(kwargs or dict(width=4)))
    for name, buffer in model.named_buffers():
        if name.endswith('running_mean'): buffer.uniform_(-.1, .1)
    return model.eval()

@pytest.fixture(scope='module')
def task(): return made_task()

@pytest.fixture(scope='module')
def learn(task): return task_learner(task, made_network(), 16, stats=([.4, .5, .6], [.2, .3, .4]), cbs=[Quiet()])

@pytest.fixture(scope='module')
def weights(learn, tmp_path_factory): return save_weights(learn, tmp_path_factory.mktemp('weights')/'noise.safetensors')

@pytest.fixture
def folder(task, tmp_path):
    "Six pictures of two sizes in two folders"
    for i in range(6):
        file = tmp_path/'photos'/('a', 'b')[i % 2]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(task.picture(i).numpy())
        (image if i < 3 else image.resize((50, 40))).save(file)
    return tmp_path/'photos'

def close(a, b, eps=1e-5): torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), atol=eps, rtol=0)

# The same answer wherever network and picture come from

def test_learner_file_and_network_agree(task, learn, weights):
    of_learner = Predictor(learn).logits(task.images)
    close(Predictor(weights).logits(task.images), of_learner)
    close(Predictor(str(weights)).logits(task.images), of_learner)

def test_reloaded_network_gives_the_learners_probabilities(task, learn, weights):
    probs = Predictor(weights).logits(task.images[task.splits['test']]).softmax(1)
    close(probs, learn.get_preds(dl=learn.dls[2])[0])

def test_every_kind_of_input_gives_what_the_learner_says(folder, learn, weights):
    file = folder/'b'/'5.png'
    pixels = np.array(Image.open(file))
    kinds = [file, str(file), Image.open(file), Image.fromarray(pixels), pixels, torch.from_numpy(pixels),
             torch.from_numpy(pixels).permute(2, 0, 1), file.read_bytes()]
    found = predict(weights, kinds)
    assert not found.error.any() and found.label.nunique() == 1
    probs = learn.predict(file)[2]
    close(found.probability.tolist(), [float(probs.max())] * len(kinds))
    assert found.label[0] == learn.predict(file)[0]
    for kind in kinds: assert len(predict(weights, kind)) == 1   # without brackets

def test_rule_of_the_task_travels_with_the_weights(tmp_path):
    learn = task_learner(made_task(fit='pad', window=(0, 4000)), made_network(), 16, cbs=[Quiet()])
    path = save_weights(learn, tmp_path/'padded.safetensors')
    Image.fromarray(np.linspace(0, 4000, 800).reshape(20, 40).astype(np.uint16)).save(tmp_path/'deep.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found, probs = predict(path, tmp_path/'deep.png'), learn.predict(tmp_path/'deep.png')[2]
    assert Predictor(path).rule == learn.dls.task.rule and found.error[0] == ''
    close(found.probability.tolist(), [float(probs.max())])

@pytest.mark.parametrize('in_memory', [False, True])
def test_learner_of_a_folder(in_memory, tmp_path):
    write_folder(tmp_path/'photos', 30)
    task = image_folder(tmp_path/'photos', SIZE, in_memory=in_memory, cache=tmp_path/'cache')
    learn = task_learner(task, made_network(2), 8, cbs=[Quiet()])
    found = evaluate(learn, task)
    close(found.probs, learn.get_preds(dl=learn.dls.loaders[2])[0])
    assert 'is the task' in found.facts['task_says']

def test_network_that_trains_goes_on_training(task, learn):
    learn.model.train()
    before = [o.clone() for o in learn.model.buffers()]
    predict(learn, task.images[:3])
    assert learn.model.training and all(torch.equal(a, b) for a, b in zip(before, learn.model.buffers()))

def test_top_gives_the_likeliest_in_order(task, weights):
    found = predict(weights, task.images[:5], top=3)
    assert list(found) == ['file', 'label', 'probability', 'label_2', 'probability_2', 'label_3', 'probability_3', 'error']
    close(found[['probability', 'probability_2', 'probability_3']].sum(axis=1).tolist(), [1.] * 5)
    assert (found.probability >= found.probability_2).all() and set(found.iloc[0][['label', 'label_2', 'label_3']]) == set(NAMES)
    with saying('predict: `top` must be 1 to 3', 'got 4'): predict(weights, task.images[:5], top=4)
    with saying('predict: `top`', 'got 0'): predict(weights, task.images[:5], top=0)

def test_shipped_network(folder):
    assert predict('resnet9-letters', folder).label.isin(list('abcdefghijklmnopqrstuvwxyz')).all()

def test_classes_of_other_types_become_words(tmp_path):
    learn = task_learner(made_task([0, 1, 2]), made_network(), 16, cbs=[Quiet()])
    assert set(predict(learn, learn.dls.task.images).label) <= {'0', '1', '2'}

def test_weights_that_do_not_say_enough(tmp_path, learn, task):
    network = made_network()
    with saying('Predictor: resnet9 comes without class names (vocab)', 'size', 'mean'): Predictor(network)
    network.card = dict(vocab=None, size_px=SIZE, mean=None, std=None)
    with saying('Predictor:', 'without class names (vocab): fine-tune'): Predictor(network)
    network.card['vocab'] = NAMES
    assert len(predict(network, task.images[:2])) == 2   # pictures that were not normalised
    torch.save(network.state_dict(), tmp_path/'bare.pth')
    with saying('bare.pth', 'without a card'): Predictor(tmp_path/'bare.pth')
    with saying('no file'): Predictor(tmp_path/'none.safetensors')
    plain = Learner(DataLoaders([0], [0]), network, loss_func=nn.CrossEntropyLoss())
    with saying('know no Task'): Predictor(plain)

# Pictures from anywhere

def test_folders_patterns_and_what_is_left_out(folder):
    (folder/'a'/'.hidden.png').write_bytes(b'')
    (folder/'a'/'list.csv').write_text('a,b')
    (folder/'README').write_text('no picture')
    (folder/'b'/'noending').write_bytes((folder/'b'/'1.png').read_bytes())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = predict('resnet9-letters', folder)
    assert [Path(o).name for o in found.file] == ['0.png', '2.png', '4.png', '1.png', '3.png', '5.png', 'noending']
    lines = [str(o.message) for o in said if str(o.message).startswith('predict:')]
    assert len(lines) == 1 and '1 .csv' in lines[0] and '1 no ending' in lines[0]
    names = [Path(name).name for name, _ in found_pictures(f'{folder}/**/*.png')]
    assert names == ['0.png', '2.png', '4.png', '1.png', '3.png', '5.png']
    assert [name for name, _ in found_pictures(o for o in names)] == names   # a generator, of files that are not there

def test_names_with_brackets_and_home(folder, monkeypatch, weights):
    file = folder/'a'/'[1].png'
    file.write_bytes((folder/'a'/'0.png').read_bytes())
    monkeypatch.setenv('HOME', str(folder))
    found = predict(weights, [file, '~/a/0.png', '~/b'])
    assert len(found) == 5 and not found.error.any() and found.probability[0] == found.probability[1]

def test_a_folder_that_links_to_one_above_it(folder):
    (folder/'a'/'up').symlink_to(folder, target_is_directory=True)
    (folder/'b'/'over').symlink_to(folder/'a', target_is_directory=True)
    names = [name for name, _ in found_pictures(folder)]
    assert len(names) == 6 + 3 and len(set(names)) == 9   # a, seen from b too

def test_names_that_are_not_utf8(folder, weights):
    name = os.fsencode(folder/'a') + b'/caf\xe9.png'
    try:
        with open(name, 'wb') as file: file.write((folder/'a'/'0.png').read_bytes())
    except OSError: pytest.skip('this file system has UTF-8 names only')
    found = predict(weights, folder/'a')
    assert not found.error.any() and any(r'caf\xe9' in o for o in found.file)
    found.to_csv(io.BytesIO())

def test_bad_files_are_named_and_the_rest_goes_on(folder, weights, task):
    whole = (folder/'a'/'0.png').read_bytes()
    (folder/'a'/'cut.png').write_bytes(whole[:len(whole) // 2])
    (folder/'a'/'text.png').write_text('no picture')
    (folder/'none').mkdir()
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(folder/'a'/'deep.png')
    items = [folder/'a', folder/'missing.png', folder/'none', f'{folder}/*.gif', b'no picture', task.images[0].float() / 255, folder/'b'/'1.png']
    found = predict(weights, items, bs=2)
    bad = dict(zip(found.file[found.label.isna()].map(os.path.basename), found.error[found.label.isna()]))
    assert set(bad) == {'cut.png', 'text.png', 'deep.png', 'missing.png', 'none', '*.gif', '#4', '#5'}
    assert 'beyond 8 bits (4000 to 4000)' in bad['deep.png'] and bad['missing.png'] == 'no such file'
    assert bad['none'] == 'a folder without pictures' and 'uint8' in bad['#5'] and found.probability.isna().sum() == 8
    good = found[found.label.notna()]
    assert [Path(o).name for o in good.file] == ['0.png', '2.png', '4.png', '1.png']
    close(good.probability.tolist(), predict(weights, good.file.tolist()).probability.tolist())

def test_one_line_says_what_was_converted(folder, weights):
    grey = np.zeros((9, 9), np.uint8)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder/'a'/'grey.png')
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(folder/'b'/'clear.png')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        predict(weights, [folder, grey, Image.fromarray(grey), torch.from_numpy(grey)], bs=2)
    lines = [str(o.message) for o in said if 'converted' in str(o.message)]
    assert len(lines) == 1 and '4 grey' in lines[0] and '1 transparent' in lines[0]

@pytest.mark.parametrize('wrong', [7, None, 1.5])
def test_what_can_be_no_picture(weights, wrong):
    with saying('found_pictures', type(wrong).__name__, error=TypeError): predict(weights, wrong)
    with saying('read_item', type(wrong).__name__, error=TypeError): predict(weights, [wrong])

def test_nothing_gives_an_empty_table(weights):
    assert list(predict(weights, [])) == ['file', 'label', 'probability', 'error'] and not len(predict(weights, []))

def linked(folder, n):
    "A folder of `n` names of one JPEG of 300 px"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(folder/'0.jpg')
    for i in range(1, n): os.link(folder/'0.jpg', folder/f'{i}.jpg')
    return folder

def most_held(predictor, folder):
    "Most bytes that Python held while a folder was streamed, and rows that were seen"
    tracemalloc.start()
    n = sum(len(table) for table in predictor.stream(folder, bs=16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, n

def predictor_of_64_px():
    network = made_network()
    network.card = dict(vocab=NAMES, size_px=64, mean=None, std=None)
    return Predictor(network)

def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    predictor = predictor_of_64_px()
    few, many = linked(tmp_path/'few', 32), linked(tmp_path/'many', 224)
    list(predictor.stream(few))   # what is made once
    peak, n = most_held(predictor, few)
    peak_many, n_many = most_held(predictor, many)
    names_only = 192 * 1500   # bytes for the list of one folder's names; pixels would take 192 * 12,288
    assert (n, n_many) == (32, 224) and peak_many < peak + names_only

@pytest.mark.nightly
def test_memory_of_10_000_files(tmp_path):
    predictor = predictor_of_64_px()
    folder = linked(tmp_path/'many', 10_000)
    held, n = [], 0
    for table in predictor.stream(folder, bs=64):
        n += len(table)
        held.append(psutil.Process().memory_info().rss)
    assert n == 10_000 and held[-1] - held[len(held) // 10] < 30 * 2**20

# Evaluation

def test_scores_are_those_of_scikit_learn(task, weights):
    found = evaluate(weights, task)
    tested = task.splits['test']
    labels = task.labels[tested]
    guesses = Predictor(weights).logits(task.images[tested]).argmax(1)
    scores = found.scores().value
    assert scores['accuracy'] == pytest.approx(100 * float((guesses == labels).float().mean()))
    assert scores['balanced_accuracy'] == pytest.approx(100 * balanced_accuracy_score(labels, guesses))
    np.testing.assert_array_equal(found.confusion(), confusion_matrix(labels, guesses, labels=range(3)))
    row = found.scores().loc['accuracy']
    assert row.low < row.value < row.high and 'auroc' not in scores
    assert len(found.mistakes()) == int((guesses != labels).sum())

def test_two_classes_have_an_area_under_the_curve():
    task = made_task(['no', 'yes'])
    learn = task_learner(task, made_network(2), 16, cbs=[Quiet()])
    found = evaluate(learn, task)
    assert found.scores().value['auroc'] == pytest.approx(100 * roc_auc_score(found.labels, found.probs[:, 1]))

def test_classes_are_matched_by_name(task, weights):
    turned = task.replaced(vocab=NAMES[::-1], labels=2 - task.labels)
    found, other = evaluate(weights, task), evaluate(weights, turned)
    assert found.scores().equals(other.scores()) and found.temperature == other.temperature
    assert found.mistakes().equals(other.mistakes())

def test_fewer_classes_than_the_network_knows(task, weights):
    kept = {name: numbers[task.labels[numbers] != 1] for name, numbers in task.splits.items()}
    labels = torch.where(task.labels == 2, 1, 0)
    few = task.replaced(vocab=['cat', 'eel'], labels=labels, splits=kept)
    found = evaluate(weights, few)
    assert list(found.by_class().index.sort_values()) == ['cat', 'eel'] and found.confusion().shape == (2, 3)
    assert any('1 of the 3 classes have no pictures' in o for o in found.summary())

def test_what_is_refused(task, weights):
    with saying('evaluate: the network does not know 1 of the classes', "['fox']"): evaluate(weights, task.replaced(vocab=['cat', 'dog', 'fox']))
    with saying('evaluate: `split` must be one of', "got 'all'"): evaluate(weights, task, 'all')
    none = task.replaced(splits=dict(task.splits, test=torch.tensor([]).long()))
    with saying('evaluate: noise has no test pictures'): evaluate(weights, none)
    with saying("fit='crop'", "fit='pad'"): evaluate(weights, made_task(fit='pad'))

def test_temperature_is_chosen_on_valid_and_nowhere_else(task, weights):
    found = evaluate(weights, task)
    predictor = Predictor(weights)
    valid = task.splits['valid']
    assert found.temperature == fit_temperature(predictor.logits(task.images[valid]), task.labels[valid])
    assert evaluate(weights, task, 'valid').temperature is None
    none = task.replaced(splits=dict(task.splits, valid=torch.tensor([]).long()))
    assert evaluate(weights, none).temperature is None and len(evaluate(weights, none).calibration()) == 1

def test_whether_it_is_the_task_of_training(task, learn, weights):
    assert 'is the task' in evaluate(learn, task).facts['task_says']
    network = made_network()
    network.card = dict(vocab=NAMES, size_px=SIZE, mean=None, std=None)
    assert 'does not say' in evaluate(network, task).facts['task_says']
    network.card['task_sha256'] = task.fingerprint()
    assert 'is the task' in evaluate(network, task).facts['task_says']
    assert 'other pictures or splits' in evaluate(network, task.replaced(labels=2 - task.labels)).facts['task_says']
    assert 'another task, noise' in evaluate(learn, task.replaced(name='new', labels=2 - task.labels)).facts['task_says']

def made_evaluation(labels, logits, task, **kwargs):
    facts = dict(network='n', trained_on=None, task='noise', split='test', pictures=len(labels), classes=3, rule='', task_says='So.')
    return Evaluation(facts, task.vocab, labels, logits, task=task, **kwargs)

def test_report_where_nothing_is_wrong(task, tmp_path):
    labels = task.labels[task.splits['test']]
    found = made_evaluation(labels, 9. * nn.functional.one_hot(labels, 3), task)
    page = found.report(tmp_path/'report.html').read_text()
    assert found.show_mistakes() == [] and 'mistakes' not in page and '100.0%' in page and len(found.mistakes()) == 0

def test_report_of_many_classes_and_odd_names(tmp_path):
    task = made_task([f'$class_{i}^<b>' for i in range(30)], n=180)
    learn = task_learner(task, made_network(30), 16, cbs=[Quiet()])
    page = evaluate(learn, task).report(tmp_path/'new'/'report.html').read_text()
    assert '<b>' not in page and '$class_3^&lt;b&gt;' in page and page.count('<img') == 3

@pytest.mark.parametrize('in_memory', [False, True])
def test_mistakes_name_their_files(in_memory, tmp_path, weights):
    rng = np.random.default_rng(0)
    for i in range(30):
        file = tmp_path/'photos'/NAMES[i % 3]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file)
    task = image_folder(tmp_path/'photos', SIZE, in_memory=in_memory, cache=tmp_path/'cache')
    mistakes = evaluate(weights, task).mistakes()
    assert len(mistakes) and all(Path(o).is_file() for o in mistakes.picture)
    assert [Path(o).parent.name for o in mistakes.picture] == mistakes['class'].tolist()

# Calibration, against plain loops

probabilities = st.lists(st.tuples(st.floats(.01, 1), st.floats(.01, 1), st.integers(0, 1)), min_size=1, max_size=40)

@some(20)
@given(probabilities, st.integers(1, 20))
def test_calibration_error_is_that_of_the_definition(rows, n_bins):
    probs = torch.tensor([row[:2] for row in rows]).double()
    probs /= probs.sum(1, keepdim=True)
    labels = torch.tensor([row[2] for row in rows])
    total = 0
    for b in range(n_bins):
        own = [i for i, p in enumerate(probs.max(1).values.tolist()) if b / n_bins < p <= (b + 1) / n_bins and np.ceil(p * n_bins) == b + 1]
        if not own: continue
        right = np.mean([int(probs[i].argmax() == labels[i]) for i in own])
        total += len(own) / len(rows) * abs(right - np.mean([float(probs[i].max()) for i in own]))
    assert calibration_error(labels, probs, n_bins) == pytest.approx(total, abs=1e-9)
    df = reliability(labels, probs, n_bins)
    assert df.pictures.sum() == len(rows) and ((df.low - 1e-9 <= df.confidence) & (df.confidence <= df.high + 1e-9)).all()

@pytest.mark.parametrize('true', [.3, 1., 4.])
def test_temperature_finds_what_was_put_in(true):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = logits.softmax(1).multinomial(1, generator=generator)[:, 0]   # calibrated at 1
    assert fit_temperature(true * logits, labels) == pytest.approx(true, rel=.1)

def test_temperature_where_all_is_right_or_wrong_is_finite():
    logits = 5. * torch.eye(3)
    assert .05 <= fit_temperature(logits, torch.tensor([0, 1, 2])) < .2
    assert 19 < fit_temperature(logits, torch.tensor([1, 2, 0])) <= 20

# Export

def network_of(name):
    "A network with a card, and pictures it has not been checked on"
    size_px, kwargs = dict(article_cnn=(32, {}), resnet9=(32, dict(width=4)), **{'timm/resnet18': (64, {})})[name]
    torch.manual_seed(0)
    network = create_network(name, 3, **kwargs).eval()
    network.card = dict(vocab=NAMES, size_px=size_px, fit='pad', mean=[.4, .5, .6], std=[.2, .3, .4])
    return network, torch.randint(0, 256, (5, size_px, size_px, 3), dtype=torch.uint8)

NETWORKS = 'article_cnn', 'resnet9', 'timm/resnet18'

@pytest.mark.training   # its compiler takes seconds
@pytest.mark.parametrize('name', NETWORKS)
def test_onnx_gives_the_networks_probabilities(name, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    network, pixels = network_of(name)
    session = runtime.InferenceSession(str(export_network(network, tmp_path/'a.onnx')))
    for n in (1, 2, 5):   # any batch
        probs = session.run(None, dict(pixels=pixels[:n].numpy()))[0]
        close(probs, Predictor(network).logits(pixels[:n]).softmax(1), eps=1e-4)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts['classes'] == NAMES and facts['size_px'] == len(pixels[0]) and facts['fit'] == 'pad' and facts['card']['mean'] == [.4, .5, .6]

def load_script(path):
    kept = {'classes': '', 'size_px': '', 'card': ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.jit.load(path, _extra_files=kept), {key: json.loads(value) for key, value in kept.items()}

@pytest.mark.parametrize('name', [*NETWORKS[:2], pytest.param(NETWORKS[2], marks=pytest.mark.training)])
def test_torchscript_gives_the_networks_probabilities(name, tmp_path):
    network, pixels = network_of(name)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*torch.jit.(trace|save|load|trace_method)')   # nothing for the user to do
        path = export_network(network, tmp_path/'a.pt', 'torchscript')
    script, facts = load_script(path)
    for n in (1, 2, 5): close(script(pixels[:n]), Predictor(network).logits(pixels[:n]).softmax(1), eps=1e-4)
    assert facts['classes'] == NAMES and facts['card']['fit'] == 'pad'

def test_export_leaves_the_network_as_it_was(learn, tmp_path):
    learn.model.train()
    export_network(learn, tmp_path/'a.pt', 'torchscript')
    assert learn.model.training

def test_a_network_that_differs_is_not_written(tmp_path, monkeypatch):
    network, _ = network_of('resnet9')
    (tmp_path/'a.pt').write_text('as it was')
    before = PictureNetwork.forward
    monkeypatch.setattr(PictureNetwork, 'forward', lambda self, pixels: before(self, pixels) + (1e-3 if torch.jit.is_tracing() else 0))
    with saying('export_network: the exported network differs', 'no file was written', error=RuntimeError):
        export_network(network, tmp_path/'a.pt', 'torchscript')
    assert (tmp_path/'a.pt').read_text() == 'as it was' and len(list(tmp_path.iterdir())) == 1

@contextlib.contextmanager
def without(monkeypatch, *packages):
    import importlib.util
    found = importlib.util.find_spec
    with monkeypatch.context() as m:
        m.setattr(importlib.util, 'find_spec', lambda name, *args: None if name in packages else found(name, *args))
        yield

def test_packages_that_are_missing(tmp_path, monkeypatch):
    network, _ = network_of('resnet9')
    for package in ('onnx', 'onnxscript'):
        with without(monkeypatch, package), saying(package, "pip install 'nbtransfer[export]'", error=RuntimeError):
            export_network(network, tmp_path/'a.onnx')
    assert not list(tmp_path.iterdir())

@pytest.mark.training
def test_onnx_that_cannot_be_checked_says_so(tmp_path, monkeypatch):
    network, _ = network_of('resnet9')
    with without(monkeypatch, 'onnxruntime'), pytest.warns(UserWarning, match=r'a.onnx was not checked.*nbtransfer\[export\]'):
        assert export_network(network, tmp_path/'a.onnx').exists()

def test_export_checks_its_arguments(tmp_path):
    network, _ = network_of('resnet9')
    with saying('export_network: `format` must be one of onnx, torchscript', "'tflite'"): export_network(network, tmp_path/'a.onnx', 'tflite')
    with saying('export_network: `path` must end in .pt', "'a.onnx'"): export_network(network, tmp_path/'a.onnx', 'torchscript')
