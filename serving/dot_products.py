"""Inner products of sixteen vectors of bytes at a time, as the processor does them fastest.

The bytes of sixteen vectors lie in turns: the first four numbers of each, then the next four of
each, and so on. One instruction (AVX-512 VNNI) multiplies four bytes with four and adds them to a
sum, for sixteen vectors at once, so that a vector of 64 numbers takes one step of the processor
and no sum across lanes. Without that instruction the same steps are made of shifts and products.
"""

# ruff: noqa: ARG001 - an intrinsic's arguments are types; their values come to `generate`

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
TOGETHER = 4  # vectors that `nearest` compares with what it reads

_INT, _FLOAT, _BYTE = ir.IntType(32), ir.FloatType(), ir.IntType(8)
_INTS, _FLOATS, _BYTES = (ir.VectorType(t, n) for t, n in ((_INT, 16), (_FLOAT, 16), (_BYTE, 64)))
FAST = llvm.get_host_cpu_features().get("avx512vnni", False)


def _four_products(builder: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Adds to sixteen sums four products each: unsigned bytes of `codes`, signed of `query`."""
    if FAST:
        kind = ir.FunctionType(_INTS, [_INTS, _BYTES, _BYTES])
        name = "llvm.x86.avx512.vpdpbusd.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        queries = builder.bitcast(_spread(builder, query), _BYTES)
        return builder.call(function, [sums, builder.bitcast(codes, _BYTES), queries])
    for shift in (0, 8, 16, 24):
        code = builder.and_(
            builder.lshr(codes, ir.Constant(_INTS, [shift] * LANES)),
            ir.Constant(_INTS, [255] * LANES),
        )
        number = builder.ashr(builder.shl(query, _INT(24 - shift)), _INT(24))
        sums = builder.add(sums, builder.mul(code, _spread(builder, number)))
    return sums


def _spread(builder: Any, number: Any) -> Any:
    vector_type = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), number, _INT(0))
    return builder.shuffle_vector(
        first, ir.Constant(vector_type, ir.Undefined), ir.Constant(_INTS, [0] * LANES)
    )


@intrinsic  # type: ignore[untyped-decorator]
def best_lanes(  # noqa: PLR0913 - addresses of what lies where
    _typing: Any,
    codes: Any,
    queries: Any,
    starts: Any,
    scales: Any,
    count: Any,
    quads: Any,
    out: Any,
) -> Any:
    """Writes for each of 16 vectors its largest product with any of `count` queries.

    All but `count` and `quads` are addresses.

    Args:
        codes: the vectors' bytes, each 128 too large.
        queries: of each query `quads` times 4 bytes, the higher halves of four numbers, and 4
            bytes, their lower halves of 7 bits.
        starts: of each query, int32: -128 times the sums of its higher and of its lower halves.
        scales: of each query, float32: what a product with its numbers is worth.
        out: 16 float32.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        codes, queries, starts, scales, count, quads, out = arguments
        lanes_at = builder.inttoptr(codes, ir.PointerType(_INTS))
        best = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [float("-inf")] * LANES))
        high, low = (cgutils.alloca_once(builder, _INTS) for _ in range(2))
        with cgutils.for_range(builder, count) as each:
            two = builder.shl(each.index, each.index.type(1))
            for half, total in enumerate((high, low)):
                start = _load(builder, starts, builder.add(two, two.type(half)), _INT)
                builder.store(_spread(builder, start), total)
            first = builder.mul(two, quads)
            with cgutils.for_range(builder, quads) as quad:
                lanes = builder.load(
                    builder.gep(lanes_at, [quad.index], source_etype=_INTS), typ=_INTS, align=4
                )
                at = builder.add(first, builder.shl(quad.index, quad.index.type(1)))
                for half, total in enumerate((high, low)):
                    part = _load(builder, queries, builder.add(at, at.type(half)), _INT)
                    sums = builder.load(total, typ=_INTS)
                    builder.store(_four_products(builder, sums, lanes, part), total)
            whole = builder.fadd(
                builder.fmul(
                    builder.sitofp(builder.load(high, typ=_INTS), _FLOATS),
                    ir.Constant(_FLOATS, [128.0] * LANES),
                ),
                builder.sitofp(builder.load(low, typ=_INTS), _FLOATS),
            )
            scale = _spread(builder, _load(builder, scales, each.index, _FLOAT))
            scores, before = builder.fmul(whole, scale), builder.load(best, typ=_FLOATS)
            larger = builder.fcmp_ordered(">", scores, before)
            builder.store(builder.select(larger, scores, before), best)
        _store_lanes(builder, builder.load(best, typ=_FLOATS), out)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@intrinsic  # type: ignore[untyped-decorator]
