"""Views into arrays that cost nothing: a pointer with a shape.

A slice and `reshape` give the same, but count references to the memory and check the shape, by calls that
together take as long as a small layer. Callers keep the memory alive. Nothing checks that a view ends inside.
"""

from __future__ import annotations

from numba import types
from numba.core import cgutils
from numba.np.arrayobj import populate_array

from refimpl.kernels.jit import intrinsic, kernel
from refimpl.kernels.simd import unpacked


@intrinsic
def view(typingctx, array, at, shape):
    """The entries of a C-contiguous array from number `at` on, in a shape."""
    kind = types.Array(array.dtype, shape.count, "C")

    def codegen(context, builder, signature, args):
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        lengths, strides = cgutils.unpack_tuple(builder, args[2]), [itemsize]
        for length in reversed(lengths[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        data = builder.gep(unpacked(context, builder, signature.args[0], args[0]), [args[1]])
        found = context.make_array(kind)(context, builder)
        populate_array(found, data, lengths, strides, itemsize, meminfo=None)
        return found._getvalue()

    return kind(array, types.intp, types.UniTuple(types.intp, shape.count)), codegen


@kernel
def flat(array):
    """All entries of a C-contiguous array in one row."""
    return view(array, 0, (array.size,))


@kernel
def cut(array, size):
    """The first `size` entries of a scratch array and the rest."""
    return view(array, 0, (size,)), view(array, size, (array.size - size,))
