"The house style, measured: lines, cells, modules, names, layout, and links that lead somewhere."

import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from avsrepro.core.paths import repo_root

ROOT = repo_root()
WIDTH = 110
PACKAGE = [p for p in sorted((ROOT / 'avsrepro').rglob('*.py')) if p.name != '_modidx.py']
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAGES = sorted((ROOT / 'nbs' / 'papers').glob('*/*.ipynb'))
LINK = re.compile(r'\]\((?![a-z][a-z0-9+.-]*:|#|/)([^)\s#]+)')


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells(path: Path, kind: str) -> list[str]:
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == kind]


def exported(path: Path) -> list[str]:
    return [c for c in cells(path, 'code') if re.match(r'#\s*\|\s*export', c)]


def code_of(cell: str) -> str:
    "A cell without its directives and blank lines at the ends."
    return '\n'.join(line for line in cell.split('\n') if not line.startswith('#|')).strip('\n')


def ruff(*args: str) -> str:
    done = subprocess.run([sys.executable, '-m', 'ruff', *args], cwd=ROOT, capture_output=True, text=True)
    return '' if done.returncode == 0 else done.stdout + done.stderr


def without_all(path: Path) -> str:
    "A module without the list of names that nbdev writes."
    return re.sub(r'^__all__ = \[.*?\]$', '', path.read_text(encoding='utf-8'), flags=re.M | re.S)


# lines


def test_lines_of_the_package_fit():
    "At most 110 columns, but for addresses and nbdev's list of names."
    long = []
    for path in PACKAGE:
        for line in without_all(path).split('\n'):
            if len(line) > WIDTH and 'http' not in line:
                long.append(f'{name_of(path)}: {line[:60]}')
    assert not long, '\n'.join(long)


def test_ruff_finds_nothing():
    assert not ruff('check', 'nbs', 'tests', 'data_prep')


def test_ruff_finds_nothing_in_the_package():
    "Its imports have the order of the notebooks, where they are absolute; nbdev makes them relative."
    assert not ruff('check', '--ignore', 'I001,E501', 'avsrepro')


def test_layout_is_that_of_ruff():
    assert not ruff('format', '--check', 'nbs', 'tests', 'data_prep')


def test_layout_of_the_package_is_that_of_ruff_but_for_blank_lines(tmp_path):
    "Between cells nbdev leaves one blank line, and a mark."
    copy = tmp_path / 'avsrepro'
    shutil.copytree(ROOT / 'avsrepro', copy, ignore=shutil.ignore_patterns('_modidx.py', '__pycache__'))
    ruff('format', '--config', str(ROOT / 'pyproject.toml'), str(copy))
    differ = []
    for path in PACKAGE:
        pair = (path, copy / path.relative_to(ROOT / 'avsrepro'))
        texts = [without_all(p) for p in pair]
        if len({re.sub(r'\n\s*\n+', '\n', t).strip() for t in texts}) > 1:
            differ.append(name_of(path))
    assert not differ


# cells and modules


def test_exported_cells_fit_on_a_screen():
    "Nine in ten have at most 25 lines, none has more than 60."
    sizes = {}
    for path in NOTEBOOKS:
        for n, cell in enumerate(exported(path)):
            sizes[f'{name_of(path)}, exported cell {n}'] = code_of(cell).count('\n') + 1
    assert not {where: n for where, n in sizes.items() if n > 60}
    assert sum(n > 25 for n in sizes.values()) <= len(sizes) / 10


def test_modules_have_one_subject():
    lengths = {name_of(p): p.read_text(encoding='utf-8').count('\n') for p in PACKAGE}
    assert not {name: n for name, n in lengths.items() if n > 450}


def test_a_name_means_one_thing():
    "No public name is defined at the top of two modules, but for what every module or page of a kind has."
    common = {'main', 'EXPERIMENT', 'CLAIMS', 'WHERE'}
    where = defaultdict(set)
    for path in PACKAGE:
        if path.parent.parent.name == 'papers':
            continue  # constants of a page
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            if isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            for name in names:
                if not name.startswith('_') and name not in common:
                    where[name].add(name_of(path))
    assert not {name: found for name, found in where.items() if len(found) > 1}


FLOORS = 'core data metrics nn models train analysis experiments report papers cli'.split()


def test_arrows_point_downwards():
    "A module imports only from its own folder and those before it."
    wrong = []
    for path in PACKAGE:
        own = path.relative_to(ROOT / 'avsrepro').parts[0].removesuffix('.py')
        package = ('avsrepro', *path.relative_to(ROOT / 'avsrepro').parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ImportFrom):
                continue
            names = (node.module or '').split('.')
            if node.level:
                names = [*package[: len(package) - node.level + 1], *names]
            if names[0] == 'avsrepro' and own in FLOORS and len(names) > 1 and names[1] in FLOORS:
                if FLOORS.index(names[1]) > FLOORS.index(own):
                    wrong.append(f'{name_of(path)} imports {".".join(names)}')
    assert not wrong, '\n'.join(wrong)


# pages


def definitions(path: Path) -> list[ast.AST]:
    found = []
    for cell in cells(path, 'code'):
        tree = ast.parse('\n'.join(line for line in cell.split('\n') if not line.startswith(('%', '!'))))
        found += [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return found


def test_pages_hold_what_they_are_about():
    "At most 80 definitions in all experiment notebooks, and no body twice."
    bodies, total = Counter(), 0
    for path in PAGES:
        for node in definitions(path):
            total += 1
            bodies[ast.dump(ast.Module(node.body, []))] += 1
    assert total <= 80
    assert max(bodies.values(), default=0) <= 1


@pytest.mark.parametrize('folder', ['nbs', 'results'])
def test_links_lead_somewhere(folder):
    "Relative links of notebooks, their Markdown outputs, and Markdown files."
    dead = []
    for path in sorted((ROOT / folder).rglob('*')):
        if path.suffix == '.ipynb':
            text = '\n'.join(cells(path, 'markdown') + markdown_outputs(path))
        elif path.suffix == '.md':
            text = path.read_text(encoding='utf-8')
        else:
            continue
        dead += [
            f'{name_of(path)}: {link}' for link in LINK.findall(text) if not (path.parent / link).exists()
        ]
    assert not dead, '\n'.join(dead)


def markdown_outputs(path: Path) -> list[str]:
    nb, found = json.loads(path.read_text(encoding='utf-8')), []
    for c in nb['cells']:
        for o in c.get('outputs', []):
            found.append(''.join(o.get('data', {}).get('text/markdown', '')))
    return found