def nearest(  # noqa: PLR0913 - addresses of what lies where
    _typing: Any,
    codes: Any,
    factors: Any,
    half_squares: Any,
    blocks: Any,
    vectors: Any,
    starts: Any,
    scales: Any,
    quads: Any,
    out: Any,
) -> Any:
    """Writes for each of TOGETHER vectors which of 16 times `blocks` centroids is the nearest.

    That is the one whose product with the vector, less half its own square, is the largest.
    All but `blocks` and `quads` are addresses.

    Args:
        codes: the centroids' bytes, each 128 too large, in blocks of 16.
        factors: of each centroid, float32: what a step of its bytes is worth.
        half_squares: of each centroid, float32; infinite for one that is none.
        vectors: of each vector `quads` times 4 signed bytes.
        starts: of each vector, int32: -128 times the sum of its bytes.
        scales: of each vector, float32: what a step of its bytes is worth.
        out: TOGETHER int32.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        codes, factors, half_squares, blocks, vectors, starts, scales, quads, out = arguments
        word = quads.type
        each = [word(row) for row in range(TOGETHER)]
        lanes_at = builder.inttoptr(codes, ir.PointerType(_INTS))
        sums = [cgutils.alloca_once(builder, _INTS) for _ in each]
        worst = ir.Constant(_FLOATS, [float("-inf")] * LANES)
        best = [cgutils.alloca_once_value(builder, worst) for _ in each]
        of = [cgutils.alloca_once_value(builder, ir.Constant(_INTS, [0] * LANES)) for _ in each]
        with cgutils.for_range(builder, blocks) as block:
            for row, total in zip(each, sums, strict=True):
                builder.store(_spread(builder, _load(builder, starts, row, _INT)), total)
            first = builder.mul(block.index, quads)
            with cgutils.for_range(builder, quads) as quad:
                at = builder.add(first, quad.index)
                pointer = builder.gep(lanes_at, [at], source_etype=_INTS)
                lanes = builder.load(pointer, typ=_INTS, align=4)
                for row, total in zip(each, sums, strict=True):
                    at = builder.add(builder.mul(row, quads), quad.index)
                    before, part = builder.load(total, typ=_INTS), _load(builder, vectors, at, _INT)
                    builder.store(_four_products(builder, before, lanes, part), total)
            offset = builder.mul(block.index, word(4 * LANES))
            factor = _load_lanes(builder, builder.add(factors, offset))
            half_square = _load_lanes(builder, builder.add(half_squares, offset))
            this = _spread(builder, builder.trunc(block.index, _INT))
            for row, total, value, where in zip(each, sums, best, of, strict=True):
                scale = _spread(builder, _load(builder, scales, row, _FLOAT))
                product = builder.sitofp(builder.load(total, typ=_INTS), _FLOATS)
                product = builder.fmul(product, builder.fmul(scale, factor))
                near, before = builder.fsub(product, half_square), builder.load(value, typ=_FLOATS)
                nearer = builder.fcmp_ordered(">", near, before)
                builder.store(builder.select(nearer, near, before), value)
                block_before = builder.load(where, typ=_INTS)
                builder.store(builder.select(nearer, this, block_before), where)
        out_at = builder.inttoptr(out, ir.PointerType(_INT))
        for row, value, where in zip(each, best, of, strict=True):
            lane = _first_largest(builder, builder.load(value, typ=_FLOATS))
            its_block = builder.extract_element(builder.load(where, typ=_INTS), lane)
            number = builder.add(builder.mul(its_block, _INT(LANES)), lane)
            builder.store(number, builder.gep(out_at, [row], source_etype=_INT), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 9), generate


@intrinsic  # type: ignore[untyped-decorator]
def sum_lanes(_typing: Any, values: Any, factors: Any, reach: Any, addends: Any, out: Any) -> Any:
    """Writes values * factors + reach * addends to `out`, 16 of each; returns the largest.

    All but `reach` are addresses of float32.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values, factors, reach, addends, out = arguments
        result = builder.fadd(
            builder.fmul(_load_lanes(builder, values), _load_lanes(builder, factors)),
            builder.fmul(_spread(builder, reach), _load_lanes(builder, addends)),
        )
        _store_lanes(builder, result, out)
        return _largest(builder, result)

    intp = types.intp
    return types.float32(intp, intp, types.float32, intp, intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def upper_lanes(_typing: Any, values: Any, error: Any, factors: Any, least: Any, out: Any) -> Any:
    """Writes (values + error) * factors to `out`, 16 of each; a bit for each not under `least`.

    `values`, `factors` and `out` are addresses of float32.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values, error, factors, least, out = arguments
        result = builder.fmul(
            builder.fadd(_load_lanes(builder, values), _spread(builder, error)),
            _load_lanes(builder, factors),
        )
        _store_lanes(builder, result, out)
        passing = builder.fcmp_ordered(">=", result, _spread(builder, least))
        return builder.zext(builder.bitcast(passing, ir.IntType(LANES)), _INT)

    intp, number = types.intp, types.float32
    return types.uint32(intp, number, intp, number, intp), generate


def _largest(builder: Any, lanes: Any) -> Any:
    kind = ir.FunctionType(_FLOAT, [_FLOATS])
    name = "llvm.vector.reduce.fmax.v16f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [lanes])


def _first_largest(builder: Any, lanes: Any) -> Any:
    """The first of the lanes with the largest number; none is no number."""
    largest = builder.fcmp_ordered("==", lanes, _spread(builder, _largest(builder, lanes)))
    bits = builder.zext(builder.bitcast(largest, ir.IntType(LANES)), _INT)
    return builder.cttz(bits, ir.IntType(1)(1))


def _load(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    pointer = builder.inttoptr(address, ir.PointerType(kind))
    return builder.load(builder.gep(pointer, [index], source_etype=kind), typ=kind, align=4)


def _load_lanes(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, ir.PointerType(_FLOATS)), typ=_FLOATS, align=4)


def _store_lanes(builder: Any, lanes: Any, address: Any) -> None:
    builder.store(lanes, builder.inttoptr(address, ir.PointerType(_FLOATS)), align=4)
