"""
Settings for every script, nanoGPT's way, but checked:

    python train.py config/tiny.py --lr=1e-3

Each script has one frozen dataclass `Config`; the comments on its fields are the documentation, and --help prints them.
Config files and --key=value arguments apply from left to right. What a value looks like depends on the field's type:

    --out=out/a --init=None         text, without quotes; None where the field allows it
    --max_tokens=15e9               a number, or arithmetic; a whole float will do for an int
    --verify                        a bool's name alone is --verify=True
    --directions=S,T                a tuple, ('S', 'T'); one word is a tuple of one: --sources=textless

A config file is Python syntax but is parsed, never executed: `name = expression` lines, where an expression is a
number, string, True, False, None, a tuple or list, arithmetic, or an earlier name (of the file, or a setting so far).
Names that start with _ are the file's own. An unknown key, a wrong type or any other statement is refused in one line.
"""
import ast
import errno
import inspect
import operator
import os
import sys
import tempfile
import traceback
import types
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import get_args, get_type_hints


class Refused(ValueError):
    """Bad input. The message is the one line the user sees: what, where, what was expected, what to do."""

# --------------------------------------------------------------------------------------------------
# settings

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
             ast.USub: operator.neg, ast.UAdd: operator.pos}

def _value(node, names):
    """The value of a parsed expression; ValueError for anything but plain data, arithmetic and `names`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))): # bool is an int
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(item, names) for item in node.elts)
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        first = _value(node.left, names)
        second = _value(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(second) > 100:
            raise ValueError(ast.unparse(node)) # 9**9**9 would hang the parser
        return OPERATORS[type(node.op)](first, second)
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
        place = f"{path}:{statement.lineno}"
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue # a docstring
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            raise Refused(f"{place}: expected `name = value`, got `{ast.unparse(statement).splitlines()[0]}`")
        try:
            new[targets[0].id] = _value(statement.value, {**settings, **new})
        except (ValueError, TypeError, ArithmeticError) as e:
            expected = "numbers, strings, tuples, arithmetic or earlier names"
            raise Refused(f"{place}: expected {expected}, got `{e}`") from None
    return {name: value for name, value in new.items() if not name.startswith('_')}

def _types(kind):
    """The types that a field's annotation allows: int | None -> (int, NoneType)."""
    return get_args(kind) if isinstance(kind, types.UnionType) else (kind,)

def _from_command_line(text, allowed):
    """The value of an argument's text for a field of these types; of a wrong type where the text fits none of them."""
    if str in allowed:
        return None if text == 'None' and type(None) in allowed else text
    try:
        value = _value(ast.parse(text, mode='eval').body, {})
    except (SyntaxError, ValueError, TypeError, ArithmeticError):
        value = text # words
    if tuple not in allowed or value is None or type(value) is tuple:
        return value
    if type(value) is str:
        return tuple(word.strip() for word in value.split(',') if word.strip())
    return (value,)

def _checked(key, value, kinds, source):
    """The value, as the type that the setting `key` has; Refused if it is of another."""
    if key not in kinds:
        close = get_close_matches(key, kinds, n=1)
        raise Refused(f"{source}: no setting '{key}'" + (f", did you mean '{close[0]}'?" if close else ""))
    allowed = _types(kinds[key])
    if float in allowed and type(value) is int:
        value = float(value) # --lr=1 is fine
    if int in allowed and float not in allowed and type(value) is float and value.is_integer():
        value = int(value) # and so is --max_tokens=15e9
    if type(value) not in allowed: # exactly: a bool is no int
        names = ' or '.join('None' if kind is type(None) else kind.__name__ for kind in allowed)
        raise Refused(f"{source}: {key} must be {names}, got {value!r}")
    return value

def _help(Config):
    """Yields the docstring of Config's script, then the lines of its fields with their comments."""
    yield sys.modules[Config.__module__].__doc__ or ''
    for line in inspect.getsource(Config).splitlines():
        if line.startswith(('    def ', '    @')):
            break
        if not line.startswith(('@', 'class ')):
            yield line

