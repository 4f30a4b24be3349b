"The rules for chapters and modules: names, order of imports, length, what a cell may hold, and plain code"
import ast, re
from collections import Counter
from xml.etree import ElementTree
import pytest
from helpers import CHAPTERS, IMAGES, MODULES, NOTEBOOKS, PACKAGE, ROOT, code_cells, directives, exported_names, imported_modules, parse_file, read_notebook, source

notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
chapters = pytest.mark.parametrize('path', CHAPTERS, ids=lambda o: o.stem)
lazy = {'26_cli'}  # imports inside functions, so that --help is instant
stars = {'fastai.vision.all', 'nbtransfer.all'}

def number(path): return int(path.stem[:2])
def default_exp(path): return re.findall(r'^#\|\s*default_exp:?\s+(\S+)', '\n'.join(map(source, code_cells(read_notebook(path)))), re.M)
def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))
def is_exported(cell): return bool({'export', 'exports', 'exporti'} & set(directives(cell)))

module_numbers = {o.stem[3:]: number(o) for o in CHAPTERS if default_exp(o)}
CELLAR = 90   # chapters from here on import nothing of ours, and every chapter may import them
modules = pytest.mark.parametrize('module', MODULES, ids=lambda o: o.stem)

def comes_before(one, number):
    "Whether a chapter of this number may import module `one`"
    own = module_numbers.get(one, 99)
    return number < CELLAR and (own < number or own >= CELLAR)

# Chapters and modules

def test_there_are_chapters(): assert CHAPTERS and MODULES

@chapters
def test_chapter_name(path): assert re.fullmatch(r'\d\d_[a-z]+(_[a-z]+)*', path.stem)

def test_numbers_and_stems_are_unique():
    for key in (number, lambda o: o.stem[3:]):
        repeated = [k for k, n in Counter(map(key, CHAPTERS)).items() if n > 1]
        assert not repeated

@chapters
def test_exports_to_its_own_module(path):
    exports = any(map(is_exported, code_cells(read_notebook(path))))
    assert default_exp(path) == ([path.stem[3:]] if exports else [])

@pytest.mark.parametrize('module', MODULES, ids=lambda o: o.stem)
def test_module_has_its_chapter(module):
    assert module.stem in module_numbers, f'{module.name} has no chapter: export does not remove it, so remove it by hand'

def test_no_name_is_exported_twice():
    repeated = [k for k, n in Counter(name for o in MODULES for name in exported_names(o)).items() if n > 1]
    assert not repeated

@modules
def test_module_imports_only_earlier_ones(module):
    own = {o.removeprefix('nbtransfer.').split('.')[0] for o in imported_modules(parse_file(module)) if o.startswith('nbtransfer.')}
    if module.stem == 'cli': own -= {'all'}  # it gathers the chapters before cli
    late = {o for o in own if not comes_before(o, module_numbers[module.stem])}
    assert not late, f'{module.name} imports {late}, which does not come before it'

@chapters
def test_chapter_uses_no_later_module(path):
    "Its demonstrations neither; an appendix shows itself at work on what it likes"
    text = '\n'.join(source(c) for c in code_cells(read_notebook(path)) if number(path) < CELLAR or is_exported(c))
    used = set(re.findall(r'^\s*(?:from|import)\s+nbtransfer\.(\w+)', text, re.M)) - {'all', path.stem[3:]}
    late = {o for o in used if not comes_before(o, number(path))}
    assert not late, f'{path.name} imports {late}, which comes after it'

def test_all_gathers_every_module():
    gathered = {o.module for o in parse_file(PACKAGE/'all.py').body if isinstance(o, ast.ImportFrom)}
    assert gathered == {o.stem for o in MODULES} - {'cli'}

# Cells

@notebooks
def test_title_cell(path):
    first, *rest = read_notebook(path)['cells']
    lines = [o for o in source(first).splitlines() if o.strip()]
    assert first['cell_type'] == 'markdown' and len(lines) == 2, 'the first cell holds the title and one > line, nothing else'
    assert re.match(r'# \S', lines[0]) and re.match(r'> \S', lines[1])
    assert rest and rest[0]['cell_type'] == 'markdown', 'the second cell says why'
    assert source(rest[-1]).strip(), 'the last cell is empty'

@notebooks
def test_nothing_is_skipped(path):
    for cell in read_notebook(path)['cells']:
        assert not re.search(r'eval:\s*false|skip_exec|skip_showdoc|^#\|\s*\.?notest', source(cell), re.M), source(cell)

