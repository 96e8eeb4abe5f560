"""Optimization profiles: the range of shapes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeinfer.artifact.signature import Dim, Signature, TensorSpec
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.options import TensorRTOptions, Triple
from edgeinfer.errors import OptionsError

__all__ = ["add_profiles", "plan_profiles"]

# Least, usual, greatest size of a dimension about which nothing was said: a batch, a sequence, an image side.
_BATCH: Triple = (1, 1, 8)
_SEQUENCE: Triple = (1, 128, 512)
_SIDE: Triple = (32, 224, 512)


def add_profiles(
    flavour: Flavour,
    builder: Any,
    network: Any,
    config: Any,
    signature: Signature,
    options: TensorRTOptions,
) -> tuple[dict[str, Triple], ...]:
    """Give a build its profiles, and return them; an empty one where no input is dynamic and one is needed.

    Raises:
        OptionsError: As `plan_profiles`; or TensorRT refuses one.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shape_inputs = frozenset(tensor.name for tensor in tensors if tensor.is_shape_tensor)
    profiles = plan_profiles(signature, options, shape_inputs=shape_inputs)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        try:
            for tensor in tensors:
                if tensor.name in ranges:
                    give = profile.set_shape_input if tensor.name in shape_inputs else profile.set_shape
                    give(tensor.name, *ranges[tensor.name])
        except ValueError as error:  # the bindings', where TensorRT returns False
            raise _refused(flavour, ranges, str(error)) from error
        if config.add_optimization_profile(profile) < 0:
            raise _refused(flavour, ranges, "it is not valid")
    if not profiles and _has_open_shapes(network):
        # TensorRT 8 wants a profile where shapes depend on data, even if no input is dynamic.
        config.add_optimization_profile(builder.create_optimization_profile())
        return ({},)
    return profiles


def _refused(flavour: Flavour, ranges: Mapping[str, Triple], why: str) -> OptionsError:
    return OptionsError(
        f"{flavour} refuses a profile: {why}.",
        where="option profiles",
        found=", ".join(f"{name} {triple}" for name, triple in ranges.items()),
        hint="Give other ranges with dims or profiles.",
    )


def _has_open_shapes(network: Any) -> bool:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return any(-1 in layer.get_output(index).shape for layer in layers for index in range(layer.num_outputs))


def plan_profiles(
    signature: Signature, options: TensorRTOptions, *, shape_inputs: frozenset[str] = frozenset()
) -> tuple[dict[str, Triple], ...]:
    """Return one mapping a profile, from input to its least, usual and greatest shape; none if all is static.

    Args:
        signature: The inputs, with symbolic dimensions.
        options: `profiles`, or `dims` and the defaults that are described there.
        shape_inputs: Inputs whose values are shapes; for these a profile holds values.

    Raises:
        OptionsError: A profile or a dimension names what is not there, does not fit, or is missing.
    """
    if options.profiles:
        return tuple(_checked(signature, profile, shape_inputs) for profile in options.profiles)
    known = {
        _name(spec, axis, dim)
        for spec in signature.inputs
        for axis, dim in enumerate(spec.shape or ())
        if not isinstance(dim, int)
    }
    unknown = sorted(set(options.dims) - known)
    if unknown:
        raise OptionsError(
            f"The model has no symbolic dimension {unknown[0]!r}.",
            where="option dims",
            expected=", ".join(sorted(known)) or "none: all shapes are static",
            found=unknown,
            hint="Name one that it has, or leave the option out.",
        )
    if shape_inputs:
        raise OptionsError(
            "The values of an input are shapes, so its range must be given.",
            where=f"input {min(shape_inputs)!r}",
            expected=f"profiles=[{{{min(shape_inputs)!r}: (least, usual, greatest), …}}]",
        )
    profile = {}
    for spec in signature.inputs:
        if spec.shape is None:
            raise OptionsError(
                "TensorRT needs the rank of every input.",
                where=f"input {spec.name!r}",
                hint="Give the input a shape with FixShapes.",
            )
        if not spec.is_static:
            profile[spec.name] = _range(spec, options.dims)
    return (profile,) if profile else ()


def _name(spec: TensorSpec, axis: int, dim: Dim) -> str:
    return dim if isinstance(dim, str) else f"{spec.name}.{axis}"


def _range(spec: TensorSpec, dims: Mapping[str, Triple]) -> Triple:
    sizes = []
    for axis, dim in enumerate(spec.shape or ()):
        if isinstance(dim, int):
            sizes.append((dim, dim, dim))
        else:
            default = _BATCH if axis == 0 else _SIDE if len(spec.shape or ()) > 3 else _SEQUENCE
            sizes.append(dims.get(_name(spec, axis, dim), default))
    low, opt, high = (tuple(size[which] for size in sizes) for which in range(3))
    return (low, opt, high)


def _checked(
    signature: Signature, given: Mapping[str, Triple], shape_inputs: frozenset[str]
) -> dict[str, Triple]:
    specs = {spec.name: spec for spec in signature.inputs}
    needed = {spec.name for spec in signature.inputs if not spec.is_static} | shape_inputs
    if set(given) - set(specs) or needed - set(given):
        raise OptionsError(
            "A profile does not cover the inputs.",
            where="option profiles",
            expected=f"shapes of {', '.join(sorted(needed))}",
            found=", ".join(given) or "nothing",
        )
    for name, triple in given.items():
        if name not in shape_inputs and not _fits(specs[name].shape, triple):
            raise OptionsError(
                "A profile does not fit an input.",
                where=f"input {name!r}",
                expected=f"least ≤ usual ≤ greatest of {specs[name].describe()}",
                found=triple,
            )
    return dict(given)


def _fits(shape: tuple[Dim, ...] | None, triple: Triple) -> bool:
    low, opt, high = triple
    if not len(low) == len(opt) == len(high) == len(shape if shape is not None else low):
        return False
    dims: tuple[Any, ...] = shape if shape is not None else (None,) * len(low)
    return all(
        a <= b <= c and (not isinstance(dim, int) or a == b == c == dim)
        for dim, a, b, c in zip(dims, low, opt, high, strict=True)
    )