def configure(Config, argv):
    """Config (a frozen dataclass with defaults) with argv's config files and --key=value applied, all of them checked.

    Raises Refused with one line for an unknown key, a wrong type, a missing file or a statement that is no setting.
    """
    if '--help' in argv or '-h' in argv:
        print(*_help(Config), sep='\n')
        raise SystemExit(0)
    kinds = get_type_hints(Config)
    settings = {field.name: field.default for field in fields(Config)}
    for arg in argv:
        if arg.startswith('-'):
            key, equals, text = arg.removeprefix('--').partition('=')
            if not equals and kinds.get(key) is bool:
                text = 'True'
            elif not equals or not arg.startswith('--'):
                raise Refused(f"{arg}: expected --key=value")
            new = {key: _from_command_line(text, _types(kinds.get(key, str)))}
        else:
            new = _read_config(arg, settings)
        for key, value in new.items():
            value = _checked(key, value, kinds, arg)
            if value != settings[key] and ranks()[0] == 0:
                print(f"overriding: {key} = {value!r} (was {settings[key]!r})")
            settings[key] = value
    return Config(**settings)

def script_name():
    """The running script's path in the repository (train.py, scaling/plan.py), or its file name if it is not in it."""
    path = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

def refuse_unwritable(path):
    """Refuses an output that cannot be made: below a file, in /proc, on a disk that is read-only or another user's."""
    if os.path.lexists(path):
        return # what is there is looked at by the script
    folder = os.path.abspath(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    try:
        os.rmdir(tempfile.mkdtemp(prefix='.', dir=folder)) # permissions alone do not tell
    except OSError as e:
        raise Refused(f"{path}: cannot be written, nothing new can be made in {folder} ({e.strerror})") from None

def _is_named(path, cfg):
    """Whether a path is that of a setting, or goes on behind it."""
    names = [name for value in vars(cfg).values() if isinstance(value, str) for name in value.split(',') if name]
    return isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(
        tuple(map(os.path.abspath, names)))

def refuse_library(error):
    """Raises Refused, which names the library, if `error` came up while a library was imported.

    One that was built for another torch raises ImportError, or OSError for the symbols it lacks; the
    library that needs it may raise an error from either.
    """
    while error.__cause__:
        error = error.__cause__
    importing = [frame.f_globals.get('__name__', '') for frame, _ in traceback.walk_tb(error.__traceback__)
                 if frame.f_code.co_name == '<module>']
    if importing or isinstance(error, ImportError):
        name = importing[-1] if importing else error.name or 'a library'
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise Refused(f"{name.split('.')[0]} cannot be imported ({reason}); "
                      "install the version that fits the other libraries (torch), or uninstall it") from None

def run(main, Config):
    """A script's last line: main(settings of the command line); bad input ends in one line and exit status 1.

    Bad input is what raises Refused, an `out` that cannot be written, a full disk, and any other
    error of the operating system about a path that a setting names.
    """
    cfg = None
    try:
        cfg = configure(Config, sys.argv[1:])
        if getattr(cfg, 'out', None):
            refuse_unwritable(cfg.out)
        try:
            main(cfg)
        except ImportError as e:
            refuse_library(e)
            raise
    except Refused as e:
        raise SystemExit(f"{script_name()}: {e}") from None
    except OSError as e:
        is_full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        if cfg is None or not (is_full or _is_named(e.filename, cfg)):
            raise
        path = e.filename or getattr(cfg, 'out', None) or 'the disk'
        raise SystemExit(f"{script_name()}: {path}: {e.strerror}") from None

def ranks():
    """(rank of this process, number of processes), which torchrun sets; (0, 1) without it."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))

def pick_device(device):
    """'auto' (a GPU if there is one), 'cpu', 'cuda' or 'cuda:N' -> 'cpu' or 'cuda:N', made the current device.

    Without N it is the GPU of this process: torchrun's LOCAL_RANK, or the first one. Refuses a GPU that is not there.
    """
    import torch  # not at the top: scripts that only read files need not wait for it
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == 'cpu' or device == 'auto' and not gpus:
        return 'cpu'
    kind, _, index = ('cuda' if device == 'auto' else device).partition(':')
    index = index or os.environ.get('LOCAL_RANK', '0')
    if kind != 'cuda' or not gpus or not index.isdecimal():
        raise Refused(f"device is {device}, expected auto, cpu, or cuda where there is one")
    if int(index) >= gpus:
        raise Refused(f"device is cuda:{index}, this machine has {gpus} GPUs: start one process per GPU")
    torch.cuda.set_device(int(index)) # the current device, on which Triton starts its kernels
    return f'cuda:{index}'