@notebooks
def test_cells_are_plain_python(path):
    for cell in code_cells(read_notebook(path)):
        try: ast.parse(source(cell))
        except SyntaxError: pytest.fail(f'a shell line, a magic or an error in:\n{source(cell)}')
        assert 'nbdev_export(' not in source(cell)

@notebooks
def test_imports_stand_alone(path):
    for cell in code_cells(read_notebook(path)):
        tree = ast.parse(source(cell))
        if path.stem in lazy and not any(map(is_import, tree.body)): continue
        found = [o for o in ast.walk(tree) if is_import(o)]
        assert not found or all(map(is_import, tree.body)), f'an import beside other code in:\n{source(cell)}'

@notebooks
def test_star_imports(path):
    for cell in code_cells(read_notebook(path)):
        for o in ast.walk(ast.parse(source(cell))):
            if not isinstance(o, ast.ImportFrom) or o.names[0].name != '*': continue
            assert o.module in stars and not is_exported(cell), f'star import of {o.module} in:\n{source(cell)}'

@notebooks
def test_no_relative_paths(path):
    for cell in code_cells(read_notebook(path)):
        for o in ast.walk(ast.parse(source(cell))):
            if isinstance(o, ast.Constant) and isinstance(o.value, str):
                assert not re.match(r'\.{1,2}/|(nbs|docs|tools|tests)/', o.value), f'{o.value!r} in:\n{source(cell)}'

@notebooks
def test_no_more_than_four_code_cells_in_a_row(path):
    in_row = 0
    for cell in read_notebook(path)['cells']:
        if cell['cell_type'] != 'code': in_row = 0
        elif not {'hide', 'default_exp'} & set(directives(cell)): in_row += 1
        assert in_row <= 4, f'the fifth code cell without a sentence:\n{source(cell)}'

@notebooks
def test_cells_are_short(path):
    for cell in code_cells(read_notebook(path)):
        lines = source(cell).splitlines()
        assert len(lines) <= 60, f'{len(lines)} lines in:\n{source(cell)}'
        too_long = [o for o in lines if len(o) > 100 and not o.startswith('#|')]
        assert not too_long, f'over 100 characters: {too_long[0]}'

@notebooks
def test_cell_ids_are_unique(path):
    ids = [c.get('id') for c in read_notebook(path)['cells']]
    assert all(ids) and len(ids) == len(set(ids))

# Length

MOST_CELLS, MOST_MINUTES = 60, 20   # past that, another question is another chapter

@chapters
def test_chapter_is_not_too_long(path):
    assert len(code_cells(read_notebook(path))) <= MOST_CELLS
    page = (ROOT/f'docs/{path.stem[3:]}.html').read_text(encoding='utf-8')
    assert int(re.search(r'(\d+) minutes to read', page)[1]) <= MOST_MINUTES   # as the site counts them

LISTINGS = {}   # chapter → definitions that stand third or later in a row, nothing shown between. Only to be made shorter.

def is_definition(cell): return is_exported(cell) and not all(map(is_import, ast.parse(source(cell)).body))

@chapters
def test_at_most_two_definitions_in_a_row(path):
    in_row, found = 0, []
    for cell in code_cells(read_notebook(path)):
        if is_definition(cell): in_row += 1
        elif 'hide' not in directives(cell): in_row = 0   # a demonstration
        if is_definition(cell) and in_row > 2: found.append(cell['id'])
    assert found == LISTINGS.get(path.stem, []), 'show what is defined at work; what is listed and complies is taken off the list'

