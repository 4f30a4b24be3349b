"The loaders of a task: fastai's manners, where pictures lie, order and seeds, several processes, what inference needs"
import hashlib, json, socket, subprocess, sys
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.all import EarlyStoppingCallback, GradientAccumulation, SaveModelCallback
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage
from fastai.vision.augment import Brightness, Rotate, aug_transforms
from fastai.vision.core import PILImage
from fasttransform import Pipeline
from hypothesis import given, strategies as st
from PIL import Image
from helpers import ROOT, run_ok, some
from nbtransfer.augmentation import AffineAugment, Cutout, ReflectCrop
from nbtransfer.files import FITS, PictureRule, digest, read_pictures
from nbtransfer.folders import image_folder
from nbtransfer.loaders import TaskDL, TaskSplit, fits, inference_card, inference_dls
from nbtransfer.networks import article_cnn, resnet9
from nbtransfer.pretraining import Quiet, compute_settings, task_learner
from nbtransfer.tasks import Task, digits
from nbtransfer.weights import load_weights, save_weights

augments = [AffineAugment(), ReflectCrop(), Cutout(), Cutout(.02, .33, max_aspect=3.3, p=.5)]

def pixels(x, dls):
    "Bytes of a normalised batch"
    mean, std = (torch.tensor(o).view(3, 1, 1) for o in dls.task.stats)
    return ((torch.Tensor(x) * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

# Manners

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "A network that knows the digits fairly well"
    torch.manual_seed(0)
    learn = task_learner(digits(), resnet9(10, width=4), cbs=[Quiet()], path=tmp_path_factory.mktemp('learn'),
        compute=compute_settings(precision=torch.float32))
    learn.fit_one_cycle(4, 1e-2)
    return learn

def test_lengths_and_vocabulary():
    task = digits()
    dls = task.dls(bs=64)
    n = [len(o) for o in task.splits.values()]
    assert [len(o.dataset) for o in dls] == n and [len(o) for o in dls] == [n[0] // 64, -(-n[1] // 128), -(-n[2] // 128)]
    assert (dls.bs, dls.drop_last, dls.valid.drop_last, dls.vocab, dls.c, dls.n_inp) == (64, True, False, task.vocab, 10, 1)
    assert sum(len(y) for _, y in dls.train) == n[0] // 64 * 64 and sum(len(y) for _, y in dls.valid) == n[1]
    all_of_it = dls.train.new(drop_last=False, bs=100, shuffle=False)
    assert isinstance(all_of_it, TaskDL) and len(all_of_it) == -(-n[0] // 100)
    assert torch.equal(torch.cat([y for _, y in all_of_it]), task.labels[task.splits['train']])

def test_valid_and_test_come_in_order_and_whole():
    task = digits()
    dls = task.dls()
    for dl, split in zip(dls, ('train', 'valid', 'test')):
        if split == 'train': continue
        x, y = (torch.cat(o) for o in zip(*dl))
        assert torch.equal(y, task.labels[task.splits[split]])
        assert torch.equal(pixels(x, dls), task.images[task.splits[split]])

def test_fingerprint_of_a_split_is_of_its_pictures_and_labels():
    task = digits()
    split = TaskSplit(task, 'valid')
    idxs = task.splits['valid']
    assert split.fingerprint() == digest(dict(images=task.images[idxs], labels=task.labels[idxs]))
    few = split.picked([5, 5, 3])
    assert few.fingerprint() == TaskSplit(task, 'train', [5, 5, 3]).fingerprint() == TaskSplit(task.replaced(name='other'), 'test', [5, 5, 3]).fingerprint()
    pictures = [task.images[i].numpy() for i in (5, 5, 3)]
    elsewhere = split.picked(pictures)
    labelled = TaskSplit(task, 'test', pictures, elsewhere.images, labels=task.labels[[5, 5, 3]])
    assert labelled.fingerprint() == few.fingerprint() != elsewhere.fingerprint()
    assert elsewhere.fingerprint() == digest(dict(images=elsewhere.images))
    others = [split, few, elsewhere, split.new_empty(), split.picked([3, 5, 5]), TaskSplit(task.replaced(labels=task.labels.flip(0)), 'test', [5, 5, 3])]
    assert len({other.fingerprint() for other in others}) == len(others)

def test_decode_and_show(learn):
    dls = learn.dls
    x, y = dls.valid.one_batch()
    images, labels = dls.valid.decode((x, y))
    assert (images - learn.dls.task.images[learn.dls.task.splits['valid'][:len(x)]].permute(0, 3, 1, 2).long()).abs().max() <= 1
    shown = dls.valid.decode_batch((x, y), max_n=5)
    assert [label for _, label in shown] == [dls.vocab[c] for c in y[:5]]
    plt.close('all')
    dls.valid.show_batch((x, y), max_n=4)
    assert [ax.get_title() for ax in plt.gcf().axes[:4]] == [dls.vocab[c] for c in y[:4]]
    assert (np.asarray(plt.gcf().axes[0].images[0].get_array()) - np.asarray(images[0].permute(1, 2, 0))).max() == 0
    dls.train.show_batch(unique=True, max_n=4)
    learn.show_results(max_n=4)
    plt.close('all')

def test_predict_agrees_with_the_batch(learn, tmp_path):
    task = learn.dls.task
    i = task.splits['test'][0].item()
    Image.fromarray(task.images[i].numpy()).save(tmp_path/'one.png')
    probs = learn.get_preds(dl=learn.dls.test_dl([i]))[0][0]
    for item in (tmp_path/'one.png', str(tmp_path/'one.png'), task.images[i].numpy(), Image.fromarray(task.images[i].numpy())):
        name, number, p = learn.predict(item)
        assert name == task.vocab[probs.argmax()] and number == probs.argmax() and torch.allclose(p, probs, atol=1e-5)

def test_test_dl(learn, tmp_path):
    task, files = learn.dls.task, []
    for k, i in enumerate(task.splits['test'][:5].tolist()):
        files.append(tmp_path/task.vocab[task.labels[i]]/f'{k}.png')
        files[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(task.images[i].numpy()).save(files[-1])
    numbers = task.splits['test'][:5].tolist()
    x, = learn.dls.test_dl(files).one_batch()
    assert torch.equal(x, learn.dls.test_dl(numbers).one_batch()[0])
    for dl in (learn.dls.test_dl(files, with_labels=True, bs=2), learn.dls.test_dl(numbers, bs=2)):
        assert len(dl) == 3 and torch.equal(torch.cat([y for _, y in dl]), task.labels[numbers])
        assert learn.validate(dl=dl)[1] > .5
    (tmp_path/'eleven').mkdir()
    Image.fromarray(task.images[0].numpy()).save(tmp_path/'eleven'/'a.png')
    with pytest.raises(ValueError, match='eleven'): learn.dls.test_dl([tmp_path/'eleven'/'a.png'], with_labels=True)
    (tmp_path/'bad.png').write_bytes(b'no')
    with pytest.raises(ValueError, match='bad.png'): learn.dls.test_dl([tmp_path/'bad.png'])
    with pytest.raises(ValueError, match='none.png'): learn.dls.test_dl([tmp_path/'none.png'])

def test_interpretation(learn):
    found = ClassificationInterpretation.from_learner(learn)
    n = len(learn.dls.valid_ds)
    matrix = found.confusion_matrix()
    assert matrix.sum() == n and np.trace(matrix) / n == pytest.approx(learn.validate()[1], abs=1e-6)
    losses, idx = found.top_losses(4)
    inps, preds, targs, decoded, _ = found[idx]
    assert torch.equal(targs, learn.dls.task.labels[learn.dls.task.splits['valid'][idx]])
    assert torch.allclose(-preds[range(4), targs].log(), losses, atol=1e-3)
    found.plot_top_losses(4)
    assert {ax.get_title().split('/')[1].strip() for ax in plt.gcf().axes[:4]} == {learn.dls.vocab[c] for c in targs}
    Interpretation.from_learner(learn).show_results([0, 1])
    plt.close('all')

@pytest.mark.training
def test_learner_tools_work_unchanged(tmp_path):
    learn = task_learner(digits(), article_cnn(10), bs=64, path=tmp_path, cbs=[Quiet(), GradientAccumulation(128)])
    assert learn.lr_find(show_plot=False, num_it=10).valley > 0
    learn.fit_one_cycle(1, 1e-3, cbs=[SaveModelCallback(), EarlyStoppingCallback()])
    tta = learn.tta()[0]
    assert tta.shape == (len(learn.dls.valid_ds), 10)

def test_item_transforms_are_refused_not_left_out():
    dls = digits().dls()
    dls.add_tfms([ToTensor()], 'after_item')
    with pytest.raises(ValueError, match='ToTensor'): dls.train.one_batch()

def test_another_device():
    "`meta` computes shapes only: every step that would read a number back from the device fails"
    dls = digits().dls(bs=16, augment=augments, on_device=True).to(torch.device('meta'))
    for dl in dls:
        x, y = dl.one_batch()
        assert x.device.type == y.device.type == 'meta' and x.shape[1:] == (3, 32, 32)

def test_pictures_are_copied_to_the_device_once_and_only_if_they_fit(monkeypatch):
    meta = torch.device('meta')
    task = digits().replaced(name='own', images=digits().images.clone())
    moved, to = [], torch.Tensor.to
    def spy(self, *args, **kwargs):
        moved.append(self.nbytes)
        return to(self, *args, **kwargs)
    monkeypatch.setattr(torch.Tensor, 'to', spy)
    def epoch(**kwargs):
        moved.clear()
        for dl in task.subset(20).dls(50, device=meta, **kwargs)[:2]: list(dl)
        return max(moved)
    assert epoch(on_device=False) < task.images.nbytes
    monkeypatch.setattr('nbtransfer.loaders.free_memory', lambda device=None: 1.9 * task.images.nbytes)
    with pytest.warns(UserWarning, match='over half of the free memory of meta.*on_device=True'): assert epoch() < task.images.nbytes
    assert not fits(task.images.nbytes, meta) and epoch(on_device=True) == task.images.nbytes
    task.images[0] = 0   # the copy is out of date
    monkeypatch.setattr('nbtransfer.loaders.free_memory', lambda device=None: 3 * task.images.nbytes)
    assert epoch() == task.images.nbytes and epoch() < task.images.nbytes and epoch(on_device=True) < task.images.nbytes

# What inference needs

def test_card_is_all_that_inference_needs(learn, tmp_path):
    path = save_weights(learn, tmp_path/'digits.safetensors')
    model = load_weights(path)
    card = inference_card(learn.dls)
    assert json.loads(json.dumps(card)) == card and card.items() <= model.card.items()
    fresh = Learner(inference_dls(model.card), model, loss_func=CrossEntropyLossFlat())
    for i in learn.dls.task.splits['test'][:3].tolist():
        image = learn.dls.task.images[i].numpy()
        (a, _, p), (b, _, q) = learn.predict(image), fresh.predict(image)
        assert a == b and torch.allclose(p, q, atol=1e-4)   # both compute in float32
    assert inference_card(fresh.dls) == card
    for bad in ({}, {'vocab': ['a']}, None):
        with pytest.raises(ValueError, match='size_px'): inference_dls(bad)
    with pytest.raises(ValueError, match='the card has no size_px: '): inference_dls({key: card[key] for key in card if key != 'size_px'})

# Pictures from elsewhere

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Two classes of small JPEG files in colour"
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (folder/name).mkdir()
        for i in range(8):
            small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            small.resize((56, 40)).save(folder/name/f'{i}.jpg')
    return folder

@pytest.mark.parametrize('in_memory', [True, False], ids=['in memory', 'in files'])
@pytest.mark.parametrize('fit', FITS)
def test_every_way_to_give_a_picture_gives_the_same_answer(in_memory, fit, photos, tmp_path):
    task = image_folder(photos, 32, in_memory=in_memory, cache=tmp_path).replaced(fit=fit)
    torch.manual_seed(0)
    learn = task_learner(task, article_cnn(2), cbs=[Quiet()], compute=compute_settings(precision=torch.float32))
    path = photos/'cat'/'0.jpg'
    array = np.asarray(Image.open(path))
    channels_first = torch.from_numpy(array.copy()).permute(2, 0, 1)
    of_file = learn.predict(path)[2]
    lazy = Image.open(path)
    ways = [str(path), path.read_bytes(), lazy, Image.open(path).convert('RGB'), PILImage.create(path), array, torch.from_numpy(array.copy()),
        channels_first, TensorImage(channels_first)]
    for picture in ways: assert torch.allclose(learn.predict(picture)[2], of_file, atol=1e-6), type(picture)
    assert np.array_equal(lazy, array), 'the image was left as it was'
    images = learn.dls.test_dl([lazy]).dataset.images
    assert torch.equal(images, read_pictures([path], PictureRule(32, fit)))
    other = learn.dls.test_dl([*ways, path])
    assert len(torch.cat([x for x, in other])) == len(ways) + 1

@pytest.mark.parametrize('in_memory', [True, False], ids=['in memory', 'in files'])
@pytest.mark.parametrize('picture, error, words', [
    (np.random.rand(32, 32, 3), ValueError, 'array of float64, .* is not guessed at'), (torch.rand(3, 32, 32), ValueError, 'array of float32, .* is not guessed at'),
    (np.zeros((32, 32), np.uint16), ValueError, 'array of uint16, 0 to 0, is not guessed at'), (np.zeros(7, np.uint8), TypeError, 'is no picture; take a path'),
    ('none.jpg', ValueError, 'none.jpg cannot be read: no such file'), (b'no picture', ValueError, 'bytes object is no picture, or is cut short'),
    (None, TypeError, 'NoneType is no picture')],
    ids=['floats', 'float tensor', 'uint16', 'row', 'no file', 'bytes', 'none'])
def test_what_cannot_be_read_for_sure_is_one_line(in_memory, picture, error, words, photos, tmp_path):
    task = image_folder(photos, 32, in_memory=in_memory, cache=tmp_path)
    dls = task.dls(4)
    with pytest.raises(error, match=words): list(dls.test_dl([picture], num_workers=0))

def test_window_of_the_task_is_used_and_conversion_is_said():
    task = digits().replaced(window=(0, 1))
    grey = task.images[0, ..., 0].numpy()
    dls = task.dls()
    with pytest.warns(UserWarning, match=r'converted 2 grey \(repeated three times\), 1 beyond 8 bits \(through the window\)'):
        images = dls.test_dl([grey, grey / 255, task.images[0]]).dataset.images
    assert all(torch.equal(image, task.images[0]) for image in images)

def test_one_array_is_not_taken_for_a_list():
    dls = digits().dls()
    for array in (np.zeros((32, 32, 3), np.uint8), torch.zeros(32, 32, dtype=torch.uint8)):
        with pytest.raises(TypeError, match='items must be a list of pictures .got one (ndarray|Tensor).: put it in brackets'): dls.test_dl(array)
    assert len(dls.test_dl(np.zeros((5, 32, 32, 3), np.uint8))) == 1 and len(dls.test_dl(np.arange(3)).dataset) == 3

def test_loaders_of_a_task_without_test_pictures():
    task = digits()
    dls = task.replaced(splits={**task.splits, 'test': task.splits['test'][:0]}).dls()
    assert (len(dls[2]), list(dls[2])) == (0, []) and len(dls.valid) > 0

def test_card_holds_fit_and_window_and_older_cards_mean_cropped():
    card = inference_card(digits().replaced(fit='pad', window=(0, 4095)).dls())
    assert json.loads(json.dumps(card)) == card and (card['fit'], card['window']) == ('pad', [0, 4095])
    assert inference_dls(card).task.rule == PictureRule(32, 'pad', (0, 4095)) and inference_card(inference_dls(card)) == card
    older = {key: value for key, value in card.items() if key not in ('fit', 'window')}
    assert inference_dls(older).task.rule == PictureRule(32)
    for wrong in (dict(fit='stretch'), dict(window=[9, 0]), dict(size_px=32.5)):
        with pytest.raises(ValueError, match='PictureRule: '): inference_dls({**card, **wrong})

def test_fastais_own_export_holds_no_pictures(learn, tmp_path):
    "It is a pickle, and no function of ours reads one; it should work all the same, and be small"
    learn.export(tmp_path/'learn.pkl')
    n_params = sum(p.nbytes for p in learn.model.parameters())
    assert (tmp_path/'learn.pkl').stat().st_size < 4 * n_params + 200_000 < learn.dls.task.images.nbytes
    again = load_learner(tmp_path/'learn.pkl')
    image = learn.dls.task.images[3].numpy()
    assert again.predict(image)[0] == learn.predict(image)[0] and again.dls.vocab == learn.dls.vocab

# Order and seeds

def prints(dl, n_epochs=1):
    "A hash of each batch"
    return [hashlib.sha256(np.ascontiguousarray(torch.Tensor(x).numpy()).tobytes() + y.numpy().tobytes()).hexdigest()
            for _ in range(n_epochs) for x, y in dl]

def test_same_seed_same_batches_whatever_happened_before():
    torch.manual_seed(1)
    first = prints(digits().dls(100, augments, seed=3).train, 2)
    torch.manual_seed(2)
    other = digits().dls(50, seed=4).train
    other.one_batch()
    assert prints(digits().dls(100, augments, seed=3).train, 2) == first
    assert not set(first[:len(first) // 2]) & set(first[len(first) // 2:]), 'epochs differ'
    assert not set(prints(digits().dls(100, augments, seed=4).train)) & set(first)

def test_looking_at_other_batches_changes_nothing():
    a, b = (digits().dls(100, augments, seed=3) for _ in range(2))
    seen = []
    for x, _ in a.train:
        a.valid.one_batch()
        seen.append(x.sum().item())
    assert seen == [x.sum().item() for x, _ in b.train]
    news = [[y.tolist() for _, y in digits().dls(100, seed=3).train.new(bs=40)] for _ in range(2)]
    assert news[0] == news[1]

in_another_process = '''
import hashlib
import numpy as np, torch
from nbtransfer.augmentation import AffineAugment, Cutout, ReflectCrop
import nbtransfer.loaders
from nbtransfer.tasks import digits
augments = [AffineAugment(), ReflectCrop(), Cutout(), Cutout(.02, .33, max_aspect=3.3, p=.5)]
torch.rand(5)
dl = digits().dls(100, augments, seed=3).train
for epoch in range(2):
    for x, y in dl:
        x = np.ascontiguousarray(torch.Tensor(x).numpy()).tobytes()
        print(hashlib.sha256(x + y.numpy().tobytes()).hexdigest())
'''

@pytest.mark.process
def test_same_seed_same_batches_in_another_process():
    here = prints(digits().dls(100, augments, seed=3).train, 2)
    assert run_ok([sys.executable, '-c', in_another_process], ROOT).split()[-len(here):] == here

def marked(n, n_classes):
    "A task whose pictures carry their number and label in their pixels"
    numbers = torch.arange(n)
    labels = numbers % n_classes
    images = torch.zeros(n, 4, 4, 3, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1], images[:, 0, 0, 2] = numbers // 256, numbers % 256, labels
    cut = n_classes * 2
    splits = dict(train=numbers[cut * 2:], valid=numbers[:cut], test=numbers[cut:cut * 2])
    return Task('marked', images, labels, [f'c{c}' for c in range(n_classes)],
        splits={s: o[torch.randperm(len(o))] for s, o in splits.items()})

def read_marks(x, dls):
    p = pixels(x, dls)[:, 0, 0].long()
    return p[:, 0] * 256 + p[:, 1], p[:, 2]

@some(20)
@given(n=st.integers(60, 700), n_classes=st.integers(2, 9), bs=st.integers(1, 80), seed=st.integers(0, 2**31), per_class=st.none() | st.integers(1, 2))
def test_labels_follow_pictures(n, n_classes, bs, seed, per_class):
    task = marked(n, n_classes)
    if per_class: task = task.subset(per_class, seed)
    dls = task.dls(bs, augment=False, seed=seed)
    for dl, split in zip(dls, ('train', 'valid', 'test')):
        marks = [(*read_marks(x, dls), y) for x, y in dl]
        numbers, labels, y = (torch.cat(o).tolist() for o in zip(*marks))
        assert labels == y and len(set(numbers)) == len(numbers) and set(numbers) <= set(task.splits[split].tolist())
        if split != 'train': assert numbers == task.splits[split].tolist()

@some(20)
@given(n=st.integers(60, 400), world=st.integers(1, 4), bs=st.integers(1, 30), seed=st.integers(0, 99))
def test_shards_are_one_pass(n, world, bs, seed):
    task = marked(n, 3)
    for split, k in (('train', 0), ('valid', 1)):
        epochs = []
        for rank in range(world):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr('nbtransfer.loaders._rank_and_world', lambda: (rank, world))
                dls = task.dls(bs, augment=False, seed=seed)
                dl = dls[k].new(bs=bs) if k else dls[k]
                marks = [(*read_marks(x, dls), y) for x, y in dl]
                assert len(marks) == len(dl) and all(torch.equal(label, y) for _, label, y in marks)
                epochs.append([m[0].tolist() for m in marks])
        assert len({tuple(map(len, o)) for o in epochs}) == 1, 'all have as many batches, of the same sizes'
        gathered = [i for step in zip(*epochs) for batch in step for i in batch]
        own = task.splits[split].tolist()
        if k: assert gathered[:len(own)] == own and len(gathered) < len(own) + world
        elif bs * world <= len(own): assert len(set(gathered)) == len(gathered) == len(own) // (bs * world) * bs * world

def test_a_loader_around_it_is_refused(monkeypatch):
    "As fastai's `DistributedDL` asks; with it, each process would have a quarter instead of a half"
    monkeypatch.setattr('nbtransfer.loaders._rank_and_world', lambda: (0, 2))
    dl = digits().dls().train
    list(dl)
    with pytest.raises(RuntimeError, match='share'): list(dl.create_batches(iter(dl.get_idxs())))

script = '''
import os, sys, torch, torch.distributed as dist
from fastai.callback.core import Callback
from torch.nn.parallel import DistributedDataParallel
from nbtransfer.networks import article_cnn
from nbtransfer.pretraining import Quiet, task_learner
from nbtransfer.tasks import digits
rank = int(sys.argv[1])
os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group('gloo', rank=rank, world_size=2)
torch.manual_seed(rank)
task = digits()
learn = task_learner(task, article_cnn(10), bs=64, cbs=[Quiet()])
for p in learn.model.parameters(): dist.broadcast(p.data, 0)
labels = torch.cat([y for _, y in learn.dls.train])
xs = torch.cat([x for x, _ in learn.dls.train])
learn.create_opt()
plain = learn.model
learn.model = DistributedDataParallel(plain)
learn.fit_one_cycle(2, 2e-3)
preds, targs = learn.get_preds()
same = torch.equal(targs, task.labels[task.splits['valid']])
weights = torch.cat([p.flatten() for p in plain.parameters()])
both = [torch.zeros_like(weights) for _ in range(2)]
dist.all_gather(both, weights.detach())
print('RESULT', rank, len(learn.dls.train), len(labels), len(preds), same, torch.equal(*both),
      f'{float((preds.argmax(1) == targs).float().mean()):.3f}', f'{float(xs.double().sum()):.4f}')
dist.destroy_process_group()
'''

@pytest.mark.process
@pytest.mark.training
def test_two_processes_train_one_network_on_a_cpu(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    runs = [subprocess.Popen([sys.executable, '-c', script, str(rank), port], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True) for rank in range(2)]
    printed = [run.communicate(timeout=240) for run in runs]
    assert all(run.returncode == 0 for run in runs), '\n'.join(err for _, err in printed)
    a, b = ([line for line in out.splitlines() if line.startswith('RESULT')][0].split()[2:] for out, _ in printed)
    n = len(digits().splits['train'])
    for o in (a, b): assert o[:5] == [str(n // 128), str(n // 128 * 64), str(len(digits().splits['valid'])), 'True', 'True']
    assert a[5] == b[5] and float(a[5]) > .5 and a[6] != b[6]

# Batch transforms

@pytest.mark.parametrize('augment', [aug_transforms(), Pipeline([Brightness(), Rotate()]), Rotate(), [Cutout(), Brightness()]], ids=['list', 'Pipeline', 'one', 'mixed'])
def test_fastais_batch_transforms_fit_in(augment):
    task = digits()
    dls = task.dls(64, augment)
    x, y = dls.train.one_batch()
    plain = task.dls(64, False).train.one_batch()[0]
    assert x.shape == (64, 3, 32, 32) and x.std() > .3 and not torch.allclose(x, plain)
    fs = [type(o) for o in dls.train.after_batch.fs]
    assert fs[0] == IntToFloatTensor and Normalize in fs[-2:] and len(fs) > 2
    assert torch.allclose(torch.cat([x for x, _ in dls.valid]), torch.cat([x for x, _ in task.dls(augment=False).valid]), atol=1e-4)

def test_augmentation_leaves_the_order_alone():
    task = digits()
    orders = [[y.tolist() for _, y in task.dls(100, a, seed=5).train] for a in (False, True, augments)]
    assert orders[0] == orders[1] == orders[2]


# A loader's shuffle and augmentation, in one process that plays several

def test_each_process_augments_its_own_pictures_differently(monkeypatch):
    "Two processes with the same seed would else turn their first pictures by the same angle"
    seen = []
    for rank in range(2):
        monkeypatch.setattr('nbtransfer.loaders._rank_and_world', lambda: (rank, 2))
        dls = digits().dls(100, [AffineAugment()], seed=3)
        list(dls.train)
        seen.append(dls.train.after_batch.fs[1].draw(4)[0].tolist())
    assert seen[0] != seen[1]

def test_what_was_gathered_is_cut_after_the_last_batch_only(monkeypatch):
    monkeypatch.setattr('nbtransfer.loaders._rank_and_world', lambda: (0, 2))
    dl = digits().dls().valid.new(list(range(11)), bs=2)
    rows = []
    for _ in dl: rows.append(len(dl.to_detach((torch.arange(4),))[0]))
    assert rows == [4, 4, 3] and len(dl.to_detach(torch.arange(4), gather=False)) == 4
