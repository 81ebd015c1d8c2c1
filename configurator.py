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
Names that start with _ are the file's own. An unknown key, a wrong type, a number that is not finite, a value that
would take much time or memory, or any other statement is refused in one line.
"""
import ast
import errno
import inspect
import io
import math
import operator
import os
import re
import resource
import shutil
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
# what is printed

# Characters that a terminal would obey, where a name or a text has them: C0 but for tab and line feed, C1, and the
# marks that change the direction of writing.
CONTROLS = {code: chr(code).encode('unicode_escape').decode()
            for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202a, 0x202f), *range(0x2066, 0x206a))}

def printable(message):
    """A message as one line, with escapes for what a terminal would obey."""
    return str(message).translate(CONTROLS | {ord('\n'): '\\n'})

class Text(io.TextIOWrapper):
    """Standard output, which escapes what a terminal would obey."""

    def write(self, text):
        super().write(text.translate(CONTROLS))
        return len(text)

class Output(io.FileIO):
    """The file behind standard output or error. Once it takes no more, what is written is lost, and the script goes on.

    So it is when the terminal was closed (EIO), and when who read the pipe has ended (EPIPE).
    """

    def write(self, data):
        try:
            return super().write(data)
        except OSError as e:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno()) # of the libraries and of child processes, too
            os.close(null)
            if self.fileno() == 1 and e.errno not in (errno.EIO, errno.EPIPE):
                print(f"{script_name()}: standard output: {e.strerror}; going on without it", file=sys.stderr)
            return len(data)

def outlive_terminal():
    """Makes sure that a lost terminal never costs a result: puts Output behind sys.stdout and sys.stderr."""
    for name, kind in (('stdout', Text), ('stderr', io.TextIOWrapper)):
        stream = getattr(sys, name)
        if stream is None: # closed before the script began
            setattr(sys, name, open(os.devnull, 'w'))
        elif stream is getattr(sys, f'__{name}__'): # not one that a caller has put there
            stream.flush()
            file = Output(stream.fileno(), 'wb', closefd=False)
            if not stream.write_through: # python -u
                file = io.BufferedWriter(file)
            setattr(sys, name, kind(file, stream.encoding, 'backslashreplace',
                                    line_buffering=stream.line_buffering, write_through=stream.write_through))

# --------------------------------------------------------------------------------------------------
# settings

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
             ast.USub: operator.neg, ast.UAdd: operator.pos}

SEEDS = 2 ** 32 # torch's generators take more seeds, and numpy's none below 0
# These bounds keep what a few characters of a config file can ask for below 200 MB.
SOURCE = 1 << 15 # characters of a config file
LONGEST = 1 << 12 # characters of a computed string, entries of a computed tuple, bits of an integer

def _parsed(text, mode):
    """Python source as a tree; ValueError (or SyntaxError) if it is none, or too long or too deep to look at."""
    if len(text) > SOURCE:
        raise ValueError(f"more than {SOURCE} characters")
    try:
        return ast.parse(text, mode=mode)
    except (RecursionError, MemoryError): # the parser has both for what is nested too deeply
        raise ValueError("nested too deeply") from None

def _value(node, names):
    """The value of a parsed expression; ValueError for anything but plain data, arithmetic and `names`."""
    value = ... # what no expression gives
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))): # bool is an int
        value = node.value
    elif isinstance(node, (ast.Tuple, ast.List)):
        value = tuple(_value(item, names) for item in node.elts)
    elif isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        first = _value(node.left, names)
        second = _value(node.right, names)
        _check_operands(node, first, second)
        value = OPERATORS[type(node.op)](first, second)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_value(node.operand, names))
    if value is ... or _exceeds(value):
        raise ValueError(ast.unparse(node))
    return value

def _check_operands(node, first, second):
    """Refuses what takes long, or much memory, before its result can be looked at: 9**9**9, 'a' * 10**9, '%9d' % 1."""
    if isinstance(node.op, ast.Pow) and type(first) is type(second) is int:
        is_bomb = first.bit_length() * second > LONGEST
    else:
        is_bomb = isinstance(node.op, (ast.Mult, ast.Mod)) and {str, tuple} & {type(first), type(second)}
    if is_bomb:
        raise ValueError(ast.unparse(node))

def _exceeds(value):
    """Whether a value is longer than LONGEST, or a tuple of tuples, whose text may be longer by any factor."""
    if type(value) is int:
        return value.bit_length() > LONGEST
    if type(value) is tuple and tuple in map(type, value):
        return True
    return isinstance(value, (str, tuple)) and len(value) > LONGEST

def _short(text):
    """A text as a message shows it."""
    return text if len(text) <= 200 else text[:200] + '...'

def _read_config(path, settings):
    """The `name = value` lines of a config file as a dict, without executing it."""
    try:
        with open(path, encoding='utf-8') as f:
            tree = _parsed(f.read(SOURCE + 1), 'exec')
    except OSError:
        raise Refused(f"{path}: no such config file; settings are written --key=value") from None
    except (SyntaxError, ValueError) as e: # ValueError: not UTF-8, or a NUL byte
        raise Refused(f"{path}:{getattr(e, 'lineno', 1)}: not Python: {getattr(e, 'msg', e)}") from None
    new = {}
    names = dict(settings)
    for statement in tree.body:
        place = f"{path}:{statement.lineno}"
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue # a docstring
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        try:
            if len(targets) != 1 or not isinstance(targets[0], ast.Name):
                line = ast.unparse(statement).splitlines()[0]
                raise Refused(f"{place}: expected `name = value`, got `{_short(line)}`")
            name = targets[0].id
            new[name] = names[name] = _value(statement.value, names)
        except RecursionError:
            raise Refused(f"{place}: nested too deeply; expected less arithmetic in a value") from None
        except (ValueError, TypeError, ArithmeticError) as e:
            if isinstance(e, Refused):
                raise
            expected = "numbers, strings, tuples, arithmetic or earlier names"
            raise Refused(f"{place}: expected {expected}, got `{_short(str(e))}`") from None
    return {name: value for name, value in new.items() if not name.startswith('_')}

def _types(kind):
    """The types that a field's annotation allows: int | None -> (int, NoneType)."""
    return get_args(kind) if isinstance(kind, types.UnionType) else (kind,)

