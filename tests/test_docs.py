"Every public name is documented where it is defined: its parameters, what it returns, and what it does"
import ast, importlib, inspect, re, textwrap
import pytest
from fastai.callback.core import event
from fastcore.docments import docments
from helpers import MODULES, exported_names

transforms = {'encodes', 'decodes', 'setups'}  # of a fastai `Transform`
names = pytest.mark.parametrize('module,name', [(o.stem, n) for o in MODULES for n in exported_names(o)])

def find(module, name): return getattr(importlib.import_module(f'nbtransfer.{module}'), name)

def is_ours(obj): return getattr(obj, '__module__', '').startswith('nbtransfer')

def public_parts(name, obj):
    "The functions to check, by the names they are known by: `obj` itself, or the public methods of a class"
    if inspect.isfunction(obj): return {name: obj}
    if not inspect.isclass(obj): return {}
    methods, theirs = {}, [o for o in obj.__mro__ if not is_ours(o)]
    for k, v in vars(obj).items():
        if k != '__init__' and any(hasattr(o, k) for o in [event, *theirs]) or k in transforms: continue  # fastai or torch says what it does
        if isinstance(v, (classmethod, staticmethod)): v = v.__func__
        if isinstance(v, property): v = v.fget
        if inspect.isfunction(v) and (k[0] != '_' or k == '__init__') and is_ours(v): methods[f'{name}.{k}'] = v
    return methods

def definition(function):
    try: return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError): return None  # made by a decorator such as dataclass

def returns_something(node):
    inner = {o for f in ast.walk(node) if isinstance(f, (ast.FunctionDef, ast.Lambda)) and f is not node for o in ast.walk(f)}
    own = [o for o in ast.walk(node) if o not in inner]
    return any(isinstance(o, (ast.Yield, ast.YieldFrom)) or isinstance(o, ast.Return) and o.value is not None for o in own)

def missing_docments(name, function):
    node = definition(function)
    if not isinstance(node, ast.FunctionDef): return []
    docs = docments(function, full=True, args_kwargs=True)
    own = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg] if a]
    wanted = [o for o in own if o not in ('self', 'cls') and o in docs]
    if returns_something(node): wanted.append('return')
    untyped = [a.arg for a in (node.args.vararg, node.args.kwarg) if a]
    missing = [f'{name}: no type for {o}' for o in wanted if o not in untyped and docs[o].anno is inspect.Parameter.empty]
    return missing + [f'{name}: no comment for {o}' for o in wanted if not docs[o].docment]

def summary_faults(name, obj):
    summary = (inspect.getdoc(obj) or '').split('\n')[0]
    if not summary: return [f'{name}: no docstring']
    one_sentence = re.match(r'[A-Z`]', summary) and not re.search(r'[a-z]\. [A-Z]', summary)
    return [] if one_sentence else [f'{name}: the first line of the docstring is not one sentence: {summary!r}']

@names
def test_is_documented(module, name):
    obj = find(module, name)
    if not (inspect.isfunction(obj) or inspect.isclass(obj)): return  # a constant: the chapter's prose explains it
    faults = summary_faults(name, obj)
    for part, function in public_parts(name, obj).items():
        if not part.endswith('.__init__') and part != name: faults += summary_faults(part, function)
        faults += missing_docments(part, function)
    assert not faults, '\n'.join(faults)

def test_all_offers_every_public_name():
    offered = vars(importlib.import_module('nbtransfer.all'))
    missing = [n for o in MODULES if o.stem != 'cli' for n in exported_names(o) if n not in offered]
    assert not missing
