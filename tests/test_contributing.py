"The commands of CONTRIBUTING.md: each exists, the quick ones run, and running them changes nothing"
import os, re, shlex, sys
import pytest
from helpers import ROOT, find_script, run_ok

text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
blocks = re.findall(r'^ *```sh\n(.*?)^ *```$', text, re.M | re.S)
commands = [shlex.split(o, comments=True) for block in blocks for o in block.splitlines() if o.strip()]
quick = [  # run here; the others are checked to exist
    'nbdev-install-hooks', 'nbdev-export', 'nbdev-clean', 'python tools/build_readme.py', 'python tools/build_site.py']

def line(command): return ' '.join(command)

def take_changes(copy):
    "What git sees changed in `copy`, which is then put back"
    changed = run_ok(['git', 'status', '--porcelain'], copy)
    for command in ('git reset -q --hard', 'git clean -fdq'): run_ok(command.split(), copy)
    return changed

def seconds_of(command, cwd, **env):
    "Run a command; what it took of processors, which other tests beside it change little"
    before = os.times()
    run_ok(command, cwd, **env)
    return sum(os.times()[2:4]) - sum(before[2:4])

def test_page_has_the_loop():
    assert len(commands) > len(quick)
    missing = set(quick) - {line(o) for o in commands}
    assert not missing, f'CONTRIBUTING.md does not show {missing}'

@pytest.mark.parametrize('command', commands, ids=line)
def test_command_exists(command):
    program, *args = command
    if program in ('git', 'source', 'cd', 'bash', 'open'): pass
    elif program in ('python', 'python3'): assert args[0] == '-m' or (ROOT/args[0]).is_file()
    else: find_script(program)
    for o in args:  # files that the page names
        if re.match(r'(nbs|tools|tests|docs|\.ci)/', o): assert (ROOT/o.split('::')[0]).exists(), o

@pytest.mark.process
@pytest.mark.parametrize('command', quick)
def test_quick_command_changes_nothing(command, clean_copy, tmp_path):
    if 'build_site' in command: pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11')
    program, *args = command.split()
    spent = seconds_of([sys.executable if program == 'python' else find_script(program), *args], clean_copy, HOME=str(tmp_path))
    if spent > 30: spent *= 10 / seconds_of([sys.executable, '-c', 'import fastai.vision.all'], clean_copy)   # a slow machine, or a busy one
    assert spent < 30, f'{command} took {spent:.0f} seconds of a processor'
    changed = take_changes(clean_copy)
    assert not changed, f'{command} changes the tree; run it and commit the result:\n{changed}'
