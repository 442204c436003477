"""Counting the work of a step without running it: FLOPs of products in a trace, and in what XLA made of it."""

import math
import re
from collections.abc import Collection, Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval


def live(jaxpr: ClosedJaxpr) -> Jaxpr:
    """Without what no output needs, in loops and remats too: a trace recomputes more than its backward pass uses."""
    return partial_eval.dce_jaxpr(jaxpr.jaxpr, used_outputs=True)[0]


def products(jaxpr: Jaxpr, times: int) -> Iterator[tuple[int, JaxprEqn]]:
    """(how many times it runs, product) of a jaxpr that runs `times`; of a cond's branches the one with most work."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield times, equation
            continue
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name == "cond":
            inner = [max(inner, key=lambda branch: sum(n * flops(product) for n, product in products(branch, 1)))]
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for sub in inner:
            found = list(products(sub, times * turns))
            assert not found or equation.primitive.name != "while", "a loop whose turns are not known"
            yield from found


def flops(product: JaxprEqn) -> int:
    """Two for each element of the result and each contracted pair."""
    left, (contracted, _), _ = product.invars[0].aval.shape, *product.params["dimension_numbers"]
    return 2 * product.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def weight_flops(jaxpr: Jaxpr, sizes: Collection[int]) -> int:
    """FLOPs of the products that read or make something of a weight's size; `sizes` in elements."""
    touches = lambda product: any(v.aval.size in sizes for v in (*product.invars, *product.outvars))
    return sum(times * flops(product) for times, product in products(jaxpr, 1) if touches(product))


def compiled_weight_flops(hlo: str, sizes: Collection[int]) -> int:
    """The same of a compiled program's text, loops by their known turns."""
    computations = {
        name: body for name, body in re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", hlo, re.M | re.S)
    }
    entry = re.search(r"^ENTRY %?([\w.-]+)", hlo, re.M)[1]

    def work(name):
        shapes = {
            name: [int(n) for n in dims.split(",") if n]
            for name, dims in re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", computations[name])
        }
        total = 0
        for line in computations[name].splitlines():
            if match := re.search(r"%([\w.-]+) = .*? dot\((.*?)\).*lhs_contracting_dims=\{([\d,]*)\}", line):
                out, operands, contracted = match.groups()
                left, right = (shapes[operand] for operand in re.findall(r"%([\w.-]+)", operands))
                if {math.prod(shape) for shape in (left, right, shapes[out])} & set(sizes):
                    total += 2 * math.prod(shapes[out]) * math.prod(left[int(n)] for n in contracted.split(","))
            called = re.findall(r"(?:calls|to_apply|body)=%?([\w.-]+)", line)
            branches = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
            if match := re.search(r"branch_computations=\{(.*?)\}", line):
                branches = re.findall(r"%?([\w.-]+)", match[1])
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            inside = sum(map(work, called)) + max(map(work, branches), default=0)
            assert not inside or turns or " while(" not in line, "a loop whose turns are not known"
            total += inside * (int(turns[1]) if turns else 1)
        return total

    return work(entry)


def collectives(hlo: str) -> list[tuple[str, tuple[int, ...]]]:
    """[(operation, shape)] of each array that a compiled program moves between devices."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    return [
        (name, tuple(map(int, filter(None, dims.split(",")))))
        for made, name in re.findall(rf"= (.*?) ({names})(?:-start)?\(", hlo)
        for dims in re.findall(r"\w+\[([\d,]*)\]", made)
    ]
