"Every notebook runs from top to bottom, each in a fresh process"
import pytest
from helpers import NOTEBOOKS, ROOT, find_script, run

@pytest.mark.chapter
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda o: o.stem)
def test_chapter(notebook, request, one_thread):
    cifar = ['--flags', 'cifar', '--cell-timeout', '0'] if request.config.getoption('cifar') else []
    code, printed = run([find_script('nbdev-test'), str(notebook), *cifar], ROOT, MPLBACKEND='agg', **one_thread)
    assert code == 0, f'{notebook.name} fails:\n{printed}'
