"""
Settings for every script, nanoGPT's way, but checked:

    python train.py config/tiny.py --learning_rate=1e-3

Each script has one frozen dataclass `Config`; its commented fields are the documentation (`--help` prints them).
Config files and --key=value arguments apply from left to right. A config file is Python syntax but is parsed,
never executed: `name = expression` lines, where an expression is a number, string, True, False, None, a tuple or
list, arithmetic, or an earlier name (of the file, or a setting so far). Names that start with _ are the file's own.
An unknown key, a wrong type or any other statement is refused in one line.

Also here, because every script that writes an artefact needs them: `record` (how it was made), `atomically`
(write, fsync, rename: a reader never sees half a file or folder) and `progress`.
"""
import ast
import hashlib
import inspect
import json
import operator
import os
import shutil
import subprocess
import sys
import types
from contextlib import contextmanager
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args, get_type_hints

from tqdm import tqdm


class Refused(ValueError):
    """Bad input. The message is the one line the user sees: what, where, what was expected, what to do."""

# ----------------------------------------------------------------------------------------------------------------
# settings

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
             ast.USub: operator.neg, ast.UAdd: operator.pos}

def _value(node, names):
    """The value of a parsed expression; ValueError for anything that is not plain data and arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))): # bool is an int
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(item, names) for item in node.elts)
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, names), _value(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(right) > 100:
            raise ValueError(ast.unparse(node)) # 9**9**9 would hang the parser
        return OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand, names))
    raise ValueError(ast.unparse(node))

def _read_config(path, settings):
    """The `name = value` lines of a config file as a dict, without executing it."""
    try:
        tree = ast.parse(Path(path).read_text(encoding='utf-8'))
    except OSError:
        raise Refused(f"{path}: no such config file; settings are written --key=value") from None
    except (SyntaxError, ValueError) as e: # ValueError: not UTF-8, or a NUL byte
        raise Refused(f"{path}:{getattr(e, 'lineno', 1)}: not Python: {getattr(e, 'msg', e)}") from None
    new = {}
    for statement in tree.body:
        where = f"{path}:{statement.lineno}"
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue # a docstring
        if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1
                and isinstance(statement.targets[0], ast.Name)):
            raise Refused(f"{where}: expected `name = value`, got `{ast.unparse(statement).splitlines()[0]}`")
        try:
            new[statement.targets[0].id] = _value(statement.value, {**settings, **new})
        except (ValueError, TypeError, ArithmeticError) as e:
            raise Refused(f"{where}: expected numbers, strings, tuples, arithmetic or earlier names, got `{e}`") from None
    return {name: value for name, value in new.items() if not name.startswith('_')}

def _from_command_line(text, want):
    """'1e-3' -> 0.001 where a number is wanted; plain text where a string is."""
    if str in (want, *get_args(want)):
        return None if text == 'None' and want is not str else text
    try:
        return _value(ast.parse(text, mode='eval').body, {})
    except (SyntaxError, ValueError, TypeError, ArithmeticError):
        return text # let the type check name it

def _checked(key, value, kinds, source):
    if key not in kinds:
        close = get_close_matches(key, kinds, n=1)
        raise Refused(f"{source}: no setting '{key}'" + (f", did you mean '{close[0]}'?" if close else ""))
    want = kinds[key]
    allowed = get_args(want) if isinstance(want, types.UnionType) else (want,)
    if float in allowed and type(value) is int:
        value = float(value) # --learning_rate=1 is fine
    if int in allowed and float not in allowed and type(value) is float and value.is_integer():
        value = int(value) # and so is --max_tokens=15e9
    if type(value) not in allowed: # exact: a bool is no int
        names = ' or '.join('None' if kind is type(None) else kind.__name__ for kind in allowed)
        raise Refused(f"{source}: {key} wants {names}, got {value!r}")
    return value

def configure(Config, argv):
    """Config (a frozen dataclass with defaults) with argv's config files and --key=value applied, all of them checked.

    Raises Refused with one line for an unknown key, a wrong type, a missing file or a statement that is no setting.
    """
    if '--help' in argv or '-h' in argv:
        print(*(inspect.getsource(c) for c in Config.__mro__[:-1]), sep='\n') # the comments are the help
        raise SystemExit(0)
    kinds, settings = get_type_hints(Config), {f.name: f.default for f in fields(Config)}
    for arg in argv:
        if arg.startswith('-'):
            key, equals, text = arg.removeprefix('--').partition('=')
            if not equals or not arg.startswith('--'):
                raise Refused(f"{arg}: expected --key=value")
            new = {key: _from_command_line(text, kinds.get(key, str))}
        else:
            new = _read_config(arg, settings)
        for key, value in new.items():
            value = _checked(key, value, kinds, arg)
            if value != settings[key] and int(os.environ.get('RANK', 0)) == 0:
                print(f"overriding: {key} = {value!r} (was {settings[key]!r})")
            settings[key] = value
    return Config(**settings)

def run(main, Config):
    """A script's last line: main(settings of the command line); bad input ends in one line and exit status 1."""
    try:
        main(configure(Config, sys.argv[1:]))
    except Refused as e:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {e}") from None

# ----------------------------------------------------------------------------------------------------------------
# artefacts

def _commit():
    """Short git commit of this folder, '+' behind it when tracked files differ from it; None outside a checkout."""
    try:
        here = Path(__file__).parent
        git = lambda *args: subprocess.run(['git', '-C', here, *args], capture_output=True, text=True, check=True).stdout
        return git('rev-parse', '--short=12', 'HEAD').strip() + ('+' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
        return None

def record(cfg):
    """How an artefact was made, to be saved beside it: command, settings, commit, versions. No times: bytes repeat."""
    versions = {'python': '.'.join(map(str, sys.version_info[:3]))}
    for package in ('torch', 'numpy', 'transformers'):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return {'command': ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]]), 'settings': asdict(cfg),
            'commit': _commit(), 'versions': versions}

def _fsync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

@contextmanager
def atomically(path, mark=''):
    """Yields `path`.tmp to be made (a file, or a folder of files); then fsync and rename to `path`. Nothing is left on failure.
    mark: `path`MARK.tmp instead, where several processes may write the same file at once.

        with atomically('out/info.json') as tmp:
            tmp.write_text(...)

    A file replaces the old one; a folder's name must be free.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + mark + '.tmp')
    _remove(tmp) # of a killed run
    try:
        yield tmp
        for part in sorted(tmp.rglob('*')) if tmp.is_dir() else []:
            _fsync(part)
        _fsync(tmp)
        os.replace(tmp, path)
        _fsync(path.parent)
    except BaseException:
        _remove(tmp)
        raise

def write_json(path, value, mark=''):
    """value as indented JSON, atomically."""
    with atomically(path, mark) as tmp:
        tmp.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def ranks():
    """This process's number and of how many, by torchrun's RANK and WORLD_SIZE; 0 and 1 without it."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))

def sha256(path):
    """Hex digest of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()

def progress(iterable=None, **kwargs):
    """tqdm, silent where nobody watches (stderr is no terminal)."""
    return tqdm(iterable, disable=not sys.stderr.isatty(), **kwargs)
