"""How a kernel reaches the machine code of another: by inlining a copy of it, or by calling its address.

Small kernels are parts of their callers. Large ones have a place in memory for the address of their code,
which the first call of the process fills. Machine code on the disk knows places by name only, and may be
loaded before there is any code to call.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate
from numba.extending import lower_builtin

# --- parts


class Part(JITCodeLibrary):
    """What LLVM knows of a part of kernels: it is optimised, and becomes machine code, only inside them."""

    codegen = SimpleNamespace(set_env=lambda name, environment: None)  # no machine code reads it

    def _optimize_final_module(self) -> None:
        """Turn loops into vector code here, since callers may be optimised for size."""
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        """Make the part ready for its callers."""
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """No address: only callers that inline the part can run it."""
        self._ensure_finalized()
        return 0


class PartCompiler(Compiler):
    """Numba's compiler of a function, for parts."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile the function."""
        self.state.library = Part(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


# --- addresses


class Place(NamedTuple):
    """Where machine code finds the address of a large kernel's code for a list of types."""

    kernel: Any
    argument_types: tuple[Any, ...]
    address: ctypes.c_void_p


FILL = "refimpl_fill"  # the name of `_fill` in machine code
FILLED, INTERRUPTED, FAILED = range(3)
_places: dict[str, Place] = {}
_by_address: dict[int, Place] = {}


def place(kernel: Any, argument_types: tuple[Any, ...]) -> str:
    """The name of a kernel's place for these types, which is made, empty, if it does not exist."""
    own = (kernel.__module__, kernel.__name__, argument_types)
    name = "refimpl_" + hashlib.sha256(repr(own).encode()).hexdigest()
    if name not in _places:
        _places[name] = new = Place(kernel, argument_types, ctypes.c_void_p())
        _by_address[ctypes.addressof(new.address)] = new
        llvmlite.binding.add_symbol(name, ctypes.addressof(new.address))
    return name


def places_used(library: Any) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Module, name and types of the large kernels whose places machine code refers to."""
    names = [variable.name for variable in library._final_module.global_variables]
    used = [_places[name] for name in names if name in _places]
    return [(place.kernel.__module__, place.kernel.__name__, place.argument_types) for place in used]


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _fill(at: int) -> int:
    """Compile what belongs in an empty place; returns `FILLED`, or what the caller in machine code raises."""
    kernel, argument_types, address = _by_address[at]
    try:
        kernel.compile(argument_types)
        found = kernel.overloads[argument_types]
        if found.signature.return_type != kernel.returns:
            raise TypeError("its annotation does not say what it returns")
        address.value = found.library.get_pointer_to_function(found.fndesc.llvm_func_name)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        logging.getLogger("refimpl").warning("refimpl: %s was not compiled: %s", kernel.__name__, error)
        return FAILED
    return FILLED


llvmlite.binding.add_symbol(FILL, ctypes.cast(_fill, ctypes.c_void_p).value)


def called_by_address(kernel: Any) -> types.Function:
    """The type by which compiled callers know a large kernel; `kernel.returns` is the type of its results."""

    class Template(AbstractTemplate):
        """What Numba asks for the type of a call."""

        key = kernel.py_func

        def generic(self, args: Any, kws: Any) -> Any:
            """The types of the arguments and of the result."""
            return None if kws else signature(kernel.returns, *map(types.unliteral, args))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        """Call the code whose address is in the place, after `_fill` if there is none yet."""
        convention, name = context.call_conv, place(kernel, sig.args)
        pointer = convention.get_function_type(sig.return_type, sig.args).as_pointer()
        where = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, pointer, name)
        with builder.if_then(cgutils.is_null(builder, builder.load(where)), likely=False):
            fill_type = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t])
            fill = cgutils.get_or_insert_function(builder.module, fill_type, FILL)
            outcome = builder.call(fill, [builder.bitcast(where, cgutils.voidptr_t)])
            with builder.if_then(builder.icmp_signed("==", outcome, outcome.type(INTERRUPTED)), likely=False):
                convention.return_user_exc(builder, KeyboardInterrupt)
            with builder.if_then(builder.icmp_signed("==", outcome, outcome.type(FAILED)), likely=False):
                convention.return_user_exc(builder, RuntimeError, (f"{kernel.__name__} was not compiled",))
        code = builder.load(where)
        status, result = convention.call_function(builder, code, sig.return_type, sig.args, args)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return result

    lower_builtin(kernel.py_func, types.VarArg(types.Any))(emit)
    return types.Function(Template)