def _from_command_line(text, allowed):
    """The value of an argument's text for a field of these types; of a wrong type where the text fits none of them."""
    if str in allowed:
        return None if text == 'None' and type(None) in allowed else text
    try:
        value = _value(_parsed(text, 'eval').body, {})
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError):
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
        value = float(value) if value.bit_length() < 1024 else math.inf # --lr=1 is fine
    if int in allowed and float not in allowed and type(value) is float and value.is_integer():
        value = int(value) # and so is --max_tokens=15e9
    if type(value) not in allowed: # exactly: a bool is no int
        names = ' or '.join('None' if kind is type(None) else kind.__name__ for kind in allowed)
        raise Refused(f"{source}: {key} must be {names}, got {_short(repr(value))}")
    numbers = value if type(value) is tuple else (value,)
    if any(type(number) is float and not math.isfinite(number) for number in numbers):
        raise Refused(f"{source}: {key} must be finite, got {_short(repr(value))}")
    lowest, highest = (0, SEEDS) if key == 'seed' else (-2 ** 63, 2 ** 63) # what random generators, and arrays, take
    if any(type(number) is int and not lowest <= number < highest for number in numbers):
        raise Refused(f"{source}: {key} must be from {lowest} to {highest - 1}, got {_short(repr(value))}")
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
        source = _short(arg)
        if arg.startswith('-'):
            key, equals, text = arg.removeprefix('--').partition('=')
            if not equals and kinds.get(key) is bool:
                text = 'True'
            elif not equals or not arg.startswith('--'):
                raise Refused(f"{source}: expected --key=value")
            new = {key: _from_command_line(text, _types(kinds.get(key, str)))}
        else:
            new = _read_config(arg, settings)
        for key, value in new.items():
            value = _checked(key, value, kinds, source)
            if value != settings[key] and ranks()[0] == 0:
                print(f"overriding: {key} = {value!r} (was {settings[key]!r})")
            settings[key] = value
    return Config(**settings)

def script_name():
    """The running script's path in the repository (train.py, scaling/plan.py), or its file name if it is not in it."""
    path = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

def _existing(path):
    """The path itself, or the nearest folder above it that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path

def refuse_unwritable(path):
    """Refuses an output that cannot be made: below a file, in /proc, on a disk that is read-only or another user's."""
    if os.path.lexists(path):
        return # what is there is looked at by the script
    folder = _existing(path)
    try:
        os.rmdir(tempfile.mkdtemp(prefix='.', dir=folder)) # permissions alone do not tell
    except OSError as e:
        raise Refused(f"{path}: cannot be written, nothing new can be made in {folder} ({e.strerror})") from None

def disk_refusal(error, path, written=0):
    """The Refused of a disk that takes no more, from any library's error while `path` was written; None for others.

    written: bytes of the path that were written before.
    """
    number = getattr(error, 'errno', None)
    if number is None: # libraries in Rust (safetensors, tokenizers) and numpy tell by their words alone
        match = re.search(r'\(os error (\d+)\)', str(error))
        is_numpy = isinstance(error, OSError) and re.fullmatch(r'\d+ requested and \d+ written', str(error))
        number = int(match[1]) if match else errno.ENOSPC if is_numpy else None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if number == errno.ENOSPC and 0 <= limit <= written: # numpy does not tell these apart
        number = errno.EFBIG
    if number in (errno.ENOSPC, errno.EDQUOT):
        needs = f"it needs more than the {written:,} bytes that were written, " if written else ""
        remedy = f"{needs}{shutil.disk_usage(_existing(path)).free:,} are free; make room"
    elif number == errno.EFBIG:
        remedy = f"files of more than {limit:,} bytes are not allowed here; lift that (ulimit -f)"
    elif number == errno.EROFS:
        remedy = "mount it for writing, or take another place"
    elif number == errno.ENOENT and not os.path.isdir(os.path.dirname(path) or '.'):
        remedy = "its folder was removed meanwhile"
    else:
        return None
    return Refused(f"{path}: {os.strerror(number)}: {remedy}")

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
    outlive_terminal()
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
        raise SystemExit(f"{script_name()}: {printable(e)}") from None
    except OSError as e:
        path = e.filename or getattr(cfg, 'out', None) or 'the disk'
        refusal = cfg and disk_refusal(e, path)
        if not refusal and not (cfg and _is_named(e.filename, cfg)):
            raise
        raise SystemExit(f"{script_name()}: {printable(refusal or f'{path}: {e.strerror}')}") from None

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