def words_of(name): return {o.lower() for o in re.findall(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+', name)}

@chapters
def test_id_of_a_cell_names_what_it_defines(path):
    for cell in filter(is_definition, code_cells(read_notebook(path))):
        names = defined_names(ast.parse(source(cell)))
        fits = any(words_of(o) <= words_of(cell['id']) for o in names)
        assert fits, f'{cell["id"]} defines {names}'

def defined_names(tree):
    "Of functions, classes and constants at the top of a syntax tree"
    names = [o.name for o in tree.body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
    targets = [target for o in tree.body if isinstance(o, ast.Assign) for target in o.targets]
    return names + [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]

# Who knows what

@modules
def test_no_private_name_of_another_module(module):
    tree = parse_file(module)
    imported = [o.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level for o in node.names]
    assert not [o for o in imported if o.startswith('_')]
    own = private_definitions(tree)
    elsewhere = set().union(*(private_definitions(parse_file(o)) for o in MODULES if o != module)) - own
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & elsewhere

def private_definitions(tree):
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return {o for o in names if re.match('_[^_]', o)}

INSIDES = {'tasks': {'self', 'other'}, 'pretraining': {'learn', 'self'}}   # who may look into what by `vars` or `__dict__`

@modules
def test_insides_are_looked_at_by_their_owner_only(module):
    text = module.read_text(encoding='utf-8')
    looked_into = re.findall(r'(\w+)\.__dict__|\bvars\((\w+)', text)
    kinds = {'task', 'few', 'learn', 'dls', 'learner'}
    found = {one or two for one, two in looked_into} - INSIDES.get(module.stem, set())
    assert not found & kinds and not re.search(r'(?:dls|task|learn)\.__dict__', text) or module.stem in INSIDES, found
    assert not re.search(r"hasattr\(task, '(images|files)'\)|getattr\(task, '(images|files)'", text) or module.stem in ('tasks', 'folders')

# Plain code

MATHS = {'augmentation': 'p', 'comparison': 'abm', 'features': 'C', 'similarity': 'Cqt'}   # module → letters of the formulas on its page, besides those that every page has
LETTERS = set('ijkndxy_')

@modules
def test_names_are_words(module):
    tree = parse_file(module)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    odd = {o for o in names if len(o) == 1} - LETTERS - set(MATHS.get(module.stem, ''))
    assert not odd, 'names are words; only indices, axes and the maths on the page have letters'

COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp

def inner(node, kinds): return [o for o in ast.walk(node) if isinstance(o, kinds) and o is not node]

@modules
def test_statements_are_plain(module):
    for node in ast.walk(parse_file(module)):
        if isinstance(node, (*COMPREHENSIONS, ast.IfExp)):
            kind = ast.IfExp if isinstance(node, ast.IfExp) else COMPREHENSIONS
            assert not inner(node, kind), f'nested in one statement:\n{ast.unparse(node)}'
        if isinstance(node, ast.Assign):
            packed = isinstance(node.value, ast.Tuple) and any(isinstance(o, ast.Tuple) for o in node.targets)
            assert not packed, f'several values packed into one assignment:\n{ast.unparse(node)}'
        if isinstance(node, ast.Lambda): assert not node.args.defaults, ast.unparse(node)

MOST_BY_PLACE, MOST_OF_A_HELPER = 4, 5

@modules
def test_calls_are_told_apart(module):
    "More than four arguments are passed, and taken, by name; a private helper that needs more than five takes a dataclass"
    tree = parse_file(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) != 'zip':
            assert len(node.args) <= MOST_BY_PLACE or any(isinstance(o, ast.Starred) for o in node.args), ast.unparse(node)
    for node in (o for o in ast.walk(tree) if isinstance(o, ast.FunctionDef)):
        by_place = [o.arg for o in node.args.args if o.arg not in ('self', 'cls')]
        every = by_place + [o.arg for o in node.args.kwonlyargs]
        if node.name.startswith('_') and node.name != '__init__': assert len(every) <= MOST_OF_A_HELPER, f'{node.name}({every})'
        assert len(by_place) <= max(MOST_BY_PLACE, theirs(node)), f'{node.name}({by_place})'

def theirs(node):
    "How many arguments fastai, torch or the standard library gives by place to a method of this name"
    return dict(__init__=6, test_dl=3).get(node.name, 0)

# Images

def test_images_are_those_of_the_notebooks():
    text = '\n'.join(source(c) for o in NOTEBOOKS for c in read_notebook(o)['cells'] if c['cell_type'] == 'markdown')
    shown = re.findall(r'!\[[^\]]{30,}\]\(images/([\w-]+\.(?:svg|png))\)', text)
    assert sorted(shown) == [o.name for o in IMAGES] and text.count('![') == len(shown)

@pytest.mark.parametrize('path', [o for o in IMAGES if o.suffix == '.svg'], ids=lambda o: o.stem)
def test_diagram_draws_and_does_nothing_else(path):
    "It has a size, a title, words on white, and neither scripts nor anything from elsewhere"
    root = ElementTree.parse(path).getroot()
    tags = Counter(o.tag.removeprefix('{http://www.w3.org/2000/svg}') for o in root.iter())
    assert tags.keys() <= {'svg', 'title', 'style', 'marker', 'path', 'rect', 'circle', 'text', 'tspan'} and tags['title'] == 1
    assert not re.search(r'href|url\((?!#)|@import|\bon\w+=', path.read_text(encoding='utf-8'))
    width, height = int(root.get('width')), int(root.get('height'))
    assert root.get('viewBox') == f'0 0 {width} {height}' and width <= 528   # the measure of the text
    page = next(root.iter('{http://www.w3.org/2000/svg}rect'))
    assert page.get('class') == 'page' and (int(page.get('width')), int(page.get('height'))) == (width, height)
