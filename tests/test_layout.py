"The rules for chapters and modules: names, order of imports, and what a cell may hold"
import ast, re
from collections import Counter
from xml.etree import ElementTree
import pytest
from helpers import CHAPTERS, IMAGES, MODULES, NOTEBOOKS, PACKAGE, code_cells, directives, exported_names, imported_modules, parse_file, read_notebook, source

notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
chapters = pytest.mark.parametrize('path', CHAPTERS, ids=lambda o: o.stem)
lazy = {'15_cli'}  # imports inside functions, so that --help is instant
stars = {'fastai.vision.all', 'nbtransfer.all'}

def number(path): return int(path.stem[:2])
def default_exp(path): return re.findall(r'^#\|\s*default_exp:?\s+(\S+)', '\n'.join(map(source, code_cells(read_notebook(path)))), re.M)
def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))
def is_exported(cell): return bool({'export', 'exports', 'exporti'} & set(directives(cell)))

module_numbers = {o.stem[3:]: number(o) for o in CHAPTERS if default_exp(o)}

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

@pytest.mark.parametrize('module', MODULES, ids=lambda o: o.stem)
def test_module_imports_only_earlier_ones(module):
    own = {o.removeprefix('nbtransfer.').split('.')[0] for o in imported_modules(parse_file(module)) if o.startswith('nbtransfer.')}
    if module.stem == 'cli': own -= {'all'}  # it gathers the chapters before cli
    late = {o for o in own if module_numbers.get(o, 99) >= module_numbers[module.stem]}
    assert not late, f'{module.name} imports {late}, which does not come before it'

@chapters
def test_chapter_uses_no_later_module(path):
    text = '\n'.join(source(c) for c in code_cells(read_notebook(path)))
    used = set(re.findall(r'^\s*(?:from|import)\s+nbtransfer\.(\w+)', text, re.M)) - {'all'}
    late = {o for o in used if module_numbers.get(o, 99) > number(path)}
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
        assert len(lines) <= 40, f'{len(lines)} lines in:\n{source(cell)}'
        too_long = [o for o in lines if len(o) > 100 and not o.startswith('#|')]
        assert not too_long, f'over 100 characters: {too_long[0]}'

@notebooks
def test_cell_ids_are_unique(path):
    ids = [c.get('id') for c in read_notebook(path)['cells']]
    assert all(ids) and len(ids) == len(set(ids))

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
