"""Pickles read as data: nothing that a file names is imported or called, and no size in it is believed.

`pickletools` of the standard library says what the operations of a pickle are; here they build plain values:
numbers, texts, bytes, lists, tuples, dicts. A set becomes a list. An object of any class becomes a `Foreign`,
which only knows the class's name. A reader builds the objects that it wants (a tensor, say) itself.
"""

import pickletools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST = 4_000_000  # operations of a pickle: an index of a million videos, a minute of a hostile file's time
# of the standard library; whatever else of it a file asks for is refused
HARMLESS = re.compile(
    r"_codecs\.encode|argparse\.Namespace|types\.SimpleNamespace|uuid\.UUID|copyreg\._reconstructor"
    r"|builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|set|slice|str|tuple)"
    r"|collections\.(Counter|OrderedDict|defaultdict|deque)|datetime\.(date|datetime|timedelta|timezone)"
    r"|decimal\.Decimal|fractions\.Fraction|pathlib\.(Pure)?(Posix|Windows)?Path"
)
OLDER = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules under their names of Python 2


class Refused(ValueError):
    """Why a pickle, or a value in it, is not taken: a reason for the user."""


class Name(NamedTuple):
    """A class or function that a pickle names."""

    name: str


@dataclass(eq=False)
class Foreign:
    """An object that is not built: the name of its class or function, and what it would have been made of."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


def pairs(items: Any = ()) -> dict[Any, Any]:
    """The parts of an `OrderedDict`."""
    found: dict[Any, Any] = {}
    for item in items.items() if isinstance(items, dict) else items:
        found[key_of(item[0], found)] = item[1]
    return found


def encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as protocol 2 stores them."""
    if encoding != "latin1":
        raise Refused(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": pairs,
    "collections.defaultdict": lambda factory=None, items=(): pairs(items),
    "collections.Counter": pairs,
    "builtins.dict": pairs,
    "builtins.set": list,
    "builtins.frozenset": list,
    "builtins.list": list,
    "_codecs.encode": encoded,
    "copyreg._reconstructor": lambda kind, base, state=None: Foreign(name_of(kind)),
}


def name_of(kind: Any) -> str:
    """The name of what is to be made; raises `Refused` for a value that is no name."""
    if not isinstance(kind, Name):
        raise Refused(f"it calls a {type(kind).__name__}")
    return kind.name


def key_of(key: Any, found: Mapping[Any, Any]) -> Any:
    """A key of a dict; numbers and tuples that all have one hash would take hours, so a name stands in."""
    if isinstance(key, str | bytes) or key is None or (isinstance(key, int) and abs(key) < 1 << 60):
        return key
    return f"<key {len(found)}>"


@dataclass
class Machine:
    """Reads one pickle. `builders` {name: function of the arguments}; `persistent` answers external ids."""

    builders: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    persistent: Callable[[Any], Any] | None = None
    foreign: dict[str, int] = field(default_factory=dict)
    """names of what was not built, and how often"""

    def load(self, stream: Any) -> Any:
        """The content of bytes, or of a file from where it is on. Raises `Refused`."""
        try:
            return self._load(stream)
        except Refused:
            raise
        except Exception as error:  # operations without their values, arguments of other types, texts cut off
            cut = re.search("exhausted|expected|not enough|no newline", str(error))
            raise Refused(f"its pickle is {'cut off' if cut else 'damaged'}") from error

    def _load(self, stream: Any) -> Any:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            name = operation.name
            if count > MOST:
                raise Refused(f"its pickle has more than {MOST} operations")
            if name in PUSHED:
                self.stack.append(argument)
            elif name in MADE:
                self.stack.append(MADE[name]())
            elif act := getattr(self, f"_do_{name.lower()}", None):
                act(argument)
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise Refused(f"its pickle has the operation {name}")
        return self.stack.pop()

    def make(self, kind: Any, arguments: Any) -> Any:
        """The object of class `kind` with these arguments: built here, or `Foreign`."""
        name = name_of(kind)
        if not isinstance(arguments, tuple):
            raise Refused(f"the arguments of {name} are no tuple")
        builder = self.builders.get(name) or BUILDERS.get(name)
        if builder:
            return builder(*arguments)
        self.foreign[name] = self.foreign.get(name, 0) + 1
        return Foreign(name, arguments)

    def named(self, module: str, name: str) -> Name:
        """A class or function; raises `Refused` if calling it could execute code."""
        module = OLDER.get(module, module)
        path, root = f"{module}.{name}", module.partition(".")[0]
        if not HARMLESS.fullmatch(path) and (
            root in sys.stdlib_module_names or root in ("commands", "popen2")
        ):
            raise Refused(f"it asks for {path}, which could run code")
        return Name(path)

    def after_mark(self) -> list[Any]:
        """The values since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def fill(self, items: list[Any]) -> None:
        """Put keys and values in turn into the dict on top."""
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[key_of(key, target)] = value

    def extend(self, items: list[Any]) -> None:
        """Add values to the list on top."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    # -- operations, by their names in pickletools

    def _do_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _do_pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.after_mark()

    def _do_pop_mark(self, _: Any) -> None:
        self.after_mark()

    def _do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _do_put(self, place: Any) -> None:
        self.memo[place] = self.stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _do_get(self, place: Any) -> None:
        self.stack.append(self.memo[place])

    _do_binget = _do_long_binget = _do_get

    def _do_tuple(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append(tuple(items))

    def _do_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _do_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _do_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _do_list(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append(items)

    _do_frozenset = _do_list

    def _do_dict(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append({})
        self.fill(items)

    def _do_append(self, _: Any) -> None:
        item = self.stack.pop()
        self.extend([item])

    def _do_appends(self, _: Any) -> None:
        items = self.after_mark()
        self.extend(items)

    _do_additems = _do_appends

    def _do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    def _do_setitems(self, _: Any) -> None:
        items = self.after_mark()
        self.fill(items)

    def _do_global(self, path: str) -> None:
        self.stack.append(self.named(*path.split(" ", 1)))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.named(str(module), str(name)))

    def _do_reduce(self, _: Any) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(self.make(kind, arguments))

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        _, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self.make(kind, arguments))

    def _do_inst(self, path: str) -> None:
        items = self.after_mark()
        self.stack.append(self.make(self.named(*path.split(" ", 1)), tuple(items)))

    def _do_obj(self, _: Any) -> None:
        kind, *items = self.after_mark()
        self.stack.append(self.make(kind, tuple(items)))

    def _do_build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].state = state

    def _do_persid(self, key: Any) -> None:
        if self.persistent is None:
            raise Refused("it leads to data outside of it")
        self.stack.append(self.persistent(key))

    def _do_binpersid(self, _: Any) -> None:
        self._do_persid(self.stack.pop())


VALUE = re.compile(
    r"(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?(BIN)?STRING|(SHORT_)?BINBYTES8?|BYTEARRAY8"
    r"|(SHORT_)?(BIN)?UNICODE8?"
)
PUSHED = frozenset(op.name for op in pickletools.opcodes if VALUE.fullmatch(op.name))
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
}
